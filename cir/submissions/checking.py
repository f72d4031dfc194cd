"""Checking a submission file as it lies on disk against the annotation files."""

from collections.abc import Sequence
from pathlib import Path

from cir import data
from cir.errors import InputError
from cir.schema import Benchmark
from cir.submissions import recognising
from cir.submissions.keys import printable
from cir.submissions.problems import Problem, Report
from cir.submissions.reading import SHAPE, Upload, read
from cir.submissions.server import Expected
from cir.submissions.servers import SERVERS, benchmark_name


def check(path: Path, root: Path, *, name: str = "", split: str = "") -> Report:
    """Say what is wrong with a file, whoever wrote it; where labels are public, score it too.

    `root` holds the annotations. `name` (`cirr`, `circo`) and `split` (`val`, `test`) say what the file is for; left
    empty, its content does. A file that cannot be read is a report; only missing annotations are an InputError.
    """
    upload = read(path)
    if upload.content is None:
        return Report(path, upload.size, upload.sha256, problems=upload.problems)
    if not recognising.queries(upload.content):
        keys = ", ".join(map(printable, list(upload.content)[:5])) or "nothing"
        nothing = Problem(SHAPE, f"no key is a query id: this is no submission (it holds {keys})")
        return Report(path, upload.size, upload.sha256, problems=(*upload.problems, nothing))
    dataset = name or recognising.dataset(upload.content)
    loaded = _splits(dataset, root)
    if split:
        wanted = benchmark_name(dataset, split).removeprefix(data.WORLD)
        chosen = [bench for bench in loaded if bench.name.removeprefix(data.WORLD) == wanted]
        if not chosen:
            raise InputError(f"{root}: the annotations of {wanted} are not here; name their folder with --data")
    else:
        chosen = [recognising.split(upload.content, loaded)]
    return compare(upload, chosen[0], loaded)


def compare(upload: Upload, benchmark: Benchmark, splits: Sequence[Benchmark] = ()) -> Report:
    """Compare a file that was read with the split it is for; `splits` are all that are known of the dataset."""
    server = SERVERS[data.dataset(benchmark.name)]
    others = tuple(bench for bench in splits if bench.name != benchmark.name)
    checked = server.check(upload, Expected(benchmark, others))
    problems = [*upload.problems, *checked.problems]
    notes = list(checked.notes)
    scores = server.scores(benchmark, checked) if benchmark.labelled else ()
    if scores and any(problem.rule.severity == "error" for problem in problems):
        notes.append("scored as it stands: what is missing or cannot be read counts as a miss")
    return Report(
        upload.path,
        upload.size,
        upload.sha256,
        benchmark.name,
        checked.metric,
        tuple(sorted(problems, key=lambda problem: problem.rule.severity != "error")),
        scores,
        tuple(notes),
    )


def _splits(name: str, root: Path) -> list[Benchmark]:
    """Load every split of a dataset whose annotations are here."""
    loaded, trouble = [], ""
    for split in ("val", "test"):
        try:
            loaded.append(data.load(benchmark_name(name, split), root))
        except InputError as error:
            trouble = trouble or str(error)
    if not loaded:
        raise InputError(f"to check a file of {name}, its annotations are needed, --data ROOT; {trouble}")
    return loaded
