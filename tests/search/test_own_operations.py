"""Searches with operations of a user's own: devices, recomputation, precision, and what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import darts_jax
from darts_jax import nets, search, spaces
from darts_jax.data.augment import normalise
from darts_jax.search import Search
from darts_jax.settings import build
from darts_jax.spaces import Mixing
from darts_jax.strategies import STRATEGIES
from darts_jax.strategies.darts import Darts
from darts_jax.tasks.base import Halves
from darts_jax.tasks.images import ImageBatch, ImageLearner

CONFIG = {
  'epochs': 2,
  'batch_size': 32,
  'data': {'name': 'digits'},
  'augment': {'crop_padding': 0, 'flip': False},
  'space': {'nodes': 1, 'operations': ('none', 'pointwise', 'squeeze', 'attention')},
  'network': {'channels': 2, 'layers': 3},
  # Decay keeps gradients from being nothing but rounding, of which Adam makes steps of full length.
  'alphas': {'learning_rate': 0.003, 'weight_decay': 0.1},
  'strategy': {'init_scale': 0.1},
  'hypergradient': {'name': 'first_order'},
}


def twice(self, moment, data):
  """A batch whose second half is its first, so that modules of one's own have equal statistics on two devices."""
  del moment
  chosen = self._shards.own(jnp.arange(self.batch_size) % (self.batch_size // 2))
  return Halves(
    *[ImageBatch(normalise(half.images[chosen], self._mean, self._std), half.labels[chosen]) for half in data]
  )


@pytest.mark.usefixtures('own')
def test_steps_are_the_same_on_two_devices_with_remat_and_close_in_bfloat16(monkeypatch, make_lab):
  monkeypatch.setattr(ImageLearner, 'batches', twice)
  found = []
  for devices, more in ((1, {}), (2, {'remat': True}), (2, {'remat': True, 'precision': 'bfloat16'})):
    lab = make_lab(build(Search, {**CONFIG, **more}), devices)
    state, sums = lab.searcher.run(lab.searcher.init(lab.searcher.keys()), lab.data, np.int32(3))
    assert (int(sums['steps']), bool(sums['finite'])) == (3, True)
    arrays = jax.device_get((state.weights.vector, state.statistics.vector, state.alphas))
    found.append((arrays, {name: float(value) / 3 for name, value in sums.items() if name.endswith('_loss')}))
    assert {x.dtype for x in jax.tree.leaves(arrays)} == {np.dtype(np.float32)}
  (one, losses), (two, shared), (_, rough) = found
  # Rounding, in sums of another order.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), one[:2], two[:2])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), one[2], two[2])
  assert {'train_loss', 'valid_loss'} <= set(losses)
  assert shared == pytest.approx(losses, rel=1e-5)
  # bfloat16 has steps of 2⁻⁸, of which some add up in a dozen layers.
  assert rough == pytest.approx(losses, rel=12 * 2**-8)
  assert rough != shared


@pytest.mark.parametrize(
  ('most', 'least', 'place'),
  [(4, 1, '8×8 pixels and 8 channels at stride 2'), (99, 5, '4×4 pixels and 16 channels at stride 2')],
)
def test_an_operation_is_tried_with_all_channels_and_sizes_of_the_network(
  tmp_path, monkeypatch, own, most, least, place
):
  class Narrow(own['Pointwise']):
    """An operation that its user has tried with few channels, or on large images, alone."""

    def __call__(self, x):
      if x.shape[-1] > most or min(x.shape[1:3]) < least:
        raise KeyError(x.shape)
      return super().__call__(x)

  monkeypatch.setitem(nets.OPERATIONS, 'narrow', Narrow)
  x, y = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1)).astype(np.uint8), np.arange(64) % 2
  message = rf'^operation narrow: fails on float32 images of {place} \(KeyError: [^\n]*$'
  space = {'nodes': 1, 'operations': ('none', 'narrow')}
  config = {**CONFIG, 'space': space, 'network': {'channels': 4, 'layers': 3}, 'batch_size': 16}
  with pytest.raises(ValueError, match=message):
    darts_jax.search(config, tmp_path / 'run', data=(x, y))
  genotype = spaces.from_json(
    {
      f'{cell}{end}': value
      for cell in ('normal', 'reduce')
      for end, value in (('', [['narrow', 0], ['narrow', 1]]), ('_concat', [2]))
    }
  )
  config = {'network': {'channels': 4, 'layers': 3, 'auxiliary': False}, 'batch_size': 16}
  with pytest.raises(ValueError, match=message):
    darts_jax.train(config, tmp_path / 'run', genotype, data=(x, y))
  with pytest.raises(ValueError, match=message):
    darts_jax.describe(genotype, channels=4, layers=3, image_size=8, image_channels=1)
  # The first architecture that comes to mind has others; the search would meet it in a trial, hours later.
  operations = ('skip_connect', 'avg_pool_3x3', 'max_pool_3x3', 'sep_conv_3x3', 'dil_conv_3x3', 'narrow')
  first = spaces.Darts(1, operations).sample(np.random.default_rng(0))
  assert not any(edge.operations == ('narrow',) for _, cell in first.cells for _, edge in cell.edges)
  evaluator = {'name': 'scratch', **config, 'data': {'name': 'digits'}}
  config = {'strategy': 'random_search', 'space': {'nodes': 1, 'operations': operations}, 'evaluator': evaluator}
  with pytest.raises(ValueError, match=message):
    darts_jax.search(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


class BackwardAlone(nn.Module):
  """Has a rule for reverse mode, and none for forward mode."""

  features: int
  stride: int

  @nn.compact
  def __call__(self, x):
    @jax.custom_vjp
    def halved(x):
      return x / 2

    halved.defvjp(lambda x: (x / 2, None), lambda _, gradient: (gradient / 2,))
    return halved(x)[:, :: self.stride, :: self.stride]


class Unsteady(Darts):
  """Its mixing weights have another shape than the space."""

  name = 'unsteady'

  def mix(self, arch, *others):
    found = super().mix(arch, *others)
    return {name: Mixing(each.operations[:, :1]) for name, each in found.items()}


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'hypergradient': 'exact'}, "operation mine: the search step by exact cannot be computed .TypeError: can't apply"),
    ({'strategy': 'unsteady'}, 'operation mine, strategy unsteady: the search step by first_order cannot be computed'),
  ],
)
def test_parts_of_ones_own_that_fail_leave_nothing(tmp_path, tiny_search, monkeypatch, changes, message):
  monkeypatch.setitem(nets.OPERATIONS, 'mine', BackwardAlone)
  monkeypatch.setitem(STRATEGIES, 'unsteady', Unsteady)
  config = tiny_search(space={'nodes': 1, 'operations': ('none', 'mine')}, **changes)
  with pytest.raises(ValueError, match=f'^{message}[^\n]*$'):
    search.run(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
