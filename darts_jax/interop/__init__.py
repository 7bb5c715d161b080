"""Weights from and to other systems."""
