"""What architectures are scored by: one file an evaluator, of which only those that train import JAX."""
