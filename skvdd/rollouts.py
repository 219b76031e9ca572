"""Rollouts: many environments stepped against one batched policy, each episode as if alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.spaces import Box, flatdim
from numpy.typing import ArrayLike, NDArray
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state

from skvdd.datasets.demonstrations import Behavior, append_goals
from skvdd.envs import EnvPool

Array = NDArray[np.float64]
RandomState = int | np.random.RandomState | None

# Every call of `act` has this many rows: matrix products of another size may round
# differently, and a rollout amplifies the last bit of an action.
BLOCK_SIZE = 64


class Policy(Protocol):
    """All that an evaluation asks of a policy."""

    @property
    def window_size(self) -> int:
        """Number of states in a window."""
        ...

    def act(self, X: Array, *, random_state: Any = None) -> Array:
        """Return one action per window, (n, d_a)."""
        ...


def as_policy(policy: Any) -> Policy:
    """Return what can be rolled out: a policy, or a fitted pipeline that ends in one, as a policy.

    Parameters
    ----------
    policy : fitted policy or Pipeline
        Or one of them in `FrozenEstimator`.

    Returns
    -------
    policy : Policy
        With ``window_size`` and ``act``, which takes plain arrays of raw windows.

    Raises
    ------
    TypeError
        If it, or the last step of the pipeline, has no ``act`` or no ``window_size``.
    """
    if isinstance(policy, FrozenEstimator):
        return as_policy(policy.estimator)
    last = policy.steps[-1][1] if isinstance(policy, Pipeline) else policy
    missing = [name for name in ("act", "window_size") if not hasattr(last, name)]
    if missing:
        chain = "Pipeline that ends in " if last is not policy else ""
        raise TypeError(
            "policy must have act and window_size, or be a Pipeline that ends in what has them, "
            f"got {chain}{type(last).__name__} without {' and '.join(missing)}. Every policy of "
            "skvdd has them; wrap any other one."
        )
    names = getattr(policy, "feature_names_in_", None)
    transforms = isinstance(policy, Pipeline) and len(policy) > 1
    if names is None and not transforms:
        return last
    return ComposedPolicy(last, policy[:-1].transform if transforms else None, names)


@dataclass(frozen=True, eq=False)
class ComposedPolicy:
    """A policy whose rows have names, or that is behind the earlier steps of a pipeline.

    Parameters
    ----------
    policy : Policy
        The last step.
    transform : callable or None
        What the earlier steps do to flat rows. They may change the number of columns of a state,
        but those of a goal must remain, last and as many.
    feature_names : ndarray of shape (T * d + g,) or None
        Names of the columns in the data frame that was given to `fit`.
    """

    policy: Policy
    transform: Callable[[Any], Any] | None
    feature_names: NDArray[np.object_] | None

    @property
    def window_size(self) -> int:
        """Number of states in a window."""
        return self.policy.window_size

    @property
    def goal_dim(self) -> int:
        """Number of columns of a goal."""
        return getattr(self.policy, "goal_dim", 0)

    def act(self, X: Array, *, random_state: Any = None) -> Array:
        """Return one action per raw window, (n, T, d) or flat."""
        rows: Any = X.reshape(len(X), -1)
        if self.feature_names is not None and len(self.feature_names) == rows.shape[1]:
            rows = _name_columns(rows, self.feature_names)
        if self.transform is not None:
            rows = self.transform(rows)
        return self.policy.act(rows, random_state=random_state)


def _name_columns(rows: Array, names: NDArray[np.object_]) -> Any:
    """Return a data frame of a library that is there; the rows as they are without any."""
    for library, argument in (("pandas", "columns"), ("polars", "schema")):
        with suppress(ModuleNotFoundError):
            return import_module(library).DataFrame(rows, **{argument: list(names)})
    return rows


def check_goal(policy: object, goal: ArrayLike | None) -> Array | None:
    """Return the goal as a vector of the length that the policy was given in `fit`."""
    if goal is None:
        return None
    goal_dim = getattr(policy, "goal_dim", 0)
    values = np.asarray(goal, dtype=float)
    if values.shape != (goal_dim,) or goal_dim == 0:
        raise ValueError(
            f"goal must have shape ({goal_dim},), the goal_dim of the policy, got shape "
            f"{values.shape}."
        )
    return values


def check_env_id(env_id: str) -> None:
    """Refuse an id that nobody registered."""
    try:
        gymnasium.spec(env_id)
    except gymnasium.error.Error as error:
        known = ", ".join(sorted(name for name in gymnasium.registry if name.startswith("skvdd/")))
        raise ValueError(
            f"env_id must name a registered environment, got {env_id!r}. skvdd has {known}; "
            "import the package that registers another one, or call gymnasium.register."
        ) from error


def check_spaces(pool: EnvPool) -> None:
    """Refuse environments whose observations or actions are no vectors."""
    for name in ("observation", "action"):
        space = getattr(pool, f"{name}_space")
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise ValueError(
                f"the {name}s of {pool.env_id} must be vectors, got {space}. Flatten them first, "
                "for example with gymnasium's wrappers."
            )


@dataclass(eq=False)
class Rollout:
    """One episode, from its seeds to its verdict."""

    index: int
    seed: int
    noise: np.random.RandomState
    context: int | None = None
    options: dict[str, Any] | None = None
    goal: Array | None = None
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


def plan_rollouts(
    n_episodes: int, random_state: RandomState, contexts: Sequence[int | Array] | None = None
) -> list[Rollout]:
    """Draw all seeds before the first rollout, so that none depends on the schedule.

    With contexts, the rollouts start in one after the other of them, over and over.
    """
    rng = check_random_state(random_state)
    seeds = rng.randint(np.iinfo(np.int32).max, size=(n_episodes, 2)).tolist()
    rollouts = [
        Rollout(index, env_seed, np.random.RandomState(noise_seed))
        for index, (env_seed, noise_seed) in enumerate(seeds)
    ]
    if contexts is not None:
        for rollout in rollouts:
            rollout.context = rollout.index % len(contexts)
            rollout.options = {"context": contexts[rollout.context]}
    return rollouts


class Driver:
    """Steps the environments of a pool with the actions of a policy."""

    def __init__(
        self, policy: Policy, pool: EnvPool, n_envs: int, env_id: str, goal: Array | None
    ) -> None:
        self.policy = policy
        self.goal_dim = getattr(policy, "goal_dim", 0)
        self.goal = goal
        self.pool = pool
        self.n_envs = n_envs
        self.env_id = env_id
        self.running: dict[int, Rollout] = {}  # by environment
        self._throwaway = [np.random.RandomState(0) for _ in range(BLOCK_SIZE)]

    def run(self, rollouts: Sequence[Rollout]) -> Iterator[Rollout]:
        """Play all rollouts and yield each when it ends."""
        waiting = deque(rollouts)
        self._start(range(self.n_envs), waiting)
        while self.running:
            self._act()
            free = self._step()
            for env in free:
                yield self.running.pop(env)
            self._start(free, waiting)

    def _start(self, free: Iterable[int], waiting: deque[Rollout]) -> None:
        """Give each free environment the next episode."""
        started: dict[int, Rollout] = {}
        for env in list(free)[: len(waiting)]:
            started[env] = _take_next(waiting, {**self.running, **started}.values())
        if not started:
            return
        seeds = [rollout.seed for rollout in started.values()]
        options = [rollout.options for rollout in started.values()]
        observations, infos = self.pool.reset(list(started), seeds, options)
        for rollout, observation, info in zip(started.values(), observations, infos, strict=True):
            rollout.states.append(np.array(observation, dtype=float))
            if self.goal_dim:
                rollout.goal = self._goal_of(info)
        self.running.update(started)

    def _goal_of(self, info: Mapping[str, Any]) -> Array:
        """Return the goal of an episode: the one of all, or what the environment announces."""
        if self.goal is not None:
            return self.goal
        goal = np.asarray(info.get("goal", ()), dtype=float)
        if goal.shape != (self.goal_dim,):
            raise ValueError(
                f"goal must have shape ({self.goal_dim},), the goal_dim of the policy: none was "
                f"given, and the infos of {self.env_id} tell "
                f"{'none' if 'goal' not in info else f'one of shape {goal.shape}'}."
            )
        return goal

    def _act(self) -> None:
        """Append one action to every running rollout."""
        for block in _place_in_blocks(self.running.values()):
            actions = self._decide(block)
            for place, rollout in block.items():
                rollout.actions.append(actions[place])

    def _decide(self, block: dict[int, Rollout]) -> Array:
        """Return the actions (BLOCK_SIZE, d_a) of a block; rows without a rollout are padding."""
        size = self.policy.window_size
        filler = next(iter(block.values()))
        windows = np.tile(filler.window(size), (BLOCK_SIZE, 1, 1))
        noise = list(self._throwaway)
        goals: list[Any] = [filler.goal] * BLOCK_SIZE
        for place, rollout in block.items():
            windows[place] = rollout.window(size)
            noise[place] = rollout.noise
            goals[place] = rollout.goal
        rows = windows
        if self.goal_dim:
            rows = append_goals(windows, np.stack(goals)).astype(np.float64)
        actions = np.asarray(self.policy.act(rows, random_state=noise))
        return self._check_actions(actions, block)

    def _check_actions(self, actions: Array, block: dict[int, Rollout]) -> Array:
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

    def _record(self, rollout: Rollout, reward: float, info: Mapping[str, Any]) -> None:
        """Keep what the environment said after the last step; the last word counts."""
        if "success" not in info:
            raise ValueError(
                f"the infos of {self.env_id} must tell 'success', got {sorted(info)}. "
                "Wrap the environment so that its info says whether the episode succeeded."
            )
        rollout.total_reward += reward
        rollout.success = bool(info["success"])
        rollout.behavior = info.get("behavior")


def _take_next(waiting: deque[Rollout], running: Iterable[Rollout]) -> Rollout:
    """Take the first episode whose place in the batch is free, so that one block is enough."""
    taken = {rollout.place for rollout in running}
    chosen = next((rollout for rollout in waiting if rollout.place not in taken), waiting[0])
    waiting.remove(chosen)
    return chosen


def _place_in_blocks(rollouts: Iterable[Rollout]) -> list[dict[int, Rollout]]:
    """Put every rollout in its own row; two that share a row go into separate blocks.

    A row keeps its place since the last rows of a matrix product may take another path
    through the kernels than the first.
    """
    blocks: list[dict[int, Rollout]] = []
    for rollout in rollouts:
        block = next((block for block in blocks if rollout.place not in block), None)
        if block is None:
            block = {}
            blocks.append(block)
        block[rollout.place] = rollout
    return blocks
