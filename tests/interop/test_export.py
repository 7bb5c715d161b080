"""Exported files classify as the network does, run by other programs than ours."""

import dataclasses
import os
import pathlib
import re

import jax
import numpy as np
import onnx
import pytest

from darts_jax import training
from darts_jax.commands import export as command
from darts_jax.interop import export, onnx_file
from darts_jax.spaces import darts, published
from darts_jax.training.restore import make_apply


def random_network(name, stem, size):
  model = training.Model(
    published()[name], 2, 3, 7, stem, False, True, 1, (size, size, 3), (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)
  )
  net = model.network()
  shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), np.zeros((1, size, size, 3), np.float32), train=False))
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key in ('var', 'scale'):
      return rng.uniform(0.5, 2, leaf.shape).astype(np.float32)
    return (rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[-2] if leaf.ndim > 1 else 1)).astype(np.float32)

  return model, jax.tree.map_with_path(draw, shapes)


@pytest.fixture(scope='module')
def small():
  return random_network('DARTS_V2', 'cifar', 8)


# The second has dense 7×1 convolutions and lists edges twice, the third all pools, strides and the other stem. Both
# halve odd sizes.
@pytest.mark.parametrize(
  ('name', 'stem', 'size'), [('DARTS_V2', 'cifar', 8), ('AmoebaNet', 'cifar', 9), ('NASNet', 'imagenet', 33)]
)
def test_onnx_of_every_operation(tmp_path, name, stem, size):
  model, variables = random_network(name, stem, size)
  path = tmp_path / 'net.onnx'
  assert export.export(model, variables, path, 'onnx') < 1e-4
  images = np.random.default_rng(1).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
  expected = np.asarray(make_apply(model)(variables, images))
  found = onnx_file.run(path, images)
  assert found.shape == (3, 7)
  np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
  # Convolutions, BN and pools of the architecture, and nothing of JAX's.
  operators = {node.op_type for node in onnx.load(path).graph.node}
  assert operators <= {
    *('Sub', 'Div', 'Conv', 'BatchNormalization', 'Relu', 'MaxPool', 'AveragePool', 'Slice', 'Concat', 'Sum', 'Pad'),
    *('GlobalAveragePool', 'Flatten', 'Gemm', 'Identity'),
  }


def test_stablehlo_takes_batches_of_any_size_on_all_platforms(tmp_path, small):
  model, variables = small
  path = tmp_path / 'net.stablehlo'
  assert export.export(model, variables, path, 'stablehlo') < 1e-4
  loaded = export.load_stablehlo(path)
  assert set(loaded.platforms) == {'cpu', 'cuda', 'tpu'}
  for count in (1, 5):
    images = np.random.default_rng(count).uniform(0, 255, (count, 8, 8, 3)).astype(np.float32)
    expected = np.asarray(make_apply(model)(variables, images))
    np.testing.assert_allclose(loaded.call(images), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize('content', [b'', b'abc', bytes(99)])
def test_what_is_no_exported_network_is_refused(tmp_path, content):
  path = tmp_path / 'net.stablehlo'
  path.write_bytes(content)
  with pytest.raises(ValueError, match='^[^\n]*net.stablehlo: not a network that was exported as stablehlo'):
    export.load_stablehlo(path)


@pytest.mark.parametrize('kind', ['onnx', 'stablehlo'])
def test_what_differs_is_not_written(tmp_path, small, monkeypatch, kind):
  model, variables = small
  changed = jax.tree.map_with_path(lambda path, leaf: leaf * 1.1 if path[-1].key == 'classifier' else leaf, variables)
  monkeypatch.setattr(export, 'make_apply', lambda model: lambda _, images: make_apply(model)(changed, images))
  with pytest.raises(ValueError, match='the exported network differs from ours by .*; nothing was written'):
    export.export(model, variables, tmp_path / 'net', kind)
  assert list(tmp_path.iterdir()) == []


def test_the_command(tmp_path, small, capsys):
  model, variables = small
  training.write(model, variables, tmp_path / 'run')
  for kind in export.FORMATS:
    path = tmp_path / f'net.{kind if kind != "onnx" else "ONNX"}'
    assert command.run(str(tmp_path / 'run'), str(path), None) == 0
    assert f'{path}: {kind}, {path.stat().st_size:,} bytes' in capsys.readouterr().out
  assert (tmp_path / 'net.safetensors').read_bytes() == (tmp_path / 'run' / 'weights.safetensors').read_bytes()


@pytest.mark.parametrize(
  ('workdir', 'output', 'kind', 'said'),
  [
    (None, 'net.onnx', None, '--workdir: missing'),
    ('run', None, 'onnx', '--output: missing'),
    ('run', 'net.pt', None, "--format: 'pt' is not known; allowed are stablehlo, onnx, safetensors"),
    ('run', 'net.onnx', None, 'model.json: cannot be read'),
  ],
)
def test_wrong_flags_are_one_line(tmp_path, monkeypatch, workdir, output, kind, said):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=said):
    command.run(workdir, output, kind)
  assert list(pathlib.Path().iterdir()) == []


@pytest.mark.parametrize('kind', export.FORMATS)
def test_what_is_no_file_or_a_run_has_written_stays(tmp_path, small, monkeypatch, kind):
  monkeypatch.setattr(export, '_write', None)
  model, _ = small
  model.write(tmp_path)
  os.mkfifo(tmp_path / 'pipe')
  before = (tmp_path / 'model.json').read_bytes()
  for name, said in (('pipe', 'cannot be written .not a file, but a pipe'), ('model.json', 'is written by a run')):
    with pytest.raises(ValueError, match=f'^{re.escape(str(tmp_path / name))}: .*{said}'):
      export.export(model, {}, tmp_path / name, kind)
  assert (tmp_path / 'pipe').is_fifo()
  assert (tmp_path / 'model.json').read_bytes() == before


def test_a_folder_that_is_not_there_is_named(tmp_path, small):
  with pytest.raises(ValueError, match='nowhere/net.onnx: cannot be written'):
    export.export(*small, tmp_path / 'nowhere' / 'net.onnx', 'onnx')


@pytest.mark.parametrize('kind', export.FORMATS)
def test_a_network_with_noise_is_its_weights_alone(tmp_path, small, kind):
  model, variables = small
  cell = (('noise', 0), ('sep_conv_3x3', 1))
  model = dataclasses.replace(model, genotype=darts.genotype(cell, (2,), cell, (2,)))
  path = tmp_path / f'net.{kind}'
  if kind == 'safetensors':
    assert export.export(model, variables, path, kind) == 0
    return
  with pytest.raises(ValueError, match=f'^{kind}: the operation noise draws random numbers, .*; take safetensors$'):
    export.export(model, variables, path, kind)
  assert not path.exists()
