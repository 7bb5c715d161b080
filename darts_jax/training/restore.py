"""Loads a trained network, and writes one that `load` reads."""

import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from darts_jax.data.augment import normalise
from darts_jax.runtime import weights
from darts_jax.runtime.files import user_path
from darts_jax.runtime.lock import locked
from darts_jax.runtime.mesh import make_mesh
from darts_jax.runtime.precision import in_float32, precisely
from darts_jax.runtime.workdir import named_errors, remove_leftovers
from darts_jax.training.model import Model
from darts_jax.training.settings import Training
from darts_jax.training.trainer import Trainer
from darts_jax.training.workdir import WEIGHTS, read_settings, read_state

Array = jax.Array


class Trained(NamedTuple):
  """A network and its variables.

  Attributes:
    apply: `(variables, images) → logits` in evaluation mode, from `[N, H, W, C]` raw images, as in the dataset it was
      trained on, to `[N, num_classes]` float32. For language models see `darts_jax.training.language.load`.
    variables: `{'params': …, 'batch_stats': …}`; a language model has `params` only.
  """

  apply: Callable[..., Any]
  variables: Any


@in_float32
def load(workdir: str | os.PathLike[str]) -> Trained:
  """Loads the network of a training with the weights of its latest checkpoint, or a network written by `write`.

  Args:
    workdir: working directory of the training, or the folder given to `write`.

  Raises:
    ValueError: there is no network, or no readable checkpoint of it.
  """
  folder = user_path(workdir, 'workdir')
  model = Model.read(folder)
  if (folder / WEIGHTS).exists():
    images = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    net = model.network()
    template = jax.eval_shape(lambda images: net.init(jax.random.key(0), images, train=True), images)
    return Trained(make_apply(model), weights.load(folder / WEIGHTS, template))
  settings = read_settings(Training, folder)
  trainer = Trainer(settings, model, settings.batch_size, make_mesh(1))
  return Trained(make_apply(model), read_state(folder / 'checkpoints', trainer.template()).variables)


def write(model: Model, variables: Any, workdir: pathlib.Path) -> None:
  """Writes a network that was not trained here into a folder that `load` reads.

  Args:
    model: description of the network.
    variables: `{'params': …, 'batch_stats': …}`.
    workdir: the folder.

  Raises:
    ValueError: the folder cannot be written, is in use, or holds a training or search.
  """
  with locked(workdir), named_errors(workdir):
    if (workdir / 'config.json').exists():
      raise ValueError(f'--workdir: {workdir} holds a training or search; choose another')
    if (workdir / WEIGHTS).exists():
      remove_leftovers(workdir)
    weights.save(variables, workdir / WEIGHTS)
    model.write(workdir)


def make_apply(model: Model) -> Callable[[Any, Any], Array]:
  """Makes `Trained.apply` for a model."""
  net = model.network()

  @jax.jit
  def apply(variables: Any, images: Any) -> Array:
    # The precision in which trainings are evaluated by default.
    with precisely('float32'):
      logits: Any = net.apply(variables, normalise(jnp.asarray(images), model.mean, model.std), train=False)
    main: Array = logits.main
    return main

  return apply
