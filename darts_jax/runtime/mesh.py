"""The devices of a run: a mesh whose axis `data` shares out batches and whose axis `seed` holds searches side by side.

Parameters are replicated along `data`. What a function on such arrays computes is the same on any number of devices:
either XLA inserts the reductions (a jitted function of global arrays), or the function runs on every device by itself,
by `jax.shard_map`, and says through `Shards` what crosses devices.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Array = jax.Array
PyTree = Any
T = TypeVar('T')


def make_mesh(num_devices: int | None = None, *, seeds: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
  """A mesh of shape `(seeds, num_devices / seeds)` with the axes `seed` and `data`.

  Args:
    num_devices: the first so many of the devices; None takes all.
    seeds: searches side by side.
    devices: to choose from; `jax.devices()` by default.

  Raises:
    ValueError: there are not so many devices, or they do not divide evenly over the searches.
  """
  devices = jax.devices() if devices is None else devices
  if num_devices is None:
    num_devices = len(devices)
  if not 1 <= num_devices <= len(devices):
    raise ValueError(f'config.num_devices: {num_devices}; 1 to {len(devices)} {devices[0].platform} devices are there')
  if num_devices % seeds:
    raise ValueError(
      f'config.mesh.seed: {seeds} is not allowed; {num_devices} {devices[0].platform} devices do not divide evenly over'
      f' {seeds} searches'
    )
  shape, names = (seeds, num_devices // seeds), ('seed', 'data')
  # With JAX's default, Explicit, the sharding becomes part of array types and vmapped crops of images fail.
  return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * 2, devices=devices[:num_devices])


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def template(init: Callable[..., T], shardings: PyTree, *args: Any) -> T:
  """Shapes, dtypes and places of what `init(*args)` returns, without arrays.

  Args:
    init: the function.
    shardings: a sharding, or a pytree prefix of them.
    *args: its arguments.
  """
  shapes = jax.eval_shape(init, *args)
  places = jax.tree.broadcast(shardings, shapes)
  found: T = jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, places)
  return found


def put(tree: T, shardings: PyTree) -> T:
  """NumPy arrays, the same in all processes, on the devices.

  Args:
    tree: a pytree of them.
    shardings: where they go, a pytree prefix.
  """

  def place(array: np.ndarray, sharding: NamedSharding) -> Array:
    # `jax.device_put` would send every array to all processes to find that they have the same.
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

  placed: T = jax.tree.map(place, tree, jax.tree.broadcast(shardings, tree))
  return placed


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of an array `[B, ...]` of which every device along `data` holds as many consecutive examples."""
  return NamedSharding(mesh, PartitionSpec('data'))


def check_batch(batch_size: int, mesh: Mesh) -> None:
  """Raises a ValueError unless the global batch divides evenly over the devices of a search."""
  devices = mesh.shape['data']
  if batch_size < 1 or batch_size % devices:
    raise ValueError(f'config.batch_size: {batch_size} does not divide evenly over {devices} devices')


@dataclasses.dataclass(frozen=True)
class Shards:
  """How the examples of a batch are shared out over the axis `data`, for a function that runs on each of its devices.

  Every device has as many consecutive examples. With one device nothing crosses devices, and no axis is needed.

  Attributes:
    size: devices along `data`.
  """

  size: int = 1

  def own(self, x: Array, axis: int = 0) -> Array:
    """This device's part of what all devices hold whole."""
    if self.size == 1:
      return x
    part = x.shape[axis] // self.size
    return lax.dynamic_slice_in_dim(x, self.first(part), part, axis)

  def first(self, num_examples: int) -> Array | int:
    """The place of this device's first example in the batch, of which each device has so many."""
    return 0 if self.size == 1 else lax.axis_index('data') * num_examples

  def mean(self, tree: T, devices: int | None = None) -> T:
    """The mean over devices of arrays of the same shapes, as one all-reduce.

    Its derivative in forward and in reverse mode is itself. So the mean over devices of the gradients of their losses
    is the gradient of the mean of these losses, what the losses exchange included.

    Args:
      tree: a pytree of arrays.
      devices: over so many consecutive ones each; over all by default.
    """
    devices = devices or self.size
    if devices == 1:
      return tree
    found: T = jax.tree.map(lambda x: x / devices, self.total(tree, devices))
    return found

  def total(self, tree: T, devices: int) -> T:
    """Likewise, the sum."""
    assert self.size % devices == 0
    groups = None if devices == self.size else np.arange(self.size).reshape(-1, devices).tolist()
    vector, unravel = ravel_pytree(tree)
    total: T = unravel(lax.psum(vector, 'data', axis_index_groups=groups))
    return total


#: A whole batch on one device.
UNSHARED = Shards()
