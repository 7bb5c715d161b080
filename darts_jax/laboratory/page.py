"""The laboratory's results as one HTML page without outside resources or scripts, and as Markdown tables."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from darts_jax import genotype as genotypes
from darts_jax.genotype import Genotype
from darts_jax.laboratory import figures
from darts_jax.report import drawing, html

TITLE = 'Hypergradient laboratory'

_NONE = '–'
_EMPTY = 'There is no finite number to draw.'
_UNASKED = 'It was not part of this run.'
_NO_ROWS = 'It has no rows.'
_CSS = """
.scroll { overflow-x: auto; margin-bottom: 28px; }
.results td, .results th { white-space: nowrap; overflow-wrap: normal; padding-right: 16px; }
.results th.group { text-align: center; border-bottom: 1px solid var(--rule); color: var(--ink); }
.results tbody + tbody tr:first-child td { border-top: 2px solid var(--rule); }
.results tbody tr:hover { background: var(--wash); }
.wide-figure { margin-bottom: 28px; }
.grid + .grid { margin-top: 32px; }
"""


@dataclasses.dataclass(frozen=True)
class _Table:
  """Text in columns.

  Attributes:
    columns: (group, name) of each; neighbours of the same group share a heading, those of none have ''.
    names: so many columns at the left are names; the others are numbers.
    rows: of as many cells as there are columns.
    by: a column whose changes part the rows into blocks, or None.
  """

  columns: tuple[tuple[str, str], ...]
  names: int
  rows: tuple[tuple[str, ...], ...]
  by: int | None = None


def render(results: Mapping[str, Any]) -> str:
  """The page of `results.json`; the same bytes for the same results. Parts that are null say so."""
  supernet = results.get('supernet')
  supernet_sections = (_overview, _estimates, _radius, _batches, _along, _unrolled)
  parts = [_headline(results)]
  if supernet is None:
    parts.append(html.section('Supernet', html.absent(_UNASKED)))
  else:
    parts += [section(supernet) for section in supernet_sections]
  parts += [_toy(results.get('toy')), _quadratic(results.get('quadratic')), _searches(results.get('search'))]
  parts.append(_settings(results.get('setting') or {}))
  return html.document(TITLE, ''.join(parts), _CSS)


def markdown(results: Mapping[str, Any]) -> str:
  """The tables of the page in GitHub's Markdown."""
  parts = [f'# {TITLE}']
  parts += ['\n'.join(f'- {name}: {_plain(html.text(value))}' for name, value in _facts(results))]
  supernet, quadratic, searches = results.get('supernet'), results.get('quadratic'), results.get('search')
  if supernet is not None:
    parts += [f'## Overview, {_working_precision(supernet)}', _markdown_table(_overview_table(supernet))]
  for title, table in (*_supernet_tables(supernet), ('Toy problem', _toy_table(results.get('toy') or {}))):
    parts += [f'## {title}', _markdown_table(table)]
  parts += ['## Quadratic problem', _UNASKED if quadratic is None else _markdown_table(_quadratic_table(quadratic))]
  parts += ['## Searches', _UNASKED if searches is None else _markdown_table(_search_table(searches))]
  return '\n\n'.join(part for part in parts if part) + '\n'


def pictures(results: Mapping[str, Any]) -> dict[str, Figure]:
  """The figures that are worth a file of their own, by file name; none without a supernet."""
  supernet = results.get('supernet')
  if supernet is None:
    return {}
  found = {
    'radius.png': figures.radius(supernet.get('radius') or {}),
    'estimators.png': figures.dots(supernet.get('rows') or (), _working_precision(supernet)),
  }
  return {name: figure for name, figure in found.items() if figure is not None}


def _headline(results: Mapping[str, Any]) -> str:
  facts = ''.join(html.fact(name, value) for name, value in _facts(results))
  tiles = ''.join(html.tile(name, value) for name, value in _tiles(results.get('supernet') or {}))
  tiles = f'<dl class="tiles">{tiles}</dl>\n' if tiles else ''
  return (
    '<header>\n<p class="eyebrow">Estimators of the architecture gradient</p>\n'
    f'<h1>{TITLE}</h1>\n<ul class="facts">{facts}</ul>\n{tiles}</header>\n'
  )


