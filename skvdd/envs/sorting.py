"""Sorting: push red and blue blocks over the edge of a platform into the bins of their colors."""

from __future__ import annotations

import math
from functools import cache
from itertools import combinations
from typing import Any, ClassVar, NamedTuple

import numpy as np
from gymnasium.spaces import Box

from skvdd.envs._mujoco import mujoco
from skvdd.envs.blocks import TANGENT_LIMIT, Block, cube
from skvdd.envs.panda import Array
from skvdd.envs.spec import Score, TaskSpec, register_task
from skvdd.envs.task import RobotTask


class Bin(NamedTuple):
    """Where the blocks of one color belong; meters."""

    x: float  # center
    y: float
    x_min: float  # a block's center has to lie strictly between these
    x_max: float
    y_min: float
    y_max: float


BINS = {
    "r": Bin(0.400, 0.32, 0.300, 0.500, 0.22, 0.41),
    "b": Bin(0.625, 0.32, 0.525, 0.725, 0.22, 0.41),
}
RGBA = {"r": "1 0 0 1", "b": "0 0 1 1"}

# x (from, to), y (from, to) of a wall, from the center of its bin; m.
WALLS = {
    "back": (-0.1, 0.1, 0.08, 0.10),
    "left": (-0.105, -0.095, -0.1, 0.1),
    "right": (0.095, 0.105, -0.1, 0.1),
    "front": (-0.1, 0.1, -0.105, -0.095),
}

PLATFORM_TOP = 0.1  # m, of the walls too
PLATFORM_EDGE = 0.2  # m, y of the side that faces the bins

BLOCK_HALF_SIZE = 0.03  # m
BLOCK_MASS = 0.05  # kg

# x (from, to), y (from, to) of the cells in which blocks start; m.
CELLS = tuple(
    (*columns, *rows)
    for columns in ((0.40, 0.50), (0.55, 0.65))
    for rows in ((-0.15, -0.10), (-0.05, 0.00), (0.05, 0.10))
)
MAX_YAW = math.pi / 2.0  # rad, at the start

KEY_BITS = 8  # of the integers by which D3IL names a behavior


