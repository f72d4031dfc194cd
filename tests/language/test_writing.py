import json
from collections import Counter

import pytest

from cir.errors import InputError
from cir.language.rules import Row
from cir.language.writing import Report, Target, finish, write


def outcomes(report, stop=None, captions=20):
    for number in range(report.captions, captions):
        if number == stop:
            raise KeyboardInterrupt
        rows = [Row(f"caption {number}", f"text {i}", f"target {number} {i}", "add") for i in range(number % 3)]
        yield number, rows, "" if rows else "nothing to say"


def run(path, count=0, stop=None, overwrite=False, **identity):
    target = Target(path, {"seed": 0, **identity}, count, every=3)
    report = write(target, 20, lambda report: outcomes(report, stop), overwrite)
    finish(target, report, note="x")
    return report


@pytest.mark.parametrize("count", [0, 7])
@pytest.mark.parametrize("stops", [(1,), (7, 8), (4, 4, 10)])
def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path, count, stops):
    whole = run(tmp_path / "whole.jsonl", count)
    path = tmp_path / "parts.jsonl"
    for stop in stops:
        if count and stop > 7:  # enough by then
            continue
        with pytest.raises(KeyboardInterrupt):
            run(path, count, stop)
        assert not path.exists()
        with open(tmp_path / "parts.jsonl.partial", "ab") as file:
            file.write(b'{"half a li')
    assert run(path, count) == whole
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert (tmp_path / "parts.jsonl.report").read_bytes() == (tmp_path / "whole.jsonl.report").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "parts.jsonl", "parts.jsonl.report", "whole.jsonl", "whole.jsonl.report",
    ]  # fmt: skip


def test_the_report_counts_captions_triplets_and_reasons(tmp_path):
    report = run(tmp_path / "t.jsonl")
    assert report == Report(20, 19, Counter({"add": 19}), Counter({"nothing to say": 7}))
    kept = json.loads((tmp_path / "t.jsonl.report").read_text())
    assert kept["none"] == {"nothing to say": 7} and kept["note"] == "x" and kept["made_from"] == {"seed": 0}
    lines = (tmp_path / "t.jsonl").read_text().splitlines()
    assert len(lines) == 19 and json.loads(lines[0]) == {
        "reference_caption": "caption 1", "conditioning_caption": "text 0", "target_caption": "target 1 0",
        "form": "add", "caption": 1,
    }  # fmt: skip


def test_a_count_is_met_exactly(tmp_path):
    assert run(tmp_path / "t.jsonl", count=5).triplets == 5
    assert len((tmp_path / "t.jsonl").read_text().splitlines()) == 5


def test_files_that_are_there_and_runs_of_other_settings_are_refused(tmp_path):
    path = tmp_path / "t.jsonl"
    run(path)
    with pytest.raises(InputError, match="--overwrite"):
        run(path)
    run(path, overwrite=True, count=3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "u.jsonl", stop=5)
    with pytest.raises(InputError, match="other settings"):
        run(tmp_path / "u.jsonl", seed=1)
    with pytest.raises(InputError, match="other settings"):
        run(tmp_path / "u.jsonl", count=3)
    (tmp_path / "u.jsonl.state").write_text("{")
    with pytest.raises(InputError, match="not readable"):
        run(tmp_path / "u.jsonl")


def test_no_triplet_at_all_is_an_error_with_the_reasons(tmp_path):
    target = Target(tmp_path / "t.jsonl", {})
    report = write(target, 2, lambda report: iter([(0, [], "no noun phrase"), (1, [], "no noun phrase")]))
    with pytest.raises(InputError, match=r"no caption of 2 .*2 no noun phrase"):
        finish(target, report)
    assert list(tmp_path.iterdir()) == []
