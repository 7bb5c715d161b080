"""The loop of asking and telling: its order, what it is a function of, and that it goes on after any end."""

import dataclasses
import json
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool

import pytest

from darts_jax.settings import build
from darts_jax.spaces.nasbench201 import NasBench201
from darts_jax.strategies.random_search import RandomSearch
from darts_jax.strategies.regularized_evolution import RegularizedEvolution
from darts_jax.strategies.sampled import Proposal
from darts_jax.trials import InProcess, Journal, Trials, run
from darts_jax.trials.journal import FILE, read, signed, tell_line
from darts_jax.trials.loop import Draw, key_of

SPACE = NasBench201()
EVOLUTION = RegularizedEvolution(population=4, sample_size=2)
SETTINGS = Trials(seed=5, trials=12, workers=3)
IN_ORDER = dataclasses.replace(SETTINGS, tell='in_order')


def journaled(folder, strategy, evaluator, settings, executor, **kwargs):
  folder.mkdir(exist_ok=True)
  with Journal(folder) as journal:
    return run(strategy, SPACE, evaluator, settings, executor, journal=journal, **kwargs)


def numbers(result):
  return [outcome.proposal.number for outcome in result.outcomes]


def test_one_worker_asks_and_tells_in_turns(evaluator, tmp_path):
  result = journaled(tmp_path, EVOLUTION, evaluator, Trials(trials=9), InProcess())
  assert result.finished
  assert numbers(result) == list(range(9))
  assert [(line['event'], line['number']) for line in read(tmp_path / FILE)] == [
    (event, number) for number in range(9) for event in ('ask', 'tell')
  ]
  # The loop written out.
  state = EVOLUTION.init(SPACE, key_of(0, Draw.INIT))
  for number in range(9):
    state, proposal = EVOLUTION.ask(state, key_of(0, Draw.PROPOSAL, number))
    outcome = evaluator(proposal)
    assert tell_line(result.outcomes[number]) == tell_line(outcome)
    state = EVOLUTION.tell(state, dataclasses.replace(outcome, test={}))
  assert EVOLUTION.best(result.state) == EVOLUTION.best(state)
  assert [each.proposal for each in result.state.population] == [each.proposal for each in state.population]


def test_no_more_evaluations_run_at_once_than_workers(evaluator, shuffled):
  for settings in (SETTINGS, IN_ORDER):
    executor = shuffled(1)
    result = run(EVOLUTION, SPACE, evaluator, settings, executor)
    assert executor.most == 3
    assert sorted(numbers(result)) == list(range(12))


def test_outcomes_are_told_as_evaluations_end(evaluator, shuffled):
  found, orders = [], set()
  for seed in range(4):
    executor = shuffled(seed)
    result = run(EVOLUTION, SPACE, evaluator, SETTINGS, executor)
    assert numbers(result) == executor.ended
    assert sorted(executor.ended) == list(range(12))
    orders.add(tuple(executor.ended))
    found.append({outcome.proposal.number: outcome.proposal.arch for outcome in result.outcomes})
  assert len(orders) == 4
  # The first ones are random, and nobody's children.
  assert len({tuple(archs[number] for number in range(4)) for archs in found}) == 1
  assert len({tuple(archs[number] for number in range(12)) for archs in found}) > 1


@pytest.mark.parametrize('strategy', [RandomSearch(), EVOLUTION], ids=['random', 'evolution'])
def test_in_order_the_result_is_a_function_of_seed_and_workers(strategy, evaluator, shuffled, tmp_path):
  results, journals, orders = [], set(), set()
  for seed in range(8):
    executor = shuffled(seed)
    results.append(journaled(tmp_path / str(seed), strategy, evaluator, IN_ORDER, executor))
    journals.add((tmp_path / str(seed) / FILE).read_bytes())
    orders.add(tuple(executor.ended))
  assert len(orders) == 8
  assert len(journals) == 1
  assert all(strategy.best(result.state) == strategy.best(results[0].state) for result in results)
  assert numbers(results[0]) == list(range(12))
  # As by one process after the other, which ends what was asked first.
  in_turns = run(strategy, SPACE, evaluator, IN_ORDER, InProcess())
  assert [each.proposal for each in in_turns.outcomes] == [each.proposal for each in results[0].outcomes]


