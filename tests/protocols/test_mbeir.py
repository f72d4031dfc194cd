"""M-BEIR's protocols, scored by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from cir.protocols import PROTOCOLS
from cir.schema import Benchmark, Query, TargetRanks

NAMES = [name for name in PROTOCOLS if name.startswith("mbeir/")]
GALLERY = tuple(f"8:{n}" for n in range(60))


def scored(name, rows):
    width = len(rows[0])
    queries = tuple(
        Query(f"8:{i}", "8:59", ("x",), tuple(GALLERY[slot] for slot in range(sum(rank > 0 for rank in row))))
        for i, row in enumerate(rows)
    )
    paths = dict.fromkeys(GALLERY, "x.jpg")
    bench = Benchmark("mbeir/cirr/test", "1", "test", name, queries, GALLERY, Path(), paths)
    ids = tuple(query.id for query in queries)
    ranks = TargetRanks(ids, np.array(rows).reshape(-1, width), np.zeros(len(rows), dtype=bool))
    return PROTOCOLS[name].score(bench, ranks).values


@pytest.mark.parametrize("name", NAMES)
def test_any_positive_counts_and_gains_are_discounted(name):
    values = scored(name, [[1, 0, 0], [30, 3, 0], [11, 10, 4], [51, 0, 0]])
    assert values["R@1"].tolist() == [1, 0, 0, 0] and values["R@5"].tolist() == [1, 1, 1, 0]
    assert values["R@10"].tolist() == values["R@20"].tolist() == values["R@50"].tolist() == [1, 1, 1, 0]
    two, three = 1 + 1 / math.log2(3), 1 + 1 / math.log2(3) + 1 / 2
    expected = [1, (1 / 2) / two, (1 / math.log2(11) + 1 / math.log2(5)) / three, 0]
    assert values["nDCG@10"].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_no_number_can_pass_for_a_paper_s(name):
    protocol = PROTOCOLS[name]
    query = Query("8:1", "8:59", ("x",), ("8:1",))
    assert "the CIRR or FashionIQ papers'" in protocol.definition and "2311.17136" in protocol.definition
    assert protocol.excluded(query) == () and protocol.competes == "gallery"  # the reference stays
    assert len({PROTOCOLS[other].definition for other in NAMES}) == len(NAMES) == 4
