"""Whole trainings that are stopped or diverge, and what they write."""

import dataclasses
import itertools
import json
import math
import pathlib
import re
import shutil
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import darts_jax
from darts_jax import spaces, training
from darts_jax.data import text as texts
from darts_jax.runtime import loop as loops
from darts_jax.runtime import metrics
from darts_jax.runtime.checkpoint import Checkpoints
from darts_jax.runtime.mesh import make_mesh
from darts_jax.runtime.progress import Progress
from darts_jax.settings import build
from darts_jax.training import language
from darts_jax.training.language import LanguageTraining
from darts_jax.training.language import loop as language_loop

pytestmark = pytest.mark.usefixtures('undrawn', 'same_programs')

EPOCHS = 8
# 2,400 tokens in 8 columns: 300 rows, some 40 steps an epoch.
CONFIG = {
  'task': 'text',
  'epochs': EPOCHS,
  'batch_size': 8,
  'valid_batch_size': 2,
  'bptt': 10,
  'short_fraction': 0.5,
  'spread': 0.0,
  'log_every': 20,
  'network': {'width': 8, 'dropout': {'x': 0.2, 'output': 0.2}},
  'weights': {'learning_rate': 20.0, 'nonmonotone_interval': 2},
  'checkpoint': {'every': 2},
}
# Validation losses by epoch. Averaging begins after epoch 4, whose loss is worse than those of the epochs 0 and 1.
SCRIPT = (3.0, 2.5, 1.5, 2.0, 4.0, 1.4, 2.0, 1.6)


class Killed(BaseException):
  """What no part of the loop knows of."""


def simplify(patch):
  """The compilation cache as the tests have set it up, and the first of eight devices."""
  patch.setattr(language_loop, 'enable_cache', lambda: None)
  patch.setattr(language_loop, 'make_mesh', lambda: make_mesh(1))


@pytest.fixture(autouse=True)
def simplified(monkeypatch):
  """Without a report, which takes longer than an epoch; `finished` has one."""
  simplify(monkeypatch)
  monkeypatch.setattr(language_loop._Loop, 'report', lambda self, folder: folder / 'report.html')


def follow(patch, losses):
  """Validation losses as a script says them, once each epoch has been measured."""
  evaluate = language_loop._Loop.evaluate

  def scripted(self, state, step):
    measured = evaluate(self, state, step)
    loss = losses[self.plan.epoch_ends.index(step)]
    return {**measured, 'valid_loss': loss, 'valid_perplexity': math.exp(loss)}

  patch.setattr(language_loop._Loop, 'evaluate', scripted)


@pytest.fixture
def poison(monkeypatch):
  """Makes weights NaN before the step that follows so many epochs, or before every one from there on."""

  def put(epochs, always=False):
    advance = language_loop._Loop.advance
    seen = []

    def advanced(self, state, num_steps):
      ends = (0, *self.plan.epoch_ends)
      moment = ends[int(epochs)] + int((epochs % 1) * (ends[int(epochs) + 1] - ends[int(epochs)]))
      step = int(state.step)
      if step < moment:
        num_steps = min(num_steps, moment - step)
      elif step == moment or always:
        vector = state.weights.vector
        state = state.replace(weights=state.weights.replace(vector * np.float32(math.nan)))
        seen.append(step)
      return advance(self, state, num_steps)

    monkeypatch.setattr(language_loop._Loop, 'advance', advanced)
    return seen

  return put


def configured(folder, **changes):
  return {**CONFIG, 'data': {'name': 'files', 'dir': str(folder)}, **changes}


def events(workdir, name):
  return [line for line in metrics.read(workdir) if line.get('event') == name]


def kinds(workdir, kind):
  return [line for line in metrics.read(workdir) if line['kind'] == kind]


def last_state(workdir):
  """The last checkpoint, as NumPy arrays."""
  config = json.loads((workdir / 'config.json').read_text())
  settings = build(LanguageTraining, {k: v for k, v in config.items() if k not in ('genotype', 'dataset')})
  trainer = language.LanguageTrainer(settings, language.RecurrentModel.read(workdir), make_mesh(1))
  return Checkpoints(workdir / 'checkpoints').restore(trainer.template()).state


class Finished(NamedTuple):
  """A training whose losses follow the script, which states it tested, and what its writer was told."""

  workdir: pathlib.Path
  result: language.LanguageResult
  tested: list
  told: list


