"""Sets that are recorded on first use: kept, told apart, never recorded twice and never lost."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from skvdd.datasets import Demonstrations, cache_directory, load_demonstrations, loading
from skvdd.datasets.__main__ import main
from skvdd.datasets.experts import recording
from skvdd.envs import get_task, register_task, spec, task_names
from tests.datasets.line import LINE

REPOSITORY = Path(__file__).parents[2]
MUJOCO = ".".join(version("mujoco").split(".")[:2])
FILE = f"line-{sha256(b'Line-v0').hexdigest()[:8]}-v4-mujoco{MUJOCO}.npz"
SETS = [name for task in task_names() for name in get_task(task).demonstrators]


def refused(message, error=ValueError):
    """Expect an error whose whole message is this."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SKVDD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def line(monkeypatch, tmp_path):
    """Register a task of one's own; return what tells which episodes were recorded."""
    monkeypatch.setattr(spec, "_TASKS", dict(spec._TASKS))
    monkeypatch.setenv("LINE_LOG", str(tmp_path / "log"))
    register_task(LINE)
    yield lambda: list(map(int, (tmp_path / "log").read_text().split()))
    gymnasium.registry.pop("Line-v0")


def load(n_episodes):
    return load_demonstrations("line", n_episodes, n_jobs=1)


def kept_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".npz")


def assert_same(one, other):
    assert one.behaviors == other.behaviors
    for first, second in zip(one, other, strict=True):
        assert first.metadata == second.metadata
        np.testing.assert_array_equal(first.states, second.states)
        np.testing.assert_array_equal(first.actions, second.actions)


# -- which sets there are ---------------------------------------------------------------------


def test_every_file_is_the_beginning_of_a_set():
    names = {path.stem for path in (REPOSITORY / "skvdd/datasets/data").iterdir()}
    assert names == set(SETS)


@pytest.mark.parametrize("set_name", SETS)
def test_a_beginning_is_of_the_version_that_is_recorded(set_name):
    task = get_task(set_name)
    embedded = load_demonstrations(set_name)
    assert embedded.name == set_name
    assert embedded.metadata["environment"] == task.env_id
    assert embedded.metadata["states"] == list(task.states)
    assert embedded.metadata["actions"] == list(task.actions)
    assert embedded.metadata.get("version", 1) == task.demonstrator(set_name).version
    assert len(embedded[0].states.T) == len(task.states)
    assert len(embedded[0].actions.T) == len(task.actions)


def test_a_set_is_found_by_its_environment_too():
    assert_same(load_demonstrations("skvdd/Pushing-v0", 3), load_demonstrations("pushing", 3))


def test_an_unknown_set_is_refused_with_the_known_ones():
    known = ", ".join(map(repr, SETS))
    with refused(
        f"set_name must be one of {known}, got 'juggling'. skvdd.envs.register_task makes others "
        "known."
    ):
        load_demonstrations("juggling")


@pytest.mark.parametrize("n_episodes", [0, 2.5])
def test_a_wrong_number_of_episodes_is_refused(n_episodes):
    with refused(f"n_episodes must be an integer of at least 1, or None, got {n_episodes!r}."):
        load_demonstrations("avoiding", n_episodes)


# -- a set that grows -------------------------------------------------------------------------


def test_a_task_of_ones_own_has_demonstrations(line):
    demos = load(5)
    assert demos.behaviors == ("left", "right", "left", "right", "left")
    assert demos.metadata == {
        "environment": "Line-v0",
        "demonstrator": "walks",
        "version": 4,
        "random_state": 0,
        "mujoco": version("mujoco"),
        "states": ["place"],
        "actions": ["step"],
    }


def test_a_set_of_which_nothing_comes_along_needs_a_number(line):
    with refused(
        "n_episodes must be an integer for 'line', of which nothing comes with the library, got "
        "None."
    ):
        load_demonstrations("line")


def test_nothing_is_recorded_twice(folder, line):
    four = load(4)
    assert_same(load(2), four[:2])
    six = load(6)
    assert_same(six[:4], four)
    assert_same(load(6), six)
    assert line() == [0, 1, 2, 3, 4, 5]
    assert kept_in(folder) == [FILE]


