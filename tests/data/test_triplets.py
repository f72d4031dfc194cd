import json

import pytest

from cir.data import triplets
from cir.data.triplets import Triplet
from cir.errors import InputError

ROWS = [
    {"reference_caption": "a red dress", "conditioning_caption": "make it Blue $5!", "target_caption": "a blue dress"},
    {"reference_caption": "one dog", "conditioning_caption": "two", "target_caption": "two dogs", "id": 7},
]


def put(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


def test_a_list_and_lines_give_the_same_triplets(tmp_path):
    one = triplets.load(put(tmp_path, "t.json", json.dumps(ROWS, indent=1)))
    two = triplets.load(put(tmp_path, "t.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n\n"))
    assert (
        list(one)
        == list(two)
        == [
            Triplet("a red dress", "make it Blue $5!", "a blue dress"),
            Triplet("one dog", "two", "two dogs"),
        ]
    )
    assert one.fingerprint == two.fingerprint
    assert one[1:] == [one[-1]]


def test_the_fingerprint_tells_columns_apart(tmp_path):
    turned = [{**ROWS[0], "reference_caption": "a blue dress", "target_caption": "a red dress"}]
    one = triplets.load(put(tmp_path, "a.json", json.dumps(ROWS[:1])))
    assert one.fingerprint != triplets.load(put(tmp_path, "b.json", json.dumps(turned))).fingerprint


def test_bad_rows_are_named_or_left_out_on_request(tmp_path):
    bad = [
        json.dumps(ROWS[0]),
        "{",
        '{"reference_caption": "x"}',
        json.dumps({**ROWS[1], "target_caption": " "}),
        "[1]",
    ]
    path = put(tmp_path, "t.jsonl", "\n".join(bad))
    with pytest.raises(InputError, match=r"4 rows.*line 2: not JSON.*line 3: key 'conditioning_.*line 4: target"):
        triplets.load(path)
    found = triplets.load(path, allow_bad=True)
    assert len(found) == 1 and len(found.bad) == 4


def test_rows_of_a_list_are_counted_from_one(tmp_path):
    with pytest.raises(InputError, match=r"1 rows .*row 2: expected an object, got str"):
        triplets.load(put(tmp_path, "t.json", json.dumps([ROWS[0], "x"])))


@pytest.mark.parametrize(("text", "match"), [("", "no triplets"), ("[]", "no triplets"), ("[1,", "not JSON")])
def test_unusable_files(tmp_path, text, match):
    with pytest.raises(InputError, match=match):
        triplets.load(put(tmp_path, "t.json", text))
    with pytest.raises(InputError, match="no such file"):
        triplets.load(tmp_path / "absent.json")
