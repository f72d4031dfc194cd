"""What is skipped, what runs and in which order, what one crash costs, what the plan says."""

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cir import config as configs
from cir import data, records
from cir.ablation import display, estimate, jobs, launch, plan
from cir.ablation.kept import Kept
from cir.ablation.run import run
from cir.cli import app
from cir.commands import ablate
from cir.errors import InputError
from cir.records import BackboneInfo, BenchmarkInfo, CodeInfo, Mean, MethodInfo, ProtocolInfo, Record, TrainingInfo

SHOW = "world/circo/val:mAP@5"


@pytest.fixture
def place(tmp_path, monkeypatch, small_world):
    """A working folder with a run that is not trained, one that is, and a wrapper of the trained one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cir.ablation.run.POLL", 0.01)
    common = f"backbone: {{name: tiny, device: cpu, cache: cache}}\ndata: {{root: {small_world}}}\n"
    train = "train: {source: captions.txt, steps: 10, batch: 4}\n"
    Path("slerp.yaml").write_text(f"name: slerp\nmethod: {{name: slerp}}\n{common}")
    Path("lincir.yaml").write_text(f"name: lincir\nmethod: {{name: lincir}}\n{common}{train}")
    Path("rtd.yaml").write_text(f"name: rtd\nmethod: {{name: rtd}}\nbase: lincir.yaml\n{common}{train}")
    return tmp_path


def question(base, extra, name="q"):
    path = Path(f"{name}.yaml")
    path.write_text(f"question: does it matter?\nbase: {base}.yaml\nshow: ['{SHOW}']\n{extra}")
    return path


def expanded(base, extra, name="q"):
    return plan.expand(plan.read(question(base, extra, name)))


def record_of(config, *, seconds=2.0, training=None, **changes):
    """The record that evaluating a configuration on the small world's CIRCO leaves."""
    bench = data.load("world/circo/val", Path(config.data.root))
    described = BenchmarkInfo(bench.name, bench.version, "val", bench.fingerprint, 2, len(bench.gallery))
    record = Record(
        run=config.name,
        fingerprint=records.fingerprint(configs.fingerprint(config), changes.get("created", "")),
        config=configs.resolved(config),
        seed=config.seed,
        protocol=ProtocolInfo("circo", 1, "as published"),
        benchmark=described,
        backbone=BackboneInfo(config.backbone.name, "1" * 16, "clip", "float32", "cpu"),
        method=MethodInfo(config.method["name"], "Somebody 2024", training=training),
        code=CodeInfo("0", "", False),
        packages={},
        seconds=seconds,
        peak_mb=1.0,
        means={"mAP@5": Mean(50.0, 40.0, 60.0, 2)},
        tied=0,
        created="2024-01-01T00:00:00+00:00",
    )
    return dataclasses.replace(record, **changes)


def missing(cell):
    return Kept(["world/circo/val"]).missing(cell)


def test_a_record_of_the_cell_is_found_wherever_it_lies(place):
    (cell,) = expanded("slerp", "cells: [{name: one}]")
    assert missing(cell) == ["world/circo/val"]
    for folder in (
        cell.folder / "records",
        Path("runs/ablations/other/two/seed-0/records"),
        Path("experiments/results/x"),
    ):
        path = records.write(folder, record_of(cell.config))
        assert missing(cell) == []
        assert Kept(["world/circo/val"]).of(cell)["world/circo/val"][0] == path
        path.unlink()
    renamed = dataclasses.replace(cell.config, name="called otherwise", evaluate=["circo/val"])
    records.write(cell.folder / "records", record_of(renamed))
    assert missing(cell) == [], "names and other benchmarks do not move numbers"


