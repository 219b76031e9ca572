"""D3IL's files: read as the environments observe, with their behaviors; and what is refused."""

import math
import pickle
import re

import gymnasium
import mujoco
import numpy as np
import pytest

from skvdd.datasets import load_demonstrations
from skvdd.datasets.readers import read_d3il
from skvdd.datasets.readers.d3il_tasks import TASKS, tan_yaw
from skvdd.envs import get_task

# Of a task: the key of D3IL's file and the body in the simulator.
OBJECTS = {
    "avoiding": {},
    "pushing": {"red-box": "red", "green-box": "green"},
    "aligning": {"push-box": "tray", "target-box": "target"},
    "sorting2": {"red-box1": "red1", "blue-box1": "blue1"},
    "sorting4": {f"{c}-box{i}": f"{c}{i}" for c in ("red", "blue") for i in (1, 2)},
}


def write(path, content, protocol=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def poses(yaw=0.0, n=3, **columns):
    """Return an object at rest, turned about the vertical."""
    position = np.zeros((n, 3))
    for axis, values in columns.items():
        position[:, "xyz".index(axis)] = values
    quaternion = np.tile([math.cos(yaw / 2.0), 0.0, 0.0, math.sin(yaw / 2.0)], (n, 1))
    return {"pos": position, "quat": quaternion, "sim_step": np.arange(n)}


def recording(n=3, **extra):
    """Return the content of a file of Avoiding, of n samples, that goes to y = 1."""
    y = np.linspace(-0.28, 1.0, n)
    desired = np.stack([np.full(n, 0.6), y + 0.01, np.full(n, 0.12)], axis=1)
    measured = np.stack([np.full(n, 0.6), y, np.full(n, 0.11)], axis=1)
    return {"robot": {"des_c_pos": desired, "c_pos": measured, "j_pos": np.zeros((n, 7))}, **extra}


def pushing_recording(n=3):
    return recording(n, **{"red-box": poses(0.1, n), "green-box": poses(0.2, n)})


# -- against the environments -------------------------------------------------------------------


class Recorder:
    """Steps an environment, and keeps what it observes and what D3IL would write down."""

    def __init__(self, task, env):
        self.env, self.robot, self.bodies = env, env.unwrapped, OBJECTS[task]
        self.observations, self.samples = [], []

    def reset(self, **options):
        observation, _ = self.env.reset(options=options)
        self._record(observation, self._poses())

    def step(self, action):
        before = self._poses()  # D3IL notes the state in which a set-point finds the robot
        observation, _, terminated, truncated, info = self.env.step(action)
        self._record(observation, before)
        return terminated or truncated, info

    def _poses(self):
        bodies = [self.robot.data.body(body) for body in self.bodies.values()]
        return [self.robot.tcp_position, *(np.r_[body.xpos, body.xquat] for body in bodies)]

    def _record(self, observation, poses):
        self.observations.append(observation)
        self.samples.append([self.robot.set_point, *poses])

    def content(self):
        desired, measured, *objects = (np.array(s) for s in zip(*self.samples, strict=True))
        content = {"robot": {"des_c_pos": desired, "c_pos": measured}}
        for key, pose in zip(self.bodies, objects, strict=True):
            content[key] = {"pos": pose[:, :3], "quat": pose[:, 3:]}
        if self.bodies:
            content["context"] = as_published(self.robot.context)
            if "red-box1" in self.bodies:  # Sorting draws six poses, whatever it needs
                content["context"] += as_published(np.zeros(18))[len(self.bodies) :]
        return content


def solve(task, env):
    """Return a recorder that has seen the task solved, and the behavior that was shown."""
    if task == "avoiding":
        recorder = Recorder(task, env)
        recorder.reset()
        for action in load_demonstrations(task)[5].actions:
            _, info = recorder.step(action)
        assert info["success"]
        return recorder, info["behavior"]
    demonstrator = get_task(task).demonstrator()
    wanted = list(get_task(task).score.behaviors)[-1]
    for context in range(10):  # a scripted demonstrator fails now and then
        recorder, over = Recorder(task, env), False
        recorder.reset(context=context, split="train")
        act = demonstrator.make_actor(env.unwrapped, wanted, np.random.default_rng(context))
        while not over:
            over, info = recorder.step(np.asarray(act(recorder.observations[-1])))
        if info["success"] and info["behavior"] == wanted:
            return recorder, wanted
    raise AssertionError(f"{task} was never solved")


def as_published(context):
    """Return a context as D3IL writes it: degrees and quaternions, object by object."""
    entry = []
    for x, y, yaw in np.reshape(context, (-1, 3)):
        quaternion = np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])
        entry.append([np.array([x, y, np.rad2deg(yaw)]), quaternion])
    return entry


