import json
import logging

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cir.errors import InputError
from cir.methods import NoStore
from cir.methods.concepts import ASKED, TEMPLATES, assigned, closest, concept_features, ensemble, read_names
from cir.methods.phrases import Phrasebook, Vocabulary, read
from cir.prompts import tokenize

ROWS = [
    ("cat", ["a cat on grass", "the cat is a cat person", "two cats"]),
    ("Dog", ["a Dog", "the dog on grass"]),  # the second lacks the name: case counts
    ("red dress", ["a red dress with sleeves"]),
]


def write(path, rows):
    path.write_text("".join(json.dumps({"concept": name, "phrases": phrases}) + "\n" for name, phrases in rows))
    return path


class Interrupted(NoStore):
    """Keeps what was computed before a computation broke off, and asks for the rest the next time."""

    def __init__(self):
        self.kept = {}

    def rows(self, kind, identity, count, compute):
        blocks = self.kept.setdefault((kind, tuple(identity)), [])
        start = sum(map(len, blocks))
        if start < count:
            for block in compute(start):
                blocks.append(np.array(block))
        return np.concatenate(blocks)


# Concepts


def test_the_sentences_are_palavras_24():
    assert len(set(TEMPLATES)) == 24 and all(template.count("{}") == 1 for template in TEMPLATES)
    assert set(TEMPLATES) >= {
        "An illustrations of a {}", "This is an illustration of a {}", "This sketch contains a {}", "A diagram of a {}",
        "We see a {} in this image", "We see a {} illustration", "{} photo", "{}",
    }  # fmt: skip
    assert sum("diagram" in template for template in TEMPLATES) == sum("sketch" in t for t in TEMPLATES) == 3
    assert sum("photo" in template for template in TEMPLATES) == sum("illustration" in t for t in TEMPLATES) == 6
    assert sum("image" in template for template in TEMPLATES) == 3
    assert [" $ ".join(pieces) for pieces in ASKED[:2]] == ["This is a photo of a  $ ", "This photo contains a  $ "]


def test_class_lists_are_read_stripped_and_once(tmp_path):
    text = tmp_path / "names.txt"
    text.write_text("cat\n\n Dog \ncat\nred dress\n")
    assert read_names(text) == ["cat", "Dog", "red dress"]
    table = tmp_path / "classes.csv"
    table.write_text('LabelName,DisplayName\n/m/01,cat\n/m/02,"Dog, small"\n')
    assert read_names(table) == ["cat", "Dog, small"]


def test_class_lists_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "a.csv").write_text("id,name\n1,cat\n")
    (tmp_path / "b.txt").write_text("\n")
    for name, match in (("a.csv", "no column DisplayName; found id, name"), ("b.txt", "holds no concepts"),
                        ("c.txt", "not readable")):  # fmt: skip
        with pytest.raises(InputError, match=match):
            read_names(tmp_path / name)


def test_concept_features_equal_the_ensemble_written_out(tiny_backbone):
    names = ["cat", "red dress"]
    found = concept_features(tiny_backbone, names, NoStore())
    for name, row in zip(names, found, strict=True):
        total = torch.zeros(tiny_backbone.width)
        for template in TEMPLATES:
            one = tiny_backbone.encode_text(tokenize(tiny_backbone.tokenizer, [[template.replace("{}", name)]]))[0]
            total += one / one.norm() / 24
        torch.testing.assert_close(torch.from_numpy(row), total / total.norm(), atol=1e-5, rtol=1e-4)


def test_the_closest_are_those_of_a_stable_sort_in_any_batch():
    draw = torch.Generator().manual_seed(0)
    others = torch.randn(12, 6, generator=draw)
    others[7], others[9], others[3] = others[2], 2 * others[2], others[5]  # ties: the grid forgets the length
    images = torch.cat([torch.randn(20, 6, generator=draw), others[2:3], -others[2:3]])
    cosines = np.round((F.normalize(images, dim=-1).double() @ F.normalize(others, dim=-1).double().T).numpy(), 6)
    expected = np.argsort(-cosines, axis=1, kind="stable")
    for k in (1, 3, 12):
        found = closest(images, others, k)
        assert (found == expected[:, :k]).all()
        assert (found == np.concatenate([closest(one[None], others, k) for one in images])).all()
    assert closest(images, others, 99).shape == (22, 12)


def test_an_interrupted_assignment_goes_on(tiny_backbone):
    images, others = torch.randn(2500, 6), torch.randn(5, 6).numpy()
    asked = []

    def rows(numbers, broken):
        asked.append(numbers[0])
        if broken and numbers[0] >= 1024:
            raise KeyboardInterrupt
        return images[list(numbers)]

    store = Interrupted()
    for broken in (True, False):
        try:
            found = assigned(lambda n, b=broken: rows(n, b), 2500, others, 3, store, "x", ("y",))
        except KeyboardInterrupt:
            assert broken
    assert asked == [0, 1024, 1024, 2048]
    assert (found == closest(images, torch.from_numpy(others), 3)).all()


# Phrases


