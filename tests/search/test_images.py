"""What a search of images reads at which step, with which keys, and for which devices it is traced."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from darts_jax.data.images import Images, split
from darts_jax.data.settings import Augment
from darts_jax.runtime.mesh import make_mesh
from darts_jax.search import Search, Searcher
from darts_jax.search.searched import Searched
from darts_jax.search.settings import BatchNorm
from darts_jax.search.state import SearchState
from darts_jax.search.step import BatchLoss
from darts_jax.settings import build
from darts_jax.strategies.darts import Darts
from darts_jax.tasks.base import Halves, Moment
from darts_jax.tasks.images import Data

SPACE, NETWORK = {'nodes': 1, 'operations': ('none', 'skip_connect')}, {'channels': 2, 'layers': 3}
SEARCH = build(Search, {'epochs': 4, 'batch_size': 128, 'data': {'name': 'digits'}, 'space': SPACE, 'network': NETWORK})


def make_searcher(settings: Search, images: Images, num_devices: int = 1) -> Searcher:
  return Searcher.open(settings, images, make_mesh(num_devices))


NUM_IMAGES, NUM_VALID = 52, 18


@pytest.fixture(scope='module')
def numbered() -> Images:
  """Images whose pixels are all their number plus one, with the remainder by 10 as label."""
  numbers = np.arange(NUM_IMAGES)
  x = np.broadcast_to(numbers[:, None, None, None] + 1, (NUM_IMAGES, 8, 8, 1)).astype(np.float32)
  return Images('numbered', x, (numbers % 10).astype(np.int32), None, None, 10, (0.0,), (1.0,))


class Drawn(NamedTuple):
  """Of the first steps of a search: images `[steps, B, 8, 8]`, their numbers and labels `[steps, B]`."""

  pixels: np.ndarray
  numbers: np.ndarray
  labels: np.ndarray


def draw(images: Images, num_steps: int, batch_size: int, num_devices: int = 1, **changes: Any) -> Halves:
  """What a search trains on, by half."""
  task = dataclasses.replace(
    SEARCH.task,
    data=Data(validation_fraction=NUM_VALID / NUM_IMAGES),
    augment=Augment(crop_padding=changes.pop('crop_padding', 0), flip=False, cutout=0),
  )
  settings = dataclasses.replace(SEARCH, batch_size=batch_size, task=task, **changes)
  searcher = make_searcher(settings, images, num_devices)
  placed = searcher.place([settings.task.halves(images, settings, settings.seed)])

  def batches(step, data):
    return searcher.learner.batches(Moment(jax.random.key(settings.seed), step, step, ()), data)

  same, shared = PartitionSpec(), PartitionSpec('data')
  whole = jax.jit(jax.shard_map(batches, mesh=searcher.mesh, in_specs=same, out_specs=shared, check_vma=False))
  drawn = [jax.device_get(whole(jnp.int32(step), placed)) for step in range(num_steps)]
  parts = []
  for half in Halves._fields:
    pixels = np.stack([getattr(halves, half).images[..., 0] for halves in drawn])
    labels = np.stack([getattr(halves, half).labels for halves in drawn])
    parts.append(Drawn(pixels, pixels.max(axis=(2, 3)).astype(int) - 1, labels))
  return Halves(*parts)


def test_images_of_the_weights_are_seen_at_most_once_an_epoch(numbered):
  epochs, steps, size = 6, 4, 8
  train, valid = draw(numbered, epochs * steps, size)
  ours, others = split(NUM_IMAGES, NUM_VALID / NUM_IMAGES, SEARCH.seed)
  orders = train.numbers.reshape(epochs, steps * size)
  for order in orders:
    assert len(set(order)) == steps * size
    assert set(order) <= set(ours)
  # Every epoch has another order, and leaves out another two of the 34 images.
  assert len({tuple(order) for order in orders}) == epochs
  assert len({frozenset(ours) - frozenset(order) for order in orders}) > 1
  np.testing.assert_array_equal(train.labels, train.numbers % 10)
  # α sees any images of the other half: all of them in 192 draws, some twice in a batch.
  assert set(valid.numbers.ravel()) == set(others)
  assert any(len(set(batch)) < size for batch in valid.numbers)
  np.testing.assert_array_equal(valid.labels, valid.numbers % 10)


def test_order_depends_on_the_seed_alone(numbered):
  order = draw(numbered, 4, 8).train.numbers.ravel()
  np.testing.assert_array_equal(draw(numbered, 2, 16).train.numbers.ravel(), order)
  wide = draw(numbered, 4, 8, num_devices=8)
  np.testing.assert_array_equal(wide.train.numbers.ravel(), order)
  np.testing.assert_array_equal(wide.valid.numbers, draw(numbered, 4, 8).valid.numbers)
  assert set(draw(numbered, 4, 8, seed=1).train.numbers.ravel()) != set(order)


def test_every_step_and_half_is_augmented_in_its_own_way(numbered):
  train, valid = draw(numbered, 2, 8, crop_padding=4)
  # Where the padding has come into the picture, pixels are black.
  crops = [(half.pixels[step] > 0).tobytes() for half in (train, valid) for step in range(2)]
  assert len(set(crops)) == 4


def test_batch_that_is_larger_than_a_half_is_refused(numbered):
  with pytest.raises(ValueError, match='^config.batch_size: 19 is larger than the valid half of numbered,'):
    draw(numbered, 1, NUM_VALID + 1)


@pytest.mark.parametrize(('batch_size', 'group_size', 'field'), [(1, 0, 'batch_size'), (2, 1, 'batch_norm.group_size')])
def test_statistics_of_single_numbers_are_refused(digits, batch_size, group_size, field):
  settings = dataclasses.replace(SEARCH, batch_size=batch_size, batch_norm=BatchNorm(group_size))
  images = dataclasses.replace(digits, x_train=digits.x_train[:, :4, :4])
  with pytest.raises(
    ValueError, match=f'^config.{field}: 1 is not allowed with images of 4×4 pixels, of which the netw'
  ):
    make_searcher(settings, images)


def test_more_steps_than_int32_counts_are_refused(digits):
  settings = dataclasses.replace(SEARCH, epochs=20_000, batch_size=2)
  many = {
    name: np.broadcast_to(getattr(digits, name)[:1], (500_000, *getattr(digits, name).shape[1:]))
    for name in ('x_train', 'y_train')
  }
  with pytest.raises(ValueError, match='^config.epochs: 20000 are 2500000000 steps; at most 2147483647 are allowed$'):
    make_searcher(settings, dataclasses.replace(digits, **many))


def test_what_is_drawn_in_a_step_has_a_purpose_of_its_own(digits, purposes):
  """The order of the images, those for α, how either are augmented, the relaxation; and that of an evaluation."""
  searcher = make_searcher(SEARCH, digits)
  searched = searcher.searched
  data = searcher.place([SEARCH.task.halves(digits, SEARCH, SEARCH.seed)])

  def draw(state):
    searcher.batches(state, data)
    BatchLoss.at(state, searcher.learner.objective, searched, 'float32')
    searcher.searched.look(state.alphas, state.step, state.key)

  alphas = searched.init(jax.random.key(1))
  found = purposes(draw, SearchState(jnp.int32(0), jax.random.key(0), None, None, alphas, None, None))
  assert len(found) == len(set(found)) == 6


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
@pytest.mark.parametrize('name', ['run', 'evaluate'])
@pytest.mark.parametrize('num_devices', [1, 8])
def test_supernets_are_traced_as_suits_the_devices(digits, edges_are_channels, num_devices, name, platform):
  mesh = make_mesh(num_devices)
  state = SearchState(jnp.int32(0), jax.random.key(0), None, None, {}, None, None)
  args = (state, None, jnp.int32(1)) if name == 'run' else (state, None)

  def make():
    return Searcher.open(SEARCH, digits, mesh)

  assert edges_are_channels(Searcher, name, mesh, platform, make, *args) == (platform == 'tpu')


@dataclasses.dataclass(frozen=True)
class Watched(Darts):
  """Writes down which keys it consumes."""

  draws: ClassVar[bool] = True

  consumed: list[tuple[int, ...]] = dataclasses.field(default_factory=list)

  def init(self, space, key):
    self.consumed.append(tuple(jax.random.key_data(key).tolist()))
    return super().init(space, key)

  def mix(self, arch, space, cells, time, key, purpose):
    self.consumed.append(tuple(jax.random.key_data(key).tolist()))
    return super().mix(arch, space, cells, time, key, purpose)


def test_no_key_is_consumed_twice(digits, monkeypatch):
  watched = Watched()
  searched = Searched.start(watched, SEARCH.space)
  learner = Searcher.open(SEARCH, digits, make_mesh(1)).learner
  searcher = Searcher(SEARCH, searched, learner, make_mesh(1))
  drawn = []

  def variables(key, mixing):
    drawn.append(tuple(jax.random.key_data(key).tolist()))
    return {name: {'none': jnp.zeros(1)} for name in ('params', 'batch_stats')}

  monkeypatch.setattr(learner, 'variables', variables)
  monkeypatch.setattr(learner, 'measure', lambda variables, mixing, data: None)
  state = searcher._init(searcher.keys())
  for step in range(3):
    now = state.replace(step=jnp.int32(step))
    if step:
      searcher._evaluate(now, None)
    loss = BatchLoss.at(now, lambda *args: None, searched, 'float32')
    for updating in (False, True):
      loss(now.weights.vector, now.alphas, None, updating)
  root = tuple(jax.random.key_data(state.key).tolist())
  keys = [root, *drawn, *watched.consumed]
  # Weights and α are moved by mixing weights of keys of their own.
  assert len(keys) == 2 + 2 + 2 + 2 * 3
  assert len(set(keys)) == len(keys)
