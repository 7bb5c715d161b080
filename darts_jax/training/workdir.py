"""The working directory of a training: whose it is, and what it says of the network that it holds."""

import abc
import dataclasses
import json
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar

from darts_jax import spaces
from darts_jax.runtime.checkpoint import Checkpoints
from darts_jax.runtime.durable import write_whole
from darts_jax.runtime.files import one_line, read_object
from darts_jax.runtime.workdir import as_json, claim, named_errors
from darts_jax.settings import as_config, build
from darts_jax.spaces import Genotype

S = TypeVar('S')

FILE = 'model.json'
#: Field of that file which says what kind of architecture it is; convolutional without it.
SPACE = 'space'
#: Weights that were not trained where they lie.
WEIGHTS = 'weights.safetensors'


class Described(abc.ABC):
  """What a trained network is besides its weights, as `model.json` holds it.

  Attributes:
    kind: what it is called in messages.
    genotype: its cells.
  """

  kind: ClassVar[str]
  genotype: Genotype

  @property
  @abc.abstractmethod
  def num_weights(self) -> int:
    """Parameters of the network."""

  @abc.abstractmethod
  def to_dict(self) -> dict[str, Any]:
    """As JSON values."""

  @classmethod
  @abc.abstractmethod
  def from_dict(cls, values: Mapping[str, Any]) -> Self:
    """From JSON values.

    Raises:
      ValueError: a field is missing, unknown or of the wrong form.
    """

  def write(self, workdir: pathlib.Path) -> None:
    """Writes `model.json` and, for other commands, `genotype.json` into a folder that exists."""
    spaces.save(self.genotype, workdir / 'genotype.json')
    write_whole(workdir / FILE, (json.dumps(self.to_dict(), indent=2) + '\n').encode())

  @classmethod
  def read(cls, workdir: pathlib.Path) -> Self:
    """What the network of a working directory is.

    Raises:
      ValueError: there is none, or it cannot be read.
    """
    path = workdir / FILE
    values = read_object(path, 'a training writes it into its workdir')
    try:
      return cls.from_dict(values)
    except ValueError as error:
      raise ValueError(f'{path}: no {cls.kind} ({one_line(error)})') from error

  @classmethod
  def fields(cls, values: Mapping[str, Any], *more: str) -> dict[str, Any]:
    """The values of the dataclass's fields, if `values` has exactly those and `more`; raises a ValueError if not."""
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    wrong = sorted(set(values) ^ {*names, *more})
    if wrong:
      raise ValueError(f'{wrong[0]}: missing or unknown; a {cls.kind} has the fields {", ".join([*more, *names])}')
    return {name: values[name] for name in names}


def check_numbers(values: Mapping[str, Any], least: int, most: Mapping[str, int]) -> None:
  """Raises a ValueError for a field that is not a whole number from `least` to what `most` says."""
  for name, limit in most.items():
    if type(values[name]) is not int or not least <= values[name] <= limit:
      raise ValueError(f'{name}: {values[name]!r} is not allowed; it is a whole number from {least} to {limit}')


def training_config(settings: Any, model: Described, fingerprint: Any) -> dict[str, Any]:
  """What a training is, as JSON values.

  Args:
    settings: of the training, a dataclass.
    model: the network.
    fingerprint: JSON values of the dataset, with which alone the training may go on.
  """
  what = {'genotype': spaces.to_json(model.genotype), 'dataset': fingerprint}
  return as_json({**as_config(settings), **what})


def claim_training(workdir: pathlib.Path, config: Mapping[str, Any], model: Described) -> None:
  """Makes `workdir` that of a training, or finds that it is; then it says what the network is.

  Args:
    workdir: is made if it is not there.
    config: see `training_config`.
    model: the network.

  Raises:
    ValueError: it cannot be written, or holds something else.
  """
  if (workdir / WEIGHTS).exists():
    raise ValueError(f'--workdir: {workdir} holds the weights of another network; choose another')
  claim(workdir, config, 'training')
  with named_errors(workdir):
    model.write(workdir)


def read_settings(kind: type[S], workdir: pathlib.Path) -> S:
  """The settings of the training in a working directory.

  Raises:
    ValueError: there is no training, or its config cannot be read.
  """
  path = workdir / 'config.json'
  config = read_object(path, f'{workdir} holds no training')
  for name in ('genotype', 'dataset'):
    config.pop(name, None)
  try:
    return build(kind, config)
  except ValueError as error:
    raise ValueError(f'{path}: {one_line(error)}') from error


def read_state(checkpoints: pathlib.Path, template: S) -> S:
  """The latest state in a folder of checkpoints; warns of those that are damaged.

  Args:
    checkpoints: the folder.
    template: shapes, dtypes and places of the state.

  Raises:
    ValueError: there is none that can be read.
  """
  restored = Checkpoints(checkpoints).restore(template)
  if restored is None:
    raise ValueError(f'{checkpoints}: no checkpoint yet; a training saves them as its epochs end')
  for line in restored.damaged:
    warnings.warn(f'{line}; the network is that of step {restored.step}', stacklevel=4)
  state: S = restored.state
  return state
