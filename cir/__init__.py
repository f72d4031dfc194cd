"""Composed image retrieval: train zero-shot adapters, run ablations, reproduce tables."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import `load` (`cir.adapter.load`) when it is first asked for, so that `import cir` stays light."""
    if name != "load":
        raise AttributeError(f"module 'cir' has no attribute {name!r}")
    from cir.adapter import load

    return load
