"""The laboratory's results as one HTML page without outside resources or scripts, and as Markdown tables."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from darts_jax import spaces
from darts_jax.laboratory import figures, radius, tables
from darts_jax.report import html, sections

TITLE = 'Hypergradient laboratory'

_EMPTY = 'There is no finite number to draw.'
_UNASKED = 'It was not part of this run.'
_CSS = """
.scroll { overflow-x: auto; margin-bottom: 28px; }
.results td, .results th { white-space: nowrap; overflow-wrap: normal; padding-right: 16px; }
.results th.group { text-align: center; border-bottom: 1px solid var(--rule); color: var(--ink); }
.results tbody + tbody tr:first-child td { border-top: 2px solid var(--rule); }
.results tbody tr:hover { background: var(--wash); }
.wide-figure { margin-bottom: 28px; }
.grid + .grid { margin-top: 32px; }
"""


def render(results: Mapping[str, Any]) -> str:
  """The page for the content of `results.json`; equal results give equal bytes. Sections of null parts say so."""
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
  """The tables of the page in GitHub-flavoured Markdown."""
  parts = [f'# {TITLE}']
  parts += ['\n'.join(f'- {name}: {tables.plain(html.text(value))}' for name, value in _facts(results))]
  supernet, quadratic, searches = results.get('supernet'), results.get('quadratic'), results.get('search')
  if supernet is not None:
    parts += [f'## Overview, {_working_precision(supernet)}', tables.as_markdown(_overview_table(supernet))]
  for title, table in (*_supernet_tables(supernet), ('Toy problem', _toy_table(results.get('toy') or {}))):
    parts += [f'## {title}', tables.as_markdown(table)]
  parts += ['## Quadratic problem', _UNASKED if quadratic is None else tables.as_markdown(_quadratic_table(quadratic))]
  parts += ['## Searches', _UNASKED if searches is None else tables.as_markdown(_search_table(searches))]
  return '\n\n'.join(part for part in parts if part) + '\n'


def pictures(results: Mapping[str, Any]) -> dict[str, Figure]:
  """The figures that are also written as PNG files, by file name; none without a supernet."""
  supernet = results.get('supernet')
  if supernet is None:
    return {}
  found = {
    'radius.png': radius.draw(supernet.get('radius') or {}),
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
    yield 'Second-order term', f'{tables.share(fraction)} <small>of the norm of ∇α L_val</small>'
  precision = _working_precision(supernet)
  rows = {row['estimator']: row for row in supernet.get('rows') or () if row.get('precision') == precision}
  for estimator, name in (('finite_difference', 'Finite difference'), ('exact', 'Exact')):
    term = _get(rows.get(estimator), 'one_step', 'term') or {}
    error, cosine = figures.number(term.get('error')), figures.number(term.get('cosine'))
    if error is not None:
      direction = '' if cosine is None else f', cosine {tables.cosine(cosine)}'
      yield f'{name}, {html.escape(precision)}', f'{tables.share(error)} <small>off in that term{direction}</small>'
  exact, difference = (figures.number(_get(rows.get(name), 'seconds')) for name in ('exact', 'finite_difference'))
  if exact is not None:
    other = '' if difference is None else f', {tables.milliseconds(difference)} by finite difference'
    yield f'Time, {html.escape(precision)}', f'{tables.milliseconds(exact)} <small>ms exactly{other}</small>'


def _overview(supernet: Mapping[str, Any]) -> str:
  precision = _working_precision(supernet)
  figure = figures.dots(supernet.get('rows') or (), precision)
  shown = [row for row in supernet.get('rows') or () if row.get('precision') == precision]
  described = '; '.join(
    f'{row["estimator"]}: error {tables.error(_get(row, "one_step", "term", "error"))},'
    f' cosine {tables.cosine(_get(row, "one_step", "term", "cosine"))}'
    for row in shown
  )
  return html.section(
    f'The second-order term in {html.escape(precision)}',
    _drawn(figure, 'dots', 'Against the exact one-step term in float64', f'{described}.'),
    'An error of 1 is as far off as leaving the term out. Estimators of the one-step term should be at the left;'
    ' unrolled and implicit ones aim at another term, and their distance from this one is no error of theirs.',
  )


def _overview_table(supernet: Mapping[str, Any]) -> tables.Table:
  """Errors against the exact one-step gradient, and costs, in the precision of searches."""
  measures: tuple[tuple[str, str, tuple[str, ...], Callable[[Any], str]], ...] = (
    ('term', 'error', ('one_step', 'term', 'error'), tables.error),
    ('term', 'cosine', ('one_step', 'term', 'cosine'), tables.cosine),
    ('whole', 'error', ('one_step', 'whole', 'error'), tables.error),
    ('whole', 'cosine', ('one_step', 'whole', 'cosine'), tables.cosine),
    ('', 'passes', ('forward',), tables.count),
    ('', 'time, ms', ('seconds',), tables.milliseconds),
    ('', 'memory, MB', ('bytes',), tables.megabytes),
  )
  precision = _working_precision(supernet)
  body = [
    (str(row['estimator']), *(form(_get(row, *path)) for _, _, path, form in measures))
    for row in supernet.get('rows') or ()
    if row.get('precision') == precision
  ]
  return tables.Table((('', 'estimator'), *((group, name) for group, name, _, _ in measures)), 1, tuple(body))


def _estimates(supernet: Mapping[str, Any]) -> str:
  content = ''.join(f'<h3>{html.escape(title)}</h3>\n{tables.as_html(t)}' for title, t in _supernet_tables(supernet))
  return html.section(
    'Every estimator',
    content,
    'Error: distance over the reference’s norm. Sign: entries with the reference’s sign. Rank: Kendall’s τ between the'
    ' orders in which an edge’s operations are put, averaged over edges.',
  )


def _supernet_tables(supernet: Mapping[str, Any] | None) -> Iterator[tuple[str, tables.Table]]:
  """Yields titles, as plain text, and tables; each block of rows is a precision."""
  if supernet is None:
    return
  rows = supernet.get('rows') or ()
  precisions = list(dict.fromkeys(row.get('precision') for row in rows))
  rows = sorted(rows, key=lambda row: precisions.index(row.get('precision')))
  names = (('', 'estimator'), ('', 'precision'))
  measures: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ('error', tables.error),
    ('cosine', tables.cosine),
    ('sign', tables.percent),
    ('rank', tables.cosine),
  )
  steps = supernet.get('reference_steps')
  references = {
    'one_step': 'Against the exact one-step gradient in float64',
    'unrolled': f'Against the gradient unrolled over {tables.NONE if steps is None else steps} steps in float64',
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
    yield title, tables.Table(names + columns, 2, tuple(body), by=1)
  costs: tuple[tuple[str, str, str, Callable[[Any], str]], ...] = (
    ('', 'time, ms', 'seconds', tables.milliseconds),
    ('', 'memory, MB', 'bytes', tables.megabytes),
    ('passes', 'forward', 'forward', tables.count),
    ('passes', 'backward', 'backward', tables.count),
    ('', 'residual', 'residual', tables.error),
    ('', 'ε', 'epsilon', tables.error),
    ('', 'change at half the radius', 'disagreement', tables.error),
  )
  columns = tuple((group, name) for group, name, _, _ in costs)
  body = [(*_names(row), *(form(row.get(key)) for _, _, key, form in costs)) for row in rows]
  yield 'Cost, and what estimators say of themselves', tables.Table(names + columns, 2, tuple(body), by=1)


def _names(row: Mapping[str, Any]) -> tuple[str, str]:
  return str(row['estimator']), str(row.get('precision') or tables.NONE)


def _radius(supernet: Mapping[str, Any]) -> str:
  title = 'The radius of the finite difference'
  part = supernet.get('radius')
  if part is None:
    return html.section(title, html.absent(_UNASKED))
  regimes = [
    f'{regime.cause} in the {regime.network} in {regime.precision} from {regime.low:.2g} to {regime.high:.2g}'
    for regime in radius.regimes(part)
  ]
  lead = (
    'Too small a radius drowns in round-off, too large a one in curvature. Between them a smooth function leaves a'
    ' valley; ReLU and max pooling, which have kinks, fill it. Bars are found in the data:'
    f' <b>round-off</b> where the error is more than {radius.EXCESS:g} times that in float64, <b>kinks</b> where it'
    f' is more than {radius.EXCESS:g} times the smooth twin’s, <b>truncation</b> where the twin’s grows like ε².'
  )
  lead += ''.join(f' {sentence}' for sentence in _radius_sentences(part))
  described = f'Error over the radius, in the network and in its smooth twin. Regimes: {"; ".join(regimes) or "none"}.'
  figure = _drawn(radius.draw(part), 'radius', 'Error of the second-order term', described)
  return html.section(title, figure, lead)


def _radius_sentences(part: Mapping[str, Any]) -> Iterator[str]:
  """Yields sentences about the errors at the paper's radius and at the best one, in float32 if it was measured."""
  curves = {network: radius.errors_of(part.get(network)) for network in ('network', 'twin')}
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
        errors_there.append(f'{tables.error(y[nearest])} in {name}')
    yield f'Nearest to the paper’s {paper:g}, the error in {precision} is {" and ".join(errors_there)}.'
  best = int(errors.argmin())
  yield f'The network’s smallest in {precision} is {tables.error(errors[best])}, at {radii[best]:.2g}.'


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
  one = f'One gradient takes {tables.milliseconds(seconds)} ms and {tables.megabytes(size)} MB.'
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
    f'<div class="grid wide">{figure}<div>{tables.as_html(_toy_table(part))}</div></div>',
    'L_val = αw − 2α + 1, L_train = w² − 2αw + α². A search rests where the one-step gradient is zero, at α = w ='
    ' 2/(1 + 2ξ), which is the optimum for ξ = ½ alone: one step stands for the whole inner problem. The table has'
    ' every estimator at the start, in float64, beside its closed form.',
  )


