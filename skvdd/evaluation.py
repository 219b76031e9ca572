"""Rollouts: how often a policy succeeds, in how many ways, and how fast it decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
import torch
from joblib import effective_n_jobs
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.parallel import Parallel, delayed
from tqdm import tqdm

from skvdd.datasets.demonstrations import Behavior, Demonstrations, Episode
from skvdd.envs import EnvPool
from skvdd.metrics import task_entropy, wilson_interval
from skvdd.recording import record_episode
from skvdd.rollouts import (
    BLOCK_SIZE,
    Driver,
    Policy,
    RandomState,
    Rollout,
    as_policy,
    check_env_id,
    check_goal,
    check_spaces,
    plan_rollouts,
)

__all__ = ["Evaluation", "evaluate_policy", "record_episode", "rollout_scorer", "time_action"]

Array = NDArray[np.float64]

METRICS = ("success_rate", "entropy", "d3il", "mean_return")  # of `rollout_scorer`
OF_BEHAVIORS = ("entropy", "d3il")


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
        behaviors apart: the mean over the contexts of the evaluation, or, without, the entropy
        of all rollouts as of one initial state.
    entropy_base : int or None
        Number of behaviors of the task, the base of the entropy.
    n_behaviors : int
        Number of distinct behaviors among the successful rollouts.
    successes : ndarray of shape (n,)
        Whether each rollout succeeded.
    behaviors : tuple of length n
        The behavior of each rollout, failures included.
    contexts : tuple of length n
        Which context each rollout started in, counted from zero; None without contexts.
    returns : ndarray of shape (n,)
        Sum of the rewards.
    lengths : ndarray of shape (n,)
        Number of actions.
    episodes : Demonstrations
        Observations and actions; ``episodes.windows(window_size)`` is what the policy saw
        and did.

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
    >>> print(evaluation)
    skvdd/Avoiding-v0, 2 episodes
      success rate    0.000  95 % in [0.000, 0.658]
      task entropy    0.000  base 24
      behaviors           0  of 24
      mean return     0.000
      mean length      30.0  actions
    >>> evaluation.episodes.windows(window_size=1)[0].shape  # what the policy saw
    (60, 1, 4)
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
    contexts: tuple[int | None, ...] = field(repr=False)
    returns: Array = field(repr=False)
    lengths: NDArray[np.intp] = field(repr=False)
    episodes: Demonstrations = field(repr=False)

    def __str__(self) -> str:
        low, high = self.success_interval
        rows = [("success rate", f"{self.success_rate:.3f}", f"95 % in [{low:.3f}, {high:.3f}]")]
        if self.entropy is not None:
            rows += [
                ("task entropy", f"{self.entropy:.3f}", f"base {self.entropy_base}"),
                ("behaviors", f"{self.n_behaviors}", f"of {self.entropy_base}"),
            ]
        rows += [
            ("mean return", f"{self.returns.mean():.3f}", ""),
            ("mean length", f"{self.lengths.mean():.1f}", "actions"),
        ]
        table = [f"  {name:<12}  {value:>7}  {note}".rstrip() for name, value, note in rows]
        title = f"{self.env_id}, {self.n_episodes} episodes"
        if self.n_contexts:
            title += f" in {self.n_contexts} contexts"
        return "\n".join([title, *table])

    @property
    def n_contexts(self) -> int:
        """Number of contexts that were asked for; 0 for none."""
        return len(set(self.contexts) - {None})

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
            "n_contexts": self.n_contexts,
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
    contexts: int | ArrayLike | None = None,
    n_envs: int | None = None,
    n_jobs: int | None = None,
    random_state: RandomState = None,
    progress: bool = True,
    env_kwargs: Mapping[str, Any] | None = None,
    goal: ArrayLike | None = None,
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
        the last step tells ``window_size`` and acts; the earlier steps transform the raw windows,
        flat as in ``fit``. Columns have the names that they had in ``fit``.
    env_id : str
        A registered Gymnasium environment with vectors as observations and actions, whose
        infos tell ``success`` and, where it has behaviors, ``behavior``.
    n_episodes : int, default=100
        Number of rollouts; with contexts a multiple of theirs.
    contexts : int, array-like of shape (m, k) or None, default=None
        Initial states that the rollouts share out evenly: the first m of the environment's test
        list, or these. The entropy is then the mean over them, as D3IL defines it. None lets
        each episode draw its own.
    n_envs : int, default=None
        Number of environments stepped together, in each process; None takes up to 64. They are
        stepped on as many threads as torch has, at most 8.
    n_jobs : int, default=None
        Number of processes, by joblib; each plays 64 episodes at a time, so that fewer gain
        nothing from more of them. None is one, or what ``joblib.parallel_config`` says, for example
        those of a Dask cluster. They must know ``env_id`` as well; they know those of skvdd, and
        ``"module:id"`` if they can import the module.
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
    policy = as_policy(policy)
    goal = check_goal(policy, goal)
    check_env_id(env_id)
    _check_count("n_episodes", n_episodes)
    if n_envs is None:
        n_envs = BLOCK_SIZE
    _check_count("n_envs", n_envs)
    starts = _check_contexts(contexts, n_episodes)
    _check_n_jobs(n_jobs)
    rollouts = plan_rollouts(n_episodes, random_state, starts)
    stage = _Stage(policy, env_id, dict(env_kwargs or {}), goal)
    n_envs = min(n_envs, n_episodes)
    # Dask offers all its workers even to who asks for one.
    alone = n_jobs == 1 or effective_n_jobs(n_jobs) == 1
    with stage.open_pool(n_envs if alone else 1) as pool:
        check_spaces(pool)
        if alone:
            finished = stage.play(rollouts, pool)
        else:
            finished = _play_in_processes(stage, rollouts, n_envs, n_jobs)
        bar = tqdm(finished, env_id, n_episodes, unit="ep", delay=2.0, disable=not progress)
        played = sorted(bar, key=lambda rollout: rollout.index)
        return _summarise(env_id, played, pool.n_behaviors, pool.skips_unsolved)


@dataclass(frozen=True, eq=False)
class _Stage:
    """Who plays where: all that a process needs to play some episodes."""

    policy: Policy
    env_id: str
    env_kwargs: dict[str, Any]
    goal: Array | None

    def open_pool(self, n_envs: int) -> EnvPool:
        # joblib and Dask bound the threads of torch in their processes, and mean all threads.
        options = {"n_threads": min(torch.get_num_threads(), 8), **self.env_kwargs}
        return EnvPool(self.env_id, n_envs, **options)

    def play(self, rollouts: Sequence[Rollout], pool: EnvPool) -> Iterator[Rollout]:
        """Yield each rollout when it ends."""
        return Driver(self.policy, pool, len(pool), self.env_id, self.goal).run(rollouts)


def _play_in_processes(
    stage: _Stage, rollouts: Sequence[Rollout], n_envs: int, n_jobs: int | None
) -> Iterator[Rollout]:
    """Yield the rollouts, played by joblib in blocks that fill the batches of `act`."""
    blocks = [rollouts[i : i + BLOCK_SIZE] for i in range(0, len(rollouts), BLOCK_SIZE)]
    parallel = Parallel(n_jobs=n_jobs, return_as="generator")
    for block in parallel(delayed(_play_block)(stage, block, n_envs) for block in blocks):
        yield from block


def _play_block(stage: _Stage, rollouts: Sequence[Rollout], n_envs: int) -> list[Rollout]:
    with stage.open_pool(min(n_envs, len(rollouts))) as pool:
        return list(stage.play(rollouts, pool))


def time_action(
    policy: Policy, X_row: ArrayLike, *, n_calls: int = 200, n_threads: int = 1
) -> float:
    """Measure how long one decision takes: one state in, one action out.

    Parameters
    ----------
    policy : fitted policy or Pipeline
        As in `evaluate_policy`.
    X_row : array-like of shape (T, d) or (T * d + g,)
        The window of one decision.
    n_calls : int, default=200
        Number of timed calls, after a tenth as many to warm up.
    n_threads : int, default=1
        Threads that torch may use meanwhile.

    Returns
    -------
    milliseconds : float
        Median wall-clock time of one call of ``act``.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd import GaussianMoEPolicy
    >>> from skvdd.evaluation import time_action
    >>> X, y = np.random.RandomState(0).standard_normal((2, 50, 3))
    >>> policy = GaussianMoEPolicy(2, max_iter=2, random_state=0).fit(X, y)
    >>> milliseconds = time_action(policy, X[:1], n_calls=5)
    >>> milliseconds > 0
    True
    """
    _check_count("n_calls", n_calls)
    _check_count("n_threads", n_threads)
    policy = as_policy(policy)
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
# The measurement as a scorer
# ---------------------------------------------------------------------------------------


def rollout_scorer(
    env_id: str,
    n_episodes: int = 100,
    *,
    contexts: int | ArrayLike | None = None,
    metric: str | Sequence[str] = "success_rate",
    random_state: int | None = 0,
    env_kwargs: Mapping[str, Any] | None = None,
    goal: ArrayLike | None = None,
) -> Callable[..., float | dict[str, float]]:
    """Return a scorer that rolls policies out, for the ``scoring`` of searches and validations.

    The scorer is ``scorer(estimator, X, y=None)``, as scikit-learn calls it. It ignores ``X`` and
    ``y``: the score is of the behavior in the environment, and the split of a cross-validation
    chooses no more than what to train on. It can be pickled, and shows no progress bar.

    Parameters
    ----------
    env_id, n_episodes, contexts, env_kwargs, goal : as in `evaluate_policy`
        What is rolled out. Processes other than this one must know ``env_id`` as well; those
        of joblib know the environments of skvdd.
    metric : str or sequence of str, default="success_rate"
        ``"success_rate"``; ``"entropy"``, the task entropy; ``"d3il"``, the score by which D3IL
        selects models, ``0.8 * success_rate + 0.2 * entropy``; or ``"mean_return"``. One name:
        the scorer returns a number. Several: it returns a dict of them, from the same rollouts.
        ``GridSearchCV`` and ``cross_validate`` take such a scorer as it is, the search with the
        name that decides as ``refit``; a dict of scorers would roll out once for each.
    random_state : int or None, default=0
        With a number every call plays the same episodes with the same noise, so that policies are
        compared on equal terms. None takes new ones in each call.

    Returns
    -------
    scorer : callable
        The scorer; greater is better.

    Raises
    ------
    ValueError
        If an argument breaks a rule, or the environment tells no behaviors apart and the metric
        needs them. All are checked here, since a search turns errors of a scorer into NaN
        (``error_score="raise"`` stops it instead).

    Notes
    -----
    The estimator must be what `evaluate_policy` takes: any policy of skvdd, a ``Pipeline`` that
    ends in one, or either in ``FrozenEstimator``. A ``TransformedTargetRegressor`` is none: it
    keeps nothing of a policy but `predict`. Arguments of ``fit``, as ``teacher``, do not concern
    the scorer.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd.evaluation import rollout_scorer
    >>> class StraightAhead:
    ...     window_size = 1
    ...
    ...     def act(self, X, *, random_state=None):
    ...         return np.tile([0.0, 0.005], (len(X), 1))
    >>> scorer = rollout_scorer("skvdd/Avoiding-v0", 2, metric=["success_rate", "entropy"])
    >>> scorer(StraightAhead(), X=None)
    {'success_rate': 0.0, 'entropy': 0.0}
    """
    _check_count("n_episodes", n_episodes)
    _check_contexts(contexts, n_episodes)
    _check_seed(random_state)
    names = (metric,) if isinstance(metric, str) else tuple(metric)
    _check_metric(names)
    check_env_id(env_id)
    env_kwargs = dict(env_kwargs or {})
    with EnvPool(env_id, 1, **env_kwargs) as pool:
        check_spaces(pool)
        _check_tells_behaviors(pool, names)
    chosen = metric if isinstance(metric, str) else names
    return _RolloutScorer(env_id, n_episodes, contexts, chosen, random_state, env_kwargs, goal)


@dataclass(frozen=True, eq=False)
class _RolloutScorer:
    """What `rollout_scorer` returns: its checked arguments, and a call."""

    env_id: str
    n_episodes: int
    contexts: int | ArrayLike | None
    metric: str | tuple[str, ...]
    random_state: int | None
    env_kwargs: dict[str, Any]
    goal: ArrayLike | None

    def __call__(self, estimator: Policy, X: Any, y: Any = None) -> float | dict[str, float]:
        """Return the score of a fitted policy, or a dict of scores."""
        evaluation = evaluate_policy(
            estimator,
            self.env_id,
            self.n_episodes,
            contexts=self.contexts,
            n_jobs=1,  # a search has processes of its own
            random_state=self.random_state,
            progress=False,
            env_kwargs=self.env_kwargs,
            goal=self.goal,
        )
        if isinstance(self.metric, str):
            return _measure(evaluation, self.metric)
        return {name: _measure(evaluation, name) for name in self.metric}


def _measure(evaluation: Evaluation, metric: str) -> float:
    if metric == "d3il":
        return 0.8 * evaluation.success_rate + 0.2 * _measure(evaluation, "entropy")
    return float(evaluation.to_dict()[metric])


# ---------------------------------------------------------------------------------------
# Checks before any work
# ---------------------------------------------------------------------------------------


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}.")


def _check_n_jobs(n_jobs: int | None) -> None:
    if n_jobs is not None and (not isinstance(n_jobs, Integral) or n_jobs == 0):
        raise ValueError(f"n_jobs must be None or an integer other than 0, got {n_jobs!r}.")


def _check_contexts(contexts: Any, n_episodes: int) -> Sequence[int | Array] | None:
    """Return what the resets are told, one item for each context; None for no contexts."""
    if contexts is None:
        return None
    starts: Sequence[int | Array]
    if np.ndim(contexts) == 0:
        if not (isinstance(contexts, Integral) and int(contexts) >= 1):
            raise ValueError(f"contexts must be an integer of at least 1, got {contexts!r}.")
        starts = range(int(contexts))
    else:
        table = np.asarray(contexts, dtype=float)
        if table.ndim != 2:
            raise ValueError(
                "contexts must be a number, or a table with one row for each of them; got shape "
                f"{table.shape}."
            )
        starts = list(table)
    if n_episodes % len(starts):
        raise ValueError(
            f"n_episodes must be a multiple of the number of contexts, {len(starts)}, got "
            f"{n_episodes}."
        )
    return starts


def _check_seed(random_state: int | None) -> None:
    # An instance would be consumed, and every policy of a search play other episodes.
    if random_state is None or (isinstance(random_state, Integral) and 0 <= random_state < 2**32):
        return
    raise ValueError(
        f"random_state must be None or an integer in [0, 2**32), got {random_state!r}."
    )


def _check_metric(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        came = repr(unknown[0]) if unknown else "none"
        raise ValueError(f"metric must be one or several of {', '.join(METRICS)}, got {came}.")


def _check_tells_behaviors(pool: EnvPool, names: Sequence[str]) -> None:
    needing = [name for name in names if name in OF_BEHAVIORS]
    if needing and pool.n_behaviors is None:
        raise ValueError(
            f"metric must be success_rate or mean_return for {pool.env_id}, which tells no "
            f"behaviors apart, got {needing[0]!r}. Give the environment the attribute "
            "n_behaviors if it does."
        )


# ---------------------------------------------------------------------------------------
# Summary
# ---------------------------------------------------------------------------------------


def _summarise(
    env_id: str, rollouts: Sequence[Rollout], base: int | None, skip_unsolved: bool
) -> Evaluation:
    n_success = sum(rollout.success for rollout in rollouts)
    solved = [rollout.behavior if rollout.success else None for rollout in rollouts]
    contexts = tuple(rollout.context for rollout in rollouts)
    entropy = None
    if base is not None:
        entropy = task_entropy(solved, base, contexts, skip_unsolved=skip_unsolved)
    return Evaluation(
        env_id=env_id,
        n_episodes=len(rollouts),
        success_rate=n_success / len(rollouts),
        success_interval=wilson_interval(n_success, len(rollouts)),
        entropy=entropy,
        entropy_base=base,
        n_behaviors=len(set(solved) - {None}),
        successes=np.array([rollout.success for rollout in rollouts]),
        behaviors=tuple(rollout.behavior for rollout in rollouts),
        contexts=contexts,
        returns=np.array([rollout.total_reward for rollout in rollouts]),
        lengths=np.array([len(rollout.actions) for rollout in rollouts]),
        episodes=_episodes(env_id, rollouts),
    )


def _episodes(env_id: str, rollouts: Sequence[Rollout]) -> Demonstrations:
    return Demonstrations(
        episodes=tuple(
            Episode(np.stack(rollout.states), np.stack(rollout.actions), rollout.behavior)
            for rollout in rollouts
        ),
        name=env_id,
        metadata={"source": "evaluate_policy"},
    )
