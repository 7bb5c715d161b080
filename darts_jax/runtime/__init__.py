"""What a run needs around its computation: devices, checkpoints, logs, signals. Knows nothing of architectures."""