@pytest.fixture(scope='module')
def finished(tmp_path_factory, folder, genotype):
  workdir = tmp_path_factory.mktemp('finished')
  tested = []
  with pytest.MonkeyPatch.context() as patch:
    simplify(patch)
    follow(patch, SCRIPT)
    measure = language_loop._Loop._measure

    def measured(self, part, state, step):
      tested.extend([(int(state.step), int(state.average.num_iterates))] * (part == 'test'))
      return measure(self, part, state, step)

    patch.setattr(language_loop._Loop, '_measure', measured)
    told = []
    writer = types.SimpleNamespace(write=lambda step, values: told.append((step, values)))
    return Finished(workdir, training.run(configured(folder), workdir, genotype, writers=[writer]), tested, told)


def test_a_training_learns_and_writes_what_it_did(finished):
  workdir, result, _, told = finished
  assert {path.name for path in workdir.iterdir()} == {
    'config.json',
    'genotype.json',
    'model.json',
    'metrics.jsonl',
    'tensorboard',
    'checkpoints',
    'best',
    'report.html',
  }
  # That of 20 words by their frequency alone, a sixth of which are `<eos>`, is 18.
  assert result.test_perplexity < 12
  epochs = kinds(workdir, 'epoch')
  assert [line['epoch'] for line in epochs] == list(range(EPOCHS))
  assert list(result.history) == epochs
  assert [(step, values['epoch/valid_loss']) for step, values in told if 'epoch/valid_loss' in values] == [
    (line['step'], line['valid_loss']) for line in epochs
  ]
  assert told[-1][1]['test/loss'] == result.test_loss
  assert epochs[-1]['train_loss'] < epochs[0]['train_loss']
  for line in epochs:
    assert line['train_perplexity'] == pytest.approx(math.exp(line['train_loss']))
  assert {'temporal', 'weights_gradient_norm', 'clipped', 'sequence_length', 'tokens_per_second'} <= set(epochs[0])
  steps = kinds(workdir, 'step')
  assert [line['step'] for line in steps] == list(range(20, epochs[-1]['step'] + 1, 20))
  assert all(line['learning_rate'] == pytest.approx(20 * line['sequence_length'] / 10) for line in steps)
  # 20 words of width 8 with a bias each; 16 × 16 for s₀; 8 × 16 for each of two nodes.
  assert result.num_weights == 20 * 9 + 256 + 2 * 128
  assert events(workdir, 'network')[0]['message'] == '692 parameters'


def test_averaging_begins_once_and_the_best_epoch_is_tested(finished):
  workdir, result, tested, _ = finished
  epochs = kinds(workdir, 'epoch')
  ends = [line['step'] for line in epochs]
  assert [line['step'] for line in events(workdir, 'averaging')] == [ends[4]]
  # When it began, the weights had been measured as they were.
  assert [line['averaging'] for line in epochs] == [0, 0, 0, 0, 0, 1, 1, 1]
  state = last_state(workdir)
  assert int(state.average.num_iterates) == ends[7] - ends[4]
  np.testing.assert_array_equal(state.valid_losses, np.float32(SCRIPT))
  assert tested == [(ends[5], ends[5] - ends[4])]
  (test,) = kinds(workdir, 'test')
  assert (test['averaged'], test['step']) == (1, ends[7])
  assert result.valid_loss == pytest.approx(1.4)
  assert result.valid_perplexity == pytest.approx(math.exp(1.4))


def test_the_test_text_is_read_with_the_weights_that_are_loaded(finished, folder):
  workdir, result, *_ = finished
  apply, variables = darts_jax.load(workdir)
  vocabulary = language.RecurrentModel.read(workdir).vocabulary
  ids = {word: i for i, word in enumerate(vocabulary)}
  words = (folder / 'test.txt').read_text().replace('\n', ' <eos> ').split()
  tokens = np.array([ids[word] for word in words])[:, None]
  log_probabilities, _ = apply(variables, tokens[:-1])
  loss = -np.mean(np.take_along_axis(np.asarray(log_probabilities), tokens[1:, :, None], -1))
  (test,) = kinds(workdir, 'test')
  assert test['loss'] == pytest.approx(loss, rel=1e-5)
  assert (test['loss'], test['perplexity']) == (result.test_loss, result.test_perplexity)
  assert test['perplexity'] == math.exp(test['loss'])
  last = last_state(workdir).evaluated.tree
  assert np.abs(np.asarray(last['embedding']) - np.asarray(variables['params']['embedding'])).max() > 1e-3


