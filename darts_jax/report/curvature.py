"""The section on the curvature of the loss in the architecture parameters, and on the decisions based on it."""

import numpy as np

from darts_jax.report import figures, html, sections, style
from darts_jax.report.curves import Panel
from darts_jax.report.figures import Line
from darts_jax.report.workdir import WENT_BACK, Record, Run, returned_to, series

_SIZE = (7.5, 3.1)


def section(run: Run) -> str:
  """The section with curvatures over epochs, and when the search went back or stopped; empty if the log has none."""
  lines = _lines(run)
  made = [event for event in run.events if event['event'] in WENT_BACK]
  if not lines:
    return ''
  found = [(event['event'], float(time)) for event, time in zip(made, _times(run, made), strict=True)]
  figure = figures.chart(
    lines,
    run.time_unit,
    _SIZE,
    from_zero=True,
    marks=[time for event, time in found if event == 'went_back'],
    notes=[(time, 'returned') for event, time in found if event == 'stopped_early'][-1:],
  )
  title = 'Largest eigenvalue of ∂²L_val/∂α²'
  lead = (
    'It is computed on one batch of the architecture’s half, in all architecture parameters together. Where it is'
    ' large, the architecture that is read off the weights tends to be much worse than the supernet (Zela et al. 2020).'
  )
  if run.left_behind:
    lead += ' Pale: what the search left behind.'
  if any(event == 'went_back' for event, _ in found):
    lead += ' Dotted lines: where it went on from.'
  if any(event == 'stopped_early' for event, _ in found):
    lead += ' Dashed: the epoch whose architecture it returned when it stopped.'
  items = ''.join(f'<li>{html.escape(html.text(event.get("message", "")))}</li>' for event in made)
  told = f'<ul>{items}</ul>' if items else ''
  charts = sections.panels([Panel('curvature', title, figure)])
  return html.section('Curvature', f'<div class="stack">{charts}{told}</div>', lead)


def _lines(run: Run) -> list[Line]:
  """Lines of curvatures, and on top of them lines of their means, if the log has any."""
  found = []
  for records in run.left_behind:
    found += _line(run, records, 'curvature', '', faint=True)
    found += _line(run, records, 'curvature_mean', '', faint=True, color=style.VERMILION)
  found += _line(run, run.epochs, 'curvature', 'curvature')
  return found + _line(run, run.epochs, 'curvature_mean', 'mean', color=style.VERMILION)


def _line(
  run: Run, records: tuple[Record, ...], metric: str, name: str, faint: bool = False, color: str = style.BLUE
) -> list[Line]:
  steps, values = series(records, metric)
  return [Line(run.times(steps), values, color, name, faint)] if np.isfinite(values).any() else []


def _times(run: Run, events: list[Record]) -> np.ndarray:
  """For each event, the time of the epoch that the search went back to, or whose architecture it returned."""
  steps = [event['step'] if (step := returned_to(event)) is None else step for event in events]
  return run.times(np.array(steps, float))
