"""A scripted demonstrator for Aligning, which drives the tray like a car.

The tray stops where it is left, and while the rod pushes it the tray turns about a point on the
line through the contact and its center, somewhere off the center. So it moves like a car whose
rear axle is there: forwards along that line, and around bends. The rod tows the car from a corner
inside, or shoves it from a wall outside. It is steered onto a circular arc that ends on the
target and on the way turns the tray by the angle wanted there. Where the target is passed without
a success, single straight pushes correct what is left.

Positions in the plane are complex numbers here: multiplying by a number of length one turns them.
Points of the tray are in the frame of the environment, whose axes are normal to the walls.
"""

from __future__ import annotations

import cmath
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skvdd.datasets.experts.recording import Demonstrator
from skvdd.datasets.experts.steering import Wander
from skvdd.envs.aligning import (
    INSIDE,
    MAX_DISTANCE,
    MAX_ROTATION,
    WALL_DISTANCE,
    WALL_HALF_THICKNESS,
    Aligning,
)

Array = NDArray[np.float64]

ROD_RADIUS = 0.01  # m
INNER_HALF_SIZE = WALL_DISTANCE - WALL_HALF_THICKNESS - ROD_RADIUS  # m, for the axis of the rod
OUTER_HALF_SIZE = WALL_DISTANCE + WALL_HALF_THICKNESS + ROD_RADIUS  # m, likewise
SIDES = (1, 1j, -1, -1j)  # outward normals of the walls
CORNERS = tuple(complex(x, y) / math.sqrt(2.0) for x in (-1, 1) for y in (-1, 1))

# The way of the tool
SPEED = (0.0060, 0.0080)  # m per step, on the way to the tray; drawn once per episode
PUSHING_SPEED = (0.0050, 0.0065)  # m per step
FINAL_SPEED = 0.0035  # m per step, at the target
BRAKING = 0.08  # 1/step, speed over distance to the target
APPROACH = 0.3  # 1/step, speed over distance of the tool to where it goes
TRAVEL_HEIGHT = (0.230, 0.250)  # m, of the tool above the tray
WORK_HEIGHT = (0.124, 0.132)  # m, of the tool between the walls
CLEAR_HEIGHT = 0.21  # m, above which the tip of the rod is over the walls
OVERHEAD = 0.015  # m in the plane, from which the rod is lowered
HEADING_NOISE = 0.35  # rad, standard deviation of the wandering heading on the way
PUSHING_NOISE = 0.12  # rad, while pushing
HEADING_MEMORY = 0.9  # per step: the heading forgets in about ten steps

STEADY = 0.05  # m, from which on the heading wanders less

# Taking hold
ROUND_RADIUS = 0.11  # m, of the way around the tray
ROUND_STEP = 0.6  # rad, seen from the tray: a way farther around goes in such pieces
ASIDE = 0.006  # m along the wall, how exactly a place is taken
TOUCH = 0.004  # m, from the wall
LOST = 0.02  # m, from the wall, or past it beside the tray
PRESS = 0.01  # m, into the wall: where the tool is led to make contact
TASTE = 0.3  # rad, how much worse than another a place may be and yet be taken

# Driving
GAIN = 25.0  # 1/m, an error of the heading has gone after about 1/GAIN
MAX_ERROR = 1.0  # rad, that is steered against
FOCUS = 0.05  # m, the least distance at which the car aims
PASSED = -0.005  # m, from the target on

# Straight pushes
NEAR = 0.05  # m, from which the target is approached by them
TURNING_RADIUS = 0.05  # m, moment over force of the friction under the tray
LENGTHS = np.arange(0.0, 0.05, 0.002)  # m, of a push
OFFSETS = (-0.03, -0.02, -0.01, 0.0, 0.01, 0.02, 0.03)  # m along the wall


