import jax
import numpy as np
import pytest

from darts_jax.runtime import weights


def test_saved_weights_come_back_and_others_are_refused(tmp_path):
  tree = {'params': {'b': np.arange(6.0, dtype=np.float32).reshape(2, 3), 'a': {'c': np.ones(2, np.float32)}}}
  path = tmp_path / 'weights.safetensors'
  weights.save(tree, path)
  back = weights.load(path, jax.tree.map(np.zeros_like, tree))
  jax.tree.map(np.testing.assert_array_equal, back, tree)
  for template, said in (
    ({'params': {'b': np.zeros((2, 3), np.float32)}}, 'tensor params/a/c: not part of the network'),
    ({'params': {**tree['params'], 'd': np.zeros(1)}}, 'tensor params/d: missing'),
    ({'params': {**tree['params'], 'b': np.zeros((3, 2), np.float32)}}, r'params/b: float32\[2, 3\] found'),
  ):
    with pytest.raises(ValueError, match=said):
      weights.load(path, template)
  content = path.read_bytes()
  path.write_bytes(content[:-3])
  with pytest.raises(ValueError, match='not a whole safetensors file'):
    weights.load(path, tree)
  with pytest.raises(ValueError, match='nothing.safetensors: cannot be read'):
    weights.load(tmp_path / 'nothing.safetensors', tree)


def test_damaged_weights_are_read_or_refused(tmp_path, complaints):
  tree = {'params': {'a': np.arange(6.0, dtype=np.float32)}}
  path = tmp_path / 'weights.safetensors'
  weights.save(tree, path)
  assert 100 < len(complaints(lambda path: weights.load(path, tree), path)) < 400
  path.write_bytes(path.read_bytes().replace(b'"F32"', b'"BF1"'))
  with pytest.raises(ValueError, match='^[^\n]*weights.safetensors: not a whole safetensors file'):
    weights.load(path, tree)
