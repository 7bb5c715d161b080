import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.runtime.packed import Packed


def test_packing_keeps_every_leaf_in_its_place():
  tree = {
    'b': {'matrix': jnp.arange(6.0).reshape(2, 3), 'scalar': jnp.float32(7)},
    'a': [jnp.arange(8.0, 10.0), jnp.zeros((0, 4))],
  }
  packed = Packed.pack(tree)
  assert packed.vector.shape == (9,)
  for form in (packed, jax.device_get(packed), jax.jit(lambda p: p.replace(p.vector + 0))(packed)):
    jax.tree.map(np.testing.assert_array_equal, form.tree, tree)
  assert isinstance(jax.device_get(packed).tree['a'][0], np.ndarray)


def test_the_gradient_in_the_vector_is_the_packed_gradient_in_the_tree():
  tree = {'w': jnp.array([[1.0, 2.0], [3.0, 4.0]]), 'v': jnp.array([5.0, 6.0])}

  def loss(tree):
    return jnp.sum(jnp.sin(tree['w']) @ tree['v'])

  packed = Packed.pack(tree)
  gradient = jax.grad(lambda vector: loss(packed.replace(vector).tree))(packed.vector)
  np.testing.assert_array_equal(gradient, Packed.pack(jax.grad(loss)(tree)).vector)