@pytest.mark.parametrize("task", OBJECTS)
def test_states_and_behaviors_are_those_of_the_environment(tmp_path, task):
    about = load_demonstrations(task).metadata
    env = gymnasium.make(about["environment"])
    recorder, behavior = solve(task, env)
    suffix = f"{behavior:02}" if task in ("aligning", "pushing") else "00"
    write(tmp_path / TASKS[task].folder / f"env_007_{suffix}.pkl", recorder.content())
    read = read_d3il(task, tmp_path)
    (episode,) = read
    # The same arithmetic, but the tangent magnifies the last bits of an angle.
    expected = np.array(recorder.observations)
    np.testing.assert_allclose(episode.states, expected[:-1], rtol=1e-9, atol=1e-12)
    n_axes = episode.actions.shape[1]
    np.testing.assert_array_equal(episode.actions, np.diff(expected[:, :n_axes], axis=0))
    assert episode.behavior == behavior
    for key in ("states", "actions", "environment"):
        assert read.metadata[key] == about[key]
    assert episode.metadata["file"] == f"{TASKS[task].folder}/env_007_{suffix}.pkl"
    if task != "avoiding":
        start, _ = env.reset(options={"context": episode.metadata["context"]})
        np.testing.assert_allclose(start, expected[0], rtol=1e-6, atol=1e-9)
    env.close()


def test_the_tangent_is_that_of_the_rotation_matrix():
    """Also of blocks that have tipped, whose quaternion is not one of a yaw alone."""
    quaternions = np.random.default_rng(0).normal(size=(200, 4))
    for quaternion, tangent in zip(quaternions, tan_yaw(quaternions), strict=True):
        matrix = np.empty(9)
        mujoco.mju_quat2Mat(matrix, quaternion / np.linalg.norm(quaternion))
        expected = np.clip(np.tan(np.arctan2(-matrix[1], matrix[0])), -100, 100)
        np.testing.assert_allclose(tangent, expected, rtol=1e-9)


def test_the_tangent_is_cut_off():
    quarter = poses(math.pi / 2)["quat"]
    assert np.abs(tan_yaw(quarter)).tolist() == [100.0, 100.0, 100.0]


# -- behaviors ---------------------------------------------------------------------------------


def test_an_undecided_row_of_avoiding_is_decided_at_the_next_sample(tmp_path):
    """At exactly x = 0.5 the first row stays open; a row that is never crossed sets no bit."""
    content = recording(4)
    content["robot"]["c_pos"] = np.array(
        [[0.5, -0.28, 0.1], [0.5, -0.1, 0.1], [0.45, -0.08, 0.1], [0.6, 0.08, 0.1]]
    )
    write(tmp_path / "avoiding/data/a.pkl", content)
    assert read_d3il("avoiding", tmp_path).behaviors == (2**0 + 2**4,)


def test_sorting_is_incomplete_until_every_block_has_arrived(tmp_path):
    content = recording(
        4,
        **{
            "red-box1": poses(n=4, x=0.4, y=[0.0, 0.0, 0.1, 0.32]),
            "blue-box1": poses(n=4, x=0.625, y=[0.0, 0.3, 0.3, 0.0]),
        },
    )
    write(tmp_path / "sorting/2_boxes/state/a.pkl", content)
    assert read_d3il("sorting2", tmp_path).behaviors == ("br",)
    content["red-box1"]["pos"][3, 1] = 0.1
    write(tmp_path / "sorting/2_boxes/state/a.pkl", content)
    assert read_d3il("sorting2", tmp_path).behaviors == (None,)


def stacking_recording(n=4):
    joints = np.arange(7.0) + np.linspace(0.0, 0.3, n)[:, None]
    boxes = {
        "red-box": poses(0.1, n, x=0.5, y=[-0.2, -0.2, 0.2, 0.2], z=0.011),
        "green-box": poses(0.2, n, x=0.5, y=[-0.1, 0.15, 0.2, 0.2], z=0.011),
        "blue-box": poses(0.3, n, x=0.5, y=[-0.1, -0.1, -0.1, 0.25], z=0.011),
    }
    width = np.linspace(0.0, 0.08, n)
    return {"robot": {"des_j_pos": joints, "gripper_width": width}, **boxes}


