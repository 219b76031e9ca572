"""Pickles of arrays: what NumPy writes is read alike, and nothing else is done."""

import collections
import os
import pickle
import re
import struct
import tracemalloc
from datetime import date

import numpy as np
import pytest

from skvdd.datasets.readers.pickles import load_arrays

GRID = np.arange(24.0).reshape(2, 3, 4)
CONTENT = {
    "arrays": {
        "plain": GRID,
        "fortran": GRID.T,
        "strided": GRID[:, ::2],
        "axes": GRID.transpose(1, 0, 2),
        "empty": np.empty((0, 3)),
        "zero-dimensional": np.array(3.0),
        "big-endian": GRID.astype(">i4"),
        "single": GRID.astype(np.float32),
        "bool": GRID > 3,
        "complex": GRID * 1j,
        "text": np.array(["ab", "ü"]),
        "bytes": np.array([b"ab", b"\xff"]),
    },
    "scalars": [np.float32(0.1), np.int64(-5), np.bool_(True)],
    "numbers": [0, 255, 65535, -1, 2**31, -(2**40), 2**80, 0.1, True, False, None],
    "strings": ["", "ü", "s" * 300, b"", b"\x00\xff", b"b" * 300],
    "containers": [[], {}, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [[(None,)]], {1: {"a": 2.0}}],
    "again": GRID,
}


def assert_same(one, other):
    """Compare two objects and their types."""
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for part, other_part in zip(one, other, strict=True):
            assert_same(part, other_part)
    else:
        assert one == other


@pytest.fixture
def path(tmp_path):
    return tmp_path / "arrays.pkl"


def load(path, program):
    path.write_bytes(program)
    return load_arrays(path)


def error_of(path, program):
    """Return the message of the error by which a file is refused, None if it is not."""
    try:
        load(path, program)
    except ValueError as error:
        return str(error)
    return None


# -- what is read -----------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
def test_everything_that_recordings_hold_is_read_as_by_pickle(path, protocol):
    program = pickle.dumps(CONTENT, protocol)
    assert_same(load(path, program), pickle.loads(program))


@pytest.mark.parametrize("protocol", range(6))
def test_what_is_shared_stays_shared(path, protocol):
    loaded = load(path, pickle.dumps(CONTENT, protocol))
    assert loaded["again"] is loaded["arrays"]["plain"]


@pytest.mark.parametrize("protocol", range(6))
def test_files_of_numpy_1_are_read(path, protocol):
    program = pickle.dumps([GRID, np.float64(2.0)], min(protocol, 3))
    old = program.replace(b"numpy._core", b"numpy.core")
    assert old != program
    assert_same(load(path, old), [GRID, np.float64(2.0)])


def test_a_program_written_by_hand_is_read(path):
    """Opcodes that Python's own pickler does not write any more."""
    program = b"(lp0\nI7\naF0.5\naS'old'\np1\naI01\na(I1\nI2\ntag1\na(dS'k'\nNsa."
    assert load(path, program) == pickle.loads(program)
    assert load(path, program) == [7, 0.5, "old", True, (1, 2), "old", {"k": None}]


def test_strings_of_python_2_hold_arrays_too(path):
    content = np.array([1.5, -2.5])
    program = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x10" + content.tobytes() + b"tb."
    )
    assert_same(load(path, program), content)


# -- what is refused --------------------------------------------------------------------------


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_file_is_refused_before_anything_happens(path, tmp_path, protocol):
    marker = tmp_path / "executed"
    program = pickle.dumps([GRID, Malicious(marker)], protocol)
    with pytest.raises(
        ValueError,
        match=r"arrays\.pkl cannot be read: it asks for \w+\.mkdir, and only NumPy arrays are",
    ):
        load(path, program)
    assert not marker.exists()
    pickle.loads(program)  # the file does what it should not, elsewhere
    assert marker.exists()


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize(
    ("content", "name"),
    [
        (date(2024, 1, 1), "datetime.date"),
        (collections.OrderedDict(), "collections.OrderedDict"),
        (np.random.default_rng, r"numpy\.random\S*\.default_rng"),
        (np.ma.array([1.0]), r"numpy\.ma\.core\._mareconstruct"),
        (print, r"(builtins|__builtin__)\.print"),
    ],
)
def test_anything_else_is_refused_by_name(path, content, name, protocol):
    with pytest.raises(ValueError, match=f"it asks for {name}, and only NumPy arrays are loaded"):
        load(path, pickle.dumps({"a": content}, protocol))


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x94\x85\x94R\x94.",
    ],
)
def test_every_way_to_name_a_function_is_refused(path, program):
    with pytest.raises(ValueError, match=r"it asks for os\.system, and only NumPy arrays"):
        load(path, program)


