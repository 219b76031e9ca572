"""Pushing: bring two cubes to two targets, in either assignment and order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium.spaces import Box

from skvdd.envs._mujoco import mujoco
from skvdd.envs.blocks import TANGENT_LIMIT, Block, cube
from skvdd.envs.panda import Array
from skvdd.envs.spec import Score, TaskSpec, register_task
from skvdd.envs.task import RobotTask

CUBE_HALF_SIZE = 0.03  # m
CUBE_MASS = 0.05  # kg
CUBE_HEIGHT = 0.011  # m, of the center of a cube at rest on the table

RED, GREEN = 0, 1
COLORS = ("red", "green")
CUBE_RGBA = ("1 0 0 1", "0 1 0 1")
TARGETS = ((0.42, 0.30, 0.0), (0.63, 0.30, 0.0))  # m, centers of the red and the green target
TARGET_RGBA = ("1 0 0 0.3", "0 1 0 0.3")
TARGET_RADIUS = 0.05  # m, a cube is in a target if their centers are no farther apart

# Where a cube may start: x and y in m, yaw in rad.
START_MIN = ((0.40, -0.15, -math.pi / 2), (0.55, -0.15, -math.pi / 2))
START_MAX = ((0.50, 0.00, math.pi / 2), (0.65, 0.00, math.pi / 2))

# A placement is a pair (cube, target); they are looked through in this order.
PLACEMENTS = ((RED, RED), (RED, GREEN), (GREEN, RED), (GREEN, GREEN))
# The placement that came first and the one that holds now, by behavior.
ORDERS = ((0, 3), (3, 0), (1, 2), (2, 1))
BEHAVIORS = tuple(range(len(ORDERS)))


def placements_of(behavior: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return which cube goes to which target, first and second.

    Parameters
    ----------
    behavior : int
        One of `BEHAVIORS`.

    Returns
    -------
    tuple of two tuples of two int
        The cube and the target of each placement, 0 for red and 1 for green.
    """
    if behavior not in BEHAVIORS:
        raise ValueError(f"behavior must be one of {BEHAVIORS}, got {behavior!r}.")
    first, second = ORDERS[behavior]
    return PLACEMENTS[first], PLACEMENTS[second]


def behavior_name(behavior: int) -> str:
    """Return the placements of a behavior, in their order.

    Parameters
    ----------
    behavior : int
        One of `BEHAVIORS`.

    Returns
    -------
    str
        Initials of cube and target, for both placements.

    Examples
    --------
    >>> from skvdd.envs.pushing import BEHAVIORS, behavior_name
    >>> [behavior_name(behavior) for behavior in BEHAVIORS]
    ['rr-gg', 'gg-rr', 'rg-gr', 'gr-rg']
    """
    return "-".join(
        COLORS[block][0] + COLORS[target][0] for block, target in placements_of(behavior)
    )


