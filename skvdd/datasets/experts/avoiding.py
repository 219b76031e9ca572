"""A scripted demonstrator for Avoiding: pure pursuit with wandering attention, in several styles.

Run ``python -m skvdd.datasets.experts.avoiding --output avoiding.npz`` to make the set that
comes with the library, and with ``--style hesitant`` (say) to make one of its variants.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import gymnasium
import mujoco
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

import skvdd.envs  # noqa: F401  registers the environment
from skvdd.datasets.demonstrations import Demonstrations, Episode
from skvdd.envs.avoiding import BEHAVIORS, FINISH_Y, ROW_Y, ROWS, behavior_name, gaps_of

Array = NDArray[np.float64]

ENVIRONMENT = "skvdd/Avoiding-v0"
MAX_ATTEMPTS = 100
MAX_LENGTH = 200  # decisions in a demonstration, as in D3IL

GAP_X = ((0.41, 0.59), (0.345, 0.50, 0.655), (0.275, 0.425, 0.575, 0.718))  # m, gap centres
GAP_SPREAD = ((0.025, 0.025), (0.015, 0.006, 0.015), (0.012, 0.006, 0.006, 0.004))  # m
STRAIGHT = (0.022, 0.045)  # m, how far before and after a row the path runs straight on

SPEED = (0.0060, 0.0080)  # m per step, drawn once per episode
LOOK_AHEAD = 0.03  # m
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
    description : str
        What the metadata of a set say of its demonstrator.
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
        Probability to aim at a neighbouring gap instead of the middle before the choice.
    gap_spread : float, default=1.0
        How widely a gap is used, in multiples of `GAP_SPREAD`.
    zipf_exponent : float, default=0.0
        The k-th most frequent behaviour is shown in proportion to ``k ** -zipf_exponent``.
        Zero shows all equally often.
    state_dtype : {"float32", "float64"}, default="float32"
        Precision in which states are recorded.
    """

    description: str
    speed_drift: float = 0.0
    pause_rate: float = 0.0
    correction_rate: float = 0.0
    jerk_rate: float = 0.0
    commitment: tuple[float, float] | None = None
    swerve_rate: float = 0.0
    gap_spread: float = 1.0
    zipf_exponent: float = 0.0
    state_dtype: str = "float32"


CLEAN = Style("pure pursuit with Ornstein-Uhlenbeck heading noise", state_dtype="float64")
HESITANT = Style(
    f"{CLEAN.description}, drifting speed, pauses, corrections and jerks",
    speed_drift=0.35,
    pause_rate=0.02,
    correction_rate=0.01,
    jerk_rate=0.015,
)
OVERLAPPING = Style(
    f"{CLEAN.description}, late choices and changes of mind",
    commitment=(0.05, 0.09),
    swerve_rate=0.4,
    gap_spread=2.0,
)
LONGTAIL = Style(f"{CLEAN.description}, a few favourite behaviours", zipf_exponent=0.85)
HUMAN = replace(
    HESITANT,
    description=(
        f"{HESITANT.description}, late choices and changes of mind, a few favourite behaviours"
    ),
    commitment=OVERLAPPING.commitment,
    swerve_rate=OVERLAPPING.swerve_rate,
    gap_spread=OVERLAPPING.gap_spread,
    zipf_exponent=LONGTAIL.zipf_exponent,
)
STYLES = {
    "clean": CLEAN,
    "hesitant": HESITANT,
    "overlapping": OVERLAPPING,
    "longtail": LONGTAIL,
    "human": HUMAN,
}

# ---------------------------------------------------------------------------------------
# The way
# ---------------------------------------------------------------------------------------


