import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from cir import config as configs
from cir.cli import app
from cir.commands.shell import SETTINGS, command
from cir.errors import InputError, RunError

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
COMMANDS = [
    ["ablate"],
    ["demo"],
    ["train"],
    ["evaluate"],
    ["export"],
    ["score"],
    ["submit"],
    ["table"],
    ["compare"],
    ["compare-protocols"],
    ["import"],
    ["list"],
    ["data", "show"],
    ["data", "check"],
    ["data", "ids"],
    ["data", "mask"],
    ["data", "new"],
    ["data", "plus"],
    ["data", "source"],
    ["data", "triplets"],
    ["records", "list"],
    ["records", "diff"],
    ["records", "stale"],
    ["records", "check"],
    ["records", "export"],
    ["world", "build"],
    ["world", "pretrain"],
    ["world", "sheet"],
]
HEAVY = ("torch", "transformers", "numpy", "scipy", "faiss", "pandas", "PIL", "omegaconf", "jinja2")


def cir(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["world", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom cir.cli import app\n"
        f"try:\n    app({arguments})\nexcept SystemExit as end:\n    assert not end.code, end\n"
        "print('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(done.stdout.rsplit("LOADED", 1)[1].split())
    assert "typer" in loaded  # the check sees what was loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_shows_an_example(words):
    result = cir(*words, "--help")
    assert result.exit_code == 0
    assert f"  cir {' '.join(words)}" in result.stdout.split("Example")[1]


def test_every_command_is_tested_for_its_help():
    def walk(parent, words=()):
        for one in parent.registered_commands:
            yield [*words, one.name]
        for group in parent.registered_groups:
            yield from walk(group.typer_instance, (*words, group.name))

    assert sorted(walk(app)) == sorted(COMMANDS)


def test_examples_in_help_name_options_that_exist():
    for words in COMMANDS:
        text = cir(*words, "--help").stdout
        examples = text.split("Example")[1]
        options = {word for word in examples.split() if word.startswith("--")}
        assert all(option in text.split("Example")[0] for option in options), words


@pytest.fixture
def failing():
    program = typer.Typer(**SETTINGS)

    @command(program, "train", "cir train")
    def train(kind: str) -> None:
        raise {"input": InputError, "run": RunError, "stop": KeyboardInterrupt, "bug": ZeroDivisionError}[kind](
            "" if kind == "stop" else "one line"
        )

    @command(program, "other", "cir other")
    def other() -> None:
        pass

    return program


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [("input", 2, "error: one line"), ("run", 1, "error: one line"), ("stop", 130, "resumes from the last checkpoint")],
)
def test_errors_become_one_line_and_an_exit_code(failing, kind, code, message):
    result = CliRunner().invoke(failing, ["train", kind])
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_bugs_keep_their_traceback(failing):
    result = CliRunner().invoke(failing, ["train", "bug"])
    assert isinstance(result.exception, ZeroDivisionError)
    assert result.exit_code == 1


def test_usage_errors_exit_with_two():
    assert cir("nonsense").exit_code == 2
    assert cir("score", "cirr/val").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "absent.yaml"], "absent.yaml: no such file"),
        (["train", "experiments/forkme.yaml", "train.step=3"], "did you mean 'steps'"),
        (["evaluate"], "name a config, a checkpoint folder, or --method"),
        (["evaluate", "--method", "lincir", "cirr/val"], "lincir is trained"),
        (["table", "absent"], "no such file or folder: absent"),
        (["compare", "absent", "absent"], "no such file or folder: absent"),
        (["data", "show", "cirr/vall"], "did you mean 'cirr/val'"),
        (["score", "fashioniq/val", "--queries", "q.npz", "--gallery", "g.npz"], "fashioniq/dress/val"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "says",
)
def test_wrong_input_is_one_line_with_the_fix(arguments, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = cir(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_list_names_everything():
    text = cir("list").stdout
    for name in ("image_only", "lincir", "rtd", "arXiv:2312.01998", "cirr/val", "fashioniq/val", "circo v1", "siglip"):
        assert name in text


@pytest.fixture
def vectors(tmp_path):
    """CIRR's validation split, scored with vectors that put every target first."""
    from cir import data

    if not (DATA / "CIRR").is_dir():
        pytest.skip("needs the benchmarks' annotation files in ../shared/data")
    benchmark = data.load("cirr/val", DATA / "CIRR")
    generator = np.random.default_rng(0)
    gallery = generator.standard_normal((len(benchmark.gallery), 16)).astype(np.float32)
    row = {name: index for index, name in enumerate(benchmark.gallery)}
    queries = gallery[[row[query.targets[0]] for query in benchmark.queries]]
    np.savez(tmp_path / "q.npz", ids=[query.id for query in benchmark.queries], vectors=queries)
    np.savez(tmp_path / "g.npz", ids=list(benchmark.gallery), vectors=gallery)
    return tmp_path


def test_score_reads_vectors_and_writes_json(vectors):
    options = ["--data", DATA / "CIRR", "--queries", vectors / "q.npz", "--gallery", vectors / "g.npz"]
    result = cir("score", "cirr/val", *options, "--json", vectors / "out" / "scores.json")
    assert result.exit_code == 0, result.output
    found = json.loads((vectors / "out" / "scores.json").read_text())
    assert found["unit"] == "percent"
    assert found["scores"]["R@1"]["mean"] == 100.0
    assert "R@1      100.00" in result.stdout


def test_data_show_counts_what_is_on_disk():
    if not (DATA / "CIRR").is_dir():
        pytest.skip("needs the benchmarks' annotation files in ../shared/data")
    result = cir("data", "show", "cirr/val", "--root", DATA / "CIRR")
    assert result.exit_code == 0, result.output
    assert "4,181 queries, gallery of 2,297 images" in result.stdout


def test_the_yaml_to_copy_is_valid():
    config = configs.load(ROOT / "experiments" / "forkme.yaml")
    assert config.train.lr == 1e-3
    assert config.method["name"] == "lincir"


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "runs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_run_in_experiments_is_valid(path):
    configs.load(path)
