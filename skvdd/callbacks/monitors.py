"""Callbacks that measure the policy as it learns: the best weights are kept, a run may stop."""

from __future__ import annotations

import math
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.pipeline import Pipeline

from skvdd._sklearn import CallbackContext, enclosing_pipeline
from skvdd.callbacks.base import Callback, check_interval, is_report, last_due
from skvdd.training import Run, from_first


class _Monitor(Callback, metaclass=ABCMeta):
    """Measures the policy from time to time; keeps the best weights, and stops when none come."""

    def __init__(
        self, *, every: int | None, patience: int | None, tol: float, keep_best: bool, name: str
    ) -> None:
        super().__init__()
        if every is not None:
            check_interval("every", every)
        if patience is not None:
            check_interval("patience", patience)
        if not tol >= 0:
            raise ValueError(f"tol must be at least 0, got {tol!r}.")
        if not name or "/" in name:
            raise ValueError(f"name must be a text without '/', got {name!r}.")
        self.every, self.patience, self.tol = every, patience, tol
        self.keep_best, self.name = keep_best, name

    @abstractmethod
    def _measure(self, policy: Any) -> float:
        """Return the score of a fitted policy, or of the pipeline that ends in it."""

    def _open(self, estimator: Any, context: CallbackContext) -> Any:
        """Remember the steps of the pipelines that the policy is fitted in, the innermost first."""
        steps, inner = [], estimator
        while (pipeline := enclosing_pipeline(inner)) is not None:
            steps.append(list(pipeline.steps))
            inner = pipeline
        return steps

    def _whole(self, estimator: Any, policy: Any) -> Any:
        """Return what takes raw observations: the policy, or its pipeline as it stands."""
        for *before, (name, _) in self._record(estimator):
            policy = Pipeline([*before, (name, policy)])
        return policy

    def on_fit_task_end(
        self,
        estimator: Any,
        context: CallbackContext,
        *,
        metadata: Any = None,
        fitted_estimator: Any = None,
    ) -> bool:
        """Measure the policy at the end of a report, put the best weights in at the end of a run.

        Returns
        -------
        bool
            Whether the run is to stop.
        """
        run = (metadata or {}).get("run")
        if not isinstance(run, Run):
            return False
        if not is_report(context):
            self._finish(run)
            return False
        notes = run.notes.setdefault(self.name, {"measured": 0})
        every = self.every or 1
        ends = run.iteration >= run.max_iter
        if not ends and run.iteration < notes["measured"] + every:
            return False
        notes["measured"] = last_due(run.iteration, every)
        whole = self._whole(estimator, fitted_estimator)
        score = from_first(lambda: float(self._measure(whole)))
        metadata["row"][self.name] = score
        return self._is_over(run, notes, score, fitted_estimator)

    def _is_over(self, run: Run, notes: dict[str, float], score: float, policy: Any) -> bool:
        """Note a score and say whether the run has waited long enough for a better one."""
        best = notes.get("best", -math.inf)
        if not math.isnan(score) and ("best" not in notes or score > best + self.tol):
            notes |= {"best": score, "iteration": run.iteration, "waited": 0}
            if self.keep_best:
                run.kept[self.name] = policy.network_.state_dict()  # of a copy: it stays
        else:
            notes["waited"] = notes.get("waited", 0) + 1
        return self.patience is not None and notes["waited"] >= self.patience

    def _finish(self, run: Run) -> None:
        notes = run.notes.get(self.name, {})
        if "best" in notes:
            self.best_score_, self.best_iteration_ = notes["best"], int(notes["iteration"])
        if self.name in run.kept:
            run.averaged().load_state_dict(run.kept[self.name])


