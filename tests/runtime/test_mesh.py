import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import darts_jax.runtime.mesh
from darts_jax.runtime.mesh import batch_sharding, check_batch, make_mesh, replicated

EIGHT_DEVICES = """
import json
import jax, jax.numpy as jnp
from darts_jax.runtime.mesh import batch_sharding, check_batch, make_mesh, replicated

def error(call):
  try:
    call()
  except ValueError as error:
    return str(error)

results = {}
for n in (None, 4):
  mesh = make_mesh(n)
  batch = jax.device_put(jnp.arange(32.0).reshape(16, 2), batch_sharding(mesh))
  weights = jax.device_put(jnp.ones(2), replicated(mesh))
  gradient = jax.jit(jax.grad(lambda w, x: ((x @ w) ** 2).mean()))(weights, batch)
  results[str(n)] = {
    'axes': mesh.shape,
    'first_rows': [int(shard.data[0, 0]) // 2 for shard in batch.addressable_shards],
    'weight_shards': [shard.data.shape for shard in weights.addressable_shards],
    'gradient': gradient.tolist(),
    'replicated': gradient.sharding.is_fully_replicated,
  }
results['errors'] = [
  error(lambda: make_mesh(9)), error(lambda: check_batch(20, make_mesh())), error(lambda: check_batch(24, make_mesh()))
]
print(json.dumps(results))
"""


def test_batches_are_split_and_weights_replicated_over_eight_devices():
  environment = os.environ | {
    'PYTHONPATH': str(pathlib.Path(darts_jax.runtime.mesh.__file__).parents[2]),
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '--xla_force_host_platform_device_count=8',
  }
  output = subprocess.run(
    [sys.executable, '-c', EIGHT_DEVICES], env=environment, capture_output=True, text=True, check=True
  ).stdout
  results = json.loads(output)
  x = np.arange(32.0).reshape(16, 2)
  for name, n in (('None', 8), ('4', 4)):
    assert results[name]['axes'] == {'seed': 1, 'data': n}
    assert results[name]['first_rows'] == [i * 16 // n for i in range(n)]
    assert results[name]['weight_shards'] == [[2]] * n
    # The gradient of the mean over the whole batch: 2 xᵀ x 1 / B.
    np.testing.assert_allclose(results[name]['gradient'], 2 * x.T @ x.sum(axis=1) / 16, rtol=1e-6)
    assert results[name]['replicated']
  assert results['errors'] == [
    'config.num_devices: 9; 1 to 8 cpu devices are there',
    'config.batch_size: 20 does not divide evenly over 8 devices',
    None,
  ]


def test_one_device_is_a_mesh_too():
  mesh = make_mesh(1)
  assert mesh.shape == {'seed': 1, 'data': 1}
  assert mesh.axis_types == (jax.sharding.AxisType.Auto,) * 2
  check_batch(7, mesh)
  batch = jax.device_put(jnp.arange(3.0), batch_sharding(mesh))
  assert batch.addressable_shards[0].data.shape == (3,)
  assert replicated(mesh).is_fully_replicated


@pytest.mark.parametrize('num_devices', [0, -1])
def test_mesh_without_devices_is_refused(num_devices):
  with pytest.raises(ValueError, match=f'config.num_devices: {num_devices}; 1 to'):
    make_mesh(num_devices)


@pytest.mark.parametrize('batch_size', [0, -8])
def test_empty_batch_is_refused(batch_size):
  with pytest.raises(ValueError, match=f'config.batch_size: {batch_size} '):
    check_batch(batch_size, make_mesh(1))
