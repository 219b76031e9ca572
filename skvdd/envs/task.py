"""What all robot tasks share: one model per task, D3IL's step order, rendering."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cache
from typing import Any, ClassVar

import gymnasium
import mujoco
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import ArrayLike

from skvdd.envs.panda import Array, Panda, build_model, clip_to_reach

CAMERAS = ("view", "agent")


class RobotTask(gymnasium.Env[Array, Array], ABC):
    """A task of the Panda at its table, steered by changes of the tool's set-point.

    A task says what stands on the table (`objects`), where the arm starts
    (`start_joints`), what is observed, and how success and behaviour are judged; this class
    owns the order of events. It is D3IL's: the observation and the verdict that `step`
    returns belong to the state *before* the control window, paired with the set-point that
    is active *during* it.

    Parameters
    ----------
    render_mode : {"rgb_array"} or None, default=None
        Whether `render` returns pictures.
    width, height : int, default=480
        Size of a picture in pixels, at most 1024.
    camera : {"view", "agent"}, default="view"
        ``"view"`` shows arm and table from the side, ``"agent"`` is D3IL's camera above the
        table.

    Attributes
    ----------
    n_behaviors : int
        Number of behaviours that solve the task.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 29}

    n_behaviors: ClassVar[int]
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
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}.")
        if camera not in CAMERAS:
            raise ValueError(f"camera must be one of {CAMERAS}, got {camera!r}.")
        self.render_mode = render_mode
        self._size = (height, width)
        self._camera = camera
        self._renderer: mujoco.Renderer | None = None
        self.data = mujoco.MjData(self.model())
        self._arm = Panda(self.model(), self.data)
        self._set_point: Array | None = None
        self.action_space = Box(-self.action_bound, self.action_bound, (self.n_axes,), np.float64)

    # -- what a task defines ------------------------------------------------------------

    @classmethod
    @abstractmethod
    def objects(cls) -> str:
        """Return the task's own bodies as MJCF."""

    @abstractmethod
    def _begin(self) -> None:
        """Place the objects with ``self.np_random`` and forget the last episode."""

    @abstractmethod
    def _observe(self) -> Array:
        """Return the observation: the new set-point and the state before the window."""

    @abstractmethod
    def _is_over(self) -> bool:
        """Judge the state before the window."""

    @abstractmethod
    def _keep_books(self) -> None:
        """Look at the state after the window: behaviour, and for later tasks success."""

    @abstractmethod
    def _info(self) -> dict[str, Any]:
        """Return ``{"success": bool, "behavior": int or str}``."""

    # -- what they share ----------------------------------------------------------------

    @classmethod
    @cache
    def model(cls) -> mujoco.MjModel:
        """Return the model that all environments of this task share."""
        return build_model(cls.objects())

    @property
    def tcp_position(self) -> Array:
        """Measured position of the tool centre point after the last window, m, (3,)."""
        return self._arm.tcp_position

    @property
    def set_point(self) -> Array:
        """Desired position of the tool centre point, m, (3,)."""
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
            Not used.

        Returns
        -------
        observation : ndarray
            First observation; the set-point equals the measured position.
        info : dict
            ``success`` and ``behavior``.
        """
        super().reset(seed=seed)
        self._arm.reset(self.start_joints)
        self._set_point = self._arm.tcp_position
        self._begin()
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
            1 at the end of a successful episode, otherwise 0.
        terminated, truncated : bool
            Whether the episode is over; time limits are Gymnasium's ``TimeLimit``.
        info : dict
            ``success`` and ``behavior``.
        """
        wanted = self.set_point
        wanted[: self.n_axes] += self._check_action(action)
        self._set_point = clip_to_reach(wanted)
        observation = self._observe()
        terminated = self._is_over()
        self._arm.move(self._set_point, self.n_ticks)
        self._keep_books()
        info = self._info()
        return observation, float(terminated and info["success"]), terminated, False, info

    def _check_action(self, action: ArrayLike) -> Array:
        """Return the action as an array, or say what is wrong with it."""
        array = np.asarray(action, dtype=np.float64)
        if array.shape != (self.n_axes,):
            raise ValueError(
                f"action must have shape ({self.n_axes},): the change of the set-point in metres; "
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
