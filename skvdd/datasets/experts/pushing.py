"""A scripted demonstrator for Pushing: get behind a cube, then reverse it like a trailer."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import dijkstra

from skvdd.datasets.experts.recording import Demonstrator
from skvdd.envs.pushing import BEHAVIORS, TARGETS, Pushing, placements_of

Array = NDArray[np.float64]

# The way of the rod round the cubes; m, from centre to centre.
CLEARANCE = 0.068  # that the rod keeps from the cubes
SOFTNESS = 0.015  # of the repulsion within the clearance: here it is as strong as the pull
N_CORNERS = 12  # of the polygons that stand for the circles of that radius
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


# ---------------------------------------------------------------------------------------
# The way round the cubes
# ---------------------------------------------------------------------------------------


def way_round(start: Array, goal: Array, centres: Array, radius: float) -> Array:
    """Return the shortest way between two points that keeps out of some circles.

    Parameters
    ----------
    start, goal : ndarray of shape (2,)
        Its ends, m. A circle that contains one of them shrinks until it does not.
    centres : ndarray of shape (n, 2)
        Centres of the circles, m.
    radius : float
        Their radius, m.

    Returns
    -------
    ndarray of shape (k, 2)
        Corners of the way, from start to goal, m.
    """
    ends = np.array([start, goal])
    room = np.linalg.norm(ends[:, None] - centres, axis=2).min(axis=0)
    radii = np.minimum(radius, 0.99 * room)
    points = np.concatenate([ends, _polygons(centres, radii)])
    lengths = np.linalg.norm(points[:, None] - points, axis=2)
    lengths[_crosses(points, centres, radii)] = 0.0  # no edge
    _, before = dijkstra(lengths, indices=0, return_predecessors=True)
    way = [1]
    while way[-1] > 0:
        way.append(before[way[-1]])
    return points[way[::-1]]


def _polygons(centres: Array, radii: Array) -> Array:
    """Return the corners of regular polygons whose sides pass just outside circles, (m, 2)."""
    angles = 2.0 * math.pi * np.arange(N_CORNERS) / N_CORNERS
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1) / math.cos(math.pi / N_CORNERS)
    return (centres[:, None] + 1.001 * radii[:, None, None] * unit).reshape(-1, 2)


def _crosses(points: Array, centres: Array, radii: Array) -> NDArray[np.bool_]:
    """Say which of the straight lines between n points cross a circle, (n, n)."""
    line = (points[None] - points[:, None])[:, :, None]  # (n, n, 1, 2)
    to_centre = (centres - points[:, None])[:, None]  # (n, 1, circles, 2)
    squared = np.maximum(np.sum(line**2, axis=3), 1e-12)
    share = np.clip(np.sum(line * to_centre, axis=3) / squared, 0.0, 1.0)
    nearest = share[..., None] * line - to_centre
    return (np.linalg.norm(nearest, axis=3) < radii).any(axis=2)


def point_ahead(way: Array, distance: float) -> Array:
    """Return the point at a distance from the start of a way, measured along it, or its end."""
    for one, other in pairwise(way):
        length = _distance(one, other)
        if length > distance:
            return one + (other - one) * distance / length
        distance -= length
    return way[-1]


def heading_past(cube: Array, goal: Array, other: Array) -> Array:
    """Return where to push a cube: to its goal, or past the other cube if that is in the way.

    Parameters
    ----------
    cube, goal, other : ndarray of shape (2,)
        Where the cube is, where it should go, and where the other one is, m.

    Returns
    -------
    ndarray of shape (2,)
        A direction of length one; at closest the tangent to a circle round the other cube.
    """
    way, to_other = goal - cube, other - cube
    distance = float(np.linalg.norm(to_other))
    tangent = math.asin(min(1.0, CUBE_CLEARANCE / distance))
    side = _angle_between(to_other, way)
    if distance > np.linalg.norm(way) or abs(side) > tangent:
        return _unit(way)
    heading = math.atan2(to_other[1], to_other[0]) + math.copysign(tangent, side)
    return np.array([math.cos(heading), math.sin(heading)])


# ---------------------------------------------------------------------------------------
# The demonstrator
# ---------------------------------------------------------------------------------------


class CubePusher:
    """Push one cube after the other to its target.

    What it does follows from where rod and cubes are. From elsewhere, the rod goes round the
    cubes to the point behind the one to be pushed, seen from its target. From there it pushes,
    and rod and cube are like a car and a trailer in reverse: the axis of the trailer is the line
    from rod to cube; to turn it to one side, the rod steers to the other. When the cube is
    placed, or the axis has turned too far, the rod leaves it.

    The heading carries an Ornstein-Uhlenbeck noise. Because it is correlated over about ten
    steps, cubes really go astray and are really brought back: the recordings contain
    recoveries, without which imitation drifts away.

    Parameters
    ----------
    behavior : int
        Which of `~skvdd.envs.pushing.BEHAVIORS`.
    rng : numpy.random.Generator
        Draws speeds, distances and wandering.
    """

    def __init__(self, behavior: int, rng: np.random.Generator) -> None:
        self._first, self._second = placements_of(behavior)
        self._rng = rng
        self._travel_speed = rng.uniform(*TRAVEL_SPEED)
        self._push_speed = rng.uniform(*PUSH_SPEED)
        self._behind = rng.uniform(*BEHIND)
        self._wander = rng.standard_normal()

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
        if is_behind(axis, heading):
            return self._push(axis, heading, _distance(cubes[block], goal))
        # The arm is soft: half-way between desired and measured is where it will be.
        return self._travel(0.5 * (desired + rod), cubes[block] - self._behind * heading, cubes)

    def _is_placed(self, rod: Array, cubes: Array) -> bool:
        """Say whether the first cube is in its target and needs no more pushing."""
        block, target = self._first
        way = np.array(TARGETS[target][:2]) - cubes[block]
        axis = cubes[block] - rod
        is_pushed = is_behind(axis, _unit(way)) and float(way @ _unit(axis)) > STOP
        return float(np.linalg.norm(way)) < NEARLY_THERE and not is_pushed

    def _push(self, axis: Array, heading: Array, left: float) -> Array:
        """Return a step that turns the axis from rod to cube towards a heading."""
        fading = min(1.0, left / STEERING_FADES)
        steering = -STEERING_GAIN * fading * _angle_between(axis, heading)
        steering = min(max(steering, -MAX_STEERING), MAX_STEERING)
        speed = min(self._push_speed, NEAR_SPEED + BRAKING * left)
        return self._step(math.atan2(axis[1], axis[0]) + steering, speed, PUSH_NOISE)

    def _travel(self, rod: Array, point: Array, cubes: Array) -> Array:
        """Return a step on the way to a point, away from cubes that are too near."""
        way = way_round(rod, point, cubes, CLEARANCE)
        direction = _unit(point_ahead(way, LOOK_AHEAD) - rod)
        for cube in cubes:
            intrusion = max(0.0, CLEARANCE - _distance(rod, cube))
            direction += _unit(rod - cube) * intrusion / SOFTNESS
        speed = min(self._travel_speed, NEAR_SPEED + BRAKING * _distance(rod, point))
        return self._step(math.atan2(direction[1], direction[0]), speed, TRAVEL_NOISE)

    def _step(self, heading: float, speed: float, noise: float) -> Array:
        """Return a step whose heading wanders."""
        renewal = math.sqrt(1.0 - HEADING_MEMORY**2)
        self._wander = HEADING_MEMORY * self._wander + renewal * self._rng.standard_normal()
        heading += noise * self._wander
        length = speed * (1.0 + SPEED_NOISE * self._rng.standard_normal())
        return np.array([length * math.cos(heading), length * math.sin(heading)])


def is_behind(axis: Array, heading: Array) -> bool:
    """Say whether a rod may push a cube from where it is.

    Parameters
    ----------
    axis : ndarray of shape (2,)
        From the rod to the cube, m.
    heading : ndarray of shape (2,)
        Where the cube should go.
    """
    distance = float(np.linalg.norm(axis))
    allowed = float(np.interp(distance, TOUCH, MISALIGNMENT))
    return distance < REACH and abs(_angle_between(axis, heading)) < allowed


def _unit(vector: Array) -> Array:
    """Return a vector of length one with the same direction, zero for zero."""
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def _distance(one: Array, other: Array) -> float:
    """Return how far two points are apart."""
    return float(np.linalg.norm(one - other))


def _angle_between(one: Array, other: Array) -> float:
    """Return the turn that leads from one direction to another, rad, in [-pi, pi]."""
    return math.atan2(one[0] * other[1] - one[1] * other[0], float(one @ other))


def make_actor(task: Pushing, behavior: int, rng: np.random.Generator) -> Callable[[Array], Array]:
    """Return what `~skvdd.datasets.experts.recording.demonstrate` asks for actions."""
    return CubePusher(behavior, rng).act


DEMONSTRATORS = {
    "pushing": Demonstrator(
        name="pushing",
        env_id="skvdd/Pushing-v0",
        version=2,
        behaviors=BEHAVIORS,
        make_actor=make_actor,
        description=(
            "goes behind a cube and reverses it like a trailer, with Ornstein-Uhlenbeck "
            "heading noise"
        ),
        states=(
            "desired x",
            "desired y",
            "measured x",
            "measured y",
            "red x",
            "red y",
            "tan(red yaw)",
            "green x",
            "green y",
            "tan(green yaw)",
        ),
        actions=("change of desired x", "change of desired y"),
        metadata={"units": "m", "control_period": 0.035},
    )
}
