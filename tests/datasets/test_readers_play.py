"""Relay kitchen and Block Push: every layout, goals and behaviors, and what is refused."""

import json
import re
import struct
import sys

import numpy as np
import pytest
import torch

from skvdd.datasets import load_demonstrations
from skvdd.datasets.readers import read_block_push, read_relay_kitchen, read_zarr

LENGTHS = (4, 6, 3)
KITCHEN = ("observations_seq", "actions_seq", "existence_mask")
PUSH = tuple(f"multimodal_push_{what}" for what in ("observations", "actions", "masks"))


def padded(tables, n_steps=None):
    """Return tables of different lengths as one array with a mask, episodes first."""
    n_steps = n_steps or max(map(len, tables))
    array = np.zeros((len(tables), n_steps, tables[0].shape[1]))
    mask = np.zeros((len(tables), n_steps))
    for i, table in enumerate(tables):
        array[i, : len(table)] = table
        mask[i, : len(table)] = 1.0
    return array, mask


def write(folder, names, observations, actions, labels=None, time_first=False):
    """Write the files of a published set."""
    folder.mkdir(exist_ok=True)
    (observations, mask), (actions, _) = padded(observations), padded(actions)
    arrays = dict(zip(names, (observations, actions, mask), strict=True))
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array.swapaxes(0, 1) if time_first else array)
    if labels is not None:
        tensor = torch.tensor(padded(labels)[0])
        torch.save(tensor.swapaxes(0, 1) if time_first else tensor, folder / "onehot_goals.pth")
    return folder


# -- relay kitchen ------------------------------------------------------------------------------


def kitchen(n_columns=60, lengths=LENGTHS):
    """Return numbers that tell where they belong, and labels of two tasks each."""
    observations = [
        100.0 * i + np.arange(n)[:, None] + np.arange(n_columns) / 100.0
        for i, n in enumerate(lengths)
    ]
    actions = [table[:, :9] / 1000.0 for table in observations]
    labels = [np.zeros((n, 7)) for n in lengths]
    for i, table in enumerate(labels):
        table[1, 6 - i % 3] = 1.0
        table[2:, i % 3] = 1.0
    return observations, actions, labels


@pytest.mark.parametrize("time_first", [True, False])
@pytest.mark.parametrize("n_columns", [30, 60])
def test_kitchen_is_read_in_either_layout(tmp_path, time_first, n_columns):
    observations, actions, labels = kitchen(n_columns)
    demos = read_relay_kitchen(write(tmp_path, KITCHEN, observations, actions, labels, time_first))
    assert demos.metadata["layout"] == ("time first" if time_first else "episode first")
    assert tuple(map(len, demos)) == LENGTHS
    for i, episode in enumerate(demos):
        np.testing.assert_array_equal(episode.states, observations[i][:, :30])
        np.testing.assert_array_equal(episode.actions, actions[i])
        np.testing.assert_array_equal(episode.goals, labels[i])
        assert episode.metadata == {"number": i}
    assert demos.behaviors == (
        "kettle, bottom burner",
        "microwave, top burner",
        "hinge cabinet, light switch",
    )
    rows, _, _ = demos.windows(2, goal="recorded", goal_columns=[6, 5, 4])
    assert rows.shape == (13, 63)


def test_kitchen_is_read_without_labels(tmp_path):
    demos = read_relay_kitchen(write(tmp_path, KITCHEN, *kitchen()[:2]))
    assert demos.behaviors == (None, None, None)
    assert demos[0].goals is None
    assert len(demos.metadata["states"]) == 30
    assert len(set(demos.metadata["states"])) == 30
    assert "state 22, microwave door" in demos.describe()


def test_a_mask_of_equal_lengths_is_told_by_the_number_of_episodes(tmp_path):
    """All ones say nothing of time; 566 episodes do."""
    observations, actions, _ = kitchen(30, (3,) * 566)
    for time_first, layout in ((True, "time first"), (False, "episode first")):
        folder = write(tmp_path, KITCHEN, observations, actions, time_first=time_first)
        demos = read_relay_kitchen(folder)
        assert (len(demos), demos.metadata["layout"]) == (566, layout)
    np.testing.assert_array_equal(demos[565].states, observations[565])


def test_a_mask_that_tells_nothing_is_refused(tmp_path):
    folder = write(tmp_path, KITCHEN, *kitchen(30, (4, 4))[:2])
    with pytest.raises(
        ValueError,
        match=re.escape(
            f"{folder}/existence_mask.npy does not tell which axis is time: of the shape (2, 4), "
            "either may be, and not exactly one is of the 566 published episodes."
        ),
    ):
        read_relay_kitchen(folder)


