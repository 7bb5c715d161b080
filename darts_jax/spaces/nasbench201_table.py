"""The results of NAS-Bench-201: the accuracies of its 15,625 trained networks.

The table is read from two CSV files of percentages: validation and test accuracies after 12 epochs of training, and
test accuracies after 200 epochs, means over seeds.

Source: [NB201] arXiv 2001.00326, §2.3; [NATS] arXiv 2009.00437.
"""

import csv
import dataclasses
import io
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple, Self

import numpy as np

from darts_jax.runtime.files import one_line, read_bytes, user_path
from darts_jax.spaces.cells import Genotype
from darts_jax.spaces.nasbench201 import NasBench201, operations_of, place

#: The datasets on which the networks were trained: CIFAR-10, CIFAR-100, and ImageNet16-120.
DATASETS = ('cifar10', 'cifar100', 'imagenet16')

_SPACE = NasBench201()
# Largest size of a file in bytes; the published ones have 3 · 10⁶.
_MAX_BYTES = 2**26
# Largest number of file names in a message.
_MAX_LISTED = 3


class Accuracies(NamedTuple):
  """Accuracies of a network on one dataset, 0 to 1.

  Attributes:
    valid_12: accuracy on validation images after 12 epochs of training, the reward of searches.
    test_12: accuracy on test images after 12 epochs.
    test_200: accuracy on test images after 200 epochs, the quality of a search's result.
  """

  valid_12: float
  test_12: float
  test_200: float


class _File(NamedTuple):
  """A file of the table.

  Attributes:
    architectures: name of the column with architectures.
    columns: names of the columns with accuracies, by `(dataset, field of Accuracies)`.
  """

  architectures: str
  columns: Mapping[tuple[str, str], str]

  @property
  def wanted(self) -> str:
    return ', '.join([self.architectures, *self.columns.values()])


_FILES = {
  'mini_nb201_12ep_acc.csv': _File(
    'cellstr',
    {
      (dataset, kind): f'{prefix}-{suffix}'
      for dataset, prefix in zip(DATASETS, ('cifar10', 'cifar100', 'imagenet'), strict=True)
      for kind, suffix in (('valid_12', 'val'), ('test_12', 'test'))
    },
  ),
  'nats_tss_200ep_test_acc.csv': _File(
    'ArchitectureString',
    {
      (dataset, 'test_200'): f'{prefix}TestAccuracy200Epochs'
      for dataset, prefix in zip(DATASETS, ('CIFAR10', 'CIFAR100', 'ImageNet'), strict=True)
    },
  ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """Accuracies of all architectures of NAS-Bench-201.

  Attributes:
    values: `[15625, 3, 3]` float64, 0 to 1; the axes are architectures in the order of `NasBench201.all`, `DATASETS`,
      and the fields of `Accuracies`.
  """

  values: np.ndarray

  @classmethod
  def read(cls, folder: str | os.PathLike[str], field: str) -> Self:
    """Reads the two CSV files of the table.

    Args:
      folder: folder with `mini_nb201_12ep_acc.csv` and `nats_tss_200ep_test_acc.csv`.
      field: name of the setting that holds the folder, for messages.

    Raises:
      ValueError: a file is missing, lacks a column, or does not have one line per architecture; one line that names the
        file and the columns.
    """
    found = user_path(folder, field)
    if not found.is_dir() or not all((found / name).is_file() for name in _FILES):
      raise ValueError(f'{field}: {found} {_contents(found)}; wanted is a folder with {_WANTED}')
    values = np.empty((_SPACE.size, len(DATASETS), len(Accuracies._fields)))
    for name, file in _FILES.items():
      columns = _percentages(found / name, file)
      for (dataset, kind), column in zip(file.columns, columns, strict=True):
        values[:, DATASETS.index(dataset), Accuracies._fields.index(kind)] = column / 100
    return cls(values)

  def accuracies(self, arch: Genotype, dataset: str = 'cifar10') -> Accuracies:
    """The accuracies of an architecture's network on one of `DATASETS`."""
    return Accuracies(*map(float, self.values[_SPACE.index(arch), DATASETS.index(dataset)]))


_WANTED = ' and '.join(f'{name} (columns {file.wanted})' for name, file in _FILES.items())


def _contents(path: pathlib.Path) -> str:
  """A description of a path that is no folder with a table, for the beginning of a message."""
  if not path.exists():
    return 'is not there'
  if not path.is_dir():
    return 'is a file, which is not read'
  names = sorted(one_line(each.name) for each in path.iterdir())
  if not names:
    return 'is empty'
  more = f' and {len(names) - _MAX_LISTED} more' if len(names) > _MAX_LISTED else ''
  return f'holds {", ".join(names[:_MAX_LISTED])}{more}'


def _percentages(path: pathlib.Path, file: _File) -> np.ndarray:
  """The columns of a file, `[C, 15625]`, with architectures in the order of `NasBench201.all`."""
  content = read_bytes(path, _MAX_BYTES)
  values = np.full((len(file.columns), _SPACE.size), np.nan)
  try:
    # Files saved by spreadsheet programs begin with a byte order mark.
    rows = csv.reader(io.StringIO(content.decode('utf-8-sig'), newline=''), strict=True)
    header = next(rows, [])
    missing = [name for name in (file.architectures, *file.columns.values()) if header.count(name) != 1]
    if missing:
      raise ValueError(f'column {missing[0]} is missing, or there twice; wanted is CSV with the columns {file.wanted}')
    columns = [header.index(name) for name in file.columns.values()]
    try:
      for row in rows:
        _fill(values, row, len(header), header.index(file.architectures), columns)
    except (csv.Error, ValueError) as error:
      raise ValueError(f'line {rows.line_num}: {error}') from error
    found = _SPACE.size - int(np.isnan(values[0]).sum())
    if found != _SPACE.size:
      raise ValueError(f'{found} architectures; wanted are all {_SPACE.size}, one a line')
  except (csv.Error, ValueError) as error:
    raise ValueError(f'{path}: {one_line(error)}') from error
  return values


def _fill(values: np.ndarray, row: list[str], length: int, architecture: int, columns: list[int]) -> None:
  """Fills the numbers of one line of a file into the column of its architecture.

  Args:
    values: `[C, 15625]`, changed in place.
    row: the fields of the line.
    length: number of fields in the header.
    architecture: index of the field with the architecture.
    columns: indices of the C fields with percentages.

  Raises:
    ValueError: the line has another number of fields, repeats an architecture, or has a value that is no percentage.
  """
  if len(row) != length:
    raise ValueError(f'{len(row)} values in place of {length}')
  text = row[architecture]
  number = place(operations_of(text))
  if not np.isnan(values[0, number]):
    raise ValueError(f'{text} is listed twice')
  for i, column in enumerate(columns):
    try:
      values[i, number] = float(row[column])
    except ValueError:
      values[i, number] = np.nan
    if not 0 <= values[i, number] <= 100:
      raise ValueError(f'{one_line(repr(row[column]))} is no percentage; allowed are 0 to 100')