@pytest.mark.parametrize(
    "change",
    [
        lambda r: dataclasses.replace(r, stale="a bug"),
        lambda r: dataclasses.replace(r, config={**r.config, "seed": 1}),
        lambda r: dataclasses.replace(r, config={**r.config, "method": {"name": "slerp", "alpha": 0.5}}),
        lambda r: dataclasses.replace(r, config={**r.config, "smoke": True}),
        lambda r: dataclasses.replace(r, config={**r.config, "of another version": 1}),
        lambda r: dataclasses.replace(r, protocol=dataclasses.replace(r.protocol, version=99)),
        lambda r: dataclasses.replace(r, protocol=dataclasses.replace(r.protocol, name="circo/gone")),
        lambda r: dataclasses.replace(r, benchmark=dataclasses.replace(r.benchmark, fingerprint="0" * 16)),
        lambda r: dataclasses.replace(r, benchmark=dataclasses.replace(r.benchmark, name="circo/val")),
    ],
    ids=["stale", "seed", "options", "smoke", "keys", "version", "protocol", "data", "benchmark"],
)
def test_anything_else_runs_again(place, change):
    (cell,) = expanded("slerp", "cells: [{name: one}]")
    records.write(cell.folder / "records", change(record_of(cell.config)))
    assert missing(cell) == ["world/circo/val"]


def test_records_on_other_data_do_not_reach_the_answer(place):
    (cell,) = expanded("slerp", "cells: [{name: one}]")
    good = records.write(cell.folder / "records", record_of(cell.config))
    other = dataclasses.replace(record_of(cell.config).benchmark, fingerprint="0" * 16)
    records.write(cell.folder / "records", record_of(cell.config, benchmark=other, created="2025"))
    kept = Kept(["world/circo/val"])
    assert len(kept.records) == 2 and list(kept.current([cell])) == [good]


def test_data_that_is_not_here_cannot_speak_against_a_record(place):
    (cell,) = expanded("slerp", "set: {data.root: absent}\ncells: [{name: one}]")
    here = dataclasses.replace(cell.config, data=expanded("slerp", "cells: [{name: one}]")[0].config.data)
    records.write(cell.folder / "records", record_of(here))
    assert missing(cell) == []


def test_a_world_goes_by_its_name(place):
    (cell,) = expanded("slerp", "cells: [{name: one}]")
    records.write(cell.folder / "records", record_of(cell.config))
    kept = Kept(["circo/val"])
    kept.records = {
        Path("x"): dataclasses.replace(record_of(cell.config), benchmark=BenchmarkInfo("circo/val", "", "", "", 1, 1))
    }
    with pytest.raises(InputError, match="holds the bundled world; the name is world/circo/val"):
        kept.of(cell)


class Writing:
    """Runs that take a few looks each, and leave what a real one leaves; cells called `bad` leave nothing."""

    def __init__(self, lanes=1, looks=2):
        self.lanes, self.looks = lanes, looks
        self.order, self.most = [], 0
        self.under_way = 0

    def start(self, job):
        lock = launch.claim(job.folder)
        if lock is None:
            return None
        self.order.append(str(job))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        return Running(self, job, lock)


class Running:
    why = ""

    def __init__(self, launcher, job, lock):
        self.launcher, self.job, self.lock, self.left = launcher, job, lock, launcher.looks

    def poll(self):
        self.left -= 1
        if self.left > 0:
            return None
        self.launcher.under_way -= 1
        self.lock.close()
        if "bad" in self.job.name or self.job.config.method.get("noise_scale") == 13.0:
            self.job.log.write_text("some words\nerror: the disk is full\n\n")
            return 3
        if self.job.cell is None:
            (self.job.folder / "last").mkdir()
            (self.job.folder / "last" / "config.json").write_text("{}")
        elif "silent" not in self.job.name:
            records.write(self.job.folder / "records", record_of(self.job.config))
        return 0

    def stop(self):
        self.left = 1

    kill = stop


def running(cells, launcher):
    kept = Kept(["world/circo/val"])
    todo = jobs.needed(cells, kept)
    run(todo, kept, launcher)
    return {str(job): job for job in todo}, kept


