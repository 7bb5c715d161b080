"""The report as one HTML page without outside resources or scripts."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from darts_jax import genotype as genotypes
from darts_jax.genotype import AnyGenotype, Genotype
from darts_jax.report import curves, diagnostics, drawing, figures, html
from darts_jax.report.curves import Panel
from darts_jax.report.workdir import Run, cells_of, kept_edges, last, series

_MAX_EVENTS = 200
_MAX_SNAPSHOTS = 3
_STATUSES = {
  'not started': 'No step yet',
  'running': 'Running, or cut short',
  'stopped': 'Stopped before its end',
  'finished': 'Finished',
}
_CELLS = {'normal': 'Normal cell', 'reduce': 'Reduction cell', 'recurrent': 'Recurrent cell'}


def render(run: Run) -> str:
  """The page of a run; the same bytes for the same files."""
  genotype, origin = _current(run)
  records = [*run.steps, *run.epochs, *run.events]
  mixing = {cell: run.alphas.mixing(cell) for cell in run.alphas.alphas} if run.alphas else {}
  times = run.times(run.alphas.steps) if run.alphas else np.zeros(0)
  epochs = times if run.epochs else np.zeros(len(times))
  warnings = diagnostics.warnings(records, genotype, mixing, epochs, run.num_epochs)
  dataset = html.text(run.setting('dataset', 'data') or 'Unnamed dataset')
  body = ''.join(
    [
      _headline(run, genotype, dataset),
      _warnings(warnings),
      _architecture(run, genotype, origin),
      _learning_curves(run),
      _optimisation(run),
      _mixing(run, genotype, mixing, times),
      _snapshots(run, genotype),
      _usage(run, genotype),
      _throughput(run),
      _events(run),
      _config(run),
    ]
  )
  return html.document(f'{dataset} – architecture search', body)


def _current(run: Run) -> tuple[AnyGenotype | None, str]:
  """The architecture to show, and where it is from, or why there is none."""
  if run.genotype is not None:
    return run.genotype, 'As in <code>genotype.json</code>.'
  if run.alphas is None:
    return None, f'{run.problems["genotype.json"]} {run.problems["alphas.npz"]}'
  try:
    genotype = run.alphas.genotype(-1)
  except ValueError as error:
    return None, f'No architecture can be derived from the latest α: {error}'
  return genotype, f'Derived from α after step {run.alphas.steps[-1]:,}. {html.escape(run.problems["genotype.json"])}'


def _headline(run: Run, genotype: AnyGenotype | None, dataset: str) -> str:
  facts = {
    'Estimator': run.setting('estimator', 'hypergradient'),
    'Strategy': run.setting('strategy'),
    'Seed': run.setting('seed'),
  }
  items = ''.join(html.fact(name, value) for name, value in facts.items() if value is not None)
  tiles = ''.join(html.tile(name, value) for name, value in _tiles(run, genotype))
  return (
    '<header>\n<p class="eyebrow">Architecture search</p>\n'
    f'<h1>{html.escape(dataset)}</h1>\n<ul class="facts">'
    f'<li><span class="status {run.status.replace(" ", "-")}"></span> <b>{_STATUSES[run.status]}</b></li>'
    f'{items}</ul>\n'
    f'<dl class="tiles">{tiles}</dl>\n</header>\n'
  )


def _tiles(run: Run, genotype: AnyGenotype | None) -> Iterator[tuple[str, str]]:
  accuracy, loss = last(run.epochs, 'valid_accuracy'), last(run.epochs, 'valid_loss')
  if accuracy is not None:
    yield 'Supernet accuracy', f'{100 * accuracy:.2f} <small>% validation</small>'
  else:
    yield 'Supernet loss', '–' if loss is None else f'{loss:.3f} <small>validation</small>'
  total = '' if run.num_epochs is None else f' <small>of {run.num_epochs}</small>'
  yield 'Epochs', f'{run.epochs[-1]["epoch"] + 1 if run.epochs else 0}{total}'
  step = max([record['step'] for record in (*run.steps, *run.epochs)], default=0)
  yield 'Steps', f'{step:,}'
  seconds = series(run.epochs, 'seconds')[1]
  yield 'Time in epochs', html.duration(float(seconds[np.isfinite(seconds)].sum())) if len(seconds) else '–'
  if isinstance(genotype, Genotype):
    count = sum(operation == 'skip_connect' for operation, _ in genotype.normal)
    yield 'Skip connections', f'{count} <small>of {len(genotype.normal)} normal edges</small>'


def _warnings(warnings: Sequence[str]) -> str:
  if not warnings:
    return ''
  items = ''.join(f'<li>{html.escape(warning)}</li>' for warning in warnings)
  return f'<div class="warnings" role="note">\n<h2>Look at this first</h2>\n<ul>{items}</ul>\n</div>\n'


def _architecture(run: Run, genotype: AnyGenotype | None, origin: str) -> str:
  if genotype is None:
    return html.section('Architecture', html.absent(origin))
  cells = ''.join(_cell_figure(genotype, cell, f'now-{cell}', _CELLS[cell]) for cell in cells_of(genotype))
  return html.section(
    'Architecture',
    f'<div class="cells">{cells}</div>',
    f'{origin} Blue boxes are intermediate nodes, which add what arrives; grey lines lead to the cell’s output.',
  )


def _learning_curves(run: Run) -> str:
  title = 'Learning curves'
  panels = list(curves.learning(run))
  if not panels:
    return html.section(title, html.absent('No loss has been recorded yet.', run.problems.get('metrics.jsonl')))
  lead = (
    'Strong lines: whole epochs, validation in evaluation mode. Pale lines: single batches.'
    if run.epochs
    else 'Single batches; the first epoch has not ended.'
  )
  lead += ' Dotted lines: the search was resumed.' if curves.resumes(run) else ''
  lead += ' Crosses: not finite.' if curves.has_non_finite(run) else ''
  return html.section(title, f'<div class="grid wide">{_panels(panels)}</div>', lead)


def _optimisation(run: Run) -> str:
  panels = list(curves.optimisation(run))
  if not panels:
    return html.section(
      'Optimisation', html.absent('Nothing has been recorded yet.', run.problems.get('metrics.jsonl'))
    )
  lead = 'Entropy falls as the search makes up its mind; changed edges are counted from one snapshot of α to the next.'
  return html.section('Optimisation', f'<div class="grid">{_panels(panels)}</div>', lead)


def _mixing(run: Run, genotype: AnyGenotype | None, mixing: Mapping[str, np.ndarray], times: np.ndarray) -> str:
  title = 'Mixing weights over time'
  if run.alphas is None:
    return html.section(
      title,
      html.absent(f'{run.problems["alphas.npz"]} Searches that do not train α (random search, for one) write none.'),
    )
  largest = max(float(np.nanmax(weights, initial=0.0)) for weights in mixing.values())
  largest = min(1.0, max(largest, 2 / len(run.alphas.operations)))
  parts = []
  for cell, weights in mixing.items():
    figure = figures.mixing_weights(
      times,
      weights,
      run.alphas.operations,
      run.alphas.edges[cell],
      kept_edges(genotype, cell),
      largest,
      run.time_unit,
      recurrent=cell == 'recurrent',
    )
    name = _CELLS.get(cell, cell)
    parts.append(html.figure(figure, f'mixing-{cell}', name, f'{name}: mixing weights of every edge over time.'))
  lead = (
    'One map for each edge: a row holds the edges into a node, a column those out of a node. In a map, each line is a'
    ' candidate operation, darker where its weight (softmax of α) is larger. Bold titles and red arrows mark what'
    ' the architecture at the top keeps.'
  )
  return html.section(title, f'<div class="stack">{"".join(parts)}</div>', lead)


def _snapshots(run: Run, genotype: AnyGenotype | None) -> str:
  title = 'Cells along the way'
  if run.alphas is None:
    return html.section(title, html.absent(f'{run.problems["alphas.npz"]} Earlier cells are derived from it.'))
  count = len(run.alphas.steps)
  spaced = np.linspace(0, count - 1, _MAX_SNAPSHOTS + 2).round().astype(int)
  chosen = sorted({int(i) for i in spaced if 0 < i < count - 1})
  if not chosen:
    return html.section(title, html.absent('There are too few snapshots of α yet.'))
  times = run.times(run.alphas.steps)
  parts = []
  for i in chosen:
    when = f'{run.time_unit.capitalize()} {times[i]:.0f}'
    try:
      earlier = run.alphas.genotype(i)
    except ValueError as error:
      parts.append(f'<h3>{when}</h3>{html.absent(f"No architecture can be derived: {error}")}')
      continue
    cells = ''.join(_earlier_cell(earlier, genotype, cell, i) for cell in cells_of(earlier))
    parts.append(f'<h3>{when}</h3>\n<div class="cells small">{cells}</div>')
  return html.section(title, '\n'.join(parts), 'What the rule of DARTS derives from earlier α.')


def _earlier_cell(earlier: AnyGenotype, genotype: AnyGenotype | None, cell: str, snapshot: int) -> str:
  before, now = kept_edges(earlier, cell), kept_edges(genotype, cell)
  if before == now:
    return f'<figure><figcaption>{_CELLS[cell]}</figcaption><p class="absent">The same as at the top.</p></figure>'
  note = f'{len(before & now)} of {len(before)} edges as at the top' if now else ''
  return _cell_figure(earlier, cell, f'snapshot-{snapshot}-{cell}', _CELLS[cell], note)


def _usage(run: Run, genotype: AnyGenotype | None) -> str:
  if genotype is None:
    return html.section('Use this architecture', html.absent('There is no architecture yet.'))
  text = (
    '{\n'
    + ',\n'.join(f'  "{name}": {_json_lines(values)}' for name, values in genotypes.to_dict(genotype).items())
    + '\n}'
  )
  cell = next(name for name in _CELLS if hasattr(genotype, name))
  code = f'from darts_jax import genotype\n\nfound = genotype.load({str(run.path / "genotype.json")!r})'
  if isinstance(genotype, Genotype):
    code += f"""
