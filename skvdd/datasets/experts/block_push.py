"""A scripted demonstrator for Block Push: get behind a block, push it home, then the other."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from skvdd.datasets.experts.recording import Array, Demonstrator
from skvdd.envs.block_push import BEHAVIORS, BlockPush

# Drawn once per episode, between two bounds.
APPROACH_SPEED = (0.020, 0.030)  # m per step
PUSH_SPEED = (0.010, 0.015)  # m per step
STANDOFF = (0.050, 0.060)  # m, from the block's centre to where a push begins
CLEARANCE = (0.042, 0.048)  # m, from the centres of blocks that are passed
ARRIVAL = (0.016, 0.026)  # m, how close to its goal the first block is left

CONTACT = 0.025  # m, from the block's centre to the rod that pushes it
MAX_DISTANCE = 0.075  # m, from the block's centre to the rod, for a push
MAX_ANGLE = (0.45, 0.12)  # rad, between way and push, in contact and at the standoff
BLOCK_CLEARANCE = 0.065  # m, between the centres of a pushed block and the other

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
    behind it, otherwise the rod goes there. The heading carries an Ornstein-Uhlenbeck noise, and
    now and then a step goes astray altogether, so that recordings contain detours and second
    attempts.

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
        self._wander = rng.standard_normal()

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
        self._wander *= MEMORY
        self._wander += math.sqrt(1.0 - MEMORY**2) * self._rng.standard_normal()
        if self._is_behind(rod, block, way):
            return self._push(rod, block, float(remaining[which]))
        return self._approach(rod, block - self._standoff * way, block, other)

    def _jerk(self) -> Array:
        """Go astray for one step."""
        length, heading = self._rng.uniform(*JERK_LENGTH), self._rng.uniform(-math.pi, math.pi)
        return length * np.array([math.cos(heading), math.sin(heading)])

    def _is_behind(self, rod: Array, block: Array, way: Array) -> bool:
        """Say whether a push from here moves the block along its way."""
        distance = math.dist(rod, block)
        tolerated = float(np.interp(distance, (CONTACT, self._standoff), MAX_ANGLE))
        return distance < MAX_DISTANCE and abs(_angle(way, block - rod)) < tolerated

    def _push(self, rod: Array, block: Array, remaining: float) -> Array:
        """Move towards the centre of the block, slower near the goal and not beyond."""
        distance = math.dist(rod, block)
        speed = self._push_speed * min(max(remaining / SLOWING_DISTANCE, SLOWEST), 1.0)
        speed = min(speed, remaining + max(distance - CONTACT, 0.0))
        return speed * _turned((block - rod) / distance, PUSH_NOISE * self._wander)

    def _approach(self, rod: Array, standoff: Array, block: Array, other: Array) -> Array:
        """Go to the standoff, around the blocks."""
        distance = math.dist(rod, standoff)
        heading = heading_around(rod, standoff, block, self._clearance)
        heading = heading_around(rod, rod + distance * heading, other, self._clearance)
        noise = APPROACH_NOISE * min(distance / STEADYING_DISTANCE, 1.0)
        return min(self._approach_speed, distance) * _turned(heading, noise * self._wander)


# ---------------------------------------------------------------------------------------
# Directions in the plane
# ---------------------------------------------------------------------------------------


def heading_around(start: Array, goal: Array, obstacle: Array, clearance: float) -> Array:
    """Return the direction to a goal, or past an obstacle that is in the way.

    Parameters
    ----------
    start, goal, obstacle : ndarray of shape (2,)
        Points, m. The goal is another than the start.
    clearance : float
        Radius of a circle around the obstacle, m, along whose tangent the way leads; from within
        it leads out. The circle is made smaller where the goal lies in it.

    Returns
    -------
    ndarray of shape (2,)
        Of length one.
    """
    length, distance = math.dist(start, goal), math.dist(start, obstacle)
    heading = (goal - start) / length
    ahead, aside = float((obstacle - start) @ heading), _cross(heading, obstacle - start)
    radius = min(clearance, 0.95 * math.dist(goal, obstacle))
    if not 0.0 < ahead < length or abs(aside) >= radius:
        return heading
    if distance > radius:
        bend = math.asin(radius / distance)
    else:
        bend = math.pi * (1.0 - 0.5 * distance / radius)
    return _turned((obstacle - start) / distance, -math.copysign(bend, aside))


def _cross(a: Array, b: Array) -> float:
    return float(a[0] * b[1] - a[1] * b[0])


def _angle(a: Array, b: Array) -> float:
    """Return by how much `b` is turned to the left of `a`, rad."""
    return math.atan2(_cross(a, b), float(a @ b))


def _turned(vector: Array, angle: float) -> Array:
    """Return a vector turned to the left."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([c * vector[0] - s * vector[1], s * vector[0] + c * vector[1]])


# ---------------------------------------------------------------------------------------
# For the recording
# ---------------------------------------------------------------------------------------


def make_pusher(
    task: BlockPush, behavior: str, rng: np.random.Generator
) -> Callable[[Array], Array]:
    """Return what a demonstrator does in the context that the task is in.

    Parameters
    ----------
    task : BlockPush
        After its reset.
    behavior : {"block first", "block2 first"}
        Which block is pushed first.
    rng : numpy.random.Generator
        Draws all variation.

    Returns
    -------
    callable
        ``act(observation)`` returns the next action, (2,).
    """
    return Pusher(task.goal, BEHAVIORS.index(behavior), rng).act


DEMONSTRATORS = {
    "blockpush": Demonstrator(
        name="blockpush",
        env_id="skvdd/BlockPush-v0",
        version=2,
        behaviors=BEHAVIORS,
        make_actor=make_pusher,
        description="pushes from behind through the centre, with wandering heading and rare jerks",
        states=(
            "block x",
            "block y",
            "block yaw",
            "block2 x",
            "block2 y",
            "block2 yaw",
            "measured x",
            "measured y",
            "commanded x",
            "commanded y",
        ),
        actions=("change of commanded x", "change of commanded y"),
        metadata={"units": "m, rad", "control_period": 0.1},
    )
}
