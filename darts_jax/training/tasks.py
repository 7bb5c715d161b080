"""Trainings of either task, chosen by the architecture: classification of images, or prediction of words."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from darts_jax.runtime import processes
from darts_jax.runtime.files import one_line, read_object, user_path
from darts_jax.runtime.metrics import Writer
from darts_jax.settings import build, items, name_alone
from darts_jax.spaces import SPACES, Genotype, kind_of, space_of
from darts_jax.training import language, loop, restore
from darts_jax.training.language import LanguageResult, LanguageTraining
from darts_jax.training.loop import Result
from darts_jax.training.restore import Trained
from darts_jax.training.settings import Training
from darts_jax.training.workdir import FILE, SPACE

#: Settings classes of trainings by name of the task.
TRAININGS: Mapping[str, type[Training] | type[LanguageTraining]] = {'images': Training, 'text': LanguageTraining}


def read(config: Mapping[str, Any]) -> Training | LanguageTraining:
  """Reads the settings of a training; the task is `images` if `config.task` does not name another.

  Raises:
    ValueError: there is no such task, or as `darts_jax.settings.build`.
  """
  fields = items(config, 'config')
  if 'task' in fields:
    fields['task'] = name_alone(fields['task'])
    if fields['task'] not in tuple(TRAININGS):
      raise ValueError(
        f'config.task: {one_line(repr(fields["task"]))} is not known; allowed are {", ".join(TRAININGS)}'
      )
  return build(TRAININGS[fields.get('task', 'images')], fields)


def check_genotype(config: Mapping[str, Any], genotype: Genotype, name: str = 'genotype') -> None:
  """Raises a ValueError unless the architecture is for the task of the config; `name` names it in the message."""
  wanted, task = read(config).task, space_of(genotype).task
  if task != wanted:
    raise ValueError(
      f'{name} is a {kind_of(genotype)} architecture, whose task is {task}; this config has config.task={wanted!r}'
    )


def run(
  config: Mapping[str, Any],
  workdir: str | pathlib.Path,
  genotype: Genotype,
  *,
  data: tuple[Any, Any] | None = None,
  test: tuple[Any, Any] | None = None,
  writers: Sequence[Writer] = (),
) -> Result | LanguageResult:
  """Trains an architecture from scratch, or resumes the training that `workdir` holds.

  Args:
    config: config for the task of the architecture; see `darts_jax.training.loop.run` and
      `darts_jax.training.language.loop.run`.
    workdir: working directory; see the same functions.
    genotype: the architecture.
    data: arrays of training images and labels; see `darts_jax.training.loop.run`. Not for text.
    test: arrays of test images and labels; see the same function. Not for text.
    writers: receive all metrics as they are logged.

  Returns:
    The result of the one of these functions that is called.

  Raises:
    ValueError: a setting, the data, the architecture or the directory is unfit; nothing has been written then.
    Diverged: a loss or gradient was not finite.
  """
  processes.together(lambda: check_genotype(config, genotype))
  if space_of(genotype).task == 'images':
    return loop.run(config, workdir, genotype, data=data, test=test, writers=writers)
  for name, given in (('data', data), ('test', test)):
    if given is not None:
      raise ValueError(f'{name}: the task text takes no arrays')
  if jax.process_count() > 1:
    raise ValueError('--distributed: networks for text are trained in one process')
  return language.run(config, workdir, genotype, writers=writers)


def load(workdir: str | os.PathLike[str]) -> Trained:
  """Loads a trained network: for images with the latest weights, for text with the best ones.

  Args:
    workdir: working directory of the training, or a folder written by `darts_jax.training.write`.

  Returns:
    A function and its arguments; see `darts_jax.training.restore.Trained`, and `darts_jax.training.language.load` for
    a language model.

  Raises:
    ValueError: there is no network, or no readable checkpoint of it.
  """
  folder = user_path(workdir, 'workdir')
  values = read_object(folder / FILE, 'a training writes it into its workdir')
  space = SPACES.get(str(values.get(SPACE)))
  return language.load(folder) if space is not None and space.task == 'text' else restore.load(folder)
