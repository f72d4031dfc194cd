"""Records as a database: which fit a configuration, how two differ, which were altered, and other tools' formats."""

from cir.archive.match import matching, why_not

__all__ = ["matching", "why_not"]
