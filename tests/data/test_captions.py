import json
import sys
import tracemalloc

import numpy as np
import pytest

from cir.data import captions
from cir.data.strings import Writer
from cir.errors import InputError


def put(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.txt", "a cat\n\nzwei Hündchen\r\n"),
        ("c.jsonl", '{"text": "a cat"}\n{"text": null}\n"zwei Hündchen"\n'),
        ("c.jsonl", '{"caption": "a cat", "id": 1}\n{"caption": ""}\n{"caption": "zwei Hündchen"}\n'),
        ("c.tsv", "url\tcaption\nx\ta cat\ny\t \nz\tzwei Hündchen\n"),
        ("c.tsv", "caption\na cat\n\nzwei Hündchen\n"),
        ("c.csv", 'text,id\na cat,1\n" ",2\n"zwei Hündchen",3\n'),
    ],
)
def test_every_format_gives_the_same_captions(tmp_path, name, text):
    found = captions.load(put(tmp_path, name, text))
    assert list(found) == ["a cat", "zwei Hündchen"]
    assert found.blank == 1 and not found.bad
    assert found[-1] == "zwei Hündchen" and found[0:1] == ["a cat"]
    with pytest.raises(IndexError):
        found[2]


def test_the_fingerprint_depends_on_the_captions_not_on_the_file(tmp_path):
    one = captions.load(put(tmp_path, "a.txt", "x y\nz\n"))
    two = captions.load(put(tmp_path, "b.jsonl", '"x y"\n"z"\n'))
    other = captions.load(put(tmp_path, "c.txt", "x\ny z\n"))
    assert one.fingerprint == two.fingerprint != other.fingerprint


def test_a_folder_is_read_in_order_of_name(tmp_path):
    put(tmp_path, "b.txt", "second\n")
    put(tmp_path, "a.jsonl", '{"text": "first"}\n')
    put(tmp_path, "notes.md", "not captions")
    assert list(captions.load(tmp_path)) == ["first", "second"]


def test_bad_lines_are_named_with_their_total_or_left_out_on_request(tmp_path):
    lines = ['{"text": "good"}', "{", '{"txt": "x"}', '{"text": 3}', '{"text": "fine"}']
    path = put(tmp_path, "c.jsonl", "\n".join(lines))
    with pytest.raises(
        InputError, match=r"3 lines hold no caption .*first c\.jsonl:2: not JSON.*:3: no key 'text'.*int"
    ):
        captions.load(path)
    found = captions.load(path, allow_bad=1.0)
    assert list(found) == ["good", "fine"]
    assert found.bad.counts == {"not JSON": 1, "without caption": 2} and len(found.bad.first) == 3


def test_only_ten_of_many_bad_lines_are_shown(tmp_path):
    with pytest.raises(InputError, match="30 lines") as caught:
        captions.load(put(tmp_path, "c.jsonl", "{\n" * 30))
    assert str(caught.value).count("not JSON (") == 10


def test_what_is_not_utf8_is_a_bad_line(tmp_path):
    path = put(tmp_path, "c.txt", b"good\n\xff\xfe\nfine\n")
    with pytest.raises(InputError, match=r"c\.txt:2: not UTF-8"):
        captions.load(path)
    assert list(captions.load(path, allow_bad=1.0)) == ["good", "fine"]


def test_rows_of_another_width_are_bad(tmp_path):
    with pytest.raises(InputError, match=r"c\.tsv:3: expected 2 columns, got 3"):
        captions.load(put(tmp_path, "c.tsv", "text\tid\na\t1\nb\t2\t3\n"))


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("c.txt", "\n\n", "holds no captions"),
        ("c.tsv", "capton\tid\na\t1\n", "no column .*"),
        ("c.doc", "x", "not a caption file"),
    ],
)
def test_unusable_files_say_what_was_expected(tmp_path, name, text, match):
    with pytest.raises(InputError, match=match):
        captions.load(put(tmp_path, name, text))
    with pytest.raises(InputError, match="no such file"):
        captions.load(tmp_path / "absent.txt")


def test_a_named_column_wins(tmp_path):
    path = put(tmp_path, "c.jsonl", json.dumps({"text": "a", "alt": "b"}))
    assert list(captions.load(path, column="alt")) == ["b"]


def test_parquet_asks_for_pyarrow_where_it_is_absent(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="needs pyarrow"):
        captions.load(put(tmp_path, "c.parquet", b"PAR1"))