print(drawing.to_graphviz(found.cell('{cell}'), '{cell}'))  # Graphviz source of a cell"""
    code = code.replace('\n\n', '\nfrom darts_jax.report import drawing\n\n', 1)
  return html.section(
    'Use this architecture',
    f'<pre>{html.escape(code)}</pre>\n<h3>genotype.json</h3>\n<pre>{html.escape(text)}</pre>',
  )


def _json_lines(values: list[Any]) -> str:
  """A list of nodes on one line; a list of pairs with two of them, a node of a convolutional cell, on a line."""
  if not isinstance(values[0], list):
    return json.dumps(values)
  lines = [json.dumps(values[i : i + 2])[1:-1] for i in range(0, len(values), 2)]
  return '[\n    ' + ',\n    '.join(lines) + '\n  ]'


def _throughput(run: Run) -> str:
  rates = series(run.steps, 'images_per_second')[1]
  rates = rates[np.isfinite(rates)]
  seconds = series(run.epochs, 'seconds')[1]
  seconds = seconds[np.isfinite(seconds)]
  rows = []
  if len(rates):
    rows += [
      ('Images per second, median', f'{np.median(rates):,.0f}'),
      ('Images per second, highest', f'{rates.max():,.0f}'),
    ]
  if len(seconds):
    rows += [
      ('Seconds per epoch, median', f'{np.median(seconds):,.1f}'),
      ('Slowest epoch', f'{seconds.max():,.1f} s'),
      ('All epochs', html.duration(float(seconds.sum()))),
    ]
    if run.num_epochs and run.status != 'finished':
      remaining = max(run.num_epochs - run.epochs[-1]['epoch'] - 1, 0)
      rows.append(('Still to go, at that pace', html.duration(float(np.median(seconds)) * remaining)))
  if not rows:
    return html.section('Throughput', html.absent('No speed has been recorded yet.', run.problems.get('metrics.jsonl')))
  table = ''.join(f'<tr><td>{name}</td><td class="number">{value}</td></tr>' for name, value in rows)
  return html.section(
    'Throughput', f'<div class="grid wide">{_panels(curves.throughput(run))}<div><table>{table}</table></div></div>'
  )


