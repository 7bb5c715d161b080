"""Tasks on arrays: the example of docs/tasks.md, its cells against NumPy, steps on several devices, pruned networks."""

import dataclasses
import pathlib
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax import nets, search, spaces, tasks
from darts_jax.nets.array_cell import ArrayCell, flagged
from darts_jax.runtime import metrics
from darts_jax.runtime.mesh import make_mesh
from darts_jax.runtime.packed import Packed
from darts_jax.search.searcher import Searcher
from darts_jax.search.settings import Search
from darts_jax.settings import build
from darts_jax.spaces import Mixing, full_cell

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / 'docs' / 'tasks.md').read_text(encoding='utf-8')
[EXAMPLE] = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
REGISTRIES = nets.OPERATIONS, spaces.SPACES, tasks.TASKS


@pytest.fixture(scope='module')
def example():
  """The names of the example; what it registers is gone afterwards."""
  before = [dict(registry) for registry in REGISTRIES]
  names = {}
  exec(EXAMPLE, names)
  yield names
  for registry, entries in zip(REGISTRIES, before, strict=True):
    registry.clear()
    registry.update(entries)


def make(example, num_devices=1, **changes):
  config = {**example['get_config']().to_dict(), 'strategy': {'init_scale': 0.5}, **changes}
  settings = build(Search, config)
  data = settings.task.load()
  searcher = Searcher.open(settings, data, make_mesh(num_devices))
  return searcher, searcher.place([settings.task.halves(data, settings, settings.seed)]), data


def test_the_command_of_the_document(tmp_path):
  (tmp_path / 'tabular.py').write_text(EXAMPLE)
  [block] = re.findall(r'```sh\n(.*?)```', TEXT, re.DOTALL)
  arguments = [sys.executable, *block.split()[1:], '--config.epochs=8', '--config.hypergradient=first_order']
  environment = {'PYTHONPATH': str(ROOT), 'PATH': '/usr/bin:/bin', 'HOME': str(pathlib.Path.home())}
  done = subprocess.run(
    arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
  )
  assert done.returncode == 0, done.stderr
  accuracy = float(re.search(r'validation accuracy in the supernet: ([\d.]+)%', done.stdout)[1])
  # Two classes, of which one has 63 % of the examples.
  assert accuracy > 90
  page = (tmp_path / 'runs' / 'tabular' / 'report.html').read_text()
  assert 'dense_tanh' in page
  assert spaces_of(tmp_path) <= {'skip_connect', 'dense_relu', 'dense_tanh'}


def spaces_of(folder):
  return set(re.findall(r'"(\w+)", \d', (folder / 'runs' / 'tabular' / 'genotype.json').read_text()))


def test_a_cell_is_the_weighted_sum_of_its_modules(example):
  operations = 'none', 'skip_connect', 'dense_relu', 'dense_tanh'
  spec = dataclasses.replace(full_cell(operations, 2, num_inputs=2, output='concat', kept=2), merge='mean')
  cell = ArrayCell('dense', spec, 3)
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(2, 4, 3)).astype(np.float32)
  weights, edges = rng.uniform(size=(5, 4)), rng.uniform(size=5)
  mixing = Mixing(jnp.asarray(weights, jnp.float32), jnp.asarray(edges, jnp.float32))
  variables = cell.init(jax.random.key(0), inputs, mixing, train=False)
  found = cell.apply(variables, inputs, mixing, train=True)
  states, row = list(inputs), 0
  for node in (2, 3):
    total = 0
    for source in range(node):
      images = [np.zeros((4, 3)), states[source]]
      for name, function in (('dense_relu', lambda x: np.maximum(x, 0)), ('dense_tanh', np.tanh)):
        layer = variables['params'][f'dense__{source}_{node}__{name}']['Dense_0']
        images.append(function(states[source] @ layer['kernel'] + layer['bias']))
      total = total + edges[row] * sum(w * image for w, image in zip(weights[row], images, strict=True))
      row += 1
    states.append(total / node)
  np.testing.assert_allclose(found, np.concatenate(states[2:], axis=-1), rtol=1e-5, atol=1e-6)
  # A discrete cell has one operation an edge, as it is.
  discrete = spec.discrete([[('skip_connect', 0), ('none', 1)], [('skip_connect', 1), ('skip_connect', 2)]], (3,))
  single = ArrayCell('dense', discrete, 3).apply({}, inputs, train=False)
  np.testing.assert_allclose(single, (inputs[1] + inputs[0] / 2) / 2, rtol=1e-6)


def noise_in_steps(task, x, key):
  """Random inputs in place of all but those of evaluations."""
  return x if key is None else jax.random.normal(key, x.shape)


