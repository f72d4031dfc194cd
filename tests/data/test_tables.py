"""Which column of a table holds what, with and without a header."""

import pytest

from cir.data import captions, tables
from cir.data.tables import Columns
from cir.errors import InputError


def put(folder, name, *lines):
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


URL = "https://example.org/{}?size=large"


@pytest.mark.parametrize(
    ("name", "lines", "column", "expected"),
    [
        ("t.tsv", ["url\tcaption", "u\tc"], "", Columns(1, 0, 2, True)),
        ("t.tsv", ["filepath\ttitle\tid", "u\tc\t1"], "", Columns(1, 0, 3, True)),
        ("t.tsv", ["alt\tlong\tpath", "a\tb\tc.jpg"], "long", Columns(1, 2, 3, True)),
        ("t.tsv", [f"a cat\t{URL.format(1)}", f"see http://x.y\t{URL.format(2)}"], "", Columns(0, 1, 2, False)),
        ("t.tsv", ["im/1.jpg\ta cat.", "im/2 b.PNG\ta dog"], "", Columns(1, 0, 2, False)),
        ("t.csv", ['"a cat, sleeping",im/1.webp'], "", Columns(0, 1, 2, False)),
        ("t.csv", ["filepath\ttitle", "a\tb, c"], "", Columns(1, 0, 2, True)),
        ("t.tsv", ["a cat\tein Hund\tx.png"], "2", Columns(1, 2, 3, False)),
        ("t.tsv", ["a cat", "a dog"], "", Columns(0, -1, 1, False)),
        ("t.tsv", ["a.png", "b.png"], "", Columns(-1, 0, 1, False)),
    ],
)
def test_columns_are_found(tmp_path, name, lines, column, expected):
    assert tables.columns(put(tmp_path, name, *lines), column) == expected


@pytest.mark.parametrize(
    ("lines", "column"),
    [
        (["a cat\ta dog"], ""),  # two texts
        (["a.png\tb.png"], ""),  # two files
        (["a cat\tb.png\t3"], ""),
        ([f"a cat\t{URL}", "a dog\tnot found"], ""),  # not every cell
        (["a cat\tb.png"], "3"),
        (["a cat\tb.png"], "caption"),
    ],
)
def test_what_is_not_clear_is_asked_for(tmp_path, lines, column):
    with pytest.raises(InputError, match=r"t\.tsv:1: no column"):
        tables.columns(put(tmp_path, "t.tsv", *lines), column)


def test_captions_of_both_kinds_of_table(tmp_path):
    plain = put(tmp_path, "a.tsv", f"a cat\t{URL.format(1)}", "", f"a dog\t{URL.format(2)}")
    header = put(tmp_path, "b.tsv", "title\tfilepath", "a cat\tx", "\ty", "a dog\tz")
    first, second = captions.load(plain), captions.load(header)
    assert list(first) == list(second) == ["a cat", "a dog"] and first.blank == second.blank == 1
    assert list(captions.load(plain, column="2")) == [URL.format(1), URL.format(2)]
    with pytest.raises(InputError, match="a table of picture files without captions"):
        captions.load(put(tmp_path, "c.tsv", "a.png", "b.png"))


def test_a_header_behind_blank_and_bad_lines(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_bytes(b"\n\xff\xfe\ncaption\tid\na cat\t1\n")
    found = captions.load(path, allow_bad=0.5)
    assert list(found) == ["a cat"] and found.bad.counts == {"not UTF-8": 1} and found.blank == 1