def _toy_table(part: Mapping[str, Any]) -> tables.Table:
  rows = [
    (str(row['estimator']), tables.precise(row.get('estimate')), tables.precise(row.get('expected')))
    for row in part.get('rows') or ()
  ]
  return tables.Table((('', 'estimator'), ('', 'estimate'), ('', 'closed form')), 1, tuple(rows))


def _quadratic(part: Mapping[str, Any] | None) -> str:
  title = 'Quadratic problem'
  if part is None:
    return html.section(title, html.absent(_UNASKED))
  counts = [f'{tables.count(part.get(key))} {name}' for key, name in (('weights', 'weights'), ('alphas', 'α'))]
  figure = _drawn(
    figures.convergence(part.get('convergence') or {}),
    'convergence',
    'Distance to the true hypergradient, relative',
    'Distance to the true hypergradient over passes, for each estimator that converges to it.',
  )
  return html.section(
    title,
    f'{tables.as_html(_quadratic_table(part))}{figure}',
    f'A random one with {", ".join(counts)} and condition number {tables.error(part.get("condition"))}.'
    ' Every estimator has a'
    ' closed form here, and the error is the distance from it: round-off, and what is left of the residual where'
    ' iterations stop early. Distance and cosine are to the true hypergradient, and say how far the estimator’s idea'
    ' carries.',
  )


