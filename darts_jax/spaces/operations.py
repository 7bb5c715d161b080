"""The operations and activations by name.

The package's own have a description as their value; `darts_jax.nets` implements them. A user adds a Flax module or a
function with `OPERATIONS['mine'] = Mine`; see docs/operations.md.
"""

from typing import Any

#: The operation that draws random numbers.
NOISE = 'noise'

#: Operations on images, the candidates of an edge.
OPERATIONS: dict[str, Any] = {
  'none': 'zeros',
  'max_pool_3x3': 'the maximum of 3×3 pixels',
  'avg_pool_3x3': 'the mean of 3×3 pixels, of those inside the image',
  'skip_connect': 'the image itself; at stride 2 two strided 1×1 convolutions side by side',
  'sep_conv_3x3': 'a separable 3×3 convolution, twice',
  'sep_conv_5x5': 'a separable 5×5 convolution, twice',
  'dil_conv_3x3': 'a dilated separable 3×3 convolution',
  'dil_conv_5x5': 'a dilated separable 5×5 convolution',
  'sep_conv_7x7': 'a separable 7×7 convolution, twice',
  'conv_7x1_1x7': 'a 1×7 convolution and one of 7×1',
  'nor_conv_1x1': 'a 1×1 convolution',
  'nor_conv_3x3': 'a 3×3 convolution',
  NOISE: 'independent numbers of a standard normal distribution in place of the image',
}

#: Activations of recurrent cells.
ACTIVATIONS: dict[str, Any] = {
  'none': 'zeros',
  'tanh': 'hyperbolic tangent',
  'relu': 'rectified linear unit',
  'sigmoid': 'logistic function',
  'identity': 'the state itself',
}


def is_own(name: str) -> bool:
  """Whether an operation on images was added by a user, as a Flax module."""
  return not isinstance(OPERATIONS.get(name, ''), str)
