"""Avoiding: steer a rod between six obstacles to the finish line."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from gymnasium.spaces import Box

from skvdd.envs.panda import Array
from skvdd.envs.spec import Score, TaskSpec, register_task
from skvdd.envs.task import RobotTask


class Obstacle(NamedTuple):
    """An upright red cylinder, centered at height zero; meters."""

    x: float
    y: float
    radius: float
    half_height: float


OBSTACLES = (
    Obstacle(0.500, -0.10, 0.030, 0.07),
    Obstacle(0.425, 0.08, 0.025, 0.10),
    Obstacle(0.575, 0.08, 0.025, 0.10),
    Obstacle(0.350, 0.26, 0.025, 0.10),
    Obstacle(0.500, 0.26, 0.025, 0.10),
    Obstacle(0.650, 0.26, 0.025, 0.10),
)
ROD_RADIUS = 0.01  # m
FINISH_Y = 0.35  # m

# One row of obstacles: its first bit, and the x of the obstacles that part its gaps.
ROWS = ((0, (0.500,)), (2, (0.425, 0.575)), (5, (0.350, 0.500, 0.650)))
ROW_Y = (-0.10, 0.08, 0.26)  # m
ROW_HALF_WIDTH = 0.03  # m, within which the first two rows are decided

BEHAVIORS = tuple(
    sorted(1 << a | 1 << b | 1 << c for a in (0, 1) for b in (2, 3, 4) for c in (5, 6, 7, 8))
)


def gap_bit(row: int, x: float) -> int | None:
    """Return the bit that a crossing of a row at `x` sets, None exactly behind an obstacle.

    The last gap of the third row includes its edge, as in D3IL.
    """
    first_bit, edges = ROWS[row]
    for gap, edge in enumerate(edges):
        if x < edge:
            return first_bit + gap
        if x == edge and (row, gap) != (2, 2):
            return None
    return first_bit + len(edges)


def gaps_of(behavior: int) -> tuple[int | None, int | None, int | None]:
    """Return the gap of each row, counted from zero at the robot's side.

    Parameters
    ----------
    behavior : int
        Sum of ``2**i`` over the bits of `Avoiding`.

    Returns
    -------
    tuple of three int or None
        None for a row that has not been crossed.
    """
    gaps: list[int | None] = []
    for first_bit, edges in ROWS:
        crossed = [gap for gap in range(len(edges) + 1) if behavior >> (first_bit + gap) & 1]
        gaps.append(crossed[0] if crossed else None)
    expected = sum(1 << (ROWS[r][0] + gap) for r, gap in enumerate(gaps) if gap is not None)
    if behavior != expected:
        raise ValueError(
            "behavior must be a sum of at most one bit per row (0 to 1, 2 to 4, 5 to 8), got "
            f"{behavior}."
        )
    return gaps[0], gaps[1], gaps[2]


def behavior_name(behavior: int) -> str:
    """Return the gaps of a behavior, counted from one at the robot's side (small x).

    Parameters
    ----------
    behavior : int
        Sum of ``2**i`` over the bits of `Avoiding`.

    Returns
    -------
    str
        One number per row, a ``"?"`` for a row that has not been crossed.

    Examples
    --------
    >>> from skvdd.envs.avoiding import behavior_name
    >>> behavior_name(2**1 + 2**2 + 2**8)
    '2-1-4'
    """
    return "-".join("?" if gap is None else str(gap + 1) for gap in gaps_of(behavior))


class Avoiding(RobotTask):
    r"""Bring the rod past three rows of obstacles without touching one.

    A Panda holds a vertical rod just above the table. Three rows of one, two and three
    cylinders stand between the rod and the finish line; two gaps, three gaps and four gaps
    make 24 ways through. Every episode starts alike, so all variety comes from the policy.
    The task, its controller and its metrics are those of D3IL [1]_.

    **Action**, one every 35 ms (28.6 Hz):

    === ============================================= ======== ======= =====
    No. meaning                                       minimum  maximum unit
    === ============================================= ======== ======= =====
    0   change of the desired x (away from the base)  -0.01    0.01    m
    1   change of the desired y (toward the finish)   -0.01    0.01    m
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
    === ========================================================== =====

    At reset the desired position equals the measured one. The measured position after the
    last window is `tcp_position`.

    **Success**: measured y > 0.35 m at the start of a control step. **Failure**: the rod
    touches an obstacle at the start of a control step; a contact that comes and goes within
    35 ms is not seen, and the links of the arm do not count. (They cannot touch anything here,
    which makes a control step cheap.) If both hold, it is a success. Either ends the episode.

    **Reward**: 1 when success comes: the return is 1 if the last step reports success, otherwise
    0.

    **Behavior**: ``info["behavior"]`` is the integer :math:`\sum_i 2^i b_i` of nine bits;
    each row sets one, once per episode, from the measured x after a control step:

    === ============================== =====================================================
    row decided at the first step with bits
    === ============================== =====================================================
    1   \|y + 0.10\| ≤ 0.03            0: x < 0.5; 1: x > 0.5
    2   \|y - 0.08\| ≤ 0.03            2: x < 0.425; 3: 0.425 < x < 0.575; 4: x > 0.575
    3   y ≥ 0.26                       5: x < 0.35; 6: 0.35 < x < 0.5;
                                       7: 0.5 < x < 0.65; 8: x ≥ 0.65
    === ============================== =====================================================

    Exactly at x = 0.5, say, a row stays undecided for another step. `behavior_name` writes
    the gaps down, `BEHAVIORS` lists the 24 integers with one gap in each row.

    **Start**: the tool at (0.5249, -0.2797, 0.1224) m, at rest; no randomness.

    **Episode end**: success, failure, or 250 steps (``TimeLimit``).

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

    - v0: first version. Replays trajectories of the original within 1 mm on average and
      2.5 mm at most.

    References
    ----------
    .. [1] X. Jia et al., "Towards Diverse Behaviors: A Benchmark for Imitation Learning with
       Human Demonstrations", ICLR 2024.

    Examples
    --------
    >>> import gymnasium
    >>> import skvdd.envs
    >>> env = gymnasium.make("skvdd/Avoiding-v0")
    >>> observation, info = env.reset(seed=0)
    >>> observation.round(4).tolist()
    [0.5249, -0.2797, 0.5249, -0.2797]
    >>> env.step([0.0, 0.007])[0].round(4).tolist()
    [0.5249, -0.2727, 0.5249, -0.2797]
    >>> env.close()
    """

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
        # No posture of the arm puts the tool farther than this from the base.
        self.observation_space = Box(-1.25, 1.25, (4,), np.float64)
        model = self.model()
        self._rod = model.geom("rod").id
        self._obstacles = [model.geom(f"obstacle{i}").id for i in range(len(OBSTACLES))]

    @classmethod
    def objects(cls) -> str:
        """Return obstacles and finish line as MJCF."""
        obstacles = [
            f'<geom name="obstacle{i}" type="cylinder" pos="{o.x} {o.y} 0" '
            f'size="{o.radius} {o.half_height}" rgba="1 0 0 1"/>'
            for i, o in enumerate(OBSTACLES)
        ]
        finish = (
            f'<geom name="finish" type="box" pos="0.4 {FINISH_Y} 0" size="0.5 0.01 0.005" '
            'rgba="0 1 0 0.3" contype="0" conaffinity="0"/>'
        )
        return "".join(obstacles) + finish

    def _begin(self, context: Array) -> None:
        self._behavior = 0
        self._decided = [False, False, False]

    def _observe(self) -> Array:
        return np.concatenate([self.set_point[:2], self.tcp_position[:2]])

    def _is_over(self) -> bool:
        self._success = bool(self.tcp_position[1] > FINISH_Y)
        return self._success or self._touches(self._rod, self._obstacles)

    def _keep_books(self) -> None:
        x, y, _ = self.tcp_position.tolist()
        crossings = (
            abs(y - ROW_Y[0]) <= ROW_HALF_WIDTH,
            abs(y - ROW_Y[1]) <= ROW_HALF_WIDTH,
            y >= ROW_Y[2],
        )
        for row, crossed in enumerate(crossings):
            if crossed and not self._decided[row]:
                bit = gap_bit(row, x)
                if bit is not None:
                    self._behavior |= 1 << bit
                    self._decided[row] = True

    def _info(self) -> dict[str, Any]:
        return {"success": self._success, "behavior": self._behavior}


def selection(evaluation: Any) -> float:
    """Select as D3IL does here: 0.8 times the success rate plus 0.2 times the entropy."""
    return float(0.8 * evaluation.success_rate + 0.2 * evaluation.entropy_d3il)


_EXPERT = "skvdd.datasets.experts.avoiding"
TASK = register_task(
    TaskSpec(
        name="avoiding",
        env_id="skvdd/Avoiding-v0",
        entry_point="skvdd.envs.avoiding:Avoiding",
        time_limit=250,
        scores=(Score(behaviors={behavior: behavior_name(behavior) for behavior in BEHAVIORS}),),
        n_rollouts=200,
        selection=selection,
        demonstrators={
            "avoiding": f"{_EXPERT}:CLEAN",
            "avoiding-hesitant": f"{_EXPERT}:HESITANT",
            "avoiding-overlapping": f"{_EXPERT}:OVERLAPPING",
            "avoiding-longtail": f"{_EXPERT}:LONGTAIL",
            "avoiding-human": f"{_EXPERT}:HUMAN",
        },
        states=("desired x", "desired y", "measured x", "measured y"),
        actions=("change of desired x", "change of desired y"),
        metadata={"units": "m", "control_period": 0.035},
    )
)