def test_a_loaded_model_goes_on_from_a_hidden_state(finished):
  workdir, *_ = finished
  apply, variables = darts_jax.load(workdir)
  tokens = np.arange(12).reshape(6, 2)
  whole, last = apply(variables, tokens)
  left, hidden = apply(variables, tokens[:4])
  right, end = apply(variables, tokens[4:], hidden)
  np.testing.assert_allclose(np.concatenate([left, right]), whole, atol=1e-6)
  np.testing.assert_allclose(end, last, atol=1e-6)
  np.testing.assert_allclose(np.exp(whole).sum(-1), 1, rtol=1e-5)
  assert whole.shape == (6, 2, 20)


def test_killed_trainings_resume_to_the_same_weights_and_log(tmp_path, monkeypatch, folder, genotype, poison):
  """Across the trigger of averaging, and across a rollback, with checkpoints of every other epoch only."""
  follow(monkeypatch, SCRIPT)
  # In the midst of the third epoch, when the best one is the second, and before the third takes its place.
  poison(2.5)
  straight, killed = tmp_path / 'straight', tmp_path / 'killed'
  result = training.run(configured(folder), straight, genotype)
  ends = [line['step'] for line in kinds(straight, 'epoch')]
  monkeypatch.setattr(loops, '_SECONDS_A_CALL', 0.0)  # One step a call.
  update = Progress.update

  def killed_at(moment):
    def updated(self, step, values):
      update(self, step, values)
      if step == moment:
        raise Killed

    return updated

  # Before the rollback; after it, and after an epoch that was better; one step after the trigger; after the best epoch.
  for moment in (ends[1] + 2, ends[2] + 2, ends[4] + 1, ends[5] + 3):
    monkeypatch.setattr(Progress, 'update', killed_at(moment))
    with pytest.raises(Killed):
      training.run(configured(folder), killed, genotype)
  monkeypatch.setattr(Progress, 'update', update)
  resumed = training.run(configured(folder), killed, genotype)
  # Histories hold seconds; what else they hold is compared below.
  assert dataclasses.replace(resumed, report=result.report, history=result.history) == result
  assert result.finished
  states = [last_state(workdir) for workdir in (straight, killed)]
  jax.tree.map(np.testing.assert_array_equal, *(jax.tree.map(_raw, state) for state in states))
  jax.tree.map(np.testing.assert_array_equal, *(training.load(workdir).variables for workdir in (straight, killed)))
  assert int(states[0].rollbacks) == 1

  def logged(workdir):
    lines = [
      line
      for line in metrics.read(workdir)
      if line['kind'] in ('step', 'epoch', 'test') or line.get('event') in ('averaging', 'rolled_back')
    ]
    timing = ('seconds', 'tokens_per_second')
    return [{name: value for name, value in line.items() if name not in timing} for line in lines]

  # Sums are taken in other portions.
  for one, other in zip(logged(straight), logged(killed), strict=True):
    texts = ('kind', 'event', 'message')
    assert [one.pop(name, None) for name in texts] == [other.pop(name, None) for name in texts]
    assert one == pytest.approx(other, rel=1e-5)


def _raw(leaf):
  return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


@pytest.mark.parametrize(
  ('epochs', 'best'),
  [
    # Averaging began after epoch 4, and the best epoch is one before or after.
    (3.5, 2),
    (5.5, 2),
    (6.5, 5),
  ],
)
def test_a_training_that_diverged_goes_on_from_its_best_epoch(
  tmp_path, folder, genotype, poison, monkeypatch, epochs, best
):
  follow(monkeypatch, SCRIPT)
  seen = poison(epochs)
  turned, recovered = [], []
  turn, recover = language_loop._Loop.turn_epoch, language_loop._Loop.recover

  def turning(self, state, evaluation, step):
    turned.append(jax.device_get((state.weights.vector, state.averaging, state.average)))
    return turn(self, state, evaluation, step)

  def recovering(self, state, step):
    after = recover(self, state, step)
    recovered.append(jax.device_get((after.weights.vector, after.averaging, after.average)))
    assert not np.asarray(after.hidden).any()
    # The step whose loss is not finite counts.
    assert int(after.step) == step == seen[0] + 1
    return after

  monkeypatch.setattr(language_loop._Loop, 'turn_epoch', turning)
  monkeypatch.setattr(language_loop._Loop, 'recover', recovering)
  result = training.run(configured(folder), tmp_path, genotype)
  assert len(recovered) == 1
  jax.tree.map(np.testing.assert_array_equal, recovered[0], turned[best])
  assert recovered[0][1] == (best == 5)
  ends = [line['step'] for line in kinds(tmp_path, 'epoch')]
  (event,) = events(tmp_path, 'rolled_back')
  assert event['step'] == seen[0] + 1
  assert event['message'] == (
    f'step {seen[0] + 1}: a loss or gradient is not finite; back to the weights of step {ends[best]}, the best so far'
    ' (1 of 5 times at most)'
  )
  assert result.finished
  assert math.isfinite(result.test_perplexity)
  assert all(math.isfinite(line['train_loss']) for line in kinds(tmp_path, 'epoch'))


