"""A scripted demonstrator for Pushing: get behind a cube, then reverse it like a trailer."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from skvdd.datasets.experts.paths import point_ahead, way_round
from skvdd.datasets.experts.recording import Demonstrator
from skvdd.datasets.experts.steering import (
    WanderingHand,
    angle_between,
    distance,
    heading_of,
    is_behind,
    polar,
    reverse_trailer,
    unit,
)
from skvdd.envs.pushing import TARGETS, Pushing, placements_of

Array = NDArray[np.float64]

# The way of the rod around the cubes; m, from center to center.
CLEARANCE = 0.068  # that the rod keeps from the cubes
SOFTNESS = 0.015  # of the repulsion within the clearance: here it is as strong as the pull
LOOK_AHEAD = 0.04

# Pushing.
BEHIND = (0.058, 0.070)  # m, from the cube to where the rod makes for before it pushes
REACH = 0.075  # m, farther away the rod does not push
TOUCH = (0.045, 0.060)  # m: nearer than the first it surely touches, beyond the second it cannot
MISALIGNMENT = (1.0, 0.35)  # rad, allowed to push at these distances
STEERING_GAIN = 2.5  # turn of the rod's heading per misalignment
MAX_STEERING = 0.8  # rad, since with more the rod would slip along the cube
STEERING_FADES = 0.05  # m, distance from the target within which the steering becomes weaker
CUBE_CLEARANCE = 0.10  # m, that a pushed cube keeps from the other one

# When a cube counts as placed, m.
NEARLY_THERE = 0.04  # distance from its target: good enough, unless it is still being pushed
STOP = 0.012  # what is left along the way of the push when that is over

# Lengths of steps, m; slower near a goal.
TRAVEL_SPEED = (0.0065, 0.0080)
PUSH_SPEED = (0.0050, 0.0070)
NEAR_SPEED = 0.0030
BRAKING = 0.10  # share of the distance that is added
SPEED_NOISE = 0.05  # standard deviation, relative

# The wandering heading.
TRAVEL_NOISE = 0.35  # rad, standard deviation
PUSH_NOISE = 0.20  # rad
HEADING_MEMORY = 0.9  # per step: the heading forgets in about ten steps


def heading_past(cube: Array, goal: Array, other: Array) -> Array:
    """Return where to push a cube: to its goal, or past the other cube if that is in the way.

    Parameters
    ----------
    cube, goal, other : ndarray of shape (2,)
        Where the cube is, where it should go, and where the other one is, m.

    Returns
    -------
    ndarray of shape (2,)
        A direction of length one; at closest the tangent to a circle around the other cube.
    """
    way, to_other = goal - cube, other - cube
    away = distance(cube, other)
    tangent = math.asin(min(1.0, CUBE_CLEARANCE / away))
    side = angle_between(to_other, way)
    if away > distance(cube, goal) or abs(side) > tangent:
        return unit(way)
    return polar(1.0, heading_of(to_other) + math.copysign(tangent, side))


class CubePusher:
    """Push one cube after the other to its target.

    What it does follows from where rod and cubes are. From elsewhere, the rod goes around the
    cubes to the point behind the one to be pushed, seen from its target. From there it pushes,
    and rod and cube are like a car and a trailer in reverse. When the cube is placed, or the
    axis has turned too far, the rod leaves it.

    Parameters
    ----------
    behavior : int
        Which of `~skvdd.envs.pushing.BEHAVIORS`.
    rng : numpy.random.Generator
        Draws speeds, distances and wandering.
    """

    def __init__(self, behavior: int, rng: np.random.Generator) -> None:
        self._first, self._second = placements_of(behavior)
        self._travel_speed = rng.uniform(*TRAVEL_SPEED)
        self._push_speed = rng.uniform(*PUSH_SPEED)
        self._behind = rng.uniform(*BEHIND)
        self._hand = WanderingHand(rng, HEADING_MEMORY, SPEED_NOISE)

    def act(self, observation: Array) -> Array:
        """Return the next change of the set-point, m, (2,).

        Parameters
        ----------
        observation : ndarray of shape (10,)
            What the environment returned.
        """
        desired, rod = observation[:2], observation[2:4]
        cubes = observation[[4, 5, 7, 8]].reshape(2, 2)
        block, target = self._second if self._is_placed(rod, cubes) else self._first
        goal = np.array(TARGETS[target][:2])
        heading = heading_past(cubes[block], goal, cubes[1 - block])
        axis = cubes[block] - rod
        if may_push(axis, heading):
            return self._push(axis, heading, distance(cubes[block], goal))
        # The arm is soft: half-way between desired and measured is where it will be.
        return self._travel(0.5 * (desired + rod), cubes[block] - self._behind * heading, cubes)

    def _is_placed(self, rod: Array, cubes: Array) -> bool:
        """Say whether the first cube is in its target and needs no more pushing."""
        block, target = self._first
        way = np.array(TARGETS[target][:2]) - cubes[block]
        axis = cubes[block] - rod
        is_pushed = may_push(axis, unit(way)) and float(way @ unit(axis)) > STOP
        return float(np.linalg.norm(way)) < NEARLY_THERE and not is_pushed

    def _push(self, axis: Array, heading: Array, left: float) -> Array:
        """Return a step that turns the axis from rod to cube toward a heading."""
        gain = STEERING_GAIN * min(1.0, left / STEERING_FADES)
        speed = min(self._push_speed, NEAR_SPEED + BRAKING * left)
        return self._hand.step(
            reverse_trailer(axis, heading, gain, MAX_STEERING), speed, PUSH_NOISE
        )

    def _travel(self, rod: Array, point: Array, cubes: Array) -> Array:
        """Return a step on the way to a point, away from cubes that are too near."""
        way = way_round(rod, point, cubes, CLEARANCE)
        direction = unit(point_ahead(way, LOOK_AHEAD) - rod)
        for cube in cubes:
            intrusion = max(0.0, CLEARANCE - distance(rod, cube))
            direction += unit(rod - cube) * intrusion / SOFTNESS
        speed = min(self._travel_speed, NEAR_SPEED + BRAKING * distance(rod, point))
        return self._hand.step(heading_of(direction), speed, TRAVEL_NOISE)


def may_push(axis: Array, heading: Array) -> bool:
    """Say whether a rod is well enough behind a cube; axis from rod to cube, m."""
    return is_behind(axis, heading, REACH, TOUCH, MISALIGNMENT)


def make_actor(task: Pushing, behavior: int, rng: np.random.Generator) -> Callable[[Array], Array]:
    """Return what acts in an episode that has just been reset."""
    return CubePusher(behavior, rng).act


DEMONSTRATOR = Demonstrator(
    make_actor=make_actor,
    version=3,
    description=(
        "goes behind a cube and reverses it like a trailer, with Ornstein-Uhlenbeck heading noise"
    ),
)