@cache
def color_orders(n_blocks: int) -> tuple[str, ...]:
    """Return the behaviors of a task: all orders of colors.

    Parameters
    ----------
    n_blocks : int
        Number of blocks, one half red and the other blue.

    Returns
    -------
    tuple of str
        In the order of their `d3il_key`.

    Examples
    --------
    >>> from skvdd.envs.sorting import color_orders
    >>> color_orders(4)
    ('rrbb', 'rbrb', 'rbbr', 'brrb', 'brbr', 'bbrr')
    """
    places = list(combinations(range(n_blocks), n_blocks // 2))
    return tuple("".join("r" if i in reds else "b" for i in range(n_blocks)) for reds in places)


def d3il_key(behavior: str) -> int:
    """Return the integer by which D3IL names a behavior.

    Parameters
    ----------
    behavior : str
        One of `color_orders`.

    Returns
    -------
    int
        The colors as bits, red 0 and blue 1, the first as the highest of eight bits.

    Examples
    --------
    >>> from skvdd.envs.sorting import d3il_key
    >>> d3il_key("rb"), d3il_key("br"), d3il_key("rrbb")
    (64, 128, 48)
    """
    half = len(behavior) / 2
    if not (0 < 2 * half <= KEY_BITS and behavior.count("r") == behavior.count("b") == half):
        raise ValueError(
            "behavior must be equally many 'r' and 'b' in the order of arrival, such as 'rrbb', "
            f"got {behavior!r}."
        )
    return sum(1 << (KEY_BITS - 1 - i) for i, color in enumerate(behavior) if color == "b")


def is_inside(color: str, x: float, y: float) -> bool:
    """Say whether a block of a color, ``"r"`` or ``"b"``, with its center there is sorted."""
    bin_ = BINS[color]
    return bin_.x_min < x < bin_.x_max and bin_.y_min < y < bin_.y_max


class Sorting(RobotTask):
    r"""Sort blocks by color: what `Sorting2`, `Sorting4` and `Sorting6` share.

    A Panda holds a vertical rod. Red and blue blocks stand on a platform; beyond its edge are
    two bins without a floor, the red one nearer to the robot. The rod pushes each block over
    the edge into the bin of its color, in any order of the colors. The tasks, their
    controller and their metrics are those of D3IL [1]_.

    **Action**, one every 35 ms (28.6 Hz):

    === ============================================= ======== ======= =====
    No. meaning                                       minimum  maximum unit
    === ============================================= ======== ======= =====
    0   change of the desired x (away from the base)  -0.01    0.01    m
    1   change of the desired y (toward the bins)     -0.01    0.01    m
    === ============================================= ======== ======= =====

    The declared bounds are not enforced, as in D3IL. The desired position is kept within the
    reach of the arm (radius 0.786 m around the base, x ≥ 0.25 m): a set-point beyond it is
    replaced by the nearest one within, which is what the robot pursues, what the observation
    shows and what the next action adds to. An action that is not finite raises `ValueError`.
    The desired height stays that of the start, 0.25 m, which holds the rod's tip at the height
    of a block's center; the tool points down. The rod has to go around blocks, and passes over
    the bins and what lies in them.

    **Observation**, float64, of :math:`4 + 3n` numbers for :math:`n` blocks:

    ====== ========================================================== =====
    No.    meaning                                                    unit
    ====== ========================================================== =====
    0      desired x, including the action just given                 m
    1      desired y, including the action just given                 m
    2      x of the tool center point before the action took effect   m
    3      y of the tool center point before the action took effect   m
    4+3i   x of the center of block i                                 m
    5+3i   y of the center of block i                                 m
    6+3i   tangent of the yaw of block i                              1
    ====== ========================================================== =====

    The red blocks come first. Their state is that before the action took effect, too. The
    tangent is D3IL's choice: it repeats after half a turn, and is very large where the yaw comes
    near a quarter turn. It is clipped to ±100 here, because blocks that fell on their sides show
    values up to 1e16 otherwise, which would spoil any standardization. The yaw is
    :math:`\operatorname{atan2}(-R_{01}, R_{00})` of the rotation matrix.

    **Scene**: cubes with an edge of 6 cm and a mass of 50 g; the platform (friction 0.3) spans
    0.2 ≤ x ≤ 0.8, -0.4 ≤ y ≤ 0.2, its top and the tops of all walls are at z = 0.1. Between the
    platform and the front walls there is a gap of 1.5 cm.

    **Success**: the center of every block lies strictly within its color's rectangle; the height
    does not count. Success is judged after each control step and reported by the next one, after
    whose window it is judged again. Nothing ends an episode as a failure.

    ===== ============= ===========
    color x             y
    ===== ============= ===========
    red   0.300 … 0.500 0.22 … 0.41
    blue  0.525 … 0.725 0.22 … 0.41
    ===== ============= ===========

    **Reward**: 1 when success comes, -1 when it is lost again: the return is 1 if the last step
    reports success, otherwise 0.

    **Behavior**: ``info["behavior"]`` is the sequence of colors in which the blocks entered
    their bins, such as ``"rrbb"``, and None until all have. After each control step, the block
    closest to the center of its bin (0.4, 0.32 or 0.625, 0.32) among those not recorded so far
    is recorded if it lies within its rectangle; it remains recorded wherever it goes afterwards.
    There are :math:`\binom{n}{n/2}` behaviors, listed by `color_orders`; `d3il_key` returns
    the integers that stand for them in D3IL.

    **Start**: the tool at (0.5251, -0.2993, 0.2515) m, at rest. The context consists of the x, y
    (m) and yaw (rad) of each block, red ones first. To draw one, a pose is drawn uniformly in
    each of six cells, 0.40 … 0.50 and 0.55 … 0.65 in x by -0.15 … -0.10, -0.05 … 0.00 and
    0.05 … 0.10 in y, yaw -90° … 90°, and the blocks are dealt to the cells at random. Blocks of
    neighboring cells may overlap a little at first; the simulator moves them apart.

    **Episode end**: success, or the time limit (``TimeLimit``) of 500, 700 and 1200 steps.

    Parameters
    ----------
    render_mode : {"rgb_array"} or None, default=None
        Whether `render` returns pictures.
    width, height : int, default=480
        Size of a picture in pixels, at most 1024.
    camera : {"view", "agent"}, default="view"
        Which camera `render` uses.

    Attributes
    ----------
    n_blocks : int
        Number of blocks, one half red and the other blue.
    colors : str
        Their colors, such as ``"rrbb"``.
    blocks : list of Block
        The blocks themselves, in the order of the observation.

    Notes
    -----
    Version history:

    - v0: first version. The blocks start on the platform, where D3IL starts them inside it and
      lets the simulator throw them out.

    References
    ----------
    .. [1] X. Jia et al., "Towards Diverse Behaviors: A Benchmark for Imitation Learning with
       Human Demonstrations", ICLR 2024.

    Examples
    --------
    >>> from skvdd.envs import Sorting2
    >>> task = Sorting2()
    >>> observation, info = task.reset(seed=0)
    >>> observation.shape, task.n_blocks
    ((10,), 2)
    >>> observation, reward, terminated, truncated, info = task.step([0.0, 0.005])
    >>> info
    {'success': False, 'behavior': None}
    """

    n_blocks: ClassVar[int]
    start_joints = (-0.327, 0.246, -0.203, -1.952, 0.063, 2.196, 0.225)

    def __init__(
        self,
        render_mode: str | None = None,
        width: int = 480,
        height: int = 480,
        camera: str = "view",
    ) -> None:
        super().__init__(render_mode, width, height, camera)
        # No posture of the arm puts the tool farther than this from the base.
        # A block that was thrown off the table falls on.
        bound = np.array(4 * [1.25] + self.n_blocks * [np.inf, np.inf, TANGENT_LIMIT])
        self.observation_space = Box(-bound, bound, dtype=np.float64)
        self.colors = self.block_colors()
        self.blocks = [Block(self.model(), self.data, name) for name in self.block_names()]
        self._order: list[int] = []

    @classmethod
    def block_colors(cls) -> str:
        """Return the colors of the blocks, such as ``"rrbb"``."""
        half = cls.n_blocks // 2
        return half * "r" + half * "b"

    @classmethod
    def block_names(cls) -> list[str]:
        """Return the names of the blocks, such as red1, red2, blue1, blue2."""
        numbers = range(1, cls.n_blocks // 2 + 1)
        return [f"{color}{i}" for color in ("red", "blue") for i in numbers]

    @classmethod
    def objects(cls) -> str:
        """Return platform, bins and blocks as MJCF."""
        platform = (
            f'<geom name="platform" type="box" pos="0.5 -0.1 0" size="0.3 0.3 {PLATFORM_TOP}" '
            'rgba="0.5 0.5 0.5 1" friction="0.3 0.001 0.0001" priority="1"/>'
        )
        walls = [_wall(color, name) for color in BINS for name in WALLS]
        blocks = [
            cube(name, BLOCK_HALF_SIZE, BLOCK_MASS, RGBA[color])
            for name, color in zip(cls.block_names(), cls.block_colors(), strict=True)
        ]
        return platform + "".join(walls + blocks)

    @classmethod
    def draw_context(cls, rng: np.random.Generator) -> Array:
        """Draw the poses of the blocks.

        Parameters
        ----------
        rng : numpy.random.Generator
            Source of the draw.

        Returns
        -------
        ndarray of shape (3 * n_blocks,)
            x, y (m) and yaw (rad) of each.
        """
        cells = np.array([(*cell, -MAX_YAW, MAX_YAW) for cell in CELLS])
        poses = rng.uniform(cells[:, ::2], cells[:, 1::2])
        return poses[rng.permutation(len(CELLS))[: cls.n_blocks]].ravel()

    def _begin(self, context: Array) -> None:
        self._order = []
        for block, (x, y, yaw) in zip(self.blocks, context.reshape(-1, 3), strict=True):
            block.place(x, y, PLATFORM_TOP + BLOCK_HALF_SIZE, yaw)
        mujoco.mj_forward(self.model(), self.data)

    def _observe(self) -> Array:
        seen = [*self.set_point[:2], *self.tcp_position[:2]]
        for block in self.blocks:
            x, y, _ = block.position.tolist()
            seen += [x, y, block.tan_yaw]
        return np.array(seen)

    def _keep_books(self) -> None:
        places = [block.position[:2].tolist() for block in self.blocks]
        waiting = [i for i in range(self.n_blocks) if i not in self._order]
        if waiting:
            nearest = min(waiting, key=lambda i: self._distance_to_bin(i, *places[i]))
            if is_inside(self.colors[nearest], *places[nearest]):
                self._order.append(nearest)
        self._success = all(
            is_inside(color, x, y) for color, (x, y) in zip(self.colors, places, strict=True)
        )

    def _distance_to_bin(self, block: int, x: float, y: float) -> float:
        """Return how far a place is from the center of a block's own bin, m."""
        bin_ = BINS[self.colors[block]]
        return math.hypot(x - bin_.x, y - bin_.y)

    def _info(self) -> dict[str, Any]:
        complete = len(self._order) == self.n_blocks
        behavior = "".join(self.colors[i] for i in self._order) if complete else None
        return {"success": self._success, "behavior": behavior}


def _wall(color: str, name: str) -> str:
    """Return a wall of a bin as MJCF."""
    bin_ = BINS[color]
    x0, x1, y0, y1 = WALLS[name]
    pos = f"{bin_.x + (x0 + x1) / 2} {bin_.y + (y0 + y1) / 2} 0"
    size = f"{(x1 - x0) / 2} {(y1 - y0) / 2} {PLATFORM_TOP}"
    rgba = f"{RGBA[color][:-1]}0.5"
    return f'<geom name="{color}_{name}" type="box" pos="{pos}" size="{size}" rgba="{rgba}"/>'


class Sorting2(Sorting):
    """Sort one red and one blue block, in one of 2 orders of colors; see `Sorting`.

    Examples
    --------
    >>> import gymnasium
    >>> import skvdd.envs
    >>> env = gymnasium.make("skvdd/Sorting2-v0")
    >>> observation, info = env.reset(options={"context": 0})
    >>> observation.shape, info["behavior"]
    ((10,), None)
    >>> env.close()
    """

    n_blocks = 2
    context_size = 6


class Sorting4(Sorting):
    """Sort two red and two blue blocks, in one of 6 orders of colors; see `Sorting`."""

    n_blocks = 4
    context_size = 12


class Sorting6(Sorting):
    """Sort three red and three blue blocks, in one of 20 orders of colors; see `Sorting`."""

    n_blocks = 6
    context_size = 18


def selection(evaluation: Any) -> float:
    """Select as D3IL does here: the success rate minus the divergence from the demonstrations.

    That is the Kullback-Leibler divergence of the orders of a policy from those of the
    demonstrations, to the base of their number. Ours show all orders equally often, which makes it
    one minus the entropy.
    """
    return float(evaluation.success_rate - (1.0 - evaluation.entropy_d3il))


def _spec(task: type[Sorting], time_limit: int) -> TaskSpec:
    """Return what one of the three tasks is."""
    name = task.__name__
    return TaskSpec(
        name=name.lower(),
        env_id=f"skvdd/{name}-v0",
        entry_point=f"skvdd.envs.sorting:{name}",
        time_limit=time_limit,
        scores=(Score(behaviors={o: o for o in color_orders(task.n_blocks)}, skips_unsolved=True),),
        n_contexts=60,
        selection=selection,
        demonstrators={name.lower(): "skvdd.datasets.experts.sorting:DEMONSTRATOR"},
        features="skvdd.datasets.features:sorting_features",
        states=(
            *("desired x", "desired y", "measured x", "measured y"),
            *(
                column
                for block in task.block_names()
                for column in (f"{block} x", f"{block} y", f"tan({block} yaw)")
            ),
        ),
        actions=("change of desired x", "change of desired y"),
        metadata={"units": "m", "control_period": 0.035},
    )


for _task, _limit in ((Sorting2, 500), (Sorting4, 700), (Sorting6, 1200)):
    register_task(_spec(_task, _limit))
