"""Observe VMA tagging for coherent device memory, and check it against a model."""

__version__ = "0.1.0"
