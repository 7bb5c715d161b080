"""Networks in training mode, and their running statistics after a batch."""

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
  """Applies a network to a batch.

  Args:
    net: the network.
    weights: its parameters.
    statistics: its running statistics before the batch. The package's own BN does not read them in training.
    *args: of the network.
    **kwargs: likewise.

  Returns:
    What the network gives; and its running statistics after the batch, as one vector.
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
  """Applies a network with modules of the user's own, whose statistics are as they leave them; see `apply_in_training`.

  Its parameters are `params` and its statistics `batch_stats`, as Flax's BN has them.
  """
  variables = {'params': weights, 'batch_stats': statistics.tree}
  found, updated = net.apply(variables, *args, train=True, mutable=['moments', 'batch_stats'], **kwargs)
  by_path = dict(jax.tree_util.tree_leaves_with_path(updated.get('moments', {})))

  def after(path: Any, old: Array, new: Array) -> Array:
    return running_average(old, by_path[path]) if path in by_path else new.astype(old.dtype)

  tree = jax.tree_util.tree_map_with_path(after, statistics.tree, updated.get('batch_stats', {}))
  return found, Packed.pack(tree).vector
