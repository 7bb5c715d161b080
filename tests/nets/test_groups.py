"""Batch normalisation in groups of examples, on one device and on several."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from darts_jax.nets.conv import Supernet
from darts_jax.nets.layers import BatchNorm, NormGroups
from darts_jax.nets.recurrent import LanguageModel, init_language_model, initial_hidden
from darts_jax.runtime.mesh import Shards, make_mesh
from darts_jax.spaces import Darts, Recurrent

BATCH = 8
EVERYWHERE, SHARED = PartitionSpec(), PartitionSpec('data')
assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13)


def orders(loss, x, params, dx, dparams):
  """Value, gradients and their derivative along a direction, which is forward over reverse mode."""
  gradient = jax.grad(loss, (0, 1))
  first, second = jax.jvp(gradient, (x, params), (dx, dparams))
  return loss(x, params), first, second


@pytest.mark.parametrize(
  ('size', 'devices'), [(2, 1), (8, 1), (2, 2), (4, 2), (0, 2), (2, 4), (4, 4), (8, 4), (0, 8), (2, 8), (4, 8)]
)
@pytest.mark.usefixtures('x64')
def test_batch_norm_in_groups_is_that_of_every_group_by_itself(size, devices):
  rng = np.random.default_rng(0)
  x, dx, target = rng.normal(size=(3, BATCH, 2, 3, 2)) * [1.0, 3.0] + [2.0, -1.0]
  params, dparams = ({'scale': rng.normal(size=2), 'bias': rng.normal(size=2)} for _ in range(2))
  shards = Shards(devices)
  layer = BatchNorm(True, NormGroups(size, shards))

  def definition(x, params):
    parts = x.reshape(-1, size or BATCH, *x.shape[1:])
    mean, var = parts.mean((1, 2, 3), keepdims=True), parts.var((1, 2, 3), keepdims=True)
    y = ((parts - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape) * params['scale'] + params['bias']
    return jnp.mean(jnp.sin(y) * target)

  def ours(x, params, dx, dparams, target):
    def loss(x, params):
      return jnp.mean(jnp.sin(layer.apply({'params': params}, x, train=True)) * target)

    value, (of_x, of_params), (more_of_x, more_of_params) = orders(loss, x, params, dx, dparams)
    # A device's loss is the mean over its examples, so what its images do to the mean of all is a part of it.
    of_images = jax.tree.map(lambda g: g / devices, (of_x, more_of_x))
    _, moments = layer.apply({'params': params}, x, train=True, mutable=['moments'])
    return of_images, shards.mean((value, of_params, more_of_params, moments['moments']))

  arguments = x, params, dx, dparams
  mesh = make_mesh(devices)
  specs = (SHARED, EVERYWHERE, SHARED, EVERYWHERE, SHARED)
  spread = jax.shard_map(ours, mesh=mesh, in_specs=specs, out_specs=(SHARED, EVERYWHERE), check_vma=False)
  images, (value, of_params, more_of_params, moments) = jax.jit(spread)(*arguments, target)
  expected = jax.jit(functools.partial(orders, definition))(*arguments)
  assert_close(value, expected[0])
  for found, wanted in zip((images[0], images[1]), (expected[1][0], expected[2][0]), strict=True):
    assert_close(found, wanted, rtol=1e-10)
  jax.tree.map(assert_close, (of_params, more_of_params), (expected[1][1], expected[2][1]))
  # Running statistics move to the mean over groups.
  parts = x.reshape(-1, size or BATCH, *x.shape[1:])
  assert_close(moments['mean'], parts.mean((1, 2, 3)).mean(0))
  assert_close(moments['var'], parts.reshape(len(parts), -1, 2).var(1, ddof=1).mean(0))


@pytest.mark.parametrize(('size', 'devices'), [(0, 1), (2, 1), (0, 8), (4, 8), (0, 3)])
def test_means_far_from_zero_leave_the_variance_of_a_group_exact(size, devices):
  """Also if the images of each device have a mean of their own."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(24, 4, 4, 3)) + np.arange(24).reshape(-1, 1, 1, 1) // 8 + 3000 * np.array([1, -0.7, 0])
  x = x.astype(np.float32)
  layer = BatchNorm(False, NormGroups(3 * size, Shards(devices)))

  def ours(x):
    return layer.apply({}, x, train=True, mutable=['moments'])[0]

  spread = jax.shard_map(ours, mesh=make_mesh(devices), in_specs=SHARED, out_specs=SHARED, check_vma=False)
  parts = x.astype(np.float64).reshape(-1, 3 * size or 24, 4, 4, 3)
  expected = (parts - parts.mean((1, 2, 3), keepdims=True)) / np.sqrt(parts.var((1, 2, 3), keepdims=True) + 1e-5)
  np.testing.assert_allclose(jax.jit(spread)(x), expected.reshape(x.shape), rtol=0, atol=1e-3)


