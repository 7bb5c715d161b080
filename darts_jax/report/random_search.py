"""The report of a random search as one HTML page without outside resources or scripts."""

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from darts_jax.report import architectures, figures, html, sections, style
from darts_jax.report.architectures import Architecture
from darts_jax.report.workdir import Run, last, number

_SIZE = (5.5, 3.1)


def render(run: Run) -> str:
  """The page of a random search; the same bytes for the same files, `architectures.json` among them."""
  problem = None
  found: list[Architecture] = []
  try:
    found = architectures.read(run.path)
  except ValueError as error:
    problem = str(error)
  best = architectures.best(found)
  training = _training(run)
  dataset = html.text(training.dataset or 'Unnamed dataset')
  facts = {
    'Strategy': run.setting('strategy'),
    'Channels': training.setting('channels'),
    'Cells': training.setting('layers'),
    'Epochs each': training.num_epochs,
    'Seed': run.setting('seed'),
  }
  body = ''.join(
    [
      sections.headline(run, 'Architecture search', dataset, facts, _tiles(run, found, best)),
      sections.warnings(list(_warnings(found))),
      _architecture(run, best),
      _comparison(training, found, best, problem),
      _usage(run),
      sections.events(run),
      sections.config(run),
    ]
  )
  return html.document(f'{dataset} – random search', body)


def figure(found: Sequence[Architecture], total: int) -> Figure:
  """Validation accuracies in the order of the draws, and the best so far.

  Args:
    found: at least one.
    total: how many there will be.
  """
  drawn = Figure(figsize=_SIZE)
  axes = drawn.add_axes(figures.inches(_SIZE, 0.6, 0.42, _SIZE[0] - 0.6 - 0.95, _SIZE[1] - 0.42 - 0.12))
  figures.clean(axes)
  axes.set_axisbelow(True)
  axes.grid(axis='y', color='#E8ECF1', linewidth=0.8)
  numbers = np.array([each.number for each in found])
  values = np.array([np.nan if each.diverged else each.valid_accuracy for each in found])
  sound = np.isfinite(values)
  if sound.any():
    line = figures.Line(numbers[sound], np.maximum.accumulate(values[sound]), style.VERMILION, 'best so far')
    # It goes on to the last one, which may have diverged.
    times, highest = np.append(line.times, numbers[-1]), np.append(line.values, line.values[-1])
    axes.plot(times, highest, color=line.color, linewidth=1.6, drawstyle='steps-post', zorder=2)
    axes.plot(numbers[sound], values[sound], 'o', color=style.BLUE, markersize=5, zorder=3)
    figures.name_ends(axes, _SIZE[1], [line])
  figures.cross(axes, numbers[~sound])
  axes.set_xlim(-0.5, max(total, len(found)) - 0.5)
  axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
  axes.yaxis.set_major_locator(MaxNLocator(5))
  axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{100 * value:.4g} %'))
  axes.set_xlabel('architecture', size=figures.TEXT, color=style.MUTED, labelpad=2)
  return drawn


def _training(run: Run) -> Run:
  """The run, with the settings of its trainings alone."""
  settings = (run.config or {}).get('training')
  return dataclasses.replace(run, config=settings if isinstance(settings, Mapping) else {})


def _tiles(run: Run, found: Sequence[Architecture], best: Architecture | None) -> Iterator[tuple[str, str]]:
  yield (
    'Best validation accuracy',
    '–' if best is None else f'{100 * best.valid_accuracy:.2f} <small>%, architecture {best.number}</small>',
  )
  test = last(run.tests, 'accuracy')
  if test is not None:
    yield 'Its test accuracy', f'{100 * test:.2f} <small>%</small>'
  total = number(run.setting('architectures'))
  yield 'Architectures', f'{len(found)}' + ('' if total is None else f' <small>of {total:.0f}</small>')
  yield 'Time in epochs', html.duration(sum(each.seconds for each in found))


def _warnings(found: Sequence[Architecture]) -> Iterator[str]:
  diverged = [str(each.number) for each in found if each.diverged]
  if diverged:
    yield (
      f'{len(diverged)} of {len(found)} trainings diverged ({", ".join(diverged)}); they count as a validation accuracy'
      ' of 0. A lower learning rate may keep them finite.'
    )


def _architecture(run: Run, best: Architecture | None) -> str:
  if run.genotype is None:
    return sections.architecture(None, run.problems.get('genotype.json', 'There is no architecture yet.'))
  which = '' if best is None else f': architecture {best.number}, the best by validation'
  return sections.architecture(run.genotype, f'As in <code>genotype.json</code>{which}.')


def _comparison(training: Run, found: Sequence[Architecture], best: Architecture | None, problem: str | None) -> str:
  title = 'All architectures'
  if not found:
    return html.section(title, html.absent(problem or 'No training has ended yet.'))
  head = ''.join(
    f'<th class="number">{name}</th>' for name in ('Number', 'Parameters', 'Validation accuracy', 'Seconds')
  )
  rows = ''.join(_row(each, each is best) for each in found)
  table = f'<table class="results"><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>'
  total = number(training.setting('architectures')) or len(found)
  described = 'Validation accuracy of every architecture in the order they were drawn, and the best so far.'
  drawn = html.figure(figure(found, int(total)), 'architectures', 'Validation accuracy', described)
  return html.section(title, f'<div class="grid wide">{drawn}<div>{table}</div></div>', _explained(training, found))


def _row(each: Architecture, is_best: bool) -> str:
  cells = (
    f'<a href="architectures/{each.number}/report.html">{each.number}</a>',
    f'{each.parameters:,}',
    'diverged' if each.diverged else f'{100 * each.valid_accuracy:.2f} %',
    f'{each.seconds:,.1f}',
  )
  drawn = (f'<td class="number">{f"<b>{cell}</b>" if is_best else cell}</td>' for cell in cells)
  return f'<tr>{"".join(drawn)}</tr>\n'


def _explained(training: Run, found: Sequence[Architecture]) -> str:
  """What the accuracies are of, and what they say."""
  fraction = number(training.setting('validation_fraction'))
  part = '' if fraction is None else f', {fraction:.0%} of the training set'
  lead = (
    f'Each number is a draw of the seed; its training has a page of its own. Validation images{part}, are the same for'
    ' all. The best of several is chosen by them, so its accuracy there is rather too high.'
  )
  lead += (
    ' It was <a href="pick/report.html">trained again</a> with the same seed, and the test images were read once, after'
    ' its last epoch.'
    if training.tests
    else ' The test images have not been read.'
  )
  return lead + (' Crosses: diverged.' if any(each.diverged for each in found) else '')


def _usage(run: Run) -> str:
  title = 'Use this architecture'
  if run.genotype is None:
    return html.section(title, html.absent('There is no architecture yet.'))
  path = shlex.quote(str(run.path / 'genotype.json'))
  parts = {
    'Train it from scratch': f'python -m experiments.train --config=configs/cifar_eval.py --genotype={path}',
    'Draw and count it': f'python -m experiments.describe --genotype={path} --draw=cells.svg',
  }
  if run.tests:
    parts['Take the network that was tested'] = f"""import darts_jax

apply, variables = darts_jax.load({str(run.path / 'pick')!r})
logits = apply(variables, images)  # raw images [N, H, W, C], as in the dataset"""
  return html.section(
    title, '\n'.join(f'<h3>{name}</h3>\n<pre>{html.escape(content)}</pre>' for name, content in parts.items())
  )
