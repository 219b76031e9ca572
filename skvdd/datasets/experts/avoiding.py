"""Scripted demonstrators for Avoiding: pure pursuit with a wandering heading, in several styles."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from skvdd.datasets.experts.recording import Demonstrator, Seed
from skvdd.datasets.experts.steering import Wander, heading_of, polar
from skvdd.envs.avoiding import BEHAVIORS, FINISH_Y, ROW_Y, ROWS, Avoiding, gaps_of

Array = NDArray[np.float64]
Action = NDArray[np.float32]

MAX_LENGTH = 200  # decisions in a demonstration, as in D3IL
ROUND = 96  # episodes of which each follows the law of a long-tailed set

GAP_X = ((0.41, 0.59), (0.345, 0.50, 0.655), (0.275, 0.425, 0.575, 0.718))  # m, gap centers
GAP_SPREAD = ((0.025, 0.025), (0.015, 0.006, 0.015), (0.012, 0.006, 0.006, 0.004))  # m
STRAIGHT = (0.022, 0.045)  # m, how far before and after a row the path runs straight on

SPEED = (0.0060, 0.0080)  # m per step, drawn once per episode
LOOK_AHEAD = 0.03  # m
SPEED_NOISE = 0.05  # of the speed, standard deviation
HEADING_NOISE = 0.45  # rad, standard deviation of the wandering heading
HEADING_MEMORY = 0.9  # per step: the heading forgets in about ten steps

SPEED_MEMORY = 0.95  # per step: a change of pace lasts about twenty steps
PAUSE_LENGTH = (5, 15)  # steps
TREMOR = 0.00012  # m per step and axis, standard deviation while pausing
CORRECTION_LENGTH = (3, 6)  # steps
CORRECTION_SPEED = 0.6  # of the intended speed, backwards
JERK_LENGTH = (0.012, 0.022)  # m, of one step
JERK_TURN = 0.5  # rad, standard deviation

MIDDLE_X = 0.50  # m, where the undecided go
AIM_SPREAD = 0.015  # m
AIM_SHARE = (0.7, 1.0)  # of the way from the chosen gap to what was aimed at first

# ---------------------------------------------------------------------------------------
# Styles
# ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Style:
    """How a demonstrator moves, decides and chooses; the defaults are a clean one.

    Parameters
    ----------
    speed_drift : float, default=0.0
        Standard deviation of the logarithm of the speed within an episode, an
        Ornstein-Uhlenbeck process.
    pause_rate, correction_rate, jerk_rate : float, default=0.0
        Probability per step to stand still for a while, to go back a little, and to make one
        sudden step.
    commitment : tuple of two float or None, default=None
        How far before a row its gap is chosen, m, at least and at most; until then the
        demonstrator goes to the middle. None chooses all gaps at the start.
    swerve_rate : float, default=0.0
        Probability to aim at a neighboring gap instead of the middle before the choice.
    gap_spread : float, default=1.0
        How widely a gap is used, in multiples of `GAP_SPREAD`.
    zipf_exponent : float, default=0.0
        The k-th most frequent behavior is shown in proportion to ``k ** -zipf_exponent``.
        Zero shows all equally often.
    """

    speed_drift: float = 0.0
    pause_rate: float = 0.0
    correction_rate: float = 0.0
    jerk_rate: float = 0.0
    commitment: tuple[float, float] | None = None
    swerve_rate: float = 0.0
    gap_spread: float = 1.0
    zipf_exponent: float = 0.0


CLEAN_STYLE = Style()
HESITANT_STYLE = Style(speed_drift=0.35, pause_rate=0.02, correction_rate=0.01, jerk_rate=0.015)
OVERLAPPING_STYLE = Style(commitment=(0.05, 0.09), swerve_rate=0.4, gap_spread=2.0)
LONGTAIL_STYLE = Style(zipf_exponent=0.85)
HUMAN_STYLE = replace(
    HESITANT_STYLE,
    commitment=OVERLAPPING_STYLE.commitment,
    swerve_rate=OVERLAPPING_STYLE.swerve_rate,
    gap_spread=OVERLAPPING_STYLE.gap_spread,
    zipf_exponent=LONGTAIL_STYLE.zipf_exponent,
)

# ---------------------------------------------------------------------------------------
# The way
# ---------------------------------------------------------------------------------------


def reference_path(
    behavior: int, start: Array, rng: np.random.Generator, style: Style = CLEAN_STYLE
) -> Array:
    """Return a smooth path through the gaps of a behavior, with a little variety.

    Parameters
    ----------
    behavior : int
        Which of `BEHAVIORS`.
    start : ndarray of shape (2,)
        Where the tool is, m.
    rng : numpy.random.Generator
        Draws where exactly each gap is passed.
    style : Style, default=CLEAN_STYLE
        When the gaps are chosen, and how widely they are used.

    Returns
    -------
    ndarray of shape (n, 2)
        Points about 2 mm apart, m; the last lies behind the finish line.
    """
    waypoints = [start]
    for row, gap in enumerate(gaps_of(behavior)):
        if gap is None:
            raise ValueError(f"behavior must be one of the 24 BEHAVIORS, got {behavior}.")
        if style.commitment is not None:
            waypoints.append(_undecided(row, gap, rng, style.commitment, style.swerve_rate))
        spread = style.gap_spread * GAP_SPREAD[row][gap]
        x = GAP_X[row][gap] + spread * rng.uniform(-1.0, 1.0)
        before, after = rng.uniform(*STRAIGHT, size=2)
        waypoints += [np.array([x, ROW_Y[row] + dy]) for dy in (-before, after)]
    exit_x = min(waypoints[-1][0] + 0.03 * rng.uniform(-1.0, 1.0), 0.69)
    waypoints.append(np.array([exit_x, FINISH_Y + 0.06]))
    points = np.array(waypoints)
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    # Monotone between waypoints, so the path does not swing into a neighboring obstacle.
    return PchipInterpolator(arc, points)(np.linspace(0.0, arc[-1], int(arc[-1] / 0.002)))


def _undecided(
    row: int,
    gap: int,
    rng: np.random.Generator,
    commitment: tuple[float, float],
    swerve_rate: float,
) -> Array:
    """Return where a path turns to its gap, having made for the middle or a neighboring gap."""
    aim = MIDDLE_X
    if rng.uniform() < swerve_rate:
        aim = rng.choice([GAP_X[row][g] for g in (gap - 1, gap + 1) if 0 <= g < len(GAP_X[row])])
    share = rng.uniform(*AIM_SHARE)
    x = (1.0 - share) * GAP_X[row][gap] + share * aim + AIM_SPREAD * rng.uniform(-1.0, 1.0)
    return np.array([x, ROW_Y[row] - rng.uniform(*commitment)])


# ---------------------------------------------------------------------------------------
# The demonstrator
# ---------------------------------------------------------------------------------------


class PathFollower:
    """Pursue a point ahead on a path, while the heading wanders and is corrected.

    Parameters
    ----------
    path : ndarray of shape (n, 2)
        The path, m.
    rng : numpy.random.Generator
        Draws speed and wandering.
    """

    def __init__(self, path: Array, rng: np.random.Generator) -> None:
        self._path = path
        self._rng = rng
        self._speed = rng.uniform(*SPEED)
        self._nearest = 0
        self._wander = Wander(rng, HEADING_MEMORY, HEADING_NOISE)

    def act(self, observation: Array) -> Action:
        """Return the next change of the set-point, m, shape (2,).

        Parameters
        ----------
        observation : ndarray of shape (4,)
            What the environment returned.
        """
        position = 0.5 * (observation[:2] + observation[2:])
        heading = heading_of(self._target(position) - observation[:2]) + self._wander.step()
        speed = self._speed * (1.0 + SPEED_NOISE * self._rng.standard_normal())
        return polar(speed, heading).astype(np.float32)

    def _target(self, position: Array) -> Array:
        """Return the point of the path that lies one look-ahead behind the nearest one."""
        window = self._path[self._nearest : self._nearest + 60]
        self._nearest += int(np.argmin(np.sum((window - position) ** 2, axis=1)))
        ahead = np.linalg.norm(self._path[self._nearest :] - position, axis=1) >= LOOK_AHEAD
        first = int(np.argmax(ahead)) if ahead.any() else len(ahead) - 1
        return self._path[self._nearest + first]


class Hand:
    """Carry out intended actions as unsteadily as a style says.

    Parameters
    ----------
    style : Style
        Drift of speed; rates of pauses, corrections and jerks.
    rng : numpy.random.Generator
        Draws them.
    """

    def __init__(self, style: Style, rng: np.random.Generator) -> None:
        self._style = style
        self._rng = rng
        self._log_speed = Wander(rng, SPEED_MEMORY, style.speed_drift)
        self._n_pausing = 0
        self._n_correcting = 0

    def move(self, intended: Action) -> Action:
        """Return what becomes of an intended action, m, shape (2,)."""
        log_speed = self._log_speed.step()
        self._change_mood()
        if self._n_pausing:
            self._n_pausing -= 1
            return (TREMOR * self._rng.standard_normal(2)).astype(np.float32)
        action = math.exp(log_speed) * intended
        if self._n_correcting:
            self._n_correcting -= 1
            return -CORRECTION_SPEED * action
        if self._rng.uniform() < self._style.jerk_rate:
            return self._jerk(intended)
        return action

    def _change_mood(self) -> None:
        """Begin a pause or a correction now and then, one at a time."""
        pauses, corrects = self._rng.uniform(size=2)
        if self._n_pausing or self._n_correcting:
            return
        if pauses < self._style.pause_rate:
            self._n_pausing = int(self._rng.integers(*PAUSE_LENGTH, endpoint=True))
        elif corrects < self._style.correction_rate:
            self._n_correcting = int(self._rng.integers(*CORRECTION_LENGTH, endpoint=True))

    def _jerk(self, intended: Action) -> Action:
        """Return an action that is too long and goes astray."""
        length = self._rng.uniform(*JERK_LENGTH)
        heading = heading_of(intended) + JERK_TURN * self._rng.standard_normal()
        return polar(length, heading).astype(np.float32)


def make_actor(
    task: Avoiding, behavior: int, rng: np.random.Generator, style: Style = CLEAN_STYLE
) -> Callable[[Array], Action]:
    """Return what acts in an episode that has just been reset."""
    hand = Hand(style, rng.spawn(1)[0])  # draws of its own: a steady hand changes nothing
    follower = PathFollower(reference_path(behavior, task.set_point[:2], rng, style), rng)
    return lambda observation: hand.move(follower.act(observation))


# ---------------------------------------------------------------------------------------
# The order of behaviors
# ---------------------------------------------------------------------------------------


def spread_order() -> list[int]:
    """Return the 24 behaviors so that every beginning of the list uses all gaps evenly."""
    order = []
    for k in range(len(BEHAVIORS)):
        gaps = (k + k // 12) % 2, k % 3, k % 4
        order.append(sum(1 << (ROWS[row][0] + gap) for row, gap in enumerate(gaps)))
    return order


def zipf_order(n_episodes: int, exponent: float, rng: np.random.Generator) -> list[int]:
    """Return behaviors of a long-tailed set in random order.

    Parameters
    ----------
    n_episodes : int
        How many.
    exponent : float
        The k-th most frequent of the 24 behaviors is shown in proportion to
        ``k ** -exponent``, rounded to the largest remainders.
    rng : numpy.random.Generator
        Draws which behaviors are frequent, and the order.

    Returns
    -------
    list of int
        Every beginning is a random sample of the whole, without replacement.
    """
    weights = np.arange(1, len(BEHAVIORS) + 1) ** -exponent
    shares = n_episodes * weights / weights.sum()
    counts = np.floor(shares).astype(int)
    counts[np.argsort(counts - shares, kind="stable")[: n_episodes - counts.sum()]] += 1
    order: list[int] = rng.permutation(np.repeat(rng.permutation(BEHAVIORS), counts)).tolist()
    return order


def plan_evenly(number: int, random_state: int) -> tuple[int, Seed]:
    """Return behavior and seed of an episode: round after round in `spread_order`."""
    repetition, place = divmod(number, len(BEHAVIORS))
    behavior = spread_order()[place]
    return behavior, (random_state, behavior, repetition)


def plan_long_tail(number: int, random_state: int, exponent: float) -> tuple[int, Seed]:
    """Return behavior and seed of an episode: every `ROUND` follow Zipf's law, in random order."""
    n_rounds, place = divmod(number, ROUND)
    order = _long_tail(n_rounds, random_state, exponent)
    behavior = order[place]
    repetition = n_rounds * order.count(behavior) + order[:place].count(behavior)
    return behavior, (random_state, behavior, repetition)


