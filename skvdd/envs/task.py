"""What all tasks share: one model per task, contexts, pictures; and D3IL's step order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cache
from numbers import Integral
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import ArrayLike

from skvdd.envs._mujoco import mujoco
from skvdd.envs.panda import Array, Panda, build_model, clip_to_reach

CAMERAS = ("view", "agent")
# Lists of contexts; a list's place is part of the seed of its draws.
SPLITS = ("train", "test", "validation")
MAX_PIXELS = 1024  # of a side of a picture, the size of MuJoCo's frame buffer here


class Task(gymnasium.Env[Array, Array], ABC):
    """A simulated task whose episodes start in a context.

    A task says what it simulates (`model`), how an episode starts (`draw_context`, `_begin`), what
    is observed, and how success and behavior are judged.

    Parameters
    ----------
    render_mode : {"rgb_array"} or None, default=None
        Whether `render` returns pictures.
    width, height : int, default=480
        Size of a picture in pixels, at most 1024.
    camera : {"view", "agent"}, default="view"
        ``"view"`` shows the scene from the side, ``"agent"`` is the camera of the original task.

    Attributes
    ----------
    context : ndarray of shape (context_size,)
        What was drawn or asked for at the last reset.

    Examples
    --------
    What every task here has in common:

    >>> import gymnasium
    >>> import numpy as np
    >>> import skvdd.envs
    >>> from skvdd.envs.task import Task
    >>> env = gymnasium.make("skvdd/Pushing-v0")
    >>> task = env.unwrapped
    >>> isinstance(task, Task)
    True
    >>> observation, info = env.reset(options={"context": 3})
    >>> np.array_equal(task.context, task.listed_context(3))
    True
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 29}

    context_size: ClassVar[int] = 0  # numbers that say how an episode starts

    def __init__(
        self,
        render_mode: str | None = None,
        width: int = 480,
        height: int = 480,
        camera: str = "view",
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}.")
        if camera not in CAMERAS:
            raise ValueError(f"camera must be one of {CAMERAS}, got {camera!r}.")
        for name, size in (("width", width), ("height", height)):
            if not (isinstance(size, Integral) and 1 <= size <= MAX_PIXELS):
                raise ValueError(
                    f"{name} must be an integer from 1 to {MAX_PIXELS} pixels, got {size!r}."
                )
        self.render_mode = render_mode
        self._size = (height, width)
        self._camera = camera
        self._renderer: mujoco.Renderer | None = None
        self._context: Array = np.zeros(0)
        self._success = False
        self.data = mujoco.MjData(self.model())

    # -- what a task defines ------------------------------------------------------------

    @classmethod
    @abstractmethod
    def model(cls) -> mujoco.MjModel:
        """Return the model that all environments of this task share."""

    @classmethod
    def draw_context(cls, rng: np.random.Generator) -> Array:
        """Draw how an episode starts.

        Parameters
        ----------
        rng : numpy.random.Generator
            Source of the draw.

        Returns
        -------
        ndarray of shape (context_size,)
            The context.
        """
        return np.zeros(0)

    @abstractmethod
    def _begin(self, context: Array) -> None:
        """Place the objects and forget the last episode."""

    @abstractmethod
    def _observe(self) -> Array:
        """Return the observation."""

    @abstractmethod
    def _info(self) -> dict[str, Any]:
        """Return ``{"success": bool, "behavior": int, str or None}``.

        The behavior of a success that counts as none of the task's is None.
        """

    # -- contexts -----------------------------------------------------------------------

    @classmethod
    def listed_context(cls, index: int, split: str = "test") -> Array:
        """Return a context of one of the three lists, the same for everybody.

        Parameters
        ----------
        index : int
            Its number, from zero; the lists have no end.
        split : {"train", "validation", "test"}, default="test"
            Which list. Demonstrations start in contexts of the train list; models and settings
            are chosen in those of the validation list; reports are of the test list.

        Returns
        -------
        ndarray of shape (context_size,)
            Drawn with ``numpy.random.default_rng([0, index])``; test: ``[1, index]``, validation:
            ``[2, index]``. So the lists have no context in common. (Context 0 of each is also what
            a reset with the seed 0, 1 or 2 draws.)
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {split!r}.")
        if isinstance(index, bool) or not (isinstance(index, Integral) and index >= 0):
            raise ValueError(f"context must be an integer of at least 0, got {index!r}.")
        return cls.draw_context(np.random.default_rng([SPLITS.index(split), int(index)]))

    @property
    def context(self) -> Array:
        """How the episode started, (context_size,)."""
        return self._context.copy()

    def _choose_context(self, options: dict[str, Any] | None) -> Array:
        """Return the context that the options of a reset name, or draw one."""
        options = dict(options or {})
        context, split = options.pop("context", None), options.pop("split", "test")
        if options:
            raise ValueError(f"options must be 'context' and 'split', got {sorted(options)}.")
        if context is None:
            return self.draw_context(self.np_random)
        if self.context_size == 0:
            raise ValueError(
                f"context cannot be chosen: every episode of {type(self).__name__} starts alike."
            )
        if np.ndim(context) == 0:
            return self.listed_context(context, split)
        chosen = np.array(context, dtype=np.float64)
        if chosen.shape != (self.context_size,) or not np.isfinite(chosen).all():
            raise ValueError(
                f"context must be the number of a listed one, or {self.context_size} finite "
                f"numbers as draw_context returns them; got {context!r}."
            )
        return chosen

    # -- checks and contacts ------------------------------------------------------------

    def _check_action(self, action: ArrayLike) -> Array:
        """Return the action as an array, or say what is wrong with it."""
        array = np.asarray(action, dtype=np.float64)
        wanted = self.action_space.shape
        if array.shape != wanted:
            raise ValueError(
                f"action must have shape {wanted}: the change of the set-point in meters; "
                f"got shape {array.shape}."
            )
        if not np.isfinite(array).all():
            raise ValueError(
                f"action must be finite, got {array.tolist()}. A policy that returns NaN or "
                "infinity has usually diverged in training."
            )
        return array

    def _touches(self, geom: int, others: Iterable[int]) -> bool:
        """Say whether MuJoCo has a contact between `geom` and one of the `others`."""
        if self.data.ncon == 0:
            return False
        pairs = {frozenset(pair) for pair in self.data.contact.geom.tolist()}
        return any(frozenset((geom, other)) in pairs for other in others)

    # -- pictures -----------------------------------------------------------------------

    def render(self) -> np.ndarray:
        """Return a picture of the scene.

        Returns
        -------
        ndarray of shape (height, width, 3)
            Red, green, blue, uint8.
        """
        if self.render_mode is None:
            raise ValueError(
                "render() needs render_mode='rgb_array', got render_mode=None. "
                "Pass it to gymnasium.make."
            )
        if self._renderer is None:
            self._renderer = _make_renderer(self.model(), *self._size)
        self._renderer.update_scene(self.data, self._camera)
        return self._renderer.render()

    def close(self) -> None:
        """Free the renderer; the environment can be closed more than once."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


