"""Blocks that a robot pushes about: their MJCF, and where they are."""

from __future__ import annotations

import math

import numpy as np

from skvdd.envs._mujoco import mujoco
from skvdd.envs.panda import Array

TANGENT_LIMIT = 100.0


def cube(name: str, half_size: float, mass: float, rgba: str) -> str:
    """Return a cube that moves freely, as MJCF.

    Parameters
    ----------
    name : str
        Name of the body; its joint and geometry have the same.
    half_size, mass : float
        Half the length of an edge, m; mass, kg.
    rgba : str
        Color.
    """
    size = f"{half_size} {half_size} {half_size}"
    return (
        f'<body name="{name}"><freejoint name="{name}"/>'
        f'<geom name="{name}" type="box" size="{size}" mass="{mass}" rgba="{rgba}"/></body>'
    )


class Block:
    """One body with a free joint in a simulation.

    Parameters
    ----------
    model : mujoco.MjModel
        The model.
    data : mujoco.MjData
        The simulation.
    name : str
        Name of the body, and of its free joint.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, name: str) -> None:
        body = model.body(name).id
        joint = model.joint(name)
        self._pose = slice(joint.qposadr[0], joint.qposadr[0] + 7)
        self._velocity = slice(joint.dofadr[0], joint.dofadr[0] + 6)
        self._data = data
        self._position = data.xpos[body]
        self._quaternion = data.xquat[body]
        self._rotation = data.xmat[body]

    @property
    def position(self) -> Array:
        """Position of the center at the last tick, m, (3,)."""
        return self._position.copy()

    @property
    def quaternion(self) -> Array:
        """Orientation at the last tick, (w, x, y, z), without a canonical sign."""
        return self._quaternion.copy()

    @property
    def yaw(self) -> float:
        """Rotation about the vertical at the last tick, rad, in (-pi, pi], as D3IL reads it."""
        return math.atan2(0.0 - self._rotation[1], self._rotation[0])  # no -0.0

    @property
    def tan_yaw(self) -> float:
        """Tangent of the yaw, D3IL's coordinate of it, kept within ±`TANGENT_LIMIT`.

        It repeats after half a turn. Beyond the limit, within 0.6 degrees of a quarter turn, a
        few huge numbers would set the scale for all.
        """
        tangent = math.tan(self.yaw)
        return min(max(tangent, -TANGENT_LIMIT), TANGENT_LIMIT)

    def place(self, x: float, y: float, z: float, yaw: float) -> None:
        """Put the block somewhere, upright and at rest; `mujoco.mj_forward` makes it seen."""
        upright = math.cos(yaw / 2.0), 0.0, 0.0, math.sin(yaw / 2.0)
        self._data.qpos[self._pose] = x, y, z, *upright
        self._data.qvel[self._velocity] = np.zeros(6)