def test_in_order_a_proposal_knows_all_outcomes_but_those_of_the_other_workers(evaluator, shuffled):
  told = []

  class Spy(RandomSearch):
    def ask(self, state, key):
      told.append((state.asked, len(seen)))
      return super().ask(state, key)

    def tell(self, state, outcome):
      seen.append(outcome)
      return super().tell(state, outcome)

  seen = []
  run(Spy(), SPACE, evaluator, IN_ORDER, shuffled(3))
  assert told == [(number, max(number - 2, 0)) for number in range(12)]


def test_strategies_are_not_told_what_was_measured_on_test_data(evaluator, tmp_path):
  seen = []

  class Spy(RandomSearch):
    def tell(self, state, outcome):
      seen.append(outcome)
      return super().tell(state, outcome)

  result = journaled(tmp_path, Spy(), evaluator, SETTINGS, InProcess())
  done = [outcome for outcome in seen if outcome.status != 'failed']
  assert 0 < len(done) < 12
  assert all(not outcome.test and 'number' in outcome.measures for outcome in done)
  told = [line for line in read(tmp_path / FILE) if line['event'] == 'tell']
  assert [line['test'] for line in told] == [dict(outcome.test) for outcome in result.outcomes]
  assert {'test': -1.0} in [line['test'] for line in told]


@pytest.mark.parametrize('settings', [SETTINGS, IN_ORDER], ids=['as completed', 'in order'])
@pytest.mark.parametrize('strategy', [RandomSearch(), EVOLUTION], ids=['random', 'evolution'])
def test_a_run_goes_on_after_a_kill_at_any_line_of_its_journal(strategy, settings, evaluator, tmp_path):
  whole = journaled(tmp_path / 'whole', strategy, evaluator, settings, InProcess())
  content = (tmp_path / 'whole' / FILE).read_bytes()
  lines = content.splitlines(keepends=True)
  assert len(lines) == 25
  cuts = [b''.join(lines[:count]) for count in range(26)]
  # In the middle of a line, and before its end.
  cuts += [cut + line[: -1 - i * 9] for i, (cut, line) in enumerate(zip(cuts[:-1], lines, strict=True)) if i % 2]
  for i, cut in enumerate(cuts):
    folder = tmp_path / str(i)
    folder.mkdir()
    (folder / FILE).write_bytes(cut)
    # What is known after the replay alone is what was told by then.
    halted = journaled(folder, strategy, evaluator, settings, InProcess(), stop=lambda: True)
    told = cut[: cut.rfind(b'\n') + 1].count(b'"event": "tell"')
    assert not halted.finished
    assert list(map(tell_line, halted.outcomes)) == list(map(tell_line, whole.outcomes[:told]))
    resumed = journaled(folder, strategy, evaluator, settings, InProcess())
    assert resumed.finished
    assert (folder / FILE).read_bytes() == content
    assert strategy.best(resumed.state) == strategy.best(whole.state)


@pytest.mark.parametrize('strategy', [RandomSearch(), EVOLUTION], ids=['random', 'evolution'])
@pytest.mark.parametrize('settings', [IN_ORDER, dataclasses.replace(IN_ORDER, workers=8), Trials(seed=5, trials=12)])
def test_a_run_that_has_ended_goes_on_as_if_there_had_been_more_trials_at_first(
  strategy, settings, evaluator, shuffled, tmp_path
):
  whole = journaled(tmp_path / 'whole', strategy, evaluator, settings, shuffled(0))
  content = (tmp_path / 'whole' / FILE).read_bytes()
  fewer = dataclasses.replace(settings, trials=6)
  journaled(tmp_path / 'fewer', strategy, evaluator, fewer, shuffled(1))
  ended = (tmp_path / 'fewer' / FILE).read_bytes().splitlines(keepends=True)
  # Also after a kill while the last outcomes were told.
  for kept in range(len(ended) - 4, len(ended) + 1):
    folder = tmp_path / str(kept)
    folder.mkdir()
    (folder / FILE).write_bytes(b''.join(ended[:kept]))
    executor = shuffled(2)
    result = journaled(folder, strategy, evaluator, dataclasses.replace(settings, trials=8), executor)
    # Nothing that is in the journal is evaluated again.
    told = {json.loads(line)['number'] for line in ended[:kept] if b'"event": "tell"' in line}
    assert sorted(executor.ended) == sorted(set(range(8)) - told)
    assert [tell_line(each) for each in result.outcomes] == [tell_line(each) for each in whole.outcomes[:8]]
    result = journaled(folder, strategy, evaluator, settings, shuffled(3))
    assert result.finished
    assert (folder / FILE).read_bytes() == content
    assert strategy.best(result.state) == strategy.best(whole.state)


