"""Who may import whom: the table of docs/design.md as code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "cir").rglob("*.py"))

EVERYWHERE = {"errors", "files", "schema"}
MAY_IMPORT: dict[str, set[str]] = {
    "__main__": {"cli"},
    "backbones": {"progress", "prompts", "randomness"},
    "cli": {"commands", "demo"},
    "config": {"layers"},
    "layers": set(),
    "hub": {"config", "methods"},
    "data": {"progress"},
    "doctor": {"data", "progress"},
    "errors": set(),
    "files": set(),
    "importers": {"methods", "progress", "backbones"},
    "keywords": set(),
    "language": {"keywords", "progress"},
    "metrics": set(),
    "objectives": set(),
    "optim": {"config", "methods", "backbones.base", "progress"},
    "progress": set(),
    "prompts": set(),
    "protocols": {"metrics"},
    "provenance": set(),
    "randomness": set(),
    "record_values": {"stats"},
    "records": {"config", "record_values", "stats"},
    "archive": {"config", "data", "layers", "metrics", "protocols", "record_values", "records", "report", "stats"},
    "papers": {"archive", "config", "data", "layers", "protocols", "records", "report"},
    "report": {"records", "stats"},
    "schema": set(),
    "score": {"data", "search", "stats", "protocols"},
    "search": set(),
    "stats": set(),
    "submissions": {"data", "metrics", "protocols", "records", "search"},
    "methods": {"prompts", "objectives", "keywords", "progress", "randomness", "backbones.base"},
    "train": {"config", "methods", "backbones.base", "progress", "provenance", "optim", "randomness"},
    "world": {
        "backbones.base",
        "backbones.tiny",
        "backbones.tiny_blip2",
        "config",
        "data",
        "methods.base",
        "objectives",
        "optim",
        "progress",
        "prompts",
        "randomness",
        "train",
    },
}
"""Rooms that are named; those in `ABOVE` may import everything but one another's callers."""
ABOVE: dict[str, set[str]] = {
    "ablation": {"commands", "cli", "demo"},
    "adapter": {"train", "report", "records", "demo", "commands", "cli", "importers"},
    "pretrained": {"train", "report", "records", "demo", "commands", "cli", "importers", "adapter"},
    "retrieval": {"train", "report", "records", "evaluate", "runs", "commands", "cli", "demo"},
    "evaluate": {"train", "report", "runs", "commands", "cli", "demo"},
    "protocol_comparison": {"train", "report", "records", "evaluate", "runs", "commands", "cli", "demo"},
    "runs": {"commands", "cli", "demo"},
    "demo": {"commands", "cli"},
    "commands": {"cli"},
}
"""Rooms that may import all but the ones given here."""

PSEUDO_ROOM = "cir"
"""`import cir`: for its version, its path, nothing else."""


def room_of(path):
    return path.relative_to(ROOT / "cir").parts[0].removesuffix(".py")