class Scene(NamedTuple):
    """What an observation says; m and rad."""

    desired: complex
    desired_height: float
    tool: complex
    height: float
    tray: complex
    yaw: float
    target: complex
    target_yaw: float

    @property
    def turn(self) -> float:
        """By how much the tray has to turn, rad."""
        return math.remainder(self.target_yaw - self.yaw, 2.0 * math.pi)

    def in_tray(self, point: complex) -> complex:
        """Return a point of the plane in the frame of the tray."""
        return (point - self.tray) * cmath.rect(1.0, -self.yaw)

    def in_plane(self, point: complex) -> complex:
        """Return a point of the tray in the plane."""
        return self.tray + point * cmath.rect(1.0, self.yaw)


def see(observation: Array) -> Scene:
    """Sort an observation."""
    o = observation.tolist()
    yaw, target_yaw = 2.0 * math.atan2(o[12], o[9]), 2.0 * math.atan2(o[19], o[16])
    tray, target = complex(o[6], o[7]), complex(o[13], o[14])
    return Scene(
        complex(o[0], o[1]), o[2], complex(o[3], o[4]), o[5], tray, yaw, target, target_yaw
    )


class Hold(NamedTuple):
    """Where the rod takes hold of the tray."""

    place: complex  # m in the tray, of the axis of the rod
    push: complex  # direction in the tray, of length one
    is_straight: bool = False  # whether it is for a single straight push

    def gap(self, rod: complex) -> float:
        """Return how far the rod is from touching, m."""
        return ((self.place - rod) / self.push).real

    def offset(self, rod: complex) -> float:
        """Return how far the rod is to the left of the place, seen in the direction of push, m."""
        return ((rod - self.place) / self.push).imag

    def at(self, rod: complex) -> Hold:
        """Return the hold of a rod that has slid along the wall."""
        return self._replace(place=self.place + 1j * self.push * self.offset(rod))


class Car(NamedTuple):
    """The tray as a car."""

    heading: float  # rad, in the plane
    lever: float  # m, of the rod before the axle; it swings out by this times the turn
    way: complex  # m, from the axle to where it has to be; the car heads along the real axis
    turn: float  # rad, by which the car has to turn

    @property
    def bearing(self) -> float:
        """Direction of the target, rad; aimed at farther ahead where the target is near."""
        if self.way.real < 0.0 and abs(self.way) > FOCUS:
            return cmath.phase(self.way)
        return math.atan2(self.way.imag, max(self.way.real, FOCUS))

    @property
    def error(self) -> float:
        """Heading minus that of the arc which ends on the target in the right direction, rad.

        The direction changes along an arc by twice the angle between tangent and chord.
        """
        return self.turn - 2.0 * self.bearing

    @property
    def curvature(self) -> float:
        """Bend of the way that follows the arc and lets the error decay, 1/m."""
        arc = 2.0 * math.sin(self.bearing) / max(abs(self.way), FOCUS)
        return arc - GAIN * min(max(self.error, -MAX_ERROR), MAX_ERROR)


def predict_push(scene: Scene, hold: Hold) -> tuple[float, float]:
    """Predict a straight push.

    Parameters
    ----------
    scene : Scene
        Where tray and target are.
    hold : Hold
        From where it is pushed, along ``hold.push``.

    Returns
    -------
    error : float
        What remains after the best length, in multiples of what a success allows.
    length : float
        The best length, m.
    """
    arm = (hold.place.conjugate() * hold.push).imag
    advance = 1.0 / (1.0 + (arm / TURNING_RADIUS) ** 2)
    way = scene.in_tray(scene.target) - advance * LENGTHS * hold.push
    turn = scene.turn - advance * LENGTHS * arm / TURNING_RADIUS**2
    errors = np.hypot(np.abs(way) / MAX_DISTANCE, turn / MAX_ROTATION)
    best = int(np.argmin(errors))
    return float(errors[best]), float(LENGTHS[best])


