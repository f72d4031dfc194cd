"""Custom protocols, scored by hand."""

from pathlib import Path

import numpy as np
import pytest

from cir.errors import InputError
from cir.protocols import PROTOCOLS
from cir.schema import Benchmark, Query, TargetRanks

GALLERY = tuple(f"i{n}" for n in range(20))


def benchmark(targets, protocol):
    queries = tuple(Query(f"q{i}", "i19", ("x",), names, GALLERY[:9]) for i, names in enumerate(targets))
    return Benchmark("custom/x", "1", "custom", protocol, queries, GALLERY, Path(), dict.fromkeys(GALLERY, "x.png"))


def ranked(rows):
    return TargetRanks(tuple(f"q{i}" for i in range(len(rows))), np.array(rows), np.zeros(len(rows), dtype=bool))


@pytest.mark.parametrize("name", ["custom", "custom/reference-removed"])
def test_any_target_counts_and_precision_asks_for_all(name):
    bench = benchmark([("i0", "i1"), ("i2", "i3", "i4"), ("i5",)], name)
    values = PROTOCOLS[name].score(bench, ranked([[9, 2, 0], [12, 1, 4], [11, 0, 0]])).values
    assert values["R@1"].tolist() == [0, 1, 0] and values["R@5"].tolist() == [1, 1, 0]
    assert values["R@10"].tolist() == [1, 1, 0] and values["R@50"].tolist() == [1, 1, 1]
    assert values["mAP@10"].tolist() == pytest.approx([(1 / 2 + 2 / 9) / 2, (1 + 2 / 4) / 3, 0])


def test_more_targets_than_ten_divide_by_ten():
    bench = benchmark([GALLERY[:12]], "custom")
    perfect = PROTOCOLS["custom"].score(bench, ranked([list(range(1, 13))])).values
    assert perfect["mAP@10"].tolist() == [1]


def test_the_reference_leaves_where_the_protocol_says_so():
    query = Query("q", "i19", ("x",), ("i0",))
    assert PROTOCOLS["custom/reference-removed"].excluded(query) == ("i19",)
    assert PROTOCOLS["custom"].excluded(query) == PROTOCOLS["custom/candidates"].excluded(query) == ()


def test_candidates_alone_compete():
    protocol = PROTOCOLS["custom/candidates"]
    bench = benchmark([("i0", "i1"), ("i2",), ("i3",)], protocol.id)
    values = protocol.score(bench, ranked([[3, 2], [1, 0], [4, 0]])).values
    assert protocol.competes == "candidates" and list(values) == ["R@1", "R@2", "R@3"]
    assert values["R@1"].tolist() == [0, 1, 0] and values["R@2"].tolist() == [1, 1, 0]
    assert values["R@3"].tolist() == [1, 1, 0]


def test_hidden_labels_are_not_zero():
    with pytest.raises(InputError, match="labels are hidden"):
        PROTOCOLS["custom"].score(benchmark([(), ()], "custom"), ranked([[0], [0]]))
