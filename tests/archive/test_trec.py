"""TREC files against a plain reading of what trec_eval does with them."""

import numpy as np
import pytest

from cir import data, records
from cir.archive import trec
from cir.errors import InputError, RunError
from cir.protocols import PROTOCOLS
from cir.record_values import PerQuery, means
from cir.schema import Benchmark, Embeddings, Query, Ranking
from cir.score import rank_and_score
from cir.search import search

KEPT = 12


def unit(ids, rows):
    vectors = np.asarray(rows, dtype=np.float32)[:, None, :]
    return Embeddings(tuple(ids), vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def searched(protocol, tmp_path, seed=0):
    """A benchmark of 15 queries on 30 images, many of which have the same few vectors, and what was found on it."""
    generator = np.random.default_rng(seed)
    gallery = tuple(f"image {row}.png" if row % 3 else f"{row:03d}" for row in range(30))
    queries = []
    for row in range(15):
        drawn = [gallery[i] for i in generator.permutation(30)]
        targets = tuple(drawn[1 : 2 if protocol == "cirr" else 2 + row % 4])
        candidates = tuple(drawn[:6]) if protocol == "cirr" else ()
        queries.append(Query(f"dress/{row}", drawn[0], ("is red",), targets, candidates))
    bench = Benchmark("x/val", "1", "val", protocol, tuple(queries), gallery, tmp_path, {})
    pool = generator.integers(-1, 2, (6, 4)) + 0.5
    images = unit(gallery, pool[generator.integers(0, 6, 30)])
    asked = unit([query.id for query in queries], generator.integers(-1, 2, (15, 4)) + 0.5)
    rules = PROTOCOLS[protocol]
    outcome = rank_and_score(bench, rules, asked, images)
    ranking = search(asked, images, KEPT, {query.id: rules.excluded(query) for query in queries})
    return bench, ranking, PerQuery(outcome.scores.query_ids, dict(outcome.scores.values), outcome.ranks.ranks)


def written(tmp_path, make_record, protocol, seed=0):
    bench, ranking, values = searched(protocol, tmp_path, seed)
    record = make_record(
        benchmark="x/val", protocol=(protocol, 1), data=bench.fingerprint, values=values,
    )  # fmt: skip
    path = records.write(tmp_path / "records", record, values, ranking)
    return path, records.read(path), bench, ranking, values


def as_trec_eval(run):
    """Order as trec_eval does: by score in single precision, highest first, then by name, last first; ranks unread."""
    ordered = {}
    for line in run.read_text().splitlines():
        query, q0, image, _, score, _ = line.split(" ")
        assert q0 == "Q0"
        ordered.setdefault(query, []).append((np.float32(score), image))
    return {query: [image for _, image in sorted(pairs, reverse=True)] for query, pairs in ordered.items()}


@pytest.mark.parametrize("protocol", ["circo", "cirr"])
def test_tools_that_order_by_score_get_our_rankings(tmp_path, make_record, protocol):
    path, record, bench, ranking, _ = written(tmp_path, make_record, protocol)
    assert (ranking.scores[:, 1:] == ranking.scores[:, :-1]).mean() > 0.3  # ties, or this would prove little
    done = trec.write(path, record, bench, tmp_path / "trec")
    ordered = as_trec_eval(done.run)
    assert len(ordered) == 15
    for row, query in enumerate(bench.queries):
        assert ordered[query.id] == [name.replace(" ", "%20") for name in ranking.row(row)]
        assert protocol != "cirr" or query.reference.replace(" ", "%20") not in ordered[query.id]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("protocol", "wanted"), [("circo", ("mAP@5", "mAP@10", "R@5", "R@10")), ("cirr", ("R@1", "R@5", "R@10"))]
)
def test_the_files_give_the_records_numbers(tmp_path, make_record, protocol, wanted, seed):
    path, record, bench, _, values = written(tmp_path, make_record, protocol, seed)
    done = trec.write(path, record, bench, tmp_path / "trec")
    assert done.confirmed == wanted
    ordered, relevant = as_trec_eval(done.run), trec.read_qrels(done.qrels)
    first = {query.id: query.targets[0].replace(" ", "%20") for query in bench.queries}
    for name in wanted:
        cut = int(name.partition("@")[2])
        for query, value in zip(values.ids, values.values[name], strict=True):
            top = ordered[query][:cut]
            if name.startswith("R"):
                assert value == (first[query] in top)
            else:
                hits = [image in relevant[query] for image in top]
                found = sum(sum(hits[: place + 1]) / (place + 1) for place, hit in enumerate(hits) if hit)
                assert value == pytest.approx(found / min(cut, len(relevant[query])), abs=1e-12)


