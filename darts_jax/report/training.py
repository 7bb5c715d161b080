"""The report of a training as one HTML page without outside resources or scripts."""

import math
from collections.abc import Iterator
from typing import Any

from darts_jax import genotype as genotypes
from darts_jax.genotype import AnyGenotype
from darts_jax.report import curves, diagnostics, html, sections
from darts_jax.report.workdir import Run, last, number


def render(run: Run) -> str:
  """The page of a training; the same bytes for the same files."""
  found, origin = _trained(run)
  dataset = html.text(run.setting('data') or 'Unnamed dataset')
  if dataset in ('image_folder', 'tfds', 'npz'):
    # These say how images are stored, and the others which they are.
    dataset = html.text(run.setting({'tfds': 'dataset', 'npz': 'path'}.get(dataset, 'dir')) or dataset)
  facts = {
    'Architecture': _name(found),
    'Channels': run.setting('channels'),
    'Cells': run.setting('layers'),
    'Seed': run.setting('seed'),
  }
  body = ''.join(
    [
      sections.headline(run, 'Training from scratch', dataset, facts, _tiles(run)),
      sections.warnings(diagnostics.training_warnings([*run.steps, *run.epochs, *run.events])),
      _outcome(run),
      sections.learning_curves(run),
      _optimisation(run),
      sections.architecture(found, origin),
      sections.throughput(run),
      sections.events(run),
      sections.config(run),
    ]
  )
  return html.document(f'{dataset} – training from scratch', body)


def _trained(run: Run) -> tuple[AnyGenotype | None, str]:
  """The architecture that is trained, and where it is from, or why there is none."""
  if run.genotype is not None:
    return run.genotype, 'As in <code>genotype.json</code>.'
  return None, run.problems['genotype.json']


def _name(found: AnyGenotype | None) -> str | None:
  """What a published architecture is called."""
  return next((name for name, known in genotypes.published().items() if known == found), None)


def _tiles(run: Run) -> Iterator[tuple[str, str]]:
  test = number(run.tests[-1].get('accuracy')) if run.tests else None
  yield 'Test accuracy', '–' if test is None else f'{100 * test:.2f} <small>%</small>'
  valid = last(run.epochs, 'valid_accuracy')
  if valid is not None:
    yield 'Validation accuracy', f'{100 * valid:.2f} <small>%</small>'
  yield from sections.progress_tiles(run)


def _outcome(run: Run) -> str:
  """What was measured on which images, and when."""
  rows: list[tuple[Any, ...]] = []
  if run.epochs:
    final = run.epochs[-1]
    for part, name in (('train', 'Training, augmented, the mean of the last epoch'), ('valid', 'Validation')):
      rows.append((name, *(final.get(f'{part}_{metric}') for metric in ('loss', 'accuracy', 'top5_accuracy'))))
  for record in run.tests:
    rows.append(('Test', *(record.get(metric) for metric in ('loss', 'accuracy', 'top5_accuracy'))))
  rows = [row for row in rows if any(number(value) is not None for value in row[1:])]
  if not rows:
    return html.section('Result', html.absent('No epoch has ended yet.', run.problems.get('metrics.jsonl')))
  columns = ['Images', 'Loss, nats', 'Accuracy', 'Among the first five']
  if all(row[3] is None for row in rows):
    columns, rows = columns[:3], [(*row[:3], None) for row in rows]
  head = ''.join(f'<th{_kind(i)}>{name}</th>' for i, name in enumerate(columns))
  body = ''.join(
    f'<tr>{"".join(f"<td{_kind(i)}>{_cell(value, i)}</td>" for i, value in enumerate(row[: len(columns)]))}</tr>\n'
    for row in rows
  )
  table = f'<table class="results"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
  return html.section('Result', table, _protocol(run))


def _protocol(run: Run) -> str:
  fraction = number(run.setting('validation_fraction'))
  held = (
    'The validation images are a part of the training set, held out by seed.'
    if fraction
    else 'No training image was held out.'
  )
  if run.tests:
    return f'{held} The test images were read once, after the last epoch; no choice was made by them.'
  if run.setting('test') is False:
    return f'{held} The test images are not read: candidates are compared by validation alone.'
  if run.status == 'finished':
    return f'{held} There are no test images.'
  return f'{held} The test images have not been read; they are after the last epoch.'


def _kind(column: int) -> str:
  return ' class="number"' if column else ''


def _cell(value: Any, column: int) -> str:
  if not column:
    return html.escape(str(value))
  found = number(value)
  if found is None or not math.isfinite(found):
    return '–'
  return f'{found:.4f}' if column == 1 else f'{100 * found:.2f} %'


def _optimisation(run: Run) -> str:
  charts = list(curves.optimisation(run))
  if not charts:
    reason = html.absent('Nothing has been recorded yet.', run.problems.get('metrics.jsonl'))
    return html.section('Optimisation', reason)
  return html.section('Optimisation', f'<div class="grid">{sections.panels(charts)}</div>')