class Driver(ABC):
    """Bring the tray to its target, looking at every observation anew.

    What is remembered is visible as well: the hold that the rod makes for or pushes at. The
    heading wanders, correlated over about ten steps, so that the recordings contain deviations
    and recoveries.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws speeds, heights, a taste for holds, and the wandering.
    """

    axle: ClassVar[float]  # m, how far the axle is behind the center, found by trial: where
    # the rod pushes, high on a wall, the tray leans forwards and turns farther ahead
    max_curvature: ClassVar[float]  # 1/m, beyond which the rod slips
    setback: ClassVar[float]  # m, from a hold, where the rod makes ready
    holds: ClassVar[tuple[Hold, ...]]  # for driving
    straight_holds: ClassVar[tuple[Hold, ...]]

    def __init__(self, rng: np.random.Generator) -> None:
        self._speed = rng.uniform(*SPEED)
        self._pushing_speed = rng.uniform(*PUSHING_SPEED)
        self._travel_height = rng.uniform(*TRAVEL_HEIGHT)
        self._work_height = rng.uniform(*WORK_HEIGHT)
        self._taste = TASTE * rng.uniform(size=len(self.holds))
        self._wander = Wander(rng, HEADING_MEMORY)
        self._hold: Hold | None = None
        self._is_pushing = False

    @abstractmethod
    def _is_lowered(self, scene: Scene, rod: complex) -> bool:
        """Say whether the rod is between the walls, or beside them."""

    @abstractmethod
    def _way_to(self, place: complex, rod: complex) -> complex:
        """Return where to go first on the way to a place, in the frame of the tray."""

    def act(self, observation: Array) -> Array:
        """Return the next change of the set-point, m, (3,).

        Parameters
        ----------
        observation : ndarray of shape (20,)
            What the environment returned.
        """
        self._wander.step()
        scene = see(observation)
        rod = scene.in_tray(scene.tool)
        if self._hold is None or (self._is_pushing and self._has_done(scene, self._hold, rod)):
            self._hold, self._is_pushing = self._choose(scene), False
        hold = self._hold
        if not self._is_lowered(scene, rod):
            return self._come_down(scene, self._ready(hold))
        gap = hold.gap(rod)
        is_in_line = abs(hold.offset(rod)) < ASIDE and gap > -TOUCH
        self._is_pushing = self._is_pushing or (is_in_line and gap < TOUCH)
        if self._is_pushing:
            return self._push(scene, hold.at(rod))
        if is_in_line:
            return self._go(scene, hold.place + PRESS * hold.push, self._pushing_speed)
        return self._go(scene, self._way_to(self._ready(hold), rod), self._speed)

    def _choose(self, scene: Scene) -> Hold:
        """Return the hold from which the tray is driven or, near the target, pushed straight."""
        if abs(scene.target - scene.tray) < NEAR:
            return min(self.straight_holds, key=lambda hold: predict_push(scene, hold)[0])
        errors = [abs(self._car(scene, hold).error) for hold in self.holds]
        return self.holds[int(np.argmin(errors + self._taste))]

    def _has_done(self, scene: Scene, hold: Hold, rod: complex) -> bool:
        """Say whether a push has come to its end, or has lost the tray."""
        if abs(hold.gap(rod)) > LOST:
            return True
        if hold.is_straight:
            return predict_push(scene, hold.at(rod))[1] == 0.0
        return self._car(scene, hold.at(rod)).way.real < PASSED

    def _ready(self, hold: Hold) -> complex:
        """Return where the rod makes ready for a hold, m in the tray."""
        return hold.place - self.setback * hold.push

    def _car(self, scene: Scene, hold: Hold) -> Car:
        """Return the tray as the car that is driven from a hold."""
        ahead = hold.place / abs(hold.place)  # from the center to the rod
        if (ahead / hold.push).real < 0.0:
            ahead = -ahead
        axle = -self.axle * ahead
        goal = scene.target + axle * cmath.rect(1.0, scene.target_yaw)
        way = (scene.in_tray(goal) - axle) / ahead
        lever = (hold.place / ahead).real + self.axle
        return Car(scene.yaw + cmath.phase(ahead), lever, way, scene.turn)

    def _push(self, scene: Scene, hold: Hold) -> Array:
        """Move the rod straight on, or so that the car is steered."""
        if hold.is_straight:
            heading, speed = scene.yaw + cmath.phase(hold.push), FINAL_SPEED
        else:
            car = self._car(scene, hold)
            bend = min(max(car.curvature, -self.max_curvature), self.max_curvature)
            heading = car.heading + math.atan(car.lever * bend)
            speed = min(self._pushing_speed, max(FINAL_SPEED, BRAKING * abs(car.way)))
        heading += PUSHING_NOISE * self._wander.value
        return self._move(scene, speed, heading, self._work_height)

    def _come_down(self, scene: Scene, place: complex) -> Array:
        """Go to a place of the tray above the walls, and lower the rod there."""
        goal = scene.in_plane(place)
        is_there = max(abs(scene.tool - goal), abs(scene.desired - goal)) < OVERHEAD
        height = self._work_height if is_there else self._travel_height
        way = goal - scene.desired
        wander = HEADING_NOISE * self._wander.value * min(abs(way) / STEADY, 1.0)
        speed = min(self._speed, APPROACH * abs(way))
        return self._move(scene, speed, cmath.phase(way) + wander, height)

    def _go(self, scene: Scene, place: complex, speed: float) -> Array:
        """Go to a place of the tray between the walls or beside them."""
        way = scene.in_plane(place) - scene.desired
        speed = min(speed, APPROACH * abs(way))
        return self._move(scene, speed, cmath.phase(way), self._work_height)

    def _move(self, scene: Scene, speed: float, heading: float, height: float) -> Array:
        """Return the action: a step in the plane, and toward a height."""
        step = cmath.rect(speed, heading)
        rise = APPROACH * (height - scene.desired_height)
        return np.array([step.real, step.imag, min(max(rise, -self._speed), self._speed)])