# Six steps of three episodes, in which neither axis is time.
GAP = np.array([[1, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
EMPTY = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]])


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("existence_mask", GAP, "must mark the steps of each episode with ones"),
        ("existence_mask", EMPTY, "must mark the steps of each episode with ones"),
        ("existence_mask", 2 * GAP, "must hold zeros and ones of two dimensions, got shape (3, 6)"),
        ("existence_mask", np.ones(3), "must hold zeros and ones of two dimensions, got shape (3"),
        (
            "observations_seq",
            np.zeros((3, 6, 20)),
            "must have shape (3, 6, 30) or (3, 6, 60), as its mask, got (3, 6, 20).",
        ),
        ("actions_seq", np.zeros((6, 3, 9)), "must have shape (3, 6, 9), as its mask, got (6, 3"),
        ("actions_seq", np.array([["a"]]), "must hold an array of numbers."),
        ("actions_seq", np.array([print]), "is no intact array of numbers: "),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, name, array, message):
    folder = write(tmp_path, KITCHEN, *kitchen())
    np.save(folder / f"{name}.npy", array)
    with pytest.raises(ValueError, match=re.escape(f"{folder / name}.npy {message}")):
        read_relay_kitchen(folder)


def test_a_bad_episode_is_named(tmp_path):
    observations, actions, labels = kitchen()
    observations[1][2, 3] = np.inf
    folder = write(tmp_path, KITCHEN, observations, actions, labels)
    with pytest.raises(ValueError, match=re.escape(f"episode 1 of {folder} must be finite")):
        read_relay_kitchen(folder)


@pytest.mark.parametrize("name", [f"{name}.npy" for name in KITCHEN])
def test_a_missing_array_is_named(tmp_path, name):
    folder = write(tmp_path, KITCHEN, *kitchen())
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"{folder / name} is missing.")):
        read_relay_kitchen(folder)


def test_an_array_that_claims_more_than_its_file_is_refused(tmp_path):
    folder = write(tmp_path, KITCHEN, *kitchen())
    with open(folder / "actions_seq.npy", "wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**3, 9)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(ValueError, match="is no intact array of numbers"):
        read_relay_kitchen(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "must hold a tensor, got dict."),
        (torch.zeros(3, 6, 4), "must have shape (3, 6, 7), as its mask, got (3, 6, 4)."),
        (torch.zeros(1).expand(10**6, 10**6, 7), "must have shape (3, 6, 7), as its mask, got"),
        (torch.eye(3).to_sparse(), "must hold a tensor, got Tensor."),
        (np.random.default_rng, "is no intact tensor: "),
    ],
)
def test_labels_of_another_kind_are_refused(tmp_path, content, message):
    folder = write(tmp_path, KITCHEN, *kitchen())
    torch.save(content, folder / "onehot_goals.pth")
    with pytest.raises(ValueError, match=re.escape(f"{folder / 'onehot_goals.pth'} {message}")):
        read_relay_kitchen(folder)


def test_damaged_labels_are_refused(tmp_path):
    folder = write(tmp_path, KITCHEN, *kitchen())
    (folder / "onehot_goals.pth").write_bytes(b"no tensor")
    with pytest.raises(ValueError, match=r"onehot_goals\.pth is no intact tensor"):
        read_relay_kitchen(folder)


# -- block push -----------------------------------------------------------------------------------


def push(crossed, block_first, arrives=True, n=5):
    """Return an episode in which one block has arrived, and the other one nearly."""
    target, target2 = np.array([0.52, 0.2]), np.array([0.28, 0.2])
    goals = np.array([target2, target] if crossed else [target, target2])
    first = 0 if block_first else 1
    blocks = np.repeat(np.array([[0.3, -0.2], [0.5, -0.1]])[None], n, axis=0)
    blocks[2:, first] = goals[first] + (0.02 if arrives else 0.05)
    blocks[-1, 1 - first] = goals[1 - first] + 0.04  # 0.057 m away: not seen to arrive
    command = np.array([0.3, -0.4]) + 0.01 * np.arange(n)[:, None] * [1, 2]
    angle = np.full((n, 1), 0.3)
    targets = [np.r_[target, 3.0, target2, 3.1]] * n
    observations = np.hstack(
        [blocks[:, 0], angle, blocks[:, 1], angle, command - 0.001, command, targets]
    )
    return observations, np.full((n, 2), [0.01, 0.02]), goals.ravel()


def pushes():
    """Return episodes of different lengths, one for each goal and order."""
    kinds = [(False, True), (False, False), (True, True), (True, False)]
    return [push(*kind, n=n) for kind, n in zip(kinds, (5, 7, 4, 6), strict=True)]


