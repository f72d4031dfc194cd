"""The data doctor: what of a benchmark is here, what is not, what to do about it, and a view in the official layout."""

from cir.doctor.checking import CACHE, check
from cir.doctor.findings import Report, Split
from cir.doctor.view import Fixed, fix

__all__ = ["CACHE", "Fixed", "Report", "Split", "check", "fix"]