def _quadratic_table(part: Mapping[str, Any]) -> tables.Table:
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
      ('error', tables.error), ('distance', tables.error), ('cosine', tables.cosine), ('residual', tables.error)
    )))
    for row in sorted(rows, key=lambda row: precisions.index(row.get('precision')))
  ]  # fmt: skip
  return tables.Table(columns, 2, tuple(body), by=1)


def _searches(rows: Sequence[Mapping[str, Any]] | None) -> str:
  title = 'Searches'
  if rows is None:
    return html.section(title, html.absent(_UNASKED))
  cells = ''.join(_cells(row, i) for i, row in enumerate(rows))
  return html.section(
    title,
    f'{tables.as_html(_search_table(rows))}{cells}',
    'The same search by every estimator, from the same seed. Shared edges are those of both cells that the first'
    ' search found, too.',
  )


def _search_table(rows: Sequence[Mapping[str, Any]]) -> tables.Table:
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
      tables.error(row.get('valid_loss')),
      tables.percent(row.get('valid_accuracy')),
      tables.plain_number(row.get('seconds')),
      f'{tables.count(row.get("shared_edges"))} of {tables.count(row.get("edges"))}',
    )
    for row in rows
  ]
  return tables.Table(columns, 1, tuple(body))


def _cells(row: Mapping[str, Any], index: int) -> str:
  title = f'<h3>{html.escape(str(row["estimator"]))}</h3>\n'
  if row.get('error'):
    return f'{title}{html.absent(str(row["error"]))}'
  try:
    found = spaces.from_json(row.get('genotype'))
  except ValueError as error:
    return f'{title}{html.absent(f"Its cells cannot be drawn: {error}")}'
  drawn = ''.join(sections.cell_figure(found, cell, f'search-{index}-{cell}') for cell, _ in found.cells)
  return f'{title}<div class="cells small">{drawn}</div>'


def _settings(setting: Mapping[str, Any]) -> str:
  estimators = setting.get('estimators') or {}
  if not estimators:
    return html.section('Settings of the estimators', html.absent('None is recorded.'))
  rows = [
    (str(name), ', '.join(f'{field} = {html.text(value)}' for field, value in (values or {}).items()) or tables.NONE)
    for name, values in estimators.items()
  ]
  table = tables.Table((('', 'estimator'), ('', 'fields')), 2, tuple(rows))
  return html.section('Settings of the estimators', tables.as_html(table))


def _drawn(figure: Figure | None, name: str, title: str, description: str) -> str:
  if figure is None:
    return html.absent(f'{title}:', _EMPTY)
  return f'<div class="wide-figure">{html.figure(figure, name, title, description)}</div>'


def _get(value: Any, *path: str) -> Any:
  """The value at a path of keys in nested mappings; None if a key is missing."""
  for key in path:
    value = value.get(key) if isinstance(value, Mapping) else None
  return value


def _working_precision(supernet: Mapping[str, Any]) -> str:
  """The precision to show: float32, as in searches, or the first measured one."""
  found = [row.get('precision') for row in supernet.get('rows') or ()]
  return 'float32' if 'float32' in found or not found else str(found[0])
