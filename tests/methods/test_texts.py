"""Token rows and frozen features: equal to making them fresh, made once, kept on disk, gone on with after a kill."""

import numpy as np
import pytest
import torch

from cir import keywords
from cir.backbones.kept import KeptRows
from cir.backbones.store import FeatureCache
from cir.errors import RunError
from cir.methods import NoStore, masking, texts
from cir.methods.masking import FALLBACK, Masked
from cir.methods.texts import FrozenTexts, TokenRows, distinct, fingerprint, fits, rules
from cir.prompts import tokenize

CAPTIONS = ["a red dress with longer sleeves", "two dogs on grass", "it is", "", "the photo of a cat on the blue sofa"]


class Counting:
    """A pure function of a row's number that remembers what it was asked."""

    def __init__(self, rule):
        self.rule, self.asked = rule, []

    def __call__(self, number):
        self.asked.append(number)
        return self.rule(number)


def pieces(number):
    """Rows of every kind: no slot, one, many, a slot first and last, a fallback."""
    text = CAPTIONS[number % 5]
    return [[text], [text, " that is red"], Masked(("", text, "", ""), True), Masked(FALLBACK, False)][number % 4]


def plain(number):
    row = pieces(number)
    return list(row.pieces if isinstance(row, Masked) else row)


def store(folder, backbone, chunk=2048):
    return KeptRows(FeatureCache(folder, chunk=chunk), backbone)


def assert_same(prompt, expected):
    for name in ("ids", "slots", "ends"):
        assert np.array_equal(getattr(prompt, name), getattr(expected, name)), name


# Token rows


@pytest.mark.parametrize("kept", [None, "memory", "disk"])
def test_token_rows_equal_tokenize_with_slots_and_flags(tiny_backbone, tmp_path, kept):
    tokenizer, asked = tiny_backbone.tokenizer, Counting(pieces)
    if kept is None:
        rows = TokenRows(tokenizer, asked)
    else:
        where = NoStore() if kept == "memory" else store(tmp_path, tiny_backbone)
        rows = TokenRows(tokenizer, asked, 20, where, ("some rows",))
        assert asked.asked == list(range(20))
    for numbers in ([7, 0, 7, 3], [2], list(range(20)), [1, 1]):
        prompt, own = rows(numbers)
        assert_same(prompt, tokenize(tokenizer, [plain(i) for i in numbers]))
        assert own.tolist() == [i % 4 != 3 for i in numbers]
        assert_same(rows.prompt(numbers), prompt)
    assert len(asked.asked) == 20  # each once, whenever it was
    assert isinstance(rows.table, np.memmap) == (kept == "disk")


def test_rows_longer_than_the_context_are_cut(tiny_backbone):
    rows = TokenRows(tiny_backbone.tokenizer, lambda i: ["a photo of", " red" * 90], 1)
    prompt = rows.prompt([0])
    assert prompt.ids.shape == (1, 77) and prompt.ends.tolist() == [76] and prompt.slots.tolist() == [[4]]


def test_towers_that_need_the_whole_context_get_it(tiny_backbone, monkeypatch):
    monkeypatch.setattr(tiny_backbone.tokenizer, "fixed_length", True)
    for rows in (TokenRows(tiny_backbone.tokenizer, pieces), TokenRows(tiny_backbone.tokenizer, pieces, 8)):
        assert_same(rows.prompt([1, 2]), tokenize(tiny_backbone.tokenizer, [plain(1), plain(2)]))
        assert rows.prompt([1]).ids.shape[1] == 77


def test_token_rows_made_when_asked_for_stay_bounded(tiny_backbone, monkeypatch):
    monkeypatch.setattr(texts, "LAZY_ROWS", 2)
    rows = TokenRows(tiny_backbone.tokenizer, lambda i: [f"{i}"])
    for i in range(6):
        assert_same(rows.prompt([i]), tokenize(tiny_backbone.tokenizer, [[str(i)]]))
    assert len(rows._rows) == 2


