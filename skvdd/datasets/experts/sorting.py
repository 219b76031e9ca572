"""Scripted demonstrators for Sorting: push a block around the others into the bin of its color."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from skvdd.datasets.experts.paths import Grid, Ways
from skvdd.datasets.experts.recording import Demonstrator
from skvdd.datasets.experts.steering import (
    WanderingHand,
    distance,
    heading_of,
    is_behind,
    reverse_trailer,
    unit,
)
from skvdd.envs.sorting import BINS, PLATFORM_EDGE, Sorting, is_inside

Array = NDArray[np.float64]
Point = tuple[float, float]

# -- the grid on which ways are planned, m --
CELL = 0.01
GRID = Grid((0.26, -0.36), (52, 75), CELL)
ROUNDING = 0.005  # a block that moves by less does not change a plan

# -- what ways keep clear of; distances between centers, m --
ROD_CLEARANCE = 0.062  # of the rod from a block
BLOCK_CLEARANCE = 0.095  # of a pushed block from another one
BLOCK_X = (0.34, 0.70)  # beyond which the rod hardly gets to a block's far side
BRINK = (0.14, 0.18)  # y between which a block comes too near to the edge beside its bin
NUDGE_COST = 25.0  # of a way through the center of a block, per length
FORBIDDEN_COST = 50.0  # of a pushed block where it should not be, per length

# -- the way into a bin, m --
MOUTH = 0.06  # half its width
DEEP = 0.05  # beyond the edge of the platform, where it ends
FALLEN = 0.035  # beyond the edge: where the center of a block is once nothing holds it up

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
HEADING_NOISE = 0.30  # rad, standard deviation while traveling
PUSH_NOISE = 0.15  # rad, while pushing
HEADING_MEMORY = 0.9  # per step: the heading forgets in about ten steps

PREFERENCE = 0.15  # standard deviation of the logarithm by which a block's effort is misjudged

# ---------------------------------------------------------------------------------------
# The way
# ---------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def ways_of_rod(goal: Point, blocks: tuple[Point, ...]) -> Ways:
    """Return the ways of the rod to a point.

    Parameters
    ----------
    goal : tuple of two float
        The point, m.
    blocks : tuple of tuples of two float
        Centers of all blocks on the platform, m.
    """
    return Ways(GRID, [GRID.node(goal)], _costs_among(blocks, ROD_CLEARANCE))


@lru_cache(maxsize=64)
def ways_of_block(color: str, others: tuple[Point, ...]) -> Ways:
    """Return the ways of a block into its bin.

    Parameters
    ----------
    color : {"r", "b"}
        Its color.
    others : tuple of tuples of two float
        Centers of the other blocks on the platform, m.
    """
    costs = _costs_among(others, BLOCK_CLEARANCE)
    aside = np.abs(GRID.node_x - BINS[color].x) > MOUTH
    costs += FORBIDDEN_COST * aside * np.interp(GRID.node_y, BRINK, (0.0, 1.0))
    costs += FORBIDDEN_COST * (np.clip(GRID.node_x, *BLOCK_X) != GRID.node_x)
    return Ways(GRID, np.flatnonzero(~aside & (GRID.node_y > PLATFORM_EDGE + DEEP)), costs)


def _costs_among(blocks: tuple[Point, ...], clearance: float) -> Array:
    """Return the costs per length among blocks, which may be nudged where nothing else helps."""
    costs = np.ones(len(GRID.node_x))
    for x, y in blocks:
        away = np.hypot(GRID.node_x - x, GRID.node_y - y)
        costs += NUDGE_COST * np.maximum(0.0, 1.0 - away / clearance)
    return costs


# ---------------------------------------------------------------------------------------
# The demonstrator
# ---------------------------------------------------------------------------------------


class BlockSorter:
    """Push one block after the other into the bin of its color, in a given order of colors.

    Of the next color, the block is taken that takes the least effort: the way into its bin,
    around the other blocks, and the way of the rod to the place behind it. What is done with it
    follows from where rod and blocks are. While the rod is not behind the block, seen from its
    way, it goes there, around all blocks. From there it pushes: rod and block are like a car and
    a trailer in reverse. Other blocks are pushed aside only where there is no room.

    Parameters
    ----------
    colors : str
        Colors of the blocks, in the order of the observation.
    behavior : str
        The order in which they are sorted.
    rng : numpy.random.Generator
        Draws speeds, distances, preferences and wandering.
    """

    def __init__(self, colors: str, behavior: str, rng: np.random.Generator) -> None:
        self._colors = colors
        self._behavior = behavior
        self._travel_speed = rng.uniform(*TRAVEL_SPEED)
        self._push_speed = rng.uniform(*PUSH_SPEED)
        self._behind = rng.uniform(*BEHIND)
        self._misjudged = np.exp(PREFERENCE * rng.standard_normal(len(colors)))
        self._hand = WanderingHand(rng, HEADING_MEMORY, SPEED_NOISE)
        self._block = -1  # none yet

    def act(self, observation: Array) -> Array:
        """Return the next change of the set-point, m, (2,).

        Parameters
        ----------
        observation : ndarray of shape (4 + 3 n_blocks,)
            What the environment returned.
        """
        rod = 0.5 * (observation[:2] + observation[2:4])
        places = observation[4:].reshape(-1, 3)[:, :2]
        waiting = [
            i for i, color in enumerate(self._colors) if not is_sorted(color, *places[i].tolist())
        ]
        if waiting and self._block not in waiting:
            self._block = self._choose(rod, places, waiting)
        place, heading = places[self._block], self._heading(self._block, places, waiting)
        axis = place - rod
        if is_behind(axis, heading, REACH, TOUCH, MISALIGNMENT):
            course = reverse_trailer(axis, heading, STEERING_GAIN, MAX_STEERING)
            return self._hand.step(course, self._push_speed, PUSH_NOISE)
        return self._approach(rod, place - self._behind * heading, _outline(places[waiting]))

    def _choose(self, rod: Array, places: Array, waiting: Sequence[int]) -> int:
        """Return the block of the next color that seems to take the least effort."""
        color = self._behavior[len(self._colors) - len(waiting)]
        fitting = [i for i in waiting if self._colors[i] == color]
        return min(fitting or waiting, key=lambda i: self._effort(i, rod, places, waiting))

    def _effort(self, block: int, rod: Array, places: Array, waiting: Sequence[int]) -> float:
        """Return how much effort a block seems to take, m of free way."""
        place = places[block]
        behind = place - self._behind * self._heading(block, places, waiting)
        pushing = self._ways(block, places, waiting).cost(place)
        approach = ways_of_rod(_rounded(behind), _outline(places[waiting])).cost(rod)
        return float(self._misjudged[block] * (pushing + approach))

    def _heading(self, block: int, places: Array, waiting: Sequence[int]) -> Array:
        """Return the direction in which the way of a block goes on, (2,)."""
        place = places[block]
        return unit(self._ways(block, places, waiting).ahead(place, BLOCK_AHEAD) - place)

    def _ways(self, block: int, places: Array, waiting: Sequence[int]) -> Ways:
        """Return the ways of a block among the others that are on the platform."""
        others = [i for i in waiting if i != block]
        return ways_of_block(self._colors[block], _outline(places[others]))

    def _approach(self, rod: Array, goal: Array, blocks: tuple[Point, ...]) -> Array:
        """Return a step of the rod around the blocks to a point."""
        left = distance(goal, rod)
        waypoint = goal
        if left > ROD_AHEAD:
            waypoint = ways_of_rod(_rounded(goal), blocks).ahead(rod, ROD_AHEAD)
        speed = min(self._travel_speed, NEAR_SPEED + BRAKING * left)
        return self._hand.step(heading_of(waypoint - rod), speed, HEADING_NOISE)


def is_sorted(color: str, x: float, y: float) -> bool:
    """Say whether a block has fallen into its bin; how high it lies is not observed.

    Parameters
    ----------
    color : {"r", "b"}
        Its color.
    x, y : float
        Where its center is, m.
    """
    return is_inside(color, x, y) and y > PLATFORM_EDGE + FALLEN


def _outline(places: Array) -> tuple[Point, ...]:
    """Return roughly where some blocks are, m."""
    return tuple(_rounded(place) for place in places)


def _rounded(point: Array) -> Point:
    """Return a point that stands for those around it, m."""
    x, y = (ROUNDING * np.round(point / ROUNDING)).tolist()
    return x, y


def make_actor(task: Sorting, behavior: str, rng: np.random.Generator) -> Callable[[Array], Array]:
    """Return what acts in an episode that has just been reset."""
    return BlockSorter(task.colors, behavior, rng).act


DEMONSTRATOR = Demonstrator(
    make_actor=make_actor,
    version=3,
    description=(
        "goes behind a block and reverses it like a trailer around the others, with "
        "Ornstein-Uhlenbeck heading noise"
    ),
)
