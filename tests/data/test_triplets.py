import json

import pytest

from cir.data import streams, triplets
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
    with pytest.raises(InputError, match=r"80.00% of the source, 79.00% are allowed"):
        triplets.load(path, allow_bad=0.79)
    found = triplets.load(path, allow_bad=0.8)
    assert len(found) == 1 and found.bad.total == len(found.bad.first) == 4


def test_only_the_first_bad_rows_are_named_and_all_are_counted(tmp_path):
    path = put(tmp_path, "t.jsonl", json.dumps(ROWS[0]) + "\n{" * 500)
    found = triplets.load(path, allow_bad=1.0)
    assert found.bad.total == 500 and len(found.bad.first) == 10


def test_rows_of_a_list_are_counted_from_one(tmp_path):
    with pytest.raises(InputError, match=r"1 rows .*row 2: expected an object, got str"):
        triplets.load(put(tmp_path, "t.json", json.dumps([ROWS[0], "x"])))


@pytest.mark.parametrize(("text", "match"), [("", "no triplets"), ("[]", "no triplets"), ("[1,", "not JSON")])
def test_unusable_files(tmp_path, text, match):
    with pytest.raises(InputError, match=match):
        triplets.load(put(tmp_path, "t.json", text))
    with pytest.raises(InputError, match="no such file"):
        triplets.load(tmp_path / "absent.json")


def test_the_columns_of_instructpix2pix_are_read_too(tmp_path):
    row = {"input": "a cat", "edit": "make it a dog", "output": "a dog"}
    assert triplets.load(put(tmp_path, "t.jsonl", json.dumps(row)))[0] == Triplet("a cat", "make it a dog", "a dog")


def test_parquet_and_folders(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {key: [row[key] for row in ROWS] for key in triplets.KEYS.values()} | {"id": [1, 2]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "b.parquet")
    put(tmp_path, "a.json", json.dumps([ROWS[1]]))
    put(tmp_path, "notes.txt", "no triplets")
    found = triplets.load(tmp_path)
    assert [row.reference for row in found] == ["one dog", "a red dress", "one dog"]
    parquet.write_table(pyarrow.table({"caption": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"no columns reference_caption.*found caption"):
        triplets.load(tmp_path)
    columns["target_caption"] = [None, "two dogs"]
    parquet.write_table(pyarrow.table(columns), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"1 rows are no .*b.parquet, row 1: target_caption: expected text, got None"):
        triplets.load(tmp_path)
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not readable as Parquet"):
        triplets.load(tmp_path)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_a_list_is_read_in_pieces(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(streams, "CHUNK", chunk)
    values = [{"text": 'q"]},é\u2028', "n": [1, [2]]}, 12, "x, y]", None, -3.5e7, {}]
    path = put(tmp_path, "t.json", "\ufeff " + json.dumps(values, indent=1, ensure_ascii=chunk == 7) + "\n ")
    assert [value[0] for _, value in streams.json_values(path)] == values
    for text, match in (("[1 2]", "comma or ] behind row 1"), ("[1, 2", "row 2"), ("[1] 2", "behind the list"),
                        ("[1,", "row 2"), ("[nope]", "row 1"), ("[1,]", "row 2")):  # fmt: skip
        with pytest.raises(InputError, match=match):
            list(streams.json_values(put(tmp_path, "t.json", text)))


def test_half_a_surrogate_pair_is_a_bad_row(tmp_path):
    text = json.dumps({**ROWS[0], "target_caption": "a \ud83d dress"})
    with pytest.raises(InputError, match="surrogate"):
        triplets.load(put(tmp_path, "t.jsonl", text))


def test_bytes_that_are_not_utf8_are_a_bad_line_or_an_error(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(json.dumps(ROWS[0]).encode() + b"\n\xff\xfe\n")
    assert triplets.load(tmp_path / "t.jsonl", allow_bad=0.5).bad.total == 1
    (tmp_path / "t.json").write_bytes(b"[\xff]")
    with pytest.raises(InputError, match="cannot be read"):
        triplets.load(tmp_path / "t.json")


def test_triplets_are_held_compactly(tmp_path):
    rows = [{**ROWS[0], "target_caption": f"a blue dress {i}"} for i in range(20_000)]
    found = triplets.load(put(tmp_path, "t.json", json.dumps(rows)))
    assert found[19_999].target == "a blue dress 19999" and found[-20_000].target == "a blue dress 0"
    with pytest.raises(IndexError):
        found[20_000]
    held = len(found._texts._data) + found._texts._ends.nbytes
    assert held < 1.5 * sum(len(value) for row in rows for value in row.values()) + 8 * 3 * len(rows)
