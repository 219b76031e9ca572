"""Readers of published files: what they read, and what they refuse."""

import os
import pickle
import re

import numpy as np
import pytest

from skvdd.datasets.readers import read_contexts
from skvdd.envs.aligning import Aligning

DEGREES = [[0.5, -0.2, 30.0, 0.45, 0.3, -90.0], [0.41, -0.11, -7.5, 0.59, 0.21, 0.0]]


def entry(row):
    """Return an entry as D3IL writes it."""
    parts = []
    for x, y, degrees in (row[:3], row[3:]):
        half = np.deg2rad(degrees) / 2.0
        parts.append(np.array([x, y, degrees], dtype=np.float32))
        parts.append(np.array([np.cos(half), 0.0, 0.0, np.sin(half)]))
    return parts


def write(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "contexts.pkl"


@pytest.mark.parametrize("protocol", [3, 4])
def test_contexts_come_in_metres_and_radians(path, protocol):
    contexts = read_contexts(write(path, [entry(row) for row in DEGREES], protocol))
    assert contexts.dtype == np.float64
    wanted = np.array(DEGREES)
    wanted[:, [2, 5]] *= np.pi / 180.0
    np.testing.assert_allclose(contexts, wanted, rtol=0, atol=1e-7)


def test_files_of_numpy_1_are_read(path):
    content = pickle.dumps([entry(row) for row in DEGREES], protocol=3)
    old = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != content
    path.write_bytes(old)
    assert read_contexts(path).shape == (2, 6)


def test_a_context_starts_an_episode(path):
    env = Aligning()
    context = read_contexts(write(path, [entry(DEGREES[0])]))[0]
    observation, _ = env.reset(options={"context": context})
    parts = entry(DEGREES[0])
    np.testing.assert_allclose(observation[9:13], parts[1], atol=1e-6)
    np.testing.assert_allclose(observation[16:20], parts[3], atol=1e-6)


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_malicious_file_is_refused_before_anything_happens(path, tmp_path):
    marker = tmp_path / "executed"
    write(path, [entry(DEGREES[0]), Malicious(marker)])
    with pytest.raises(
        ValueError, match=r"contexts\.pkl cannot be read: it asks for \w+\.mkdir, and only NumPy"
    ):
        read_contexts(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # the file does what it should not, elsewhere
    assert marker.exists()


@pytest.mark.parametrize("name", [b"os\nsystem", b"builtins\neval", b"numpy\nload"])
def test_functions_are_not_even_looked_up(path, name):
    path.write_bytes(b"c" + name + b"\n.")
    asked = re.escape(name.decode().replace("\n", "."))
    with pytest.raises(ValueError, match=f"it asks for {asked}, and only NumPy arrays"):
        read_contexts(path)


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps([entry(DEGREES[0])])[:60]])
def test_a_broken_file_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"contexts\.pkl"):
        read_contexts(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "must hold a list of contexts, got dict."),
        ([], "must hold a list of contexts, got list without entries."),
        (["env_000_00.pkl"], "Entry 0 has no such structure."),
        ([entry(DEGREES[0]), entry(DEGREES[0])[:2]], "Entry 1 has shapes [(3,), (4,)]."),
        ([[np.zeros(4), np.zeros(3)] * 2], "Entry 0 has shapes [(4,), (3,), (4,), (3,)]."),
        ([[[1, 2, 3]] * 4], "Entry 0 has no such structure."),
        ([[np.array(["a"] * 3)] * 4], "Entry 0 has no such structure."),
        ([[np.full(3, np.nan), *entry(DEGREES[0])[1:]]], "must hold finite contexts, entry 0"),
    ],
)
def test_other_structures_are_refused(path, content, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_contexts(write(path, content))
    assert str(caught.value).startswith(str(path))


def test_a_missing_file_is_missing(path):
    with pytest.raises(FileNotFoundError):
        read_contexts(path)
