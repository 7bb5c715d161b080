"""Exports the network of a training for other programs, as StableHLO, ONNX or safetensors.

darts-jax export --workdir=DIR --output=FILE [--format=stablehlo|onnx|safetensors]
"""

from darts_jax.commands.entry import Command, Flag, require
from darts_jax.interop import export
from darts_jax.runtime.files import user_path
from darts_jax.runtime.terminal import show
from darts_jax.training import Model, load

FLAGS = (
  Flag('workdir', None, 'The working directory of a training or of darts-jax convert.'),
  Flag('output', None, 'The file to write.'),
  Flag('format', None, 'stablehlo, onnx or safetensors; by the ending of --output if not given.'),
)


def run(workdir: str | None, output: str | None, format: str | None) -> int:
  """Exports a network and prints how far the file's logits are from the network's; returns the exit code."""
  require(workdir=workdir, output=output)
  path = user_path(str(output), '--output')
  kind = (format or path.suffix.removeprefix('.')).lower()
  if kind not in export.FORMATS:
    raise ValueError(f'--format: {kind!r} is not known; allowed are {", ".join(export.FORMATS)}')
  folder = user_path(str(workdir), '--workdir')
  difference = export.export(Model.read(folder), load(folder).variables, path, kind)
  show(f'{path}: {kind}, {path.stat().st_size:,} bytes')
  if kind != 'safetensors':
    show(f'run on random images, its logits differ from the network’s by {difference:.1e} of the largest')
  return 0


COMMAND = Command(
  run,
  '--workdir=DIR --output=FILE [--format=stablehlo|onnx|safetensors]',
  '--workdir=runs/digits_eval --output=network.onnx',
  FLAGS,
  config='none',
)