def test_an_evaluation_that_is_not_finite_is_made_again_with_the_best_weights(tmp_path, folder, genotype, monkeypatch):
  measure = language_loop._Loop._measure
  calls = itertools.count()
  monkeypatch.setattr(
    language_loop._Loop,
    '_measure',
    lambda self, part, state, step: math.nan if next(calls) == 2 else measure(self, part, state, step),
  )
  training.run(configured(folder), tmp_path, genotype)
  losses = [line['valid_loss'] for line in kinds(tmp_path, 'epoch')]
  assert losses[2] == min(losses[:2])
  assert len(events(tmp_path, 'rolled_back')) == 1


def test_a_training_that_diverges_time_and_again_ends(tmp_path, folder, genotype, poison):
  poison(2.5, always=True)
  with pytest.raises(training.Diverged, match='is not finite; the last good checkpoint is that of step'):
    training.run(configured(folder, max_rollbacks=3), tmp_path, genotype)
  assert len(events(tmp_path, 'rolled_back')) == 3
  assert kinds(tmp_path, 'test') == []
  # The same command may go on from the last checkpoint.
  assert len(kinds(tmp_path, 'epoch')) == 2


def test_a_training_that_diverges_before_anything_is_good_ends(tmp_path, folder, genotype, poison):
  poison(0.5)
  with pytest.raises(training.Diverged, match='is not finite; there is no checkpoint yet'):
    training.run(configured(folder), tmp_path, genotype)
  assert events(tmp_path, 'rolled_back') == []
  with pytest.raises(ValueError, match='best: no checkpoint yet'):
    darts_jax.load(tmp_path)


def test_a_finished_training_is_not_tested_again(tmp_path, finished, folder, genotype, monkeypatch):
  workdir, result, *_ = finished
  shutil.copytree(workdir, tmp_path / 'run')
  path = tmp_path / 'run' / 'metrics.jsonl'
  lines = path.read_text().splitlines()
  assert 'finished' in lines[-1]
  path.write_text('\n'.join(lines[:-1]) + '\n')
  monkeypatch.setattr(language_loop._Loop, '_measure', None)
  again = training.run(configured(folder), tmp_path / 'run', genotype)
  assert dataclasses.replace(again, report=result.report) == result
  assert len(metrics.read(tmp_path / 'run')) == len(lines)


def test_log_of_a_finished_training_lacks_its_test(tmp_path):
  loop = object.__new__(language_loop._Loop)
  loop.folders = [tmp_path]
  for parts, line, lacks in (
    (('valid', 'test'), {'kind': 'event', 'step': 9, 'event': 'finished'}, 'the result of the test'),
    (('valid', 'test'), {'kind': 'test', 'step': 9, 'loss': 1.0}, ''),
    (('valid',), {'kind': 'event', 'step': 9, 'event': 'finished'}, ''),
  ):
    loop._texts = types.SimpleNamespace(parts=parts)
    (tmp_path / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
    assert loop.lacks() == lacks


def test_best_weights_that_are_gone_are_not_replaced_by_others(tmp_path, finished, folder, genotype):
  shutil.copytree(finished.workdir, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'best')
  path = tmp_path / 'run' / 'metrics.jsonl'
  lines = path.read_text().splitlines()
  assert json.loads(lines[-2])['kind'] == 'test'
  path.write_text('\n'.join(lines[:-2]) + '\n')
  with pytest.raises(ValueError, match='--workdir: .*best has lost the checkpoint of the best weights'):
    training.run(configured(folder), tmp_path / 'run', genotype)


def test_a_test_text_that_is_not_to_be_read_may_be_too_short(tmp_path, folder, genotype):
  data = {'name': 'files', 'dir': str(folder), 'test': False}
  config = configured(folder, data=data, test_batch_size=1000)
  result = training.run(config, tmp_path, genotype)
  assert math.isnan(result.test_perplexity)
  assert math.isfinite(result.valid_perplexity)
  assert kinds(tmp_path, 'test') == []


def test_a_training_goes_on_with_the_same_text_only(tmp_path, finished, folder, genotype, monkeypatch):
  shutil.copytree(folder, tmp_path / 'text')
  with (tmp_path / 'text' / 'valid.txt').open('a') as file:
    file.write('w1 w2\n')
  changed = texts.load('files', str(tmp_path / 'text'))
  monkeypatch.setattr(texts, 'load', lambda name, directory: changed)
  before = {path.name: path.read_bytes() for path in finished.workdir.iterdir() if path.is_file()}
  with pytest.raises(ValueError, match='holds a training with another config .config.dataset.valid'):
    training.run(configured(folder), finished.workdir, genotype)
  assert {path.name: path.read_bytes() for path in finished.workdir.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'batch_size': 801}, 'config.batch_size: 801 is too large; the training text of files has 2400 tokens'),
    ({'valid_batch_size': 61}, 'config.valid_batch_size: 61 is too large; the validation text of files has 120 tokens'),
    ({'small_batch_size': 3}, 'config.small_batch_size: 3 is not allowed; it has to divide config.batch_size, which'),
    ({'bptt': 1}, 'config.bptt: 1 is not allowed; it has to be ≥ 2'),
    ({'batchsize': 1}, 'config.batchsize: unknown field; did you mean config.batch_size?'),
    ({'network': {'dropout': {'y': 0.1}}}, 'config.network.dropout.y: unknown field; allowed are words, embedded, x,'),
    ({'network': {'dropout': {'x': 1.0}}}, 'config.network.dropout.x: 1.0 is not allowed; it has to be < 1'),
    ({'task': 'images'}, 'config.valid_batch_size: unknown field'),
    ({'task': 'txt'}, "config.task: 'txt' is not known; allowed are images, text"),
    ({'space': 'recurrent'}, 'config.space: it is called config.task now'),
  ],
)
def test_wrong_settings_are_one_line_and_nothing_is_written(tmp_path, folder, genotype, changes, said):
  with pytest.raises(ValueError, match=f'^{re.escape(said)}'):
    training.run(configured(folder, **changes), tmp_path / 'run', genotype)
  assert list(tmp_path.iterdir()) == []