class Pushing(RobotTask):
    r"""Push a red and a green cube into a red and a green target, in any assignment.

    A Panda holds a vertical rod just above the table. Two cubes lie in front of it, two targets
    behind them. Each cube may go to either target and either cube may go first, which makes four
    ways to solve the task. The task, its controller and its metrics are those of D3IL [1]_.

    **Action**, one every 35 ms (28.6 Hz):

    === ============================================= ======== ======= =====
    No. meaning                                       minimum  maximum unit
    === ============================================= ======== ======= =====
    0   change of the desired x (away from the base)  -0.01    0.01    m
    1   change of the desired y (toward the targets)  -0.01    0.01    m
    === ============================================= ======== ======= =====

    The declared bounds are not enforced, as in D3IL. The desired position is kept within the
    reach of the arm (radius 0.798 m around the base, x ≥ 0.25 m): a set-point beyond it is
    replaced by the nearest one within, which is what the robot pursues, what the observation
    shows and what the next action adds to. An action that is not finite raises `ValueError`.
    The desired height stays that of the start, and the tool points down.

    **Observation**, float64:

    === ========================================================== =====
    No. meaning                                                    unit
    === ========================================================== =====
    0   desired x, including the action just given                 m
    1   desired y, including the action just given                 m
    2   x of the tool center point before the action took effect   m
    3   y of the tool center point before the action took effect   m
    4   x of the red cube's center before the action took effect   m
    5   y of the red cube's center                                 m
    6   tangent of the red cube's yaw                              1
    7   x of the green cube's center                               m
    8   y of the green cube's center                               m
    9   tangent of the green cube's yaw                            1
    === ========================================================== =====

    The tangents are D3IL's, which repeat after half a turn, but cut off at ±100, within 0.6
    degrees of a quarter turn. The targets do not move and are not observed. At reset the desired
    position equals the measured one. The measured position after the last window is
    `tcp_position`.

    **Success**: after a control step both cubes are in a target, each in another. A cube is in a
    target if their centers are at most 0.05 m apart, in three dimensions: the center of a cube at
    rest is 0.011 m above that of a target, which leaves 0.0488 m in the plane. The episode ends
    one step later, as in D3IL, and success is judged again then. Nothing is a failure; a cube
    that was pushed off the table is lost.

    **Reward**: 1 when success comes, -1 when it is lost again: the return is 1 if the last step
    reports success, otherwise 0.

    **Behavior**: ``info["behavior"]`` tells which cube went to which target, and what came first:

    ========= ========= ================ ================
    behavior  name      first placement  second placement
    ========= ========= ================ ================
    0         ``rr-gg`` red to red       green to green
    1         ``gg-rr`` green to green   red to red
    2         ``rg-gr`` red to green     green to red
    3         ``gr-rg`` green to red     red to green
    ========= ========= ================ ================

    After every control step the placements red to red, red to green, green to red and green to
    green are looked through in this order, and the first one that holds counts. The first
    placement of an episode is remembered for good, and passed over from then on. The behavior
    is that of the table while the second placement holds, otherwise None; so a success whose
    first placement was given up for another one has none. `behavior_name` writes a behavior
    down, `BEHAVIORS` lists them.

    **Targets**: their centers are (0.42, 0.30, 0) m for red and (0.63, 0.30, 0) m for green,
    squares of 0.1 m without substance. The cubes have edges of 0.06 m and weigh 0.05 kg.

    **Start**: the tool at (0.5249, -0.2797, 0.1224) m, at rest. The context holds x, y and yaw of
    the red cube, then of the green one, drawn independently and uniformly:

    ===== ============ ============== ============
    cube  x in m       y in m         yaw in rad
    ===== ============ ============== ============
    red   0.40 to 0.50 -0.15 to 0.00  -π/2 to π/2
    green 0.55 to 0.65 -0.15 to 0.00  -π/2 to π/2
    ===== ============ ============== ============

    The closest of them overlap by a few millimeters, as in D3IL; the contact drives them apart.

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

    - v0: first version. The cubes start at their height of rest, which in D3IL they reach
      within the first 0.1 s.

    References
    ----------
    .. [1] X. Jia et al., "Towards Diverse Behaviors: A Benchmark for Imitation Learning with
       Human Demonstrations", ICLR 2024.

    Examples
    --------
    >>> import gymnasium
    >>> import skvdd.envs
    >>> env = gymnasium.make("skvdd/Pushing-v0")
    >>> observation, info = env.reset(options={"context": [0.45, -0.1, 0.0, 0.6, -0.05, 0.0]})
    >>> observation[4:].round(4).tolist()
    [0.45, -0.1, 0.0, 0.6, -0.05, 0.0]
    >>> info
    {'success': False, 'behavior': None}
    >>> env.close()
    """

    context_size = 6
    start_joints = (
        -0.35640868, 0.42944545, -0.1350106, -2.05465189, 0.09357822, 2.48071794, 0.23250676,
    )  # fmt: skip

    def __init__(
        self,
        render_mode: str | None = None,
        width: int = 480,
        height: int = 480,
        camera: str = "view",
    ) -> None:
        super().__init__(render_mode, width, height, camera)
        # No posture of the arm puts the tool farther than 1.25 m from the base; nothing bounds
        # where a cube falls that has left the table.
        high = np.array([1.25] * 4 + [np.inf, np.inf, TANGENT_LIMIT] * 2)
        self.observation_space = Box(-high, high, dtype=np.float64)
        self._cubes = [Block(self.model(), self.data, color) for color in COLORS]

    @classmethod
    def objects(cls) -> str:
        """Return cubes and targets as MJCF."""
        cubes = [
            cube(color, CUBE_HALF_SIZE, CUBE_MASS, rgba)
            for color, rgba in zip(COLORS, CUBE_RGBA, strict=True)
        ]
        targets = [
            f'<geom name="{color} target" type="box" pos="{x} {y} {z}" size="0.05 0.05 0.04" '
            f'rgba="{rgba}" contype="0" conaffinity="0"/>'
            for color, (x, y, z), rgba in zip(COLORS, TARGETS, TARGET_RGBA, strict=True)
        ]
        return "".join(cubes + targets)

    @classmethod
    def draw_context(cls, rng: np.random.Generator) -> Array:
        """Draw x, y (m) and yaw (rad) of the red cube, then of the green one.

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
        for block, (x, y, yaw) in zip(self._cubes, context.reshape(2, 3), strict=True):
            block.place(x, y, CUBE_HEIGHT, yaw)
        mujoco.mj_forward(self.model(), self.data)
        self._first: int | None = None
        self._behavior: int | None = None

    def _observe(self) -> Array:
        cubes = [number for block in self._cubes for number in (*block.position[:2], block.tan_yaw)]
        return np.array([*self.set_point[:2], *self.tcp_position[:2], *cubes])

    def _keep_books(self) -> None:
        holds = self._placements()
        self._success = (holds[0] and holds[3]) or (holds[1] and holds[2])
        now = next((i for i, hold in enumerate(holds) if hold and i != self._first), None)
        if self._first is None:
            self._first, now = now, None
        order = (self._first, now)
        self._behavior = ORDERS.index(order) if order in ORDERS else None

    def _placements(self) -> list[bool]:
        """Say which of `PLACEMENTS` hold."""
        positions = [block.position for block in self._cubes]
        return [
            math.dist(positions[block], TARGETS[target]) <= TARGET_RADIUS
            for block, target in PLACEMENTS
        ]

    def _info(self) -> dict[str, Any]:
        return {"success": self._success, "behavior": self._behavior}


def selection(evaluation: Any) -> float:
    """Select as D3IL does here: the mean of success rate and entropy."""
    return float(0.5 * (evaluation.success_rate + evaluation.entropy_d3il))


TASK = register_task(
    TaskSpec(
        name="pushing",
        env_id="skvdd/Pushing-v0",
        entry_point="skvdd.envs.pushing:Pushing",
        time_limit=400,
        scores=(Score(behaviors={behavior: behavior_name(behavior) for behavior in BEHAVIORS}),),
        n_contexts=30,
        selection=selection,
        demonstrators={"pushing": "skvdd.datasets.experts.pushing:DEMONSTRATOR"},
        features="skvdd.datasets.features:pushing_features",
        states=(
            *("desired x", "desired y", "measured x", "measured y"),
            *("red x", "red y", "tan(red yaw)", "green x", "green y", "tan(green yaw)"),
        ),
        actions=("change of desired x", "change of desired y"),
        metadata={"units": "m", "control_period": 0.035},
    )
)
