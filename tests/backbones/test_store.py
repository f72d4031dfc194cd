"""The store under rows that are written out in the test: damage, kills, two processes, keys."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from cir.backbones import entries
from cir.backbones.store import CacheKey, FeatureCache
from cir.errors import InputError, RunError

KEY = CacheKey("abc123", "clip:00000000", "float32", "image", tuple(f"i{n}" for n in range(10)), ("s",) * 10)


def row(index):
    return np.full((1, 2, 3), index + 0.25, dtype=np.float32) + np.arange(3, dtype=np.float32)


ALL = np.concatenate([row(index) for index in range(10)])


def rows(start, stop=10, step=3):
    for at in range(start, stop, step):
        yield ALL[at : min(at + step, stop)]


class Computing:
    """Counts how often, and from where, rows are asked for."""

    def __init__(self, step=3):
        self.starts = []
        self.step = step

    def __call__(self, start):
        self.starts.append(start)
        return rows(start, step=self.step)


def paths(cache, key=KEY):
    path = key.path(cache.root, cache.storage)
    return path, path.with_suffix(".json"), path.with_suffix(".part"), path.with_suffix(".part.json")


@pytest.mark.parametrize("step", [1, 3, 10])
def test_cached_equals_fresh_and_is_computed_once(tmp_path, step):
    cache, computing = FeatureCache(tmp_path), Computing(step)
    fresh = cache.get(KEY, computing)
    again = FeatureCache(tmp_path)
    cached = again.get(KEY, computing)
    assert np.array_equal(fresh, ALL) and np.array_equal(cached, ALL) and cached.dtype == np.float32
    assert isinstance(cached, np.memmap) and not cached.flags.writeable
    assert computing.starts == [0]
    assert (cache.counters.computed, cache.counters.hits) == (1, 0)
    assert (again.counters.computed, again.counters.hits) == (0, 1)
    path, side, part, journal = paths(cache)
    assert np.array_equal(np.load(path), ALL) and json.loads(side.read_text())["key"]["count"] == 10
    assert not part.exists() and not journal.exists()


CHANGES = {
    "weights": "abc124",
    "preprocess": "clip:00000001",
    "dtype": "bfloat16",
    "kind": "text",
    "ids": tuple(reversed(KEY.ids)),
    "stamps": ("t", *KEY.stamps[1:]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_part_of_the_key_makes_another_entry(tmp_path, name):
    cache, computing = FeatureCache(tmp_path), Computing()
    cache.get(KEY, computing)
    cache.get(replace(KEY, **{name: CHANGES[name]}), computing)
    assert computing.starts == [0, 0] and len(list(tmp_path.rglob("*.npy"))) == 2


def test_float16_storage_is_an_entry_of_its_own(tmp_path):
    FeatureCache(tmp_path).get(KEY, Computing())
    half = FeatureCache(tmp_path, storage="float16").get(KEY, Computing())
    assert half.dtype == np.float16 and np.array_equal(half, ALL.astype(np.float16))


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    stat = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


DAMAGE = {
    "truncated": (lambda path, side: os.truncate(path, path.stat().st_size - 4), "bytes instead of"),
    "longer": (lambda path, side: path.write_bytes(path.read_bytes() + b"x"), "bytes instead of"),
    "a number edited": (lambda path, side: flip(path, -5), "was changed"),
    "the header edited": (lambda path, side: flip(path, 20), "was changed"),
    "description gone": (lambda path, side: side.unlink(), "no description"),
    "description damaged": (lambda path, side: side.write_text("{"), "no description"),
    "description of another": (lambda path, side: side.write_text('{"key": {}}'), "no description"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_entry_is_named_and_computed_again(tmp_path, caplog, what):
    cache = FeatureCache(tmp_path)
    cache.get(KEY, Computing())
    path, side, *_ = paths(cache)
    damage, message = DAMAGE[what]
    damage(path, side)
    computing = Computing()
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(cache.get(KEY, computing), ALL)
    assert computing.starts == [0]
    assert len(caplog.records) == 1 and str(path) in caplog.text and message in caplog.text
    assert np.array_equal(FeatureCache(tmp_path).get(KEY, computing), ALL) and computing.starts == [0]


def test_an_edit_that_keeps_size_and_time_is_found_by_the_next_process(tmp_path, caplog, monkeypatch):
    cache = FeatureCache(tmp_path)
    cache.get(KEY, Computing())
    path, *_ = paths(cache)
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\x01")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    monkeypatch.setattr(entries, "_verified", set())
    computing = Computing()
    assert np.array_equal(FeatureCache(tmp_path).get(KEY, computing), ALL)
    assert computing.starts == [0] and "was changed" in caplog.text


def test_a_failing_computation_leaves_no_entry_and_the_next_one_goes_on(tmp_path):
    def failing(start):
        yield from rows(start, 7, step=1)
        raise InputError("unreadable picture")

    cache = FeatureCache(tmp_path, chunk=2)
    with pytest.raises(InputError, match="unreadable picture"):
        cache.get(KEY, failing)
    assert not list(tmp_path.rglob("*.npy"))
    computing = Computing()
    assert np.array_equal(cache.get(KEY, computing), ALL)
    assert computing.starts == [6] and cache.counters.resumed_rows == 6


@pytest.mark.parametrize("damaged", ["data", "journal", "another key"])
def test_a_damaged_part_is_started_again(tmp_path, caplog, damaged):
    cache = FeatureCache(tmp_path, chunk=2)
    with pytest.raises(RunError, match="4 rows computed, 10 expected"):
        cache.get(KEY, lambda start: rows(start, 4, step=2))
    _, _, part, journal = paths(cache)
    if damaged == "data":
        flip(part, 150)
    elif damaged == "journal":
        journal.write_text("{")
    else:
        journal.write_text(journal.read_text().replace("abc123", "abc124"))
    computing = Computing()
    assert np.array_equal(cache.get(KEY, computing), ALL) and computing.starts == [0]
    assert ("is damaged" in caplog.text) == (damaged == "data")


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([ALL, ALL[:1]], r"a block of \(1, 2, 3\) at row 10"),
        ([ALL[:5], ALL[5:, :, :2]], r"a block of \(5, 2, 2\) at row 5"),
        ([], "0 rows computed, 10 expected"),
        ([np.where(ALL == 4.25, np.nan, ALL)], "features of 'i2' are not finite"),
    ],
)
def test_wrong_rows_stop_the_run(tmp_path, blocks, message):
    with pytest.raises(RunError, match=message):
        FeatureCache(tmp_path).get(KEY, lambda start: (block for block in blocks))
    assert not list(tmp_path.rglob("*.npy"))


def test_what_float16_cannot_hold_stops_the_run(tmp_path):
    with pytest.raises(RunError, match="'i0' are not finite as float16"):
        FeatureCache(tmp_path, storage="float16").get(KEY, lambda start: (block for block in [ALL * 1e6]))


def test_a_full_disk_is_one_clear_line_and_the_next_run_goes_on(tmp_path, monkeypatch):
    sync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        sync(handle)

    cache = FeatureCache(tmp_path, chunk=3)
    with monkeypatch.context() as patch, pytest.raises(RunError, match=r"could not be written .*No space left"):
        patch.setattr(os, "fsync", full)
        cache.get(KEY, Computing())
    computing = Computing()
    assert np.array_equal(cache.get(KEY, computing), ALL) and computing.starts == [3]


def test_wrong_settings_are_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="did you mean 'float16'"):
        FeatureCache(tmp_path, storage="bfloat16")
    with pytest.raises(InputError, match="cannot be part of a file name"):
        replace(KEY, kind="../x")
    with pytest.raises(InputError, match="10 ids but 1 stamps"):
        replace(KEY, stamps=("s",))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"feature cache .* not writable"):
        FeatureCache(tmp_path / "file").get(KEY, Computing())


CHILD = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from cir.backbones.store import CacheKey, FeatureCache
root, log, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
key = CacheKey("abc123", "clip:00000000", "float32", "image", tuple(f"i{n}" for n in range(10)), ("s",) * 10)
def compute(start):
    with log.open("a") as file:
        file.write(f"{start}\\n")
    for n in range(start, 10):
        if mode == "kill" and n == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05 if mode == "slow" else 0)
        yield np.full((1, 2, 3), n + 0.25, dtype=np.float32) + np.arange(3, dtype=np.float32)
print(float(FeatureCache(root, chunk=2).get(key, compute).sum()))
"""


def child(tmp_path, mode):
    command = [sys.executable, "-c", CHILD, str(tmp_path / "cache"), str(tmp_path / "log"), mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_compute_an_entry_once(tmp_path):
    both = [child(tmp_path, "slow"), child(tmp_path, "slow")]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert [float(out) for out, _ in outputs] == [pytest.approx(float(ALL.sum()))] * 2
    assert (tmp_path / "log").read_text() == "0\n"
    computing = Computing()
    assert np.array_equal(FeatureCache(tmp_path / "cache").get(KEY, computing), ALL) and computing.starts == []


def test_a_killed_process_loses_one_chunk_at_most_and_leaves_no_lock(tmp_path):
    killed = child(tmp_path, "kill")
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    computing = Computing()
    started = time.monotonic()
    cache = FeatureCache(tmp_path / "cache")
    assert np.array_equal(cache.get(KEY, computing), ALL)
    assert computing.starts == [6] and cache.counters.resumed_rows == 6
    assert time.monotonic() - started < 5
