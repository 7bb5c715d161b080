"""The report of a search by proposals as one HTML page without outside resources or scripts."""

import dataclasses
import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from darts_jax import spaces
from darts_jax.report import curves, html, outcomes, sections
from darts_jax.report.outcomes import Trial
from darts_jax.report.workdir import Run, last, number

# Most rows of the table, which shows the last trials.
_MAX_ROWS = 1000
# HTML attributes of the table's cells, by whether they are right-aligned.
_KINDS = {True: ' class="number"', False: ''}


def render(run: Run) -> str:
  """The page of a search by proposals; equal files, including `trials.jsonl`, give equal bytes."""
  trials, problem = outcomes.read(run.path)
  best = _best(run, trials)
  evaluator = _evaluator(run)
  subject = html.text(evaluator.dataset or evaluator.setting('dataset') or run.setting('space') or 'Unnamed space')
  facts = {
    'Strategy': run.setting('strategy'),
    'Space': run.setting('space'),
    'Evaluator': run.setting('evaluator'),
    'Epochs each': evaluator.num_epochs,
    'Workers': run.setting('workers'),
    'Seed': run.setting('seed'),
  }
  earlier = len(run.tests)
  if trials:
    # A search that went on to more trials has the test of the best of fewer, too.
    ended = sum(trial.status != 'pending' for trial in trials)
    run = dataclasses.replace(run, tests=tuple(record for record in run.tests if record['step'] == ended))
  earlier -= len(run.tests)
  body = ''.join(
    [
      sections.headline(run, 'Architecture search', subject, facts, _tiles(run, trials, best)),
      sections.warnings(list(_warnings(trials))),
      _architecture(run, best),
      _rewards(run, trials, problem),
      _benchmark(run),
      _table(run, trials, best, problem, earlier),
      _usage(run),
      sections.comparison(run),
      sections.events(run),
      sections.config(run),
    ]
  )
  return html.document(f'{subject} – {html.text(run.setting("strategy") or "search")}', body)


def is_search(run: Run) -> bool:
  """Whether the settings of a run are those of a search by proposals."""
  return run.config is not None and 'evaluator' in run.config


def _evaluator(run: Run) -> Run:
  """A copy of the run that has only the settings of its evaluator."""
  settings = (run.config or {}).get('evaluator')
  return dataclasses.replace(run, config=settings if isinstance(settings, Mapping) else {})


def _best(run: Run, trials: Sequence[Trial]) -> Trial | None:
  """The best trial with the architecture in `genotype.json`, or the best of all if there is no such trial."""
  if run.genotype is not None and run.genotype.space in spaces.SPACES:
    values = spaces.to_json(run.genotype)
    found = outcomes.best([trial for trial in trials if trial.arch == values])
    if found is not None:
      return found
  return outcomes.best(trials)


def _measure(run: Run) -> str:
  """The name of the reward in the log."""
  names = (name for record in run.steps for name in record if name.startswith('best_'))
  return next(names, 'best_reward').removeprefix('best_')


def _is_accuracy(run: Run) -> bool:
  return 'accuracy' in _measure(run)


def _shown(run: Run, value: float) -> str:
  return f'{100 * value:.2f} %' if _is_accuracy(run) else f'{value:,.6g}'


def _named(run: Run) -> str:
  return sections.measured(_measure(run)).capitalize()


