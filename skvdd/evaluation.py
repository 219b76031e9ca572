"""Rollouts: how often a policy succeeds, in how many ways, and how fast it decides."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, flatdim
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from tqdm import tqdm

from skvdd.datasets.demonstrations import Behavior, Demonstrations, Episode, append_goals
from skvdd.envs import EnvPool
from skvdd.metrics import task_entropy, wilson_interval

Array = NDArray[np.float64]
RandomState = int | np.random.RandomState | None

# Every call of `act` has this many rows: matrix products of another size may round
# differently, and a rollout amplifies the last bit of an action.
BLOCK_SIZE = 64


class Policy(Protocol):
    """All that an evaluation asks of a policy."""

    window_size: int

    def act(self, X: Array, *, random_state: Any = None) -> Array:
        """Return one action per window, (n, d_a)."""
        ...


# ---------------------------------------------------------------------------------------
# The record
# ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate_policy` found; ``print`` shows it as a table.

    Attributes
    ----------
    env_id : str
        The environment.
    n_episodes : int
        Number of rollouts n.
    success_rate : float
        Share of rollouts that ended in success.
    success_interval : tuple of float
        95 % confidence interval of the success rate (`wilson_interval`).
    entropy : float or None
        `task_entropy` of the successful rollouts, None where the environment does not tell
        behaviours apart. All rollouts count as one initial state.
    entropy_base : int or None
        Number of behaviours of the task, the base of the entropy.
    n_behaviors : int
        Number of distinct behaviours among the successful rollouts.
    successes : ndarray of shape (n,)
        Whether each rollout succeeded.
    behaviors : tuple of length n
        The behaviour of each rollout, failures included.
    returns : ndarray of shape (n,)
        Sum of the rewards.
    lengths : ndarray of shape (n,)
        Number of actions.
    episodes : Demonstrations
        Observations and actions; ``episodes.windows(window_size)`` is what the policy saw
        and did.
    """

    env_id: str
    n_episodes: int
    success_rate: float
    success_interval: tuple[float, float]
    entropy: float | None
    entropy_base: int | None
    n_behaviors: int
    successes: NDArray[np.bool_] = field(repr=False)
    behaviors: tuple[Behavior, ...] = field(repr=False)
    returns: Array = field(repr=False)
    lengths: NDArray[np.intp] = field(repr=False)
    episodes: Demonstrations = field(repr=False)

    def __str__(self) -> str:
        low, high = self.success_interval
        rows = [("success rate", f"{self.success_rate:.3f}", f"95 % in [{low:.3f}, {high:.3f}]")]
        if self.entropy is not None:
            rows += [
                ("task entropy", f"{self.entropy:.3f}", f"base {self.entropy_base}"),
                ("behaviours", f"{self.n_behaviors}", f"of {self.entropy_base}"),
            ]
        rows += [
            ("mean return", f"{self.returns.mean():.3f}", ""),
            ("mean length", f"{self.lengths.mean():.1f}", "actions"),
        ]
        table = [f"  {name:<12}  {value:>7}  {note}".rstrip() for name, value, note in rows]
        return "\n".join([f"{self.env_id}, {self.n_episodes} episodes", *table])

    def to_dict(self) -> dict[str, Any]:
        """Return the summary, without the rollouts, as JSON knows it.

        Returns
        -------
        summary : dict
            Identifiers and numbers only.
        """
        return {
            "env_id": self.env_id,
            "n_episodes": self.n_episodes,
            "success_rate": self.success_rate,
            "success_interval": list(self.success_interval),
            "entropy": self.entropy,
            "entropy_base": self.entropy_base,
            "n_behaviors": self.n_behaviors,
            "mean_return": float(self.returns.mean()),
            "mean_length": float(self.lengths.mean()),
        }


# ---------------------------------------------------------------------------------------
# The two measurements
# ---------------------------------------------------------------------------------------


