"""The functions of the package: `darts_jax.search(…)`, `train`, `load`, `describe`, `export`.

The commands in `darts_jax/commands/` call the same code. docs/python.md has an example of each function.
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
  """Searches for an architecture, or resumes the search that `workdir` holds.

  Args:
    config: the fields of a config file, as nested mappings or a `ConfigDict`; omitted fields have defaults.
    workdir: the working directory; the search writes log, checkpoints, report and genotype into it.
    data: arrays of inputs and targets that replace `config.data`: images `[N, H, W, C]` or `[N, H, W]` and labels
      `[N]`, or the arrays that a task of your own takes. Not for strategies that propose architectures.
    writers: objects with a method `write(step, values)`, which receives all metrics as they are logged.

  Returns:
    The result of the search with its history; a `darts_jax.trials.TrialsResult` if the strategy proposes architectures.

  Raises:
    ValueError: a setting, the data or the working directory is invalid; one line, and nothing has been written then.
    Diverged: a loss or gradient was not finite.
    darts_jax.trials.Failed: all evaluations of proposed architectures have failed.
  """
  _check_pair('data', data)
  folder = pathlib.Path(workdir)
  if searches.proposes(config):
    if data is not None:
      raise ValueError('data: a strategy that proposes architectures takes no data here; its evaluator has them')
    return trials.search.run(config, folder, writers=writers)
  if data is not None and isinstance(relaxed.settings.read(config).task, ImageTask):
    # The config in the working directory then shows that the images are in no file.
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
  """Trains the network of an architecture from scratch, or resumes the training that `workdir` holds.

  Args:
    config: the fields of a config file, as nested mappings or a `ConfigDict`; omitted fields have defaults.
    workdir: the working directory; the training writes log, checkpoints and report into it.
    genotype: an architecture, or a text as `darts_jax.spaces.resolve` takes it: the name of a published architecture, a
      printed genotype, or the path of a file with a genotype.
    data: arrays of training images `[N, H, W, C]` or `[N, H, W]` and labels `[N]` that replace `config.data`. The part
      `config.data.validation_fraction` of them is held out and measured after every epoch. Not for text.
    test: arrays of test images and labels, measured once, after the last epoch, unless `config.data.test` is False;
      only together with `data`. Without them nothing is tested.
    writers: objects with a method `write(step, values)`, which receives all metrics as they are logged.

  Returns:
    The result of the training with its history.

  Raises:
    ValueError: a setting, the data, the architecture or the working directory is invalid; one line, and nothing has
      been written then.
    Diverged: a loss or gradient was not finite.
  """
  _check_pair('data', data)
  _check_pair('test', test)
  found = spaces.resolve(genotype) if isinstance(genotype, str) else genotype
  return training.run(config, pathlib.Path(workdir), found, data=data, test=test, writers=writers)


def _check_pair(name: str, given: Any) -> None:
  """Raises a ValueError unless this is None or a pair of which neither is None."""
  if given is not None and (not isinstance(given, tuple | list) or len(given) != 2 or any(x is None for x in given)):
    raise ValueError(f'{name}: has to be a pair of arrays, inputs and targets: {name}=(x, y)')


def describe(genotype: Genotype | str, **sizes: int) -> dict[str, Any]:
  """Counts the parameters and multiply-adds of an architecture's network, part by part.

  Args:
    genotype: see `train`.
    **sizes: sizes of the network: for images `channels`, `layers`, `classes`, `image_size`, `image_channels`; of a
      language model `width`, `vocabulary`. The defaults are those of the published evaluations.

  Returns:
    The counts, as JSON values.

  Raises:
    ValueError: the genotype or a size is invalid; one line.
  """
  found = spaces.resolve(genotype) if isinstance(genotype, str) else genotype
  describing = describe_language_model if spaces.space_of(found).task == 'text' else describe_classifier
  return describing(found, **sizes)


def export(workdir: str | os.PathLike[str], path: str | os.PathLike[str], kind: str | None = None) -> float:
  """Exports the trained network in a working directory to a file.

  Args:
    workdir: the working directory of the training.
    path: path of the file.
    kind: format of the file: `stablehlo`, `onnx` or `safetensors`; None takes it from the suffix of the path.

  Returns:
    The largest difference between the logits of the file and of the network on random images, relative to the largest
    logit.

  Raises:
    ValueError: there is no trained network, or the format does not support it; one line.
  """
  target = user_path(path, 'path')
  folder = user_path(workdir, 'workdir')
  chosen = (kind or target.suffix.removeprefix('.')).lower()
  if chosen not in exporting.FORMATS:
    raise ValueError(f'kind: {chosen!r} is not known; allowed are {", ".join(exporting.FORMATS)}')
  return exporting.export(training.Model.read(folder), training.load(folder).variables, target, chosen)