class EarlyStopping(_Monitor):
    """Stop training when a score on held-out data ceases to improve.

    Parameters
    ----------
    X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
        Observations that the policy does not learn from, raw: the earlier steps of a pipeline are
        applied to them.
    y : array-like of shape (n, d_a), (n,) or (n, H, d_a)
        Actions taken in them.
    metric : callable or None, default=None
        ``metric(policy, X, y)`` returns a number, greater is better; in a pipeline, ``policy`` is
        the whole pipeline. ``None`` is ``policy.score(X, y)``, and for a diffusion policy its
        `denoising_score`, which is much cheaper than its likelihood. It must not draw from the
        global generators, or the fit will not be reproducible.
    every : int or None, default=None
        Iterations between two measurements, rounded up to reports; ``None`` measures at each.
    patience : int, default=10
        Measurements without improvement after which the run is stopped.
    tol : float, default=0.0
        What counts as an improvement: more than this above the best score.
    keep_best : bool, default=True
        Whether the policy ends with the weights of its best score instead of the last ones.
    name : str, default="held_out_score"
        Column of the score in ``history_``.

    Attributes
    ----------
    best_score_, best_iteration_ : float, int
        Of the training run that ended last in this process.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd import GaussianMoEPolicy
    >>> from skvdd.callbacks import EarlyStopping
    >>> states, actions = np.random.RandomState(0).standard_normal((2, 80, 1))
    >>> stopping = EarlyStopping(states[60:], actions[60:], patience=3)
    >>> policy = GaussianMoEPolicy(2, max_iter=200, learning_rate=1e-2, random_state=0)
    >>> policy.set_callbacks(stopping).fit(states[:60], actions[:60]).n_iter_ < 200
    True
    >>> bool(np.isclose(policy.score(states[60:], actions[60:]), stopping.best_score_))
    True
    """

    def __init__(
        self,
        X: ArrayLike,
        y: ArrayLike,
        *,
        metric: Callable[[Any, Any, Any], float] | None = None,
        every: int | None = None,
        patience: int = 10,
        tol: float = 0.0,
        keep_best: bool = True,
        name: str = "held_out_score",
    ) -> None:
        super().__init__(every=every, patience=patience, tol=tol, keep_best=keep_best, name=name)
        if metric is not None and not callable(metric):
            raise TypeError(f"metric must be callable or None, got {metric!r}.")
        n_rows = np.shape(X)[0], np.shape(y)[0]
        if n_rows[0] != n_rows[1]:
            raise ValueError(f"y must have a row for each of X, got {n_rows[1]} for {n_rows[0]}.")
        self.X, self.y, self.metric = X, y, metric

    def _measure(self, policy: Any) -> float:
        if self.metric is not None:
            return self.metric(policy, self.X, self.y)
        X, last = self.X, policy
        while isinstance(last, Pipeline):
            X = last[:-1].transform(X) if len(last) > 1 else X
            last = last[-1]
        return getattr(last, "denoising_score", last.score)(X, self.y)


class RolloutMonitor(_Monitor):
    """Roll the policy out from time to time while it is trained, and keep the best weights.

    In a task that has contexts it plays those of the validation list, which neither demonstrations
    nor reports share. The best of many noisy scores is optimistic: judge the policy afterwards by
    an evaluation in the test contexts, or, where every episode starts alike, with another
    ``random_state``.

    Parameters
    ----------
    env_id, n_episodes, metric, contexts, random_state, env_kwargs : as in `rollout_scorer`
        What is measured, see `skvdd.evaluation.rollout_scorer`; with one metric. Every measurement
        plays the same episodes, unless ``random_state`` is None.
    goal, max_episode_steps, clip_actions : as in `rollout_scorer`
        By which rules.
    every : int, default=1000
        Iterations between two measurements, rounded up to reports. The end of a run is measured
        too.
    keep_best : bool, default=True
        Whether the policy ends with the weights of its best score instead of the last ones.
    patience : int or None, default=None
        Measurements without improvement after which the run is stopped; ``None`` never stops it.
    name : str or None, default=None
        Column of the score in ``history_``; ``None`` is the name of the metric.

    Attributes
    ----------
    best_score_, best_iteration_ : float, int
        Of the training run that ended last in this process.

    Examples
    --------
    >>> from skvdd.callbacks import RolloutMonitor
    >>> RolloutMonitor("avoiding", 20, every=500, metric="selection").name
    'selection'
    """

    def __init__(
        self,
        env_id: str,
        n_episodes: int | None = None,
        *,
        every: int = 1000,
        metric: str = "success_rate",
        keep_best: bool = True,
        patience: int | None = None,
        contexts: Any = None,
        random_state: int | None = 0,
        env_kwargs: Mapping[str, Any] | None = None,
        goal: ArrayLike | None = None,
        max_episode_steps: int | None = None,
        clip_actions: bool = False,
        name: str | None = None,
    ) -> None:
        # Here, since simulators are loaded by those alone who roll out.
        from skvdd.evaluation import rollout_scorer

        if not isinstance(metric, str):
            raise TypeError(f"metric must be the name of one metric, got {metric!r}.")
        check_interval("every", every)
        self._scorer = rollout_scorer(
            env_id,
            n_episodes,
            metric=metric,
            contexts=contexts,
            random_state=random_state,
            env_kwargs=env_kwargs,
            goal=goal,
            max_episode_steps=max_episode_steps,
            clip_actions=clip_actions,
        )
        super().__init__(
            every=every,
            patience=patience,
            tol=0.0,
            keep_best=keep_best,
            name=metric if name is None else name,
        )

    def _measure(self, policy: Any) -> float:
        return self._scorer(policy, None)  # type: ignore[return-value]