def evaluate_policy(
    policy: Policy,
    env_id: str,
    n_episodes: int = 100,
    *,
    n_envs: int | None = None,
    random_state: RandomState = None,
    progress: bool = True,
    env_kwargs: Mapping[str, Any] | None = None,
    goal: ArrayLike | None = None,
) -> Evaluation:
    """Roll a policy out and count successes and behaviours.

    Many environments are stepped against one batched `act`. The result depends on
    `random_state` alone, to the last bit: each episode has its own seed and its own noise,
    and its own place in batches of one fixed size, whatever the number of environments.

    Parameters
    ----------
    policy : fitted policy
        Anything with ``window_size`` and ``act(X, *, random_state)``. ``act`` is given
        windows (64, T, d), the start of an episode padded by its first observation, and one
        `numpy.random.RandomState` per row.
    env_id : str
        A registered Gymnasium environment with vectors as observations and actions, whose
        infos tell ``success`` and, where it has behaviours, ``behavior``.
    n_episodes : int, default=100
        Number of rollouts.
    n_envs : int, default=None
        Number of environments stepped together; None takes up to 64.
    random_state : int, RandomState instance or None, default=None
        Seeds environments and noise.
    progress : bool, default=True
        Show a progress bar when it takes longer than two seconds.
    env_kwargs : dict, default=None
        Arguments of the environment.
    goal : array-like of shape (g,), default=None
        Goal of a policy with ``goal_dim=g``, the same in every episode: ``act`` is then given
        flat rows (64, T * d + g).

    Returns
    -------
    evaluation : Evaluation
        Success rate, task entropy and the rollouts themselves.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd.evaluation import evaluate_policy
    >>> class StraightAhead:
    ...     window_size = 1
    ...
    ...     def act(self, X, *, random_state=None):
    ...         return np.tile([0.0, 0.005], (len(X), 1))
    >>> evaluation = evaluate_policy(StraightAhead(), "skvdd/Avoiding-v0", n_episodes=2)
    >>> evaluation.success_rate
    0.0
    """
    _check_policy(policy)
    goal = _check_goal(policy, goal)
    _check_env_id(env_id)
    _check_count("n_episodes", n_episodes)
    if n_envs is None:
        n_envs = BLOCK_SIZE
    _check_count("n_envs", n_envs)
    rollouts = _plan_rollouts(n_episodes, random_state)
    n_envs = min(n_envs, n_episodes)
    with EnvPool(env_id, n_envs, **(env_kwargs or {})) as pool:
        _check_spaces(pool, env_id)
        driver = _Driver(policy, pool, n_envs, env_id, goal)
        finished = driver.run(rollouts)
        for _ in tqdm(finished, env_id, n_episodes, unit="ep", delay=2.0, disable=not progress):
            pass
        base = pool.n_behaviors
    return _summarise(env_id, rollouts, base)


