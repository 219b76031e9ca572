"""Films of episodes, as GIF or MP4: `skvdd.evaluation.record_episode`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from numbers import Integral
from pathlib import Path
from typing import Any
from uuid import uuid4

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from skvdd.envs import EnvPool, TaskSpec, find_task
from skvdd.rollouts import (
    Driver,
    Policy,
    RandomState,
    Start,
    as_policy,
    check_goal,
    check_spaces,
    plan_rollouts,
    resolve_task,
)

Frame = NDArray[np.uint8]

SPLITS = ("train", "validation", "test")
WRITERS = (".gif", ".mp4")
DEFAULT_RATE = 30  # pictures per second of an environment that does not tell its own


def record_episode(
    policy: Policy,
    env_id: str,
    path: str | os.PathLike[str],
    *,
    context: int | tuple[str, int] | ArrayLike | None = None,
    goal: ArrayLike | None = None,
    random_state: RandomState = None,
    fps: float | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    max_episode_steps: int | None = None,
    clip_actions: bool = False,
) -> dict[str, Any]:
    """Play one episode and write it as a film, in real time.

    It is the episode that `evaluate_policy` plays as its first one with the same
    ``random_state``. The file appears complete or not at all.

    Parameters
    ----------
    policy : fitted policy or Pipeline
        As in `evaluate_policy`.
    env_id : str
        Name of a registered task, or id of a Gymnasium environment, that renders ``"rgb_array"``.
    path : path-like
        File to write, ``.gif`` or ``.mp4``; the latter needs the package imageio-ffmpeg.
    context : int, pair or array-like of shape (k,), default=None
        Initial state: its number in the test list, its list and number, as ``("validation", 3)``,
        or the state itself. None is the first of the test list in tasks that have contexts;
        elsewhere the episode draws its own.
    goal : array-like of shape (g,), default=None
        Goal of a policy with ``goal_dim=g``; None takes the one that the environment tells.
    random_state : int, RandomState instance or None, default=None
        Seeds environment and noise.
    fps : float, default=None
        Pictures per second, at most; steps are left out evenly to get there. None shows every
        step. The speed is that of the environment (``metadata["render_fps"]``) in any case.
    env_kwargs : dict, default=None
        Arguments of the environment; those of skvdd take ``width``, ``height`` and ``camera``.
    max_episode_steps, clip_actions : as in `evaluate_policy`
        When the episode is cut, and whether actions are.

    Returns
    -------
    outcome : dict
        What the infos said, ``success`` and ``behavior`` by the first score of the task, and
        ``n_steps``.

    Raises
    ------
    ValueError
        If an argument breaks a rule, before anything is played.
    ModuleNotFoundError
        If the path ends in ``.mp4`` and imageio-ffmpeg is not installed.

    Examples
    --------
    An environment of one's own, a light that goes on after three steps:

    >>> import tempfile
    >>> import gymnasium
    >>> import numpy as np
    >>> from skvdd.evaluation import record_episode
    >>> class Light(gymnasium.Env):
    ...     metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    ...     observation_space = action_space = gymnasium.spaces.Box(0.0, 9.0, (1,), np.float64)
    ...
    ...     def __init__(self, render_mode=None):
    ...         self.render_mode = render_mode
    ...
    ...     def reset(self, *, seed=None, options=None):
    ...         self.level = np.zeros(1)
    ...         return self.level, {}
    ...
    ...     def step(self, action):
    ...         self.level = self.level + action
    ...         over = bool(self.level[0] >= 3.0)
    ...         return self.level, float(over), over, False, {"success": over}
    ...
    ...     def render(self):
    ...         return np.full((32, 32, 3), 80 * int(self.level[0]))
    >>> gymnasium.register("Light-v0", Light)
    >>> class Brighter:
    ...     window_size = 1
    ...
    ...     def act(self, X, *, random_state=None):
    ...         return np.ones((len(X), 1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     record_episode(Brighter(), "Light-v0", f"{folder}/light.gif")
    {'success': True, 'behavior': None, 'n_steps': 3}
    """
    policy = as_policy(policy)
    goal_values = check_goal(policy, goal)
    task = resolve_task(env_id)
    start = _choose_start(context, task)
    target = _check_path(path)
    if fps is not None and not fps > 0:
        raise ValueError(f"fps must be None or above 0, got {fps!r}.")
    (rollout,) = plan_rollouts(1, random_state, None if start is None else [start])
    options = {**(env_kwargs or {}), "render_mode": "rgb_array"}
    cameras: list[_Camera] = []

    def film(env: gymnasium.Env[Any, Any]) -> _Camera:
        _check_renders(env, task.env_id)
        cameras.append(_Camera(env, fps))
        return cameras[-1]

    with EnvPool(task.env_id, 1, wrap=film, **options) as pool:
        check_spaces(pool)
        driver = Driver(
            policy,
            pool,
            task,
            goal=goal_values,
            max_episode_steps=max_episode_steps,
            clip_actions=clip_actions,
        )
        for _ in driver.run([rollout]):
            pass
    (camera,) = cameras
    _write(target, camera.frames, camera.rate)
    success, behavior = rollout.outcomes[task.score.name]
    return {"success": success, "behavior": behavior, "n_steps": len(rollout.actions)}


class _Camera(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Takes a picture at the reset and after every so many steps, and of the end."""

    def __init__(self, env: gymnasium.Env[Any, Any], fps: float | None) -> None:
        super().__init__(env)
        rate = float(env.metadata.get("render_fps", DEFAULT_RATE))
        self.every = 1 if fps is None else max(1, int(np.ceil(rate / fps - 1e-9)))
        self.rate = rate / self.every  # pictures per second
        self.n_steps = 0
        self.frames: list[Frame] = []

    def reset(self, **options: Any) -> Any:
        result = super().reset(**options)
        self._take()
        return result

    def step(self, action: Any) -> Any:
        result = super().step(action)
        self.n_steps += 1
        over = result[2] or result[3]
        if over or self.n_steps % self.every == 0:
            self._take()
        return result

    def _take(self) -> None:
        self.frames.append(np.array(self.render(), dtype=np.uint8))


# ---------------------------------------------------------------------------------------
# Checks before any work
# ---------------------------------------------------------------------------------------


def _check_path(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if target.suffix.lower() not in WRITERS:
        raise ValueError(f"path must end in {' or '.join(WRITERS)}, got {os.fspath(path)!r}.")
    if not target.parent.is_dir():
        raise ValueError(f"path must be in a folder that exists, got {os.fspath(path)!r}.")
    if target.suffix.lower() == ".mp4":
        _import_ffmpeg()
    return target


def _choose_start(context: Any, task: TaskSpec) -> Start | None:
    """Return where the episode starts; None where the environment draws it."""
    if context is None:
        return None if task.n_contexts is None else Start(0, {"context": 0})
    if task.n_contexts is None and find_task(task.env_id) is not None:
        raise ValueError(
            f"context must be None for {task.name}, whose episodes all start alike, got "
            f"{context!r}."
        )
    split: str | None = None
    if isinstance(context, tuple) and len(context) == 2 and isinstance(context[0], str):
        split, context = context
        if split not in SPLITS:
            raise ValueError(f"context must be of one of the lists {SPLITS}, got {split!r}.")
    if np.ndim(context) == 1 and split is None:
        return Start(0, {"context": np.asarray(context, dtype=float)})
    if not _is_number(context) or context < 0:
        raise ValueError(
            "context must be a number from 0, a list and a number in it, or an initial state; got "
            f"{context!r}."
        )
    return Start(int(context), {"context": int(context), **({"split": split} if split else {})})


def _is_number(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check_renders(env: gymnasium.Env[Any, Any], env_id: str) -> None:
    modes = env.metadata.get("render_modes", [])
    if "rgb_array" not in modes:
        raise ValueError(
            "env_id must name an environment with the render mode 'rgb_array', got "
            f"{env_id} with {modes}."
        )


def _import_ffmpeg() -> Any:
    try:
        return import_module("imageio_ffmpeg")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "An .mp4 is written by imageio-ffmpeg, which is not installed: "
            "pip install imageio-ffmpeg, or let the path end in .gif."
        ) from error


# ---------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------


def _write(target: Path, frames: Sequence[Frame], fps: float) -> None:
    """Write beside the target, then rename: a file of that name survives any failure."""
    temporary = target.with_name(f".{uuid4().hex}{target.suffix.lower()}")
    write = _write_gif if target.suffix.lower() == ".gif" else _write_mp4
    try:
        write(temporary, frames, fps)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _write_gif(path: Path, frames: Sequence[Frame], fps: float) -> None:
    from PIL import Image

    # One palette for all: with one for each picture, what stands still would flicker.
    first = Image.fromarray(frames[0]).quantize(256, dither=Image.Dither.NONE)
    pictures = [
        Image.fromarray(frame).quantize(palette=first, dither=Image.Dither.NONE) for frame in frames
    ]
    # A GIF counts hundredths of a second: round when each picture begins, not how long it stays.
    begins = np.rint(100.0 * np.arange(len(frames) + 1) / fps)
    durations = (10.0 * np.diff(begins)).astype(int).tolist()
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=False
    )


def _write_mp4(path: Path, frames: Sequence[Frame], fps: float) -> None:
    height, width = (size - size % 2 for size in frames[0].shape[:2])  # the codec wants even sizes
    writer = _import_ffmpeg().write_frames(
        str(path), (width, height), fps=fps, quality=7, macro_block_size=2, ffmpeg_log_level="error"
    )
    writer.send(None)
    try:
        for frame in frames:
            writer.send(np.ascontiguousarray(frame[:height, :width]))
    finally:
        writer.close()
