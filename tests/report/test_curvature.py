"""What the report makes of curvatures, and of epochs that a search left behind."""

import json

import numpy as np
import pytest

from darts_jax import report
from darts_jax.report import curvature, workdir


def epoch(number, **values):
  return {'kind': 'epoch', 'step': 10 * (number + 1), 'epoch': number, 'valid_loss': 1.0, **values}


def event(number, name, to_epoch, message='<it> rose'):
  told = {'epoch': number, 'to_epoch': to_epoch, 'to_step': 10 * (to_epoch + 1)}
  return {'kind': 'event', 'step': 10 * (number + 1), 'event': name, 'message': message, **told}


def write(folder, *records):
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
  return workdir.read(folder)


FIRST = [epoch(0, curvature=0.5), epoch(1, curvature=0.25), epoch(2, curvature=0.75, curvature_mean=0.5)]
SECOND = [epoch(1, curvature=0.125), epoch(2, curvature=0.25, curvature_mean=0.375), epoch(3)]


def test_epochs_that_were_left_behind_are_apart(tmp_path):
  steps = [{'kind': 'step', 'step': step, 'epoch': 0} for step in (5, 15, 25)]
  records = [FIRST[0], *steps, *FIRST[1:], event(2, 'went_back', 0), *SECOND, event(3, 'stopped_early', 1)]
  run = write(tmp_path, *records)
  assert run.epochs == (FIRST[0], SECOND[0])
  assert run.left_behind == (tuple(FIRST[1:]), tuple(SECOND[1:]))
  assert [record['step'] for record in run.steps] == [5]
  assert [record['event'] for record in run.events] == ['went_back', 'stopped_early']


def test_lines_of_what_counts_and_of_what_was_left_behind(tmp_path):
  run = write(tmp_path, *FIRST, event(2, 'went_back', 0), *SECOND)
  lines = curvature._lines(run)
  found = [(line.name, line.faint, line.times.tolist(), line.values.tolist()) for line in lines]
  assert found == [
    ('', True, [2, 3], [0.25, 0.75]),
    ('', True, [3], [0.5]),
    ('curvature', False, [1, 2, 3], [0.5, 0.125, 0.25]),
    ('mean', False, [3], [0.375]),
  ]


def test_the_section(tmp_path, parse_page):
  records = [*FIRST, event(2, 'went_back', 0), *SECOND, event(3, 'stopped_early', 1, 'and rose')]
  write(tmp_path, *records)
  parsed = parse_page(report.write(tmp_path).read_text())
  assert 'Largest eigenvalue of ∂²L_val/∂α²' in parsed.text
  assert '<it> rose' in parsed.text
  assert 'and rose' in parsed.text
  for told in ('Pale: what the search left behind.', 'Dotted lines: where it went on from.', 'Dashed: the epoch whose'):
    assert told in parsed.text


def test_a_search_without_curvatures_has_no_section(tmp_path, parse_page):
  assert curvature.section(write(tmp_path, epoch(0), epoch(1))) == ''
  assert 'Curvature' not in parse_page(report.write(tmp_path).read_text()).text


@pytest.mark.parametrize('to_step', [None, 'far', -1, 1.5, True, pytest.param(10**400, id='huge')])
def test_events_that_say_no_step_leave_nothing_behind(tmp_path, to_step, parse_page):
  told = {**event(2, 'went_back', 0), 'to_step': to_step}
  run = write(tmp_path, *FIRST, told, epoch(3, curvature='nan'))
  assert run.left_behind == ()
  assert len(run.epochs) == 4
  assert np.isfinite(curvature._times(run, [told])).all()
  parse_page(report.write(tmp_path).read_text())
