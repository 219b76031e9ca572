"""Sets that are recorded on first use: kept, told apart by version, and never lost."""

import re

import numpy as np
import pytest

from skvdd.datasets import Demonstrations, cache_directory, load_demonstrations
from skvdd.datasets.__main__ import main
from skvdd.datasets.experts import recording
from skvdd.datasets.experts.pushing import DEMONSTRATORS
from skvdd.datasets.loading import EMBEDDED, RECORDED


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SKVDD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def recorded(monkeypatch):
    """Numbers of the episodes that were recorded; in truth they are the first embedded ones."""
    numbers = []

    def record(demonstrator, n_episodes, *, first, n_jobs):
        numbers.extend(range(first, n_episodes))
        return load_demonstrations(demonstrator.name).subset(range(n_episodes - first))

    monkeypatch.setattr(recording, "record", record)
    return numbers


def assert_same(one, other):
    assert one.behaviors == other.behaviors
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first.states, second.states)
        np.testing.assert_array_equal(first.actions, second.actions)


def test_every_task_that_is_recorded_has_a_beginning_and_a_demonstrator():
    assert set(RECORDED) < set(EMBEDDED)
    for task in RECORDED:
        assert load_demonstrations(task, 1).metadata["version"] == 2


def test_a_longer_set_is_recorded_once(folder, recorded):
    longer = load_demonstrations("pushing", 134)
    assert recorded == [132, 133]
    assert_same(longer.subset(range(132)), load_demonstrations("pushing"))
    assert_same(load_demonstrations("pushing", 134), longer)
    assert recorded == [132, 133]
    assert [path.name for path in folder.iterdir()] == ["pushing-v2-134.npz"]


def test_a_damaged_file_is_recorded_anew(folder, recorded):
    longer = load_demonstrations("pushing", 133)
    path = folder / "pushing-v2-133.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged.*recorded anew"):
        again = load_demonstrations("pushing", 133)
    assert_same(again, longer)
    assert recorded == [132, 132]


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, monkeypatch, recorded):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SKVDD_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="could not be kept"):
        assert len(load_demonstrations("pushing", 133)) == 133


def test_the_cache_is_where_the_user_has_caches(monkeypatch, tmp_path):
    monkeypatch.delenv("SKVDD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory().name == "skvdd"


# -- the recorder -----------------------------------------------------------------------------


def test_an_episode_depends_on_its_number_alone():
    three = recording.record(DEMONSTRATORS["pushing"], 3, n_jobs=1, progress=False)
    third = recording.record(DEMONSTRATORS["pushing"], 3, first=2, n_jobs=1, progress=False)
    assert_same(third, three.subset([2]))
    assert three.behaviors == (0, 1, 2)
    assert three.metadata["environment"] == "skvdd/Pushing-v0"
    assert three.metadata["attempts_per_episode"] >= 1.0


def test_the_embedded_set_is_what_the_demonstrator_does():
    one = recording.record(DEMONSTRATORS["pushing"], 1, n_jobs=1, progress=False)
    # Another processor or MuJoCo may round differently, and contacts spread that.
    np.testing.assert_allclose(
        one[0].states[:40], load_demonstrations("pushing")[0].states[:40], atol=1e-4
    )


def test_a_demonstrator_that_never_succeeds_is_named(monkeypatch):
    monkeypatch.setattr(recording, "demonstrate", lambda *arguments: None)
    message = "Behaviour 0 of pushing did not succeed in 50 attempts."
    with pytest.raises(RuntimeError, match=re.escape(message)):
        recording.record(DEMONSTRATORS["pushing"], 1, n_jobs=1, progress=False)


def test_the_command_writes_a_set(tmp_path, capsys, monkeypatch):
    one = load_demonstrations("pushing", 1)
    monkeypatch.setattr(recording, "record", lambda demonstrator, n_episodes: one)
    main(["pushing", "--n-episodes", "1", "--output", str(tmp_path / "one.npz")])
    assert_same(Demonstrations.load(tmp_path / "one.npz"), one)
    assert "1 episode" in capsys.readouterr().out