def test_evaluations_that_were_pending_are_made_again_by_as_many_workers_as_there_are(evaluator, tmp_path, shuffled):
  journaled(tmp_path, RandomSearch(), evaluator, dataclasses.replace(SETTINGS, trials=6, workers=6), InProcess())
  path = tmp_path / FILE
  asked = b''.join(line for line in path.read_bytes().splitlines(keepends=True) if b'"event": "tell"' not in line)
  path.write_bytes(asked)
  executor = shuffled(4)
  result = journaled(tmp_path, RandomSearch(), evaluator, dataclasses.replace(SETTINGS, trials=6, workers=2), executor)
  assert sorted(numbers(result)) == list(range(6))
  assert executor.most == 2
  # Nothing was asked again.
  assert path.read_bytes()[: len(asked)] == asked
  assert [line['event'] for line in read(path)[6:]] == ['tell'] * 6


def test_a_request_to_stop_keeps_what_has_ended(evaluator, tmp_path):
  calls = []

  def stop():
    calls.append(None)
    return len(calls) > 4

  result = journaled(tmp_path, RandomSearch(), evaluator, SETTINGS, InProcess(), stop=stop)
  assert not result.finished
  assert numbers(result) == [0, 1, 2, 3]
  assert journaled(tmp_path, RandomSearch(), evaluator, SETTINGS, InProcess()).finished


def test_a_journal_of_another_run_is_refused(evaluator, tmp_path):
  journaled(tmp_path, EVOLUTION, evaluator, SETTINGS, InProcess())
  content = (tmp_path / FILE).read_bytes()

  @dataclasses.dataclass(frozen=True)
  class Scaled(type(evaluator)):
    factor: float = 1.0

  scaled = tmp_path / 'scaled'
  journaled(scaled, EVOLUTION, Scaled(), IN_ORDER, InProcess())
  for folder, strategy, other, settings, change in (
    (tmp_path, EVOLUTION, evaluator, dataclasses.replace(SETTINGS, seed=6), 'config.seed: 5 → 6'),
    (tmp_path, EVOLUTION, evaluator, dataclasses.replace(SETTINGS, fit_every=2), 'config.fit_every: 1 → 2'),
    (tmp_path, EVOLUTION, evaluator, IN_ORDER, "config.tell: 'as_completed' → 'in_order'"),
    (tmp_path, RandomSearch(), evaluator, SETTINGS, "config.strategy.class: 'RegularizedEvolution' → 'RandomSearch'"),
    (tmp_path, RegularizedEvolution(3, 2), evaluator, SETTINGS, 'config.strategy.population: 4 → 3'),
    (tmp_path, EVOLUTION, Scaled(), SETTINGS, "config.evaluator.class: 'Numbers' → 'Scaled'"),
    (scaled, EVOLUTION, Scaled(2.0), IN_ORDER, 'config.evaluator.factor: 1.0 → 2.0'),
    (scaled, EVOLUTION, Scaled(), dataclasses.replace(IN_ORDER, workers=2), 'config.workers: 3 → 2'),
  ):
    with pytest.raises(ValueError, match=rf'^{folder / FILE}: of another run: {change}.*; give another folder$'):
      journaled(folder, strategy, other, settings, InProcess())
  with pytest.raises(ValueError, match=rf'^config.trials: 11 is not allowed; {tmp_path / FILE} has 12 proposals'):
    journaled(tmp_path, EVOLUTION, evaluator, dataclasses.replace(SETTINGS, trials=11), InProcess())
  assert (tmp_path / FILE).read_bytes() == content
  # The order of evaluations is not a function of the number of workers alone, and a run may go on to more trials.
  longer = journaled(tmp_path, EVOLUTION, evaluator, dataclasses.replace(SETTINGS, trials=13, workers=2), InProcess())
  assert len(longer.outcomes) == 13
  # It keeps the order in which the evaluations ended.
  assert (tmp_path / FILE).read_bytes().startswith(content)


