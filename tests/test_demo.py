"""The demo, shrunk: everything it promises is there, and a second call reuses it and says so."""

import contextlib
import csv
import io
import re
from pathlib import Path

import pytest

from cir import demo, records


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    out, said = tmp_path_factory.mktemp("demo"), []
    for _ in range(2):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            demo.run(out, seed=0, smoke=True)
        said.append(printed.getvalue())
    return out, said


def test_the_table_has_every_row_on_every_benchmark(twice):
    out, said = twice
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    wanted = {*demo.BASELINES, *demo.LABELS.values(), *demo.oracles.ORACLES}
    assert {next(iter(row.values())) for row in rows} == wanted
    for name in wanted:
        assert name in said[0]
    for format in ("md", "tex", "csv"):
        assert (out / f"table.{format}").stat().st_size > 0


def test_records_carry_what_makes_a_number_trustworthy(twice):
    out, _ = twice
    found = records.find([out / "records"])
    assert {record.benchmark.name for record in found.values()} >= set(demo.HEADLINES)
    for path, record in found.items():
        assert record.benchmark.name.startswith("world/")
        assert any("smoke" in stamp for stamp in record.benchmark.stamps)
        for mean in record.means.values():
            assert mean.low <= mean.mean <= mean.high
        assert path.with_suffix(".npz").exists()


def test_the_report_is_self_contained(twice):
    out, _ = twice
    pages = list((out / "report").glob("*.html"))
    assert (out / "report" / "index.html") in pages and len(pages) > 5
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"""(src|href)=["']?(https?:)?//""", text), page
        for target in re.findall(r'href="([^"#]+)"', text):
            assert Path(page.parent / target).exists() or target.startswith(("data:", "mailto:")), (page, target)


def test_the_second_call_reuses_everything_and_says_so(twice):
    _, (first, second) = twice
    assert "wrote" in first and "trained lincir" in first and "trained lincir+rtd" in first
    assert "kept" in second and "wrote" not in second
    assert "kept lincir:" in second and "kept lincir+rtd:" in second
    assert "0 pictures decoded" in second and "0 pictures decoded" not in first
