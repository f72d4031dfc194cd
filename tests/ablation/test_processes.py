"""Real ablations in processes of their own: killed twice and finished, crashed, wrapped, submitted."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from cir import records
from cir.ablation import launch, plan

ROOT = Path(__file__).parents[2]
THINGS = ("star", "disc", "square", "moon")
STEPS = 60


@pytest.fixture
def place(tmp_path, monkeypatch, small_world, tiny_clip_folder):
    """A working folder with a run of some seconds on the small world."""
    return prepared(tmp_path, monkeypatch, small_world, tiny_clip_folder)


def prepared(place, monkeypatch, world, clip):
    monkeypatch.chdir(place)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Path("captions.txt").write_text("\n".join([f"a red {thing} on a green backdrop" for thing in THINGS] * 4))
    Path("lincir.yaml").write_text(f"""
name: lincir
method: {{name: lincir}}
backbone: {{name: {clip}, device: cpu, cache: cache}}
data: {{root: {world}}}
prompt: {{overflow: cut}}
train: {{source: captions.txt, steps: {STEPS}, batch: 8, save_every: 7, log_every: 1}}
""")
    Path("noise.yaml").write_text("""
question: does the noise matter?
base: lincir.yaml
vary: {method.noise_scale: [0.0, 0.5]}
seeds: [0, 1]
show: ["world/circo/val:mAP@5", "world/cirr/val:R@1"]
""")
    return place


def ablate(*arguments, wait=True):
    command = [sys.executable, "-m", "cir", "ablate", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return (process.communicate()[0], process.returncode) if wait else process


def wait_for(what, process=None):
    for _ in range(1200):
        if what():
            return
        assert process is None or process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError("it never happened")


def lines(folder):
    history = folder / "history.jsonl"
    return len(history.read_text().splitlines()) if history.exists() else 0


def free(folder):
    lock = launch.claim(folder) if folder.exists() else None
    if lock is not None:
        lock.close()
    return lock is not None or not folder.exists()


def means(cells):
    found = {}
    for cell in cells:
        for record in records.find([cell.folder / "records"]).values():
            found[cell.name, cell.seed, record.benchmark.name] = record.means
    return found


@pytest.mark.slow
def test_an_ablation_that_is_killed_twice_ends_like_one_that_is_not(
    tmp_path, monkeypatch, small_world, tiny_clip_folder
):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        prepared(tmp_path / name, monkeypatch, small_world, tiny_clip_folder)
        cells = plan.expand(plan.read("noise.yaml"))
        if name == "killed":  # within the first pair of cells, and within the second
            for first in (cells[0], cells[2]):
                at = random.Random().randint(1, STEPS - 20)
                process = ablate("noise.yaml", "--jobs", 2, wait=False)
                wait_for(lambda: lines(first.folder) >= at, process)  # noqa: B023
                process.send_signal(signal.SIGKILL)
                process.communicate()
                assert process.returncode == -signal.SIGKILL
                wait_for(lambda: all(free(cell.folder) for cell in cells))  # noqa: B023  no child runs on
                assert lines(first.folder) < STEPS, at
        said, code = ablate("noise.yaml", "--jobs", 2)
        assert code == 0, said
        assert "does the noise matter?" in said and "method.noise_scale=0.5" in said
        if name == "killed":
            assert "method.noise_scale=0.0, seed 0: running" not in said, "the first pair was done"
        assert "stopped after step" in (cells[0].folder / "log.txt").read_text() or name == "whole"
        assert (Path("runs/ablations/noise/table.csv")).is_file()
    results = {}
    for name in ("whole", "killed"):
        monkeypatch.chdir(tmp_path / name)
        results[name] = means(cells), {c.folder: load_file(c.folder / "last" / "model.safetensors") for c in cells}
    (whole, weights), (killed, others) = results["whole"], results["killed"]
    assert len(whole) == 8 and whole == killed
    for folder in weights:
        for key in weights[folder]:
            np.testing.assert_array_equal(weights[folder][key], others[folder][key])
    nothing, code = ablate("noise.yaml")
    assert code == 0 and ": running" not in nothing


def test_a_stopped_ablation_saves_and_a_crash_leaves_the_others(place):
    Path("noise.yaml").write_text("""
