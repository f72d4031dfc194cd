"""Ablations: a question as a file, its cells trained and evaluated, the answer with its statistics."""
