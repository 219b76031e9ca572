"""Minari: what is written comes back, foreign sets are read, and what is refused."""

import json
import re
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from skvdd.datasets import Demonstrations, Episode, load_demonstrations
from skvdd.datasets.readers import read_minari

minari = pytest.importorskip("minari")
pytest.importorskip("h5py")

pytestmark = pytest.mark.filterwarnings("ignore:.* is (set to )?None:UserWarning")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Keep data sets away from those of the user."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def with_goals():
    episodes = [
        Episode(
            np.arange(2.0 * n).reshape(n, 2) + i,
            np.full((n, 1), i, dtype=np.float32),
            ("left", None)[i],
            np.full((n, 3), 7.0 + i),
            {"hand": [f"{i}/{step}.jpg" for step in range(n)]},
            {"file": f"{i}.pkl"},
        )
        for i, n in enumerate((3, 1))
    ]
    return Demonstrations(episodes, "toy", {"seed": 3})


def assert_same(one, other):
    assert (one.name, one.metadata, one.behaviors) == (other.name, other.metadata, other.behaviors)
    for a, b in zip(one, other, strict=True):
        for kind in ("states", "actions", "goals"):
            np.testing.assert_array_equal(getattr(a, kind), getattr(b, kind))
        assert (a.states.dtype, a.actions.dtype) == (b.states.dtype, b.actions.dtype)
        assert (a.images, a.metadata) == (b.images, b.metadata)


@pytest.mark.parametrize(
    "demos", [with_goals(), load_demonstrations("avoiding", 2), load_demonstrations("pushing", 2)]
)
def test_what_is_written_comes_back(folder, demos):
    dataset = demos.to_minari("test/scripted-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (len(demos), demos.n_rows)
    assert_same(read_minari("test/scripted-v0"), demos)
    assert_same(read_minari(folder / "test/scripted-v0"), demos)


def test_minari_gets_whole_episodes():
    demos = with_goals()
    demos.to_minari("scripted-v0")
    first, last = minari.load_dataset("scripted-v0")
    assert first.observations["observation"].shape == (4, 2)
    np.testing.assert_array_equal(first.observations["observation"][-1], demos[0].states[-1])
    np.testing.assert_array_equal(first.observations["desired_goal"][:3], demos[0].goals)
    assert first.truncations.tolist() == [False, False, True]
    assert last.truncations.tolist() == [True]
    assert not first.terminations.any()
    assert not first.rewards.any()


def test_minari_can_make_the_environment():
    load_demonstrations("avoiding", 1).to_minari("scripted-v0", env="skvdd/Avoiding-v0")
    env = minari.load_dataset("scripted-v0").recover_environment()
    assert type(env.unwrapped).__name__ == "Avoiding"
    env.close()


def write(observation_space, observations, action_space=None, actions=None):
    """Write a data set as others do."""
    n = 3
    buffer = minari.data_collector.EpisodeBuffer(
        observations=observations,
        actions=np.arange(2.0 * n).reshape(n, 2) if actions is None else actions,
        rewards=np.array([0.0, 0.5, 1.0]),
        terminations=np.array([False, False, True]),
        truncations=np.zeros(n, dtype=bool),
    )
    minari.create_dataset_from_buffers(
        "foreign-v3",
        [buffer],
        observation_space=observation_space,
        action_space=Box(-10, 10, (2,), np.float64) if action_space is None else action_space,
    )


def box(*shape):
    return Box(-np.inf, np.inf, shape, np.float64)


def test_a_foreign_set_is_read_without_the_last_state():
    states = np.arange(20.0).reshape(4, 5)
    write(box(5), states)
    (episode,) = demos = read_minari("foreign-v3")
    np.testing.assert_array_equal(episode.states, states[:3])
    np.testing.assert_array_equal(episode.actions, np.arange(6.0).reshape(3, 2))
    assert (demos.name, demos.metadata) == ("foreign-v3", {"source": "Minari, foreign-v3"})
    assert episode.metadata == {"number": 0, "return": 1.5}


def test_goals_of_several_parts_are_put_behind_one_another():
    goal = Dict({"kettle": box(2), "door": box()})
    space = Dict({"observation": box(2), "desired_goal": goal, "achieved_goal": goal})
    parts = {"kettle": np.arange(8.0).reshape(4, 2), "door": 100.0 + np.arange(4.0)}
    states = np.arange(8.0).reshape(4, 2) / 10.0
    write(space, {"observation": states, "desired_goal": parts, "achieved_goal": parts})
    (episode,) = read_minari("foreign-v3")
    np.testing.assert_array_equal(episode.states, states[:3])
    expected = [parts[key] if key == "kettle" else parts[key][:, None] for key in goal]
    np.testing.assert_array_equal(episode.goals, np.hstack(expected)[:3])


def test_observations_of_several_parts_are_put_behind_one_another():
    write(Dict({"a": box(2), "b": box(1)}), {"a": np.zeros((4, 2)), "b": np.ones((4, 1))})
    assert read_minari("foreign-v3")[0].states.tolist() == 3 * [[0.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((box(2, 2), np.zeros((4, 2, 2))), "states must be vectors of numbers, got Box"),
        (
            (box(2), np.zeros((4, 2)), Discrete(3), np.array([0, 1, 2])),
            "actions must be vectors of numbers, got Discrete(3)",
        ),
    ],
)
def test_what_is_no_vector_is_refused(folder, arguments, message):
    write(*arguments)
    expected = f"{folder / 'foreign-v3/data'} cannot be read: {message}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        read_minari("foreign-v3")


def edit(folder, **changes):
    """Change the metadata of a set; None removes a key."""
    path = folder / "data/metadata.json"
    about = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in about.items() if value is not None}))