def test_a_second_run_reads_what_the_first_one_kept(tiny_backbone, tmp_path):
    first, second = Counting(pieces), Counting(pieces)
    for asked in (first, second):
        rows = TokenRows(tiny_backbone.tokenizer, asked, 12, store(tmp_path, tiny_backbone), ("these",))
        assert_same(rows.prompt([5, 3]), tokenize(tiny_backbone.tokenizer, [plain(5), plain(3)]))
        assert rows([3, 5])[1].tolist() == [False, True]
    assert len(first.asked) == 12 and not second.asked


def test_another_identity_or_tokenizer_makes_other_rows(tiny_backbone, tmp_path, monkeypatch):
    asked = Counting(pieces)

    def lay_out(*identity):
        before = len(asked.asked)
        TokenRows(tiny_backbone.tokenizer, asked, 4, store(tmp_path, tiny_backbone), identity)
        return len(asked.asked) > before

    assert lay_out("seed 0") and not lay_out("seed 0") and lay_out("seed 1")
    monkeypatch.setattr(tiny_backbone.tokenizer, "fingerprint", "another", raising=False)
    assert lay_out("seed 0")


def test_an_interrupted_run_goes_on_and_ends_with_the_same_rows(tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "LAID_OUT", 4)
    whole = TokenRows(tiny_backbone.tokenizer, pieces, 18).table

    def failing(number):
        if number == 13:
            raise KeyboardInterrupt
        return pieces(number)

    with pytest.raises(KeyboardInterrupt):
        TokenRows(tiny_backbone.tokenizer, failing, 18, store(tmp_path, tiny_backbone, chunk=4), ("x",))
    asked = Counting(pieces)
    rows = TokenRows(tiny_backbone.tokenizer, asked, 18, store(tmp_path, tiny_backbone, chunk=4), ("x",))
    assert asked.asked == list(range(12, 18))
    assert np.array_equal(rows.table, whole)


# Frozen features


@pytest.mark.parametrize("kept", [None, "memory", "disk"])
def test_frozen_features_equal_the_tower(tiny_backbone, tmp_path, kept):
    draws = 5 if kept is None else 100
    where = store(tmp_path, tiny_backbone) if kept == "disk" else NoStore()
    frozen = FrozenTexts(tiny_backbone, CAPTIONS.__getitem__, 5, draws, where, ("captions",))
    assert (frozen.table is None) == (kept is None)
    assert isinstance(frozen.table, np.memmap) == (kept == "disk")
    for numbers in ([4, 0, 4], [2], [3, 1, 0]):
        prompt = tokenize(tiny_backbone.tokenizer, [[CAPTIONS[i]] for i in numbers])
        torch.testing.assert_close(frozen(numbers), tiny_backbone.encode_text(prompt), atol=1e-5, rtol=1e-4)
        assert not frozen(numbers).requires_grad


def test_a_kept_table_is_not_copied_into_memory(tiny_backbone, tmp_path):
    frozen = FrozenTexts(tiny_backbone, str, 50, 100, store(tmp_path, tiny_backbone), ("numbers",))
    for table in (frozen.table, frozen.tokens.table):
        assert isinstance(table, np.memmap) and not table.flags.writeable and table.base is not None
    frozen([1])[0].fill_(7)  # what is handed out is the caller's
    assert float(frozen([1])[0, 0]) != 7


def test_cached_equals_fresh_to_the_bit_and_is_computed_once(tiny_backbone, tmp_path, monkeypatch):
    calls = []
    encode = tiny_backbone.encode_text
    monkeypatch.setattr(tiny_backbone, "encode_text", lambda *a: (calls.append(1), encode(*a))[1])
    where = store(tmp_path, tiny_backbone)
    fresh = FrozenTexts(tiny_backbone, CAPTIONS.__getitem__, 5, 6, where, ("c",))([0, 1, 2, 3, 4])
    assert len(calls) == 1
    again = FrozenTexts(tiny_backbone, CAPTIONS.__getitem__, 5, 6, where, ("c",))([0, 1, 2, 3, 4])
    assert len(calls) == 1 and torch.equal(fresh, again)