@pytest.mark.parametrize("column", [False, True])
def test_stacking_has_joints_and_the_next_width(tmp_path, column):
    content = stacking_recording()
    width = content["robot"]["gripper_width"].copy()
    if column:
        content["robot"]["gripper_width"] = width[:, None]
    write(tmp_path / "stacking/all_data/env_0003_00.pkl", content)
    (episode,) = demos = read_d3il("stacking", tmp_path)
    assert episode.states.shape == (3, 20)
    assert len(demos.metadata["states"]) == 20
    assert len(demos.metadata["actions"]) == 8
    np.testing.assert_array_equal(episode.states[:, :7], content["robot"]["des_j_pos"][:3])
    np.testing.assert_array_equal(episode.states[:, 7], width[:3])
    np.testing.assert_allclose(episode.states[:, [11, 15, 19]], np.tan([[0.1, 0.2, 0.3]] * 3))
    np.testing.assert_array_equal(episode.states[:, 8:11], content["red-box"]["pos"][:3])
    np.testing.assert_allclose(episode.actions[:, :7], 0.1)
    np.testing.assert_array_equal(episode.actions[:, 7], width[1:])
    assert episode.behavior == "grb"
    content["blue-box"]["pos"][3, 1] = 0.3
    write(tmp_path / "stacking/all_data/env_0003_00.pkl", content)
    assert read_d3il("stacking", tmp_path).behaviors == (None,)


@pytest.mark.parametrize(("stem", "behavior"), [("env_1_00", 0), ("env_1_03", 3), ("env_1", None)])
def test_the_name_tells_the_behavior_of_pushing(tmp_path, stem, behavior):
    write(tmp_path / f"pushing/all_data/{stem}.pkl", pushing_recording())
    assert read_d3il("pushing", tmp_path).behaviors == (behavior,)


def test_a_name_that_tells_no_behavior_is_refused(tmp_path):
    path = write(tmp_path / "pushing/all_data/env_1_04.pkl", pushing_recording())
    with pytest.raises(
        ValueError,
        match=re.escape(
            f"{path} must end with the number of a behavior, one of _00, _01, _02, _03."
        ),
    ):
        read_d3il("pushing", tmp_path)


# -- which files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_all_files_are_read_in_the_order_of_their_names(tmp_path, protocol):
    for name in ("b", "a", "c"):
        write(tmp_path / f"avoiding/data/{name}.pkl", recording(), protocol)
    (tmp_path / "avoiding/data/notes.txt").write_text("no episode")
    demos = read_d3il("avoiding", str(tmp_path))
    assert [e.metadata["file"] for e in demos] == [f"avoiding/data/{n}.pkl" for n in "abc"]
    assert demos.metadata["split"] is None
    np.testing.assert_allclose(demos[0].states[:, 1] - demos[0].states[:, 3], 0.01)


@pytest.mark.parametrize(
    ("task", "place"),
    [
        ("pushing", "pushing/train_files.pkl"),
        ("sorting2", "sorting/2_boxes_train_files.pkl"),
        ("sorting2", "sorting/2_boxes/2_boxes_train_files.pkl"),
        ("stacking", "stacking/train_files.pkl"),
        ("stacking-images", "stacking/vision_train_files.pkl"),
    ],
)
def test_a_split_is_read_in_its_order(tmp_path, task, place):
    content = (
        stacking_recording()
        | pushing_recording(4)
        | {f"{c}-box1": poses(n=4) for c in ("red", "blue")}
    )
    content["robot"] |= stacking_recording()["robot"]
    content |= {key: stacking_recording()[key] for key in ("red-box", "green-box", "blue-box")}
    for i in range(3):
        write(tmp_path / TASKS[task].folder / f"env_{i}_00.pkl", content)
    write(tmp_path / place, ["env_2_00.pkl", "env_0_00.pkl"])
    demos = read_d3il(task, tmp_path, split="train")
    assert [e.metadata["file"].split("/")[-1] for e in demos] == ["env_2_00.pkl", "env_0_00.pkl"]
    assert demos.metadata["split"] == "train"
    own = write(tmp_path / "mine.pkl", ["env_1_00.pkl"])
    assert len(read_d3il(task, tmp_path, split=own)) == 1


def test_what_is_missing_is_named(tmp_path):
    folder = tmp_path / "pushing/all_data"
    with pytest.raises(FileNotFoundError, match=re.escape(f"{folder} is missing: root must be")):
        read_d3il("pushing", tmp_path)
    folder.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=re.escape(f"{folder} must hold episodes")):
        read_d3il("pushing", tmp_path)
    listed = tmp_path / "pushing/eval_files.pkl"
    with pytest.raises(FileNotFoundError, match=re.escape(f"split is missing: {listed}.")):
        read_d3il("pushing", tmp_path, split="eval")
    write(folder / "env_0_00.pkl", pushing_recording())
    write(listed, ["env_0_00.pkl", "env_1_00.pkl"])
    with pytest.raises(
        FileNotFoundError, match=re.escape("1 are missing, the first of them is env_1_00.pkl.")
    ):
        read_d3il("pushing", tmp_path, split="eval")


