"""Tasks on arrays: the example of docs/tasks.md, its cells against NumPy, steps on several devices, pruned networks."""

import dataclasses
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax import nets, search, spaces, tasks
from darts_jax.nets.array_cell import ArrayCell, flagged
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


def test_an_evaluation_is_the_mean_over_the_whole_half(example):
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
    ({'task': {'name': 'tabular', 'widht': 3}}, 'config.task.widht: unknown field; did you mean config.task.width'),
    ({'strategy': 'pc_darts'}, 'config.strategy.channel_part: it has to be 1; the task tabular has no partial channel'),
  ],
)
def test_what_cannot_be_searched_is_one_line_and_leaves_nothing(example, tmp_path, changes, message):
  config = {**example['get_config']().to_dict(), **changes}
  with pytest.raises(ValueError, match=f'^{message}[^\n]*$'):
    search.run(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