def reference_path(
    behavior: int, start: Array, rng: np.random.Generator, style: Style = CLEAN
) -> Array:
    """Return a smooth path through the gaps of a behaviour, with a little variety.

    Parameters
    ----------
    behavior : int
        Which of `BEHAVIORS`.
    start : ndarray of shape (2,)
        Where the tool is, m.
    rng : numpy.random.Generator
        Draws where exactly each gap is passed.
    style : Style, default=CLEAN
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
    # Monotone between waypoints, so the path does not swing into a neighbouring obstacle.
    return PchipInterpolator(arc, points)(np.linspace(0.0, arc[-1], int(arc[-1] / 0.002)))


def _undecided(
    row: int,
    gap: int,
    rng: np.random.Generator,
    commitment: tuple[float, float],
    swerve_rate: float,
) -> Array:
    """Return where a path turns to its gap, having made for the middle or a neighbouring gap."""
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

    The heading carries an Ornstein-Uhlenbeck noise. Because it is correlated over about ten
    steps the tool really leaves the path, and the pursuit really brings it back: the
    recordings contain recoveries, without which imitation drifts away.

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
        self._wander = HEADING_NOISE * rng.standard_normal()

    def act(self, observation: Array) -> NDArray[np.float32]:
        """Return the next change of the set-point, m, shape (2,).

        Parameters
        ----------
        observation : ndarray of shape (4,)
            What the environment returned.
        """
        position = 0.5 * (observation[:2] + observation[2:])
        dx, dy = self._target(position) - observation[:2]
        renewal = math.sqrt(1.0 - HEADING_MEMORY**2) * HEADING_NOISE
        self._wander = HEADING_MEMORY * self._wander + renewal * self._rng.standard_normal()
        heading = math.atan2(dy, dx) + self._wander
        speed = self._speed * (1.0 + 0.05 * self._rng.standard_normal())
        return np.array([speed * math.cos(heading), speed * math.sin(heading)], dtype=np.float32)

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
        self._log_speed = style.speed_drift * rng.standard_normal()
        self._n_pausing = 0
        self._n_correcting = 0

    def move(self, intended: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what becomes of an intended action, m, shape (2,)."""
        renewal = math.sqrt(1.0 - SPEED_MEMORY**2) * self._style.speed_drift
        self._log_speed = SPEED_MEMORY * self._log_speed + renewal * self._rng.standard_normal()
        self._change_mood()
        if self._n_pausing:
            self._n_pausing -= 1
            return (TREMOR * self._rng.standard_normal(2)).astype(np.float32)
        action = math.exp(self._log_speed) * intended
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

    def _jerk(self, intended: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return an action that is too long and goes astray."""
        length = self._rng.uniform(*JERK_LENGTH)
        heading = math.atan2(intended[1], intended[0]) + JERK_TURN * self._rng.standard_normal()
        return np.array([length * math.cos(heading), length * math.sin(heading)], np.float32)


def demonstrate(
    env: gymnasium.Env, behavior: int, rng: np.random.Generator, style: Style = CLEAN
) -> Episode | None:
    """Try a behaviour once.

    Parameters
    ----------
    env : gymnasium.Env
        An Avoiding environment.
    behavior : int
        Which of `BEHAVIORS`.
    rng : numpy.random.Generator
        Draws path, speed and wandering.
    style : Style, default=CLEAN
        How to move and decide.

    Returns
    -------
    Episode or None
        The recording; None if the rod hit something, came too late, or took another way.
    """
    observation, info = env.reset()
    hand = Hand(style, rng.spawn(1)[0])  # draws of its own: a steady hand changes nothing
    follower = PathFollower(reference_path(behavior, observation[:2], rng, style), rng)
    states, actions, over = [], [], False
    while not over:
        action = hand.move(follower.act(observation))
        states.append(observation)
        actions.append(action)
        observation, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
    if info["success"] and info["behavior"] == behavior and len(states) <= MAX_LENGTH:
        return Episode(np.array(states, style.state_dtype), np.array(actions), behavior)
    return None


def spread_order() -> list[int]:
    """Return the 24 behaviours so that every beginning of the list uses all gaps evenly."""
    order = []
    for k in range(len(BEHAVIORS)):
        gaps = (k + k // 12) % 2, k % 3, k % 4
        order.append(sum(1 << (ROWS[row][0] + gap) for row, gap in enumerate(gaps)))
    return order


def zipf_order(n_episodes: int, exponent: float, rng: np.random.Generator) -> list[int]:
    """Return behaviours of a long-tailed set in random order.

    Parameters
    ----------
    n_episodes : int
        How many.
    exponent : float
        The k-th most frequent of the 24 behaviours is shown in proportion to
        ``k ** -exponent``, rounded to the largest remainders.
    rng : numpy.random.Generator
        Draws which behaviours are frequent, and the order.

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


def make_demonstrations(
    n_per_behavior: int = 4, random_state: int = 0, progress: bool = True, style: str = "clean"
) -> Demonstrations:
    """Record successful demonstrations in the simulator.

    Parameters
    ----------
    n_per_behavior : int, default=4
        Episodes for each of the 24 behaviours; their mean where a style has favourites.
    random_state : int, default=0
        Seed; an episode depends on it, the style, its behaviour and its number only.
    progress : bool, default=True
        Whether to show a progress bar.
    style : {"clean", "hesitant", "overlapping", "longtail", "human"}, default="clean"
        Which of `STYLES`.

    Returns
    -------
    Demonstrations
        Round after round of all behaviours, each round in `spread_order`; in `zipf_order`
        where the style has favourites. The metadata tells how many attempts were needed.
    """
    from tqdm import tqdm

    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(map(repr, STYLES))}, got {style!r}.")
    tasks = _numbered(_order(STYLES[style], n_per_behavior, random_state))
    env = gymnasium.make(ENVIRONMENT, disable_env_checker=True)
    episodes, n_attempts = [], 0
    try:
        for number, behavior in tqdm(tasks, desc="demonstrations", disable=not progress):
            seed = random_state, behavior, number
            episode, attempts = _first_success(env, behavior, seed, STYLES[style])
            episodes.append(episode)
            n_attempts += attempts
    finally:
        env.close()
    metadata = {
        "environment": ENVIRONMENT,
        "demonstrator": STYLES[style].description,
        "random_state": random_state,
        "n_per_behavior": n_per_behavior,
        "n_attempts": n_attempts,
        "mujoco": mujoco.__version__,
        "states": ["desired x", "desired y", "measured x", "measured y"],
        "actions": ["change of desired x", "change of desired y"],
        "units": "m",
        "control_period": 0.035,
    }
    if style == "clean":  # what the library ships under the task's own name
        return Demonstrations(tuple(episodes), "avoiding", metadata)
    metadata |= {"style": style, "parameters": asdict(STYLES[style])}
    return Demonstrations(tuple(episodes), f"avoiding-{style}", metadata)


