"""Rows kept for training: any shape and type, keyed by what they depend on, safe from kills and a second process."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from cir.backbones.kept import KeptRows
from cir.backbones.store import CacheKey, FeatureCache
from cir.errors import InputError, RunError
from cir.methods import Store


def blocks(rows, step=3):
    def compute(start):
        computed.append(start)
        for at in range(start, len(rows), step):
            yield rows[at : at + step]

    computed = compute.computed = []
    return compute


def kept(folder, backbone, **options):
    return KeptRows(FeatureCache(folder, **options), backbone)


ROWS = {
    "token rows": np.arange(70, dtype=np.int32).reshape(10, 7) - 35,
    "features": np.random.default_rng(0).standard_normal((10, 4), dtype=np.float32),
    "numbers": np.arange(10, dtype=np.int64) << 40,
    "flags": np.arange(10) % 3 == 0,
    "patches": np.random.default_rng(0).standard_normal((10, 2, 3)).astype(np.float16),
}


@pytest.mark.parametrize("what", ROWS)
def test_rows_come_back_as_they_were_computed(tiny_backbone, tmp_path, what):
    compute, rows = blocks(ROWS[what]), ROWS[what]
    store = kept(tmp_path, tiny_backbone, storage="float16")  # of image features; these stay as they are
    assert isinstance(store, Store)
    for _ in range(2):
        found = store.rows(what, ("a", "b"), 10, compute)
        assert isinstance(found, np.memmap) and not found.flags.writeable
        assert found.dtype == rows.dtype and np.array_equal(found, rows)
    assert compute.computed == [0]


def test_kind_identity_count_and_backbone_make_other_entries(tiny_backbone, tmp_path, monkeypatch):
    rows, store = ROWS["features"], kept(tmp_path, tiny_backbone)
    compute = blocks(rows)
    store.rows("texts", ("a", "b"), 10, compute)
    store.rows("others", ("a", "b"), 10, compute)
    store.rows("texts", ("ab",), 10, compute)
    store.rows("texts", ("a", "b", ""), 10, compute)
    store.rows("texts", ("a", "b"), 9, blocks(rows[:9]))
    monkeypatch.setattr(tiny_backbone, "fingerprint", "0123456789abcdef")
    store.rows("texts", ("a", "b"), 10, compute)
    assert len(compute.computed) == 5 and len(list(tmp_path.rglob("*.npy"))) == 6


def test_an_interrupted_computation_goes_on_from_a_block(tiny_backbone, tmp_path):
    rows = ROWS["token rows"]

    def failing(start):
        yield rows[0:3]
        yield rows[3:6]
        raise KeyboardInterrupt

    store = kept(tmp_path, tiny_backbone, chunk=3)
    with pytest.raises(KeyboardInterrupt):
        store.rows("tokens", ("a",), 10, failing)
    compute = blocks(rows)
    assert np.array_equal(store.rows("tokens", ("a",), 10, compute), rows) and compute.computed == [6]


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (np.ones((9, 2), np.float32), "9 rows computed, 10 expected"),
        (np.ones((11, 2), np.float32), "at row 9 of"),
        (np.full((10, 2), np.nan, np.float32), "row 0.* not finite"),
        (np.array([["a"]] * 10), "cannot be kept"),
    ],
)
def test_wrong_rows_leave_no_entry(tiny_backbone, tmp_path, made, match):
    with pytest.raises(RunError, match=match):
        kept(tmp_path, tiny_backbone).rows("wrong", ("a",), 10, blocks(made))
    assert not list(tmp_path.rglob("*.npy"))


def test_a_key_has_ids_or_a_count():
    counted = CacheKey("abc", "", "float32", "tokens", count=10, identity=("a",))
    assert len(counted) == 10 and counted.name(3) == "row 3"
    assert len(replace(counted, count=None, ids=("x", "y"))) == 2
    with pytest.raises(InputError, match="2 ids and a count of 10"):
        replace(counted, ids=("x", "y"))


WORKER = """
import sys, time, pathlib
import numpy as np, torch
from cir.backbones.kept import KeptRows
from cir.backbones.store import FeatureCache

class Backbone:
    name, fingerprint, width, word_width = "b", "abc123", 4, 4
    device, dtype = torch.device("cpu"), torch.float32

root, log, slow = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), float(sys.argv[3])

def compute(start):
    with log.open("a") as file:
        file.write(f"{start}\\n")
    for at in range(start, 40, 4):
        yield np.arange(at * 3, at * 3 + 12, dtype=np.int32).reshape(4, 3)
        time.sleep(slow)

print(int(KeptRows(FeatureCache(root, chunk=4), Backbone()).rows("tokens", ("a",), 40, compute).sum()))
"""
TOTAL = sum(range(120))


def start(folder, log, slow):
    command = [sys.executable, "-c", WORKER, str(folder), str(log), str(slow)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(condition):
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_a_killed_process_is_gone_on_with_and_two_compute_once(tmp_path):
    folder, log = tmp_path / "cache", tmp_path / "log"
    killed = start(folder, log, 0.3)
    wait_for(lambda: list(folder.rglob("*.part.json")))  # a checkpoint is there
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    both = [start(folder, log, 0.01) for _ in range(2)]
    assert [int(one.communicate(timeout=120)[0]) for one in both] == [TOTAL, TOTAL]
    first, *others = map(int, log.read_text().split())
    assert first == 0 and len(others) == 1 and others[0] > 0 and others[0] % 4 == 0