def test_one_crashed_cell_loses_no_other(place, capsys):
    cells = expanded(
        "slerp",
        "cells: [{name: one}, {name: bad}, {name: silent, set: {method.alpha: 0.1}},"
        " {name: two, set: {method.alpha: 0.2}}]",
    )
    done, _ = running(cells, Writing())
    assert [job.state for job in done.values()] == ["done", "kept", "failed", "done"], "bad is one by another name"
    cells = expanded("slerp", "cells: [{name: bad, set: {method.alpha: 0.7}}, {name: three, set: {method.alpha: 0.3}}]")
    done, _ = running(cells, Writing())
    assert done["bad, seed 0"].state == "failed" and done["three, seed 0"].state == "done"
    assert done["bad, seed 0"].why == "error: the disk is full (exit code 3)"
    said = capsys.readouterr().err
    assert "silent, seed 0: failed: ended without a record of world/circo/val" in said
    assert "[2/2] three, seed 0: done in 0:0" in said and "see runs/ablations/q/bad/seed-0/log.txt" in said


def test_what_failed_runs_again_and_what_is_done_does_not(place):
    cells = expanded("slerp", "cells: [{name: one}, {name: silent, set: {method.alpha: 0.1}}]")
    running(cells, Writing())
    again = Writing()
    running(cells, again)
    assert again.order == ["silent, seed 0"]


def test_bases_run_first_and_once_and_take_their_cells_down_with_them(place):
    extra = "vary: {train.lr: [0.1, 0.2]}\nseeds: [0, 1]"
    first = Writing(lanes=4)
    done, _ = running(expanded("rtd", extra), first)
    assert set(first.order[:2]) == {"base lincir, seed 0", "base lincir, seed 1"} and len(first.order) == 6
    assert {job.state for job in done.values()} == {"done"}
    again = Writing()
    running(expanded("rtd", "vary: {train.lr: [0.1, 0.3]}"), again)
    assert again.order == ["train.lr=0.3, seed 0"], "the base is there, and one of the cells"
    Path("lincir.yaml").write_text(Path("lincir.yaml").read_text().replace("lincir}", "lincir, noise_scale: 13.0}"))
    broken = Writing()
    done, _ = running(expanded("rtd", extra), broken)
    assert broken.order == ["base lincir, seed 0", "base lincir, seed 1"]
    assert done["train.lr=0.1, seed 1"].why == "base lincir, seed 1 failed"


@pytest.mark.parametrize("lanes", [1, 3])
def test_as_many_run_at_a_time_as_may(place, lanes):
    launcher = Writing(lanes=lanes, looks=3)
    running(expanded("slerp", "vary: {method.alpha: [0.1, 0.2, 0.3, 0.4]}"), launcher)
    assert launcher.most == lanes and len(launcher.order) == 4


def test_cells_of_one_configuration_run_once(place):
    launcher = Writing(lanes=4)
    done, _ = running(expanded("slerp", "cells: [{name: one}, {name: the same}]"), launcher)
    assert launcher.order == ["one, seed 0"] and done["the same, seed 0"].state == "kept"


def test_what_another_process_trains_is_waited_for(place, monkeypatch):
    (cell,) = expanded("slerp", "cells: [{name: one}]")
    cell.folder.mkdir(parents=True)
    held = launch.claim(cell.folder)
    assert held is not None and launch.claim(cell.folder) is None
    seen = []
    update = display.Lines.update

    def watch(board):
        update(board)
        seen.append(board.jobs[0].state)
        if seen == ["elsewhere"] * 2:  # the other process ends, and leaves what it was for
            records.write(cell.folder / "records", record_of(cell.config))
            held.close()

    monkeypatch.setattr(display.Lines, "update", watch)
    launcher = Writing()
    done, _ = running([cell], launcher)
    assert launcher.order == [] and done["one, seed 0"].state == "kept" and "elsewhere" in seen


