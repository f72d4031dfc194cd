"""Two records of four queries, compared by hand."""

import numpy as np
import pytest

from cir import records
from cir.archive.diff import Changed, Number, diff, pairs
from cir.archive.flat import Difference
from cir.errors import InputError

BEFORE = [(1, 3), (7, 0), (2, 20), (40, 6)]
AFTER = [(1, 3), (1, 0), (2, 19), (50, 5)]


def pair(path):
    return path, records.read(path)


@pytest.fixture
def two(make):
    before = make("a", ["train.batch=64"], BEFORE)
    after = make(
        "b", ["train.lr=0.5", "train.batch=64"], AFTER, name="new", checkpoint="e" * 16,
        change={"packages": {"python": "3.11.0", "torch": "2.14.0"}},
    )  # fmt: skip
    return pair(before), pair(after)


def test_what_differs_is_told_by_heading(two):
    found = diff(*two)
    assert found.sections["config"] == [Difference("name", "lincir", "new"), Difference("train.lr", 1e-4, 0.5)]
    assert found.sections["data"] == []
    assert found.sections["weights"] == [Difference("method.checkpoint", "c" * 16, "e" * 16)]
    assert found.sections["code"] == [Difference("packages.torch", "2.13.0", "2.14.0")]
    assert found.notes == ()


def test_numbers_and_queries_by_hand(two):
    """AP@10: query 0 has (1/1 + 2/3)/2, 1 goes from 1/7 to 1, 2 stays at (1/2)/2, 3 goes from (1/6)/2 to (1/5)/2."""
    found = diff(*two, metric="mAP@10", queries=2)
    first = {number.metric: number for number in found.numbers}["mAP@10"]
    before, after = [5 / 6, 1 / 7, 1 / 4, 1 / 12], [5 / 6, 1, 1 / 4, 1 / 10]
    assert first == Number("mAP@10", pytest.approx(100 * np.mean(before)), pytest.approx(100 * np.mean(after)), 2, 0)
    assert found.test.difference == pytest.approx(100 * (np.mean(after) - np.mean(before)))
    assert (found.test.run, found.test.baseline) == ("new", "lincir")
    assert (found.test.won, found.test.tied, found.test.lost) == (2, 2, 0)
    assert found.changed == (
        Changed("q1", pytest.approx(1 / 7), 1.0, 7, 1),
        Changed("q3", pytest.approx(1 / 12), pytest.approx(1 / 10), 6, 5),
    )
    assert diff(*two, metric="mAP@10", queries=10).changed == found.changed  # query 2 kept value and best rank


def test_of_equal_changes_the_greater_ratio_of_ranks_comes_first(make):
    before = pair(make("a", ranks=[(6, 0), (400, 0), (30, 0)]))
    after = pair(make("b", ranks=[(1, 0), (1, 0), (15, 0)]))
    assert [one.query for one in diff(before, after, "R@5").changed] == ["q1", "q0", "q2"]


def test_queries_are_matched_by_id(make, two):
    order = [2, 0, 3, 1]
    path, record = two[1]
    values = records.read_values(path, record)
    shuffled = records.PerQuery(
        tuple(values.ids[row] for row in order),
        {name: value[order] for name, value in values.values.items()},
        values.ranks[order],
    )
    other = pair(records.write(path.parent.parent / "shuffled", record, shuffled))
    one, same = diff(two[0], other, "mAP@10"), diff(*two, "mAP@10")
    assert one.numbers == same.numbers and one.changed == same.changed
    assert (one.test.difference, one.test.won) == (same.test.difference, same.test.won)


def test_what_cannot_be_compared_is_said(make):
    ours = pair(make("a"))
    fewer = pair(make("b", ranks=BEFORE[:3], data="e" * 16))
    found = diff(ours, fewer)
    assert found.test is None and found.changed == ()
    assert "the data differ" in found.notes[0] and "not the same queries" in found.notes[1]
    assert all(number.won is None for number in found.numbers)
    newer = pair(make("c", protocol=("circo", 2), change={"stale": "fixed"}))
    assert [note.split(":")[0] for note in diff(ours, newer).notes] == ["lincir", "the protocols differ"]
    with pytest.raises(InputError, match="did you mean 'mAP@5'"):
        diff(ours, newer, "mAP@6")


def test_a_record_without_values_is_compared_by_its_means(make, tmp_path):
    ours = pair(make("a"))
    bare = records.write(tmp_path / "bare", records.read(make("b", ranks=AFTER)))
    plain = records.read_plain(bare)
    records.replace_file(bare, records.text({**plain, "per_query": None}))
    found = diff(ours, pair(bare))
    assert found.test is None and "no per-query values" in found.notes[0]
    assert found.numbers[0].after is not None


def test_folders_are_paired_by_benchmark(make, tmp_path):
    cirr = {"benchmark": "cirr/val", "protocol": ("cirr", 1)}
    for place in ("a", "b"):
        make(place), make(place, **cirr)
    sides = [records.find([tmp_path / place]) for place in ("a", "b")]
    found = pairs(*sides)
    assert [one[0][1].benchmark.name for one in found] == ["cirr/val", "world/circo/val"]
    assert all(a[1].benchmark.name == b[1].benchmark.name for a, b in found)
    make("b", ["seed=1"], **cirr)
    with pytest.raises(InputError, match="several records of cirr/val"):
        pairs(sides[0], records.find([tmp_path / "b"]))
    with pytest.raises(InputError, match="no benchmark in common"):
        pairs(sides[0], records.find([make("c", benchmark="x/val"), make("c", benchmark="y/val")]))