def imported(path):
    """Yield the absolute names a file imports, `from cir import stats` as `cir.stats`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; only absolute ones can be checked"
            if node.module == "cir":
                yield from (f"cir.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


def allowed(room, module):
    inside = module.removeprefix("cir.")
    other = inside.split(".")[0]
    if module == PSEUDO_ROOM or other == room or other in EVERYWHERE:
        return True
    if room in ABOVE:
        return other not in ABOVE[room]
    return any(inside == name or inside.startswith(f"{name}.") for name in MAY_IMPORT[room])


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    room = room_of(path)
    if room == "__init__":
        assert set(imported(path)) == {"typing", "cir.adapter"}, "it holds the version, and `load` when asked for"
        return
    assert room in MAY_IMPORT or room in ABOVE, f"{room} is a new room; give it a line in the table"
    wrong = [name for name in imported(path) if name.split(".")[0] == "cir" and not allowed(room, name)]
    assert not wrong, f"{room} may not import {wrong}"


@pytest.mark.parametrize("module", ["cir.data", "cir.methods", "cir.methods.lincir", "cir.report"])
def test_the_rule_can_fail(module):
    assert not allowed("protocols", module)


def test_a_method_imports_no_other_method():
    shared = {
        "base",
        "checkpoint",
        "concepts",
        "inversion",
        "joined",
        "masking",
        "noise",
        "phrases",
        "projector",
        "qformer",
        "resampler",
        "texts",
        "tuning",
    }
    for path in (ROOT / "cir" / "methods").glob("*.py"):
        if path.stem in ("__init__", "checkpoint"):
            continue
        others = {name.split(".")[2] for name in imported(path) if name.startswith("cir.methods.")}
        assert others <= shared, f"{path.name} imports {others - shared}"


def test_torchvision_is_never_imported():
    for path in [*PATHS, *(ROOT / "tests").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        assert not any(name.split(".")[0] == "torchvision" for name in imported(path)), path


def test_transformers_are_imported_in_backbones_and_where_the_tiny_model_is_made():
    users = {str(p.relative_to(ROOT)) for p in PATHS if any(n.split(".")[0] == "transformers" for n in imported(p))}
    elsewhere = {user for user in users if not user.startswith(("cir/backbones/", "cir/world/"))}
    assert users and not elsewhere


def test_no_file_is_called_utils():
    assert not [path for path in ROOT.glob("[!.]*/**/*.py") if path.stem in ("utils", "helpers", "common", "misc")]


def test_datasets_holds_no_package():
    assert not list((ROOT / "datasets").rglob("__init__.py"))


def test_nothing_that_can_run_code_is_loaded():
    forbidden = {"pickle", "cloudpickle", "joblib", "dill", "marshal"}
    for path in PATHS:
        assert not any(name.split(".")[0] in forbidden for name in imported(path)), path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path
            if isinstance(node, ast.keyword) and node.arg == "weights_only":
                assert isinstance(node.value, ast.Constant) and node.value.value is True, path


LIGHT = {
    "cir.ablation.plan": ("torch", "transformers"),
    "cir.ablation.write": ("torch", "transformers", "matplotlib"),
    "cir.records": ("torch", "transformers", "PIL"),
    "cir.archive": ("torch", "transformers"),
    "cir.papers.render": ("torch", "transformers"),
    "cir.report.tables": ("torch", "transformers"),
    "cir.report.gallery": ("torch", "transformers"),
    "cir.report.index": ("torch", "transformers"),
    "cir.report.comparison": ("torch", "transformers"),
    "cir.protocols": ("torch", "transformers", "PIL"),
    "cir.search": ("torch", "transformers", "PIL"),
    "cir.score": ("torch", "transformers"),
    "cir.data": ("torch", "transformers"),
    "cir.config": ("torch", "transformers", "numpy"),
    "cir.language.llm": ("torch", "transformers", "openai"),
}


def test_importing_the_package_imports_nothing_more():
    """`cir.load` is there, but its room comes in only when it is asked for."""
    loaded = loaded_modules_after("import cir; assert cir.__version__")
    assert not {name for name in loaded if name.startswith("cir.")} and "torch" not in loaded
    assert "cir.adapter" in loaded_modules_after("import cir; cir.load")


def loaded_after(code):
    """The top-level modules loaded by a fresh interpreter that ran `code`."""
    return {name.split(".")[0] for name in loaded_modules_after(code)}


def loaded_modules_after(code):
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sorted(sys.modules), sep='\\n')"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return set(done.stdout.splitlines())


def test_rooms_right_of_the_methods_run_without_torch():
    """One interpreter for all: what none of them may load is not loaded, however it would come in."""
    loaded = loaded_after("\n".join(f"import {module}" for module in LIGHT))
    assert not loaded & {"torch", "transformers"}
    assert {"numpy", "omegaconf"} <= loaded  # the check sees what was loaded


@pytest.mark.parametrize("module", ["cir.records", "cir.protocols", "cir.search", "cir.config"])
def test_the_lightest_rooms_stay_light(module):
    assert not loaded_after(f"import {module}") & set(LIGHT[module])
