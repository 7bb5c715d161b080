"""Search spaces: what an architecture is. NumPy and JSON; nothing here imports JAX."""
