"""A trained language model, ready to be used."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from darts_jax.nets.recurrent import initial_hidden
from darts_jax.runtime.files import user_path
from darts_jax.runtime.mesh import make_mesh
from darts_jax.runtime.precision import in_float32, precisely
from darts_jax.training.language.model import RecurrentModel
from darts_jax.training.language.settings import LanguageTraining
from darts_jax.training.language.trainer import LanguageTrainer
from darts_jax.training.restore import Trained
from darts_jax.training.workdir import read_settings, read_state

Array = jax.Array

#: Folder of the checkpoint with the best weights.
BEST = 'best'


@in_float32
def load(workdir: str | os.PathLike[str]) -> Trained:
  """The language model of a training, with the best weights so far: those that it tests in the end.

  Their `apply` is `(variables, tokens, hidden=None) → (log_probabilities, hidden)`: `[T, B]` int32 ids of words, see
  `RecurrentModel.vocabulary`, and `[B, H]` the hidden state that the words before have led to, if there are any, to
  `[T, B, V]` natural logarithms of the probabilities of the next word, and the hidden state after them.

  Args:
    workdir: of the training.

  Raises:
    ValueError: there is no language model, or no checkpoint of it that can be read.
  """
  folder = user_path(workdir, 'workdir')
  model = RecurrentModel.read(folder)
  trainer = LanguageTrainer(read_settings(LanguageTraining, folder), model, make_mesh(1))
  state = read_state(folder / BEST, trainer.template())
  return Trained(make_apply(model), {'params': state.evaluated.tree})


def make_apply(model: RecurrentModel) -> Callable[..., Any]:
  """The function of `Trained`."""
  net = model.network()

  @jax.jit
  def read(variables: Any, tokens: Array, hidden: Array) -> Any:
    # As in the evaluation of a training.
    with precisely('float32'):
      return net.apply(variables, tokens, hidden, train=False)

  def apply(variables: Any, tokens: Any, hidden: Any = None) -> Any:
    tokens = jnp.asarray(tokens)
    return read(variables, tokens, initial_hidden(tokens.shape[1], net.width) if hidden is None else hidden)

  return apply
