import csv
import io
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from cir.ablation import write as writing
from cir.ablation.answer import answer
from cir.ablation.write import csv_text, markdown, write

COLUMN, OTHER = "world/circo/val:mAP@5", "world/cirr/val:R@1"
NASTY = r"50% off_ & {all} | #1 $x^2~\ <b>"


@pytest.fixture
def small(made):
    """Two compared cells and one without records, over three seeds; eight queries, so that signs can decide."""
    base = [0.1, 0.2, 0.3, 0.4, 0.1, 0.2, 0.3, 0.4]
    for name, shift in (("full", 0.0), ("without noise", 0.3), ("alike", 0.0)):
        made.add(
            name,
            {
                seed: {
                    COLUMN: [value + shift + 0.02 * (seed - 1) * (index == seed) for index, value in enumerate(base)],
                    OTHER: [float(index % 3 == seed % 2) for index in range(8)],
                }
                for seed in range(3)
            },
        )
    made.add("never run", {0: {}, 1: {}, 2: {}})
    return made


GOLDEN = """\
| Cell | world/circo/val:mAP@5 | world/cirr/val:R@1 |
| --- | ---: | ---: |
| full (baseline) | 25.00 ± 0.25 [17.3, 32.6] | **37.50** ± 0.00 [20.8, 54.2] |
| without noise | **55.00** ± 0.25 [47.3, 62.6] ↑ | **37.50** ± 0.00 [20.8, 54.2] |
| alike | 25.00 ± 0.25 [17.3, 32.6] | **37.50** ± 0.00 [20.8, 54.2] |
| never run |  |  |

| Cell | Column | Points | Interval | p (Holm) | d_z | In seed sd | Seeds: points | p (Holm) |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| without noise | world/circo/val:mAP@5 | +30.00 | [+30.00, +30.00] | **0.016** | +inf | +120.0 |  |  |
| alike | world/circo/val:mAP@5 | +0.00 | [+0.00, +0.00] | 1.000 | +0.00 | +0.0 |  |  |
| without noise | world/cirr/val:R@1 | +0.00 | [+0.00, +0.00] | 1.000 | +0.00 |  |  |  |
| alike | world/cirr/val:R@1 | +0.00 | [+0.00, +0.00] | 1.000 | +0.00 |  |  |  |
"""


def test_the_table_written_out(small, tmp_path):
    write(small.ablation([COLUMN, OTHER]), small.cells, small.records, tmp_path / "out")
    text = (tmp_path / "out/table.md").read_text()
    assert text.startswith(GOLDEN)
    notes = text[len(GOLDEN) :]
    assert "- never run: seed 0, seed 1, seed 2: no record.\n" in notes
    assert "standard deviation over seeds (3 seeds)" in notes and "Holm's correction" in notes
    assert "- world/circo/val: protocol circo v1 (8 queries, 30 images, data 00ff00)." in notes
    assert notes.count("protocol circo v1") == 2  # one line per benchmark, whatever the number of records


def test_the_answer_says_what_differs_and_what_does_not(small):
    ablation = replace(small.ablation([COLUMN, OTHER]), answer="No, not at all.")
    text = markdown(answer(ablation, small.cells, small.records))
    assert text.startswith(
        "# Does it matter?\n\n**Answer.** No, not at all.\n\n1 of the 2 other cells differs from `full`"
    )
    assert "1 cell cannot be compared yet" in text
    told = next(line for line in text.splitlines() if line.startswith(f"- **{COLUMN}**"))
    assert "against `full` (25.00): `without noise` is 30.00 points higher [+30.00, +30.00] (p = 0.016)" in told
    assert "Not shown to differ: `alike` (+0.00 [+0.00, +0.00], p = 1.000)" in told
    assert told.endswith("No number yet: `never run`.")
    assert GOLDEN.split("\n\n")[0] in text and "(plot.png)" in text


def test_nothing_to_compare(made):
    made.add("full", {0: {}}).add("other", {0: {COLUMN: [0.5]}})
    text = markdown(answer(made.ablation([COLUMN]), made.cells, made.records))
    assert "No cell can be compared with `full` yet" in text and f"**{COLUMN}**: `full` has no number yet." in text
    assert "other: not compared: full has no number." in text and "| other | **50.00** [50.0, 50.0] |" in text


def test_seeds_are_told_beside_queries(made):
    values = [0.1, 0.2, 0.3, 0.4, 0.2, 0.3]
    made.add("full", {seed: {COLUMN: [value + 0.01 * seed for value in values]} for seed in range(3)})
    made.add("up", {seed: {COLUMN: [value + 0.2 + 0.03 * seed for value in values]} for seed in range(3)})
    found = answer(made.ablation([COLUMN]), made.cells, made.records)
    training = found.contrasts["up", COLUMN].training
    assert f"over 3 seeds p = {training.p_value:.3f}" in markdown(found)
    assert f"+22.00 [{training.low:+.2f}, {training.high:+.2f}]" in markdown(found)


