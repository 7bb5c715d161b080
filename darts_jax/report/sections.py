"""Sections that the reports of searches and of trainings share."""

import functools
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from darts_jax.report import curves, drawing, html
from darts_jax.report.curves import Panel
from darts_jax.report.history import kept_edges
from darts_jax.report.workdir import Run, last, number, series
from darts_jax.spaces import SPACES, CellSpace, Genotype, look_of

#: Texts for readers by status of a run (see `Run`).
STATUSES = {
  'not started': 'No step yet',
  'running': 'Running, or cut short',
  'stopped': 'Stopped before its end',
  'finished': 'Finished',
}
_MAX_EVENTS = 200
# Configs of trainings by that of the space and data; for other data there is that of the space.
_TRAININGS = {
  ('cifar_eval', 'digits'): 'digits_eval',
  ('ptb_eval', 'pydoc'): 'text_eval',
  ('ptb_eval', 'wikitext2'): 'wikitext2_eval',
}


def headline(run: Run, eyebrow: str, title: str, facts: Mapping[str, Any], tiles: Iterable[tuple[str, str]]) -> str:
  """The top of the page.

  Args:
    run: the run, whose status is shown.
    eyebrow: kind of the run, as HTML.
    title: the title, as text.
    facts: values of settings by name; None is left out.
    tiles: names and values of results, as HTML.
  """
  items = ''.join(html.fact(name, value) for name, value in facts.items() if value is not None)
  drawn = ''.join(html.tile(name, value) for name, value in tiles)
  return (
    f'<header>\n<p class="eyebrow">{eyebrow}</p>\n'
    f'<h1>{html.escape(title)}</h1>\n<ul class="facts">'
    f'<li><span class="status {run.status.replace(" ", "-")}"></span> <b>{STATUSES[run.status]}</b></li>'
    f'{items}</ul>\n'
    f'<dl class="tiles">{drawn}</dl>\n</header>\n'
  )


def progress_tiles(run: Run) -> Iterator[tuple[str, str]]:
  """Yields tiles with the progress of a run and its time."""
  total = '' if run.num_epochs is None else f' <small>of {run.num_epochs}</small>'
  yield 'Epochs', f'{run.epochs[-1]["epoch"] + 1 if run.epochs else 0}{total}'
  step = max([record['step'] for record in (*run.steps, *run.epochs)], default=0)
  yield 'Steps', f'{step:,}'
  seconds = series(run.epochs, 'seconds')[1]
  yield 'Time in epochs', html.duration(float(seconds[np.isfinite(seconds)].sum())) if len(seconds) else '–'


def warnings(found: Sequence[str]) -> str:
  """A box with warnings (see `darts_jax.report.diagnostics`); empty without any."""
  if not found:
    return ''
  items = ''.join(f'<li>{html.escape(warning)}</li>' for warning in found)
  return f'<div class="warnings" role="note">\n<h2>Look at this first</h2>\n<ul>{items}</ul>\n</div>\n'


def architecture(genotype: Genotype | None, origin: str) -> str:
  """The section with the cells of an architecture; `origin`, HTML, says where it is from or why there is none."""
  if genotype is None:
    return html.section('Architecture', html.absent(origin))
  cells = ''.join(cell_figure(genotype, cell, f'now-{cell}') for cell, _ in genotype.cells)
  return html.section('Architecture', f'<div class="cells">{cells}</div>', f'{origin} {look_of(genotype.space).legend}')


def learning_curves(run: Run) -> str:
  """The section with losses, and perplexities or accuracies."""
  title = 'Learning curves'
  charts = list(curves.learning(run))
  if not charts:
    return html.section(title, html.absent('No loss has been recorded yet.', run.problems.get('metrics.jsonl')))
  how = 'without dropout' if run.reads_text else 'in evaluation mode'
  lead = (
    f'Strong lines: whole epochs, validation {how}. Pale lines: single batches.'
    if run.epochs
    else 'Single batches; the first epoch has not ended.'
  )
  found = {'the run was resumed': 'resumed', 'it went back to its best weights': 'rolled_back'}
  marked = [said for said, event in found.items() if curves.times_of(run, event)]
  lead += f' Dotted lines: {", or ".join(marked)}.' if marked else ''
  lead += (
    ' Dashed: from here on, weights are averaged, and validation is that of the average.'
    if curves.times_of(run, 'averaging')
    else ''
  )
  lead += ' Crosses: not finite.' if curves.has_non_finite(run) else ''
  return html.section(title, f'<div class="grid wide">{panels(charts)}</div>', lead)