class Inside(Driver):
    """Tow the tray from its corners, which hold the rod; push its walls from within."""

    axle = 0.010
    max_curvature = 25.0
    setback = 0.02
    holds = tuple(Hold(math.sqrt(2.0) * INNER_HALF_SIZE * c, c) for c in CORNERS)
    straight_holds = tuple(
        Hold(side * complex(INNER_HALF_SIZE, offset), side, True)
        for side in SIDES
        for offset in OFFSETS
    )

    def _is_lowered(self, scene: Scene, rod: complex) -> bool:
        return scene.height < CLEAR_HEIGHT and max(abs(rod.real), abs(rod.imag)) < WALL_DISTANCE

    def _way_to(self, place: complex, rod: complex) -> complex:
        return place


class Outside(Driver):
    """Shove the tray from outside, going around it where another wall has to be pushed."""

    axle = -0.07
    max_curvature = 7.0
    setback = 0.025
    holds = tuple(
        Hold(side * complex(OUTER_HALF_SIZE, offset), -side) for side in SIDES for offset in OFFSETS
    )
    straight_holds = tuple(hold._replace(is_straight=True) for hold in holds)

    def _is_lowered(self, scene: Scene, rod: complex) -> bool:
        return scene.height < CLEAR_HEIGHT

    def _way_to(self, place: complex, rod: complex) -> complex:
        angle = cmath.phase(place / rod)
        if abs(angle) < ROUND_STEP:
            return place
        return cmath.rect(ROUND_RADIUS, cmath.phase(rod) + math.copysign(ROUND_STEP, angle))


def make_actor(task: Aligning, behavior: int, rng: np.random.Generator) -> Callable[[Array], Array]:
    """Return what acts in an episode that has just been reset."""
    return (Inside(rng) if behavior == INSIDE else Outside(rng)).act


DEMONSTRATOR = Demonstrator(
    make_actor=make_actor,
    version=3,
    description=(
        "the tray driven like a car along arcs, corrected by straight pushes, with "
        "Ornstein-Uhlenbeck heading noise"
    ),
)