def test_parquet_is_read_where_pyarrow_is_installed(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.table({"id": [1, 2, 3], "text": ["a cat", None, "a dog"]}), tmp_path / "c.parquet")
    found = captions.load(tmp_path / "c.parquet")
    assert list(found) == ["a cat", "a dog"] and found.blank == 1


def test_a_share_may_be_bad_and_no_more(tmp_path):
    path = put(tmp_path, "c.jsonl", '"a"\n{\n"b"\n"c"\n')
    assert list(captions.load(path, allow_bad=0.25)) == ["a", "b", "c"]
    with pytest.raises(InputError, match=r"25\.00% of the source, 24\.00% are allowed"):
        captions.load(path, allow_bad=0.24)


def test_half_of_a_surrogate_pair_is_bad(tmp_path):
    path = put(tmp_path, "c.jsonl", '"a"\n"\\ud83d"\n')
    with pytest.raises(InputError, match="half of a surrogate pair"):
        captions.load(path)
    assert list(captions.load(path, allow_bad=0.5)) == ["a"]


def test_the_limit_takes_the_first_and_is_another_source(tmp_path):
    path = put(tmp_path, "c.txt", "a\n\nb\nc\n")
    first, whole = captions.load(path, limit=2), captions.load(path)
    assert list(first) == ["a", "b"] and first.fingerprint != whole.fingerprint
    assert captions.load(path, limit=3).fingerprint == whole.fingerprint


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(captions, "LARGE", 10)


def test_large_files_are_laid_out_once_and_mapped(tmp_path, large, monkeypatch):
    path, keep = put(tmp_path, "c.jsonl", '"zwei Hündchen"\n\n"a cat"\n{\n'), tmp_path / "keep"
    memory = captions.load(path, allow_bad=0.5)
    mapped = captions.load(path, allow_bad=0.5, keep=keep)
    assert list(mapped) == list(memory) and mapped[-1] == "a cat" and mapped.fingerprint == memory.fingerprint
    assert isinstance(mapped._strings._data.obj, np.memmap) and (mapped.blank, mapped.bad.total) == (1, 1)
    monkeypatch.setattr(captions, "_read", lambda *_: pytest.fail("read again"))
    again = captions.load(path, allow_bad=0.5, keep=keep)
    assert list(again) == list(memory) and (again.blank, again.bad.first) == (1, memory.bad.first)
    with pytest.raises(InputError, match="1 lines hold no caption"):
        captions.load(path, keep=keep)


def test_a_changed_file_or_setting_is_laid_out_again(tmp_path, large):
    path, keep = put(tmp_path, "c.jsonl", '{"text": "a", "alt": "x"}\n{"text": "b", "alt": "y"}\n'), tmp_path / "keep"
    assert list(captions.load(path, keep=keep)) == ["a", "b"]
    assert list(captions.load(path, keep=keep, column="alt")) == ["x", "y"]
    assert list(captions.load(path, keep=keep, limit=1)) == ["a"]
    put(tmp_path, "c.jsonl", '{"text": "other caption"}\n')
    assert list(captions.load(path, keep=keep)) == ["other caption"]


def test_laying_out_that_was_killed_leaves_nothing_that_is_taken(tmp_path, large, monkeypatch):
    path, keep = put(tmp_path, "c.txt", "a cat\na dog\na bird\n"), tmp_path / "keep"
    honest = Writer.add

    def dying(self, text):
        if text == "a bird":
            raise KeyboardInterrupt
        honest(self, text)

    monkeypatch.setattr(Writer, "add", dying)
    with pytest.raises(KeyboardInterrupt):
        captions.load(path, keep=keep)
    monkeypatch.setattr(Writer, "add", honest)
    assert list(captions.load(path, keep=keep)) == ["a cat", "a dog", "a bird"]


def test_memory_stays_bounded(tmp_path):
    """30,000 captions, 2 MB: eight bytes of memory each while they are laid out, next to none once they are."""
    path, keep = tmp_path / "c.txt", tmp_path / "keep"
    with open(path, "w") as file:
        for number in range(30_000):
            file.write(f"caption number {number} about something red on a green table\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captions, "LARGE", 0)
        tracemalloc.start()
        captions.load(path, keep=keep)
        laying = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        found = captions.load(path, keep=keep)
        mapping = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert found[29_999].startswith("caption number 29999") and len(found) == 30_000
    assert laying < 1_000_000 and mapping < 200_000