question: does the source matter?
base: lincir.yaml
cells: [{name: there}, {name: absent, set: {train.source: absent.txt}}]
show: ["world/circo/val:mAP@5"]
""")
    there, absent = plan.expand(plan.read("noise.yaml"))
    process = ablate("noise.yaml", wait=False)
    wait_for(lambda: lines(there.folder) >= 2, process)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[0]
    assert process.returncode == 130 and "the same command goes on from there" in said, said
    assert 2 <= lines(there.folder) < STEPS and free(there.folder)
    assert list((there.folder / "snapshots").iterdir())
    said, code = ablate("noise.yaml")
    assert code == 1, said
    assert "absent, seed 0: failed: error: absent.txt" in said and "there, seed 0: done" in said
    assert "1 of 2 runs failed" in said.splitlines()[-1] and str(absent.folder / "log.txt") in said
    assert lines(there.folder) == STEPS and "resum" not in said


@pytest.mark.slow
def test_a_wrappers_base_is_trained_first_and_found_again(place):
    triplet = '{"reference_caption": "a red star", "conditioning_caption": "make it %s", "target_caption": "a %s star"}'
    Path("triplets.jsonl").write_text("\n".join(triplet % (c, c) for c in ("blue", "green", "lime", "teal") * 4))
    text = Path("lincir.yaml").read_text().replace("lincir", "rtd").replace("captions.txt", "triplets.jsonl")
    Path("rtd.yaml").write_text(text.replace(f"steps: {STEPS}", "steps: 4") + "base: lincir.yaml\n")
    Path("tau.yaml").write_text("""
question: does the temperature matter?
base: rtd.yaml
vary: {method.tau: [0.05]}
show: ["world/circo/val:mAP@5"]
""")
    said, code = ablate("tau.yaml", "--jobs", 2)
    assert code == 0, said
    assert said.index("base lincir, seed 0: done") < said.index("method.tau=0.05, seed 0: running")
    (cell,) = plan.expand(plan.read("tau.yaml"))
    (record,) = records.find([cell.folder / "records"]).values()
    assert (record.method.name, record.method.training.steps, record.method.base.steps) == ("rtd", 4, STEPS)
    assert record.config["base"] == str(cell.needs.folder)
    planned, code = ablate("tau.yaml", "--dry-run")
    assert code == 0 and "1 have their records, 0 would run" in planned and "base" not in planned


def test_a_clusters_job_runs_the_ordinary_command(place, capfd):
    Path("sum.yaml").write_text("""
question: is the sum any good?
base: lincir.yaml
cells: [{name: sum, set: {method.name: sum}}, {name: broken, set: {method.name: sum, backbone.name: absent}}]
show: ["world/circo/val:mAP@5"]
""")
    from cir.ablation.jobs import needed
    from cir.ablation.kept import Kept
    from cir.ablation.run import run

    ablation = plan.read("sum.yaml")
    kept = Kept(ablation.benchmarks)
    todo = needed(plan.expand(ablation), kept)
    run(todo, kept, launch.Cluster(ablation.folder, ["time=5"], cluster="local"))
    assert [job.state for job in todo] == ["done", "failed"], capfd.readouterr()
    assert "absent" in todo[1].why and "exit code 2" in todo[1].why
    assert kept.of(todo[0].cell)["world/circo/val"][1].method.name == "sum"
    assert (
        (todo[0].folder / "log.txt").read_text().startswith("$ cir evaluate runs/ablations/sum/sum/seed-0/config.yaml")
    )


def test_a_process_ends_when_the_one_that_started_it_is_gone(tmp_path):
    starter = f"""
import subprocess, sys, time
child = subprocess.Popen([{sys.executable!r}, "-c", {SLEEPER!r}], stdin=subprocess.PIPE, start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True, env=env, cwd=tmp_path)
    number = int(parent.stdout.readline())
    wait_for((tmp_path / "ready").exists)
    os.kill(number, 0)  # it lives
    parent.kill()
    parent.communicate()
    wait_for((tmp_path / "saved").exists)


SLEEPER = """
import pathlib, signal, sys, threading, time
from cir.ablation.child import watch
def save(*_):
    pathlib.Path("saved").touch()
    sys.exit()
signal.signal(signal.SIGTERM, save)
threading.Thread(target=watch, daemon=True).start()
pathlib.Path("ready").touch()
time.sleep(60)
"""