def test_an_evaluation_is_the_mean_over_the_whole_half(example, monkeypatch):
  monkeypatch.setattr(tasks.TASKS['tabular'], 'prepare', noise_in_steps)
  searcher, data, _ = make(example)
  state = searcher.init(searcher.keys())
  found = searcher.learner.metrics(jax.device_get(searcher.evaluate(state, data)))
  mixing = searcher.searched.look(state.alphas, state.step, state.key)
  half = jax.device_get(data.valid)
  # 284 examples are no multiple of 32.
  assert len(half.y) % 32
  logits = np.asarray(searcher.learner.net.apply({'params': state.weights.tree}, half.x, mixing, train=False), float)
  log_probs = logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))
  np.testing.assert_allclose(found['loss'], -np.mean(log_probs[np.arange(len(half.y)), half.y]), rtol=1e-5)
  np.testing.assert_allclose(found['accuracy'], np.mean(logits.argmax(1) == half.y), rtol=1e-6)


def test_every_step_and_half_is_prepared_in_its_own_way(example, monkeypatch):
  monkeypatch.setattr(tasks.TASKS['tabular'], 'prepare', noise_in_steps)
  searcher, data, _ = make(example)
  state = searcher.init(searcher.keys())
  found = [jax.jit(searcher.batches)(state.replace(step=jnp.int32(step)), data) for step in (0, 1)]
  drawn = np.concatenate([half.x for halves in found for half in halves])
  assert len(np.unique(drawn, axis=0)) == len(drawn) == 4 * 32


def test_a_later_supernet_reads_the_examples_of_the_later_epochs(example):
  searcher, data, _ = make(example, strategy={'name': 'sgas', 'batch_growth': 0})
  later = searcher.restage(searcher.searched, 2)
  state = searcher.init(searcher.keys()).replace(step=jnp.int32(searcher.epoch_ends[1] + 1))
  expected, found = (jax.device_get(jax.jit(each.batches)(state, data)) for each in (searcher, later))
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize('strategy', ['darts', 'gdas'])
def test_one_device_and_eight_take_the_same_steps(example, strategy):
  found = []
  for devices in (1, 8):
    searcher, data, _ = make(example, devices, strategy={'name': strategy, 'init_scale': 0.5})
    state, sums = searcher.run(searcher.init(searcher.keys()), data, jnp.int32(3))
    found.append((jax.device_get((state.weights.vector, state.alphas)), float(sums['train_loss'])))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), *found)


def test_what_was_not_drawn_stays(example):
  searcher, data, _ = make(example, strategy={'name': 'gdas', 'init_scale': 0.5}, weights={'weight_decay': 0.1})
  before = searcher.init(searcher.keys())
  weights = jax.device_get(before.weights.tree)
  after, _ = searcher.run(before, data, jnp.int32(1))
  changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), weights, jax.device_get(after.weights.tree))
  modules = changed['ArrayCell_0']
  moved = {name for name, module in modules.items() if any(jax.tree.leaves(module))}
  # On every edge one of four operations was drawn, two of which have weights.
  for edge in {name.rsplit('__', 1)[0] for name in modules}:
    assert sum(name.startswith(f'{edge}__') for name in moved) <= 1
  assert 0 < len(moved) < len(modules)
  assert all(jax.tree.leaves(changed['Dense_0']))


def test_a_smaller_network_inherits_what_is_left(example):
  strategy = {'name': 'sgas', 'warmup_epochs': 0, 'decision_frequency': 1, 'batch_growth': 0, 'init_scale': 0.5}
  searcher, _, _ = make(example, strategy=strategy)
  state = searcher.init(searcher.keys())
  decided = searcher.searched.recall({'decisions': [[0, 'dense', 1, 'dense_tanh']], 'past': {}})
  smaller = searcher.restage(decided, 1)
  after = smaller.inherit(state, searcher)
  whole, left = state.weights.tree, after.weights.tree
  # The second edge into its node is decided; with one edge kept the other is gone.
  names = {name.split('__')[1:][0] for name in left['ArrayCell_0']}
  assert '0_2' in names
  assert '1_2' not in names
  assert 'dense__0_2__dense_relu' not in left['ArrayCell_0']
  for name, module in left['ArrayCell_0'].items():
    jax.tree.map(np.testing.assert_array_equal, module, whole['ArrayCell_0'][name])
  jax.tree.map(np.testing.assert_array_equal, left['Dense_1'], whole['Dense_1'])


