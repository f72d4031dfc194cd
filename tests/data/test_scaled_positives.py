"""Scaled positives: pairs by hand, draws that cover what they may, rows in both layouts."""

import json
from collections import Counter

import numpy as np
import pytest

from cir.data import scaled_positives
from cir.errors import InputError

CAPTIONS = {"a": "a cat", "b": "two dogs", "c": "a {target} sofa", "d": "rain"}


def test_cirr_rows_say_one_caption_in_place_of_the_other():
    seen = Counter()
    for seed in range(40):
        for number, row in enumerate(scaled_positives.make(CAPTIONS, "cirr", seed=seed)):
            one, two = CAPTIONS[row["reference"]], CAPTIONS[row["target_hard"]]
            assert row["pairid"] == number and row["reference"] == "abcd"[number] != row["target_hard"]
            forms = [f"{two} instead of {one}", f"Unlike {one}, I want {two}"]
            seen[row["reference"], row["target_hard"], forms.index(row["caption"])] += 1
    assert len(seen) == 4 * 3 * 2 and max(seen.values()) < 20  # every pair, by both templates, none preferred


def test_fashioniq_rows_are_the_targets_caption_with_both_beside_it():
    rows = scaled_positives.make(CAPTIONS, "fashioniq", references=["b", "d", "b"])
    assert [row["candidate"] for row in rows] == ["b", "d"]
    for row in rows:
        assert row["captions"] == [CAPTIONS[row["target"]]] == [row["caption2"]]
        assert row["caption1"] == CAPTIONS[row["candidate"]]


def test_a_window_draws_from_its_places_of_the_ranking():
    angles = np.radians([0.0, 10, 30, 60, 100])
    captions = {str(i): f"picture {i}" for i in range(5)}
    features = 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    by_hand = {"0": "34", "1": "34", "2": "34", "3": "01", "4": "01"}  # the two least alike of the four others
    found = {name: set() for name in captions}
    for seed in range(30):
        for row in scaled_positives.make(captions, "cirr", features=features, window=(2, 4), seed=seed):
            found[row["reference"]].add(row["target_hard"])
    assert found == {name: set(two) for name, two in by_hand.items()}


def test_the_seed_makes_the_rows_and_a_part_is_a_part():
    captions = {str(i): f"picture {i}" for i in range(50)}
    whole, again = (scaled_positives.make(captions, "cirr", seed=1) for _ in range(2))
    assert whole == again != scaled_positives.make(captions, "cirr", seed=2)
    part = scaled_positives.make(captions, "cirr", seed=1, count=20)
    kept = {(row["reference"], row["target_hard"], row["caption"]) for row in whole}
    assert len(part) == 20 and {(r["reference"], r["target_hard"], r["caption"]) for r in part} < kept


def test_files_make_the_round_trip_and_bad_ones_are_named(tmp_path):
    file = tmp_path / "captions.json"
    file.write_text(json.dumps(CAPTIONS))
    assert scaled_positives.read_captions(file) == CAPTIONS
    rows = scaled_positives.make(CAPTIONS, "cirr")
    scaled_positives.write(tmp_path / "cap.json", rows)
    assert json.loads((tmp_path / "cap.json").read_text()) == rows
    for content, match in (("[1]", "expected an object"), ('{"a": ""}', "1 captions are empty"), ("{", "not readable")):
        file.write_text(content)
        with pytest.raises(InputError, match=match):
            scaled_positives.read_captions(file)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layout": "cir"}, "did you mean 'cirr'"),
        ({"layout": "cirr", "references": ["x"]}, "1 references have no caption"),
        ({"layout": "cirr", "templates": [3]}, "expected a number from 0 to 2"),
        ({"layout": "cirr", "features": np.eye(4), "window": (2, 4)}, "expected places from 0 to 3"),
    ],
)
def test_what_cannot_be_made_is_named(options, match):
    with pytest.raises(InputError, match=match):
        scaled_positives.make(CAPTIONS, **options)
