"""Charts of the metrics of a run, over time."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure

from darts_jax.report import diagnostics, figures, style
from darts_jax.report.figures import Line
from darts_jax.report.history import kept_edges
from darts_jax.report.workdir import Record, Run, number, series
from darts_jax.spaces import look_of

_LARGE = (5.5, 3.1)
_SMALL = (3.75, 2.2)
#: Units of throughput; the metrics are called `UNIT_per_second`.
UNITS = ('images', 'tokens')
_ENTROPY = 'entropy_'
_COLORS = (style.BLUE, style.VERMILION, style.GREEN, style.AMBER)


@dataclasses.dataclass(frozen=True)
class Panel:
  """A chart of the page: a unique id, a title, and the figure."""

  name: str
  title: str
  figure: Figure


def learning(run: Run) -> Iterator[Panel]:
  """Yields charts of loss, perplexity and accuracy in training and validation, for metrics with a finite value."""
  loss = 'Loss, nats per token' if run.reads_text else 'Loss'
  for metric, title in (('loss', loss), ('perplexity', 'Perplexity'), ('accuracy', 'Accuracy')):
    named = [
      (f'train_{metric}', style.AMBER, 'training'),
      (f'valid_{metric}', style.BLUE, 'validation'),
    ]
    if run.epochs:
      unnamed = [(metric, color, '') for metric, color, _ in named]
      lines = [*_lines(run, run.steps, *unnamed, faint=True), *_lines(run, run.epochs, *named)]
    else:
      lines = _lines(run, run.steps, *named)
    if lines:
      figure = figures.chart(
        lines,
        run.time_unit,
        _LARGE,
        log=metric == 'perplexity',
        percent=metric == 'accuracy',
        marks=[*times_of(run, 'resumed'), *times_of(run, 'rolled_back')],
        notes=[(time, 'averaging') for time in times_of(run, 'averaging')[:1]],
      )
      yield Panel(f'curve-{metric}', title, figure)


def benchmark(run: Run) -> Iterator[Panel]:
  """Yields a chart of the accuracies of the search's architectures in a benchmark, if the log has any."""
  lines = _lines(
    run,
    # A search by proposals has no epochs.
    run.epochs or run.steps,
    ('true_accuracy', style.BLUE, 'returned'),
    ('true_optimum', style.GREEN, 'optimum'),
    ('true_mean', style.AMBER, 'mean of random cells'),
  )
  if lines:
    figure = figures.chart(lines, run.time_unit, _LARGE, percent=True)
    yield Panel('benchmark', 'Test accuracy of the architecture in the benchmark', figure)


def optimisation(run: Run) -> Iterator[Panel]:
  """Yields small charts about the optimisation of weights and α, such as learning rate and gradient norms."""
  lines: list[Line] = []
  if run.reads_text:
    lines = _with_means(run, 'learning_rate')  # The rate varies with the lengths of sequences.
  if not lines:
    lines = _lines(run, run.steps or run.epochs, ('learning_rate', style.INK, ''))
  if lines:
    yield Panel(
      'learning-rate',
      'Learning rate of the weights',
      figures.chart(lines, run.time_unit, _SMALL, from_zero=True),
    )
  lines = _lines(run, run.steps or run.epochs, ('drop_path', style.INK, ''))
  if any((line.values > 0).any() for line in lines):
    figure = figures.chart(lines, run.time_unit, _SMALL, from_zero=True, percent=True)
    yield Panel('drop-path', 'Probability that drop path drops an edge', figure)
  for of, symbol in (('weights', 'weights'), ('alphas', 'α')):
    lines = _with_means(run, f'{of}_gradient_norm')
    if any((line.values[np.isfinite(line.values)] > 0).any() for line in lines):
      figure = figures.chart(lines, run.time_unit, _SMALL, log=True)
      yield Panel(f'gradient-{of}', f'Gradient norm, {symbol}', figure)
  lines = _entropies(run)
  if lines:
    cells = run.history.cells.values() if run.history else ()
    counts = {len(edge.operations) for spec in cells for _, edge in spec.edges}
    # The entropy of uniform weights is one number only if all edges have the same number of candidates.
    uniform = None
    if len(counts) == 1:
      [count] = counts
      uniform = (math.log(count), f'uniform: log {count}')
    yield Panel(
      'entropy',
      'Entropy of mixing weights, nats',
      figures.chart(lines, run.time_unit, _SMALL, from_zero=True, reference=uniform),
    )
  lines = _with_means(run, 'second_order_fraction')
  if any((line.values[np.isfinite(line.values)] > 0).any() for line in lines):
    yield Panel(
      'second-order',
      'Second-order term, as part of the norm of ∇α L_val',
      figures.chart(lines, run.time_unit, _SMALL, from_zero=True, percent=True),
    )
  lines = _lines(run, run.steps, ('disagreement', style.INK, ''))
  if lines:
    limit = (diagnostics.MAX_DISAGREEMENT, 'warned of from here on')
    yield Panel(
      'disagreement',
      'Change of that term at half the radius',
      figures.chart(lines, run.time_unit, _SMALL, from_zero=True, percent=True, reference=limit),
    )
  lines = _lines(run, run.steps, ('skip_connections', style.INK, ''), stepped=True)
  if lines:
    limit = (diagnostics.MAX_SKIP_CONNECTIONS, 'warned of from here on')
    yield Panel(
      'skip-connections',
      f'Skip connections, {_first_cell(run)}',
      figures.chart(lines, run.time_unit, _SMALL, integer=True, reference=limit),
    )
  changes = _changes(run)
  if changes is not None:
    yield Panel(
      'changes',
      'Edges of the architecture that changed',
      figures.chart([changes], run.time_unit, _SMALL, integer=True),
    )


