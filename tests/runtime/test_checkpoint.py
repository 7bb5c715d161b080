import dataclasses
import json
import logging
import os
import pathlib
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import darts_jax.runtime.checkpoint
from darts_jax.runtime.checkpoint import Checkpoints

REPOSITORY = pathlib.Path(darts_jax.runtime.checkpoint.__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class State:
  step: jax.Array
  params: dict
  optimizer: tuple
  key: jax.Array


jax.tree_util.register_dataclass(State, ['step', 'params', 'optimizer', 'key'], [])

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9), optax.scale_by_adam())


def make_state(step):
  params = {
    'dense': {'kernel': jnp.arange(12.0).reshape(3, 4) + step, 'a.b/c': jnp.full(3, step, jnp.bfloat16)},
    'counts': (jnp.full((2, 2), step, jnp.int32), jnp.array([True, False])),
    'unused': jnp.zeros((0, 5)),
    'host': np.full(2, step, np.float64),
  }
  return State(jnp.int32(step), params, OPTIMIZER.init(params), jax.random.key(step))


def assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for got, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    if jnp.issubdtype(wanted.dtype, jax.dtypes.prng_key):
      assert jax.random.key_impl(got) == jax.random.key_impl(wanted)
      np.testing.assert_array_equal(jax.random.key_data(got), jax.random.key_data(wanted))
    else:
      np.testing.assert_array_equal(got, wanted)


def run(script, *args, **environment):
  environment = os.environ | {'PYTHONPATH': str(REPOSITORY), 'JAX_PLATFORMS': 'cpu'} | environment
  return subprocess.run(
    [sys.executable, '-c', script, *map(str, args)], env=environment, capture_output=True, text=True, check=True
  ).stdout


def files_below(directory):
  return sorted(path for path in directory.rglob('*') if path.is_file())


def read_manifest(checkpoint):
  return json.loads((checkpoint / 'manifest.json').read_text())


def change_manifest(checkpoint, **changes):
  (checkpoint / 'manifest.json').write_text(json.dumps(read_manifest(checkpoint) | changes))


def test_state_comes_back_bit_for_bit(tmp_path):
  state = make_state(7)
  Checkpoints(tmp_path).save(7, state, {'epoch': 1, 'best': 0.25, 'cells': ['normal', 'reduce']})
  restored = Checkpoints(tmp_path).restore(state)
  assert (restored.step, restored.damaged) == (7, ())
  assert restored.metadata == {'epoch': 1, 'best': 0.25, 'cells': ['normal', 'reduce']}
  assert_same(restored.state, state)
  # The key goes on to draw what it would have drawn.
  assert jax.random.bits(restored.state.key) == jax.random.bits(jax.random.key(7))
  assert isinstance(restored.state.params['host'], np.ndarray)


def test_template_may_be_abstract(tmp_path):
  state = {'weights': jnp.arange(6.0).reshape(2, 3), 'keys': jax.random.split(jax.random.key(3, impl='rbg'), 4)}
  Checkpoints(tmp_path).save(3, state, {})
  template = {'weights': jax.ShapeDtypeStruct((2, 3), jnp.float32), 'keys': jax.eval_shape(lambda: state['keys'])}
  restored = Checkpoints(tmp_path).restore(template)
  assert_same(restored.state, state)


def test_restored_state_can_be_donated(tmp_path):
  state = {'weights': jnp.arange(1024.0)}
  Checkpoints(tmp_path).save(1, state, {})
  step = jax.jit(lambda state: jax.tree.map(lambda leaf: 2 * leaf, state), donate_argnums=0)
  doubled = step(step(Checkpoints(tmp_path).restore(state).state))
  np.testing.assert_array_equal(doubled['weights'], 4.0 * np.arange(1024))


def test_latest_checkpoints_are_kept(tmp_path):
  checkpoints = Checkpoints(tmp_path / 'run' / 'checkpoints', keep=2)
  assert checkpoints.steps() == []
  assert checkpoints.restore(make_state(0)) is None
  for step in (2, 10, 9000):
    checkpoints.save(step, make_state(step), {})
  assert checkpoints.steps() == [10, 9000]
  assert checkpoints.restore(make_state(0)).step == 9000


