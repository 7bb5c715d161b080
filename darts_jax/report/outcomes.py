"""Reads the trials of a search by proposals from its journal, and draws their rewards."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from darts_jax.report import figures, style
from darts_jax.report.workdir import number
from darts_jax.runtime.files import read_json_lines

#: File name of the journal, which `darts_jax.trials.journal` writes.
FILE = 'trials.jsonl'
#: All values of `Trial.status`.
STATUSES = ('done', 'stopped', 'failed', 'pending')

_SIZE = (5.5, 3.1)
# Most trials that a chart draws; of more trials it draws an evenly spaced subset.
_MAX_POINTS = 2000


@dataclasses.dataclass(frozen=True)
class Trial:
  """A proposal and its outcome.

  Attributes:
    number: number of the proposal, from 0.
    arch: the architecture as JSON values.
    parent: number of the proposal that this one was derived from, if there is one.
    status: one of `STATUSES`.
    reward: reward of the evaluation; NaN if there is none.
    seconds: time of the evaluation.
    measures: further results by name.
    test: results on test data by name.
    failure: reason of a failure; empty if the trial has not failed.
  """

  number: int
  arch: Any
  parent: int | None
  status: str = 'pending'
  reward: float = math.nan
  seconds: float = 0.0
  measures: Mapping[str, float] = dataclasses.field(default_factory=dict)
  test: Mapping[str, float] = dataclasses.field(default_factory=dict)
  failure: str = ''


def read(workdir: pathlib.Path) -> tuple[list[Trial], str]:
  """Reads the trials of a journal.

  Returns:
    The trials, first those with an outcome in the order of the outcomes, then pending ones; and one line about anything
    that is missing or broken, empty if nothing is.
  """
  path = workdir / FILE
  if not path.exists():
    return [], f'{FILE} is not there (yet).'
  try:
    lines = read_json_lines(path)
  except ValueError as error:
    return [], f'{FILE} cannot be read: {str(error).removeprefix(f"{path}: ")}'
  pending: dict[int, Trial] = {}
  told: list[Trial] = []
  broken = 0
  for i, line in enumerate(lines):
    line = line if isinstance(line, dict) else {}
    event, count = line.get('event'), line.get('number')
    if event == 'ask' and type(count) is int:
      parent = line.get('parent')
      pending[count] = Trial(count, line.get('arch'), parent if type(parent) is int else None)
    elif event == 'tell' and type(count) is int and count in pending and line.get('status') in STATUSES:
      told.append(_ended(pending.pop(count), line))
    # A killed process may leave its last line broken, which is no error; any other broken line is reported.
    elif event != 'run' and i < len(lines) - 1:
      broken += 1
  return [*told, *pending.values()], f'{broken} broken lines of {FILE} are left out.' if broken else ''


def best(trials: Sequence[Trial]) -> Trial | None:
  """The trial with the highest reward, the lowest number among equal ones; None if no evaluation has succeeded."""
  found = [trial for trial in trials if math.isfinite(trial.reward)]
  return max(found, key=lambda trial: (trial.reward, -trial.number), default=None)


def _ended(trial: Trial, line: Mapping[str, Any]) -> Trial:
  reward = number(line.get('reward'))
  failure = line.get('failure')
  return dataclasses.replace(
    trial,
    status=line['status'],
    reward=math.nan if reward is None or not math.isfinite(reward) else reward,
    seconds=max(_finite(line.get('seconds')), 0.0),
    measures=_numbers(line.get('measures')),
    test=_numbers(line.get('test')),
    failure=failure if isinstance(failure, str) else '',
  )


def _numbers(values: Any) -> dict[str, float]:
  found = values.items() if isinstance(values, Mapping) else ()
  return {name: value for name, each in found if (value := number(each)) is not None}


def _finite(value: Any) -> float:
  found = number(value)
  return found if found is not None and math.isfinite(found) else 0.0


def over_trials(trials: Sequence[Trial], total: int, optimum: float | None, *, percent: bool) -> Figure:
  """Draws rewards in the order of outcomes, and the best reward so far.

  Args:
    trials: trials with an outcome, at least one.
    total: number of trials of the whole search.
    optimum: the highest possible reward, if it is known.
    percent: whether rewards are fractions and are labelled as percentages.
  """
  places = np.arange(1.0, len(trials) + 1)
  figure = _figure(places, trials, optimum, percent, 'trials')
  figure.axes[0].set_xlim(0, max(total, len(trials)) + 0.5)
  figure.axes[0].xaxis.set_major_locator(MaxNLocator(8, integer=True))
  return figure


def over_seconds(trials: Sequence[Trial], optimum: float | None, *, percent: bool) -> Figure:
  """Draws rewards as `over_trials` does, against the total seconds of all evaluations so far."""
  figure = _figure(np.cumsum([trial.seconds for trial in trials]), trials, optimum, percent, 'seconds of evaluations')
  figure.axes[0].set_xlim(left=0)
  return figure


def _figure(times: np.ndarray, trials: Sequence[Trial], optimum: float | None, percent: bool, unit: str) -> Figure:
  drawn = Figure(figsize=_SIZE)
  axes = drawn.add_axes(figures.inches(_SIZE, 0.6, 0.42, _SIZE[0] - 0.6 - 0.95, _SIZE[1] - 0.42 - 0.12))
  figures.clean(axes)
  axes.set_axisbelow(True)
  axes.grid(axis='y', color='#E8ECF1', linewidth=0.8)
  values = np.array([trial.reward for trial in trials])
  sound = np.isfinite(values)
  lines = []
  if sound.any():
    highest = np.maximum.accumulate(np.where(sound, values, -np.inf))
    # The best reward changes at a few trials only; the last point extends the line to the last trial.
    first = int(np.argmax(sound))
    steps = np.unique([first, *(np.flatnonzero(np.diff(highest[first:])) + first + 1), len(values) - 1])
    lines.append(figures.Line(times[steps], highest[steps], style.VERMILION, 'best so far'))
    axes.plot(times[steps], highest[steps], color=style.VERMILION, linewidth=1.6, drawstyle='steps-post', zorder=2)
    for stopped in (False, True):
      chosen = _evenly(sound & (np.array([trial.status == 'stopped' for trial in trials]) == stopped))
      face = 'white' if stopped else style.BLUE
      size = 5 if len(trials) <= 60 else 3
      axes.plot(
        *(times[chosen], values[chosen], 'o'),
        color=face,
        markeredgecolor=style.BLUE,
        markersize=size,
        # Points at an end of the axis are drawn whole.
        clip_on=False,
        zorder=3,
      )
  if optimum is not None:
    axes.axhline(optimum, color=style.GREEN, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1.5)
    lines.append(figures.Line(times[-1:], np.array([optimum]), style.GREEN, 'optimum'))
  figures.name_ends(axes, _SIZE[1], lines)
  figures.cross(axes, times[_evenly(~sound)])
  axes.yaxis.set_major_locator(MaxNLocator(5))
  scale, sign = (100, ' %') if percent else (1, '')
  axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{scale * value:.4g}{sign}'))
  axes.set_xlabel(unit, size=figures.TEXT, color=style.MUTED, labelpad=2)
  return drawn


def _evenly(chosen: np.ndarray) -> np.ndarray:
  """Indices where an array is true; an evenly spaced subset if there are more than `_MAX_POINTS`."""
  places = np.flatnonzero(chosen)
  if len(places) <= _MAX_POINTS:
    return places
  return places[np.linspace(0, len(places) - 1, _MAX_POINTS).round().astype(int)]