def check_pushes(demos):
    assert demos.behaviors == ("block first", "block2 first") * 2
    for episode, (observations, actions, goal) in zip(demos, pushes(), strict=True):
        np.testing.assert_array_equal(episode.states, observations[:, :10])
        np.testing.assert_allclose(episode.actions, actions, atol=1e-15)
        np.testing.assert_array_equal(episode.goals, np.tile(goal, (len(episode), 1)))


@pytest.mark.parametrize("time_first", [True, False])
def test_block_push_is_read_in_either_layout(tmp_path, time_first):
    observations, actions, _ = zip(*pushes(), strict=True)
    demos = read_block_push(write(tmp_path, PUSH, observations, actions, time_first=time_first))
    check_pushes(demos)
    assert demos.metadata["layout"] == ("time first" if time_first else "episode first")
    assert demos.metadata["absolute"] is False
    about = load_demonstrations("blockpush").metadata
    for key in ("states", "actions", "environment"):
        assert demos.metadata[key] == about[key]


def test_labels_tell_the_goal_where_the_last_state_does_not(tmp_path):
    observations, actions, goal = push(crossed=True, block_first=True)
    observations[-1, [3, 4]] = observations[-1, [13, 14]]  # block2 left for the wrong target
    observations[-1, [0, 1]] = observations[-1, [10, 11]]
    labels = np.zeros((5, 4))
    labels[2:, 1] = labels[4, 2] = 1.0  # block in target2, block2 in target
    tables = [[table[:4], table] for table in (observations, actions, labels)]
    _, labeled = read_block_push(write(tmp_path, PUSH, *tables))
    assert labeled.goals[0].tolist() == goal.tolist()
    (tmp_path / "onehot_goals.pth").unlink()
    _, unlabeled = read_block_push(tmp_path)
    assert unlabeled.goals[0].tolist() == goal[[2, 3, 0, 1]].tolist()


def test_a_block_that_is_never_seen_in_its_target_is_no_behavior(tmp_path):
    tables = [push(False, True, arrives=False, n=n)[:2] for n in (4, 5)]
    demos = read_block_push(write(tmp_path, PUSH, *zip(*tables, strict=True)))
    assert demos.behaviors == (None, None)


# -- zarr -----------------------------------------------------------------------------------------


def write_zarr(path, observations, actions, ends=None, **options):
    zarr = pytest.importorskip("zarr")
    numcodecs = pytest.importorskip("numcodecs")
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    if ends is None:
        ends = np.cumsum([len(table) for table in observations])
    options = {"compressors": numcodecs.Blosc(cname="zstd"), **options}
    for name, array in (
        ("data/obs", np.concatenate(observations)),
        ("data/action", np.concatenate(actions)),
        ("meta/episode_ends", ends),
    ):
        group.create_array(name, data=np.asarray(array), **options)
    return path


@pytest.mark.parametrize("absolute", [True, False])
def test_block_push_is_read_from_zarr(tmp_path, absolute):
    observations, actions, _ = zip(*pushes(), strict=True)
    if absolute:
        actions = [a + o[:, 8:10] for a, o in zip(actions, observations, strict=True)]
    demos = read_block_push(write_zarr(tmp_path / "push.zarr", observations, actions))
    check_pushes(demos)
    assert (demos.metadata["layout"], demos.metadata["absolute"]) == ("zarr", absolute)


def test_any_replay_buffer_is_read(tmp_path):
    observations, actions, _ = kitchen(30)
    demos = read_zarr(write_zarr(tmp_path / "kitchen.zarr", observations, actions))
    assert demos.name == "kitchen"
    for episode, states, acts in zip(demos, observations, actions, strict=True):
        np.testing.assert_array_equal(episode.states, states)
        np.testing.assert_array_equal(episode.actions, acts)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([4, 10, 12], "must hold meta/episode_ends that rise to the number of rows, 13."),
        ([4, 4, 13], "must hold meta/episode_ends that rise to the number of rows, 13."),
        ([13.0], "must hold meta/episode_ends that rise to the number of rows, 13."),
    ],
)
def test_wrong_ends_are_refused(tmp_path, ends, message):
    path = write_zarr(tmp_path / "kitchen.zarr", *kitchen()[:2], ends=ends)
    with pytest.raises(ValueError, match=re.escape(f"{path} {message}")):
        read_zarr(path)


