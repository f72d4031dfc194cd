"""Composed image retrieval: train zero-shot adapters, run ablations, reproduce tables."""

__version__ = "0.1.0"
