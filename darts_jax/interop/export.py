"""Exports trained networks to files that other programs can run, and checks each file by running it."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.data.augment import normalise
from darts_jax.interop import onnx_file
from darts_jax.nets.bilinear import in_plain_operations
from darts_jax.nets.conv import draws
from darts_jax.runtime import weights
from darts_jax.runtime.durable import replacing
from darts_jax.runtime.files import one_line, read_bytes
from darts_jax.runtime.precision import in_float32, precisely
from darts_jax.runtime.workdir import check_free
from darts_jax.spaces.operations import NOISE
from darts_jax.training.model import Model
from darts_jax.training.restore import make_apply

FORMATS = ('stablehlo', 'onnx', 'safetensors')
PLATFORMS = ('cpu', 'cuda', 'tpu')
#: Largest allowed difference of the logits of an exported network, relative to the largest logit. Both are computed in
#: float32 with sums in different orders; the difference from a wrong network is larger by orders of magnitude.
TOLERANCE = 1e-3

PyTree = Any


@in_float32
def export(model: Model, variables: PyTree, path: pathlib.Path, kind: str) -> float:
  """Writes a network to a file, after checking that the exported network gives the same logits.

  Args:
    model: the network.
    variables: variables of the network.
    path: path of the file, which is written whole or not at all; the target of a symbolic link is replaced, not the
      link.
    kind: one of `FORMATS`. `stablehlo`: `jax.export`'s serialisation of the function from raw images `[N, H, W, C]`
      float32 to logits `[N, num_classes]` for any N on CPU, GPU and TPU, see `load_stablehlo`. `onnx`: see
      `darts_jax.interop.onnx_file.build`. `safetensors`: the variables; the only format for a network with noise.

  Returns:
    The largest difference of logits on random images, relative to the largest logit; 0 for `safetensors`, which hold
    the same bits.

  Raises:
    ValueError: a package is missing, the file cannot be written or belongs to a working directory, the network cannot
      be written as ONNX, or the exported network gives other logits.
  """
  try:
    check_free(path)
    if kind == 'safetensors':
      weights.save(jax.device_get(variables), path)
      return 0.0
    if draws(spec for _, spec in model.genotype.cells):
      raise ValueError(f'{kind}: the operation {NOISE} draws random numbers, which no such file does; take safetensors')
    with replacing(path) as partial:
      return _write(model, jax.device_get(variables), partial, path, kind)
  except OSError as error:
    raise ValueError(f'{path}: cannot be written ({error.strerror or error})') from error


def _write(model: Model, variables: PyTree, partial: pathlib.Path, path: pathlib.Path, kind: str) -> float:
  """Writes the temporary file `partial`, runs it, and returns the relative difference of its logits.

  Args:
    model: the network.
    variables: variables of the network, on the host.
    partial: path of the temporary file.
    path: path that the file gets in the end, for messages.
    kind: `stablehlo` or `onnx`.

  Raises:
    ValueError: the difference exceeds `TOLERANCE`.
  """
  mean, std = np.array(model.mean), np.array(model.std)
  draws = np.random.Generator(np.random.PCG64(0)).normal(size=(4, *model.image_shape))
  images = (mean + std * draws).astype(np.float32)
  if kind == 'stablehlo':
    partial.write_bytes(_stablehlo(model, variables))
    found = np.asarray(load_stablehlo(partial).call(images))
  else:
    partial.write_bytes(onnx_file.build(model, variables).SerializeToString())
    found = onnx_file.run(partial, images)
  expected = np.asarray(make_apply(model)(variables, images))
  difference = float(np.abs(found - expected).max() / np.abs(expected).max())
  if not difference <= TOLERANCE:
    raise ValueError(f'{path}: the exported network differs from ours by {difference:.1e}; nothing was written')
  return difference


def load_stablehlo(path: pathlib.Path) -> Any:
  """Loads a network that `export` wrote as `stablehlo`; its method `call(images)` returns logits.

  Raises:
    ValueError: the file cannot be read, or does not hold such a network.
  """
  from jax import export as jax_export

  content = read_bytes(path)
  try:
    return jax_export.deserialize(bytearray(content))
  except Exception as error:  # The parser of damaged files can raise anything.
    raise ValueError(f'{path}: not a network that was exported as stablehlo ({one_line(error)})') from error


def _stablehlo(model: Model, variables: PyTree) -> bytes:
  from jax import export as jax_export

  net = model.network()

  @jax.jit
  def classify(images: jax.Array) -> jax.Array:
    with precisely('float32'):
      logits: Any = net.apply(variables, normalise(images, model.mean, model.std), train=False)
    main: jax.Array = logits.main
    return main

  (batch,) = jax_export.symbolic_shape('N')
  # One program for all platforms and batch sizes cannot use the implementations for single platforms.
  with in_plain_operations():
    exported = jax_export.export(classify, platforms=PLATFORMS)(
      jax.ShapeDtypeStruct((batch, *model.image_shape), jnp.float32)
    )
  try:
    return bytes(exported.serialize())
  except ImportError as error:
    raise ValueError(f'stablehlo: needs pip install darts_jax[export] ({error})') from error