def temperature(times: np.ndarray, values: np.ndarray, time_unit: str) -> Figure:
  """A chart of the temperature over time, from `[T]` times and `[T]` temperatures."""
  return figures.chart([Line(times, values, style.INK, '', False, False)], time_unit, _SMALL, from_zero=True)


def throughput(run: Run) -> Iterator[Panel]:
  """Yields a chart of images or tokens per second."""
  for unit in UNITS:
    lines = _with_means(run, f'{unit}_per_second')
    if lines:
      title = f'{unit.capitalize()} per second'
      yield Panel('throughput', title, figures.chart(lines, run.time_unit, (5.5, 2.2), from_zero=True))


def times_of(run: Run, event: str) -> list[float]:
  """Times of all events of a kind, such as `resumed`, in the unit of `Run.times`."""
  return [float(time) for time in run.times([e['step'] for e in run.events if e['event'] == event])]


def has_non_finite(run: Run) -> bool:
  """Whether a learning curve has a value that is not finite."""
  metrics = [f'{part}_{metric}' for part in ('train', 'valid') for metric in ('loss', 'perplexity', 'accuracy')]
  values = [number(record.get(metric)) for record in (*run.steps, *run.epochs) for metric in metrics]
  return any(value is not None and not math.isfinite(value) for value in values)


def _lines(
  run: Run, records: Sequence[Record], *metrics: tuple[str, str, str], faint: bool = False, stepped: bool = False
) -> list[Line]:
  """A line for each (metric, colour, name); metrics without a finite value are left out."""
  lines = []
  for metric, color, name in metrics:
    steps, values = series(records, metric)
    if np.isfinite(values).any():
      lines.append(Line(run.times(steps), values, color, name, faint, stepped))
  return lines


def _entropies(run: Run) -> list[Line]:
  """Lines of the entropy of mixing weights, one for each kind of cell; they have names if there are several."""
  look = look_of(run.space)
  known = run.history.cells if run.history else look.titles
  cells = [cell for cell in known if any(f'{_ENTROPY}{cell}' in record for record in run.steps)]
  names = [look.title(cell).removesuffix(' cell').lower() if len(cells) > 1 else '' for cell in cells]
  metrics = [f'{_ENTROPY}{cell}' for cell in cells]
  return _lines(run, run.steps, *zip(metrics, itertools.cycle(_COLORS), names, strict=False))


def _first_cell(run: Run) -> str:
  """The title of the first kind of cell, in lower case."""
  look = look_of(run.space)
  return look.title(next(iter(run.history.cells if run.history else look.titles), 'first cell')).lower()


def _with_means(run: Run, metric: str) -> list[Line]:
  """A line of a noisy metric of steps and, once there are two epochs, a line of its epochs' means over it."""
  lines = _lines(run, run.steps, (metric, style.INK, ''))
  if not lines or len(run.epochs) < 2:
    return lines
  times, values = lines[0].times, lines[0].values
  times, values = times[np.isfinite(values)], values[np.isfinite(values)]
  _, epochs, counts = np.unique(np.ceil(times), return_inverse=True, return_counts=True)
  centres, means = (np.bincount(epochs, each) / counts for each in (times, values))
  return [dataclasses.replace(lines[0], faint=True), Line(centres, means, style.INK)]


def _changes(run: Run) -> Line | None:
  """A line of the number of edges of the architecture that changed since the snapshot before."""
  if run.history is None or len(run.history.steps) < 3:
    return None
  edges = {
    found: {(cell, *edge) for cell, _ in found.cells for edge in kept_edges(found, cell)}
    for found in set(run.history.architectures)
  }
  changes = [len(edges[after] - edges[before]) for before, after in itertools.pairwise(run.history.architectures)]
  return Line(run.times(run.history.steps[1:]), np.array(changes, float), style.INK, stepped=True)