def test_a_checkpoint_of_a_given_step(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep=3)
  for step in (2, 10, 30):
    checkpoints.save(step, make_state(step), {})
  assert_same(checkpoints.restore(make_state(0), at=10).state, make_state(10))
  assert checkpoints.restore(make_state(0), at=11) is None
  for path in tmp_path.rglob('*'):
    if path.is_file() and any('10' in part for part in path.relative_to(tmp_path).parts[:1]):
      path.write_bytes(b'')
  with pytest.raises(ValueError, match='damaged'):
    checkpoints.restore(make_state(0), at=10)


def test_saving_a_step_again_replaces_it(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  for value in (1, 2, 3):
    checkpoints.save(5, make_state(value), {'value': value})
  assert checkpoints.steps() == [5]
  assert len(list(tmp_path.iterdir())) == 1
  restored = checkpoints.restore(make_state(0))
  assert (restored.step, restored.metadata) == (5, {'value': 3})
  assert_same(restored.state, make_state(3))


def test_saving_an_earlier_step_makes_it_the_latest(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep=3)
  for step in (10, 20, 30, 15):
    checkpoints.save(step, make_state(step), {})
  assert checkpoints.steps() == [10, 15]
  assert checkpoints.restore(make_state(0)).step == 15


KILLED_SAVES = """
import os, pathlib, random, signal, sys, time
import numpy as np
from darts_jax.runtime.checkpoint import Checkpoints

def save_for_ever(directory, acknowledged):
  checkpoints = Checkpoints(directory, keep=2)
  step = 0
  while True:
    step += 1
    state = {'vector': np.full(20_000, step), 'matrix': np.full((30, 40), step, np.float32)}
    # Every second step is written twice, so replacing a checkpoint is interrupted, too.
    for part in range(1 + step % 2):
      checkpoints.save(step, state, {'step': step, 'part': part})
    os.write(acknowledged, b'%d\\n' % step)

moments = random.Random(0)
for trial in range(int(sys.argv[2])):
  directory = pathlib.Path(sys.argv[1]) / str(trial)
  directory.mkdir()
  acknowledged = directory.with_suffix('.acknowledged')
  child = os.fork()
  if child == 0:
    try:
      save_for_ever(directory, os.open(acknowledged, os.O_CREAT | os.O_WRONLY))
    finally:
      os._exit(1)
  while not acknowledged.exists() or acknowledged.stat().st_size < 4:
    time.sleep(0.005)
  time.sleep(moments.uniform(0, 0.15))
  os.kill(child, signal.SIGKILL)
  assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
"""


def test_kill_at_any_moment_leaves_the_last_complete_checkpoint(tmp_path):
  trials = 5
  run(KILLED_SAVES, tmp_path, trials)
  template = {'vector': np.zeros(20_000, np.int64), 'matrix': np.zeros((30, 40), np.float32)}
  interrupted = 0
  for trial in range(trials):
    directory = tmp_path / str(trial)
    acknowledged = int((tmp_path / f'{trial}.acknowledged').read_text().split()[-1])
    interrupted += any(not path.name.replace('-', '').isdigit() for path in directory.iterdir())
    checkpoints = Checkpoints(directory, keep=2)
    restored = checkpoints.restore(template)
    assert restored.damaged == ()
    assert restored.step in (acknowledged, acknowledged + 1)
    assert restored.metadata['step'] == restored.step
    assert (restored.state['vector'] == restored.step).all()
    assert (restored.state['matrix'] == restored.step).all()
    checkpoints.save(restored.step + 1, template, {})
    assert sorted(path.name.split('-')[0] for path in directory.iterdir()) == sorted(
      str(step) for step in (restored.step, restored.step + 1)
    )
  assert interrupted > 0, 'no kill came in the middle of a write, so nothing was tested'


@pytest.fixture
def three_steps(tmp_path):
  """A folder with good checkpoints of steps 1, 2 and 3."""
  checkpoints = Checkpoints(tmp_path)
  for step in (1, 2, 3):
    checkpoints.save(step, make_state(step), {'value': step})
  return tmp_path


def assert_right_or_reported(directory):
  """The checkpoint of step 3 is restored exactly, or reported and the one of step 2 restored exactly."""
  restored = Checkpoints(directory).restore(make_state(0))
  assert restored.step in (2, 3)
  assert restored.metadata == {'value': restored.step}
  assert_same(restored.state, make_state(restored.step))
  if restored.step == 2:
    (line,) = restored.damaged
    assert line.startswith(f'{directory / "3"}: ')
    assert '\n' not in line
  else:
    assert restored.damaged == ()
  return restored.step


@pytest.mark.parametrize('position', [0.0, 0.3, 0.5, 0.8, 1.0])
def test_flipped_bit_never_gives_wrong_values(three_steps, position):
  for path in files_below(three_steps / '3'):
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[round(position * (len(content) - 1))] ^= 1
    path.write_bytes(flipped)
    assert assert_right_or_reported(three_steps) == 2
    path.write_bytes(content)
  assert_same(Checkpoints(three_steps).restore(make_state(0)).state, make_state(3))


@pytest.mark.parametrize('damage', ['truncated', 'emptied', 'deleted'])
def test_lost_bytes_never_give_wrong_values(three_steps, damage):
  for path in files_below(three_steps / '3'):
    content = path.read_bytes()
    if damage == 'deleted':
      path.unlink()
    else:
      path.write_bytes(content[: len(content) // 2] if damage == 'truncated' else b'')
    assert assert_right_or_reported(three_steps) == 2
    path.write_bytes(content)


def test_files_of_another_checkpoint_are_detected(three_steps):
  # Sound in themselves, but of another step.
  shutil.rmtree(three_steps / '3' / 'state')
  shutil.copytree(three_steps / '1' / 'state', three_steps / '3' / 'state')
  assert assert_right_or_reported(three_steps) == 2
  # Now the digest over the files fits as well, and only the one over the leaves is left to tell.
  change_manifest(three_steps / '3', files_sha256=read_manifest(three_steps / '1')['files_sha256'])
  restored = Checkpoints(three_steps).restore(make_state(0))
  assert restored.step == 2
  assert restored.damaged == (f'{three_steps / "3"}: its content is not what was saved (SHA-256 differs)',)


@pytest.mark.parametrize('change', [{'metadata': {'value': 4}}, {'step': 4}, {'leaves': []}], ids=str)
def test_changed_manifest_is_damage_not_another_configuration(three_steps, change):
  change_manifest(three_steps / '3', **change)
  assert assert_right_or_reported(three_steps) == 2


def test_damaged_checkpoint_is_replaced_by_the_next_save_of_its_step(three_steps):
  for path in files_below(three_steps / '3'):
    path.write_bytes(b'')
  checkpoints = Checkpoints(three_steps, keep=2)
  assert checkpoints.restore(make_state(0)).step == 2
  checkpoints.save(3, make_state(3), {'value': 3})
  assert assert_right_or_reported(three_steps) == 3
  assert checkpoints.steps() == [2, 3]


def test_all_damaged_is_an_error_that_names_them(three_steps):
  for path in files_below(three_steps):
    path.write_bytes(b'')
  with pytest.raises(ValueError, match='every checkpoint is damaged') as caught:
    Checkpoints(three_steps).restore(make_state(0))
  assert all(str(three_steps / str(step)) in str(caught.value) for step in (1, 2, 3))
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('template', 'message'),
  [
    ({'w': jnp.zeros((5, 4)), 'b': jnp.zeros(4)}, r"state\['w'\] is float32\[3, 4\], not float32\[5, 4\]"),
    (
      {'w': jnp.zeros((3, 4), jnp.bfloat16), 'b': jnp.zeros(4)},
      r"state\['w'\] is float32\[3, 4\], not bfloat16\[3, 4\]",
    ),
    ({'w': jnp.zeros((3, 4)), 'b': jnp.zeros(4), 'c': jnp.zeros(1)}, r"state\['c'\] is missing"),
    ({'w': jnp.zeros((3, 4))}, r"state\['b'\] is not wanted"),
    ({'w': jax.ShapeDtypeStruct((3, 4), jnp.float32), 'b': jax.random.key(0)}, r"state\['b'\] is .*, not key<fry>\[\]"),
  ],
)
def test_other_configuration_is_not_taken_for_damage(tmp_path, template, message):
  checkpoints = Checkpoints(tmp_path)
  for step in (1, 2):
    checkpoints.save(step, {'w': jnp.zeros((3, 4)), 'b': jnp.zeros(4)}, {})
  with pytest.raises(ValueError, match=message) as caught:
    checkpoints.restore(template)
  assert str(caught.value).startswith(f'{tmp_path / "2"}: was made by another configuration: ')


@pytest.mark.parametrize(
  ('step', 'state', 'metadata', 'message'),
  [
    (1, {'name': 'supernet'}, {}, r"state\['name'\]: 'supernet' is not an array"),
    (1, {'w': jnp.zeros(1)}, {'w': jnp.zeros(1)}, 'metadata: .*; only JSON values can be saved'),
    (-1, {'w': jnp.zeros(1)}, {}, 'step: -1 is negative'),
  ],
)
def test_what_cannot_be_saved_leaves_nothing_behind(tmp_path, step, state, metadata, message):
  with pytest.raises(ValueError, match=message):
    Checkpoints(tmp_path).save(step, state, metadata)
  assert list(tmp_path.iterdir()) == []


def test_keeping_none_is_refused(tmp_path):
  with pytest.raises(ValueError, match='keep: 0 checkpoints'):
    Checkpoints(tmp_path, keep=0)


def test_full_disk_leaves_earlier_checkpoints_intact(tmp_path, capfd):
  checkpoints = Checkpoints(tmp_path)
  small = {str(i): np.zeros(10) for i in range(20)}
  large = {str(i): np.random.default_rng(i).random(10_000) for i in range(20)}
  checkpoints.save(1, small, {})
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  # The system enforces a limit to the size of a file where it would enforce a quota or the end of the disk.
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
  try:
    with pytest.raises(ValueError, match=r'the checkpoint of step 2 could not be written: .*too large') as caught:
      checkpoints.save(2, large, {})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert str(caught.value).startswith(f'{tmp_path}: ')
  assert '\n' not in str(caught.value)
  assert [path.name for path in tmp_path.iterdir()] == ['1']
  assert_same(checkpoints.restore(small).state, small)
  # Nothing but the error, which becomes one line.
  assert capfd.readouterr() == ('', '')


def test_folder_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match=r'could not be written: .*Not a directory') as caught:
    Checkpoints(tmp_path / 'file' / 'checkpoints').save(1, make_state(1), {})
  assert str(caught.value).startswith(f'{tmp_path / "file" / "checkpoints"}: the checkpoint of step 1 ')


def test_orbax_keeps_quiet(tmp_path, caplog, capfd):
  with caplog.at_level(logging.INFO):
    Checkpoints(tmp_path).save(1, make_state(1), {})
    Checkpoints(tmp_path).restore(make_state(1))
  assert [record for record in caplog.records if 'orbax' in record.pathname] == []
  assert capfd.readouterr() == ('', '')


EIGHT_DEVICES = """
import json, sys
import jax, jax.numpy as jnp
from darts_jax.runtime.checkpoint import Checkpoints
from darts_jax.runtime.mesh import batch_sharding, make_mesh, replicated

mesh = make_mesh()
shardings = {'w': replicated(mesh), 'x': batch_sharding(mesh), 'keys': batch_sharding(mesh)}
state = {'w': jnp.arange(6.0), 'x': jnp.arange(32).reshape(16, 2), 'keys': jax.random.split(jax.random.key(0), 8)}
abstract = {
  name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[name]) for name, leaf in state.items()
}
# Written by a process with one device.
restored = Checkpoints(sys.argv[1]).restore(abstract).state
Checkpoints(sys.argv[2]).save(2, restored, {})
again = Checkpoints(sys.argv[2]).restore(restored).state
print(json.dumps([{
  name: [len(leaf.sharding.device_set), leaf.addressable_shards[3].data.shape, leaf.sharding == shardings[name]]
  for name, leaf in tree.items()
} for tree in (restored, again)]))
"""


def test_shardings_follow_the_template_not_the_writer(tmp_path):
  state = {'w': jnp.arange(6.0), 'x': jnp.arange(32).reshape(16, 2), 'keys': jax.random.split(jax.random.key(0), 8)}
  Checkpoints(tmp_path / 'one').save(1, state, {})
  output = run(
    EIGHT_DEVICES, tmp_path / 'one', tmp_path / 'eight', XLA_FLAGS='--xla_force_host_platform_device_count=8'
  )
  assert json.loads(output) == [{'w': [8, [6], True], 'x': [8, [2, 2], True], 'keys': [8, [1], True]}] * 2
  assert_same(Checkpoints(tmp_path / 'eight').restore(state).state, state)


def test_checkpoints_that_are_needed_stay(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep=1)
  for step in range(1, 6):
    checkpoints.save(step, {'x': np.arange(step)}, {}, needed=(2, 3) if step < 5 else (3,))
  assert checkpoints.steps() == [3, 5]
  # Behind what the run goes back to nothing stays, needed or not.
  checkpoints.save(2, {'x': np.arange(2)}, {}, needed=(3,))
  assert checkpoints.steps() == [2]