@pytest.mark.parametrize(('size', 'devices', 'examples'), [(3, 1, 8), (16, 1, 8), (3, 2, 4), (6, 2, 4), (24, 4, 8)])
def test_groups_that_do_not_fit_are_refused(size, devices, examples):
  message = (
    rf'^config.batch_norm.group_size: {size} is not allowed; it has to divide the batch, {devices * examples} ex'
  )
  with pytest.raises(ValueError, match=message):
    NormGroups(size, Shards(devices)).divide(examples)


@pytest.mark.usefixtures('x64')
def test_a_supernet_in_groups_is_a_supernet_for_every_group():
  normal = Darts(2, ('skip_connect', 'sep_conv_3x3', 'max_pool_3x3')).cells['normal']
  reduce = Darts(1, ('none', 'skip_connect', 'dil_conv_3x3')).cells['normal']
  cells = ('normal', normal), ('reduce', reduce)
  plain, grouped = (Supernet(cells, Darts().plan(3), 2, 5, groups=NormGroups(size)) for size in (0, 2))
  rng = np.random.default_rng(1)
  images = rng.normal(size=(6, 4, 8, 3))
  mixing = {'normal': rng.uniform(size=(5, 3)), 'reduce': rng.uniform(size=(2, 3))}
  variables = jax.jit(lambda: plain.init(jax.random.key(0), images, mixing, train=False))()

  def apply(net, images, mixing):
    logits, changed = net.apply(variables, images, mixing, train=True, mutable=['moments'])
    return jnp.sum(jnp.sin(logits)), (logits, changed['moments'])

  compute = jax.value_and_grad(apply, 2, has_aux=True)
  (_, (logits, moments)), gradient = jax.jit(functools.partial(compute, grouped))(images, mixing)
  part = jax.jit(functools.partial(compute, plain))
  parts = [part(images[i : i + 2], mixing) for i in (0, 2, 4)]
  assert_close(logits, np.concatenate([aux[0] for (_, aux), _ in parts]))
  jax.tree.map(lambda found, *each: assert_close(found, np.mean(each, 0)), moments, *[aux[1] for (_, aux), _ in parts])
  jax.tree.map(lambda found, *each: assert_close(found, np.sum(each, 0), rtol=1e-10), gradient, *[g for _, g in parts])
  # The groups make a difference.
  assert np.abs(logits - part(images, mixing)[0][1][0]).max() > 0.01


@pytest.mark.usefixtures('x64')
def test_a_recurrent_cell_in_groups_is_one_for_every_group_of_columns():
  space = Recurrent(2, ('none', 'tanh', 'sigmoid')).cells['recurrent']
  plain, grouped = (LanguageModel(space, 7, 4, norm=True, groups=NormGroups(size)) for size in (0, 3))
  rng = np.random.default_rng(2)
  mixing = rng.uniform(size=(space.num_edges, 3))
  with jax.enable_x64(False):
    drawn = init_language_model(plain, jax.random.key(0), mixing.astype(np.float32))
  variables = jax.tree.map(lambda leaf: jnp.asarray(20 * leaf, jnp.float64), drawn)
  tokens = rng.integers(0, 7, (4, 6))

  def apply(net, tokens):
    hidden = initial_hidden(tokens.shape[1], 4, jnp.float64)
    (found, hidden), changed = net.apply(variables, tokens, hidden, mixing, train=True, mutable=['batch_stats'])
    return found, hidden, changed

  found, hidden, changed = jax.jit(functools.partial(apply, grouped))(tokens)
  parts = [jax.jit(functools.partial(apply, plain))(tokens[:, i : i + 3]) for i in (0, 3)]
  assert_close(found, np.concatenate([part[0] for part in parts], axis=1))
  assert_close(hidden, np.concatenate([part[1] for part in parts]))
  jax.tree.map(lambda both, *each: assert_close(both, np.mean(each, 0)), changed, *[part[2] for part in parts])