def test_a_concept_with_a_phrase_that_lacks_it_is_dropped():
    known = Vocabulary(ROWS)
    assert known.names == ("cat", "Dog", "red dress") and known.good.tolist() == [True, False, True]
    assert known.dropped == 1 and len(known) == 4 and known.counts.tolist() == [3, 0, 1]
    assert [known.phrase(i) for i in range(4)] == [*ROWS[0][1], *ROWS[2][1]]
    assert [known.concept(i) for i in range(4)] == ["cat"] * 3 + ["red dress"]
    assert known.fingerprint != Vocabulary(ROWS[:2]).fingerprint
    with pytest.raises(InputError, match="none of 1 concepts"):
        Vocabulary(ROWS[1:2])


def test_slots_are_at_the_first_mention_or_at_the_first_of_every():
    known = Vocabulary(ROWS)
    assert [" $".join(known.first(i)) for i in range(4)] == [
        "a  $  on grass", "the  $  is a cat person", "two  $ s", "a  $  with sleeves"
    ]  # fmt: skip
    assert known.every(1) == ["the ", "  is a  $  person"]
    assert known.every(2) == known.first(2)


def test_later_mentions_are_plain_dollars_and_keep_their_blanks(tiny_backbone):
    known = Vocabulary([("cat", ["two cats and catgrass"])])
    tokenizer = tiny_backbone.tokenizer
    prompt = tokenize(tokenizer, [known.every(0)])
    plain = [*tokenizer.start, *tokenizer.pieces("two $ s and $ grass"), tokenizer.end]
    assert prompt.ids[0].tolist() == plain
    assert prompt.slots[0].tolist() == [plain.index(tokenizer.slot)] and plain.count(tokenizer.slot) == 2


def test_phrases_are_drawn_uniformly_over_those_of_all_concepts():
    known = Vocabulary([("a", ["a1", "a2", "a3"]), ("b", ["b1"]), ("c", ["c1", "c2"])])
    concepts = np.array([[2, 0], [1, 1]])
    uniform = np.array([[0, 0.19, 0.2, 0.39, 0.4, 0.6, 0.8, 0.999], [0, 0.1, 0.4, 0.49, 0.5, 0.6, 0.7, 0.9]])
    numbers = known.any_phrase(concepts, uniform)
    assert [known.phrase(n) for n in numbers[0].tolist()] == ["c1", "c1", "c2", "c2", "a1", "a2", "a3", "a3"]
    assert {known.phrase(n) for n in numbers[1].tolist()} == {"b1"}


def test_a_concept_is_drawn_first_and_bad_ones_are_passed_over():
    known = Vocabulary([("a", ["a1", "a2", "a3"]), ("bad", ["x"]), ("c", ["c1", "c2"])])
    concepts = np.array([[1, 2, 0]] * 5)
    uniform = np.array([[0, 0], [0.49, 0.5], [0.5, 0], [0.6, 0.34], [0.99, 0.99]])
    drawn = [known.phrase(n) for n in known.phrase_of_any(concepts, uniform).tolist()]
    assert drawn == ["c1", "c2", "a1", "a2", "a3"]
    with pytest.raises(InputError, match="none of the 1 concepts closest to an image"):
        known.phrase_of_any(np.array([[0], [1]]), np.zeros((2, 2)))


def test_files_are_read_in_the_order_of_the_class_list_and_losses_are_told(tmp_path, caplog):
    path = write(tmp_path / "phrases.jsonl", ROWS)
    (tmp_path / "names.txt").write_text("red dress\nsofa\nDog\ncat\n")
    with caplog.at_level(logging.WARNING):
        known = read(tmp_path / "names.txt", path)
    assert known.names == ("red dress", "Dog", "cat") and known.phrase(0) == "a red dress with sleeves"
    assert "1 concepts have no phrases, 1 of the other 3 are dropped" in caplog.text
    assert read("", path).names == ("cat", "Dog", "red dress")


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("[1]", "1: expected"),
        ('{"concept": "cat", "phrases": "a cat"}', "1: expected"),
        ('{"concept": "cat", "phrases": [1]}', "a phrase of 'cat'"),
        ("{", "lines of JSON"),
        ('{"concept": "cat", "phrases": ["cat"]}\n' * 2, "occurs twice"),
    ],
)
def test_files_that_are_not_phrases_are_named(tmp_path, line, match):
    (tmp_path / "phrases.jsonl").write_text(line)
    with pytest.raises(InputError, match=match):
        read("", tmp_path / "phrases.jsonl")


@pytest.mark.parametrize("path", ["", "absent.jsonl"])
def test_an_absent_file_is_named(path):
    with pytest.raises(InputError, match="no file given" if not path else "absent.jsonl: not readable"):
        read("", path)


def test_phrases_are_encoded_ahead_where_that_pays_and_brought_along_elsewhere(tiny_backbone):
    known = Vocabulary(ROWS)
    ahead = Phrasebook(tiny_backbone, known, draws=5, store=NoStore())
    along = Phrasebook(tiny_backbone, known, draws=4, store=NoStore())
    numbers = [3, 0, 0]
    assert len(ahead.rows(ahead.first, numbers)) == 1 and along.cached(numbers) is None
    slotted, plain = along.rows(along.first, numbers)
    assert (slotted.ids == ahead.rows(ahead.first, numbers)[0].ids).all()
    torch.testing.assert_close(ahead.cached(numbers), tiny_backbone.encode_text(plain), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        torch.from_numpy(np.array(ahead.concepts)), ensemble(tiny_backbone, known.names), atol=1e-6, rtol=1e-5
    )
