import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from darts_jax.nets.padding import pad_images


@pytest.mark.parametrize(
  ('rows', 'columns', 'dilation', 'fill'),
  [
    ((1, 2), (3, 0), 1, 0.0),
    ((0, 0), (2, 2), 1, -np.inf),
    ((2, 1), (2, 1), 2, 0.0),
    ((4, 1), (0, 3), 3, 7.0),
    ((0, -1), (-1, 1), 1, 0.0),
  ],
)
def test_equals_padding_of_four_axes(rows, columns, dilation, fill):
  x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)

  def expected(x):
    between = dilation - 1
    return lax.pad(x, jnp.float32(fill), [(0, 0, 0), (*rows, between), (*columns, between), (0, 0, 0)])

  def found(x):
    return pad_images(x, rows, columns, dilation=dilation, fill=fill)

  np.testing.assert_array_equal(found(x), expected(x))
  dy = np.random.default_rng(1).normal(size=expected(x).shape).astype(np.float32)
  np.testing.assert_array_equal(jax.vjp(found, x)[1](dy)[0], jax.vjp(expected, x)[1](dy)[0])
