"""Differentiable architecture search in JAX and Flax.

An architecture is a `genotype`. A search finds one by gradients: `relaxation` turns architecture parameters α
into mixing weights, `nets` computes the supernet they mix, `hypergradient` estimates the gradient of the
validation loss with respect to α, `search` moves α and the weights, and `derive` reads a genotype off α.
"""

__version__ = '0.1.0'
