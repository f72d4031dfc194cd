"""Which rows a step takes: every row once per epoch, near each other where the source lies in blocks, no state."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cir.randomness import seed_of
from cir.train import order
from cir.train.order import Feed, Share, blocks_of, permutation, rows_at

BLOCKS = (5, 1, 7, 4, 0, 9, 3, 6, 5, 2)
COUNT = sum(BLOCKS)


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(order, "WINDOW_BLOCKS", 3)
    monkeypatch.setattr(order, "WINDOW_ROWS", 10)
    for cached in (order._windows, order._shuffled):
        cached.cache_clear()
    yield
    for cached in (order._windows, order._shuffled):
        cached.cache_clear()


def block_of(row):
    return int(np.searchsorted(np.cumsum(BLOCKS), row, side="right"))


def test_a_permutation_takes_four_bytes_a_row_and_is_the_generators():
    for count in (1, 10, 1000):
        found = permutation(3, 2, count)
        assert found.dtype == np.int32
        assert found.tolist() == np.random.default_rng(seed_of(3, "epoch", 2)).permutation(count).tolist()


def test_every_epoch_has_every_row_once(small_windows):
    epochs = [rows_at(1, COUNT * epoch, COUNT, COUNT, BLOCKS) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4
    assert rows_at(2, 0, COUNT, COUNT, BLOCKS) != epochs[0]


def test_any_position_is_the_same_however_it_is_reached(small_windows):
    whole = rows_at(1, 0, 3 * COUNT, COUNT, BLOCKS)
    for start in range(0, 3 * COUNT, 5):
        for length in (1, 4, 11, COUNT + 3):
            length = min(length, 3 * COUNT - start)
            assert rows_at(1, start, length, COUNT, BLOCKS) == whole[start : start + length]


def test_rows_near_in_the_order_come_from_few_blocks(small_windows):
    for epoch in range(20):
        rows = rows_at(7, COUNT * epoch, COUNT, COUNT, BLOCKS)
        open_blocks, windows = set(), []
        for group in order._windows(7, epoch, BLOCKS).groups:
            size = sum(BLOCKS[block] for block in group)
            taken, rows = rows[:size], rows[size:]
            assert {block_of(row) for row in taken} == {block for block in group if BLOCKS[block]}
            assert not open_blocks & set(group)
            open_blocks |= set(group)
            windows.append(len(group))
        assert not rows and len(windows) > 1
        assert all(length >= 3 for length in windows[:-1])


def test_rows_of_a_window_are_mixed(small_windows):
    """Within a window blocks do not follow one another: somewhere a block is left and met again."""
    rows = rows_at(0, 0, COUNT, COUNT, BLOCKS)
    changes = sum(block_of(a) != block_of(b) for a, b in pairwise(rows))
    assert changes > 2 * len(BLOCKS)


def test_one_window_is_a_full_shuffle():
    rows = rows_at(0, 0, COUNT, COUNT, BLOCKS)  # fewer rows than a window has
    assert sorted(rows) == list(range(COUNT)) and rows != sorted(rows)
    assert len(order._windows(0, 0, BLOCKS).groups) == 1


def test_blocks_are_used_where_there_are_several_of_the_rows_that_are_drawn():
    assert blocks_of(SimpleNamespace(blocks=(3, 4)), 7) == (3, 4)
    assert blocks_of(SimpleNamespace(blocks=(3, 4)), 8) == ()
    assert blocks_of(SimpleNamespace(blocks=(7,)), 7) == ()
    assert blocks_of(["a"] * 7, 7) == ()


@pytest.mark.parametrize(("size", "accumulate", "workers"), [(1, 1, 0), (2, 1, 2), (2, 2, 0), (4, 2, 3)])
def test_processes_share_the_same_global_batches(small_windows, size, accumulate, workers):
    class Rows:
        def __len__(self):
            return COUNT

        def batch(self, rows, random):
            return list(rows)

    def micro_batches(rank):
        share = Share(8, accumulate, rank, size)
        feed = Feed(Rows(), share, 5, workers, torch.device("cpu"), BLOCKS)
        with feed.read(2, 9) as found:
            return list(found)

    ranks = [micro_batches(rank) for rank in range(size)]
    joined = [row for parts in zip(*ranks, strict=True) for part in parts for row in part]
    assert joined == rows_at(5, 16, 56, COUNT, BLOCKS)
