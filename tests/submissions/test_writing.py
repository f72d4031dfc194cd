"""Files are complete, official in form, and there only after they were checked."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cir import data
from cir.errors import InputError, RunError
from cir.submissions import check, find, write
from cir.submissions.servers import benchmark_name

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"


def slow_ranking(query, bench, queries, gallery, images):
    """Sort by the inner product, best first, ties in gallery order: the definition."""
    rows = {name: gallery.vectors[i, 0] for i, name in enumerate(gallery.ids)}
    vector = queries.vectors[queries.ids.index(query.id), 0]
    return sorted(images, key=lambda name: -float(vector.astype("f8") @ rows[name].astype("f8")))


@pytest.mark.parametrize("name", ["cirr/test1", "cirr/val", "circo/test", "circo/val"])
def test_files_hold_the_ranking_in_the_servers_form(root, tmp_path, seeded, name):
    bench = data.load(name, root)
    queries, gallery = seeded(bench)
    written = write(bench, queries, gallery, tmp_path / "out", "stem", {"made": "by hand"})
    cirr = name.startswith("cirr")
    suffixes = ["-recall", "-recall_subset"] if cirr else [""]
    assert [one.path.name for one in written] == [f"stem{suffix}.json" for suffix in suffixes]
    for one, k in zip(written, (50, 3), strict=False):
        raw = one.path.read_text()
        content = json.loads(raw)
        assert "\n" not in raw and ": " not in raw  # compact
        if cirr:
            assert list(content.items())[:2] == [("version", "rc2"), ("metric", one.report.metric)]
        for query in bench.queries:
            images = query.candidates if one.report.metric == "recall_subset" else bench.gallery
            best = slow_ranking(query, bench, queries, gallery, [i for i in images if not cirr or i != query.reference])
            assert content[query.id] == [i if cirr else int(i) for i in best[:k]]
        assert not check(one.path, root).problems


def test_provenance_names_the_file_by_content(root, tmp_path, seeded):
    bench = data.load("circo/test", root)
    (one,) = write(bench, *seeded(bench), tmp_path / "out", "stem", {"vectors": "drawn"})
    told = json.loads(one.provenance.read_text())
    assert one.provenance.name == "stem.provenance.json" and told["submission"] == "stem.json"
    assert told["sha256"] == hashlib.sha256(one.path.read_bytes()).hexdigest() == one.report.sha256
    assert told["bytes"] == one.path.stat().st_size and told["origin"] == {"vectors": "drawn"}
    assert told["benchmark"]["fingerprint"] == bench.fingerprint and told["protocol"]["name"] == "circo"
    assert "this is no submission" in check(one.provenance, root).problems[0].text  # in case it is uploaded


def test_writing_again_gives_the_same_file(root, tmp_path, seeded):
    bench = data.load("cirr/test1", root)
    first = [one.report.sha256 for one in write(bench, *seeded(bench), tmp_path / "out", "stem")]
    assert first == [one.report.sha256 for one in write(bench, *seeded(bench), tmp_path / "out", "stem")]
    assert len(list((tmp_path / "out").iterdir())) == 4  # two files, two provenances, nothing temporary


def test_a_file_that_does_not_pass_is_not_kept(root, tmp_path, seeded, monkeypatch):
    bench = data.load("circo/test", root)
    server = find("circo")
    real = type(server).build

    def broken(self, *given):
        content = real(self, *given)
        content[""]["3"][1] = content[""]["3"][0]
        return content

    monkeypatch.setattr(type(server), "build", broken)
    with pytest.raises(RunError, match=r"query 3: .* stands at ranks 1, 2"):
        write(bench, *seeded(bench), tmp_path / "out", "stem")
    assert not list((tmp_path / "out").iterdir())


def test_an_interrupt_leaves_nothing(root, tmp_path, seeded, monkeypatch):
    bench = data.load("cirr/test1", root)

    def stop(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("cir.submissions.writing.compare", stop)
    with pytest.raises(KeyboardInterrupt):
        write(bench, *seeded(bench), tmp_path / "out", "stem")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("where", ["compare", "json.dumps"])
def test_a_kill_leaves_no_file_under_the_final_name(root, tmp_path, where):
    """The process kills itself where the file is written but not checked; the same call then succeeds."""
    code = f"""
import os, signal, sys
import numpy as np
sys.path.insert(0, {str(ROOT)!r})
from cir import data
from cir.data import circo
from cir.schema import Embeddings
from cir.submissions import writing
circo.COUNTS["circo/test"] = {{"queries": 6, "gallery": 90}}
bench = data.load("circo/test", {str(root)!r})
def drawn(ids):
    v = np.random.default_rng(0).standard_normal((len(ids), 1, 8)).astype(np.float32)
    return Embeddings(tuple(ids), v / np.linalg.norm(v, axis=-1, keepdims=True))
def kill(*a, **k):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "compare":
    writing.compare = kill
elif sys.argv[1]:
    writing.json.dumps = kill
out = writing.Path({str(tmp_path)!r}) / "out"
writing.write(bench, drawn([q.id for q in bench.queries]), drawn(bench.gallery), out, "s")
"""
    killed = subprocess.run([sys.executable, "-c", code, where], capture_output=True, check=False)
    assert killed.returncode == -9 and not list((tmp_path / "out").glob("*.json"))
    subprocess.run([sys.executable, "-c", code, ""], check=True)
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["s.json", "s.provenance.json"]


def test_a_part_of_the_split_is_refused(root, tmp_path, seeded):
    bench = data.load("cirr/test1", root)
    part = data.subset(bench, 2)
    with pytest.raises(InputError, match="needs the whole split as published, but subset of 2 queries"):
        write(part, *seeded(part), tmp_path, "stem")
    queries, gallery = seeded(bench)
    shuffled = type(gallery)(gallery.ids[::-1], gallery.vectors[::-1].copy())
    with pytest.raises(InputError, match="not of its queries and its gallery in their order"):
        write(bench, queries, shuffled, tmp_path, "stem")
    with pytest.raises(InputError, match="no test server for 'fashioniq/dress/val'"):
        find("fashioniq/dress/val")


def test_splits_by_either_name():
    assert benchmark_name("cirr", "test") == benchmark_name("cirr", "test1") == "cirr/test1"
    assert benchmark_name("world/circo", "val") == "world/circo/val"
    with pytest.raises(InputError, match="no split 'train'; expected val or test"):
        benchmark_name("cirr", "train")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmarks' annotation files in ../shared/data")
@pytest.mark.parametrize(("name", "most"), [("cirr/test1", 5_000_000), ("circo/test", 400_000)])
def test_real_files_are_whole_and_small(kept, tmp_path, seeded, name, most):
    bench = data.load(name, SHARED)
    for one in write(bench, *seeded(bench), tmp_path, "x"):
        assert one.report.bytes == one.path.stat().st_size < most and not check(one.path, SHARED).problems
        assert len(json.loads(one.path.read_text())) == {"cirr/test1": 4150, "circo/test": 800}[name]
