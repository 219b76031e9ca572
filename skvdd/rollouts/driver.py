"""The loop of all rollouts: observe, decide in one batch, step, and judge."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import gymnasium
import numpy as np
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from skvdd.datasets.demonstrations import append_goals
from skvdd.envs import EnvPool, TaskSpec
from skvdd.envs.spec import LONGEST, Behavior
from skvdd.envs.verdicts import Verdict
from skvdd.rollouts.policies import Policy

Array = NDArray[np.float64]
RandomState = int | np.random.RandomState | None

# Every call of `act` has this many rows: matrix products of another size may round
# differently, and a rollout amplifies the last bit of an action.
BLOCK_SIZE = 64


@dataclass(frozen=True, eq=False)
class Start:
    """Where rollouts start.

    Parameters
    ----------
    context : int
        Number of the context, for reports.
    options : dict
        What `reset` of the environment is given.
    """

    context: int
    options: dict[str, Any]


@dataclass(eq=False)
class Rollout:
    """One episode, from its seeds to its outcomes."""

    index: int
    seed: int
    noise: np.random.RandomState
    context: int | None = None
    options: dict[str, Any] | None = None
    goal: Array | None = None
    states: list[Array] = field(default_factory=list)
    actions: list[Array] = field(default_factory=list)  # as the environment was given them
    total_reward: float = 0.0
    outcomes: dict[str, tuple[bool, Behavior]] = field(default_factory=dict)  # by score

    @property
    def place(self) -> int:
        """Row of this episode in every batch."""
        return self.index % BLOCK_SIZE

    def window(self, window_size: int) -> Array:
        """Return the last observations (T, d); the first one fills up the start."""
        recent = self.states[-window_size:]
        return np.stack([self.states[0]] * (window_size - len(recent)) + recent)


def plan_rollouts(
    n_episodes: int, random_state: RandomState, starts: Sequence[Start] | None = None
) -> list[Rollout]:
    """Draw all seeds before the first rollout, so that none depends on the schedule.

    Parameters
    ----------
    n_episodes : int
        Number of rollouts.
    random_state : int, RandomState or None
        Source of the seeds.
    starts : sequence of Start or None, default=None
        The rollouts take one after the other, over and over; None starts as the environment does.

    Returns
    -------
    list of Rollout
        Not played yet.
    """
    rng = check_random_state(random_state)
    seeds = rng.randint(np.iinfo(np.int32).max, size=(n_episodes, 2)).tolist()
    rollouts = [
        Rollout(index, env_seed, np.random.RandomState(noise_seed))
        for index, (env_seed, noise_seed) in enumerate(seeds)
    ]
    if starts is not None:
        for rollout in rollouts:
            start = starts[rollout.index % len(starts)]
            rollout.context, rollout.options = start.context, dict(start.options)
    return rollouts


class Driver:
    """Steps the environments of a pool with the actions of a policy.

    Parameters
    ----------
    policy : Policy
        As `as_policy` returns it.
    pool : EnvPool
        Environments whose spaces `check_spaces` has accepted.
    task : TaskSpec
        By which scores the rollouts are judged.
    goal : ndarray of shape (g,) or None, default=None
        Goal of all rollouts; None takes what the environment tells at the reset.
    max_episode_steps : int or None, default=None
        Cuts an episode after so many actions. None leaves it to the environment; one without a
        limit is cut after 10 000, with a warning.
    clip_actions : bool, default=False
        Whether actions are clipped to the bounds of the action space.
    """

    def __init__(
        self,
        policy: Policy,
        pool: EnvPool,
        task: TaskSpec,
        *,
        goal: Array | None = None,
        max_episode_steps: int | None = None,
        clip_actions: bool = False,
    ) -> None:
        check_limit(max_episode_steps)
        self.policy = policy
        self.pool = pool
        self.task = task
        self.goal = goal
        self.goal_dim = getattr(policy, "goal_dim", 0)
        self.max_episode_steps = max_episode_steps
        self.clip_actions = clip_actions
        self.running: dict[int, Rollout] = {}  # by environment
        self._verdicts: dict[int, list[Verdict]] = {}  # by environment
        self._throwaway = [np.random.RandomState(0) for _ in range(BLOCK_SIZE)]
        self._longest = LONGEST if max_episode_steps is None else int(max_episode_steps)
        self._warned = False
        self._cuts = max_episode_steps is not None or not _has_limit(pool.envs[0])

    def run(self, rollouts: Sequence[Rollout]) -> Iterator[Rollout]:
        """Play all rollouts and yield each when it ends.

        Parameters
        ----------
        rollouts : sequence of Rollout
            As planned.

        Yields
        ------
        Rollout
            With its outcomes.
        """
        waiting = deque(rollouts)
        self._start(range(len(self.pool)), waiting)
        while self.running:
            self._act()
            free = self._step()
            for env in free:
                yield self.running.pop(env)
            self._start(free, waiting)

    # -- start --------------------------------------------------------------------------

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
            rollout.states.append(self._vector(observation))
            if self.goal_dim:
                rollout.goal = self._goal_of(info)
        self.running.update(started)
        for env in started:
            self._verdicts[env] = [Verdict(score) for score in self.task.scores]

    def _vector(self, observation: Any) -> Array:
        """Return an observation as a vector of its own; refuse what its space does not announce."""
        if isinstance(observation, Mapping):
            raise ValueError(
                f"the observations of {self.task.env_id} must be vectors, as its observation_space "
                f"says, got a dict of {', '.join(map(repr, observation))}."
            )
        return np.array(observation, dtype=np.float64)

    def _goal_of(self, info: Mapping[str, Any]) -> Array:
        """Return the goal of an episode: the one of all, or what the environment announces."""
        if self.goal is not None:
            return self.goal
        goal = np.asarray(info.get("goal", ()), dtype=float)
        if goal.shape != (self.goal_dim,):
            raise ValueError(
                f"goal must have shape ({self.goal_dim},), the goal_dim of the policy: none was "
                f"given, and the infos of {self.task.env_id} tell "
                f"{'none' if 'goal' not in info else f'one of shape {goal.shape}'}."
            )
        return goal

    # -- decide -------------------------------------------------------------------------

    def _act(self) -> None:
        """Append one action to every running rollout."""
        for block in _place_in_blocks(self.running.values()):
            actions = self._playable(self._decide(block), block)
            for place, rollout in block.items():
                rollout.actions.append(actions[place].copy())

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
        actions = np.asarray(self.policy.act(rows, random_state=noise), dtype=np.float64)
        return self._check_shape(actions, min(rollout.index for rollout in block.values()))

    def _check_shape(self, actions: Array, episode: int) -> Array:
        """Return one action per row, (BLOCK_SIZE, d_a), or refuse what is none."""
        (d_a,) = self.pool.action_space.shape  # type: ignore[misc]
        if d_a == 1 and actions.shape == (BLOCK_SIZE,):
            return actions[:, None]  # a policy fitted on a vector gives vectors back
        if actions.ndim == 3 and len(actions) == BLOCK_SIZE:
            if actions.shape[1] > 1:
                raise ValueError(
                    "policy.act must return one action per decision, got chunks of "
                    f"{actions.shape[1]}, shape {actions.shape}. Fit it on single actions, or wrap "
                    "it in a policy whose act returns the first of each chunk."
                )
            actions = actions[:, 0]
        if actions.shape != (BLOCK_SIZE, d_a):
            raise ValueError(
                f"policy.act must return one action of {self.task.env_id} per row, shape "
                f"({BLOCK_SIZE}, {d_a}), got shape {actions.shape} in episode {episode}. "
                "Was the policy fitted on the actions of another environment?"
            )
        return actions

    def _playable(self, actions: Array, block: dict[int, Rollout]) -> Array:
        """Return actions as the environment is given them: clipped if wanted, and of its type."""
        space: Any = self.pool.action_space
        given, finite = actions, np.isfinite(actions)
        if self.clip_actions:
            actions = np.clip(actions, space.low, space.high)
        if space.dtype.kind in "iu":
            actions = np.rint(actions)
        limits = np.iinfo(space.dtype) if space.dtype.kind in "iu" else np.finfo(space.dtype)
        held = finite & (actions >= limits.min) & (actions <= limits.max)
        for place, rollout in block.items():
            if not held[place].all():
                told = "finite actions" if not finite[place].all() else f"what {space.dtype} holds"
                raise ValueError(
                    f"policy.act must return {told}, got {given[place].tolist()} in "
                    f"{self._moment(rollout, len(rollout.actions))}. "
                    "Look for a training that diverged, or for states far from its data."
                )
        return np.where(held, actions, 0.0).astype(space.dtype).astype(np.float64)

    # -- step ---------------------------------------------------------------------------

    def _step(self) -> list[int]:
        """Step every environment that plays, return those whose episode ended."""
        envs = list(self.running)
        actions = np.stack([self.running[env].actions[-1] for env in envs])
        observations, rewards, terminated, truncated, infos = self.pool.step(
            envs, actions.astype(self.pool.action_space.dtype)
        )
        ended = []
        for row, env in enumerate(envs):
            rollout = self.running[env]
            rollout.total_reward += float(rewards[row])
            self._hear(env, infos[row])
            if terminated[row] or truncated[row] or self._is_cut(rollout):
                self._judge(env, infos[row])
                ended.append(env)
            else:
                rollout.states.append(self._vector(observations[row]))
        return ended

    def _is_cut(self, rollout: Rollout) -> bool:
        """Say whether an episode has lasted long enough; warn where nobody has said how long."""
        if not self._cuts or len(rollout.actions) < self._longest:
            return False
        if self.max_episode_steps is None and not self._warned:
            self._warned = True
            warnings.warn(
                f"Episodes of {self.task.env_id}, which has no limit, are cut after {LONGEST} "
                "actions. max_episode_steps says after how many.",
                stacklevel=2,
            )
        return True

    # -- judge --------------------------------------------------------------------------

    def _hear(self, env: int, info: Mapping[str, Any]) -> None:
        """Take in what the info of the last step tells."""
        rollout = self.running[env]
        for verdict in self._verdicts[env]:
            try:
                verdict.hear(info)
            except ValueError as error:
                moment = self._moment(rollout, len(rollout.actions) - 1)
                raise ValueError(f"{error} in {moment}.") from error

    def _judge(self, env: int, info: Mapping[str, Any]) -> None:
        """Write the outcomes down, by every score."""
        rollout = self.running[env]
        for verdict in self._verdicts.pop(env):
            if verdict.success is None:
                keys = ", ".join(map(repr, info)) or "nothing"
                raise ValueError(
                    f"the infos of {self.task.env_id} must tell {verdict.score.success_key!r}, "
                    f"none of episode {rollout.index} does, and the last one tells {keys}. Wrap "
                    "the environment so that its info says whether the episode succeeded."
                )
            rollout.outcomes[verdict.score.name] = (verdict.success, verdict.behavior)

    def _moment(self, rollout: Rollout, step: int) -> str:
        return f"episode {rollout.index} of {self.task.env_id}, step {step}"


def check_limit(max_episode_steps: int | None) -> None:
    """Refuse a limit that is no integer of at least 1."""
    number = max_episode_steps
    if number is None or (
        isinstance(number, Integral) and not isinstance(number, bool) and number >= 1
    ):
        return
    raise ValueError(f"max_episode_steps must be None or an integer of at least 1, got {number!r}.")


def _has_limit(env: gymnasium.Env[Any, Any]) -> bool:
    """Say whether an environment ends its episodes after some number of steps."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, TimeLimit):
            return True
        env = env.env
    return False


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
