"""The report of a training as one HTML page without outside resources or scripts."""

import math
from collections.abc import Iterator
from typing import Any

from darts_jax import spaces
from darts_jax.report import curves, diagnostics, html, sections
from darts_jax.report.workdir import Record, Run, last, number
from darts_jax.spaces import Genotype


def render(run: Run) -> str:
  """The page of a training; equal files give equal bytes."""
  found, origin = _trained(run)
  dataset = html.text(run.dataset or 'Unnamed dataset')
  sizes = {'Width': 'width'} if run.reads_text else {'Channels': 'channels', 'Cells': 'layers'}
  facts = {
    'Architecture': _name(found),
    **{name: run.setting(field) for name, field in sizes.items()},
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


def _trained(run: Run) -> tuple[Genotype | None, str]:
  """The architecture that is trained, and HTML that says where it is from or why there is none."""
  if run.genotype is not None:
    return run.genotype, 'As in <code>genotype.json</code>.'
  return None, run.problems['genotype.json']


def _name(found: Genotype | None) -> str | None:
  """The name of a published architecture; None for any other."""
  return next((name for name, known in spaces.published().items() if known == found), None)


def _tiles(run: Run) -> Iterator[tuple[str, str]]:
  test = run.tests[-1] if run.tests else {}
  if run.reads_text:
    yield 'Test perplexity', sections.perplexity(number(test.get('perplexity')))
    best = _best(run)
    if best is not None:
      value = sections.perplexity(number(best.get('valid_perplexity')))
      yield 'Validation perplexity', f'{value} <small>epoch {best["epoch"] + 1}</small>'
  else:
    accuracy = number(test.get('accuracy'))
    yield 'Test accuracy', '–' if accuracy is None else f'{100 * accuracy:.2f} <small>%</small>'
    valid = last(run.epochs, 'valid_accuracy')
    if valid is not None:
      yield 'Validation accuracy', f'{100 * valid:.2f} <small>%</small>'
  yield from sections.progress_tiles(run)


def _best(run: Run) -> Record | None:
  """The first epoch with the least validation loss; language models are tested with its weights."""
  losses = [(number(epoch.get('valid_loss')), i) for i, epoch in enumerate(run.epochs)]
  finite = [(loss, i) for loss, i in losses if loss is not None and math.isfinite(loss)]
  return run.epochs[min(finite)[1]] if finite else None


def _outcome(run: Run) -> str:
  """The section with the results on each part of the data."""
  if run.reads_text:
    title, metrics = 'Text', {'loss': 'Loss, nats per token', 'perplexity': 'Perplexity'}
  else:
    title, metrics = 'Images', {'loss': 'Loss, nats', 'accuracy': 'Accuracy', 'top5_accuracy': 'Among the first five'}
  rows = [
    (name, {metric: record.get(f'{prefix}{metric}') for metric in metrics}) for name, record, prefix in _measured(run)
  ]
  rows = [(name, values) for name, values in rows if any(number(value) is not None for value in values.values())]
  if not rows:
    return html.section('Result', html.absent('No epoch has ended yet.', run.problems.get('metrics.jsonl')))
  # With few classes, the top-5 accuracy is not measured.
  columns = [
    metric for metric in metrics if metric != 'top5_accuracy' or any(row[metric] is not None for _, row in rows)
  ]
  head = f'<th>{title}</th>' + ''.join(f'<th class="number">{metrics[metric]}</th>' for metric in columns)
  body = ''.join(
    f'<tr><td>{name}</td>'
    + ''.join(f'<td class="number">{_cell(values[metric], metric)}</td>' for metric in columns)
    + '</tr>\n'
    for name, values in rows
  )
  table = f'<table class="results"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
  return html.section('Result', table, _protocol(run))


def _measured(run: Run) -> Iterator[tuple[str, Record, str]]:
  """Yields, for each row of the table, its name, its record, and the prefix of names of metrics in the record."""
  if run.epochs:
    regularised = 'with dropout' if run.reads_text else 'augmented'
    yield f'Training, {regularised}, the mean of the last epoch', run.epochs[-1], 'train_'
  best = _best(run) if run.reads_text else None
  if best is not None:
    yield f'Validation after epoch {best["epoch"] + 1}, the best{_averaged(best, "averaging")}', best, 'valid_'
  if run.epochs and run.epochs[-1] is not best:
    latest = run.epochs[-1]
    name = f'Validation after the last epoch{_averaged(latest, "averaging")}' if run.reads_text else 'Validation'
    yield name, latest, 'valid_'
  for record in run.tests:
    yield f'Test{_averaged(record, "averaged")}', record, ''


def _averaged(record: Record, name: str) -> str:
  return ', averaged weights' if record.get(name) else ''


def _protocol(run: Run) -> str:
  if run.reads_text:
    return _reading(run)
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


def _reading(run: Run) -> str:
  """Sentences about when the texts were read, and which choices depend on them."""
  read = 'The validation text is read after every epoch, and the weights that did best on it are the result'
  averaging = curves.times_of(run, 'averaging')
  if averaging:
    read += f'; by it, averaging of weights began after {run.time_unit} {averaging[0]:.0f}'
  how = f'at batch size {run.setting("test_batch_size") or 1}'
  if run.tests:
    return f'{read}. The test text was read once, after the last epoch, {how}; no choice was made by it.'
  if run.setting('test') is False:
    return f'{read}. The test text is not read: candidates are compared by validation alone.'
  if run.status == 'finished':
    return f'{read}. There is no test text.'
  return f'{read}. The test text has not been read; it is after the last epoch, once, {how}.'


def _cell(value: Any, metric: str) -> str:
  found = number(value)
  if found is None or not math.isfinite(found):
    return '–'
  if metric == 'perplexity':
    return sections.perplexity(found)
  return f'{found:.4f}' if metric == 'loss' else f'{100 * found:.2f} %'


def _optimisation(run: Run) -> str:
  charts = list(curves.optimisation(run))
  if not charts:
    reason = html.absent('Nothing has been recorded yet.', run.problems.get('metrics.jsonl'))
    return html.section('Optimisation', reason)
  return html.section('Optimisation', f'<div class="grid">{sections.panels(charts)}</div>')
