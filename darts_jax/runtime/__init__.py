"""Infrastructure of runs: devices, checkpoints, logs, signals. It does not depend on architectures."""
