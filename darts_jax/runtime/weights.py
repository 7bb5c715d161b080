"""Saves and loads the variables of a network as safetensors files."""

import pathlib
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from darts_jax.runtime.durable import write_whole
from darts_jax.runtime.files import one_line, read_bytes

PyTree = Any


def save(variables: PyTree, path: pathlib.Path) -> None:
  """Writes variables to a safetensors file, under names such as `params/cell0/preprocess0/kernel`."""
  flat = {_name(place): np.ascontiguousarray(leaf) for place, leaf in jax.tree.leaves_with_path(variables)}
  write_whole(path, safetensors.numpy.save(flat))


def load(path: pathlib.Path, template: PyTree) -> PyTree:
  """Reads variables from a file that `save` wrote.

  Args:
    path: path of the file.
    template: arrays or `jax.ShapeDtypeStruct`s of the expected structure, shapes and dtypes.

  Returns:
    NumPy arrays in the structure of the template.

  Raises:
    ValueError: the file cannot be read, or has variables of other names, shapes or dtypes.
  """
  content = read_bytes(path)
  try:
    found = safetensors.numpy.load(content)
  except Exception as error:  # The library raises its own exception, and others for dtypes that NumPy lacks.
    raise ValueError(f'{path}: not a whole safetensors file ({one_line(error)})') from error
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
