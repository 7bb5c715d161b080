"""The functions of the package: `darts_jax.search(…)`, `train`, `load`, `describe`, `export`.

They do what the commands in `experiments/` do, which call the same code. docs/python.md has an example of each.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from darts_jax import search as relaxed
from darts_jax import searches, spaces, training, trials
from darts_jax.interop import export as exporting
from darts_jax.nets.description import describe_classifier, describe_language_model
from darts_jax.runtime.files import user_path
from darts_jax.runtime.metrics import Writer
from darts_jax.search.settings import check_alone
from darts_jax.spaces import Genotype
from darts_jax.tasks import ImageTask
from darts_jax.trials import TrialsResult


def search(
  config: Mapping[str, Any],
  workdir: str | os.PathLike[str],
  *,
  data: tuple[Any, Any] | None = None,
  writers: Sequence[Writer] = (),
) -> relaxed.Result | TrialsResult:
  """Searches an architecture, or goes on with the search that `workdir` holds.

  Args:
    config: the fields of a config file, as nested mappings or a `ConfigDict`; those that are left out have defaults.
    workdir: gets the log, the checkpoints, the report and the genotype.
    data: inputs and targets, arrays, that take the place of `config.data`: images `[N, H, W, C]` or `[N, H, W]` and
      labels `[N]`, or what a task of your own takes.
    writers: objects with a method `write(step, values)`, which is told of all metrics while they are logged.

  Returns:
    What was found, with its history. Of a strategy that proposes architectures it is a `darts_jax.trials.TrialsResult`.

  Raises:
    ValueError: a setting, the data or the directory is unfit; one line, and nothing has been written then.
    Diverged: a loss or gradient was not finite.
  """
  _check_pair('data', data)
  folder = pathlib.Path(workdir)
  if searches.proposes(config):
    if data is not None:
      raise ValueError('data: a strategy that proposes architectures takes no data here; its evaluator has them')
    return trials.search.run(config, folder, writers=writers)
  if data is not None and isinstance(relaxed.settings.read(config).task, ImageTask):
    # The name says that no file has them.
    config = {**config, 'data': {**config.get('data', {}), 'name': 'arrays'}}
  check_alone(relaxed.settings.read(config))
  [result] = relaxed.run_side_by_side(config, folder, data=data, writers=writers)
  return result


def train(
  config: Mapping[str, Any],
  workdir: str | os.PathLike[str],
  genotype: Genotype | str,
  *,
  data: tuple[Any, Any] | None = None,
  test: tuple[Any, Any] | None = None,
  writers: Sequence[Writer] = (),
) -> training.Result | training.LanguageResult:
  """Trains the network of an architecture from scratch, or goes on with the training that `workdir` holds.

  Args:
    config: the fields of a config file.
    workdir: of the training.
    genotype: an architecture, the name of a published one, or the path of a file that holds one.
    data: training images `[N, H, W, C]` or `[N, H, W]` and labels `[N]`, arrays that take the place of `config.data`.
      The part `config.data.validation_fraction` of them is held out and measured after every epoch. Networks for text
      take none.
    test: images and labels likewise, which are measured once, after the last epoch, unless `config.data.test` is
      False; only together with `data`. Without them there is no test.
    writers: objects with a method `write(step, values)`, which is told of all metrics while they are logged.

  Returns:
    What the training came to, with its history.

  Raises:
    ValueError: a setting, the data, the architecture or the directory is unfit; one line, and nothing has been written
      then.
    Diverged: a loss or gradient was not finite.
  """
  _check_pair('data', data)
  _check_pair('test', test)
  found = spaces.resolve(genotype) if isinstance(genotype, str) else genotype
  return training.run(config, pathlib.Path(workdir), found, data=data, test=test, writers=writers)


def _check_pair(name: str, given: Any) -> None:
  """Raises a ValueError unless this is None or two things."""
  if given is not None and (not isinstance(given, tuple | list) or len(given) != 2):
    raise ValueError(f'{name}: has to be a pair of arrays, inputs and targets: {name}=(x, y)')


def describe(genotype: Genotype | str, **sizes: int) -> dict[str, Any]:
  """What the network of an architecture costs: parameters and multiply-adds, part by part.

  Args:
    genotype: see `train`.
    **sizes: of a network for images `channels`, `layers`, `classes`, `image_size`, `image_channels`; of a language
      model `width`, `vocabulary`. By default those of the published evaluations.

  Returns:
    JSON values.

  Raises:
    ValueError: there is no such network; one line.
  """
  found = spaces.resolve(genotype) if isinstance(genotype, str) else genotype
  describing = describe_language_model if spaces.space_of(found).task == 'text' else describe_classifier
  return describing(found, **sizes)


def export(workdir: str | os.PathLike[str], path: str | os.PathLike[str], kind: str | None = None) -> float:
  """Writes the network of a training to a file.

  Args:
    workdir: of the training.
    path: of the file.
    kind: `stablehlo`, `onnx` or `safetensors`; by the ending of the path if not given.

  Returns:
    How far its logits are from those of the network on random images, relative to the largest.

  Raises:
    ValueError: there is no network, or it cannot be written so; one line.
  """
  target = user_path(path, 'path')
  folder = user_path(workdir, 'workdir')
  chosen = (kind or target.suffix.removeprefix('.')).lower()
  if chosen not in exporting.FORMATS:
    raise ValueError(f'kind: {chosen!r} is not known; allowed are {", ".join(exporting.FORMATS)}')
  return exporting.export(training.Model.read(folder), training.load(folder).variables, target, chosen)
