"""The devices of a run: a mesh whose axis `data` shards batches, and whose axis `seed` shards searches side by side.

Parameters are replicated along `data`. Functions of such arrays give the same results on any number of devices: either
XLA inserts the reductions (a jitted function of global arrays), or the function runs on every device, in
`jax.shard_map`, and exchanges data between devices through `Shards`.
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
    num_devices: number of devices, of which the first ones are taken; None for all.
    seeds: number of searches side by side.
    devices: the devices to choose from; `jax.devices()` by default.

  Raises:
    ValueError: there are fewer devices, or they do not divide evenly over the searches.
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
  """The sharding of a replicated array."""
  return NamedSharding(mesh, PartitionSpec())


def template(init: Callable[..., T], shardings: PyTree, *args: Any) -> T:
  """Shapes and dtypes of the result of `init(*args)`, with shardings, as `jax.ShapeDtypeStruct`s.

  Args:
    init: the function.
    shardings: a sharding, or a pytree prefix of shardings.
    *args: arguments of the function.
  """
  shapes = jax.eval_shape(init, *args)
  places = jax.tree.broadcast(shardings, shapes)
  found: T = jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, places)
  return found


def put(tree: T, shardings: PyTree) -> T:
  """Puts NumPy arrays, which have to be equal in all processes, on the devices.

  Args:
    tree: a pytree of NumPy arrays.
    shardings: a sharding, or a pytree prefix of shardings.
  """

  def place(array: np.ndarray, sharding: NamedSharding) -> Array:
    # `jax.device_put` would send every array to all processes to check that they are equal.
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

  placed: T = jax.tree.map(place, tree, jax.tree.broadcast(shardings, tree))
  return placed


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of an array `[B, …]` whose first axis is divided evenly over the devices along `data`."""
  return NamedSharding(mesh, PartitionSpec('data'))


def check_batch(batch_size: int, mesh: Mesh) -> None:
  """Raises a ValueError unless the global batch divides evenly over the devices of a search."""
  devices = mesh.shape['data']
  if batch_size < 1 or batch_size % devices:
    raise ValueError(f'config.batch_size: {batch_size} does not divide evenly over {devices} devices')


@dataclasses.dataclass(frozen=True)
class Shards:
  """How a batch is sharded over the axis `data`, for a function that runs on each device in `jax.shard_map`.

  Every device has the same number of consecutive examples. With one device there is no communication, and the function
  need not run in `jax.shard_map`.

  Attributes:
    size: number of devices along `data`.
  """

  size: int = 1

  def own(self, x: Array, axis: int = 0) -> Array:
    """This device's part of a replicated array, divided evenly along `axis`."""
    if self.size == 1:
      return x
    part = x.shape[axis] // self.size
    return lax.dynamic_slice_in_dim(x, self.first(part), part, axis)

  def first(self, num_examples: int) -> Array | int:
    """Index in the batch of this device's first example, where each device has `num_examples`."""
    return 0 if self.size == 1 else lax.axis_index('data') * num_examples

  def mean(self, tree: T, devices: int | None = None) -> T:
    """The mean over devices, as one all-reduce.

    The map is its own derivative, in forward and reverse mode. The mean over devices of the gradients of their losses
    is therefore the gradient of the mean of the losses, including the communication within the losses.

    Args:
      tree: a pytree of arrays, with the same shapes on all devices.
      devices: size of the groups of consecutive devices that are averaged; all devices by default.
    """
    devices = devices or self.size
    if devices == 1:
      return tree
    found: T = jax.tree.map(lambda x: x / devices, self.total(tree, devices))
    return found

  def total(self, tree: T, devices: int) -> T:
    """The sum over devices, as one all-reduce; see `mean`."""
    assert self.size % devices == 0
    groups = None if devices == self.size else np.arange(self.size).reshape(-1, devices).tolist()
    vector, unravel = ravel_pytree(tree)
    total: T = unravel(lax.psum(vector, 'data', axis_index_groups=groups))
    return total


#: A whole batch on one device.
UNSHARED = Shards()