def _events(run: Run) -> str:
  note = '' if 'metrics.jsonl' not in run.problems else html.absent(run.problems['metrics.jsonl'])
  if not run.events:
    return html.section('Events', note or html.absent('None.'))
  rows = ''.join(
    f'<tr><td class="number">{event["step"]:,}</td><td>{html.escape(event["event"].replace("_", " "))}</td>'
    f'<td>{html.escape(html.text(event.get("message", "")))}</td></tr>'
    for event in run.events[-_MAX_EVENTS:]
  )
  left_out = len(run.events) - _MAX_EVENTS
  lead = f'The last {_MAX_EVENTS}; {left_out} earlier ones are left out.' if left_out > 0 else ''
  head = '<tr><th class="number">Step</th><th>Event</th><th>Message</th></tr>'
  return html.section('Events', f'{note}<table class="events"><thead>{head}</thead><tbody>{rows}</tbody></table>', lead)


def _config(run: Run) -> str:
  if run.config is None:
    return html.section('Configuration', html.absent(run.problems['config.json']))
  single = {name: value for name, value in run.config.items() if not isinstance(value, Mapping)}
  groups = {name: value for name, value in run.config.items() if isinstance(value, Mapping)}
  tables = ''.join(
    f'<table>{caption}<tbody>'
    + ''.join(
      f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(html.text(value))}</td></tr>'
      for name, value in _flat(values)
    )
    + '</tbody></table>'
    for caption, values in [
      ('', single),
      *((f'<caption>{html.escape(name)}</caption>', values) for name, values in groups.items()),
    ]
    if values
  )
  return html.section(
    'Configuration', f'<div class="settings">{tables}</div>' if tables else html.absent('It is empty.')
  )


def _panels(panels: Iterable[Panel]) -> str:
  return ''.join(html.figure(panel.figure, panel.name, panel.title, f'{panel.title} over time.') for panel in panels)


def _cell_figure(genotype: AnyGenotype, cell: str, name: str, title: str, note: str = '') -> str:
  spec = genotype.cell(cell) if isinstance(genotype, Genotype) else genotype
  kept = sorted(kept_edges(genotype, cell), key=lambda edge: (edge[1], edge[0]))
  node_name = drawing.node_name if isinstance(genotype, Genotype) else drawing.state_name
  edges = '; '.join(f'{node_name(s)} to {node_name(t)} by {operation}' for s, t, operation in kept)
  return html.figure(drawing.draw_cell(spec), name, title, f'{title}: {edges}.', note)


def _flat(values: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  for name, value in values.items():
    if isinstance(value, Mapping) and value:
      yield from _flat(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value
