"""Films of episodes: which pictures, how fast, and what is refused."""

import re
import subprocess

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from PIL import Image
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import skvdd.recording
from skvdd import GaussianMoEPolicy
from skvdd.envs import Score, TaskSpec, register_task, spec
from skvdd.evaluation import evaluate_policy, record_episode


class Walk(gymnasium.Env):
    """Walks along a line of eight pixels; the picture shows where, and the end is success."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
    observation_space = Box(-10.0, 10.0, (1,), np.float64)
    action_space = Box(-10.0, 10.0, (1,), np.float64)

    def __init__(self, render_mode=None, length=8):
        self.render_mode = render_mode
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        start = 0.0 if options is None else options["context"]
        self.place = float(np.ravel(start)[0])
        return np.array([self.place]), {"success": False, "behavior": None}

    def step(self, action):
        self.place += float(action[0])
        over = self.place >= self.length - 1
        info = {"success": over, "behavior": "end" if over else None, "other": False}
        return np.array([self.place]), float(over), over, False, info

    def render(self):
        picture = np.zeros((6, self.length, 3), np.uint8)
        # A last step may lead beyond the line: the walker stands at its end then.
        picture[:, min(int(self.place), self.length - 1)] = (250, 10, 10)
        return np.repeat(np.repeat(picture, 4, axis=0), 4, axis=1)


@pytest.fixture(scope="module", autouse=True)
def registered():
    gymnasium.register("test/Walk-v0", Walk)
    yield
    del gymnasium.registry["test/Walk-v0"]


class Forwards:
    """Takes steps of one pixel."""

    window_size = 2

    def act(self, X, *, random_state=None):
        return np.ones(len(X))


def refuses(message, error=ValueError):
    """Expect an error whose whole message is this."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def read_gif(path):
    """Return the pictures (n, h, w, 3) of a GIF and how long each stays, ms."""
    pictures, durations = [], []
    with Image.open(path) as film:
        for number in range(film.n_frames):
            film.seek(number)
            pictures.append(np.array(film.convert("RGB")))
            durations.append(film.info["duration"])
    return np.stack(pictures), durations


def places(pictures):
    """Return the pixel that the walker is at in each picture."""
    return (pictures[:, 0, ::4, 0] > 128).argmax(axis=1).tolist()


# ---------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------


def test_a_film_shows_every_step_and_tells_the_end(tmp_path):
    outcome = record_episode(Forwards(), "test/Walk-v0", tmp_path / "walk.gif")
    assert outcome == {"success": True, "behavior": "end", "n_steps": 7}
    pictures, durations = read_gif(tmp_path / "walk.gif")
    assert places(pictures) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert durations == [50] * 8  # twenty a second


@pytest.mark.parametrize("fps", [10, 15])  # at most: every second step is the next below 15
def test_a_film_with_fewer_pictures_is_as_fast_and_shows_the_end(tmp_path, fps):
    record_episode(Forwards(), "test/Walk-v0", tmp_path / "walk.gif", fps=fps)
    pictures, durations = read_gif(tmp_path / "walk.gif")
    assert places(pictures) == [0, 2, 4, 6, 7]
    assert durations == [100] * 5


def test_colors_are_kept(tmp_path):
    record_episode(Forwards(), "test/Walk-v0", tmp_path / "walk.gif")
    pictures, _ = read_gif(tmp_path / "walk.gif")
    # One palette for all pictures: a step of the quantization away at most.
    np.testing.assert_allclose(pictures[3, 0, 12], [250, 10, 10], atol=8)
    np.testing.assert_allclose(pictures[3, 0, 0], 0, atol=8)


def test_speed_is_right_where_hundredths_of_a_second_are_not(tmp_path, monkeypatch):
    monkeypatch.setitem(Walk.metadata, "render_fps", 29)
    record_episode(Forwards(), "test/Walk-v0", tmp_path / "walk.gif", env_kwargs={"length": 30})
    _, durations = read_gif(tmp_path / "walk.gif")
    assert set(durations) == {30, 40}
    assert sum(durations) == 1030  # 30 pictures at 29 a second take 1034 ms