def _facts(results: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  supernet, setting = results.get('supernet') or {}, results.get('setting') or {}
  counts = (('operations', ''), ('layers', ''), ('channels', ''), ('nodes', ' a cell'), ('weights', ''), ('alphas', ''))
  names = {'nodes': 'nodes', 'alphas': 'α'}
  network = [
    f'{supernet[key]:,} {names.get(key, key)}{of}'
    for key, of in counts
    if figures.number(supernet.get(key)) is not None
  ]
  facts = {
    'Data': supernet.get('data'),
    'State': supernet.get('state'),
    'Network': ', '.join(network) or None,
    'Batch': supernet.get('batch_size'),
    'Device': setting.get('device'),
    'JAX': setting.get('jax'),
    'Seed': setting.get('seed'),
    'Took': None if setting.get('seconds') is None else html.duration(setting['seconds']),
  }
  yield from ((name, value) for name, value in facts.items() if value is not None)


def _tiles(supernet: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
  fraction = figures.number(supernet.get('term_fraction'))
  if fraction is not None:
    yield 'Second-order term', f'{_share(fraction)} <small>of the norm of ∇α L_val</small>'
  precision = _working_precision(supernet)
  rows = {row['estimator']: row for row in supernet.get('rows') or () if row.get('precision') == precision}
  for estimator, name in (('finite_difference', 'Finite difference'), ('exact', 'Exact')):
    term = _get(rows.get(estimator), 'one_step', 'term') or {}
    error, cosine = figures.number(term.get('error')), figures.number(term.get('cosine'))
    if error is not None:
      direction = '' if cosine is None else f', cosine {_cosine(cosine)}'
      yield f'{name}, {html.escape(precision)}', f'{_share(error)} <small>off in that term{direction}</small>'
  exact, difference = (figures.number(_get(rows.get(name), 'seconds')) for name in ('exact', 'finite_difference'))
  if exact is not None:
    other = '' if difference is None else f', {_milliseconds(difference)} by finite difference'
    yield f'Time, {html.escape(precision)}', f'{_milliseconds(exact)} <small>ms exactly{other}</small>'


def _overview(supernet: Mapping[str, Any]) -> str:
  precision = _working_precision(supernet)
  figure = figures.dots(supernet.get('rows') or (), precision)
  shown = [row for row in supernet.get('rows') or () if row.get('precision') == precision]
  described = '; '.join(
    f'{row["estimator"]}: error {_error(_get(row, "one_step", "term", "error"))},'
    f' cosine {_cosine(_get(row, "one_step", "term", "cosine"))}'
    for row in shown
  )
  return html.section(
    f'The second-order term in {html.escape(precision)}',
    _drawn(figure, 'dots', 'Against the exact one-step term in float64', f'{described}.'),
    'An error of 1 is as far off as leaving the term out. Estimators of the one-step term should be at the left;'
    ' unrolled and implicit ones aim at another term, and their distance from this one is no error of theirs.',
  )


def _overview_table(supernet: Mapping[str, Any]) -> _Table:
  """Accuracy against the exact one-step gradient and cost, in the precision of searches."""
  measures: tuple[tuple[str, str, tuple[str, ...], Callable[[Any], str]], ...] = (
    ('term', 'error', ('one_step', 'term', 'error'), _error),
    ('term', 'cosine', ('one_step', 'term', 'cosine'), _cosine),
    ('whole', 'error', ('one_step', 'whole', 'error'), _error),
    ('whole', 'cosine', ('one_step', 'whole', 'cosine'), _cosine),
    ('', 'passes', ('forward',), _count),
    ('', 'time, ms', ('seconds',), _milliseconds),
    ('', 'memory, MB', ('bytes',), _megabytes),
  )
  precision = _working_precision(supernet)
  body = [
    (str(row['estimator']), *(form(_get(row, *path)) for _, _, path, form in measures))
    for row in supernet.get('rows') or ()
    if row.get('precision') == precision
  ]
  return _Table((('', 'estimator'), *((group, name) for group, name, _, _ in measures)), 1, tuple(body))


def _estimates(supernet: Mapping[str, Any]) -> str:
  tables = ''.join(f'<h3>{html.escape(title)}</h3>\n{_html_table(t)}' for title, t in _supernet_tables(supernet))
  return html.section(
    'Every estimator',
    tables,
    'Error: distance over the reference’s norm. Sign: entries with the reference’s sign. Rank: Kendall’s τ between the'
    ' orders in which an edge’s operations are put, averaged over edges.',
  )


def _supernet_tables(supernet: Mapping[str, Any] | None) -> Iterator[tuple[str, _Table]]:
  """Titles, as text, and tables; blocks of rows are precisions."""
  if supernet is None:
    return
  rows = supernet.get('rows') or ()
  precisions = list(dict.fromkeys(row.get('precision') for row in rows))
  rows = sorted(rows, key=lambda row: precisions.index(row.get('precision')))
  names = (('', 'estimator'), ('', 'precision'))
  measures: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ('error', _error),
    ('cosine', _cosine),
    ('sign', _percent),
    ('rank', _cosine),
  )
  steps = supernet.get('reference_steps')
  references = {
    'one_step': 'Against the exact one-step gradient in float64',
    'unrolled': f'Against the gradient unrolled over {_NONE if steps is None else steps} steps in float64',
  }
  for reference, title in references.items():
    columns = tuple((part, name) for part in ('term', 'whole') for name, _ in measures)
    body = [
      (
        *_names(row),
        *(form(_get(row, reference, part, name)) for part in ('term', 'whole') for name, form in measures),
      )
      for row in rows
    ]
    yield title, _Table(names + columns, 2, tuple(body), by=1)
  costs: tuple[tuple[str, str, str, Callable[[Any], str]], ...] = (
    ('', 'time, ms', 'seconds', _milliseconds),
    ('', 'memory, MB', 'bytes', _megabytes),
    ('passes', 'forward', 'forward', _count),
    ('passes', 'backward', 'backward', _count),
    ('', 'residual', 'residual', _error),
    ('', 'ε', 'epsilon', _error),
    ('', 'change at half the radius', 'disagreement', _error),
  )
  columns = tuple((group, name) for group, name, _, _ in costs)
  body = [(*_names(row), *(form(row.get(key)) for _, _, key, form in costs)) for row in rows]
  yield 'Cost, and what estimators say of themselves', _Table(names + columns, 2, tuple(body), by=1)


def _names(row: Mapping[str, Any]) -> tuple[str, str]:
  return str(row['estimator']), str(row.get('precision') or _NONE)


def _radius(supernet: Mapping[str, Any]) -> str:
  title = 'The radius of the finite difference'
  part = supernet.get('radius')
  if part is None:
    return html.section(title, html.absent(_UNASKED))
  regimes = [
    f'{regime.cause} in the {regime.network} in {regime.precision} from {regime.low:.2g} to {regime.high:.2g}'
    for regime in figures.regimes(part)
  ]
  lead = (
    'Too small a radius drowns in round-off, too large a one in curvature. Between them a smooth function leaves a'
    ' valley; ReLU and max pooling, which have kinks, fill it. Bars are found in the data:'
    f' <b>round-off</b> where the error is more than {figures.EXCESS:g} times that in float64, <b>kinks</b> where it'
    f' is more than {figures.EXCESS:g} times the smooth twin’s, <b>truncation</b> where the twin’s grows like ε².'
  )
  lead += ''.join(f' {sentence}' for sentence in _radius_sentences(part))
  described = f'Error over the radius, in the network and in its smooth twin. Regimes: {"; ".join(regimes) or "none"}.'
  figure = _drawn(figures.radius(part), 'radius', 'Error of the second-order term', described)
  return html.section(title, figure, lead)


def _radius_sentences(part: Mapping[str, Any]) -> Iterator[str]:
  """What the figure says about the paper's radius and the best one, in the coarsest usual precision that is there."""
  curves = {network: figures.errors_of(part.get(network)) for network in ('network', 'twin')}
  precision = next((p for p in ('float32', 'float64', 'bfloat16') if p in curves['network']), None)
  if precision is None:
    return
  radii, errors = curves['network'][precision]
  paper = figures.number(part.get('paper'))
  if paper:
    errors_there = []
    for network, name in (('network', 'the network'), ('twin', 'its twin')):
      if precision in curves[network]:
        x, y = curves[network][precision]
        nearest = min(range(len(x)), key=lambda i: abs(math.log(x[i] / paper)))
        errors_there.append(f'{_error(y[nearest])} in {name}')
    yield f'Nearest to the paper’s {paper:g}, the error in {precision} is {" and ".join(errors_there)}.'
  best = int(errors.argmin())
  yield f'The network’s smallest in {precision} is {_error(errors[best])}, at {radii[best]:.2g}.'


def _batches(supernet: Mapping[str, Any]) -> str:
  title = 'How many images the term needs'
  part = supernet.get('batches')
  if part is None:
    return html.section(title, html.absent(_UNASKED))
  images = figures.number(part.get('reference_images'))
  reference = 'many images' if images is None else f'{images:,.0f} images in other batches'
  content = ''.join(
    _drawn(figures.batches(part, what), f'batches-{what}', name, f'{name} over images used, for each estimator.')
    for what, name in (('term', 'Second-order term: cosine'), ('whole', 'Whole gradient: cosine'))
  )
  return html.section(
    title,
    content,
    f'Cosine to the exact gradient over {reference}, against batch size times batches averaged. Where lines of'
    ' different batch sizes coincide, the number of images alone counts; where that of a biased estimator stays below'
    ' the exact one’s, more images do not help it.',
  )


def _along(supernet: Mapping[str, Any]) -> str:
  title = 'Along a search'
  part = supernet.get('along')
  if part is None:
    return html.section(title, html.absent(_UNASKED))
  panels = list(figures.along(part))
  if not panels:
    return html.section(title, html.absent(_EMPTY))
  grids = []
  for kind, group in itertools.groupby(panels, lambda panel: panel.name in figures.SHARES):
    drawn = ''.join(html.figure(p.figure, p.name, p.title, f'{p.title} over search steps.') for p in group)
    grids.append(f'<div class="{"grid" if kind else "grid wide"}">{drawn}</div>')
  source = part.get('source')
  where = '' if source is None else f'{html.escape(str(source)[:1].upper() + str(source)[1:])}. '
  return html.section(
    title,
    '\n'.join(grids),
    f'{where}Estimates in float32 against the exact one-step gradient in float64. What the term’s error does to the'
    ' whole gradient depends on the term’s share of it.',
  )


def _unrolled(supernet: Mapping[str, Any]) -> str:
  title = 'What unrolling costs'
  part = supernet.get('unrolled')
  if part is None:
    return html.section(title, html.absent(_UNASKED))
  seconds, size = part.get('gradient_seconds'), part.get('gradient_bytes')
  drawn = _drawn(figures.cost(part), 'cost', 'Unrolled over T steps', 'Time and memory over the number of steps.')
  one = f'One gradient takes {_milliseconds(seconds)} ms and {_megabytes(size)} MB.'
  return html.section(title, drawn, f'{one} On a straight line, every further step costs the same.')


def _toy(part: Mapping[str, Any] | None) -> str:
  title = 'Toy problem of the paper'
  if part is None:
    return html.section(title, html.absent(_UNASKED))
  figure = _drawn(
    figures.toy(part), 'toy', 'Searches by the exact one-step gradient', 'Trajectories of α and w, one for each ξ.'
  )
  return html.section(
    title,
    f'<div class="grid wide">{figure}<div>{_html_table(_toy_table(part))}</div></div>',
    'L_val = αw − 2α + 1, L_train = w² − 2αw + α². A search rests where the one-step gradient is zero, at α = w ='
    ' 2/(1 + 2ξ), which is the optimum for ξ = ½ alone: one step stands for the whole inner problem. The table has'
    ' every estimator at the start, in float64, beside its closed form.',
  )


def _toy_table(part: Mapping[str, Any]) -> _Table:
  rows = [
    (str(row['estimator']), _precise(row.get('estimate')), _precise(row.get('expected')))
    for row in part.get('rows') or ()
  ]
  return _Table((('', 'estimator'), ('', 'estimate'), ('', 'closed form')), 1, tuple(rows))


def _quadratic(part: Mapping[str, Any] | None) -> str:
  title = 'Quadratic problem'
  if part is None:
    return html.section(title, html.absent(_UNASKED))
  counts = [f'{_count(part.get(key))} {name}' for key, name in (('weights', 'weights'), ('alphas', 'α'))]
  figure = _drawn(
    figures.convergence(part.get('convergence') or {}),
    'convergence',
    'Distance to the true hypergradient, relative',
    'Distance to the true hypergradient over passes, for each estimator that converges to it.',
  )
  return html.section(
    title,
    f'{_html_table(_quadratic_table(part))}{figure}',
    f'A random one with {", ".join(counts)} and condition number {_error(part.get("condition"))}. Every estimator has a'
    ' closed form here, and the error is the distance from it: round-off, and what is left of the residual where'
    ' iterations stop early. Distance and cosine are to the true hypergradient, and say how far the estimator’s idea'
    ' carries.',
  )


def _quadratic_table(part: Mapping[str, Any]) -> _Table:
  columns = (
    ('', 'estimator'),
    ('', 'precision'),
    ('own closed form', 'error'),
    ('true hypergradient', 'distance'),
    ('true hypergradient', 'cosine'),
    ('', 'residual'),
  )
  rows = part.get('rows') or ()
  precisions = list(dict.fromkeys(row.get('precision') for row in rows))
  body = [
    (*_names(row), *(form(row.get(key)) for key, form in (
      ('error', _error), ('distance', _error), ('cosine', _cosine), ('residual', _error)
    )))
    for row in sorted(rows, key=lambda row: precisions.index(row.get('precision')))
  ]  # fmt: skip
  return _Table(columns, 2, tuple(body), by=1)


def _searches(rows: Sequence[Mapping[str, Any]] | None) -> str:
  title = 'Searches'
  if rows is None:
    return html.section(title, html.absent(_UNASKED))
  cells = ''.join(_cells(row, i) for i, row in enumerate(rows))
  return html.section(
    title,
    f'{_html_table(_search_table(rows))}{cells}',
    'The same search by every estimator, from the same seed. Shared edges are those of both cells that the first'
    ' search found, too.',
  )


def _search_table(rows: Sequence[Mapping[str, Any]]) -> _Table:
  columns = (
    ('', 'estimator'),
    ('validation', 'loss'),
    ('validation', 'accuracy'),
    ('', 'time, s'),
    ('', 'shared edges'),
  )
  body = [
    (
      str(row['estimator']),
      _error(row.get('valid_loss')),
      _percent(row.get('valid_accuracy')),
      _plain_number(row.get('seconds')),
      f'{_count(row.get("shared_edges"))} of {_count(row.get("edges"))}',
    )
    for row in rows
  ]
  return _Table(columns, 1, tuple(body))


def _cells(row: Mapping[str, Any], index: int) -> str:
  title = f'<h3>{html.escape(str(row["estimator"]))}</h3>\n'
  if row.get('error'):
    return f'{title}{html.absent(str(row["error"]))}'
  try:
    found = genotypes.from_dict(row.get('genotype'))
  except ValueError as error:
    return f'{title}{html.absent(f"Its cells cannot be drawn: {error}")}'
  if not isinstance(found, Genotype):
    return f'{title}{html.absent("It found a recurrent cell.")}'
  drawn = []
  for cell, name in (('normal', 'Normal cell'), ('reduce', 'Reduction cell')):
    spec = found.cell(cell)
    edges = '; '.join(
      f'{drawing.node_name(edge.source)} to {drawing.node_name(target)} by {edge.operations[0]}'
      for target, edge in spec.edges
    )
    drawn.append(html.figure(drawing.draw_cell(spec), f'search-{index}-{cell}', name, f'{name}: {edges}.'))
  return f'{title}<div class="cells small">{"".join(drawn)}</div>'


def _settings(setting: Mapping[str, Any]) -> str:
  estimators = setting.get('estimators') or {}
  if not estimators:
    return html.section('Settings of the estimators', html.absent('None is recorded.'))
  rows = [
    (str(name), ', '.join(f'{field} = {html.text(value)}' for field, value in (values or {}).items()) or _NONE)
    for name, values in estimators.items()
  ]
  table = _Table((('', 'estimator'), ('', 'fields')), 2, tuple(rows))
  return html.section('Settings of the estimators', _html_table(table))


def _drawn(figure: Figure | None, name: str, title: str, description: str) -> str:
  if figure is None:
    return html.absent(f'{title}:', _EMPTY)
  return f'<div class="wide-figure">{html.figure(figure, name, title, description)}</div>'


def _html_table(table: _Table) -> str:
  if not table.rows:
    return html.absent(_NO_ROWS)

  def kind(column: int) -> str:
    return '' if column < table.names else ' class="number"'

  heads = ''
  if any(group for group, _ in table.columns):
    groups = [(group, len(list(members))) for group, members in itertools.groupby(group for group, _ in table.columns)]
    heads = ''.join(
      f'<th class="group" colspan="{count}">{html.escape(group)}</th>' if group else f'<th colspan="{count}"></th>'
      for group, count in groups
    )
    heads = f'<tr>{heads}</tr>'
  names = ''.join(f'<th{kind(i)}>{html.escape(name)}</th>' for i, (_, name) in enumerate(table.columns))
  blocks = itertools.groupby(table.rows, lambda row: None if table.by is None else row[table.by])
  bodies = ''.join(
    '<tbody>'
    + ''.join(
      f'<tr>{"".join(f"<td{kind(i)}>{html.escape(cell)}</td>" for i, cell in enumerate(row))}</tr>\n' for row in rows
    )
    + '</tbody>'
    for _, rows in blocks
  )
  return f'<div class="scroll"><table class="results"><thead>{heads}<tr>{names}</tr></thead>\n{bodies}</table></div>\n'


def _markdown_table(table: _Table) -> str:
  if not table.rows:
    return _NO_ROWS
  names = [f'{group}: {name}' if group else name for group, name in table.columns]
  marks = ['---' if i < table.names else '--:' for i in range(len(names))]
  lines = [names, marks, *([_plain(cell) for cell in row] for row in table.rows)]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _plain(text: str) -> str:
  """Text that Markdown leaves alone, on one line."""
  return html.escape(' '.join(text.split()), quote=False).replace('|', '\\|')


def _get(value: Any, *path: str) -> Any:
  """What lies at the end of a path, None if it ends early."""
  for key in path:
    value = value.get(key) if isinstance(value, Mapping) else None
  return value


def _working_precision(supernet: Mapping[str, Any]) -> str:
  """The precision of searches, float32, if it was measured."""
  found = [row.get('precision') for row in supernet.get('rows') or ()]
  return 'float32' if 'float32' in found or not found else str(found[0])


def _number_as(form: str, factor: float = 1.0, unit: str = '') -> Callable[[Any], str]:
  def convert(value: Any) -> str:
    number = figures.number(value)
    if number is None:
      return _NONE
    written = f'{number * factor:{form}}'
    # What rounds to zero has no sign.
    return (written if float(written.replace(',', '')) else written.removeprefix('-')) + unit

  return convert


_precise = _number_as('.10g')
_cosine = _number_as('.4f')
_percent = _number_as('.1f', 100, ' %')
_count = _number_as(',.0f')


def _error(value: Any) -> str:
  """Three digits."""
  number = figures.number(value)
  return _NONE if number is None else '0' if number == 0 else f'{number:#.3g}'.removesuffix('.')


def _plain_number(value: Any, factor: float = 1.0) -> str:
  """Three digits or more, without an exponent."""
  number = figures.number(value)
  if number is None:
    return _NONE
  number *= factor
  if number == 0:
    return '0'
  digits = max(0, 2 - math.floor(math.log10(abs(number))))
  return f'{number:,.{min(digits, 6)}f}'


def _milliseconds(seconds: Any) -> str:
  return _plain_number(seconds, 1e3)


def _megabytes(size: Any) -> str:
  return _plain_number(size, 1e-6)


def _share(value: float) -> str:
  """Of one, in per cent if that is legible."""
  return f'{100 * value:.2g} %' if 0.001 <= value < 0.995 else figures.scientific(value)
