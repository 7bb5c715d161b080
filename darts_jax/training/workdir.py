"""The working directory of a training: its claim (`config.json`) and the description of its network (`model.json`)."""

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
#: Field of `model.json` with the name of the space of a network that is not convolutional.
SPACE = 'space'
#: File of weights that were trained elsewhere, such as converted ones.
WEIGHTS = 'weights.safetensors'


class Described(abc.ABC):
  """Description of a trained network without its weights; the content of `model.json`.

  Attributes:
    kind: noun for such a network in messages.
    genotype: the architecture.
  """

  kind: ClassVar[str]
  genotype: Genotype

  @property
  @abc.abstractmethod
  def num_weights(self) -> int:
    """Number of parameters of the network."""

  @abc.abstractmethod
  def to_dict(self) -> dict[str, Any]:
    """The description as JSON values."""

  @classmethod
  @abc.abstractmethod
  def from_dict(cls, values: Mapping[str, Any]) -> Self:
    """Makes the description from JSON values.

    Raises:
      ValueError: a field is missing, unknown or of the wrong form.
    """

  def write(self, workdir: pathlib.Path) -> None:
    """Writes `model.json`, and `genotype.json` for other commands, into an existing folder."""
    spaces.save(self.genotype, workdir / 'genotype.json')
    write_whole(workdir / FILE, (json.dumps(self.to_dict(), indent=2) + '\n').encode())

  @classmethod
  def read(cls, workdir: pathlib.Path) -> Self:
    """Reads the description of the network in a working directory.

    Raises:
      ValueError: there is no description, or it cannot be read.
    """
    path = workdir / FILE
    values = read_object(path, 'a training writes it into its workdir')
    try:
      return cls.from_dict(values)
    except ValueError as error:
      raise ValueError(f'{path}: no {cls.kind} ({one_line(error)})') from error

  @classmethod
  def fields(cls, values: Mapping[str, Any], *more: str) -> dict[str, Any]:
    """The values of the dataclass's fields; raises a ValueError unless `values` has exactly these fields and `more`."""
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    wrong = sorted(set(values) ^ {*names, *more})
    if wrong:
      raise ValueError(f'{wrong[0]}: missing or unknown; a {cls.kind} has the fields {", ".join([*more, *names])}')
    return {name: values[name] for name in names}


def check_numbers(values: Mapping[str, Any], least: int, most: Mapping[str, int]) -> None:
  """Raises a ValueError unless every field in `most` is a whole number from `least` to its limit in `most`."""
  for name, limit in most.items():
    if type(values[name]) is not int or not least <= values[name] <= limit:
      raise ValueError(f'{name}: {values[name]!r} is not allowed; it is a whole number from {least} to {limit}')


def training_config(settings: Any, model: Described, fingerprint: Any) -> dict[str, Any]:
  """The content of a training's `config.json`, which also identifies the training.

  Args:
    settings: settings of the training, a dataclass.
    model: description of the network.
    fingerprint: JSON values that identify the dataset; the training resumes only with the same ones.
  """
  what = {'genotype': spaces.to_json(model.genotype), 'dataset': fingerprint}
  return as_json({**as_config(settings), **what})


def claim_training(workdir: pathlib.Path, config: Mapping[str, Any], model: Described) -> None:
  """Claims `workdir` for a training, or checks that it holds this training; then writes the model's description.

  Args:
    workdir: the working directory; it is made if it does not exist.
    config: see `training_config`.
    model: description of the network.

  Raises:
    ValueError: the directory cannot be written, or holds something else.
  """
  if (workdir / WEIGHTS).exists():
    raise ValueError(f'--workdir: {workdir} holds the weights of another network; choose another')
  claim(workdir, config, 'training')
  with named_errors(workdir):
    model.write(workdir)


def read_settings(kind: type[S], workdir: pathlib.Path) -> S:
  """Reads the settings of the training in a working directory.

  Args:
    kind: class of the settings.
    workdir: the working directory.

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
  """Reads the latest readable state of a folder of checkpoints; warns of damaged checkpoints.

  Args:
    checkpoints: the folder.
    template: shapes, dtypes and shardings of the state.

  Raises:
    ValueError: there is no readable checkpoint.
  """
  restored = Checkpoints(checkpoints).restore(template)
  if restored is None:
    raise ValueError(f'{checkpoints}: no checkpoint yet; a training saves them as its epochs end')
  for line in restored.damaged:
    warnings.warn(f'{line}; the network is that of step {restored.step}', stacklevel=4)
  state: S = restored.state
  return state