def test_an_episode_starts_in_its_context(tmp_path):
    record_episode(Forwards(), "test/Walk-v0", tmp_path / "walk.gif", context=[5.0])
    assert places(read_gif(tmp_path / "walk.gif")[0]) == [5, 6, 7]
    record_episode(Forwards(), "test/Walk-v0", tmp_path / "walk.gif", context=4)
    assert places(read_gif(tmp_path / "walk.gif")[0]) == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("context", "options"),
    [
        (None, {"context": 0}),
        (4, {"context": 4}),
        (np.int64(4), {"context": 4}),
        (("validation", 4), {"context": 4, "split": "validation"}),
    ],
)
def test_a_task_has_a_name_and_its_contexts_lists(
    tmp_path, monkeypatch, walk_task, context, options
):
    def reset(self, *, seed=None, options=None):
        asked.append(options)
        return start(self, seed=seed, options={"context": 5.0})

    asked, start = [], Walk.reset
    monkeypatch.setattr(Walk, "reset", reset)
    outcome = record_episode(Forwards(), "walk", tmp_path / "walk.gif", context=context)
    assert asked == [options]
    assert outcome == {"success": False, "behavior": "end", "n_steps": 2}  # by the first score


@pytest.fixture
def walk_task():
    """Register the walk as a task that is judged in two ways."""
    scores = (Score("other", success_key="other"), Score())
    task = register_task(TaskSpec("walk", "test/Walk-v0", scores=scores, n_contexts=3))
    yield task
    del spec._TASKS["walk"]


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (-1, "context must be a number from 0, a list and a number in it, or an initial state; "),
        (True, "context must be a number from 0, a list and a number in it, or an initial state; "),
        (("test", [1.0]), "context must be a number from 0, a list and a number in it, or an "),
        (("nowhere", 1), "context must be of one of the lists ('train', 'validation', 'test'), "),
    ],
)
def test_what_is_no_context_is_refused(tmp_path, context, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        record_episode(Forwards(), "test/Walk-v0", tmp_path / "walk.gif", context=context)
    assert list(tmp_path.iterdir()) == []


def test_a_context_is_refused_where_all_episodes_start_alike(tmp_path):
    with refuses("context must be None for avoiding, whose episodes all start alike, got 3."):
        record_episode(Forwards(), "avoiding", tmp_path / "walk.gif", context=3)


def test_a_film_is_cut_and_its_actions_are_clipped_as_in_an_evaluation(tmp_path):
    class Leaps(Forwards):
        def act(self, X, *, random_state=None):
            return np.full(len(X), 1000.0)

    arguments = {"env_kwargs": {"length": 60}, "clip_actions": True, "max_episode_steps": 3}
    outcome = record_episode(Leaps(), "test/Walk-v0", tmp_path / "walk.gif", **arguments)
    assert outcome == {"success": False, "behavior": None, "n_steps": 3}
    assert places(read_gif(tmp_path / "walk.gif")[0]) == [0, 10, 20, 30]


def test_the_episode_is_the_first_of_an_evaluation(tmp_path):
    class Random(Forwards):
        def act(self, X, *, random_state=None):
            return np.array([rng.uniform(0.0, 1.0) for rng in random_state])

    outcome = record_episode(Random(), "test/Walk-v0", tmp_path / "walk.gif", random_state=3)
    evaluation = evaluate_policy(Random(), "test/Walk-v0", 1, random_state=3, progress=False)
    assert outcome["n_steps"] == evaluation.lengths[0]
    pictures, _ = read_gif(tmp_path / "walk.gif")
    states = np.floor(evaluation.episodes[0].states[:, 0]).astype(int)
    # Pictures that are alike are one, which stays longer.
    assert places(pictures)[:-1] == sorted(set(states.tolist()))


def test_a_pipeline_is_filmed_as_it_acts(tmp_path):
    rows = np.linspace(0.0, 8.0, 40)[:, None]
    states = np.hstack([rows, rows])  # windows of two
    policy = GaussianMoEPolicy(2, window_size=2, max_iter=3, random_state=0)
    pipeline = make_pipeline(FunctionTransformer(lambda X: X / 8.0), policy)
    pipeline.fit(states, np.ones((40, 1)))
    outcome = record_episode(pipeline, "test/Walk-v0", tmp_path / "walk.gif", random_state=0)
    evaluation = evaluate_policy(pipeline, "test/Walk-v0", 1, random_state=0, progress=False)
    assert outcome["n_steps"] == evaluation.lengths[0]


def test_an_mp4_has_every_picture_and_even_sizes(tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "walk.mp4"
    record_episode(Forwards(), "test/Walk-v0", path, env_kwargs={"length": 20})
    n_frames, seconds = ffmpeg.count_frames_and_secs(str(path))
    assert (n_frames, seconds) == (20, 1.0)
    command = [ffmpeg.get_ffmpeg_exe(), "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    pictures = np.frombuffer(raw, np.uint8).reshape(20, 24, 80, 3)
    assert places(pictures) == list(range(20))


@pytest.mark.rendering
def test_a_robot_is_filmed(tmp_path):
    class IntoTheObstacle:
        window_size = 1

        def act(self, X, *, random_state=None):
            return np.tile([0.0, 0.01], (len(X), 1))

    size = {"width": 96, "height": 64, "camera": "agent"}
    path = tmp_path / "robot.gif"
    outcome = record_episode(
        IntoTheObstacle(), "skvdd/Avoiding-v0", path, random_state=0, fps=10, env_kwargs=size
    )
    assert not outcome["success"]
    pictures, _ = read_gif(path)
    assert pictures.shape[1:] == (64, 96, 3)
    assert len(pictures) == 1 + -(-outcome["n_steps"] // 3)
    assert pictures.std() > 10.0  # something is to be seen
    assert np.abs(pictures[0].astype(int) - pictures[-1]).max() > 50  # and it moves


# ---------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_an_older_film_survives_a_failure(tmp_path, monkeypatch, suffix):
    if suffix == ".mp4":
        pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / f"walk{suffix}"
    path.write_bytes(b"older")

    def fail(path, frames, fps):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(skvdd.recording, f"_write_{suffix[1:]}", fail)
    with refuses("no space left", OSError):
        record_episode(Forwards(), "test/Walk-v0", path)
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def test_without_ffmpeg_an_mp4_is_refused_at_once(tmp_path, monkeypatch):
    def find_nothing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(skvdd.recording, "import_module", find_nothing)
    with refuses(
        "An .mp4 is written by imageio-ffmpeg, which is not installed: pip install "
        "imageio-ffmpeg, or let the path end in .gif.",
        ModuleNotFoundError,
    ):
        record_episode(Forwards(), "test/Walk-v0", tmp_path / "walk.mp4")


def test_paths_that_cannot_be_written_are_refused(tmp_path):
    with refuses("path must end in .gif or .mp4, got 'walk.avi'."):
        record_episode(Forwards(), "test/Walk-v0", "walk.avi")
    path = str(tmp_path / "nowhere" / "walk.gif")
    with refuses(f"path must be in a folder that exists, got {path!r}."):
        record_episode(Forwards(), "test/Walk-v0", path)


@pytest.mark.parametrize("fps", [0, -1.0])
def test_a_rate_must_be_positive(tmp_path, fps):
    with refuses(f"fps must be None or above 0, got {fps!r}."):
        record_episode(Forwards(), "test/Walk-v0", tmp_path / "walk.gif", fps=fps)


def test_an_environment_without_pictures_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(Walk.metadata, "render_modes", [])
    with (
        pytest.warns(UserWarning, match="render_modes"),  # Gymnasium's own
        refuses(
            "env_id must name an environment with the render mode 'rgb_array', got test/Walk-v0 "
            "with []."
        ),
    ):
        record_episode(Forwards(), "test/Walk-v0", tmp_path / "walk.gif")
    assert list(tmp_path.iterdir()) == []