def test_outcomes_that_are_told_again_are_in_the_file_until_they_are_told(evaluator, tmp_path):
  journaled(tmp_path, EVOLUTION, evaluator, IN_ORDER, InProcess())
  content = (tmp_path / FILE).read_bytes()

  class Killed(BaseException):
    pass

  def kill(state, outcomes):
    # After the first of those that are told again.
    if len(outcomes) == IN_ORDER.trials - IN_ORDER.workers + 2:
      raise Killed

  longer = dataclasses.replace(IN_ORDER, trials=15)
  with Journal(tmp_path) as journal, pytest.raises(Killed):
    run(EVOLUTION, SPACE, evaluator, longer, InProcess(), journal=journal, watch=kill)
  assert (tmp_path / FILE).read_bytes() == content
  journaled(tmp_path, EVOLUTION, evaluator, longer, InProcess())
  journaled(tmp_path / 'whole', EVOLUTION, evaluator, longer, InProcess())
  assert (tmp_path / FILE).read_bytes() == (tmp_path / 'whole' / FILE).read_bytes()


def test_lines_that_are_not_of_the_run_are_refused(evaluator, tmp_path):
  journaled(tmp_path, EVOLUTION, evaluator, SETTINGS, InProcess())
  content = (tmp_path / FILE).read_bytes()
  first, second, *_ = content.splitlines(keepends=True)
  changed = {name: value for name, value in json.loads(second).items() if name != 'crc32'} | {'parent': 3}
  (tmp_path / FILE).write_bytes(content.replace(second, signed(changed)))
  message = rf'^{tmp_path / FILE}: line 2: another proposal than that of this strategy, space and seed$'
  with pytest.raises(ValueError, match=message):
    journaled(tmp_path, EVOLUTION, evaluator, SETTINGS, InProcess())
  (tmp_path / FILE).write_bytes(content.removeprefix(first))
  with pytest.raises(ValueError, match=rf'^{tmp_path / FILE}: line 1 does not say what run this is the journal of'):
    journaled(tmp_path, EVOLUTION, evaluator, SETTINGS, InProcess())
  tell = next(line for line in content.splitlines(keepends=True) if b'"event": "tell"' in line)
  (tmp_path / FILE).write_bytes(content + tell)
  with pytest.raises(ValueError, match=rf'{FILE}: line 26: proposal \d+ is not pending$'):
    journaled(tmp_path, EVOLUTION, evaluator, SETTINGS, InProcess())
  # An outcome that was told twice, among those before which further proposals are asked for.
  ordered = tmp_path / 'ordered'
  journaled(ordered, EVOLUTION, evaluator, IN_ORDER, InProcess())
  *_, last = (ordered / FILE).read_bytes().splitlines(keepends=True)
  with (ordered / FILE).open('ab') as file:
    file.write(last)
  with pytest.raises(ValueError, match=rf'{FILE}: line 26: proposal 11 is not pending$'):
    journaled(ordered, EVOLUTION, evaluator, dataclasses.replace(IN_ORDER, trials=13), InProcess())


def test_damage_is_one_line_that_names_the_file_or_is_found_out(evaluator, tmp_path, complaints):
  journaled(tmp_path, EVOLUTION, evaluator, SETTINGS, InProcess())
  found = complaints(
    lambda path: journaled(path.parent, EVOLUTION, evaluator, SETTINGS, InProcess()), tmp_path / FILE, 200
  )
  assert len(found) > 100


def test_a_lost_process_fails_its_evaluation_alone(evaluator):
  class Losing(InProcess):
    def submit(self, function, /, *args):
      future = super().submit(function, *args)
      if args[1].number == 2:
        future = futures.Future()
        future.set_exception(BrokenProcessPool('A process was terminated\nabruptly'))
      return future

  result = run(RandomSearch(), SPACE, evaluator, SETTINGS, Losing())
  lost = result.outcomes[2]
  assert (lost.status, lost.proposal.number) == ('failed', 2)
  assert lost.failure == 'the process of the evaluation ended: A process was terminated abruptly'
  assert result.finished
  assert sum('process' in outcome.failure for outcome in result.outcomes) == 1


