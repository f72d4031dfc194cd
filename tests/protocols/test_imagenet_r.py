"""Domain conversion on ImageNet-R: both recalls by hand, against the definitions written out, and at their best."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cir.data import load
from cir.protocols import PROTOCOLS, mean_over
from cir.schema import Embeddings, TargetRanks
from cir.score import rank_and_score, score

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmarks' annotation files in ../shared/data")
DOMAINS = ("cartoon", "origami", "toy", "sculpture")
SHARE, HIT = PROTOCOLS["imagenet_r/share"], PROTOCOLS["imagenet_r/hit"]


def perfect(bench):
    """Every right image before every other."""
    most = max(len(query.targets) for query in bench.queries)
    counts = np.array([len(query.targets) for query in bench.queries])
    ranks = np.where(np.arange(most) < counts[:, None], np.arange(1, most + 1), 0)
    return TargetRanks(tuple(q.id for q in bench.queries), ranks, np.zeros(len(ranks), dtype=bool))


@pytest.fixture
def small(tmp_path):
    """Three cartoons and a toy of class 2, one photograph that asks for it and one that nothing answers."""
    targets = [f"imgnet/imagenet-r/n1/cartoon_{i}.jpg 2" for i in range(3)]
    targets += ["imgnet/imagenet-r/n1/toy_0.jpg 2002", "imgnet/real/n1/A.JPEG 6002", "imgnet/real/n3/C.JPEG 6009"]
    targets += [f"imgnet/imagenet-r/n4/cartoon_{i}.jpg 7" for i in range(14)]
    (tmp_path / "imgnet_targets.txt").write_text("\n".join(targets))
    (tmp_path / "imgnet_real_query.txt").write_text("imgnet/real/n1/A.JPEG 2 \nimgnet/real/n3/C.JPEG 9 \n")
    return tmp_path


def test_by_hand(small):
    """Right images at ranks 1, 9 and 12, and a photograph whose class has no cartoon."""
    bench = load("imagenet_r/cartoon", small, allow_missing=True)
    ranks = TargetRanks(("cartoon/00000", "cartoon/00001"), np.array([[9, 1, 12], [0, 0, 0]]), np.zeros(2, dtype=bool))
    found = SHARE.score(bench, ranks).values
    for k, hits in ((1, 1), (5, 1), (10, 2), (50, 3)):
        assert found[f"R@{k}"].tolist() == [hits / (3 + 1e-5), 0]
        assert found[f"P@{k}"].tolist() == [hits / k, 0]
    assert {name: value.tolist() for name, value in HIT.score(bench, ranks).values.items()} == {
        "Hit@10": [1, 0],
        "Hit@50": [1, 0],
    }
    late = TargetRanks(ranks.query_ids, np.array([[51, 20, 19], [0, 0, 0]]), ranks.tied)
    assert HIT.score(bench, late).values["Hit@10"].tolist() == [0, 0]
    assert HIT.score(bench, late).values["Hit@50"].tolist() == [1, 0]


def test_one_pair_of_files_under_both_names(small, tmp_path):
    """The query lies on one cartoon and near the photograph itself, which competes and comes second."""
    bench = load("imagenet_r/cartoon", small, allow_missing=True)
    rng = np.random.default_rng(0)
    gallery = rng.standard_normal((len(bench.gallery), 30))
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    places = {name: row for row, name in enumerate(bench.gallery)}
    asked = gallery[places[bench.queries[0].targets[0]]] + 0.9 * gallery[places[bench.queries[0].reference]]
    np.savez(tmp_path / "q.npz", ids=[q.id for q in bench.queries], vectors=np.stack([asked, rng.standard_normal(30)]))
    np.savez(tmp_path / "g.npz", ids=bench.gallery, vectors=gallery)
    files = small, tmp_path / "q.npz", tmp_path / "g.npz"
    share = score("imagenet_r/cartoon", *files, allow_missing=True)
    hit = score("imagenet_r/cartoon", *files, protocol="imagenet_r/hit", allow_missing=True)
    assert share["protocol"]["name"] == "imagenet_r/share" and hit["protocol"]["name"] == "imagenet_r/hit"
    assert share["scores"]["R@1"]["mean"] == pytest.approx(100 / (3 + 1e-5) / 2)
    assert hit["scores"]["Hit@10"]["mean"] == pytest.approx(50)  # of two queries one has no answer
    assert list(hit["scores"]) == ["Hit@10", "Hit@50"] and share["fingerprint"] == hit["fingerprint"]


@REAL
def test_the_best_possible_values():
    benches = {domain: load(f"imagenet_r/{domain}", SHARED) for domain in DOMAINS}
    parts = {domain: SHARE.score(bench, perfect(bench)) for domain, bench in benches.items()}
    printed = {
        metric: [f"{100 * part.values[metric].mean():.1f}" for part in parts.values()] for metric in ("R@10", "R@50")
    }
    assert printed == {"R@10": ["41.4", "50.1", "60.5", "63.8"], "R@50": ["75.5", "53.0", "72.0", "71.0"]}
    means = mean_over(parts)
    assert (f"{100 * means['R@10']:.1f}", f"{100 * means['R@50']:.1f}") == ("53.9", "67.9")
    unanswered = [sum(not query.targets for query in bench.queries) for bench in benches.values()]
    assert unanswered == [2350, 4700, 2800, 2900]
    for domain, bench in benches.items():  # any positive: only queries without one are lost
        hits = HIT.score(bench, perfect(bench)).values["Hit@10"]
        assert hits.sum() == 10000 - unanswered[DOMAINS.index(domain)]


def features(rows, seed, width=24):
    """Unit vectors that know something of class and domain; rows are (label, number)."""
    rng = np.random.default_rng(seed)
    classes, domains = np.random.default_rng(1).standard_normal((2, 1000, width))
    vectors = np.stack([0.6 * classes[label % 1000] + 0.5 * domains[label // 1000] for label in rows])
    vectors += rng.standard_normal(vectors.shape)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@REAL
@pytest.mark.parametrize("domain", DOMAINS)
def test_both_recalls_equal_the_authors_arithmetic_written_out(domain):
    """Labels matched as numbers, straight from the files; the reference stays; every 67th photograph asks."""
    listed = [line.split() for line in (SHARED / "imgnet/imgnet_targets.txt").read_text().splitlines()]
    asking = [line.split() for line in (SHARED / "imgnet/imgnet_real_query.txt").read_text().splitlines()][::67]
    labels = np.array([int(label) for _, label in listed])
    wanted = np.array([int(label) for _, label in asking]) + 1000 * DOMAINS.index(domain)
    images, queries = features(labels, seed=2), features(wanted, seed=3)

    bench = load(f"imagenet_r/{domain}", SHARED)
    bench = replace(bench, queries=bench.queries[::67])
    ids = tuple(q.id for q in bench.queries)
    given = Embeddings(ids, queries[:, None]), Embeddings(bench.gallery, images[:, None])
    share, hit = (rank_and_score(bench, rule, *given).scores.values for rule in (SHARE, HIT))

    left, right = (np.rint(side * 2.0**26) / 2.0**26 for side in (queries.astype(float), images.astype(float)))
    scores = (left @ right.T).astype(np.float32)  # what `cir.search` calls the score: two of them may tie
    seen = 0
    for row, label in enumerate(wanted):
        right = labels[np.argsort(-scores[row], kind="stable")] == label
        for k in (1, 5, 10, 50, 100, 200):
            found = int(right[:k].sum())
            assert share[f"R@{k}"][row] == pytest.approx(found / (int(right.sum()) + 1e-5), abs=1e-12)
            assert share[f"P@{k}"][row] == found / k
        for k in (10, 50):
            assert hit[f"Hit@{k}"][row] == float(any(right[:k]))
            seen += any(right[:k])
    assert 0 < seen < 2 * len(ids)  # a test that sees both


@REAL
def test_features_that_say_nothing_are_ranked_in_gallery_order_and_marked():
    bench = load("imagenet_r/toy", SHARED)
    bench = replace(bench, queries=bench.queries[::500])
    same = np.ones((len(bench.gallery), 1, 4), dtype=np.float32) / 2
    ids = tuple(q.id for q in bench.queries)
    outcome = rank_and_score(bench, SHARE, Embeddings(ids, same[: len(ids)]), Embeddings(bench.gallery, same))
    value = outcome.scores.values["R@200"]
    expected = [len({*q.targets} & {*bench.gallery[:200]}) / (len(q.targets) + 1e-5) for q in bench.queries]
    assert value.tolist() == pytest.approx(expected)
    assert (value <= SHARE.score(bench, perfect(bench)).values["R@200"]).all()
    assert outcome.tied == tuple(q.id for q in bench.queries if q.targets)