def test_files_line_by_line(tmp_path, make_record):
    queries = (Query("0", "a", ("t",), ("b", "c d")), Query("1", "b", ("t",), ("a",)))
    bench = Benchmark("x/val", "1", "val", "circo", queries, ("a", "b", "c d"), tmp_path, {})
    scores = np.array([[0.5, 0.5, 0.25], [1.0, 0.75, -np.inf]], dtype=np.float32)
    ranking = Ranking(("0", "1"), bench.gallery, np.array([[0, 2, 1], [0, 1, -1]]), scores)
    record = make_record(["seed=3"], name="my run", benchmark="x/val", data=bench.fingerprint)
    path = records.write(tmp_path, record, None, ranking)
    done = trec.write(path, records.read(path), bench, tmp_path / "trec")
    assert done.run.read_text().splitlines() == [
        "0 Q0 a 1 0.5 my%20run-seed-3",
        "0 Q0 c%20d 2 0.49999997 my%20run-seed-3",
        "0 Q0 b 3 0.25 my%20run-seed-3",
        "1 Q0 a 1 1 my%20run-seed-3",
        "1 Q0 b 2 0.75 my%20run-seed-3",
    ]
    assert done.qrels.read_text().splitlines() == ["0 0 b 1", "0 0 c%20d 1", "1 0 a 1"]
    assert done.confirmed == ()  # it has no values to compare with
    assert trec.read_run(done.run)["1"] == [("a", 1.0), ("b", 0.75)]


def test_scores_fall_strictly_and_hardly_move():
    scores = np.array([0.5, 0.5, 0.5, np.nextafter(np.float32(0.5), np.float32(0)), 0.25, -0.1, -0.1], np.float32)
    fallen = trec.falling(scores)
    assert (np.diff(fallen) < 0).all() and np.abs(fallen - scores).max() < 1e-6
    assert fallen[0] == scores[0] and fallen[4] == scores[4]


@pytest.mark.parametrize("change", ["swap", "drop"])
def test_a_wrong_file_is_noticed(tmp_path, make_record, change):
    path, record, bench, _, _ = written(tmp_path, make_record, "circo")
    done = trec.write(path, record, bench, tmp_path / "trec")
    assert trec.confirm(path, record, bench, done.run, done.qrels)
    if change == "drop":
        done.qrels.write_text("".join(done.qrels.read_text().splitlines(keepends=True)[1:]))
    else:
        listed = trec.read_run(done.run)
        lines = [
            f"{query} Q0 {image} {rank} {score} tag\n"
            for query, pairs in listed.items()
            for rank, (image, score) in enumerate([(i, -s) for i, s in reversed(pairs)], 1)
        ]
        done.run.write_text("".join(lines))
    with pytest.raises(RunError, match="but x-val-"):
        trec.confirm(path, record, bench, done.run, done.qrels)


def test_what_is_no_run_or_qrels_is_refused(tmp_path):
    run, qrels = tmp_path / "a.run", tmp_path / "a.qrels"
    run.write_text("q Q0 image 1 0.5 tag\nq Q0 other 3 0.4 tag\n")
    qrels.write_text("q 0 image\n")
    with pytest.raises(InputError, match="line 2: expected rank 2, got 3"):
        trec.read_run(run)
    with pytest.raises(InputError, match="line 1: expected `query 0 image relevance`"):
        trec.read_qrels(qrels)


def test_other_data_and_records_without_rankings_are_refused(tmp_path, make_record):
    path, record, bench, _, values = written(tmp_path, make_record, "circo")
    fewer = data.subset(bench, 3)
    with pytest.raises(InputError, match="name the folder with --data"):
        trec.write(path, record, fewer, tmp_path / "trec")
    bare = records.write(tmp_path / "bare", record.__class__(**{**vars(record), "ranking": None}), values)
    with pytest.raises(InputError, match="--rankings"):
        trec.write(bare, records.read(bare), bench, tmp_path / "trec")


def test_the_benchmark_is_loaded_as_it_was_searched(small_world, make_record):
    whole = data.load("world/circo/val", small_world)
    part = data.subset(whole, 4)
    record = make_record([f"data.root={small_world}", "data.subset=4"], data=part.fingerprint)
    assert trec.benchmark_of(record).fingerprint == part.fingerprint != whole.fingerprint
    elsewhere = make_record(["data.root=nowhere"], data=whole.fingerprint)
    assert trec.benchmark_of(elsewhere, small_world).fingerprint == whole.fingerprint
    own = make_record(["data.root=nowhere", f"data.roots={{circo: '{small_world}'}}"])
    assert trec.benchmark_of(own).fingerprint == whole.fingerprint


def test_values_are_what_their_means_say(tmp_path, make_record):
    _, record, _, _, values = written(tmp_path, make_record, "circo")
    assert record.means == means(values.values)