def _tiles(run: Run, trials: Sequence[Trial], best: Trial | None) -> Iterator[tuple[str, str]]:
  optimum = last(run.steps, 'optimum')
  small = '' if optimum is None else f', the optimum is {_shown(run, optimum)}'
  yield (
    f'Best {html.escape(_named(run).lower())}',
    '–' if best is None else f'{_shown(run, best.reward)} <small>trial {best.number}{small}</small>',
  )
  test = last(run.tests, 'accuracy')
  if test is not None:
    yield 'Its test accuracy', f'{100 * test:.2f} %'
  for name, value in best.test.items() if best is not None and run.status == 'finished' else ():
    if 'accuracy' in name:
      highest = last(run.steps, f'optimum_{name}')
      small = '' if highest is None else f' <small>at most {100 * highest:.2f} %</small>'
      yield f'Its {html.escape(sections.measured(name))}', f'{100 * value:.2f} %{small}'
  total = number(run.setting('trials'))
  ended = sum(trial.status != 'pending' for trial in trials)
  yield 'Trials', f'{ended:,}' + ('' if total is None else f' <small>of {total:,.0f}</small>')
  yield 'Time of evaluations', html.duration(sum(trial.seconds for trial in trials))


def _warnings(trials: Sequence[Trial]) -> Iterator[str]:
  failed = [str(trial.number) for trial in trials if trial.status == 'failed']
  if failed:
    shown = ', '.join(failed[:10]) + (', …' if len(failed) > 10 else '')
    yield f'{len(failed)} of {len(trials)} evaluations failed (trials {shown}); the table below says why.'


def _architecture(run: Run, best: Trial | None) -> str:
  if run.genotype is None:
    return sections.architecture(None, run.problems.get('genotype.json', 'There is no architecture yet.'))
  which = '' if best is None else f': trial {best.number}, the best so far'
  return sections.architecture(run.genotype, f'As in <code>genotype.json</code>{which}.')


def _rewards(run: Run, trials: Sequence[Trial], problem: str) -> str:
  title = 'Best so far'
  told = [trial for trial in trials if trial.status != 'pending']
  if not told:
    return html.section(title, html.absent(problem or 'No evaluation has ended yet.'))
  optimum, percent = last(run.steps, 'optimum'), _is_accuracy(run)
  total = number(run.setting('trials')) or len(told)
  named = _named(run)
  described = f'{named} of every trial and the best so far, over'
  figure = outcomes.over_trials(told, int(min(total, 10**6)), optimum, percent=percent)
  parts = [html.figure(figure, 'over-trials', f'{named} over trials', f'{described} trials.')]
  if any(trial.seconds for trial in told):
    figure = outcomes.over_seconds(told, optimum, percent=percent)
    parts.append(html.figure(figure, 'over-seconds', f'{named} over seconds', f'{described} seconds.'))
  lead = 'Trials stand in the order in which their evaluations were told to the strategy.'
  if len(parts) == 1:
    lead += ' Evaluations took no time, so that there is no chart over seconds.'
  else:
    lead += ' Seconds are those of all evaluations before, and of all workers.'
  lead += ' Crosses: failed.' if any(trial.status == 'failed' for trial in told) else ''
  lead += ' Hollow: stopped early, the reward is an estimate.' if any(t.status == 'stopped' for t in told) else ''
  return html.section(title, f'<div class="grid wide">{"".join(parts)}</div>', lead)


def _benchmark(run: Run) -> str:
  """The section with the accuracies of the best architectures in a benchmark; empty if the log has none."""
  charts = list(curves.benchmark(run))
  lead = (
    'The accuracy of the best architecture so far, after every outcome, as a table of trainings from scratch has it;'
    ' neither the strategy nor the rewards know it.'
  )
  return (
    html.section('In the benchmark', f'<div class="grid wide">{sections.panels(charts)}</div>', lead) if charts else ''
  )