def test_flags_are_those_of_modules():
  spec = full_cell(('none', 'a', 'b'), 1, num_inputs=2, output='last', kept=1)
  variables = {'head': np.zeros(2), 'cell__0_2__b': {'kernel': np.zeros((2, 2))}, 'cell__1_2__a': {'bias': np.zeros(3)}}
  flags = np.array([[False, True, False], [False, True, True]])
  found = flagged({'cell': spec}, variables, {'cell': flags})
  tree = Packed.pack(variables).replace(found).tree
  assert tree['head'].all()
  assert not tree['cell__0_2__b']['kernel'].any()
  assert tree['cell__1_2__a']['bias'].all()
  assert flagged({'cell': spec}, variables, {'cell': None}) is None


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'batch_size': 512}, 'config.batch_size: 512 is larger than the train half of tabular, which has 285 examples'),
    ({'task': {'name': 'tabular', 'width': 0}}, 'config.task.width: 0 is not allowed; it has to be ≥ 1'),
    ({'task': {'name': 'tabular'}, 'width': 3}, 'config.width: unknown field; did you mean config.task.width?'),
    ({'task': {'name': 'tabular', 'widht': 3}}, 'config.task.widht: unknown field; did you mean config.task.width'),
    ({'strategy': 'pc_darts'}, 'config.strategy.channel_part: it has to be 1; the task tabular has no partial channel'),
  ],
)
def test_what_cannot_be_searched_is_one_line_and_leaves_nothing(example, tmp_path, changes, message):
  config = {**example['get_config']().to_dict(), **changes}
  with pytest.raises(ValueError, match=f'^{message}[^\n]*$'):
    search.run(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@dataclasses.dataclass(frozen=True)
class Regression(tasks.ArrayTask):
  """A made-up task, whose methods tests replace."""

  name = 'regression'

  def load(self):
    x = np.linspace(-1, 1, 400, dtype=np.float32).reshape(100, 4)
    return tasks.Arrays(x, x.sum(axis=1), 1)

  def network(self, data, cells):
    return Head(cells['dense'])

  def loss(self, outputs, targets):
    return (outputs[:, 0] - targets) ** 2

  def measures(self, outputs, targets):
    return {'absolute': jnp.abs(outputs[:, 0] - targets)}


class Head(nn.Module):
  spec: object

  @nn.compact
  def __call__(self, x, mixing, *, train):
    return nn.Dense(1)(ArrayCell('dense', self.spec, 4)([x], mixing['dense'], train=train))


@pytest.fixture
def regression(example, monkeypatch):
  del example
  monkeypatch.setitem(tasks.TASKS, 'regression', Regression)
  return {'space': 'dense', 'task': 'regression', 'batch_size': 16, 'epochs': 2, 'hypergradient': 'first_order'}


def test_a_task_with_a_loss_of_its_own_is_measured_by_it(regression, tmp_path, capsys):
  from darts_jax.commands import search as command

  assert command.run(regression, tmp_path) == 0
  assert re.search(r'^validation loss of the supernet: [\d.e-]+$', capsys.readouterr().out, re.MULTILINE)
  line = [line for line in metrics.read(tmp_path) if line['kind'] == 'epoch'][-1]
  # Of numbers between −4 and 4, on average the square is at least the square of the average.
  assert 0 < line['valid_absolute'] ** 2 <= line['valid_loss'] < 16


@pytest.mark.parametrize(
  ('method', 'function', 'message'),
  [
    (
      'loss',
      lambda self, o, t: (o - t[:, None]) ** 2,
      'task regression: loss gives (2, 1); one number is wanted for eac',
    ),
    ('loss', lambda self, o, t: jnp.mean(o), 'task regression: loss gives (); one number is wanted for each of 2'),
    (
      'measures',
      lambda self, o, t: {'a': o},
      'task regression: a gives (2, 1); one number is wanted for each of 2 exa',
    ),
    ('measures', lambda self, o, t: {'loss': t}, "task regression: a measure cannot be called 'loss'; letters, digits"),
    (
      'measures',
      lambda self, o, t: {'a b': t},
      "task regression: a measure cannot be called 'a b'; letters, digits and",
    ),
    (
      'network',
      lambda self, data, cells: Head(cells['normal']),
      'config.task.name: the supernet of regression on the s',
    ),
    (
      'load',
      lambda self: (np.zeros((9, 2)), np.zeros(9), 1),
      'data: load() of the task regression has to give Arrays(',
    ),
    (
      'load',
      lambda self: tasks.Arrays(np.zeros((90, 4)), np.zeros(80), 1),
      'data: 90 inputs and 80 targets; there has',
    ),
    (
      'load',
      lambda self: tasks.Arrays(np.array(['a'] * 90), np.zeros(90), 1),
      'data: x is <U1[90]; it has to be number',
    ),
    (
      'load',
      lambda self: tasks.Arrays(np.full(90, 2**40), np.zeros(90), 1),
      'data: x is int64[90]; it has to be number',
    ),
  ],
)
def test_what_a_task_gives_is_checked_before_anything_is_written(
  regression, tmp_path, monkeypatch, method, function, message
):
  monkeypatch.setattr(Regression, method, function)
  with pytest.raises(ValueError, match=f'^{re.escape(message)}') as caught:
    search.run(regression, tmp_path / 'run')
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'remat': True}, 'config.remat: True is not allowed; the task tabular has False'),
    ({'batch_norm': {'group_size': 4}}, 'config.batch_norm.group_size: 4 is not allowed; the task tabular has 0'),
    (
      {'space': 'darts'},
      'config.task.name: the supernet of tabular on the space darts cannot be built or computed (Ke',
    ),
    ({'task': {'name': 'tabular', 'validation_fraction': 1e-9}}, 'config.task.validation_fraction is 1e-09, which lea'),
    (
      {'strategy': {'name': 'sgas', 'warmup_epochs': 0, 'decision_frequency': 1, 'batch_growth': 160}, 'epochs': 6},
      'config.batch_size: 32 grows to 352 by the decisions, which is more than half of the examples (284 examples in',
    ),
  ],
)
def test_settings_without_effect_and_networks_that_do_not_fit_are_refused(example, tmp_path, changes, message):
  config = {**example['get_config']().to_dict(), **changes}
  with pytest.raises(ValueError, match=f'^{re.escape(message)}'):
    search.run(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_whole_numbers_are_not_rounded_in_bfloat16(regression, monkeypatch, tmp_path):
  class Embedded(nn.Module):
    spec: object

    @nn.compact
    def __call__(self, x, mixing, *, train):
      return nn.Dense(1)(ArrayCell('dense', self.spec, 4)([nn.Embed(500, 4)(x)], mixing['dense'], train=train))

  ids = np.arange(500, dtype=np.int64)
  monkeypatch.setattr(Regression, 'load', lambda self: tasks.Arrays(ids, np.sin(ids), 1))
  monkeypatch.setattr(Regression, 'network', lambda self, data, cells: Embedded(cells['dense']))
  result = search.run({**regression, 'precision': 'bfloat16', 'epochs': 1}, tmp_path)
  assert np.isfinite(result.valid_loss)


@pytest.mark.parametrize(
  ('x', 'y'),
  [
    (np.zeros((40, 3)), np.zeros((40, 1), int)),
    (np.zeros((2, 3)), np.array([0, 2**40])),
    (np.zeros((2, 3)), np.array([0, -1])),
    (3, 4),
    ([[1, 2], [3]], [0, 1]),
    (np.array([['a'], ['b']]), [0, 1]),
    (np.zeros((3, 3)), [0, 1]),
  ],
)
def test_arrays_that_are_handed_over_are_checked(example, x, y):
  with pytest.raises(ValueError, match=r'^data: [^\n]+$'):
    example['Tabular']().given(x, y)


def test_names_of_spaces_are_their_keys_and_tasks_may_have_several(example, monkeypatch):
  monkeypatch.setitem(tasks.TASKS, 'twice', tasks.ImageTask)
  assert build(Search, {'task': 'twice'}).task == tasks.ImageTask()
  monkeypatch.setitem(spaces.SPACES, 'other', example['DenseCells'])
  monkeypatch.delitem(spaces.SPACES, 'dense')
  message = "^config.space.name: DenseCells has the name 'dense', which has to be its key in SPACES$"
  with pytest.raises(ValueError, match=message):
    build(Search, {'space': 'other', 'task': 'tabular'})
  monkeypatch.setattr(example['DenseCells'], 'task', 'tabluar')
  with pytest.raises(
    ValueError, match="^config.task: 'tabluar', that of the space dense, is not known; there are images"
  ):
    build(Search, {'space': 'other'})
  # What a space sets is of the networks that it has in its own task.
  assert build(Search, {'space': 'nasbench201', 'task': 'tabular'}).batch_norm == Search().batch_norm


def test_operations_with_any_name_have_flags():
  spec = full_cell(('none', 'my-op.2'), 1, num_inputs=1, output='last', kept=1)
  variables = {'cell__0_1__my-op.2': {'kernel': np.zeros(2)}}
  found = flagged({'cell': spec}, variables, {'cell': np.array([[True, False]])})
  np.testing.assert_array_equal(found, False)
  with pytest.raises(ValueError, match='^array cell cell: the space has no cell of this name, only other$'):
    flagged({'other': spec}, variables, {'other': np.array([[True, False]])})