@pytest.mark.parametrize(
    ("program", "opcode"),
    [
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"P1\n.", "PERSID"),
        (b"N\x51.", "BINPERSID"),
        (b"\x80\x02cnumpy\nndarray\nK\x05\x85\x85\x81.", "NEWOBJ"),
        (b"(cnumpy\nndarray\nK\x05o.", "OBJ"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
    ],
)
def test_opcodes_that_make_more_than_data_are_refused(path, program, opcode):
    with pytest.raises(ValueError, match=f"it uses {opcode}, and only arrays and plain"):
        load(path, program)


def array_program(shape=b"K\x02\x85", kind=b"f8", content=bytes(16), state=b"NNN"):
    """Return a program that makes an array, as protocol 4 would."""
    return (
        b"\x80\x04cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
        b"(K\x01" + shape + b"cnumpy\ndtype\n\x8c" + bytes([len(kind)]) + kind + b"\x89\x88\x87R"
        b"(K\x03\x8c\x01<" + state + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"B" + struct.pack("<I", len(content)) + content + b"tb."
    )


def test_the_program_of_these_tests_is_sound(path):
    assert_same(load(path, array_program()), np.zeros(2))
    assert_same(pickle.loads(array_program()), np.zeros(2))


HUGE = b"\x8a\x06" + (10**12).to_bytes(6, "little")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (array_program(HUGE + b"\x85"), r"shape \(1000000000000,\) and type float64, but 16 bytes"),
        (array_program(b"K\x00" + HUGE + b"\x86"), "but 16 bytes"),
        (array_program(b"J\xff\xff\xff\xff\x85"), "no possible shape"),
        (array_program(b"(" + 40 * b"K\x01" + b"t"), "no possible shape"),
        (array_program(kind=b"O"), "an array of type 'O', not of numbers"),
        (array_program(kind=b"V8"), "an array of type 'V8', not of numbers"),
        (array_program(kind=b"f8,O"), "an array of type 'f8,O', not of numbers"),
        (array_program(state=b"N\x8c\x01a\x85}"), "an array with fields, not of numbers"),
        (b"\x80\x02cnumpy\nndarray\n" + HUGE + b"\x85\x85R.", "an array without content"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.", "encodes a"),
        (b"]K\x01b.", "sets the state of a list"),
        (b"}]K\x01s.", "has a list for a key of a dict"),
        (b"}K\x01\x85K\x01s.", "has a tuple for a key of a dict"),
    ],
)
def test_claims_and_tricks_are_refused(path, program, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        load(path, program)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    "program",
    [
        b"N\x72\xff\xff\xff\x7f.",  # a memo of two thousand million entries
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"short.",  # bytes of a terabyte
        b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",  # a frame
        b"\x8b\xff\xff\xff\x7f\x01.",  # an integer of two gigabytes
    ],
)
def test_bombs_that_pickle_itself_would_take_memory_for_do_nothing(path, program):
    tracemalloc.start()
    message = error_of(path, program)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message is None or message.startswith(str(path))
    assert peak < 2**20


def test_one_piece_of_content_does_not_make_many_arrays(path):
    """Bytes that are remembered could be turned into arrays again and again."""
    content = bytes(10000)
    kind = b"cnumpy\ndtype\n\x8c\x02f8\x89\x88\x87R"
    array = b"cnumpy._core.numeric\n_frombuffer\n(h\x00" + kind + b"M\xe2\x04\x85\x8c\x01Ct R"
    array = array.replace(b"t R", b"tR")
    program = (
        b"\x80\x04B" + struct.pack("<I", len(content)) + content + b"q\x00(" + 50 * array + b"l."
    )
    with pytest.raises(ValueError, match="arrays of more bytes than the file"):
        load(path, program)


@pytest.mark.parametrize(
    "program", [b")" + 200_000 * b"\x85" + b".", 200_000 * b"]" + 199_999 * b"a" + b"."]
)
def test_deep_nesting_does_not_end_the_interpreter(path, program):
    assert isinstance(load(path, program), tuple | list)


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"hello",
        b".",
        b"\x80\x04",
        b"\x80\xff.",
        b"NN.",
        b"\x85.",
        b"e.",
        b"h\x05.",
        b"(",
        b"K\x01K\x02R.",
        b"N(K\x01u.",
        pickle.dumps(CONTENT)[:200],
        pickle.dumps(CONTENT)[:-1],
    ],
)
def test_a_broken_file_is_refused(path, program):
    with pytest.raises(ValueError, match=re.escape(f"{path} ")):
        load(path, program)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_damage_never_shows_as_another_error(path, protocol):
    good = pickle.dumps(CONTENT, protocol)
    rng = np.random.default_rng(protocol)
    for place, value in zip(
        rng.integers(len(good), size=150), rng.integers(256, size=150), strict=True
    ):
        message = error_of(path, good[:place] + bytes([value]) + good[place + 1 :])
        assert message is None or message.startswith(str(path))


def test_a_missing_file_is_missing(path):
    with pytest.raises(FileNotFoundError):
        load_arrays(path)
