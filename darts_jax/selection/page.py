"""The results of a selection: a table in Markdown, and an HTML page with a figure and the selected cells."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from darts_jax import spaces
from darts_jax.report import html, sections, style
from darts_jax.training.repeats import mean_and_std

_NONE = '–'
_CSS = '.results th, .results td { white-space: nowrap; }\n'
_COLUMNS = (
  'method',
  'cells',
  'validation, brief',
  'best',
  'parameters',
  'test',
  'search',
  'selection',
  'evaluation',
)


def markdown(results: Mapping[str, Any]) -> str:
  """The table of methods, with an explanation of its columns, in Markdown."""
  rows = [_COLUMNS, ('---', *['--:'] * (len(_COLUMNS) - 1)), *map(_row, results['methods'])]
  table = '\n'.join(f'| {" | ".join(row)} |' for row in rows)
  return f'{table}\n\n{_explained(results)}\n'


def render(results: Mapping[str, Any]) -> str:
  """The HTML page; equal results give equal bytes."""
  settings = results['settings']
  methods: Sequence[Mapping[str, Any]] = results['methods']
  facts = {
    'Strategy': settings['strategy'],
    'Hypergradient': settings['hypergradient'],
    'Searches': settings['searches'],
    'Trainings of a pick': settings['trainings'],
  }
  items = ''.join(html.fact(name, value) for name, value in facts.items())
  tiles = ''.join(
    html.tile(html.escape(method['name']), f'{_spread(method["test_accuracies"])} <small>test</small>')
    for method in methods
  )
  header = (
    '<header>\n<p class="eyebrow">Search, selection, evaluation</p>\n'
    f'<h1>{html.escape(settings["data"])}</h1>\n<ul class="facts">{items}</ul>\n<dl class="tiles">{tiles}</dl>\n'
    '</header>\n'
  )
  table = html.section('Methods', _table(methods), html.escape(_explained(results)))
  described = 'Validation accuracy of every candidate, and test accuracy of every full training, by method.'
  drawn = html.section(
    'Every run',
    f'<div class="wide-figure">{html.figure(figure(methods), "runs", "Accuracy", described)}</div>',
    'Circles: candidates after a brief training, by validation; filled: the pick. Squares: full trainings, by test. A'
    ' line is their mean.',
  )
  cells = ''.join(_cells(method, i) for i, method in enumerate(methods))
  return html.document(f'{settings["data"]} – selection', header + table + drawn + cells, _CSS)


def figure(methods: Sequence[Mapping[str, Any]]) -> Figure:
  """Draws the accuracies of candidates and of full trainings, in one row per method."""
  height = 0.62 + 0.62 * len(methods)
  drawn = Figure(figsize=(9.2, height))
  axes = drawn.add_axes((0.2, 0.42 / height, 0.77, 1 - 0.5 / height))
  for place, method in enumerate(methods):
    # The pick comes last, so that candidates of equal accuracy do not hide it.
    for candidate in sorted(method['candidates'], key=lambda candidate: candidate['name'] == method['pick']):
      picked = candidate['name'] == method['pick']
      color = style.BLUE if picked else 'white'
      axes.plot(candidate['valid_accuracy'], place - 0.14, 'o', color=color, markeredgecolor=style.BLUE, markersize=6)
    tests = method['test_accuracies']
    axes.plot(tests, [place + 0.14] * len(tests), 's', color=style.VERMILION, markersize=5, alpha=0.7)
    mean, _ = mean_and_std(tests)
    axes.plot([mean, mean], [place + 0.02, place + 0.26], color=style.VERMILION, linewidth=1.6)
  axes.set_ylim(len(methods) - 0.5, -0.5)
  axes.set_yticks(range(len(methods)), [method['name'] for method in methods])
  axes.tick_params(axis='y', length=0, labelsize=9, colors=style.INK)
  axes.tick_params(axis='x', labelsize=8, colors=style.MUTED)
  axes.xaxis.set_major_locator(MaxNLocator(6))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{100 * value:.4g} %'))
  axes.grid(axis='x', color='#E8ECF1', linewidth=0.8)
  axes.set_axisbelow(True)
  for side in ('top', 'right', 'left'):
    axes.spines[side].set_visible(False)
  axes.spines['bottom'].set_color('#C5CCD6')
  return drawn


def _explained(results: Mapping[str, Any]) -> str:
  settings = results['settings']
  return (
    f'Candidates are trained for {settings["selection_epochs"]} epochs, picks for {settings["epochs"]}. Validation'
    f' images are {settings["validation_fraction"]:.0%} of the training set, divided by the seed of a training;'
    ' searches see them. Validation accuracies are mean ± standard deviation over candidates, that is over search'
    f' seeds; test accuracies over {settings["trainings"]} training seeds of the pick, and of random architectures'
    ' over architectures. Test images are read by full trainings alone, once, at the end. Random search compares as'
    ' many random cells as fit into the time of the searches and their selection, or up to its limit, which is marked.'
    ' Times are those of epochs, without compilation.'
  )


def _row(method: Mapping[str, Any]) -> tuple[str, ...]:
  valid = [candidate['valid_accuracy'] for candidate in method['candidates']]
  seconds = method['seconds']
  return (
    method['name'],
    f'{len(valid)}{" (limit)" if method.get("limited") else ""}' if valid else _NONE,
    _spread(valid) if valid else _NONE,
    _percent(max(valid)) if valid else _NONE,
    f'{method["parameters"]:,}' if method['parameters'] else _NONE,
    _spread(method['test_accuracies']),
    *(html.duration(seconds[name]) if seconds[name] else _NONE for name in ('search', 'selection', 'evaluation')),
  )


def _table(methods: Sequence[Mapping[str, Any]]) -> str:
  def kind(i: int) -> str:
    return ' class="number"' if i else ''

  head = ''.join(f'<th{kind(i)}>{html.escape(name)}</th>' for i, name in enumerate(_COLUMNS))
  rows = ''.join(
    f'<tr>{"".join(f"<td{kind(i)}>{html.escape(cell)}</td>" for i, cell in enumerate(_row(method)))}</tr>\n'
    for method in methods
  )
  return (
    f'<div class="scroll"><table class="results"><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>'
  )


def _cells(method: Mapping[str, Any], index: int) -> str:
  if method['genotype'] is None:
    return ''
  found = spaces.from_json(method['genotype'])
  drawn = ''.join(sections.cell_figure(found, cell, f'method-{index}-{cell}') for cell, _ in found.cells)
  return html.section(f'The pick of {html.escape(method["name"])}', f'<div class="cells">{drawn}</div>')


def _spread(values: Sequence[float]) -> str:
  mean, std = mean_and_std(values)
  return _percent(mean) if math.isnan(std) else f'{100 * mean:.2f} ± {100 * std:.2f} %'


def _percent(value: float) -> str:
  return f'{100 * value:.2f} %'
