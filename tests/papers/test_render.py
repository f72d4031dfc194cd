import csv
import io
import re
import shutil
import subprocess

import pytest

from cir.papers import render
from cir.papers.verdict import compare

TABLE = """
title: Odd & ends_of 100 %
paper: {title: Somebody's paper, venue: Here 2024, arxiv: "2401.00001"}
columns: ["circo/val:mAP@5", "circo/test:mAP@5"]
note: read # with ^care
rows:
  - name: ours | theirs_1
    backbone: a^b
    run: ../runs/mine.yaml
    reported:
      - {source: page 1, kind: official_repo, confidence: seen, "circo/val:mAP@5": 50.2, "circo/test:mAP@5": 12.30}
      - {source: page 2, kind: survey_transcription, confidence: seen, "circo/val:mAP@5": 50.9}
  - name: recalled
    missing: does not exist here yet
    reported: {source: nobody, kind: memory, confidence: recalled, "circo/val:mAP@5": 17.11}
  - name: far
    run: ../runs/mine.yaml
    reported: {source: page 3, kind: committed, confidence: seen, digits: 2, "circo/val:mAP@5": [60, 0.5]}
"""


@pytest.fixture
def compared(house):
    for seed, mean in ((0, 50.0), (1, 50.4)):
        house.record(mean, seed=seed)
    return compare(house.write(TABLE), [house.records])


def test_markdown_shows_ours_beside_theirs(compared):
    text = render.markdown(compared)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}
    assert "| 50.20 ± 0.28 / 50.2 or 50.9 = | - / 12.3[^" in rows[2]
    assert rows[2].startswith(r"| ours \| theirs_1[^1][^2][^3][^4] |")
    assert "| - / [17.11, recalled] |" in rows[3].replace("50.20 ± 0.28", "-")
    assert "**50.20 ± 0.28 / 60.00 ± 0.50 ≠**" in rows[4]
    used, defined = set(re.findall(r"\[\^(\d+)\](?!:)", text)), re.findall(r"^\[\^(\d+)\]:", text, re.MULTILINE)
    assert used == set(defined) and defined == [str(number) for number in range(1, len(defined) + 1)]
    assert "4 cells: 1 equal, 1 differs, 1 not runnable here, 1 not checked (recalled)." in text
    assert "The sources differ on circo/val:mAP@5; the nearer one decides." in text
    assert "Ours over 2 seeds: mean ± standard deviation." in text
    assert "Not runnable here: the labels of circo/test are on its server" in text


def test_latex_is_well_formed(compared):
    text = render.latex(compared)
    assert text.count(r"\begin{tabular}{llrr}") == text.count(r"\end{tabular}") == 1
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert all(len(re.findall(r"(?<!\\)&", line)) == 3 and line.endswith(r"\\") for line in body)
    assert r"50.20 $\pm$ 0.28 / 60.00 $\pm$ 0.50 $\neq$" in body[2]
    plain = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    outside = re.sub(r"\$[^$]*\$", "", plain.replace(r"\$", ""))
    assert not re.search(r"(?<!\\)[%#^_$~]|[^\x00-\x7f]", outside)
    depth = outside.replace(r"\{", "").replace(r"\}", "")
    assert depth.count("{") == depth.count("}")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex, which compiles the table")
def test_latex_compiles(compared, tmp_path):
    start = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
    page = start + render.latex(compared) + r"\end{document}"
    (tmp_path / "page.tex").write_text(page)
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "page.tex"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_csv_has_a_line_per_cell_and_source(compared):
    rows = list(csv.DictReader(io.StringIO(render.csv_text(compared))))
    assert len(rows) == 7
    assert [row["verdict"] for row in rows] == [
        "equal",
        "equal",
        "not runnable here",
        "not checked (recalled)",
        "not reported",
        "differs",
        "not reported",
    ]
    assert float(rows[0]["ours"]) == pytest.approx(50.2) and rows[0]["seeds"] == "2"
    assert (rows[0]["reported"], rows[1]["reported"], rows[1]["source"]) == ("50.2", "50.9", "page 2")
    assert (rows[5]["reported_sd"], rows[5]["tolerance"], rows[3]["confidence"]) == ("0.5", "0.5", "recalled")


def test_what_differs_is_said(compared):
    assert render.differences(compared) == [
        "far on circo/val:mAP@5 is 50.20 ± 0.28, reported 60.00 ± 0.50 with 0.5 points of tolerance"
    ]