def _table(run: Run, trials: Sequence[Trial], best: Trial | None, problem: str, earlier: int) -> str:
  title = 'All trials'
  if not trials:
    return html.section(title, html.absent(problem or 'Nothing has been proposed yet.'))
  shown = trials[-_MAX_ROWS:]
  has_parents = any(trial.parent is not None for trial in shown)
  has_parameters = any('parameters' in trial.measures for trial in shown)
  has_texts = any(isinstance(trial.arch, str) for trial in shown)
  columns = {
    'Trial': True,
    'Status': False,
    html.escape(_named(run)): True,
    **({'Parameters': True} if has_parameters else {}),
    'Seconds': True,
    **({'Parent': True} if has_parents else {}),
    **({'Architecture': False} if has_texts else {}),
  }
  rows = []
  for trial in shown:
    cells: list[Any] = [_link(run, trial), _status(trial), _dash(trial.reward, _shown(run, trial.reward))]
    if has_parameters:
      count = trial.measures.get('parameters', math.nan)
      cells.append(_dash(count, f'{count:,.0f}'))
    cells.append('–' if trial.status == 'pending' else f'{trial.seconds:,.1f}')
    if has_parents:
      cells.append('–' if trial.parent is None else f'{trial.parent}')
    if has_texts:
      cells.append(f'<code>{html.escape(html.text(trial.arch))}</code>')
    if trial is best:
      cells = [f'<b>{cell}</b>' for cell in cells]
    drawn = (f'<td{_KINDS[right]}>{cell}</td>' for cell, right in zip(cells, columns.values(), strict=True))
    rows.append(f'<tr>{"".join(drawn)}</tr>\n')
  head = ''.join(f'<th{_KINDS[right]}>{name}</th>' for name, right in columns.items())
  table = f'<table class="results"><thead><tr>{head}</tr></thead>\n<tbody>{"".join(rows)}</tbody></table>'
  return html.section(title, table + (html.absent(problem) if problem else ''), _explained(run, trials, earlier))


def _link(run: Run, trial: Trial) -> str:
  """The number of a trial, as a link to the report of its training if there is one."""
  page = f'trials/{trial.number}/report.html'
  return f'<a href="{page}">{trial.number}</a>' if (run.path / page).is_file() else f'{trial.number}'


def _status(trial: Trial) -> str:
  return html.escape(f'{trial.status}: {trial.failure}' if trial.failure else trial.status)


def _dash(value: float, shown: str) -> str:
  return shown if math.isfinite(value) else '–'


def _explained(run: Run, trials: Sequence[Trial], earlier: int) -> str:
  counts = Counter(trial.status for trial in trials)
  lead = ', '.join(f'{counts[status]:,} {status}' for status in outcomes.STATUSES if counts[status])
  lead = f'{lead[:1].upper()}{lead[1:]}.'
  if len(trials) > _MAX_ROWS:
    lead += f' The table has the last {_MAX_ROWS:,}; all of them are in <code>{outcomes.FILE}</code>.'
  if (run.path / 'trials').is_dir():
    lead += ' The number of a trial leads to the page of its training.'
  lead += ' The best of several is chosen by its reward, which is therefore rather too high.'
  if run.tests:
    page = 'pick/report.html'
    trained = f'<a href="{page}">trained again</a>' if (run.path / page).is_file() else 'measured'
    lead += f' It was {trained}, and the test data were read once, at the end'
    lead += f'; they had been read {earlier} times before, when the search had fewer trials.' if earlier else '.'
  return lead


def _usage(run: Run) -> str:
  title = 'Use this architecture'
  if run.genotype is None:
    return html.section(title, html.absent('There is no architecture yet.'))
  path = str(run.path / 'genotype.json')
  parts = {
    'Train it from scratch': sections.training_command(run, path),
    'Draw and count it': f'darts-jax describe --genotype={shlex.quote(path)} --draw=cells.svg',
  }
  if run.tests and (run.path / 'pick').is_dir():
    call = (
      'log_probabilities, hidden = apply(variables, tokens, hidden)'
      if run.reads_text
      else 'logits = apply(variables, images)  # raw images [N, H, W, C], as in the dataset'
    )
    parts['Take the network that was tested'] = f"""import darts_jax

apply, variables = darts_jax.load({str(run.path / 'pick')!r})
{call}"""
  return html.section(
    title, '\n'.join(f'<h3>{name}</h3>\n<pre>{html.escape(content)}</pre>' for name, content in parts.items())
  )
