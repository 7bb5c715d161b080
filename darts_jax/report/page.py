"""The report of a search by gradients as one HTML page without outside resources or scripts."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from darts_jax import spaces
from darts_jax.report import curvature, curves, decisions, diagnostics, edges, figures, html, sections
from darts_jax.report.history import REMOVED, UNDECIDED, kept_edges
from darts_jax.report.workdir import Run, last
from darts_jax.spaces import CellSpace, Genotype

_MAX_SNAPSHOTS = 3
_IDENTITIES = {'skip_connect': 'Skip connections', 'identity': 'Identities'}


def render(run: Run) -> str:
  """The page of a search; equal files give equal bytes."""
  genotype, origin = _current(run)
  records = [*run.steps, *run.epochs, *run.events]
  history = run.history
  times = run.times(history.steps) if history else np.zeros(0)
  epochs = times if run.epochs else np.zeros(len(times))
  warnings = diagnostics.warnings(records, genotype, history.mixing if history else {}, epochs, run.num_epochs)
  if history and history.doubts[-1]:
    warnings.append(f'{history.doubts[-1][0].upper()}{history.doubts[-1][1:]}.')
  dataset = html.text(run.dataset or run.setting('dataset') or 'Unnamed dataset')
  body = ''.join(
    [
      _headline(run, genotype, dataset),
      sections.warnings(warnings),
      sections.architecture(genotype, origin),
      sections.learning_curves(run),
      sections.benchmark(run),
      sections.comparison(run),
      _optimisation(run),
      _strategy(run, times),
      _mixing(run, genotype, times),
      decisions.section(run),
      curvature.section(run),
      _snapshots(run, genotype),
      _usage(run, genotype),
      sections.throughput(run),
      sections.events(run),
      sections.config(run),
    ]
  )
  return html.document(f'{dataset} – architecture search', body)


def _current(run: Run) -> tuple[Genotype | None, str]:
  """The architecture to show, and HTML that says where it is from or why there is none."""
  if run.genotype is not None:
    return run.genotype, 'As in <code>genotype.json</code>.'
  if run.history is None:
    return None, f'{run.problems["genotype.json"]} {run.problems["alphas.npz"]}'
  origin = f'As in <code>alphas.npz</code>, after step {run.history.steps[-1]:,}.'
  return run.history.architectures[-1], f'{origin} {html.escape(run.problems["genotype.json"])}'


def _headline(run: Run, genotype: Genotype | None, dataset: str) -> str:
  facts = {
    'Estimator': run.setting('estimator', 'hypergradient'),
    'Strategy': run.setting('strategy'),
    'Width': run.setting('width') if run.reads_text else None,
    'Seed': run.setting('seed'),
  }
  return sections.headline(run, 'Architecture search', dataset, facts, _tiles(run, genotype))


def _tiles(run: Run, genotype: Genotype | None) -> Iterator[tuple[str, str]]:
  accuracy, loss = last(run.epochs, 'valid_accuracy'), last(run.epochs, 'valid_loss')
  perplexity = last(run.epochs, 'valid_perplexity')
  if accuracy is not None:
    yield 'Supernet accuracy', f'{100 * accuracy:.2f} <small>% validation</small>'
  elif perplexity is not None or run.reads_text:
    yield 'Supernet perplexity', f'{sections.perplexity(perplexity)} <small>validation</small>'
  else:
    yield 'Supernet loss', '–' if loss is None else f'{loss:.3f} <small>validation</small>'
  yield from sections.progress_tiles(run)
  if genotype is not None:
    identity = _space(genotype).identity
    name, cell = genotype.cells[0]
    count = sum(operation == identity for operation, _ in cell.pairs)
    which = f'{name} edges' if len(genotype.cells) > 1 else 'nodes' if cell.kept == 1 else 'edges'
    yield _IDENTITIES.get(identity, identity), f'{count} <small>of {cell.num_edges} {which}</small>'


def _optimisation(run: Run) -> str:
  panels = list(curves.optimisation(run))
  if not panels:
    return html.section(
      'Optimisation', html.absent('Nothing has been recorded yet.', run.problems.get('metrics.jsonl'))
    )
  lead = 'Entropy falls as the search makes up its mind; changed edges are counted from one snapshot to the next.'
  return html.section('Optimisation', f'<div class="grid">{sections.panels(panels)}</div>', lead)


def _strategy(run: Run, times: np.ndarray) -> str:
  """The section with the strategy's legend and temperature; empty if edges are scored or decided (see `decisions`)."""
  history = run.history
  if history is None or not history.legend or history.decides or history.scores:
    return ''
  parts = []
  if history.temperatures is not None:
    figure = curves.temperature(times, history.temperatures, run.time_unit)
    parts.append(html.figure(figure, 'temperature', 'Temperature', 'Temperature of the softmax over time.'))
  title = f'The strategy {run.setting("strategy") or ""}'.strip()
  return html.section(title, f'<div class="grid">{"".join(parts)}</div>', html.escape(history.legend))