@pytest.mark.parametrize(
    "names", [[], "env_0_00.pkl", ["../../secret.pkl"], [3], ["a.txt"], ["/a.pkl"], {"a.pkl": 1}]
)
def test_a_list_of_other_things_is_refused(tmp_path, names):
    write(tmp_path / "pushing/all_data/env_0_00.pkl", pushing_recording())
    path = write(tmp_path / "pushing/train_files.pkl", names)
    with pytest.raises(ValueError, match=re.escape(f"{path} must hold a list of names of files")):
        read_d3il("pushing", tmp_path, split="train")


def test_avoiding_has_no_split(tmp_path):
    write(tmp_path / "avoiding/data/a.pkl", recording())
    with pytest.raises(ValueError, match="split must be None for avoiding/data, which has none"):
        read_d3il("avoiding", tmp_path, split="train")


def test_an_unknown_task_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"task must be one of 'avoiding', .*, got 'juggling'\."):
        read_d3il("juggling", tmp_path)


# -- pictures -------------------------------------------------------------------------------------


def aligning_recording(n):
    return recording(n, **{"push-box": poses(n=n), "target-box": poses(n=n)})


def write_pictures(root, stem, n):
    for camera in ("bp-cam", "inhand-cam"):
        folder = root / "aligning/all_data/images" / camera / stem
        folder.mkdir(parents=True)
        for i in range(n):
            (folder / f"{i}.jpg").touch()


def test_pictures_are_named_in_the_order_of_their_numbers(tmp_path):
    write(tmp_path / "aligning/all_data/state/env_000_01.pkl", aligning_recording(12))
    assert read_d3il("aligning", tmp_path)[0].images is None
    write_pictures(tmp_path, "env_000_01", 12)
    (episode,) = read_d3il("aligning", tmp_path)
    folder = tmp_path / "aligning/all_data/images"
    assert episode.images == {
        camera: tuple(str(folder / camera / "env_000_01" / f"{i}.jpg") for i in range(11))
        for camera in ("bp-cam", "inhand-cam")
    }


def test_a_missing_picture_is_named(tmp_path):
    path = write(tmp_path / "aligning/all_data/state/env_000_01.pkl", aligning_recording(12))
    write_pictures(tmp_path, "env_000_01", 12)
    folder = tmp_path / "aligning/all_data/images/inhand-cam/env_000_01"
    (folder / "7.jpg").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=re.escape(
            f"{folder} must hold the pictures 0.jpg to 10.jpg of {path}, and 7.jpg is missing."
        ),
    ):
        read_d3il("aligning", tmp_path)


# -- bad episodes ---------------------------------------------------------------------------------


def changed(**robot):
    content = recording()
    content["robot"] |= robot
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], " must hold a dict, got list."),
        ({}, " must hold des_c_pos of robot, numbers of shape (T, 3), got NoneType."),
        (
            changed(c_pos=np.zeros((3, 2))),
            " must hold c_pos of robot, numbers of shape (T, 3), got (3, 2).",
        ),
        (
            changed(c_pos=[[0.0, 0.0, 0.0]] * 3),
            " must hold c_pos of robot, numbers of shape (T, 3), got list.",
        ),
        (
            changed(c_pos=np.array([["a"] * 3] * 3)),
            " must hold c_pos of robot, numbers of shape (T, 3), got ndarray.",
        ),
        (
            changed(c_pos=np.zeros((4, 3))),
            " must hold series of one length, got 3 samples and 4 of c_pos of robot.",
        ),
        (
            changed(c_pos=np.full((3, 3), np.nan)),
            ": states of an episode must be finite, got NaN or infinity in row 0.",
        ),
        (recording(1), " must hold at least 2 samples, got 1."),
        ({"robot": print}, " cannot be read: it asks for builtins.print, and only NumPy arrays"),
    ],
)
def test_a_bad_episode_is_named_and_not_dropped(tmp_path, content, message):
    write(tmp_path / "avoiding/data/a.pkl", recording())
    path = write(tmp_path / "avoiding/data/b.pkl", content)
    with pytest.raises(ValueError, match=re.escape(f"{path}{message}")):
        read_d3il("avoiding", tmp_path)
