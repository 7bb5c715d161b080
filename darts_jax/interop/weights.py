"""Imports trained weights of the published PyTorch code."""

import os
from typing import Any

import jax
import numpy as np

from darts_jax.interop import tensors
from darts_jax.interop.reference import Tensors, convert_network, infer_network, unwrapped
from darts_jax.nets.conv import Network
from darts_jax.spaces import Genotype

PyTree = Any


def import_reference(path: str | os.PathLike[str], genotype: Genotype) -> tuple[Network, PyTree]:
  """Imports a network and its variables from a checkpoint of the published PyTorch code.

  Args:
    path: a `.pt` or `.pth` file, whose pickle is not executed, an `.npz` file or a `.safetensors` file.
    genotype: the architecture of the network; channels, cells, classes, stem and head are inferred from the shapes.

  Returns:
    The network and `{'params': …, 'batch_stats': …}` of float32 NumPy arrays.

  Raises:
    ValueError: the file cannot be read, or its tensors are not those of the network; the first of them are named.
  """
  found: Tensors = tensors.read(path)
  try:
    found = unwrapped(found)
    net = infer_network(genotype, found)
    variables = jax.tree.map_with_path(_in_float32, convert_network(net, found))
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
  return net, variables


def _in_float32(place: Any, array: np.ndarray) -> np.ndarray:
  with np.errstate(over='ignore'):  # Numbers that become infinite are refused below.
    found = np.asarray(array, np.float32)
  if not np.isfinite(found).all():
    raise ValueError(f'{"/".join(key.key for key in place)}: a value is too large for float32')
  return found
