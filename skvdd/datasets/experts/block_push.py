"""A scripted demonstrator for Block Push: get behind a block, push it home, then the other."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from skvdd.datasets.experts.paths import heading_around
from skvdd.datasets.experts.recording import Demonstrator
from skvdd.datasets.experts.steering import Wander, is_behind, polar, turned
from skvdd.envs.block_push import BEHAVIORS, BlockPush

Array = NDArray[np.float64]

# Drawn once per episode, between two bounds.
APPROACH_SPEED = (0.020, 0.030)  # m per step
PUSH_SPEED = (0.010, 0.015)  # m per step
STANDOFF = (0.050, 0.060)  # m, from the block's center to where a push begins
CLEARANCE = (0.042, 0.048)  # m, from the centers of blocks that are passed
ARRIVAL = (0.016, 0.026)  # m, how close to its goal the first block is left

CONTACT = 0.025  # m, from the block's center to the rod that pushes it
MAX_DISTANCE = 0.075  # m, from the block's center to the rod, for a push
MAX_ANGLE = (0.45, 0.12)  # rad, between way and push, in contact and at the standoff
BLOCK_CLEARANCE = 0.065  # m, between the centers of a pushed block and the other

SLOWING_DISTANCE = 0.06  # m, from the goal
SLOWEST = 0.5  # of the speed, at the goal

APPROACH_NOISE = 0.35  # rad, standard deviation of the wandering heading
PUSH_NOISE = 0.12  # rad
STEADYING_DISTANCE = 0.1  # m, from the standoff: there the approach wanders less and less
MEMORY = 0.8  # per step: the heading forgets in about five steps

JERK_RATE = 0.04  # per step
JERK_LENGTH = (0.015, 0.035)  # m, in any direction


class Pusher:
    """Push one block home, then the other, and correct what goes astray.

    What is done depends on where rod and blocks are, and on nothing that happened before: the
    first block is pushed until it is home, then the other; a block is pushed while the rod is
    behind it, otherwise the rod goes there. Now and then a step goes astray altogether, so that
    recordings contain second attempts.

    Parameters
    ----------
    goal : ndarray of shape (2, 2)
        Where block and block2 shall be, m.
    first : {0, 1}
        Which is pushed first.
    rng : numpy.random.Generator
        Draws speeds, distances and wandering.
    """

    def __init__(self, goal: Array, first: int, rng: np.random.Generator) -> None:
        self._goal = goal
        self._first = first
        self._rng = rng
        self._approach_speed = rng.uniform(*APPROACH_SPEED)
        self._push_speed = rng.uniform(*PUSH_SPEED)
        self._standoff = rng.uniform(*STANDOFF)
        self._clearance = rng.uniform(*CLEARANCE)
        self._arrival = rng.uniform(*ARRIVAL)
        self._wander = Wander(rng, MEMORY)

    def act(self, observation: Array) -> Array:
        """Return the next change of the command, m, (2,).

        Parameters
        ----------
        observation : ndarray of shape (10,)
            What the environment returned.
        """
        if self._rng.uniform() < JERK_RATE:
            return self._jerk()
        blocks, rod = observation[[0, 1, 3, 4]].reshape(2, 2), observation[8:10]
        remaining = np.linalg.norm(self._goal - blocks, axis=1)
        which = self._first if remaining[self._first] > self._arrival else 1 - self._first
        block, other = blocks[which], blocks[1 - which]
        way = heading_around(block, self._goal[which], other, BLOCK_CLEARANCE)
        self._wander.step()
        contact = (CONTACT, self._standoff)
        if is_behind(block - rod, way, MAX_DISTANCE, contact, MAX_ANGLE):
            return self._push(rod, block, float(remaining[which]))
        return self._approach(rod, block - self._standoff * way, block, other)

    def _jerk(self) -> Array:
        """Go astray for one step."""
        return polar(self._rng.uniform(*JERK_LENGTH), self._rng.uniform(-math.pi, math.pi))

    def _push(self, rod: Array, block: Array, remaining: float) -> Array:
        """Move toward the center of the block, slower near the goal and not beyond."""
        distance = math.dist(rod, block)
        speed = self._push_speed * min(max(remaining / SLOWING_DISTANCE, SLOWEST), 1.0)
        speed = min(speed, remaining + max(distance - CONTACT, 0.0))
        return speed * turned((block - rod) / distance, PUSH_NOISE * self._wander.value)

    def _approach(self, rod: Array, standoff: Array, block: Array, other: Array) -> Array:
        """Go to the standoff, around the blocks."""
        distance = math.dist(rod, standoff)
        heading = heading_around(rod, standoff, block, self._clearance)
        heading = heading_around(rod, rod + distance * heading, other, self._clearance)
        noise = APPROACH_NOISE * min(distance / STEADYING_DISTANCE, 1.0)
        return min(self._approach_speed, distance) * turned(heading, noise * self._wander.value)


def make_actor(
    task: BlockPush, behavior: str, rng: np.random.Generator
) -> Callable[[Array], Array]:
    """Return what acts in an episode that has just been reset."""
    return Pusher(task.goal, BEHAVIORS.index(behavior), rng).act


DEMONSTRATOR = Demonstrator(
    make_actor=make_actor,
    version=3,
    description="pushes from behind through the center, with wandering heading and rare jerks",
)
