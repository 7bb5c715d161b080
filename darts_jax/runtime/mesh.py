"""The devices of a run: a mesh with one axis, `data`, over which batches are split; also for one device.

Parameters are replicated and batches sharded; a jitted step over such arrays computes the same as on one device, and
XLA inserts the reductions over devices.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

T = TypeVar('T')


def make_mesh(num_devices: int | None = None) -> Mesh:
  """A mesh of shape `(num_devices,)` with the axis `data`.

  Args:
    num_devices: the first so many of `jax.devices()`; None takes all.

  Raises:
    ValueError: there are not so many devices.
  """
  devices = jax.devices()
  if num_devices is None:
    num_devices = len(devices)
  if not 1 <= num_devices <= len(devices):
    raise ValueError(f'config.num_devices: {num_devices}; 1 to {len(devices)} {devices[0].platform} devices are there')
  # With JAX's default, Explicit, the sharding becomes part of array types and vmapped crops of images fail.
  return jax.make_mesh((num_devices,), ('data',), axis_types=(AxisType.Auto,), devices=devices[:num_devices])


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def template(init: Callable[..., T], mesh: Mesh, *args: Any) -> T:
  """Shapes, dtypes and places of what `init(*args)` returns on every device of the mesh, without arrays."""
  shapes = jax.eval_shape(init, *args)
  same = replicated(mesh)
  found: T = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=same), shapes)
  return found


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of an array `[B, ...]` of which every device holds `B / num_devices` consecutive examples."""
  return NamedSharding(mesh, PartitionSpec('data'))


def check_batch(batch_size: int, mesh: Mesh) -> None:
  """Raises a ValueError unless the global batch divides evenly over the devices of the mesh."""
  if batch_size < 1 or batch_size % mesh.size:
    raise ValueError(f'config.batch_size: {batch_size} does not divide evenly over {mesh.size} devices')
