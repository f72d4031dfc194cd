import pickle
import pickletools
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir.errors import InputError
from cir.importers.pickled import read_plain

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner) | st.tuples(inner),
    max_leaves=20,
)


@given(value=plain, protocol=st.integers(3, pickle.HIGHEST_PROTOCOL))
@settings(max_examples=150, deadline=None)
def test_plain_data_come_out_as_unpickling_gives_them(tmp_path_factory, value, protocol):
    path = tmp_path_factory.mktemp("pickles") / "x.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    assert read_plain(path) == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_and_shared_parts(tmp_path, protocol):
    shared = ["a", "ü", "x" * 300]
    value = {"names": shared, "again": shared, "numbers": [0, 255, 65536, -1, 2**40, 2.5], "pair": ("a", None, True)}
    value |= {"many": [f"{i}.jpg" for i in range(2500)], "empty": [{}, (), []], "four": (1, 2, 3, 4)}
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    found = read_plain(path)
    assert found == value and found["names"] is found["again"]


class Acting:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_acts_is_refused_and_does_not_act(tmp_path):
    path, trace = tmp_path / "image_names.pkl", tmp_path / "trace"
    path.write_bytes(pickle.dumps(["a.jpg", Acting(trace)]))
    with pytest.raises(InputError, match=r"holds more than lists.*run code from the file.*as JSON"):
        read_plain(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())[1].close()
    assert trace.exists()  # it would have


@pytest.mark.parametrize("value", [np.float64(1), OrderedDict(a=1), {1: np.zeros(2)}, Acting, range(3), 1j])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_classes_and_functions_are_refused(tmp_path, value, protocol):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps([value], protocol))
    with pytest.raises(InputError, match="holds more than lists"):
        read_plain(path)


def test_every_instruction_is_either_plain_or_refused(tmp_path):
    """No opcode that looks up, builds or calls is known, whatever the rest of the program."""
    acting = {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "PERSID", "BINPERSID"}
    acting |= {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
    from cir.importers import pickled

    known = {*pickled.CONSTANTS, *pickled.LITERALS, *pickled.ACTIONS}
    assert not known & acting
    assert known <= {code.name for code in pickletools.opcodes}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not a pickle",
        pickle.dumps(["a", "b"])[:-2],
        b".",
        b"a.",
        b"]a.",
        b"(((.",
        b"]K\x01K\x02u.",
        b"g9\n.",
        b"]].",
    ],
)
def test_damaged_files_are_named(tmp_path, raw):
    path = tmp_path / "x.pkl"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"x\.pkl: not a whole pickle file"):
        read_plain(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_plain(tmp_path / "absent.pkl")