def test_a_folder_of_another_configuration_is_cleared_and_of_the_same_is_resumed(place):
    def job_of(lr):
        (cell,) = expanded("lincir", f"cells: [{{name: one, set: {{train.lr: {lr}}}}}]")
        return jobs.Job(cell.name, cell.config, cell.folder, cell, None)

    job = job_of(0.1)
    job.open()
    snapshot = job.folder / "snapshots" / "step-00000004"
    snapshot.mkdir(parents=True)
    (job.folder / "run.json").write_text("{}")
    job_of(0.1).open()
    assert snapshot.exists() and (job.folder / "run.json").exists()
    job_of(0.2).open()
    assert not snapshot.exists() and not (job.folder / "run.json").exists()
    assert configs.load(job.folder / "config.yaml").train.lr == 0.2


def test_how_far_a_run_is_comes_from_the_last_whole_line(place):
    (cell,) = expanded("lincir", "cells: [{name: one}]")
    job = jobs.Job(cell.name, cell.config, cell.folder, cell, None, state="running")
    assert job.steps_done() == (0, 0.0) and display.progress(job) == ("0/10", "")
    job.folder.mkdir(parents=True)
    rows = [{"step": 2, "seconds": 30.0}, {"step": 4, "seconds": 60.0}, {"step": 4, "world/circo/val:mAP@5": 50.0}]
    text = "\n".join(map(json.dumps, rows)) + '\n{"step": 5, "sec'
    (job.folder / "history.jsonl").write_text(text)
    assert job.steps_done() == (4, 60.0)
    assert display.progress(job) == ("4/10", "1:30")


def test_the_table_shows_what_runs_first(place):
    (cell,) = expanded("lincir", "cells: [{name: one}]")
    many = [jobs.Job(f"cell {n}", cell.config, cell.folder, cell, None, state="done") for n in range(60)]
    many[55].state, many[58].state, many[59].state = "running", "failed", "waiting"
    shown = display.foremost(many)
    assert len(shown) == display.ROWS
    assert [job.state for job in shown[-3:]] == ["running", "failed", "waiting"]


def test_the_table_names_cell_seed_state_and_steps(place):
    from rich.console import Console

    (cell,) = expanded("lincir", "cells: [{name: 'one [bold]'}]")
    job = jobs.Job(cell.name, cell.config, cell.folder, cell, None, state="failed", why="no [disk]")
    console = Console(width=100, record=True, file=open("/dev/null", "w"))
    console.print(display.Table.draw(type("Board", (), {"jobs": [job]})()))
    console.file.close()
    text = console.export_text()
    assert "one [bold]" in text and "failed: no [disk]" in text and "0/10" in text and "1 failed" in text


def test_costs_come_from_the_runs_that_resemble_it_most(place):
    (cell,) = expanded("lincir", "cells: [{name: one}]")
    job = jobs.Job(cell.name, cell.config, cell.folder, cell, None)

    def trained(steps, seconds, batch=4, **changes):
        config = configs.load("lincir.yaml", [f"train.batch={batch}"])
        info = TrainingInfo(steps=steps, seconds=seconds, source="", config="")
        return record_of(config, training=info, seconds=3.0, **changes)

    assert estimate.seconds(job, []) is None
    assert estimate.seconds(job, [trained(20, 40.0)]) == 10 * 2.0 + 3.0
    assert estimate.seconds(job, [trained(20, 40.0), trained(10, 10.0)]) == 10 * 1.0 + 3.0, "the same steps"
    assert estimate.seconds(job, [trained(10, 40.0, batch=8)]) == 10 * 2.0 + 3.0, "by rows of the batch"
    assert estimate.seconds(job, [trained(10, 40.0, batch=8), trained(20, 20.0)]) == 10 * 1.0 + 3.0
    other = dataclasses.replace(trained(20, 40.0), method=MethodInfo("rtd", ""))
    assert estimate.seconds(job, [other]) is None
    job.folder.mkdir(parents=True)
    (job.folder / "history.jsonl").write_text('{"step": 4, "seconds": 8.0}\n')
    assert estimate.seconds(job, [trained(20, 40.0)]) == 6 * 2.0 + 3.0, "what is left of it"


