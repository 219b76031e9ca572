"""Aligning: bring a hollow box to a pose, by pushing it from the inside or from the outside."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium.spaces import Box

from skvdd.envs._mujoco import mujoco
from skvdd.envs.blocks import Block
from skvdd.envs.panda import Array
from skvdd.envs.spec import Score, TaskSpec, register_task
from skvdd.envs.task import RobotTask

INSIDE, OUTSIDE = 0, 1
BEHAVIORS = (INSIDE, OUTSIDE)

# The tray: a floor plate and four walls, in the frame whose origin is the center of the plate.
FLOOR_HALF_SIZE = (0.05, 0.05, 0.01)  # m
FLOOR_MASS = 1.0  # kg
FLOOR_FRICTION = 0.3  # sliding, against whatever touches the plate
WALL_DISTANCE = 0.05  # m, of the middle of a wall from the center
WALL_HALF_WIDTH = 0.05  # m
WALL_HALF_THICKNESS = 0.005  # m
WALL_HALF_HEIGHT = 0.045  # m
WALL_HEIGHT = 0.0485  # m, of the middle of a wall above the origin
WALL_MASS = 0.001  # kg
WALLS = ((1, 0, "0 0 1"), (0, 1, "0 1 0"), (-1, 0, "1 0 0"), (0, -1, "0 1 1"))  # normal, color
WOOD = "0.8 0.655 0.45"

MAX_DISTANCE = 0.018  # m, between the origins of tray and target in a success
MAX_ROTATION = 0.048 * math.pi  # rad, between their orientations
INSIDE_DISTANCE = 0.051  # m in the plane, of the tool from the origin of a tray it is inside of

# Where tray and target may be: x and y in m, yaw in rad.
START_MIN = ((0.40, -0.25, -math.pi / 2), (0.40, 0.20, -math.pi / 2))
START_MAX = ((0.60, -0.10, math.pi / 2), (0.60, 0.35, math.pi / 2))

MIN_HEIGHT, MAX_HEIGHT = 0.11, 0.45  # m, of the set-point; the rod's tip is 0.12 m below it


def behavior_name(behavior: int) -> str:
    """Return the name of a behavior.

    Parameters
    ----------
    behavior : int
        One of `BEHAVIORS`.

    Returns
    -------
    str
        ``"inside"`` or ``"outside"``.

    Examples
    --------
    >>> from skvdd.envs.aligning import BEHAVIORS, behavior_name
    >>> [behavior_name(behavior) for behavior in BEHAVIORS]
    ['inside', 'outside']
    """
    if behavior not in BEHAVIORS:
        raise ValueError(f"behavior must be one of {BEHAVIORS}, got {behavior!r}.")
    return ("inside", "outside")[behavior]


def _box(floor: str, wall: str, wall_alpha: float) -> str:
    """Return the geometries of a box without a lid, as MJCF; `floor`, `wall`: attributes."""
    x, y, z = FLOOR_HALF_SIZE
    geoms = [f'<geom type="box" size="{x} {y} {z}" {floor}/>']
    for nx, ny, color in WALLS:
        half_x, half_y = np.where([nx, ny], WALL_HALF_THICKNESS, WALL_HALF_WIDTH).tolist()
        geoms.append(
            f'<geom type="box" pos="{nx * WALL_DISTANCE} {ny * WALL_DISTANCE} {WALL_HEIGHT}" '
            f'size="{half_x} {half_y} {WALL_HALF_HEIGHT}" rgba="{color} {wall_alpha}" {wall}/>'
        )
    return "".join(geoms)


class Aligning(RobotTask):
    r"""Bring a tray to a wanted position and orientation with a rod, inside or outside of it.

    A Panda holds a vertical rod above the table. The tray, a box without a lid, has to be moved
    onto its translucent image. The rod can be lowered into the tray to push its walls from
    within, or beside it to push them from without: two ways to solve the task. The task, its
    controller and its metrics are those of D3IL [1]_.

    **Action**, one every 35 ms (28.6 Hz):

    === ============================================= ======== ======= =====
    No. meaning                                       minimum  maximum unit
    === ============================================= ======== ======= =====
    0   change of the desired x (away from the base)  -0.01    0.01    m
    1   change of the desired y (toward the target)   -0.01    0.01    m
    2   change of the desired height                  -0.01    0.01    m
    === ============================================= ======== ======= =====

    The declared bounds are not enforced, as in D3IL. The desired height is kept between 0.11 m
    and 0.45 m. At its minimum the tip of the rod is 9 mm above the table, so it cannot be driven
    through it, but would be 11 mm below the top of the tray's floor, on which it then presses.
    The desired position in the plane is kept within the reach of the arm at that height (x ≥
    0.25 m, and a radius around the base of 0.78 m to 0.80 m up to the height of the start). A
    set-point beyond is replaced by the nearest one within, which is what the robot pursues, what
    the observation shows and what the next action adds to. An action that is not finite raises
    `ValueError`. The tool points down.

    **Observation**, float64:

    ======== =================================================================== =====
    No.      meaning                                                             unit
    ======== =================================================================== =====
    0 to 2   desired x, y and height, including the action just given            m
    3 to 5   x, y and height of the tool center point before the action took     m
             effect
    6 to 8   x, y and height of the tray's origin before the action took effect  m
    9 to 12  quaternion of the tray (w, x, y, z)                                 1
    13 to 15 x, y and height of the target's origin                              m
    16 to 19 quaternion of the target (w, x, y, z)                               1
    ======== =================================================================== =====

    The target lies at height 0, the tray at rest at -0.009 m. A quaternion starts as cosine and
    sine of half the yaw, and its sign is not made canonical afterwards. At reset the desired
    position equals the measured one. The measured position after the last window is
    `tcp_position`.

    **Success**: after a control step the origins of tray and target are at most 0.018 m apart, in
    three dimensions (0.0155 m in the plane), and their orientations at most 0.048 π (8.64°). The
    walls are colored, so a quarter turn makes a difference. The episode ends one step later, as
    in D3IL, and success is judged again then. Nothing is a failure; a tray that was pushed off
    the table is lost.

    **Reward**: 1 when success comes, -1 when it is lost again: the return is 1 if the last step
    reports success, otherwise 0.

    **Behavior**: ``info["behavior"]`` is 0 (inside) while the tool center point is less than
    0.051 m from the tray's origin in the plane, and 1 (outside) otherwise. It tells of the
    current state only, and so also of failures. The height does not matter, as in D3IL.
    `behavior_name` names a behavior, `BEHAVIORS` lists them.

    **Tray**: inner edge 0.09 m, outer edge 0.11 m, walls up to 0.0845 m above height 0. The floor
    weighs 1 kg and slides with friction 0.3, the walls are light and have friction 1. The walls
    at positive x, positive y, negative x and negative y are blue, green, red and cyan.

    **Start**: the tool at (0.525, -0.3488, 0.2516) m, at rest, the tip of the rod above the
    walls. The context holds x, y and yaw of the tray, then of the target, drawn independently and
    uniformly:

    ====== ============ ============== ============
    object x in m       y in m         yaw in rad
    ====== ============ ============== ============
    tray   0.40 to 0.60 -0.25 to -0.10 -π/2 to π/2
    target 0.40 to 0.60 0.20 to 0.35   -π/2 to π/2
    ====== ============ ============== ============

    The tray is put 9 mm above the table and falls to it in the first control step.

    **Episode end**: success, or 400 steps (``TimeLimit``).

    Parameters
    ----------
    render_mode : {"rgb_array"} or None, default=None
        Whether `render` returns pictures.
    width, height : int, default=480
        Size of a picture in pixels, at most 1024.
    camera : {"view", "agent"}, default="view"
        Which camera `render` uses.

    Notes
    -----
    Version history:

    - v0: first version.

    References
    ----------
    .. [1] X. Jia et al., "Towards Diverse Behaviors: A Benchmark for Imitation Learning with
       Human Demonstrations", ICLR 2024.

    Examples
    --------
    >>> import gymnasium
    >>> import skvdd.envs
    >>> env = gymnasium.make("skvdd/Aligning-v0")
    >>> observation, info = env.reset(options={"context": [0.5, -0.2, 0.0, 0.45, 0.3, 1.0]})
    >>> observation[6:13].round(4).tolist()
    [0.5, -0.2, 0.0, 1.0, 0.0, 0.0, 0.0]
    >>> observation[13:].round(4).tolist()
    [0.45, 0.3, 0.0, 0.8776, 0.0, 0.0, 0.4794]
    >>> info
    {'success': False, 'behavior': 1}
    >>> env.close()
    """

    n_axes = 3
    context_size = 6
    start_joints = (
        -0.39187003, 0.32362801, -0.2130371, -1.84013485, 0.08071491, 2.15542966, 0.14662977,
    )  # fmt: skip

    def __init__(
        self,
        render_mode: str | None = None,
        width: int = 480,
        height: int = 480,
        camera: str = "view",
    ) -> None:
        super().__init__(render_mode, width, height, camera)
        # No posture of the arm puts the tool farther than 1.34 m from the base; nothing bounds
        # where a tray falls that has left the table, nor where a given context puts a target.
        # MuJoCo keeps quaternions normal, to the last bits.
        free_pose = [np.inf] * 3 + [1.0 + 1e-9] * 4
        high = np.array([1.34] * 6 + free_pose * 2)
        self.observation_space = Box(-high, high, dtype=np.float64)
        self._tray = Block(self.model(), self.data, "tray")
        target = self.model().body("target").mocapid[0]
        self._target_position = self.data.mocap_pos[target]
        self._target_quaternion = self.data.mocap_quat[target]

    @classmethod
    def objects(cls) -> str:
        """Return the tray and its target as MJCF."""
        immaterial = 'contype="0" conaffinity="0"'
        floor = f'mass="{FLOOR_MASS}" friction="{FLOOR_FRICTION} 0.001 0.0001" priority="1"'
        tray = _box(f'{floor} rgba="{WOOD} 1"', f'mass="{WALL_MASS}"', wall_alpha=1.0)
        target = _box(f'{immaterial} rgba="{WOOD} 0.3"', immaterial, wall_alpha=0.5)
        return (
            f'<body name="tray"><freejoint name="tray"/>{tray}</body>'
            f'<body name="target" mocap="true">{target}</body>'
        )

    @classmethod
    def draw_context(cls, rng: np.random.Generator) -> Array:
        """Draw x, y (m) and yaw (rad) of the tray, then of the target.

        Parameters
        ----------
        rng : numpy.random.Generator
            Source of the draw.

        Returns
        -------
        ndarray of shape (6,)
            The context.
        """
        return rng.uniform(START_MIN, START_MAX).ravel()

    def _begin(self, context: Array) -> None:
        x, y, yaw = context[:3].tolist()
        self._tray.place(x, y, 0.0, yaw)
        x, y, yaw = context[3:].tolist()
        self._target_position[:] = x, y, 0.0
        self._target_quaternion[:] = math.cos(yaw / 2.0), 0.0, 0.0, math.sin(yaw / 2.0)
        mujoco.mj_forward(self.model(), self.data)

    def _within_reach(self, position: Array) -> Array:
        x, y, z = position.tolist()
        return super()._within_reach(np.array([x, y, min(max(z, MIN_HEIGHT), MAX_HEIGHT)]))

    def _observe(self) -> Array:
        return np.concatenate(
            [
                self.set_point,
                self.tcp_position,
                self._tray.position,
                self._tray.quaternion,
                self._target_position,
                self._target_quaternion,
            ]
        )

    def _keep_books(self) -> None:
        distance = math.dist(self._tray.position, self._target_position)
        overlap = abs(float(self._tray.quaternion @ self._target_quaternion))
        rotation = 2.0 * math.acos(min(overlap, 1.0))
        self._success = distance <= MAX_DISTANCE and rotation <= MAX_ROTATION

    def _info(self) -> dict[str, Any]:
        is_inside = math.dist(self.tcp_position[:2], self._tray.position[:2]) < INSIDE_DISTANCE
        return {"success": self._success, "behavior": INSIDE if is_inside else OUTSIDE}


def selection(evaluation: Any) -> float:
    """Select as D3IL does here: the mean of success rate and entropy."""
    return float(0.5 * (evaluation.success_rate + evaluation.entropy_d3il))


_POSE = ("x", "y", "z", "qw", "qx", "qy", "qz")
TASK = register_task(
    TaskSpec(
        name="aligning",
        env_id="skvdd/Aligning-v0",
        entry_point="skvdd.envs.aligning:Aligning",
        time_limit=400,
        scores=(Score(behaviors={behavior: behavior_name(behavior) for behavior in BEHAVIORS}),),
        n_contexts=60,
        selection=selection,
        demonstrators={"aligning": "skvdd.datasets.experts.aligning:DEMONSTRATOR"},
        features="skvdd.datasets.features:aligning_features",
        states=(
            *(f"desired {axis}" for axis in "xyz"),
            *(f"measured {axis}" for axis in "xyz"),
            *(f"tray {name}" for name in _POSE),
            *(f"target {name}" for name in _POSE),
        ),
        actions=tuple(f"change of desired {axis}" for axis in "xyz"),
        metadata={"units": "m", "control_period": 0.035},
    )
)
