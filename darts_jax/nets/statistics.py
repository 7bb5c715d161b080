"""Applies networks in training mode, and updates their running statistics."""

from typing import Any

import flax.linen as nn
import jax

from darts_jax.nets.conv import Network, Supernet
from darts_jax.nets.layers import running_average
from darts_jax.runtime.packed import Packed
from darts_jax.spaces.operations import is_own

Array = jax.Array
PyTree = Any


def apply_in_training(
  net: Supernet | Network, weights: PyTree, statistics: Packed, *args: Any, **kwargs: Any
) -> tuple[Any, Array]:
  """Applies a network to a batch in training mode.

  Args:
    net: the network.
    weights: its parameters.
    statistics: its running statistics before the batch. The package's own BN does not read them in training.
    *args: arguments of the network.
    **kwargs: further arguments of the network.

  Returns:
    The outputs of the network, and its running statistics after the batch as one vector.
  """
  cells = [spec for _, spec in net.cells]
  if not any(is_own(name) for spec in cells for _, edge in spec.edges for name in edge.operations):
    found, updated = net.apply({'params': weights}, *args, train=True, mutable=['moments'], **kwargs)
    moments = Packed.pack(updated['moments'])
    assert moments.treedef == statistics.treedef, 'moments are to lie where the running statistics are'
    return found, running_average(statistics.vector, moments.vector)
  return apply_with_own_statistics(net, weights, statistics, *args, **kwargs)


def apply_with_own_statistics(
  net: nn.Module, weights: PyTree, statistics: Packed, *args: Any, **kwargs: Any
) -> tuple[Any, Array]:
  """`apply_in_training` for a network with a user's own modules, which update their statistics themselves.

  Parameters are the collection `params` and running statistics the collection `batch_stats`, as with Flax's BN.
  """
  variables = {'params': weights, 'batch_stats': statistics.tree}
  found, updated = net.apply(variables, *args, train=True, mutable=['moments', 'batch_stats'], **kwargs)
  by_path = dict(jax.tree_util.tree_leaves_with_path(updated.get('moments', {})))

  def after(path: Any, old: Array, new: Array) -> Array:
    return running_average(old, by_path[path]) if path in by_path else new.astype(old.dtype)

  tree = jax.tree_util.tree_map_with_path(after, statistics.tree, updated.get('batch_stats', {}))
  return found, Packed.pack(tree).vector