def test_costs_of_what_is_not_trained_are_those_of_evaluating(place):
    (cell,) = expanded("slerp", "cells: [{name: one}]")
    job = jobs.Job(cell.name, cell.config, cell.folder, cell, None)
    assert estimate.seconds(job, []) is None
    assert estimate.seconds(job, [record_of(cell.config, seconds=s) for s in (1.0, 2.0, 9.0)]) == 2.0


def cir(*arguments):
    result = CliRunner().invoke(app, ["ablate", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def everything():
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def test_a_dry_run_prints_the_plan_and_writes_nothing(place):
    path = question("rtd", "vary: {train.lr: [0.1, 0.2]}\nseeds: [0, 1]")
    first, *_ = plan.expand(plan.read(path))
    records.write(first.folder / "records", record_of(first.config, seconds=3.0))
    training = TrainingInfo(steps=10, seconds=57.0, source="", config="")
    records.write(Path("experiments/results/x"), record_of(configs.load("rtd.yaml"), training=training, seconds=3.0))
    before = everything()
    result = cir(path, "--dry-run", "--jobs", 2)
    assert result.exit_code == 0, result.output
    assert everything() == before
    assert "2 cells, 2 seeds: 4 runs, 1 have their records, 3 would run, and 2 that they stand on" in result.stdout
    assert f"train.lr=0.1, seed 0: has its records, in {first.folder}/records" in result.stdout
    assert "train.lr=0.2, seed 1: would run, about 1:00" in result.stdout
    assert "base lincir, seed 1: would run, cost unknown" in result.stdout
    assert "estimated: 3:00, 1:30 with 2 at a time, without 2 of unknown cost" in result.stdout


@pytest.mark.parametrize(
    ("base", "extra", "options", "said"),
    [
        ("slerp", "cells: [{name: one}]", ["--only", "two"], "--only 'two': no such cell; known: one"),
        ("slerp", "cells: [{name: one}]", ["--jobs", "-1"], "--jobs -1: expected"),
        ("slerp", "cells: [{name: one}]", ["--slurm", "gpus=1"], "only with --launcher slurm"),
        (
            "slerp",
            "cells: [{name: one, set: {method.alpa: 1}}]",
            [],
            "cell 'one': method.alpa: unknown option of slerp; did you mean 'alpha'",
        ),
        ("slerp", "cells: [{name: one, set: {method.name: slurp}}]", [], "'slurp' is unknown; did you mean 'slerp'"),
        ("rtd", "cells: [{name: one, set: {base: ''}}]", [], "cell 'one': rtd wraps another method"),
    ],
)
def test_what_cannot_run_is_said_before_anything_does(place, base, extra, options, said):
    path = question(base, extra)
    before = everything()
    result = cir(path, *options)
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert result.stderr.startswith("error: ") and everything() == before


def test_one_cell_can_be_asked_for_by_name_or_folder(place):
    cells = expanded("slerp", "vary: {method.alpha: [0.1, 0.2]}\nseeds: [0, 1]")
    for name in ("method.alpha=0.2", "method.alpha-0.2"):
        assert [(c.name, c.seed) for c in ablate.select(cells, [name])] == [
            ("method.alpha=0.2", 0),
            ("method.alpha=0.2", 1),
        ]
    assert ablate.select(cells, []) == list(cells)


def test_cores_are_shared_among_runs(monkeypatch):
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert launch.threads(1) == {}, "one run alone keeps what is set"
    assert launch.threads(3) == dict.fromkeys(launch.THREADS, "2") and launch.threads(99)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert launch.threads(2)["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize("option", ["gpu=1", "gpus"])
def test_what_a_cluster_does_not_take_is_named(option):
    with pytest.raises(InputError, match=f"--slurm {option}: (did you mean 'gpus'|expected key=value)"):
        launch.parameters([option])
