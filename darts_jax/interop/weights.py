"""Trained weights in files: ours as safetensors, and the reference's."""

import os
import pathlib
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from darts_jax.genotype import Genotype
from darts_jax.interop import tensors
from darts_jax.interop.reference import convert_network, infer_network
from darts_jax.nets.conv import Network
from darts_jax.runtime.workdir import write_whole

PyTree = Any


def import_reference(path: str | os.PathLike[str], genotype: Genotype) -> tuple[Network, PyTree]:
  """A network and its variables from a checkpoint of the published PyTorch code.

  Args:
    path: a `.pt` or `.pth` state dict, which is read without executing what is pickled in it, `.npz` or `.safetensors`.
    genotype: the architecture it is a checkpoint of; channels, cells, classes, stem and head are read off its shapes.

  Returns:
    The network and `{'params': …, 'batch_stats': …}` of float32 NumPy arrays.

  Raises:
    ValueError: the file cannot be read, or its tensors are not those of the network; they are named.
  """
  found = tensors.read(path)
  try:
    net = infer_network(genotype, found)
    variables = convert_network(net, found)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
  return net, jax.tree.map(lambda x: np.asarray(x, np.float32), variables)


def save(variables: PyTree, path: pathlib.Path) -> None:
  """Writes variables to a safetensors file, by names such as `params/cell0/preprocess0/kernel`."""
  flat = {_name(place): np.ascontiguousarray(leaf) for place, leaf in jax.tree.leaves_with_path(variables)}
  write_whole(path, safetensors.numpy.save(flat))


def load(path: pathlib.Path, template: PyTree) -> PyTree:
  """The variables in a file that `save` wrote.

  Args:
    path: of the file.
    template: arrays or `jax.ShapeDtypeStruct`s of the expected structure, shapes and dtypes.

  Raises:
    ValueError: the file cannot be read, or holds other variables.
  """
  found = tensors.read(path)
  expected = {_name(place): leaf for place, leaf in jax.tree.leaves_with_path(template)}
  for name in sorted(found.keys() ^ expected.keys()):
    raise ValueError(f'{path}: tensor {name}: {"not part of the network" if name in found else "missing"}')
  for name, leaf in expected.items():
    if (found[name].shape, found[name].dtype) != (leaf.shape, leaf.dtype):
      given = f'{found[name].dtype}{list(found[name].shape)}'
      raise ValueError(f'{path}: tensor {name}: {given} found, {leaf.dtype}{list(leaf.shape)} expected')
  return jax.tree.map_with_path(lambda place, _: found[_name(place)], template)


def _name(place: Any) -> str:
  return '/'.join(key.key for key in place)
