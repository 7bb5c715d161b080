"""Datasets of images and texts, in memory or streamed from files, and the augmentation of their batches."""
