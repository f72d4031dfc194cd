"""Notebooks run, carry no outputs, and define nothing that belongs in the package."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = ("adding_a_method", "first_steps", "looking_at_failures", "reading_records")
LONGEST = 3
"""Lines that a function of a notebook may have."""
SECONDS = 900
"""For one cell, on a machine that does much else; a notebook takes less than a minute on two free cores."""


def read(path):
    return nbformat.read(path, as_version=4)


def codes(book):
    """The Python of a notebook's cells, as (number, text), without cells that write files and lines of IPython's."""
    for number, cell in enumerate(book.cells):
        if cell.cell_type == "code" and not cell.source.startswith("%%"):
            yield number, "\n".join(line for line in cell.source.splitlines() if line[:1] not in "%!")


def outputs(book):
    """Say which cells carry an output, a count, or what a viewer left."""
    return [
        number
        for number, cell in enumerate(book.cells)
        if cell.cell_type == "code" and (cell.outputs or cell.execution_count is not None or cell.metadata)
    ]


def definitions(book):
    """Name the classes of a notebook and its functions of more than a few lines."""
    found = []
    for _, code in codes(book):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ClassDef):
                found.append(node.name)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if node.end_lineno - node.lineno + 1 > LONGEST:
                    found.append(node.name)
    return found


def test_all_notebooks_are_here():
    assert tuple(path.stem for path in PATHS) == NAMES


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_says_what_it_shows(path):
    book = read(path)
    nbformat.validate(book)
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")
    assert len({cell.id for cell in book.cells}) == len(book.cells)
    assert book.metadata.kernelspec.name == "python3" and set(book.metadata) == {"kernelspec", "language_info"}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    assert outputs(read(path)) == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_defines_nothing_that_belongs_in_the_package(path):
    assert definitions(read(path)) == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(path):
    texts = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    links = [link for text in texts for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if ":" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_rules_can_fail():
    code = "def f():\n    a = 1\n    b = 2\n    return a + b\n\ndef g():\n    return 1\n\nclass C: pass"
    cell = nbformat.v4.new_code_cell(code, execution_count=1)
    hidden = nbformat.v4.new_code_cell("%%writefile x.py\nclass D: pass")
    book = nbformat.v4.new_notebook(cells=[cell, hidden, nbformat.v4.new_code_cell("!ls\n1 + 1")])
    assert sorted(definitions(book)) == ["C", "f"] and outputs(book) == [0]
    book.cells[0].execution_count = None
    assert outputs(book) == []
    book.cells[1].outputs = [nbformat.v4.new_output("stream", text="x")]
    assert outputs(book) == [1]


RUN = """
import sys
import nbformat
from nbclient import NotebookClient

book = nbformat.read(sys.argv[1], as_version=4)
place = {"metadata": {"path": sys.argv[2]}}
NotebookClient(book, timeout=int(sys.argv[3]), kernel_name="python3", resources=place).execute()
nbformat.write(book, sys.argv[4])
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Execute a notebook in a process of its own, from the notebooks' folder, as Jupyter does."""

    def run(path):
        out = tmp_path_factory.mktemp("executed") / path.name
        arguments = [str(path), str(path.parent), str(SECONDS), str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # tests run beside one another
        command = [sys.executable, "-c", RUN, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr[-4000:]
        return read(out)

    return run


def printed(book):
    """All text that a notebook's cells put out."""
    found = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    texts = [output.text for output in found if output.output_type == "stream"]
    shown = [output.data for output in found if "data" in output]
    texts += [data.get("text/markdown", data.get("text/plain", "")) for data in shown]
    return "\n".join(texts), sum("image/png" in data for data in shown)


EXPECTED = {
    "adding_a_method": (["did you mean 'weight'?", "weighted_sum 8.0", "torch.Size([4, 1, 128])"], 0),
    "first_steps": (["45 queries, 653 images", "| lincir+rtd |", "world/circo/val:mAP@5"], 3),
    "looking_at_failures": (["| remove |", "of 45 queries the text helps", "index.html"], 3),
    "reading_records": (["| LinCIR |", "method.name", "table.tex", "won"], 0),
}
"""By notebook: what must be among its outputs, and how many pictures at least."""


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_promises(path, executed):
    book = executed(path)
    text, pictures = printed(book)
    wanted, least = EXPECTED[path.stem]
    assert [part for part in wanted if part not in text] == [] and pictures >= least
    assert outputs(book), "the check of stripped outputs sees an executed notebook"