def test_batches_divide_over_the_devices(tmp_path, folder, genotype, monkeypatch):
  monkeypatch.setattr(language_loop, 'make_mesh', lambda: make_mesh(4))
  with pytest.raises(ValueError, match=r'config.batch_size: 6 does not divide evenly over 4 devices'):
    training.run(configured(folder, batch_size=6), tmp_path, genotype)
  with pytest.raises(ValueError, match=r'config.small_batch_size: 2 does not divide evenly over 4 devices'):
    training.run(configured(folder, small_batch_size=2), tmp_path, genotype)


def test_an_architecture_of_the_other_kind_is_refused(tmp_path, folder, genotype):
  with pytest.raises(
    ValueError, match='^genotype is a convolutional architecture, whose task is images; this config has'
  ):
    training.run(configured(folder), tmp_path, spaces.published()['DARTS_V2'])
  with pytest.raises(ValueError, match='^genotype is a recurrent architecture, whose task is text; this config has'):
    training.run({}, tmp_path, genotype)
  assert list(tmp_path.iterdir()) == []


def test_a_model_of_the_other_kind_is_named(tmp_path, finished):
  workdir, *_ = finished
  with pytest.raises(ValueError, match="no model .its space is 'recurrent'; a convolutional network is needed"):
    training.Model.read(workdir)
  values = json.loads((workdir / 'model.json').read_text())
  for name, value, said in (
    ('width', 0, 'width: 0 is not allowed'),
    ('vocabulary', 'abc', 'vocabulary: not a list of words'),
    ('genotype', spaces.to_json(spaces.published()['DARTS_V2']), 'genotype: a convolutional architecture'),
    ('more', 1, 'more: missing or unknown; a language model has the fields space, genotype, width, vocabulary'),
  ):
    (tmp_path / 'model.json').write_text(json.dumps({**values, name: value}))
    with pytest.raises(ValueError, match=f'model.json: no language model .{re.escape(said)}'):
      darts_jax.load(tmp_path)


def test_perplexities_are_summarised_over_seeds(tmp_path):
  results = [
    language.LanguageResult(
      test, math.log(test), valid, math.log(valid), 1234567, True, False, tmp_path / 'report.html'
    )
    for test, valid in ((60.0, 62.0), (64.0, 66.0))
  ]
  assert list(training.summarise(results)) == [
    'parameters: 1,234,567',
    'validation perplexity: 64.00 ± 2.83 over 2 seeds',
    'test perplexity: 62.00 ± 2.83 over 2 seeds',
    f'report: {tmp_path / "report.html"}',
    f'report: {tmp_path / "report.html"}',
  ]
  assert list(training.summarise(results[:1]))[1] == 'validation perplexity: 62.00'