def test_the_csv_has_every_number(small):
    found = answer(small.ablation([COLUMN, OTHER]), small.cells, small.records)
    rows = list(csv.DictReader(io.StringIO(csv_text(found))))
    seeds = [row for row in rows if row["kind"] == "seed"]
    assert len(seeds) == 3 * 2 * 3 and len(rows) == len(seeds) + 4 * 2
    shown = {(row["name"], row["column"]): row for row in rows if row["kind"] == "cell"}
    told, one = shown["without noise", COLUMN], found.contrasts["without noise", COLUMN]
    assert float(told["mean"]) == found.summaries["without noise", COLUMN].mean and told["against"] == "full"
    assert (float(told["p"]), float(told["p_holm"])) == (one.queries.p_value, one.adjusted)
    assert (told["won"], told["tied"], told["lost"]) == ("8", "0", "0")
    never = shown["never run", COLUMN]
    assert never["mean"] == never["p"] == "" and never["missing"].startswith("seed 0: no record; seed 1")
    by_seed = [float(row["mean"]) for row in seeds if row["name"] == "full" and row["column"] == COLUMN]
    assert by_seed == list(found.summaries["full", COLUMN].seeds.values())


def test_levels_of_a_grid_stand_in_every_file(made, tmp_path):
    vary = {"method.noise": ["none", "some"], "train.batch": [32, 64]}
    for row, noise in enumerate(vary["method.noise"]):
        for batch in vary["train.batch"]:
            values = {0: {COLUMN: [0.2 + 0.1 * row, 0.3 + 0.1 * row]}}
            made.add(f"{noise} {batch}", values, {"method.noise": noise, "train.batch": batch})
    ablation = made.ablation([COLUMN], vary=vary)
    write(ablation, made.cells, made.records, tmp_path / "out")
    text = (tmp_path / "out/answer.md").read_text()
    assert "## Main effect of method.noise\n\n| method.noise |" in text and "| some | 35.00 [30.0, 40.0] |" in text
    assert "**method.noise** in world/circo/val:mAP@5, against `none`, averaged over 2 settings of the others" in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/table.csv").read_text())))
    assert [(row["factor"], row["name"]) for row in rows if row["kind"] == "level"] == [
        ("method.noise", "none"), ("method.noise", "some"), ("train.batch", "32"), ("train.batch", "64"),
    ]  # fmt: skip
    assert r"method.noise & world/circo/val:mAP@5 \\" in (tmp_path / "out/table.tex").read_text()


@pytest.fixture
def latex(made, tmp_path):
    made.add("full", {s: {COLUMN: [0.1, 0.2, 0.1 * s]} for s in range(3)})
    made.add(NASTY, {s: {COLUMN: [0.5, 0.7, 0.2 * s]} for s in range(3)}).add("gone", {s: {} for s in range(3)})
    write(made.ablation([COLUMN]), made.cells, made.records, tmp_path / "out")
    return (tmp_path / "out/table.tex").read_text()


def test_latex_has_its_structure_and_escapes(latex):
    assert r"50\% off\_ \& \{all\} \textbar{} \#1 \$x\textasciicircum{}2\textasciitilde{}\textbackslash{}" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == latex.count(r"\toprule") == 2
    assert re.sub(r"\\[{}]", "", latex).count("{") == re.sub(r"\\[{}]", "", latex).count("}")
    assert re.sub(r"\\\$", "", latex).count("$") % 2 == 0
    assert latex.isascii() or not set(latex) - set(map(chr, range(128)))
    for table in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", latex, re.DOTALL):
        lines = [line for line in table[1].splitlines() if line.endswith(r"\\")]
        assert lines and {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(table[0])}
    assert "gone & --" in latex


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex, which compiles the table")
def test_latex_compiles(latex, tmp_path):
    page = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + latex + "\\end{document}\n"
    (tmp_path / "page.tex").write_text(page)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]


def test_equal_records_give_equal_files(small, tmp_path):
    ablation = small.ablation([COLUMN])
    first = write(ablation, small.cells, small.records, tmp_path / "one")
    second = write(ablation, small.cells, small.records, tmp_path / "two")
    assert [path.name for path in first] == [
        "table.md", "table.tex", "table.csv", "answer.md", "plot.svg", "plot.png",
    ]  # fmt: skip
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(path.name for path in first)


def test_without_matplotlib_the_rest_is_written(small, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "find_spec", lambda name: None if name == "matplotlib" else name)
    files = write(small.ablation([COLUMN]), small.cells, small.records, tmp_path / "out")
    assert {path.suffix for path in files} == {".md", ".tex", ".csv"}
    text = (tmp_path / "out/answer.md").read_text()
    assert "pip install 'cir[plots]'" in text and "plot.png" not in text