def test_a_store_of_other_things_is_refused(tmp_path):
    observations, actions, _ = kitchen()
    path = write_zarr(tmp_path / "kitchen.zarr", observations, [a[:-1] for a in actions])
    with pytest.raises(ValueError, match="equally many observations and actions, got 13 and 10"):
        read_zarr(path)
    with pytest.raises(ValueError, match=re.escape("data/obs of shape (n, 16), got (13, 60)")):
        read_block_push(path)
    with pytest.raises(FileNotFoundError, match="it must be the folder of a zarr store"):
        read_zarr(tmp_path / "nothing.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(ValueError, match=re.escape("empty.zarr")):
        read_zarr(tmp_path / "empty.zarr")
    observations[2][0, 0] = np.nan
    path = write_zarr(tmp_path / "nan.zarr", observations, actions)
    with pytest.raises(ValueError, match=re.escape(f"episode 2 of {path} must be finite")):
        read_zarr(path)


def edit(path, **changes):
    """Change what a store says of its observations."""
    about = json.loads((path / "data/obs/.zarray").read_text())
    (path / "data/obs/.zarray").write_text(json.dumps(about | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compressor": {"id": "crc32"}}, "is not stored by one of blosc, bz2"),
        ({"filters": [{"id": "delta", "dtype": "<f8"}]}, "is not stored by one of blosc, bz2"),
        ({"compressor": {"id": "pickle", "protocol": 5}}, ""),
        ({"filters": [{"id": "pickle", "protocol": 5}]}, ""),
        ({"shape": [10**10, 60]}, "claims 4800000000000 bytes, but only"),
        ({"chunks": [10**10, 60]}, "claims 4800000000000 bytes, but only"),
        ({"dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}]}, ""),
        ({"shape": [10**6, 1], "chunks": [1, 1]}, "claims 1000000 chunks, most of them missing"),
        ({"shape": "many"}, ""),
    ],
)
def test_a_store_that_is_not_what_it_says_is_refused(tmp_path, changes, message):
    path = write_zarr(tmp_path / "kitchen.zarr", *kitchen()[:2])
    edit(path, **changes)
    with pytest.raises(ValueError, match=re.escape(f"{path} cannot be read")) as caught:
        read_zarr(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["lz4", "zstd", "blosclz", "zlib"])
@pytest.mark.parametrize("shuffle", [0, 1, 2])
def test_every_compressor_of_blosc_is_read(tmp_path, name, shuffle):
    numcodecs = pytest.importorskip("numcodecs")
    observations, actions, _ = kitchen()
    codec = numcodecs.Blosc(cname=name, shuffle=shuffle)
    path = write_zarr(tmp_path / "kitchen.zarr", observations, actions, compressors=codec)
    for episode, states, acts in zip(read_zarr(path), observations, actions, strict=True):
        np.testing.assert_array_equal(episode.states, states)
        np.testing.assert_array_equal(episode.actions, acts)


@pytest.mark.parametrize("separator", [".", "/"])
def test_chunks_that_do_not_divide_an_array_are_read(tmp_path, separator):
    observations, actions, _ = kitchen()
    path = write_zarr(tmp_path / "kitchen.zarr", observations, actions)
    pytest.importorskip("zarr").open_group(str(path), zarr_format=2).create_array(
        "data/obs",
        data=np.concatenate(observations),
        chunks=(5, 7),
        chunk_key_encoding={"name": "v2", "separator": separator},
        overwrite=True,
    )
    assert (path / f"data/obs/2{separator}8").is_file()
    for episode, states in zip(read_zarr(path), observations, strict=True):
        np.testing.assert_array_equal(episode.states, states)


def test_a_chunk_of_blosc_whose_sizes_are_not_those_it_claims_is_refused(tmp_path):
    path = write_zarr(tmp_path / "kitchen.zarr", *kitchen()[:2])
    chunk = path / "data/obs/0.0"
    content = chunk.read_bytes()
    for place in (4, 12):  # of the size when unpacked, and of the size stored
        for change in (1, 2**8, 2**24):
            (size,) = struct.unpack("<I", content[place : place + 4])
            forged = struct.pack("<I", size + change)
            chunk.write_bytes(content[:place] + forged + content[place + 4 :])
            with pytest.raises(ValueError, match=r"chunk 0\.0 .* has not the sizes it claims"):
                read_zarr(path)
    for length in (0, 15, 16, len(content) - 1):
        chunk.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"chunk 0\.0 .* has not the sizes it claims"):
            read_zarr(path)
    chunk.write_bytes(content)
    read_zarr(path)


def test_chunks_that_hold_nothing_but_zeros_need_no_file(tmp_path):
    observations, actions, _ = kitchen()
    nothing = [0.0 * table for table in actions]
    path = write_zarr(tmp_path / "kitchen.zarr", observations, nothing)
    assert not (path / "data/action/0.0").exists()
    for episode in read_zarr(path):
        assert not episode.actions.any()


def test_without_zarr_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match="needs zarr: pip install zarr"):
        read_zarr(tmp_path)
