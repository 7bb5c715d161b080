"""Networks: what is computed. A user adds operations of their own to `OPERATIONS`, and activations to `ACTIVATIONS`."""

from darts_jax.spaces.operations import ACTIVATIONS, OPERATIONS

__all__ = ['ACTIVATIONS', 'OPERATIONS']