def test_no_environment_is_made_to_read(folder, monkeypatch):
    """The metadata name the function that makes it, so a set could have anything called."""
    with_goals().to_minari("scripted-v0", env="skvdd/Avoiding-v0")
    made = []
    monkeypatch.setattr(gymnasium, "make", lambda *args, **kwargs: made.append(args))
    read_minari("scripted-v0")
    edit(folder / "scripted-v0", action_space=None)
    with pytest.raises(ValueError, match="its metadata have no spaces"):
        read_minari("scripted-v0")
    assert made == []


def test_a_damaged_set_is_refused(folder):
    with_goals().to_minari("scripted-v0")
    (folder / "scripted-v0/data/main_data.hdf5").write_bytes(b"no data")
    with pytest.raises(ValueError, match=re.escape(f"{folder / 'scripted-v0/data'} cannot be")):
        read_minari("scripted-v0")


def test_a_set_that_has_grown_is_refused(folder):
    demos = with_goals()
    demos.to_minari("scripted-v0")
    about = json.loads((folder / "scripted-v0/data/metadata.json").read_text())["skvdd"]
    edit(folder / "scripted-v0", skvdd=about | {"behaviors": ["left"]})
    with pytest.raises(ValueError, match="has other episodes than were written"):
        read_minari("scripted-v0")


def test_a_missing_set_is_missing(folder):
    with pytest.raises(
        FileNotFoundError,
        match=re.escape(f"the name of one in {folder}, got 'absent-v0'. `minari download`"),
    ):
        read_minari("absent-v0")


def test_a_name_that_is_taken_is_refused(folder):
    with_goals().to_minari("scripted-v0")
    before = (folder / "scripted-v0/data/main_data.hdf5").read_bytes()
    with pytest.raises(ValueError, match="dataset_id must be new, and there is 'scripted-v0' in"):
        load_demonstrations("avoiding", 1).to_minari("scripted-v0")
    assert (folder / "scripted-v0/data/main_data.hdf5").read_bytes() == before


@pytest.mark.parametrize("dataset_id", ["bad name-v0", "scripted", "", "../scripted-v0"])
def test_a_name_that_is_none_is_refused(folder, dataset_id):
    with pytest.raises(
        ValueError, match=re.escape(f"such as 'avoiding/scripted-v0', got {dataset_id!r}.")
    ):
        with_goals().to_minari(dataset_id)
    assert list(folder.iterdir()) == []


def test_an_unknown_environment_is_refused(folder):
    with pytest.raises(ValueError, match="env must be known to Gymnasium, got 'skvdd/Juggling-v0'"):
        with_goals().to_minari("scripted-v0", env="skvdd/Juggling-v0")
    assert list(folder.iterdir()) == []


def test_a_failed_write_leaves_nothing(folder, monkeypatch):
    def disk_full(*args):
        raise OSError("disk full")

    monkeypatch.setattr("minari.dataset.minari_storage.MinariStorage.update_metadata", disk_full)
    with pytest.raises(OSError, match=r"^disk full$"):
        with_goals().to_minari("scripted-v0")
    assert list(folder.iterdir()) == []


def test_without_minari_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    for use in (lambda: read_minari("scripted-v0"), lambda: with_goals().to_minari("scripted-v0")):
        with pytest.raises(ImportError, match=re.escape("pip install 'minari[hdf5]'")):
            use()
