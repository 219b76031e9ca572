"""Rollouts as the score of a search, or of a monitor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any

from numpy.typing import ArrayLike

from skvdd.envs import EnvPool, TaskSpec
from skvdd.evaluation.contexts import choose_contexts, of_validation
from skvdd.evaluation.evaluate import check_count, evaluate_policy
from skvdd.evaluation.report import Evaluation
from skvdd.rollouts import (
    Policy,
    Registration,
    check_limit,
    check_spaces,
    registered,
    resolve_task,
)

METRICS = ("success_rate", "entropy_d3il", "diversity", "mean_return", "selection")
OF_BEHAVIORS = ("entropy_d3il", "diversity")


def rollout_scorer(
    env_id: str,
    n_episodes: int | None = None,
    *,
    contexts: Any = None,
    metric: str | Sequence[str] = "success_rate",
    random_state: int | None = 0,
    env_kwargs: Mapping[str, Any] | None = None,
    goal: ArrayLike | None = None,
    max_episode_steps: int | None = None,
    clip_actions: bool = False,
) -> Callable[..., float | dict[str, float]]:
    """Return a scorer that rolls policies out, for the ``scoring`` of searches and validations.

    The scorer is ``scorer(estimator, X, y=None)``, as scikit-learn calls it. It ignores ``X`` and
    ``y``: the score is of the behavior in the environment, and the split of a cross-validation
    chooses no more than what to train on. It can be pickled, and shows no progress bar.

    Parameters
    ----------
    env_id, n_episodes, env_kwargs, goal, max_episode_steps, clip_actions : as in `evaluate_policy`
        What is rolled out, and by which rules.
    contexts : default=None
        As in `evaluate_policy`, but None takes the validation list of a task that has contexts:
        what is chosen by a score must be judged in other contexts.
    metric : str or sequence of str, default="success_rate"
        ``"success_rate"``, ``"entropy_d3il"``, ``"diversity"`` or ``"mean_return"`` of the
        `Evaluation`; or ``"selection"``, the number by which models of this task are selected in
        the publications (`skvdd.envs.TaskSpec`). One name: the scorer returns a number. Several: it
        returns a dict of them, from the same rollouts. ``GridSearchCV`` and ``cross_validate`` take
        such a scorer as it is, the search with the name that decides as ``refit``; a dict of
        scorers would roll out once for each.
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
    >>> scorer = rollout_scorer("avoiding", 2, metric=["success_rate", "selection"])
    >>> scorer(StraightAhead(), X=None)
    {'success_rate': 0.0, 'selection': 0.0}
    """
    task = resolve_task(env_id)
    if n_episodes is not None:
        check_count("n_episodes", n_episodes)
    contexts = of_validation(contexts, task)
    choose_contexts(contexts, task, n_episodes)  # refuses wrong ones
    check_limit(max_episode_steps)
    _check_seed(random_state)
    names = (metric,) if isinstance(metric, str) else tuple(metric)
    _check_metric(names, task)
    env_kwargs = dict(env_kwargs or {})
    with EnvPool(task.env_id, 1, **env_kwargs) as pool:
        check_spaces(pool)
    metric = metric if isinstance(metric, str) else names
    play = partial(
        evaluate_policy,
        env_id=task.env_id,
        n_episodes=n_episodes,
        contexts=contexts,
        n_jobs=1,  # a search has processes of its own
        random_state=random_state,
        progress=False,
        env_kwargs=env_kwargs,
        goal=goal,
        max_episode_steps=max_episode_steps,
        clip_actions=clip_actions,
    )
    return _RolloutScorer(registered(env_id), metric, play)


@dataclass(frozen=True, eq=False)
class _RolloutScorer:
    """What `rollout_scorer` returns: its checked arguments, and a call."""

    registration: Registration  # makes the environment known to the processes of a search
    metric: str | tuple[str, ...]
    play: Callable[[Policy], Evaluation]

    def __call__(self, estimator: Policy, X: Any, y: Any = None) -> float | dict[str, float]:
        """Return the score of a fitted policy, or a dict of scores."""
        evaluation, task = self.play(estimator), resolve_task(self.registration.spec.id)
        if isinstance(self.metric, str):
            return measure(evaluation, self.metric, task)
        return {name: measure(evaluation, name, task) for name in self.metric}


def measure(evaluation: Evaluation, metric: str, task: TaskSpec) -> float:
    """Return a metric of an evaluation."""
    if metric == "selection":
        return task.selection(evaluation)
    return float(getattr(evaluation, metric))


def _check_seed(random_state: int | None) -> None:
    # An instance would be consumed, and every policy of a search play other episodes.
    if random_state is None or (isinstance(random_state, Integral) and 0 <= random_state < 2**32):
        return
    raise ValueError(
        f"random_state must be None or an integer in [0, 2**32), got {random_state!r}."
    )


def _check_metric(names: Sequence[str], task: TaskSpec) -> None:
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        came = repr(unknown[0]) if unknown else "none"
        raise ValueError(f"metric must be one or several of {', '.join(METRICS)}, got {came}.")
    needing = [name for name in names if name in OF_BEHAVIORS]
    if needing and task.score.n_behaviors is None:
        raise ValueError(
            f"metric must be success_rate, mean_return or selection for {task.env_id}, which tells "
            f"no behaviors apart, got {needing[0]!r}. Name its behaviors in a TaskSpec and call "
            "skvdd.envs.register_task if it does."
        )