def _order(style: Style, n_per_behavior: int, random_state: int) -> list[int]:
    """Return the behaviour of each episode."""
    if style.zipf_exponent:
        n_episodes = n_per_behavior * len(BEHAVIORS)
        return zipf_order(n_episodes, style.zipf_exponent, np.random.default_rng(random_state))
    return n_per_behavior * spread_order()


def _numbered(order: Sequence[int]) -> list[tuple[int, int]]:
    """Return for each episode how often its behaviour was shown before, and the behaviour."""
    return [(order[:i].count(behavior), behavior) for i, behavior in enumerate(order)]


def _first_success(
    env: gymnasium.Env, behavior: int, seed: tuple[int, int, int], style: Style
) -> tuple[Episode, int]:
    """Return the first successful episode of a behaviour, and the number of attempts."""
    for attempt in range(MAX_ATTEMPTS):
        episode = demonstrate(env, behavior, np.random.default_rng([*seed, attempt]), style)
        if episode is not None:
            return episode, attempt + 1
    raise RuntimeError(
        f"Behaviour {behavior} ({behavior_name(behavior)}) did not succeed in {MAX_ATTEMPTS} "
        "attempts; the demonstrator's noise or its path does not suit this robot."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a set of demonstrations to a file."""
    parser = argparse.ArgumentParser(description="Record scripted demonstrations of Avoiding.")
    parser.add_argument("--output", required=True, help="the .npz file to write")
    parser.add_argument("--n-per-behavior", type=int, default=4)
    parser.add_argument("--random-state", type=int, default=0)
    parser.add_argument("--style", choices=tuple(STYLES), default="clean")
    options = parser.parse_args(arguments)
    demonstrations = make_demonstrations(
        options.n_per_behavior, options.random_state, style=options.style
    )
    demonstrations.save(options.output)
    print(demonstrations.describe())


if __name__ == "__main__":
    main()
