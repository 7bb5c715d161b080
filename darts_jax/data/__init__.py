"""Datasets as arrays in memory, and the augmentation of their batches."""
