"""Networks in Flax. Users add their own operations to `OPERATIONS`, and their own activations to `ACTIVATIONS`."""

from darts_jax.spaces.operations import ACTIVATIONS, OPERATIONS

__all__ = ['ACTIVATIONS', 'OPERATIONS']