def test_a_longer_set_begins_with_what_comes_along(folder, monkeypatch):
    embedded = load_demonstrations("avoiding")
    longer = load_demonstrations("avoiding", 98, n_jobs=1)
    assert_same(longer[:96], embedded)
    assert longer.behaviors[96:] == longer.behaviors[:2]
    assert len(longer[96]) != len(longer[0]) or (longer[96].actions != longer[0].actions).any()
    assert kept_in(folder) == [f"avoiding-v1-mujoco{MUJOCO}.npz"]
    monkeypatch.setattr(loading, "_grow", None)
    assert_same(load_demonstrations("avoiding", 97), longer[:97])


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_recording_loses_nothing(line, monkeypatch, error):
    monkeypatch.setattr(recording, "CHUNK", 1)
    monkeypatch.setenv("LINE_STOP", "5")
    monkeypatch.setenv("LINE_ERROR", error.__name__)
    with pytest.raises(error):
        load(8)
    monkeypatch.delenv("LINE_STOP")
    load(6)
    assert line() == [0, 1, 2, 3, 4, 5, 5]


def test_a_recording_is_kept_as_it_comes(line, monkeypatch):
    monkeypatch.setattr(loading, "PORTION", 2)
    monkeypatch.setattr(recording, "CHUNK", 1)
    lengths, save = [], Demonstrations.save
    monkeypatch.setattr(
        Demonstrations, "save", lambda self, path: lengths.append(len(self)) or save(self, path)
    )
    load(5)
    assert lengths == [2, 4, 5]


# -- sets of the same name --------------------------------------------------------------------


def test_environments_do_not_share_what_is_kept(folder, line):
    four = load(4)
    try:
        register_task(replace(LINE, env_id="Other-v0"))
        other = load(4)
        assert other.metadata["environment"] == "Other-v0"
        assert line() == 2 * [0, 1, 2, 3]
        spec._TASKS["line"] = LINE
        assert_same(load(4), four)
        assert line() == 2 * [0, 1, 2, 3]
    finally:
        gymnasium.registry.pop("Other-v0", None)
    assert len(kept_in(folder)) == 2
    assert FILE in kept_in(folder)


def test_versions_do_not_share_what_is_kept(line):
    load(2)
    changed = replace(LINE.demonstrators["line"], version=5)
    spec._TASKS["line"] = replace(LINE, demonstrators={"line": changed})
    assert load(2).metadata["version"] == 5
    assert line() == 2 * [0, 1]


@pytest.mark.parametrize("change", [{"environment": "Other-v0"}, {"version": 3}])
def test_a_file_of_another_environment_is_neither_used_nor_replaced(folder, line, change):
    four = load(4)
    foreign = Demonstrations(four.episodes, "line", four.metadata | change)
    foreign.save(folder / FILE)
    with pytest.warns(
        UserWarning,
        match=rf"\({re.escape(FILE)} is of another environment or version\); they will be recorded "
        "anew",
    ) as warned:
        assert load(3).metadata == four.metadata
    assert len(warned) == 1
    assert line() == [0, 1, 2, 3, 0, 1, 2]
    assert Demonstrations.load(folder / FILE).metadata == foreign.metadata


def test_what_comes_along_is_of_its_environment_only(folder, line):
    ours = replace(LINE, name="pushing", demonstrators={"pushing": LINE.demonstrators["line"]})
    del spec._TASKS["line"]
    spec._TASKS["pushing"] = ours
    with refused(
        "n_episodes must be an integer for 'pushing', of which nothing comes with the library, "
        "got None."
    ):
        load_demonstrations("pushing")
    demos = load_demonstrations("pushing", 3, n_jobs=1)
    assert demos.behaviors == ("left", "right", "left")
    assert kept_in(folder) == [FILE.replace("line", "pushing")]


# -- several processes, and mishaps -----------------------------------------------------------