def benchmark(run: Run) -> str:
  """The section with the accuracies of architectures in a benchmark; empty if the log has none."""
  charts = list(curves.benchmark(run))
  if not charts:
    return ''
  lead = (
    'The accuracy of the architecture that the search would have returned after every epoch, as a table of trainings'
    ' from scratch has it; the search itself does not read the table.'
  )
  accuracy, rank = (last(run.epochs, f'true_{name}') for name in ('accuracy', 'rank'))
  if accuracy is not None and rank is not None:
    lead += f' In the end it is {100 * accuracy:.2f} %, rank {rank:,.0f}.'
  return html.section('In the benchmark', f'<div class="grid wide">{panels(charts)}</div>', lead)


def comparison(run: Run) -> str:
  """The section with the trainings of the found architecture and of random ones; empty if there were none."""
  title = 'Against random architectures'
  if run.comparison is None:
    problem = run.problems.get('comparison.json')
    return html.section(title, html.absent(problem)) if problem else ''
  measure = run.comparison.get('measure')

  def shown(value: Any) -> str:
    found = number(value)
    if found is None:
      return '–'
    return f'{100 * found:.2f} %' if measure == 'accuracy' else f'{found:.2f}'

  def counted(value: Any) -> str:
    return f'{value:,}' if isinstance(value, int) else '–'

  rows = ''.join(
    f'<tr><td>{html.escape(row["name"])}</td><td class="number">{counted(row.get("parameters"))}</td>'
    f'<td class="number">{shown(row.get("valid"))}</td><td class="number">{shown(row.get("test"))}</td></tr>'
    for row in run.comparison['rows']
  )
  named = html.text(measure)
  titles = ''.join(
    f'<th class="number">{title}</th>' for title in ('parameters', f'validation {named}', f'test {named}')
  )
  head = f'<tr><th></th>{titles}</tr>'
  lead = (
    f'Each was trained from scratch, {html.text(run.comparison.get("epochs"))} epochs with seed'
    f' {html.text(run.comparison.get("seed"))}. One training each does not say how much another seed would change.'
  )
  return html.section(title, f'<table>{head}{rows}</table>', lead)


def training_command(run: Run, genotype: str) -> str:
  """The command that trains the architecture in a file: by the config for the data, or else for the space."""
  config = SPACES.get(run.space, CellSpace).evaluation
  config = _TRAININGS.get((config, run.dataset), config)
  return f'darts-jax train --config={config} --genotype={shlex.quote(genotype)}'


def throughput(run: Run) -> str:
  """The section with throughput and times."""
  seconds = series(run.epochs, 'seconds')[1]
  seconds = seconds[np.isfinite(seconds)]
  rows = []
  for unit in curves.UNITS:
    rates = series(run.steps, f'{unit}_per_second')[1]
    rates = rates[np.isfinite(rates)]
    if len(rates):
      rows += [
        (f'{unit.capitalize()} per second, median', f'{np.median(rates):,.0f}'),
        (f'{unit.capitalize()} per second, highest', f'{rates.max():,.0f}'),
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
    'Throughput', f'<div class="grid wide">{panels(curves.throughput(run))}<div><table>{table}</table></div></div>'
  )


def events(run: Run) -> str:
  """The section with the log of events."""
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


def config(run: Run) -> str:
  """The section with all settings."""
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


def measured(name: str) -> str:
  """The name of a metric in words, such as `validation accuracy` for `valid_accuracy`."""
  words = ['validation' if word == 'valid' else word for word in name.split('_')]
  if words[-1].isdecimal():
    words[-1:] = ['after', words[-1], 'epochs']
  return ' '.join(words)


def perplexity(value: float | None) -> str:
  """A perplexity as text; a dash if it is None or not finite."""
  if value is None or not math.isfinite(value):
    return '–'
  return f'{value:,.2f}' if value < 1000 else f'{value:,.0f}'


def panels(charts: Iterable[Panel]) -> str:
  """Charts as HTML figures, one after the other."""
  return ''.join(html.figure(panel.figure, panel.name, panel.title, f'{panel.title} over time.') for panel in charts)


def cell_figure(genotype: Genotype, cell: str, name: str, note: str = '') -> str:
  """An HTML figure of a cell, with its title and a note; `name` is its unique id."""
  kept = sorted(kept_edges(genotype, cell), key=lambda edge: (edge[1], edge[0]))
  look = look_of(genotype.space)
  node_name, title = functools.partial(drawing.node_name, look), look.title(cell)
  edges = '; '.join(f'{node_name(s)} to {node_name(t)} by {operation}' for s, t, operation in kept)
  return html.figure(drawing.draw_cell(genotype.cell(cell), look), name, title, f'{title}: {edges}.', note)


def same_cell(title: str) -> str:
  """An HTML figure that refers to the drawing of the same cell at the top of the page."""
  return f'<figure><figcaption>{html.escape(title)}</figcaption><p class="absent">The same as at the top.</p></figure>'


def _flat(values: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  for name, value in values.items():
    if isinstance(value, Mapping) and value:
      yield from _flat(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value