def test_strategies_are_told_the_proposals_that_they_made(evaluator):
  """Also where an evaluator returns only a part of one."""
  seen = []

  class Spy(RandomSearch):
    def ask(self, state, key):
      state, proposal = super().ask(state, key)
      return state, proposal._replace(aux=0.5)

    def tell(self, state, outcome):
      seen.append(outcome.proposal.aux)
      return super().tell(state, outcome)

  class Forgetful(type(evaluator)):
    def __call__(self, proposal):
      return super().__call__(proposal._replace(aux=None))

  run(Spy(), SPACE, Forgetful(), SETTINGS, InProcess())
  assert seen == [0.5] * 12


def test_an_error_that_is_no_failure_ends_the_run(evaluator, tmp_path):
  class Strict(type(evaluator)):
    def __call__(self, proposal):
      if missing and proposal.number == 4:
        raise ValueError('config.data.dir: gone')
      return super().__call__(proposal)

  missing = True
  with pytest.raises(ValueError, match='^config.data.dir: gone$'):
    journaled(tmp_path, RandomSearch(), Strict(), SETTINGS, InProcess())
  missing = False
  assert journaled(tmp_path, RandomSearch(), Strict(), SETTINGS, InProcess()).finished


def test_what_is_shared_is_fitted_before_every_so_many_proposals(evaluator):
  fits = []

  class Shared(type(evaluator)):
    def check(self, space):
      fits.append(space)

    def fit(self, sample):
      fits.append(sample(key_of(0, Draw.PROPOSAL, 99)))

    def __call__(self, proposal):
      fits.append(proposal.number)
      return super().__call__(proposal)

  settings = Trials(trials=6, fit_every=2)
  strategy = RandomSearch()
  run(strategy, SPACE, Shared(), settings, InProcess())
  drawn = strategy.sample(strategy.init(SPACE, key_of(0, Draw.INIT)), key_of(0, Draw.PROPOSAL, 99))
  assert fits == [SPACE, drawn, 0, 1, drawn, 2, 3, drawn, 4, 5]
  # To wait for an outcome is no reason to fit again.
  fits.clear()
  waiting = RegularizedEvolution(population=2, sample_size=1)
  run(waiting, SPACE, Shared(), dataclasses.replace(settings, workers=4), InProcess())
  assert len([each for each in fits if not isinstance(each, int)]) == 1 + 3


def test_a_strategy_that_breaks_the_contract_is_named(evaluator):
  class Waits(RandomSearch):
    def ask(self, state, key):
      return state, None

  class Counts(RandomSearch):
    def ask(self, state, key):
      return state, Proposal(7, self.sample(state, key))

  with pytest.raises(ValueError, match='^config.strategy: .*Waits.* waits for an outcome, but no proposal is pending$'):
    run(Waits(), SPACE, evaluator, SETTINGS, InProcess())
  with pytest.raises(ValueError, match='^config.strategy: .*Counts.* calls proposal 0 number 7$'):
    run(Counts(), SPACE, evaluator, SETTINGS, InProcess())


def test_keys_are_a_function_of_seed_purpose_and_number():
  keys = [key_of(seed, draw, number) for seed in range(3) for draw in Draw for number in range(3)]
  assert len({tuple(key.generate_state(4)) for key in keys}) == len(keys)
  assert (key_of(1, Draw.PROPOSAL, 2).generate_state(4) == key_of(1, Draw.PROPOSAL, 2).generate_state(4)).all()


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'tell': 'late'}, "config.tell: 'late' is not known; .*allowed are .*as_completed.*in_order"),
    ({'trials': 0}, 'config.trials: 0 is not allowed; it has to be ≥ 1'),
    ({'trials': 'x'}, "config.trials: 'x' is not of type int"),
    ({'workers': 0}, 'config.workers: 0 is not allowed; it has to be ≥ 1'),
    ({'workers': 1000}, 'config.workers: 1000 is not allowed; it has to be ≤ 256'),
    ({'fit_every': 0}, 'config.fit_every: 0 is not allowed; it has to be ≥ 1'),
    ({'seed': -1}, 'config.seed: -1 is not allowed; it has to be ≥ 0'),
  ],
)
def test_settings_are_checked_by_whatever_they_are_made(fields, message):
  for make in (
    lambda: build(Trials, fields),
    lambda: Trials(**fields),
    lambda: dataclasses.replace(SETTINGS, **fields),
  ):
    with pytest.raises(ValueError, match=f'^{message}'):
      make()
