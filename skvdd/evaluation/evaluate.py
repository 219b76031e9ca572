"""Roll a policy out, and measure what it does."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from joblib import effective_n_jobs
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.parallel import Parallel, delayed
from tqdm import tqdm

from skvdd.datasets.demonstrations import Demonstrations, Episode
from skvdd.envs import EnvPool, TaskSpec
from skvdd.evaluation.contexts import Contexts, choose_contexts, warn_if_ignored
from skvdd.evaluation.report import Evaluation
from skvdd.evaluation.score import ScoreReport, warn_of_unknown
from skvdd.rollouts import (
    BLOCK_SIZE,
    Driver,
    Policy,
    RandomState,
    Registration,
    Rollout,
    as_policy,
    check_goal,
    check_limit,
    check_spaces,
    plan_rollouts,
    registered,
    resolve_task,
)

Array = NDArray[np.float64]


def evaluate_policy(
    policy: Policy,
    env_id: str,
    n_episodes: int | None = None,
    *,
    contexts: Any = None,
    n_envs: int | None = None,
    n_jobs: int | None = None,
    random_state: RandomState = None,
    progress: bool = True,
    env_kwargs: Mapping[str, Any] | None = None,
    goal: ArrayLike | None = None,
    max_episode_steps: int | None = None,
    clip_actions: bool = False,
) -> Evaluation:
    """Roll a policy out and count successes and behaviors.

    Many environments are stepped against one batched `act`. The result depends on
    `random_state` alone, to the last bit: each episode has its own seed and its own noise,
    and its own place in batches of one fixed size, whatever the number of environments and of
    processes.

    Parameters
    ----------
    policy : fitted policy or Pipeline
        Anything with ``window_size`` and ``act(X, *, random_state)``. ``act`` is given
        windows (64, T, d), the start of an episode padded by its first observation, and one
        `numpy.random.RandomState` per row. Of a `sklearn.pipeline.Pipeline` that ends in a policy,
        the last step acts; the earlier steps transform the raw windows, flat as in ``fit``.
        Columns have the names that they had in ``fit``.
    env_id : str
        Name of a registered task (`skvdd.envs.task_names`), or id of a Gymnasium environment with
        vectors as observations and actions, whose infos tell ``success``. What else is measured,
        the task says (`skvdd.envs.TaskSpec`).
    n_episodes : int or None, default=None
        Number of rollouts, divided among the contexts as evenly as can be. None is what the task
        says: 16 in each context, 200 in Avoiding; 100 of an environment that is no registered task.
    contexts : default=None
        Initial states:

        - None: in tasks that have contexts, as many of the test list as the task says, at least
          two rollouts in each; elsewhere every episode starts as the environment's reset does;
        - an int: so many of the test list, from its beginning;
        - a range, or a sequence of int: these of the test list;
        - ``"validation"``, ``"test"`` or ``"train"``: as many of this list as the task says;
        - a pair, ``("validation", 10)`` or ``("validation", range(30, 60))``: these of a list;
        - array-like of shape (m, k): these initial states themselves.

        Demonstrations start in contexts of the train list. Choose models and settings in those of
        the validation list, and report those of the test list.
    n_envs : int, default=None
        Number of environments stepped together, in each process; None takes up to 64. They are
        stepped on as many threads as torch has, at most 8.
    n_jobs : int, default=None
        Number of processes, by joblib; each plays 64 episodes at a time, so that fewer gain
        nothing from more of them. None is one, or what ``joblib.parallel_config`` says, for example
        those of a Dask cluster.
    random_state : int, RandomState instance or None, default=None
        Seeds environments and noise.
    progress : bool, default=True
        Show a progress bar when it takes longer than two seconds.
    env_kwargs : dict, default=None
        Arguments of the environment.
    goal : array-like of shape (g,), default=None
        Goal of a policy with ``goal_dim=g``, the same in every episode; None takes the ``goal``
        that the environment tells in the info of each reset. ``act`` is given flat rows
        (64, T * d + g).
    max_episode_steps : int, default=None
        Cuts an episode after so many actions. None leaves it to the environment; one that has no
        limit of its own is cut after 10 000.
    clip_actions : bool, default=False
        Whether actions are clipped to the bounds of the action space.

    Returns
    -------
    evaluation : Evaluation
        Success rate, diversity and the rollouts themselves.

    Raises
    ------
    TypeError
        If the policy has no ``act``.
    ValueError
        If an argument breaks a rule, before anything is played; if the policy returns what is no
        action, or no info of an episode tells whether it succeeded.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd.evaluation import evaluate_policy
    >>> class StraightAhead:
    ...     window_size = 1
    ...
    ...     def act(self, X, *, random_state=None):
    ...         return np.tile([0.0, 0.005], (len(X), 1))
    >>> evaluation = evaluate_policy(StraightAhead(), "avoiding", n_episodes=2)
    >>> evaluation.success_rate
    0.0
    """
    policy = as_policy(policy)
    goal = check_goal(policy, goal)
    task = resolve_task(env_id)
    if n_episodes is not None:
        check_count("n_episodes", n_episodes)
    if n_envs is None:
        n_envs = BLOCK_SIZE
    check_count("n_envs", n_envs)
    _check_n_jobs(n_jobs)
    check_limit(max_episode_steps)
    chosen = choose_contexts(contexts, task, n_episodes)
    starts = None if chosen is None else chosen.starts
    if n_episodes is None:
        n_episodes = task.n_rollouts * (1 if starts is None else len(starts))
    rollouts = plan_rollouts(n_episodes, random_state, starts)
    limits = {"max_episode_steps": max_episode_steps, "clip_actions": clip_actions}
    stage = _Stage(policy, task, registered(env_id), dict(env_kwargs or {}), goal, limits)
    n_envs = min(n_envs, n_episodes)
    # Dask offers all its workers even to who asks for one.
    alone = n_jobs == 1 or effective_n_jobs(n_jobs) == 1
    with stage.open_pool(n_envs if alone else 1) as pool:
        check_spaces(pool)
        if chosen is not None:
            warn_if_ignored(chosen, pool)
        if alone:
            finished = stage.play(rollouts, pool)
        else:
            finished = _play_in_processes(stage, rollouts, n_envs, n_jobs)
        bar = tqdm(finished, task.env_id, n_episodes, unit="ep", delay=2.0, disable=not progress)
        played = sorted(bar, key=lambda rollout: rollout.index)
    return _report(task, chosen, played)


@dataclass(frozen=True, eq=False)
class _Stage:
    """All that a process needs to play some episodes."""

    policy: Policy
    task: TaskSpec
    registration: Registration  # makes the environment known to other processes
    env_kwargs: dict[str, Any]
    goal: Array | None
    limits: dict[str, Any]

    def open_pool(self, n_envs: int) -> EnvPool:
        """Make the environments."""
        # joblib and Dask bound the threads of torch in their processes, and mean all threads.
        options = {"n_threads": min(torch.get_num_threads(), 8), **self.env_kwargs}
        return EnvPool(self.task.env_id, n_envs, **options)

    def play(self, rollouts: Sequence[Rollout], pool: EnvPool) -> Iterator[Rollout]:
        """Yield each rollout when it ends."""
        return Driver(self.policy, pool, self.task, goal=self.goal, **self.limits).run(rollouts)


def _play_in_processes(
    stage: _Stage, rollouts: Sequence[Rollout], n_envs: int, n_jobs: int | None
) -> Iterator[Rollout]:
    """Yield the rollouts, played by joblib in blocks that fill the batches of `act`."""
    pickle.dumps(stage.registration)  # says what to do about what cannot be sent
    blocks = [rollouts[i : i + BLOCK_SIZE] for i in range(0, len(rollouts), BLOCK_SIZE)]
    parallel = Parallel(n_jobs=n_jobs, return_as="generator")
    for block in parallel(delayed(_play_block)(stage, block, n_envs) for block in blocks):
        yield from block


def _play_block(stage: _Stage, rollouts: Sequence[Rollout], n_envs: int) -> list[Rollout]:
    with stage.open_pool(min(n_envs, len(rollouts))) as pool:
        return list(stage.play(rollouts, pool))


# ---------------------------------------------------------------------------------------
# Checks before any work
# ---------------------------------------------------------------------------------------


def check_count(name: str, value: Any) -> None:
    """Refuse a number that is no integer of at least 1."""
    if isinstance(value, bool) or not (isinstance(value, Integral) and int(value) >= 1):
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")


def _check_n_jobs(n_jobs: int | None) -> None:
    if n_jobs is not None and (not isinstance(n_jobs, Integral) or n_jobs == 0):
        raise ValueError(f"n_jobs must be None or an integer other than 0, got {n_jobs!r}.")


# ---------------------------------------------------------------------------------------
# Report
# ---------------------------------------------------------------------------------------


def _report(task: TaskSpec, chosen: Contexts | None, rollouts: Sequence[Rollout]) -> Evaluation:
    contexts = tuple(rollout.context for rollout in rollouts)
    scores = {}
    for score in task.scores:
        successes, behaviors = zip(
            *(rollout.outcomes[score.name] for rollout in rollouts), strict=True
        )
        scores[score.name] = ScoreReport(score, np.array(successes), tuple(behaviors), contexts)
        warn_of_unknown(task.env_id, scores[score.name])
    return Evaluation(
        env_id=task.env_id,
        split=chosen.split if chosen else None,
        scores=scores,
        contexts=contexts,
        returns=np.array([rollout.total_reward for rollout in rollouts]),
        lengths=np.array([len(rollout.actions) for rollout in rollouts]),
        episodes=_episodes(task, rollouts),
        table=chosen.table if chosen else None,
    )


def _episodes(task: TaskSpec, rollouts: Sequence[Rollout]) -> Demonstrations:
    first = task.score.name
    return Demonstrations(
        episodes=tuple(
            Episode(np.stack(rollout.states), np.stack(rollout.actions), rollout.outcomes[first][1])
            for rollout in rollouts
        ),
        name=task.env_id,
        metadata={"source": "evaluate_policy"},
    )