def _mixing(run: Run, genotype: Genotype | None, times: np.ndarray) -> str:
  title, history = 'Mixing weights over time', run.history
  if history is None:
    return html.section(title, html.absent(run.problems['alphas.npz']))
  look, states = spaces.look_of(history.space), {cell: history.decided(cell)[..., None] for cell in history.cells}
  # The scale leaves out decided edges: with their weight of 1, all other weights would look alike.
  largest = max(
    float(np.nanmax(weights, initial=0.0, where=states[cell] == UNDECIDED)) for cell, weights in history.mixing.items()
  )
  largest = min(1.0, max(largest, 2 / max(len(spec.operations) for spec in history.cells.values())))
  parts = []
  for cell, spec in history.cells.items():
    name = look.title(cell)
    figure = figures.mixing_weights(
      times,
      np.where(states[cell] == REMOVED, np.nan, history.mixing[cell]),
      spec.operations,
      history.pairs(cell),
      kept_edges(genotype, cell),
      largest,
      run.time_unit,
      look=look,
    )
    parts.append(html.figure(figure, f'mixing-{cell}', name, f'{name}: mixing weights of every edge over time.'))
    if cell in history.edges:
      figure = edges.draw_weights(history, cell, look, times, run.time_unit)
      parts.append(
        html.figure(figure, f'edges-{cell}', name, f'{name}: the weight of every edge in its node over time.')
      )
  lead = (
    'One map for each edge: a row holds the edges into a node, a column those out of a node. In a map, each line is a'
    ' candidate operation, darker where its weight in the supernet is larger. Bold titles and red arrows mark what'
    ' the architecture at the top keeps.'
  )
  if history.temperatures is not None:
    first, latest = history.temperatures[[0, -1]]
    lead += f' The temperature is {first:.3g} at first and {latest:.3g} in the end.'
  if history.decides:
    lead += (
      ' A decided edge has its operation alone, in the darkest colour, which otherwise stands for the largest weight on'
      ' an undecided one; a removed edge is blank.'
    )
  return html.section(title, f'<div class="stack">{"".join(parts)}</div>', lead)


def _snapshots(run: Run, genotype: Genotype | None) -> str:
  title, history = 'Cells along the way', run.history
  if history is None:
    return html.section(title, html.absent(run.problems['alphas.npz']))
  if history.decides:
    return decisions.along_the_way(run, history, genotype)
  count = len(history.steps)
  spaced = np.linspace(0, count - 1, _MAX_SNAPSHOTS + 2).round().astype(int)
  chosen = sorted({int(i) for i in spaced if 0 < i < count - 1})
  if not chosen:
    return html.section(title, html.absent('There are too few snapshots yet.'))
  times = run.times(history.steps)
  parts = []
  for i in chosen:
    earlier = history.architectures[i]
    cells = ''.join(_earlier_cell(earlier, genotype, cell, i) for cell, _ in earlier.cells)
    parts.append(f'<h3>{run.time_unit.capitalize()} {times[i]:.0f}</h3>\n<div class="cells small">{cells}</div>')
  return html.section(title, '\n'.join(parts), 'The architectures that the search would have returned then.')


def _earlier_cell(earlier: Genotype, genotype: Genotype | None, cell: str, snapshot: int) -> str:
  before, now = kept_edges(earlier, cell), kept_edges(genotype, cell)
  if before == now:
    return sections.same_cell(spaces.look_of(earlier.space).title(cell))
  note = f'{len(before & now)} of {len(before)} edges as at the top' if now else ''
  return sections.cell_figure(earlier, cell, f'snapshot-{snapshot}-{cell}', note)


def _usage(run: Run, genotype: Genotype | None) -> str:
  if genotype is None:
    return html.section('Use this architecture', html.absent('There is no architecture yet.'))
  name, cell = genotype.cells[0]
  parts = {'genotype.json': _json_text(_values(run), cell.kept or 1)}
  if genotype.space in spaces.SPACES:
    path = str(run.path / 'genotype.json')
    code = f"""from darts_jax import spaces
from darts_jax.report import drawing

found = spaces.load({path!r})
look = spaces.look_of(found.space)
print(drawing.to_graphviz(found.cell({name!r}), {name!r}, look))  # Graphviz source of a cell"""
    parts = {'Train it from scratch': sections.training_command(run, path), 'Read it': code, **parts}
  return html.section(
    'Use this architecture',
    '\n'.join(f'<h3>{title}</h3>\n<pre>{html.escape(content)}</pre>' for title, content in parts.items()),
  )


def _space(genotype: Genotype) -> type[CellSpace]:
  """The space of an architecture; the base class of spaces of cells if the space is not registered."""
  return spaces.SPACES.get(genotype.space, CellSpace)


def _values(run: Run) -> Any:
  """The architecture to show as JSON values in the form of its space, which need not be registered."""
  if run.genotype is not None:
    return spaces.to_json(run.genotype)
  return json.loads(run.history.texts[-1]) if run.history else None


def _json_text(values: Any, per_line: int) -> str:
  """JSON text; an architecture of lists of pairs has the pairs of each node on one line."""
  if not isinstance(values, Mapping) or not all(isinstance(value, list) and value for value in values.values()):
    return json.dumps(values)
  return '{\n' + ',\n'.join(f'  "{name}": {_json_lines(value, per_line)}' for name, value in values.items()) + '\n}'


def _json_lines(values: list[Any], per_line: int) -> str:
  """JSON text of a list: a list of pairs has `per_line` pairs, those of a node, on a line, any other list one line."""
  if not isinstance(values[0], list):
    return json.dumps(values)
  lines = [json.dumps(values[i : i + per_line])[1:-1] for i in range(0, len(values), per_line)]
  return '[\n    ' + ',\n    '.join(lines) + '\n  ]'