def time_action(
    policy: Policy, X_row: ArrayLike, *, n_calls: int = 200, n_threads: int = 1
) -> float:
    """Measure how long one decision takes: one state in, one action out.

    Parameters
    ----------
    policy : fitted policy
        Anything with ``act``.
    X_row : array-like of shape (T, d) or (T * d,)
        The window of one decision.
    n_calls : int, default=200
        Number of timed calls, after a tenth as many to warm up.
    n_threads : int, default=1
        Threads that torch may use meanwhile.

    Returns
    -------
    milliseconds : float
        Median wall-clock time of one call of ``act``.
    """
    _check_count("n_calls", n_calls)
    _check_count("n_threads", n_threads)
    X = np.asarray(X_row, dtype=float)[None]
    noise = np.random.RandomState(0)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        for _ in range(max(1, n_calls // 10)):
            policy.act(X, random_state=noise)
        seconds = [_time_call(policy, X, noise) for _ in range(n_calls)]
    finally:
        torch.set_num_threads(threads_before)
    return 1000.0 * float(np.median(seconds))


def _time_call(policy: Policy, X: Array, noise: np.random.RandomState) -> float:
    start = time.perf_counter()
    policy.act(X, random_state=noise)
    return time.perf_counter() - start


# ---------------------------------------------------------------------------------------
# Checks before any work
# ---------------------------------------------------------------------------------------


def _check_policy(policy: object) -> None:
    missing = [name for name in ("act", "window_size") if not hasattr(policy, name)]
    if missing:
        raise TypeError(
            f"policy must have act and window_size, got {type(policy).__name__} without "
            f"{' and '.join(missing)}. Every policy of skvdd has them; wrap any other one."
        )


def _check_goal(policy: object, goal: ArrayLike | None) -> Array | None:
    """Return the goal as a vector of the length that the policy was given in `fit`."""
    goal_dim = getattr(policy, "goal_dim", 0)
    values = np.zeros(0) if goal is None else np.asarray(goal, dtype=float)
    if values.shape != (goal_dim,):
        raise ValueError(
            f"goal must have shape ({goal_dim},), the goal_dim of the policy, got "
            f"{'none' if goal is None else f'shape {values.shape}'}."
        )
    return values if goal_dim else None


def _check_env_id(env_id: str) -> None:
    try:
        gymnasium.spec(env_id)
    except gymnasium.error.Error as error:
        known = ", ".join(sorted(name for name in gymnasium.registry if name.startswith("skvdd/")))
        raise ValueError(
            f"env_id must name a registered environment, got {env_id!r}. skvdd has {known}; "
            "import the package that registers another one, or call gymnasium.register."
        ) from error


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}.")


def _check_spaces(pool: EnvPool, env_id: str) -> None:
    for name in ("observation", "action"):
        space = getattr(pool, f"{name}_space")
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise ValueError(
                f"the {name}s of {env_id} must be vectors, got {space}. Flatten them first, "
                "for example with gymnasium's wrappers."
            )


# ---------------------------------------------------------------------------------------
# Rollouts
# ---------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Rollout:
    """One episode, from its seeds to its verdict."""

    index: int
    seed: int
    noise: np.random.RandomState
    states: list[Array] = field(default_factory=list)
    actions: list[Array] = field(default_factory=list)
    total_reward: float = 0.0
    success: bool = False
    behavior: Behavior = None

    @property
    def place(self) -> int:
        """Row of this episode in every batch."""
        return self.index % BLOCK_SIZE

    def window(self, window_size: int) -> Array:
        """Return the last observations (T, d); the first one fills up the start."""
        recent = self.states[-window_size:]
        return np.stack([self.states[0]] * (window_size - len(recent)) + recent)


def _plan_rollouts(n_episodes: int, random_state: RandomState) -> list[_Rollout]:
    """Draw all seeds before the first rollout, so that none depends on the schedule."""
    rng = check_random_state(random_state)
    seeds = rng.randint(np.iinfo(np.int32).max, size=(n_episodes, 2)).tolist()
    return [
        _Rollout(index, env_seed, np.random.RandomState(noise_seed))
        for index, (env_seed, noise_seed) in enumerate(seeds)
    ]


class _Driver:
    """Steps the environments of a pool with the actions of a policy."""

    def __init__(
        self, policy: Policy, pool: EnvPool, n_envs: int, env_id: str, goal: Array | None
    ) -> None:
        self.policy = policy
        self.goal = goal
        self.pool = pool
        self.n_envs = n_envs
        self.env_id = env_id
        self.running: dict[int, _Rollout] = {}  # by environment
        self._throwaway = [np.random.RandomState(0) for _ in range(BLOCK_SIZE)]

    def run(self, rollouts: Sequence[_Rollout]) -> Iterator[_Rollout]:
        """Play all rollouts and yield each when it ends."""
        waiting = deque(rollouts)
        self._start(range(self.n_envs), waiting)
        while self.running:
            self._act()
            free = self._step()
            for env in free:
                yield self.running.pop(env)
            self._start(free, waiting)

    def _start(self, free: Iterable[int], waiting: deque[_Rollout]) -> None:
        """Give each free environment the next episode."""
        started: dict[int, _Rollout] = {}
        for env in list(free)[: len(waiting)]:
            started[env] = _take_next(waiting, {**self.running, **started}.values())
        if not started:
            return
        seeds = [rollout.seed for rollout in started.values()]
        observations, _ = self.pool.reset(list(started), seeds)
        for rollout, observation in zip(started.values(), observations, strict=True):
            rollout.states.append(np.array(observation, dtype=float))
        self.running.update(started)

    def _act(self) -> None:
        """Append one action to every running rollout."""
        for block in _place_in_blocks(self.running.values()):
            actions = self._decide(block)
            for place, rollout in block.items():
                rollout.actions.append(actions[place])

    def _decide(self, block: dict[int, _Rollout]) -> Array:
        """Return the actions (BLOCK_SIZE, d_a) of a block; rows without a rollout are padding."""
        size = self.policy.window_size
        filler = next(iter(block.values())).window(size)
        windows = np.tile(filler, (BLOCK_SIZE, 1, 1))
        noise = list(self._throwaway)
        for place, rollout in block.items():
            windows[place] = rollout.window(size)
            noise[place] = rollout.noise
        rows = windows
        if self.goal is not None:
            rows = append_goals(windows, self.goal).astype(np.float64)
        actions = np.asarray(self.policy.act(rows, random_state=noise))
        return self._check_actions(actions, block)

    def _check_actions(self, actions: Array, block: dict[int, _Rollout]) -> Array:
        d_a = flatdim(self.pool.action_space)
        if d_a == 1 and actions.shape == (BLOCK_SIZE,):
            actions = actions[:, None]  # a policy fitted on a vector gives vectors back
        if actions.shape != (BLOCK_SIZE, d_a):
            raise ValueError(
                f"policy.act must return one action of {self.env_id} per row, shape "
                f"({BLOCK_SIZE}, {d_a}), got shape {actions.shape} in episode "
                f"{min(rollout.index for rollout in block.values())}. "
                "Was the policy fitted on the actions of another environment?"
            )
        for place, rollout in block.items():
            if not np.isfinite(actions[place]).all():
                raise ValueError(
                    f"policy.act must return finite actions, got {actions[place].tolist()} in "
                    f"episode {rollout.index} of {self.env_id}, step {len(rollout.actions)}. "
                    "Look for a training that diverged, or for states far from its data."
                )
        return actions

    def _step(self) -> list[int]:
        """Step every environment that plays, return those whose episode ended."""
        envs = list(self.running)
        actions = np.stack([self.running[env].actions[-1] for env in envs])
        observations, rewards, terminated, truncated, infos = self.pool.step(envs, actions)
        ended = np.asarray(terminated) | np.asarray(truncated)
        for row, env in enumerate(envs):
            rollout = self.running[env]
            self._record(rollout, float(rewards[row]), infos[row])
            if not ended[row]:
                rollout.states.append(np.array(observations[row], dtype=float))
        return [env for env, over in zip(envs, ended, strict=True) if over]

    def _record(self, rollout: _Rollout, reward: float, info: Mapping[str, Any]) -> None:
        """Keep what the environment said after the last step; the last word counts."""
        if "success" not in info:
            raise ValueError(
                f"the infos of {self.env_id} must tell 'success', got {sorted(info)}. "
                "Wrap the environment so that its info says whether the episode succeeded."
            )
        rollout.total_reward += reward
        rollout.success = bool(info["success"])
        rollout.behavior = info.get("behavior")


def _take_next(waiting: deque[_Rollout], running: Iterable[_Rollout]) -> _Rollout:
    """Take the first episode whose place in the batch is free, so that one block is enough."""
    taken = {rollout.place for rollout in running}
    chosen = next((rollout for rollout in waiting if rollout.place not in taken), waiting[0])
    waiting.remove(chosen)
    return chosen


def _place_in_blocks(rollouts: Iterable[_Rollout]) -> list[dict[int, _Rollout]]:
    """Put every rollout in its own row; two that share a row go into separate blocks.

    A row keeps its place since the last rows of a matrix product may take another path
    through the kernels than the first.
    """
    blocks: list[dict[int, _Rollout]] = []
    for rollout in rollouts:
        block = next((block for block in blocks if rollout.place not in block), None)
        if block is None:
            block = {}
            blocks.append(block)
        block[rollout.place] = rollout
    return blocks


# ---------------------------------------------------------------------------------------
# Summary
# ---------------------------------------------------------------------------------------


def _summarise(env_id: str, rollouts: Sequence[_Rollout], base: int | None) -> Evaluation:
    n_success = sum(rollout.success for rollout in rollouts)
    solved = [rollout.behavior if rollout.success else None for rollout in rollouts]
    return Evaluation(
        env_id=env_id,
        n_episodes=len(rollouts),
        success_rate=n_success / len(rollouts),
        success_interval=wilson_interval(n_success, len(rollouts)),
        entropy=None if base is None else task_entropy(solved, base),
        entropy_base=base,
        n_behaviors=len(set(solved) - {None}),
        successes=np.array([rollout.success for rollout in rollouts]),
        behaviors=tuple(rollout.behavior for rollout in rollouts),
        returns=np.array([rollout.total_reward for rollout in rollouts]),
        lengths=np.array([len(rollout.actions) for rollout in rollouts]),
        episodes=_episodes(env_id, rollouts),
    )


def _episodes(env_id: str, rollouts: Sequence[_Rollout]) -> Demonstrations:
    return Demonstrations(
        episodes=tuple(
            Episode(np.stack(rollout.states), np.stack(rollout.actions), rollout.behavior)
            for rollout in rollouts
        ),
        name=env_id,
        metadata={"source": "evaluate_policy"},
    )