class RobotTask(Task):
    """A task of the Panda at its table, steered by changes of the tool's set-point.

    A robot task says besides what stands on the table (`objects`) and where the arm starts
    (`start_joints`); this class owns the order of events. It is D3IL's: the observation and
    the verdict that `step` returns belong to the state *before* the control window, paired with
    the set-point that is active *during* it.

    Parameters
    ----------
    render_mode, width, height, camera : as in `Task`
        Of pictures.

    Examples
    --------
    A complete task of one's own is in :doc:`/extending/task`. This one has nothing on the table:

    >>> import numpy as np
    >>> from gymnasium.spaces import Box
    >>> from skvdd.envs import Avoiding
    >>> from skvdd.envs.task import RobotTask
    >>> class Reach(RobotTask):
    ...     start_joints = Avoiding.start_joints
    ...     observation_space = Box(-1.25, 1.25, (3,), np.float64)
    ...
    ...     @classmethod
    ...     def objects(cls):
    ...         return ""
    ...
    ...     def _begin(self, context):
    ...         pass
    ...
    ...     def _observe(self):
    ...         return self.set_point
    ...
    ...     def _keep_books(self):
    ...         self._success = bool(self.tcp_position[1] > -0.27)
    ...
    ...     def _info(self):
    ...         return {"success": self._success, "behavior": "straight" if self._success else None}
    >>> task = Reach()
    >>> observation, info = task.reset(seed=0)
    >>> while not info["success"]:
    ...     observation, reward, terminated, truncated, info = task.step([0.0, 0.005])
    >>> info["behavior"]
    'straight'
    """

    start_joints: ClassVar[tuple[float, ...]]  # rad
    n_ticks: ClassVar[int] = 35  # ms in one control step
    action_bound: ClassVar[float] = 0.01  # m, declared and not enforced
    n_axes: ClassVar[int] = 2  # axes of the set-point that the action moves

    def __init__(
        self,
        render_mode: str | None = None,
        width: int = 480,
        height: int = 480,
        camera: str = "view",
    ) -> None:
        super().__init__(render_mode, width, height, camera)
        self._arm = Panda(self.model(), self.data)
        self._set_point: Array | None = None
        self.action_space = Box(-self.action_bound, self.action_bound, (self.n_axes,), np.float64)

    # -- what a robot task defines ------------------------------------------------------

    @classmethod
    @abstractmethod
    def objects(cls) -> str:
        """Return the task's own bodies as MJCF."""

    @abstractmethod
    def _keep_books(self) -> None:
        """Look at the state after the window: behavior, and mostly success."""

    def _is_over(self) -> bool:
        """Judge the state before the window; success that the last window brought ends it."""
        return self._success

    def _within_reach(self, position: Array) -> Array:
        """Return the nearest set-point that the arm reaches, m, (3,)."""
        return clip_to_reach(position)

    # -- what they share ----------------------------------------------------------------

    @classmethod
    @cache
    def model(cls) -> mujoco.MjModel:
        """Return the model that all environments of this task share."""
        return build_model(cls.objects())

    @property
    def tcp_position(self) -> Array:
        """Measured position of the tool center point after the last window, m, (3,)."""
        return self._arm.tcp_position

    @property
    def set_point(self) -> Array:
        """Desired position of the tool center point, m, (3,)."""
        if self._set_point is None:
            raise gymnasium.error.ResetNeeded("Call reset() before step() and before set_point.")
        return self._set_point.copy()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode.

        Parameters
        ----------
        seed : int or None, default=None
            Seed of the task's own draws, as everywhere in Gymnasium.
        options : dict or None, default=None
            ``{"context": i}`` starts in the i-th context of the test list (`listed_context`),
            ``{"context": i, "split": "train"}`` in one of another list, ``{"context": array}`` in
            the context given. Without, one is drawn. A task that always starts alike takes
            none of them.

        Returns
        -------
        observation : ndarray
            First observation; the set-point equals the measured position.
        info : dict
            ``success`` and ``behavior``.
        """
        super().reset(seed=seed)
        self._context = self._choose_context(options)
        self._success = False
        self._arm.reset(self.start_joints)
        self._set_point = self._arm.tcp_position
        self._begin(self._context)
        return self._observe(), self._info()

    def step(self, action: ArrayLike) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Move the set-point, let one control window pass.

        Parameters
        ----------
        action : array-like of shape (n_axes,)
            Change of the set-point, m. Set-points out of reach are replaced by the nearest
            within reach, in the simulation and in the observation alike.

        Returns
        -------
        observation : ndarray
            New set-point, and the state measured before the window.
        reward : float
            1 when success comes, -1 when it is lost again, otherwise 0: the return is 1 if the
            last info reports success, otherwise 0.
        terminated, truncated : bool
            Whether the episode is over; time limits are Gymnasium's ``TimeLimit``.
        info : dict
            ``success`` and ``behavior``.
        """
        before = self._success
        wanted = self.set_point
        wanted[: self.n_axes] += self._check_action(action)
        self._set_point = self._within_reach(wanted)
        observation = self._observe()
        terminated = self._is_over()
        self._arm.move(self._set_point, self.n_ticks)
        self._keep_books()
        info = self._info()
        reward = float(info["success"]) - float(before)
        return observation, reward, terminated, False, info


def _make_renderer(model: mujoco.MjModel, height: int, width: int) -> mujoco.Renderer:
    """Create an off-screen renderer, or say what a machine without a display needs."""
    try:
        return mujoco.Renderer(model, height, width)
    except Exception as error:  # every OpenGL backend has exceptions of its own
        raise RuntimeError(
            f"MuJoCo could not open an off-screen renderer of {width} x {height} pixels. Without "
            "a display, set MUJOCO_GL=egl or MUJOCO_GL=osmesa before Python starts; on Debian "
            "egl needs the packages libegl1, libegl-mesa0 and libgl1-mesa-dri."
        ) from error
