"""What a maintainer wants to stay true of the repository itself: targets, pins, links, sizes."""

import re
import subprocess
from pathlib import Path

import pytest

from cir import config as configs
from cir.ablation import plan
from cir.papers import table as papers_table
from cir.papers import verdict

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("demo", "test", "lint", "types", "format", "golden", "speed", "world", "ablations", "test-lavis", "help")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "datasets").glob("*.md")])
LARGEST = 15 * 2**20
REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:==([^\s;]+))?")


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins():
    """What constraints.txt fixes, by name; a package may be pinned once per Python version."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    matched = [REQUIREMENT.match(line) for line in lines if line]
    return {normal(match[1]): match[2] for match in matched}


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("target", TARGETS)
def test_the_makefile_has_the_target_and_explains_it(target):
    text = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:.*## \S", text, re.MULTILINE)
    assert target in re.search(r"^\.PHONY: (.*)", text, re.MULTILINE)[1].split()


def test_make_help_lists_the_targets():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    assert set(TARGETS) <= listed


def test_make_golden_rewrites_the_golden_files():
    done = subprocess.run(["make", "-n", "golden"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "tests/test_golden.py --regenerate" in done.stdout


def test_every_dependency_is_pinned():
    extras = project()["optional-dependencies"]
    wanted = [
        *project()["dependencies"],
        *(line for extra in ("dev", "siglip", "lora", "parquet", "datasets", "llm") for line in extras[extra]),
    ]
    names = {normal(REQUIREMENT.match(line)[1]) for line in wanted}
    fixed = pins()
    assert fixed["torch"] == "2.13.0"
    assert {name for name in names if not fixed.get(name)} == set()


def test_pins_lie_in_the_ranges_of_the_project():
    version = pytest.importorskip("packaging.version").Version
    specifiers = pytest.importorskip("packaging.requirements").Requirement
    for line in project()["dependencies"]:
        wanted = specifiers(line)
        assert wanted.specifier.contains(version(pins()[normal(wanted.name)])), line


def tracked():
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name]


def test_no_tracked_file_is_large():
    files = tracked()
    assert ROOT / "pyproject.toml" in files  # the check sees what is tracked
    assert [path for path in files if path.is_file() and path.stat().st_size > LARGEST] == []


def test_no_dataset_and_no_output_is_tracked():
    places = [path.relative_to(ROOT) for path in tracked()]
    wrong = [p for p in places if p.parts[0] in ("runs", "out", ".cache", ".venv")]
    wrong += [p for p in places if p.parts[0] == "datasets" and p.name not in ("README.md", "counts.json")]
    assert wrong == []


EXPERIMENTS = ROOT / "experiments"


@pytest.mark.parametrize(
    "path", [EXPERIMENTS / "forkme.yaml", *sorted((EXPERIMENTS / "runs").rglob("*.y*ml"))], ids=lambda path: path.name
)
def test_every_experiment_is_a_valid_configuration(path):
    config = configs.load(path)
    assert config.name != "run", "a run needs a name of its own: rows of tables carry it"


@pytest.mark.parametrize("path", sorted((EXPERIMENTS / "tables").glob("*.y*ml")), ids=lambda path: path.stem)
def test_every_table_of_a_paper_can_be_compared(path, tmp_path):
    """Columns are known, runs exist and are valid, and each cell has a verdict with nothing but the repository here."""
    table = papers_table.read(path)
    compared = verdict.compare(table, [tmp_path])
    assert all(row.run is None or row.run.is_file() for row in table.rows)
    assert len(compared.flat) == len(table.rows) * len(table.columns)
    for cell in compared.flat:
        assert cell.verdict not in verdict.CHECKED, "there are no records in an empty folder"
        assert cell.reason or cell.verdict is verdict.Verdict.NOT_REPORTED
    assert any(cell.theirs for cell in compared.flat)
    assert all(row.reported for row in table.rows)


def test_no_other_file_of_experiments_is_left_unread():
    rooms = {path.parent.relative_to(EXPERIMENTS).as_posix() for path in EXPERIMENTS.rglob("*.y*ml")}
    assert rooms <= {".", "runs", "tables", "ablations"}


@pytest.mark.parametrize("path", sorted((EXPERIMENTS / "ablations").glob("*.y*ml")), ids=lambda path: path.stem)
def test_every_ablation_expands(path):
    cells = plan.expand(plan.read(path))
    assert len(cells) > 1 and len({cell.folder for cell in cells}) == len(cells)


def links(text):
    """Yield the targets of Markdown links and pictures, and of HTML pictures, outside code."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    yield from re.findall(r"\]\(\s*<?([^)>\s]+)>?[^)]*\)", text)
    yield from re.findall(r"(?:src|href)=\"([^\"]+)\"", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    inside = [link for link in links(page.read_text()) if not re.match(r"[a-z]+:|#", link)]
    broken = [link for link in inside if not (page.parent / link.split("#")[0]).exists()]
    assert broken == []


def test_links_are_seen():
    text = 'see [a](docs/a.md#part) and ![b](<b.png> "title"), `[c](c.md)`, <img src="d.png"> [e](https://e.org)'
    assert list(links(text)) == ["docs/a.md#part", "b.png", "https://e.org", "d.png"]


def test_every_yaml_of_the_house_is_readable():
    yaml = pytest.importorskip("yaml")
    for path in tracked():
        if path.suffix in (".yml", ".yaml", ".cff") and path.is_file():
            assert yaml.safe_load(path.read_text()), path