@lru_cache(maxsize=64)
def _long_tail(n_rounds: int, random_state: int, exponent: float) -> list[int]:
    """Return the behaviors of a round, given how many went before; favorites stay favorites."""
    first = zipf_order(ROUND, exponent, np.random.default_rng(random_state))
    if n_rounds == 0:
        return first
    order: list[int] = np.random.default_rng([random_state, n_rounds]).permutation(first).tolist()
    return order


def _demonstrator(style: Style, traits: str = "", state_dtype: str = "float32") -> Demonstrator:
    """Return the demonstrator of a style."""
    exponent = style.zipf_exponent
    return Demonstrator(
        make_actor=partial(make_actor, style=style),
        version=1,
        description=f"pure pursuit with Ornstein-Uhlenbeck heading noise{traits}",
        max_length=MAX_LENGTH,
        state_dtype=state_dtype,
        plan=partial(plan_long_tail, exponent=exponent) if exponent else plan_evenly,
    )


UNSTEADY = ", drifting speed, pauses, corrections and jerks"
UNDECIDED = ", late choices and changes of mind"
PARTIAL = ", a few favorite behaviors"
CLEAN = _demonstrator(CLEAN_STYLE, state_dtype="float64")
HESITANT = _demonstrator(HESITANT_STYLE, UNSTEADY)
OVERLAPPING = _demonstrator(OVERLAPPING_STYLE, UNDECIDED)
LONGTAIL = _demonstrator(LONGTAIL_STYLE, PARTIAL)
HUMAN = _demonstrator(HUMAN_STYLE, UNSTEADY + UNDECIDED + PARTIAL)
