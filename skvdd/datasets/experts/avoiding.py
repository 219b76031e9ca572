"""A scripted demonstrator for Avoiding: pure pursuit with wandering attention.

Run ``python -m skvdd.datasets.experts.avoiding --output avoiding.npz`` to make the set that
comes with the library.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

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

GAP_X = ((0.41, 0.59), (0.345, 0.50, 0.655), (0.275, 0.425, 0.575, 0.718))  # m, gap centres
GAP_SPREAD = ((0.025, 0.025), (0.015, 0.006, 0.015), (0.012, 0.006, 0.006, 0.004))  # m
STRAIGHT = (0.022, 0.045)  # m, how far before and after a row the path runs straight on

SPEED = (0.0060, 0.0080)  # m per step, drawn once per episode
LOOK_AHEAD = 0.03  # m
HEADING_NOISE = 0.45  # rad, standard deviation of the wandering heading
HEADING_MEMORY = 0.9  # per step: the heading forgets in about ten steps

# ---------------------------------------------------------------------------------------
# The way
# ---------------------------------------------------------------------------------------


def reference_path(behavior: int, start: Array, rng: np.random.Generator) -> Array:
    """Return a smooth path through the gaps of a behaviour, with a little variety.

    Parameters
    ----------
    behavior : int
        Which of `BEHAVIORS`.
    start : ndarray of shape (2,)
        Where the tool is, m.
    rng : numpy.random.Generator
        Draws where exactly each gap is passed.

    Returns
    -------
    ndarray of shape (n, 2)
        Points about 2 mm apart, m; the last lies behind the finish line.
    """
    waypoints = [start]
    for row, gap in enumerate(gaps_of(behavior)):
        if gap is None:
            raise ValueError(f"behavior must be one of the 24 BEHAVIORS, got {behavior}.")
        x = GAP_X[row][gap] + GAP_SPREAD[row][gap] * rng.uniform(-1.0, 1.0)
        before, after = rng.uniform(*STRAIGHT, size=2)
        waypoints += [np.array([x, ROW_Y[row] + dy]) for dy in (-before, after)]
    exit_x = min(waypoints[-1][0] + 0.03 * rng.uniform(-1.0, 1.0), 0.69)
    waypoints.append(np.array([exit_x, FINISH_Y + 0.06]))
    points = np.array(waypoints)
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    # Monotone between waypoints, so the path does not swing into a neighbouring obstacle.
    return PchipInterpolator(arc, points)(np.linspace(0.0, arc[-1], int(arc[-1] / 0.002)))


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


def demonstrate(env: gymnasium.Env, behavior: int, rng: np.random.Generator) -> Episode | None:
    """Try a behaviour once.

    Parameters
    ----------
    env : gymnasium.Env
        An Avoiding environment.
    behavior : int
        Which of `BEHAVIORS`.
    rng : numpy.random.Generator
        Draws path, speed and wandering.

    Returns
    -------
    Episode or None
        The recording; None if the rod hit something, came too late, or took another way.
    """
    observation, info = env.reset()
    follower = PathFollower(reference_path(behavior, observation[:2], rng), rng)
    states, actions, over = [], [], False
    while not over:
        action = follower.act(observation)
        states.append(observation)
        actions.append(action)
        observation, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
    if info["success"] and info["behavior"] == behavior:
        return Episode(np.array(states), np.array(actions), behavior)
    return None


def spread_order() -> list[int]:
    """Return the 24 behaviours so that every beginning of the list uses all gaps evenly."""
    order = []
    for k in range(len(BEHAVIORS)):
        gaps = (k + k // 12) % 2, k % 3, k % 4
        order.append(sum(1 << (ROWS[row][0] + gap) for row, gap in enumerate(gaps)))
    return order


def make_demonstrations(
    n_per_behavior: int = 4, random_state: int = 0, progress: bool = True
) -> Demonstrations:
    """Record successful demonstrations of every behaviour in the simulator.

    Parameters
    ----------
    n_per_behavior : int, default=4
        Episodes for each of the 24 behaviours.
    random_state : int, default=0
        Seed; an episode depends on it, its behaviour and its number only.
    progress : bool, default=True
        Whether to show a progress bar.

    Returns
    -------
    Demonstrations
        Round after round of all behaviours, each round in `spread_order`. The metadata
        tells how many attempts were needed.
    """
    from tqdm import tqdm

    tasks = [(number, behavior) for number in range(n_per_behavior) for behavior in spread_order()]
    env = gymnasium.make(ENVIRONMENT, disable_env_checker=True)
    episodes, n_attempts = [], 0
    try:
        for number, behavior in tqdm(tasks, desc="demonstrations", disable=not progress):
            episode, attempts = _first_success(env, behavior, (random_state, behavior, number))
            episodes.append(episode)
            n_attempts += attempts
    finally:
        env.close()
    metadata = {
        "environment": ENVIRONMENT,
        "demonstrator": "pure pursuit with Ornstein-Uhlenbeck heading noise",
        "random_state": random_state,
        "n_per_behavior": n_per_behavior,
        "n_attempts": n_attempts,
        "mujoco": mujoco.__version__,
        "states": ["desired x", "desired y", "measured x", "measured y"],
        "actions": ["change of desired x", "change of desired y"],
        "units": "m",
        "control_period": 0.035,
    }
    return Demonstrations(tuple(episodes), "avoiding", metadata)


def _first_success(
    env: gymnasium.Env, behavior: int, seed: tuple[int, int, int]
) -> tuple[Episode, int]:
    """Return the first successful episode of a behaviour, and the number of attempts."""
    for attempt in range(MAX_ATTEMPTS):
        episode = demonstrate(env, behavior, np.random.default_rng([*seed, attempt]))
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
    options = parser.parse_args(arguments)
    demonstrations = make_demonstrations(options.n_per_behavior, options.random_state)
    demonstrations.save(options.output)
    print(demonstrations.describe())


if __name__ == "__main__":
    main()
