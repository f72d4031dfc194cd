"""The benchmark of `experiments/speed` runs, and its claims hold in sizes and counts; seconds are not tested."""

import importlib
import json
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cir.search import blocks, scores

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "speed"


@pytest.fixture
def speed(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("metrics")
    for name in ("metrics", "reference"):
        sys.modules.pop(name)


@pytest.mark.parametrize(("protocol", "q", "g"), [("cirr", 120, 90), ("circo", 12, 300)])
def test_the_plain_side_computes_the_same_numbers(speed, protocol, q, g):
    case = speed.build(protocol, q, g, seed=3)
    ours, plain = case.ours(), case.plain()
    assert len(plain) == (7 if protocol == "cirr" else 8) and set(ours) == set(plain)
    assert all(abs(ours[name] - plain[name]) < 1e-12 for name in plain)
    assert 0.1 < np.mean(list(plain.values())) < 0.99  # neither empty nor trivial


def test_cirr_at_full_size_needs_a_200th_of_the_table_of_names(speed, monkeypatch):
    monkeypatch.setattr(speed, "WIDTH", 32)  # scores and names do not get fewer
    q, g = speed.SIZES["cirr"]
    case = speed.build("cirr", q, g)
    tracemalloc.start()
    case.ours()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    names = q * g * np.array(case.gallery.ids).itemsize  # ranked once, and once more without the reference
    assert 200 * peak < 2 * names


def test_every_pair_is_multiplied_once_and_hardly_any_twice(speed, monkeypatch):
    case, done, again = speed.build("cirr", 600, 1500), [], []
    products, pairs = scores.products, scores.exact_pairs
    monkeypatch.setattr(blocks, "products", lambda a, b, *how: (done.append(len(a) * len(b)), products(a, b, *how))[1])
    for room in (blocks, scores):
        monkeypatch.setattr(
            room, "exact_pairs", lambda a, i, b, j, *how: (again.append(len(i)), pairs(a, i, b, j, *how))[1]
        )
    case.ours()
    assert sum(done) == 600 * 1500
    assert sum(again) < 600 * (1 + 6 + 3)  # the target, the six, and what float32 could not tell apart


def test_the_script_runs_and_writes_its_results(speed, tmp_path, monkeypatch, capsys):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is measured on Linux only")
    monkeypatch.setattr(sys, "argv", ["metrics.py", "--small", "--pairs", "1", "--json", str(tmp_path / "r.json")])
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parents[1]))
    speed.main()
    results = json.loads((tmp_path / "r.json").read_text())
    assert set(results) == {"cirr", "circo", "top50", "machine"} and len(results["cirr"]["metrics"]) == 7
    assert "top 50, 40 x 400" in capsys.readouterr().out
