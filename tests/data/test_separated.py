import pytest

from cir.data.separated import read_csv
from cir.errors import InputError


def test_columns_are_found_by_name_or_by_place(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('x,b,a\n1,"2, and ", 3\n\n4,,6,more\n')
    rows = read_csv(file, ("a", "b"), header=True)
    assert [row.data for row in rows] == [{"a": " 3", "b": "2, and "}, {"a": "6", "b": ""}]
    assert [row.where for row in rows] == [f"{file}, line 2", f"{file}, line 4"]
    plain = read_csv(file, ("one", "two"), header=False)
    assert plain[0].data == {"one": "x", "two": "b"} and len(plain) == 3


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_line_ends_and_a_byte_order_mark_do_not_matter(tmp_path, ending):
    file = tmp_path / "a.csv"
    file.write_bytes(b"\xef\xbb\xbf" + f"a,b{ending}1,2{ending}".encode())
    assert [row.data for row in read_csv(file, ("a", "b"), header=True)] == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,c\n1,2\n", "the header lacks b; expected a,b in line 1"),
        (b"", "the header lacks a, b"),
        (b"a,b\n1,2\n3\n", "line 3: expected a,b, got 1 values: '3'"),
        (b"a,b\n\xff\xfe\n", "cannot be read as a comma-separated file"),
    ],
)
def test_what_is_no_table_is_one_line(tmp_path, content, message):
    file = tmp_path / "a.csv"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_csv(file, ("a", "b"), header=True)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"a\.csv: cannot be read"):
        read_csv(tmp_path / "a.csv", ("a",), header=False)
