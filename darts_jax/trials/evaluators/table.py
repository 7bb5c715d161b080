"""An evaluator that looks architectures of NAS-Bench-201 up in the benchmark's table, without training."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping
from typing import Any, ClassVar

from darts_jax.settings import check, setting
from darts_jax.spaces.base import Space
from darts_jax.spaces.nasbench201 import NasBench201
from darts_jax.spaces.nasbench201_table import DATASETS, Accuracies, Table
from darts_jax.strategies.sampled import Outcome, Proposal
from darts_jax.trials.evaluators.base import Evaluator


@dataclasses.dataclass(frozen=True)
class TableEvaluator(Evaluator):
  """The reward is the validation accuracy after 12 epochs, 0 to 1; outcomes also have the test accuracies.

  Attributes:
    path: folder with the table, see `darts_jax.spaces.nasbench201_table`.
    dataset: dataset on which the networks were trained: `cifar10`, `cifar100` or `imagenet16`.

  Raises:
    ValueError: `dataset` is none of these; one line.
  """

  measure: ClassVar[str] = 'valid_accuracy'

  path: str = setting('')
  dataset: str = setting('cifar10', choices=DATASETS)

  def __post_init__(self) -> None:
    if isinstance(self.path, os.PathLike):
      object.__setattr__(self, 'path', os.fspath(self.path))
    check(self)

  def check(self, space: Space[Any]) -> None:
    """Raises a ValueError if the space is not NAS-Bench-201, or the table cannot be read."""
    if space.name != NasBench201.name:
      raise ValueError(f'config.evaluator.name: table has no architectures of the space {space.name}')
    if not self.path:
      raise ValueError('config.evaluator.path: is not set; it is the folder with the table, see docs/nasbench201.md')
    _table(self.path)

  def data_name(self) -> str:
    """See `Evaluator`."""
    return self.dataset

  def identity(self) -> dict[str, Any]:
    """See `Evaluator`; a digest of the table replaces its path, since tables may be moved or replaced."""
    return {name: value for name, value in super().identity().items() if name != 'path'} | self._digest()

  def fingerprint(self, space: Space[Any]) -> Any:
    """See `Evaluator`."""
    return self._digest()

  def _digest(self) -> dict[str, str]:
    return {'table_sha256': hashlib.sha256(_table(self.path).values.tobytes()).hexdigest()}

  def known(self) -> Mapping[str, float]:
    """Maximum and mean over all architectures of the reward and of the test accuracy after 200 epochs.

    The two maxima may be of different architectures.
    """
    columns = _table(self.path).values[:, DATASETS.index(self.dataset)].T
    values = dict(zip(Accuracies._fields, columns, strict=True))
    return {
      'optimum': float(values['valid_12'].max()),
      'mean': float(values['valid_12'].mean()),
      'optimum_test_accuracy_200': float(values['test_200'].max()),
      'mean_test_accuracy_200': float(values['test_200'].mean()),
    }

  def __call__(self, proposal: Proposal) -> Outcome:
    """See `Evaluator`."""
    found = _table(self.path).accuracies(proposal.arch, self.dataset)
    test = {'test_accuracy_12': found.test_12, 'test_accuracy_200': found.test_200}
    return Outcome(proposal, 'done', found.valid_12, test=test)


@functools.cache
def _table(path: str) -> Table:
  """The table in a folder, which a process reads once."""
  return Table.read(path, 'config.evaluator.path')
