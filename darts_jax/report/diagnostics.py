"""Warnings about a run, from its records."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from darts_jax.report.workdir import Record, last, number
from darts_jax.spaces import Genotype

#: A search counts as collapsed if the first kind of cell has at least this many skip connections,
MAX_SKIP_CONNECTIONS = 3
#: or if at least this share of its nodes apply the identity.
MAX_IDENTITY_SHARE = 0.75
#: A cell's mixing weights count as collapsed below this share of log O, the entropy of uniform mixing weights.
MIN_ENTROPY_SHARE = 0.1
#: The training accuracy may exceed the validation accuracy, on the data that α learn from, by at most this.
MAX_ACCURACY_GAP = 0.25
#: Half the radius may change the second-order term of a finite difference by at most this, relative to the term. Where
#: losses are smooth at the scale of the radius, the change is close to zero.
MAX_DISAGREEMENT = 0.25


def warnings(
  records: Sequence[Record],
  genotype: Genotype | None = None,
  mixing: Mapping[str, np.ndarray] | None = None,
  times: Sequence[float] | np.ndarray = (),
  num_epochs: int | None = None,
) -> list[str]:
  """One line for each sign that a search went wrong.

  - The first cell of the architecture has at least `MAX_SKIP_CONNECTIONS` skip connections, or at least
    `MAX_IDENTITY_SHARE` of its edges apply the identity.
  - A metric, or a mixing weight, was not finite.
  - The entropy of a cell's mixing weights collapsed (see `entropy`): at the latest snapshot it is below
    `MIN_ENTROPY_SHARE` · log O, and it has been since a time at which at least one more epoch was to come. After that,
    the remaining epochs hardly change the architecture. A collapse in the last epoch is not reported.
  - The training accuracy exceeds the validation accuracy by more than `MAX_ACCURACY_GAP` at the last epoch.
  - Half the radius changed the second-order term of the finite difference by more than `MAX_DISAGREEMENT`, in the
    median of the steps that were checked.
  - A checkpoint was damaged, or the log ends before it.

  Args:
    records: all records of `metrics.jsonl`, of any kind.
    genotype: the architecture, if there is one.
    mixing: by kind of cell, `[T, E, O]` mixing weights.
    times: `[T]`, epochs completed at each snapshot of `mixing`.
    num_epochs: number of epochs of the whole search; if None, any collapse is reported.
  """
  found = [
    *_skips(genotype),
    *_identities(genotype),
    *_non_finite(records, mixing or {}),
    *_collapses(mixing or {}, times, num_epochs),
  ]
  epochs = [record for record in records if record.get('kind') == 'epoch']
  train, valid = last(epochs, 'train_accuracy'), last(epochs, 'valid_accuracy')
  if train is not None and valid is not None and train - valid > MAX_ACCURACY_GAP:
    found.append(
      f'The supernet overfits: its training accuracy is {train:.1%}, its validation accuracy {valid:.1%}. The'
      ' mixing weights then follow a validation loss that says little about the operations.'
    )
  found += _kinks(records)
  return found + _damaged(records)


def training_warnings(records: Sequence[Record]) -> list[str]:
  """One line for each sign that the training of an architecture went wrong, from all records of `metrics.jsonl`.

  The signs: a metric was not finite, the training returned to its best weights, a checkpoint was damaged, the log ends
  before the checkpoint, or images could not be read.
  """
  # A resumed run may report an image again, so names are counted once.
  messages = [str(record.get('message')) for record in records if record.get('event') == 'damaged_image']
  unread = {message.partition(': ')[0] for message in messages}
  found = [*_non_finite(records, {}), *_rollbacks(records), *_damaged(records)]
  if unread:
    found.append(f'{_count(len(unread), "image", "images")} could not be read; see the log of events.')
  return found


def entropy(mixing: np.ndarray) -> np.ndarray:
  """The entropy of mixing weights `[T, E, O]`, averaged over undecided edges: `[T]`, in nats.

  An edge is undecided while at least two of its operations have a positive weight. Decided edges do not count, so that
  a search that decides edges on purpose does not look collapsed. NaN where no edge is undecided or a weight is NaN.
  """
  terms = -mixing * np.log(np.where(mixing > 0, mixing, 1.0))
  undecided = (mixing > 0).sum(axis=-1) >= 2
  total = np.where(undecided, terms.sum(axis=-1), 0.0).sum(axis=-1)
  count = undecided.sum(axis=-1)
  entropies = np.where(count > 0, total / np.maximum(count, 1), np.nan)
  return np.where(np.isnan(mixing).any(axis=(-2, -1)), np.nan, entropies)


def _skips(genotype: Genotype | None) -> list[str]:
  if genotype is None:
    return []
  name, cell = genotype.cells[0]
  count = sum(operation == 'skip_connect' for operation, _ in cell.pairs)
  if count < MAX_SKIP_CONNECTIONS:
    return []
  return [
    f'The {name} cell has {count} skip connections out of {cell.num_edges} edges. Searches that end this way'
    ' tend to give shallow networks that do worse when trained from scratch than their supernet promised.'
  ]


def _identities(genotype: Genotype | None) -> list[str]:
  if genotype is None:
    return []
  name, cell = genotype.cells[0]
  count, total = sum(activation == 'identity' for activation, _ in cell.pairs), cell.num_edges
  if count < MAX_IDENTITY_SHARE * total:
    return []
  return [
    f'{count} of the {_count(total, "node", "nodes")} of the {name} cell apply the identity, which leaves little but'
    ' gates that is not linear. Like skip connections in convolutional cells, identities make a supernet easy to train,'
    ' which need not make a good cell.'
  ]


def _non_finite(records: Sequence[Record], mixing: Mapping[str, np.ndarray]) -> list[str]:
  found = []
  bad: dict[str, list[int]] = {}
  for record in records:
    for name, value in record.items():
      if name not in ('kind', 'event', 'message') and (v := number(value)) is not None and not math.isfinite(v):
        bad.setdefault(name, []).append(record['step'])
  for name, steps in bad.items():
    if name.endswith('perplexity') and bad.get(name.removesuffix('perplexity') + 'loss') == steps:
      continue  # The line about the loss is enough.
    times = '' if len(steps) == 1 else f', and {_count(len(steps) - 1, "more time", "more times")}'
    found.append(f'{name} was not finite at step {min(steps):,}{times}.')
  if not bad:
    found.extend(
      f'A value was not finite at step {record["step"]:,}.' for record in records if record.get('event') == 'non_finite'
    )
  found.extend(
    f'Mixing weights of the {cell} cell are not finite.'
    for cell, weights in mixing.items()
    if not np.isfinite(weights).all()
  )
  return found


def _collapses(
  mixing: Mapping[str, np.ndarray], times: Sequence[float] | np.ndarray, num_epochs: int | None
) -> list[str]:
  found = []
  for cell, weights in mixing.items():
    uniform = math.log(weights.shape[-1])
    entropies = entropy(weights)
    collapsed = entropies < MIN_ENTROPY_SHARE * uniform
    if not collapsed[-1]:
      continue
    open_again = np.flatnonzero(~collapsed)
    onset = float(times[open_again[-1] + 1 if len(open_again) else 0])
    if num_epochs is None or onset <= num_epochs - 1:
      planned = '' if num_epochs is None else f' of {num_epochs}'
      found.append(
        f'The mixing weights of the {cell} cell have collapsed since epoch {onset:.0f}{planned}: their mean entropy'
        f' is {entropies[-1]:.2f} nats, {entropies[-1] / uniform:.0%} of that of uniform weights. Later epochs can'
        ' hardly change the architecture.'
      )
  return found


def _rollbacks(records: Sequence[Record]) -> list[str]:
  count = sum(record.get('event') == 'rolled_back' for record in records)
  if not count:
    return []
  times = 'once' if count == 1 else f'{count} times'
  return [f'The training diverged {times} and went back to its best weights; a lower learning rate is steadier.']


def _damaged(records: Sequence[Record]) -> list[str]:
  damaged = [record for record in records if record.get('event') == 'damaged_checkpoint']
  found = [f'{record.get("message")}.' for record in records if record.get('event') == 'incomplete_log']
  if damaged:
    found.append(f'{_count(len(damaged), "checkpoint was", "checkpoints were")} damaged; see the log of events.')
  return found


def _kinks(records: Sequence[Record]) -> list[str]:
  checked = [record for record in records if record.get('kind') == 'step' and 'disagreement' in record]
  values = [v for record in checked if (v := number(record['disagreement'])) is not None and math.isfinite(v)]
  if not values or (median := float(np.median(values))) <= MAX_DISAGREEMENT:
    return []
  parts = [v for record in checked if (v := number(record.get('second_order_fraction'))) is not None]
  size = f', which has {np.median(parts):.2%} of the norm of ∇α L_val,' if parts else ''
  return [
    f'The finite difference depends on its radius: half of it changes the second-order term{size} by {median:.0%}, as'
    ' kinks do. The exact estimator has no radius; experiments.hypergradients compares them.'
  ]


def _count(count: int, one: str, many: str) -> str:
  return f'{count} {one if count == 1 else many}'