def test_an_interrupted_encoding_goes_on_with_the_same_bits(tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "BLOCK", 4)
    rows = [f"{caption} {i}" for i, caption in enumerate(CAPTIONS * 4)]
    whole = FrozenTexts(tiny_backbone, rows.__getitem__, 20, 99).table
    encode, calls = tiny_backbone.encode_text, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(tiny_backbone, "encode_text", failing)
    with pytest.raises(KeyboardInterrupt):
        FrozenTexts(tiny_backbone, rows.__getitem__, 20, 99, store(tmp_path, tiny_backbone, chunk=4), ("r",))
    frozen = FrozenTexts(tiny_backbone, rows.__getitem__, 20, 99, store(tmp_path, tiny_backbone, chunk=4), ("r",))
    assert len(calls) == 4 + 2 and np.array_equal(frozen.table, whole)


def test_a_repeated_text_is_encoded_once(tiny_backbone):
    frozen = FrozenTexts(tiny_backbone, lambda i: CAPTIONS[i % 2], 10, 100)
    assert frozen.table.shape == (2, tiny_backbone.width)
    assert torch.equal(frozen([0, 1]), frozen([8, 9]))


@pytest.mark.parametrize("kept", [False, True])
def test_a_source_larger_than_the_limit_is_encoded_when_asked_for(tiny_backbone, tmp_path, monkeypatch, kept):
    where = store(tmp_path, tiny_backbone) if kept else NoStore()
    limit = 5 * 4 * (tiny_backbone.tokenizer.context + 2)  # of five token rows, the larger of both tables
    monkeypatch.setattr(texts, "DISK_BYTES" if kept else "MEMORY_BYTES", limit)
    within = FrozenTexts(tiny_backbone, CAPTIONS.__getitem__, 5, 100, where, ("a",))
    assert within.table is not None and within.tokens.table is not None
    asked = Counting(lambda i: CAPTIONS[i % 5])
    beyond = FrozenTexts(tiny_backbone, asked, 6, 100, where, ("b",))
    assert beyond.table is None and beyond.tokens.table is None and not asked.asked
    torch.testing.assert_close(beyond([5, 1]), within([0, 1]), atol=1e-5, rtol=1e-4)
    assert asked.asked == [1, 5]


def test_features_that_are_not_finite_stop_the_run(tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_backbone, "encode_text", lambda prompt: torch.full((len(prompt), 24), float("nan")))
    with pytest.raises(RunError, match="texts features of 'row 0' are not finite"):
        FrozenTexts(tiny_backbone, CAPTIONS.__getitem__, 5, 9, store(tmp_path, tiny_backbone), ("c",))


# What they are made of


def test_distinct_rows_equal_a_dictionary():
    random = np.random.default_rng(0)
    rows = random.integers(0, 3, (500, 4)).astype(np.int32)
    seen: dict[bytes, int] = {}
    expected = [seen.setdefault(row.tobytes(), len(seen)) for row in rows]
    first, number = distinct(rows)
    assert number.tolist() == expected
    assert [rows[i].tobytes() for i in first] == list(seen)
    assert [part.tolist() for part in distinct(rows[:1])] == [[0], [0]]


def test_a_source_is_known_by_its_own_fingerprint_or_its_rows():
    class Source(list):
        fingerprint = "abc"

    assert fingerprint(Source(["x"])) == "abc"
    assert fingerprint(["x", "y"]) == fingerprint(["x", "y"]) != fingerprint(["xy"])


def test_rules_change_with_the_code():
    assert rules(masking) == rules(masking) != rules(keywords) != rules(masking, keywords)


def test_memory_and_disk_have_limits_of_their_own(tiny_backbone, tmp_path):
    count = texts.MEMORY_BYTES // 4 + 1
    assert not fits(count, 4, NoStore()) and fits(count, 4, store(tmp_path, tiny_backbone))
    assert not fits(texts.DISK_BYTES // 4 + 1, 4, store(tmp_path, tiny_backbone))
