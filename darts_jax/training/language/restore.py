"""Loads a trained language model."""

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
  """Loads the language model of a training with its best weights so far by validation, which are also the tested ones.

  `apply` of the result is `(variables, tokens, hidden=None) → (log_probabilities, hidden)`. `tokens` are `[T, B]` int32
  ids of words (see `RecurrentModel.vocabulary`), and `hidden` is the `[B, H]` hidden state after the words before them,
  None at the beginning of a text. `log_probabilities` are `[T, B, V]` natural logarithms of the probabilities of the
  next word; the second output is the `[B, H]` hidden state after the tokens.

  Args:
    workdir: working directory of the training.

  Raises:
    ValueError: there is no language model, or no readable checkpoint of it.
  """
  folder = user_path(workdir, 'workdir')
  model = RecurrentModel.read(folder)
  trainer = LanguageTrainer(read_settings(LanguageTraining, folder), model, make_mesh(1))
  state = read_state(folder / BEST, trainer.template())
  return Trained(make_apply(model), {'params': state.evaluated.tree})


def make_apply(model: RecurrentModel) -> Callable[..., Any]:
  """Makes `Trained.apply` for a language model; see `load`."""
  net = model.network()

  @jax.jit
  def read(variables: Any, tokens: Array, hidden: Array) -> Any:
    # The precision in which trainings are evaluated by default.
    with precisely('float32'):
      return net.apply(variables, tokens, hidden, train=False)

  def apply(variables: Any, tokens: Any, hidden: Any = None) -> Any:
    tokens = jnp.asarray(tokens)
    return read(variables, tokens, initial_hidden(tokens.shape[1], net.width) if hidden is None else hidden)

  return apply
