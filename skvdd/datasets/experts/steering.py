"""How demonstrators steer: headings that wander, turns, and pushing like reversing a trailer."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Pair = tuple[float, float]

# ---------------------------------------------------------------------------------------
# Noise
# ---------------------------------------------------------------------------------------


class Wander:
    """An Ornstein-Uhlenbeck process: normal numbers that are correlated over some steps.

    Demonstrators add it to their heading. Because it lasts for several steps, a tool really goes
    astray and is really brought back: the recordings contain recoveries, without which imitation
    drifts away.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws it.
    memory : float
        Correlation of one step with the next: 0.9 is forgotten in about ten steps.
    spread : float, default=1.0
        Standard deviation.

    Attributes
    ----------
    value : float
        The number of this step.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd.datasets.experts.steering import Wander
    >>> wander = Wander(np.random.default_rng(0), memory=0.9)
    >>> values = [wander.step() for _ in range(10_000)]
    >>> round(float(np.corrcoef(values[1:], values[:-1])[0, 1]), 1)
    0.9
    """

    def __init__(self, rng: np.random.Generator, memory: float, spread: float = 1.0) -> None:
        self._rng = rng
        self._memory = memory
        self._renewal = math.sqrt(1.0 - memory**2) * spread
        self.value = spread * rng.standard_normal()

    def step(self) -> float:
        """Go on by one step and return the new value."""
        self.value = self._memory * self.value + self._renewal * self._rng.standard_normal()
        return self.value


class WanderingHand:
    """A hand whose heading wanders and whose steps are not equally long.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws both.
    memory : float
        Of the heading, as in `Wander`.
    speed_noise : float
        Standard deviation of the length of a step, relative.
    """

    def __init__(self, rng: np.random.Generator, memory: float, speed_noise: float) -> None:
        self._rng = rng
        self._wander = Wander(rng, memory)
        self._speed_noise = speed_noise

    def step(self, heading: float, speed: float, noise: float) -> Array:
        """Return a step, m, (2,).

        Parameters
        ----------
        heading : float
            Where to go, rad.
        speed : float
            How far, m.
        noise : float
            Standard deviation of the heading, rad.
        """
        heading += noise * self._wander.step()
        return polar(speed * (1.0 + self._speed_noise * self._rng.standard_normal()), heading)


# ---------------------------------------------------------------------------------------
# Directions in the plane
# ---------------------------------------------------------------------------------------


def polar(length: float, heading: float) -> Array:
    """Return the vector of a length and a direction (rad), (2,)."""
    return np.array([length * math.cos(heading), length * math.sin(heading)])


def heading_of(vector: NDArray[np.floating]) -> float:
    """Return the direction of a vector, rad."""
    return math.atan2(vector[1], vector[0])


def unit(vector: Array) -> Array:
    """Return the vector of length one in the same direction; zero for zero."""
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def distance(one: Array, other: Array) -> float:
    """Return how far two points are apart."""
    return float(np.linalg.norm(one - other))


def angle_between(one: Array, other: Array) -> float:
    """Return the turn that leads from one direction to another, rad, in [-pi, pi].

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd.datasets.experts.steering import angle_between
    >>> round(angle_between(np.array([1.0, 0.0]), np.array([0.0, 2.0])), 4)
    1.5708
    """
    return math.atan2(cross(one, other), float(one @ other))


def cross(one: Array, other: Array) -> float:
    """Return the cross product of two vectors: positive if the other points to the left."""
    return float(one[0] * other[1] - one[1] * other[0])


def turned(vector: Array, angle: float) -> Array:
    """Return a vector turned to the left by an angle, rad."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([c * vector[0] - s * vector[1], s * vector[0] + c * vector[1]])


# ---------------------------------------------------------------------------------------
# Pushing
# ---------------------------------------------------------------------------------------


def is_behind(
    axis: Array, heading: Array, reach: float, distances: Pair, misalignments: Pair
) -> bool:
    """Say whether a rod may push a block from where it is.

    Parameters
    ----------
    axis : ndarray of shape (2,)
        From the rod to the center of the block, m.
    heading : ndarray of shape (2,)
        Where the block should go.
    reach : float
        Distance from which on the rod does not push, m.
    distances, misalignments : tuple of two float
        Angles between axis and heading that are allowed at these distances, rad and m: in contact
        the rod may stand farther aside than before it.
    """
    length = float(np.linalg.norm(axis))
    allowed = float(np.interp(length, distances, misalignments))
    return length < reach and abs(angle_between(axis, heading)) < allowed


def reverse_trailer(axis: Array, heading: Array, gain: float, limit: float) -> float:
    """Return where a rod has to go so that the block before it turns to a heading, rad.

    Rod and block are like a car and a trailer in reverse. The line from rod to block is the
    trailer's axis: to turn it to one side, the rod steers to the other.

    Parameters
    ----------
    axis : ndarray of shape (2,)
        From the rod to the center of the block, m.
    heading : ndarray of shape (2,)
        Where the block should go.
    gain : float
        Turn of the rod's heading against the axis, per angle between axis and heading.
    limit : float
        Turn beyond which the rod would slip along the block, rad.
    """
    turn = gain * angle_between(axis, heading)
    return heading_of(axis) - min(max(turn, -limit), limit)
