"""Files for the test servers of CIRR and CIRCO: made, checked as they lie on disk, explained where they are wrong."""

from cir.submissions.checking import check
from cir.submissions.cirr import server_percent
from cir.submissions.problems import Problem, Report, Rule, Score
from cir.submissions.servers import SERVERS, find
from cir.submissions.writing import Written, official, write

__all__ = [
    "SERVERS",
    "Problem",
    "Report",
    "Rule",
    "Score",
    "Written",
    "check",
    "find",
    "official",
    "server_percent",
    "write",
]
