"""The report as one HTML page without outside resources or scripts."""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from darts_jax import genotype as genotypes
from darts_jax.genotype import AnyGenotype, Genotype
from darts_jax.report import curves, decisions, diagnostics, figures, html, sections
from darts_jax.report.workdir import REMOVED, UNDECIDED, Run, cells_of, kept_edges, last

_MAX_SNAPSHOTS = 3


def render(run: Run) -> str:
  """The page of a run; the same bytes for the same files."""
  genotype, origin = _current(run)
  records = [*run.steps, *run.epochs, *run.events]
  mixing = {cell: run.alphas.mixing(cell) for cell in run.alphas.alphas} if run.alphas else {}
  times = run.times(run.alphas.steps) if run.alphas else np.zeros(0)
  epochs = times if run.epochs else np.zeros(len(times))
  warnings = diagnostics.warnings(records, genotype, mixing, epochs, run.num_epochs)
  doubts = run.alphas.doubts() if run.alphas else None
  if doubts is not None and doubts.message is not None:
    warnings.append(f'{doubts.message[0].upper()}{doubts.message[1:]}.')
  dataset = html.text(run.dataset or run.setting('dataset') or 'Unnamed dataset')
  body = ''.join(
    [
      _headline(run, genotype, dataset),
      sections.warnings(warnings),
      sections.architecture(genotype, origin),
      sections.learning_curves(run),
      _optimisation(run),
      _mixing(run, genotype, mixing, times),
      decisions.section(run),
      _snapshots(run, genotype),
      _usage(run, genotype),
      sections.throughput(run),
      sections.events(run),
      sections.config(run),
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
    'Width': run.setting('width') if run.is_recurrent else None,
    'Seed': run.setting('seed'),
  }
  return sections.headline(run, 'Architecture search', dataset, facts, _tiles(run, genotype))


def _tiles(run: Run, genotype: AnyGenotype | None) -> Iterator[tuple[str, str]]:
  accuracy, loss = last(run.epochs, 'valid_accuracy'), last(run.epochs, 'valid_loss')
  perplexity = last(run.epochs, 'valid_perplexity')
  if accuracy is not None:
    yield 'Supernet accuracy', f'{100 * accuracy:.2f} <small>% validation</small>'
  elif perplexity is not None or run.is_recurrent:
    yield 'Supernet perplexity', f'{sections.perplexity(perplexity)} <small>validation</small>'
  else:
    yield 'Supernet loss', '–' if loss is None else f'{loss:.3f} <small>validation</small>'
  yield from sections.progress_tiles(run)
  if isinstance(genotype, Genotype):
    count = sum(operation == 'skip_connect' for operation, _ in genotype.normal)
    yield 'Skip connections', f'{count} <small>of {len(genotype.normal)} normal edges</small>'
  elif genotype is not None:
    count = sum(activation == 'identity' for activation, _ in genotype.recurrent)
    yield 'Identities', f'{count} <small>of {len(genotype.recurrent)} nodes</small>'


def _optimisation(run: Run) -> str:
  panels = list(curves.optimisation(run))
  if not panels:
    return html.section(
      'Optimisation', html.absent('Nothing has been recorded yet.', run.problems.get('metrics.jsonl'))
    )
  lead = 'Entropy falls as the search makes up its mind; changed edges are counted from one snapshot of α to the next.'
  if run.alphas is not None and len(run.alphas.steps) > curves.MAX_DERIVED:
    lead = f'{lead[:-1]}, of {curves.MAX_DERIVED} that are spread evenly.'
  return html.section('Optimisation', f'<div class="grid">{sections.panels(panels)}</div>', lead)


def _mixing(run: Run, genotype: AnyGenotype | None, mixing: Mapping[str, np.ndarray], times: np.ndarray) -> str:
  title = 'Mixing weights over time'
  if run.alphas is None:
    return html.section(
      title,
      html.absent(f'{run.problems["alphas.npz"]} Searches that do not train α (random search, for one) write none.'),
    )
  states = {cell: run.alphas.decided(cell)[..., None] for cell in mixing}
  # Beside the weights of decided edges, which are 1, all others would look alike.
  largest = max(
    float(np.nanmax(weights, initial=0.0, where=states[cell] == UNDECIDED)) for cell, weights in mixing.items()
  )
  largest = min(1.0, max(largest, 2 / len(run.alphas.operations)))
  parts = []
  for cell, weights in mixing.items():
    figure = figures.mixing_weights(
      times,
      np.where(states[cell] == REMOVED, np.nan, weights),
      run.alphas.operations,
      run.alphas.edges[cell],
      kept_edges(genotype, cell),
      largest,
      run.time_unit,
      recurrent=cell == 'recurrent',
    )
    name = sections.CELLS.get(cell, cell)
    parts.append(html.figure(figure, f'mixing-{cell}', name, f'{name}: mixing weights of every edge over time.'))
  lead = (
    'One map for each edge: a row holds the edges into a node, a column those out of a node. In a map, each line is a'
    ' candidate operation, darker where its weight (softmax of α) is larger. Bold titles and red arrows mark what'
    ' the architecture at the top keeps.'
  )
  if run.alphas.temperatures is not None:
    first, latest = run.alphas.temperatures[[0, -1]]
    lead += (
      f' Weights are those of the supernet, whose softmax has a temperature of {first:.3g} at first and of {latest:.3g}'
      ' in the end; architectures are derived at 1.'
    )
  if run.alphas.decides:
    lead += (
      ' A decided edge has its operation alone, in the darkest colour, which otherwise stands for the largest weight on'
      ' an undecided one; a removed edge is blank.'
    )
  return html.section(title, f'<div class="stack">{"".join(parts)}</div>', lead)


def _snapshots(run: Run, genotype: AnyGenotype | None) -> str:
  title = 'Cells along the way'
  if run.alphas is None:
    return html.section(title, html.absent(f'{run.problems["alphas.npz"]} Earlier cells are derived from it.'))
  if run.alphas.decides:
    return decisions.along_the_way(run, run.alphas, genotype)
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
    return sections.same_cell(sections.CELLS[cell])
  note = f'{len(before & now)} of {len(before)} edges as at the top' if now else ''
  return sections.cell_figure(earlier, cell, f'snapshot-{snapshot}-{cell}', sections.CELLS[cell], note)


def _usage(run: Run, genotype: AnyGenotype | None) -> str:
  if genotype is None:
    return html.section('Use this architecture', html.absent('There is no architecture yet.'))
  per_line = 2 if isinstance(genotype, Genotype) else 1
  text = (
    '{\n'
    + ',\n'.join(f'  "{name}": {_json_lines(values, per_line)}' for name, values in genotypes.to_dict(genotype).items())
    + '\n}'
  )
  cell, path = cells_of(genotype)[0], str(run.path / 'genotype.json')
  code = f"""from darts_jax import genotype
from darts_jax.report import drawing

found = genotype.load({path!r})
print(drawing.to_graphviz(found.cell({cell!r}), {cell!r}))  # Graphviz source of a cell"""
  config = 'configs/cifar_eval.py' if isinstance(genotype, Genotype) else 'configs/ptb_eval.py'
  command = f'python -m experiments.train --config={config} --genotype={shlex.quote(path)}'
  parts = {'Train it from scratch': command, 'Read it': code, 'genotype.json': text}
  return html.section(
    'Use this architecture',
    '\n'.join(f'<h3>{title}</h3>\n<pre>{html.escape(content)}</pre>' for title, content in parts.items()),
  )


def _json_lines(values: list[Any], per_line: int) -> str:
  """A list of nodes on one line; a list of pairs with so many of them, those of a node, on a line."""
  if not isinstance(values[0], list):
    return json.dumps(values)
  lines = [json.dumps(values[i : i + per_line])[1:-1] for i in range(0, len(values), per_line)]
  return '[\n    ' + ',\n    '.join(lines) + '\n  ]'