def test_two_processes_at_once_record_each_episode_once(tmp_path, line):
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    program = "import sys; from tests.datasets.line import load_beside_another as load; "
    both = [
        subprocess.Popen(
            [sys.executable, "-c", f"{program} load({str(meeting)!r}, {name!r}, {n_episodes})"],
            cwd=REPOSITORY,
        )
        for name, n_episodes in (("one", 60), ("other", 70))
    ]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert sorted(line()) == list(range(70))
    one, other = (Demonstrations.load(meeting / f"{name}.npz") for name in ("one", "other"))
    assert_same(one, other[:60])


def test_a_damaged_file_is_recorded_anew(folder, line):
    four = load(4)
    path = folder / FILE
    path.write_bytes(path.read_bytes()[:500])
    with pytest.warns(UserWarning, match=r"is damaged.*\. It is recorded anew\.$"):
        assert_same(load(4), four)
    assert_same(load(4), four)
    assert line() == 2 * [0, 1, 2, 3]


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, monkeypatch, line):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SKVDD_CACHE", str(tmp_path / "file"))
    with pytest.warns(
        UserWarning,
        match=r"demonstrations cannot be kept in .*; they will be recorded anew the next time\. "
        r"SKVDD_CACHE names another directory\.$",
    ):
        assert len(load(3)) == 3


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="has no such folder")
def test_a_lock_that_cannot_be_made_is_not_waited_for(line):
    program = (
        "from tests.datasets.line import LINE; from skvdd.envs import register_task; "
        "from skvdd.datasets import load_demonstrations; register_task(LINE); "
        "print(len(load_demonstrations('line', 3, n_jobs=1)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env=os.environ | {"SKVDD_CACHE": "/proc"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "3\n"
    assert "UserWarning: demonstrations cannot be kept in /proc (" in done.stderr


def test_locks_that_are_not_supported_cost_a_warning(monkeypatch, line):
    class Unsupported:
        def __init__(self, path):
            pass

        def acquire(self):
            raise NotImplementedError("no locks here")

    monkeypatch.setattr(loading, "FileLock", Unsupported)
    with pytest.warns(UserWarning, match=r"cannot be kept in .* \(no locks here\)"):
        assert len(load(3)) == 3


def test_a_full_disk_costs_one_warning(monkeypatch, line):
    def save(self, path):
        raise OSError("No space left on device")

    monkeypatch.setattr(loading, "PORTION", 1)
    monkeypatch.setattr(Demonstrations, "save", save)
    with pytest.warns(UserWarning, match="No space left on device") as warned:
        assert len(load(3)) == 3
    assert len(warned) == 1


def test_the_cache_is_where_the_user_has_caches(monkeypatch, tmp_path):
    monkeypatch.delenv("SKVDD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory().name == "skvdd"


# -- the command ------------------------------------------------------------------------------


def test_the_command_writes_a_set(tmp_path, capsys):
    path = tmp_path / "two.npz"
    options = ["avoiding-hesitant", "--n-episodes=2", f"--output={path}", "--jobs=1"]
    main(options)
    assert "Demonstrations('avoiding-hesitant', 2 episodes, " in capsys.readouterr().out
    two = Demonstrations.load(path)
    assert two.metadata["random_state"] == 0
    main([*options, "--random-state=5"])
    other = Demonstrations.load(path)
    assert other.behaviors == two.behaviors
    assert other.metadata["random_state"] == 5
    assert len(other[0]) != len(two[0]) or (other[0].actions != two[0].actions).any()


MODULE = """
from dataclasses import replace
from skvdd.envs import register_task
from tests.datasets.line import LINE
register_task(replace(LINE, name="road", demonstrators={"road": LINE.demonstrators["line"]}))
"""


def test_the_command_imports_what_registers_a_task(tmp_path, monkeypatch, line, capsys):
    del spec._TASKS["line"]
    del gymnasium.registry["Line-v0"]
    (tmp_path / "road_task.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "road.npz"
    options = ["road", "--n-episodes=3", f"--output={path}", "--jobs=1"]
    with pytest.raises(SystemExit):
        main(options)
    assert "argument task: invalid choice: 'road'" in capsys.readouterr().err
    main([*options, "--import", "road_task"])
    assert Demonstrations.load(path).behaviors == ("left", "right", "left")


def test_the_command_explains_itself(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--import MODULE" in capsys.readouterr().out
