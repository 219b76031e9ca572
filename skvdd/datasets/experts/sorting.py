"""Scripted demonstrators for Sorting: push a block around the others into the bin of its colour."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from skvdd.datasets.experts.recording import Demonstrator
from skvdd.envs.sorting import (
    BINS,
    PLATFORM_EDGE,
    PLATFORM_TOP,
    Sorting,
    Sorting2,
    Sorting4,
    Sorting6,
    color_orders,
    is_inside,
)

Array = NDArray[np.float64]
Point = tuple[float, float]

# -- the grid on which ways are planned, m --
CELL = 0.01
GRID_X = 0.26 + CELL * np.arange(52)
GRID_Y = -0.36 + CELL * np.arange(75)
STEPS = ((1, 0), (0, 1), (1, 1), (1, -1), (1, 2), (2, 1), (1, -2), (2, -1))  # cells
ROUNDING = 0.005  # a block that moves by less does not change a plan

# -- what ways keep clear of; distances between centres, m --
ROD_CLEARANCE = 0.062  # of the rod from a block
BLOCK_CLEARANCE = 0.095  # of a pushed block from another one
BLOCK_X = (0.34, 0.70)  # beyond which the rod hardly gets to a block's far side
BRINK = (0.14, 0.18)  # y between which a block comes too near to the edge beside its bin
NUDGE_COST = 25.0  # of a way through the centre of a block, per length
FORBIDDEN_COST = 50.0  # of a pushed block where it should not be, per length

# -- the way into a bin, m --
MOUTH = 0.06  # half its width
DEEP = 0.05  # beyond the edge of the platform, where it ends

# -- pushing --
BEHIND = (0.058, 0.068)  # m, of the rod from the block that it is about to push
TOUCH = (0.050, 0.065)  # m, of the rod from a block: touching it for sure, just before
MISALIGNMENT = (0.8, 0.5)  # rad, that a push may have at these distances
REACH = 0.075  # m, at most
BLOCK_AHEAD = 0.05  # m, of the point on its way to which a block is pushed
ROD_AHEAD = 0.03  # m, of the point to which the rod goes
STEERING_GAIN = 1.5  # change of the rod's heading per misalignment
MAX_STEERING = 0.7  # rad, beyond which the rod would slip along the block

# -- speed, m per step --
TRAVEL_SPEED = (0.0075, 0.0088)
PUSH_SPEED = (0.0065, 0.0080)
NEAR_SPEED = 0.0030  # at least, near the place behind a block
BRAKING = 0.10  # of the distance to it in one step
SPEED_NOISE = 0.03  # of the speed, standard deviation

# -- wandering heading --
HEADING_NOISE = 0.30  # rad, standard deviation while travelling
PUSH_NOISE = 0.15  # rad, while pushing
HEADING_MEMORY = 0.9  # per step: the heading forgets in about ten steps

PREFERENCE = 0.15  # standard deviation of the logarithm by which a block's effort is misjudged

# ---------------------------------------------------------------------------------------
# The way
# ---------------------------------------------------------------------------------------

NODE_X = np.repeat(GRID_X, len(GRID_Y))
NODE_Y = np.tile(GRID_Y, len(GRID_X))


def _edges() -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
    """Return the edges of the grid: nodes from and to, and lengths in m."""
    nodes = np.arange(len(NODE_X)).reshape(len(GRID_X), len(GRID_Y))
    starts, ends, lengths = [], [], []
    for dx, dy in STEPS:
        start = nodes[: len(GRID_X) - dx, max(0, -dy) : len(GRID_Y) - max(0, dy)].ravel()
        starts.append(start)
        ends.append(start + dx * len(GRID_Y) + dy)
        lengths.append(np.full(len(start), CELL * math.hypot(dx, dy)))
    return np.concatenate(starts), np.concatenate(ends), np.concatenate(lengths)


START, END, LENGTH = _edges()


def _node(point: ArrayLike) -> int:
    """Return the node that is nearest to a point (m)."""
    x, y = np.asarray(point)
    return int(np.abs(GRID_X - x).argmin() * len(GRID_Y) + np.abs(GRID_Y - y).argmin())


class Ways:
    """The cheapest ways from everywhere on the grid to some nodes.

    Parameters
    ----------
    goals : array-like of int
        Nodes at which a way may end.
    costs : ndarray of shape (n_nodes,)
        What a way costs per length, at each node.
    """

    def __init__(self, goals: ArrayLike, costs: Array) -> None:
        weights = LENGTH * 0.5 * (costs[START] + costs[END])
        graph = csr_array((weights, (START, END)), shape=(len(costs), len(costs)))
        self._costs, self._next, _ = dijkstra(
            graph, directed=False, indices=goals, return_predecessors=True, min_only=True
        )

    def cost(self, start: Array) -> float:
        """Return the cost of the way from a point."""
        return float(self._costs[_node(start)])

    def ahead(self, start: Array, distance: float) -> Array:
        """Return the first point of the way that is so far from its start, or its end, m, (2,)."""
        node = _node(start)
        while self._next[node] >= 0:
            node = self._next[node]
            if math.hypot(NODE_X[node] - start[0], NODE_Y[node] - start[1]) >= distance:
                break
        return np.array([NODE_X[node], NODE_Y[node]])


@lru_cache(maxsize=64)
def ways_of_rod(goal: Point, blocks: tuple[Point, ...]) -> Ways:
    """Return the ways of the rod to a point.

    Parameters
    ----------
    goal : tuple of two float
        The point, m.
    blocks : tuple of tuples of two float
        Centres of all blocks on the platform, m.
    """
    return Ways([_node(goal)], _costs_among(blocks, ROD_CLEARANCE))


@lru_cache(maxsize=64)
def ways_of_block(color: str, others: tuple[Point, ...]) -> Ways:
    """Return the ways of a block into its bin.

    Parameters
    ----------
    color : {"r", "b"}
        Its colour.
    others : tuple of tuples of two float
        Centres of the other blocks on the platform, m.
    """
    costs = _costs_among(others, BLOCK_CLEARANCE)
    aside = np.abs(NODE_X - BINS[color].x) > MOUTH
    costs += FORBIDDEN_COST * aside * np.interp(NODE_Y, BRINK, (0.0, 1.0))
    costs += FORBIDDEN_COST * (np.clip(NODE_X, *BLOCK_X) != NODE_X)
    return Ways(np.flatnonzero(~aside & (NODE_Y > PLATFORM_EDGE + DEEP)), costs)


def _costs_among(blocks: tuple[Point, ...], clearance: float) -> Array:
    """Return the costs per length among blocks, which may be nudged where nothing else helps."""
    costs = np.ones(len(NODE_X))
    for x, y in blocks:
        distance = np.hypot(NODE_X - x, NODE_Y - y)
        costs += NUDGE_COST * np.maximum(0.0, 1.0 - distance / clearance)
    return costs


# ---------------------------------------------------------------------------------------
# The demonstrator
# ---------------------------------------------------------------------------------------


class BlockSorter:
    """Push one block after the other into the bin of its colour, in a given order of colours.

    Of the next colour, the block is taken that takes the least effort: the way into its bin,
    around the other blocks, and the way of the rod to the place behind it. What is done with it
    follows from where rod and blocks are. While the rod is not behind the block, seen from its
    way, it goes there, around all blocks. From there it pushes: rod and block are like a car and
    a trailer in reverse. The line from the rod to the block is the trailer's axis; steering to
    the side on which the way does *not* go on turns the axis towards the way. Other blocks are
    pushed aside only where there is no room.

    The heading carries an Ornstein-Uhlenbeck noise, so that the recordings contain deviations
    and corrections.

    Parameters
    ----------
    task : Sorting
        The task, after its reset.
    behavior : str
        The order of colours.
    rng : numpy.random.Generator
        Draws speeds, distances, preferences and wandering.
    """

    def __init__(self, task: Sorting, behavior: str, rng: np.random.Generator) -> None:
        self._task = task
        self._behavior = behavior
        self._rng = rng
        self._travel_speed = rng.uniform(*TRAVEL_SPEED)
        self._push_speed = rng.uniform(*PUSH_SPEED)
        self._behind = rng.uniform(*BEHIND)
        self._misjudged = np.exp(PREFERENCE * rng.standard_normal(task.n_blocks))
        self._wander = rng.standard_normal()
        self._block = -1  # none yet

    def act(self, observation: Array) -> Array:
        """Return the next change of the set-point, m, (2,).

        Parameters
        ----------
        observation : ndarray of shape (4 + 3 n_blocks,)
            What the environment returned.
        """
        rod = 0.5 * (observation[:2] + observation[2:4])
        waiting = [i for i in range(self._task.n_blocks) if not self._is_sorted(i)]
        if waiting and self._block not in waiting:
            self._block = self._choose(rod, waiting)
        place, heading = self._place(self._block), self._heading(self._block, waiting)
        axis = place - rod
        miss = _angle_between(axis, heading)
        if _is_push(axis, miss):
            steering = -float(np.clip(STEERING_GAIN * miss, -MAX_STEERING, MAX_STEERING))
            return self._move(axis, steering, self._push_speed, PUSH_NOISE)
        return self._approach(rod, place - self._behind * heading, waiting)

    def _choose(self, rod: Array, waiting: Sequence[int]) -> int:
        """Return the block of the next colour that seems to take the least effort."""
        color = self._behavior[self._task.n_blocks - len(waiting)]
        fitting = [i for i in waiting if self._task.colors[i] == color]
        return min(fitting or waiting, key=lambda i: self._effort(i, rod, waiting))

    def _effort(self, block: int, rod: Array, waiting: Sequence[int]) -> float:
        """Return how much effort a block seems to take, m of free way."""
        place = self._place(block)
        behind = place - self._behind * self._heading(block, waiting)
        pushing = self._ways(block, waiting).cost(place)
        approach = ways_of_rod(_rounded(behind), self._outline(waiting)).cost(rod)
        return float(self._misjudged[block] * (pushing + approach))

    def _heading(self, block: int, waiting: Sequence[int]) -> Array:
        """Return the direction in which the way of a block goes on, (2,)."""
        place = self._place(block)
        way = self._ways(block, waiting).ahead(place, BLOCK_AHEAD) - place
        return way / max(float(np.linalg.norm(way)), 1e-9)

    def _ways(self, block: int, waiting: Sequence[int]) -> Ways:
        """Return the ways of a block among the others that are on the platform."""
        others = [i for i in waiting if i != block]
        return ways_of_block(self._task.colors[block], self._outline(others))

    def _approach(self, rod: Array, goal: Array, waiting: Sequence[int]) -> Array:
        """Return a step of the rod around the blocks to a point."""
        distance = float(np.linalg.norm(goal - rod))
        waypoint = goal
        if distance > ROD_AHEAD:
            waypoint = ways_of_rod(_rounded(goal), self._outline(waiting)).ahead(rod, ROD_AHEAD)
        speed = min(self._travel_speed, NEAR_SPEED + BRAKING * distance)
        return self._move(waypoint - rod, 0.0, speed, HEADING_NOISE)

    def _move(self, direction: Array, turn: float, speed: float, noise: float) -> Array:
        """Return a step in a direction, turned and disturbed."""
        renewal = math.sqrt(1.0 - HEADING_MEMORY**2)
        self._wander = HEADING_MEMORY * self._wander + renewal * self._rng.standard_normal()
        heading = math.atan2(direction[1], direction[0]) + turn + noise * self._wander
        length = speed * (1.0 + SPEED_NOISE * self._rng.standard_normal())
        return np.array([length * math.cos(heading), length * math.sin(heading)])

    def _is_sorted(self, block: int) -> bool:
        """Say whether a block has fallen into its bin, or lies deep in it on others."""
        x, y, z = self._task.blocks[block].position.tolist()
        inside = is_inside(self._task.colors[block], x, y)
        return inside and (z < PLATFORM_TOP or y > PLATFORM_EDGE + DEEP)

    def _place(self, block: int) -> Array:
        """Return where the centre of a block is, m, (2,)."""
        return self._task.blocks[block].position[:2]

    def _outline(self, blocks: Sequence[int]) -> tuple[Point, ...]:
        """Return roughly where some blocks are, m."""
        return tuple(_rounded(self._place(block)) for block in blocks)


def _is_push(axis: Array, miss: float) -> bool:
    """Say whether the rod is near enough to a block, and well enough behind it, to push it.

    Parameters
    ----------
    axis : ndarray of shape (2,)
        The way from the rod to the block, m.
    miss : float
        The turn from there to where the block should go, rad.
    """
    distance = float(np.linalg.norm(axis))
    return distance < REACH and abs(miss) < float(np.interp(distance, TOUCH, MISALIGNMENT))


def _rounded(point: Array) -> Point:
    """Return a point that stands for those around it, m."""
    x, y = (ROUNDING * np.round(point / ROUNDING)).tolist()
    return x, y


def _angle_between(one: Array, other: Array) -> float:
    """Return the turn that leads from one direction to another, rad, in [-pi, pi]."""
    return math.atan2(one[0] * other[1] - one[1] * other[0], float(one @ other))


def make_actor(task: Sorting, behavior: str, rng: np.random.Generator) -> Callable[[Array], Array]:
    """Return what `~skvdd.datasets.experts.recording.demonstrate` asks for actions."""
    return BlockSorter(task, behavior, rng).act


def _demonstrator(task: type[Sorting]) -> Demonstrator:
    """Return the demonstrator of a task."""
    blocks = [
        column
        for name in task.block_names()
        for column in (f"{name} x", f"{name} y", f"tan({name} yaw)")
    ]
    return Demonstrator(
        name=task.__name__.lower(),
        env_id=f"skvdd/{task.__name__}-v0",
        version=2,
        behaviors=color_orders(task.n_blocks),
        make_actor=make_actor,
        description=(
            "goes behind a block and reverses it like a trailer around the others, with "
            "Ornstein-Uhlenbeck heading noise"
        ),
        states=("desired x", "desired y", "measured x", "measured y", *blocks),
        actions=("change of desired x", "change of desired y"),
        metadata={"units": "m", "control_period": 0.035},
    )


DEMONSTRATORS = {
    demonstrator.name: demonstrator
    for demonstrator in map(_demonstrator, (Sorting2, Sorting4, Sorting6))
}
