"""Lists of contexts: what is read, and what is refused."""

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


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
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


def test_contexts_of_any_number_of_objects_are_read(path):
    """Stacking and Sorting publish a pair for each object."""
    pairs = [(parts[:2], parts[2:]) * 3 for parts in map(entry, DEGREES)]
    contexts = read_contexts(write(path, pairs))
    assert contexts.shape == (2, 18)
    np.testing.assert_array_equal(
        contexts[:, :6], read_contexts(write(path, list(map(entry, DEGREES))))
    )
    np.testing.assert_array_equal(contexts[:, 6:12], contexts[:, :6])


def test_a_file_that_asks_for_more_is_refused(path):
    with pytest.raises(
        ValueError, match=r"contexts\.pkl cannot be read: it asks for \w+\.system, and only NumPy"
    ):
        read_contexts(write(path, [entry(DEGREES[0]), os.system]))


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
        (["env_000_00.pkl"], "It has no such structure."),
        (
            [entry(DEGREES[0]), entry(DEGREES[0])[:2]],
            "must hold contexts of equally many objects, entry 0 has 2, entry 1 has 1.",
        ),
        ([entry(DEGREES[0])[:3]], "It has shapes [(3,), (4,), (3,)]."),
        ([[np.zeros(4), np.zeros(3)] * 2], "It has shapes [(4,), (3,), (4,), (3,)]."),
        ([[[1, 2, 3]] * 4], "It has no such structure."),
        ([[]], "It has no such structure."),
        ([[np.array(["a"] * 3), np.zeros(4)]], "must be a context of finite numbers, and is not."),
        ([[np.full(3, np.nan), *entry(DEGREES[0])[1:]]], "must be a context of finite numbers"),
    ],
)
def test_other_structures_are_refused(path, content, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_contexts(write(path, content))
    assert str(path) in str(caught.value)


def test_a_missing_file_is_missing(path):
    with pytest.raises(FileNotFoundError):
        read_contexts(path)
