"""What an evaluation found: every rollout's outcome, and the numbers that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skvdd.datasets.demonstrations import Behavior, Demonstrations
from skvdd.evaluation.score import Interval, ScoreReport

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate_policy` found; ``print`` shows it as a table.

    The outcome of every rollout is kept, and all numbers follow from them. Where a task has several
    scores, those of the first are attributes of the evaluation itself, and `scores` has all.

    Attributes
    ----------
    env_id : str
        The environment.
    split : {"train", "validation", "test"} or None
        The list that the contexts are of; None without contexts, or with contexts of one's own.
    scores : dict of str to ScoreReport
        Success and behaviors of every rollout, rates and diversity, by the name of the score.
    contexts : tuple of length n
        The context of each rollout: its number in the list, or its row in the table that was given;
        None where every episode starts alike.
    returns : ndarray of shape (n,)
        Sum of the rewards of each rollout.
    lengths : ndarray of shape (n,)
        Number of actions of each rollout.
    table : ndarray of shape (m, k) or None
        The initial states that were given as contexts.
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
    >>> evaluation = evaluate_policy(StraightAhead(), "avoiding", n_episodes=2)
    >>> print(evaluation)
    skvdd/Avoiding-v0, 2 episodes
      success rate     0.000  95 % in [0.000, 0.658]
      entropy, D3IL    0.000  no interval, 0.000 if perfectly diverse
      diversity          nan  no interval, 1 if all equally frequent
      behaviors            0  of 24
      mean return      0.000
      mean length       30.0  actions
    >>> evaluation.episodes.windows(window_size=1)[0].shape  # what the policy saw
    (60, 1, 4)
    """

    env_id: str
    split: str | None
    scores: Mapping[str, ScoreReport] = field(repr=False)
    contexts: tuple[int | None, ...] = field(repr=False)
    returns: Array = field(repr=False)
    lengths: NDArray[np.intp] = field(repr=False)
    episodes: Demonstrations = field(repr=False)
    table: Array | None = field(default=None, repr=False)

    # -- of the task's own score --------------------------------------------------------

    @property
    def score(self) -> ScoreReport:
        """The report of the first score."""
        return next(iter(self.scores.values()))

    @property
    def successes(self) -> NDArray[np.bool_]:
        """Whether each rollout succeeded, (n,)."""
        return self.score.successes

    @property
    def behaviors(self) -> tuple[Behavior, ...]:
        """The behavior of each rollout, failures included."""
        return self.score.behaviors

    @property
    def success_rate(self) -> float:
        """Share of the rollouts that succeeded."""
        return self.score.success_rate

    @property
    def success_interval(self) -> Interval:
        """95 % interval of the success rate."""
        return self.score.success_interval

    @property
    def base(self) -> int | None:
        """Number of behaviors of the task; None where they are not told apart."""
        return self.score.base

    @property
    def n_behaviors(self) -> int:
        """Number of distinct behaviors among the successful rollouts."""
        return self.score.n_behaviors

    @property
    def entropy_d3il(self) -> float | None:
        """The entropy of D3IL; None where behaviors are not told apart."""
        return self.score.entropy_d3il

    @property
    def entropy_interval(self) -> Interval | None:
        """95 % interval of the entropy."""
        return self.score.entropy_interval

    @property
    def entropy_ceiling(self) -> float | None:
        """What a perfectly diverse policy would get with these numbers of successes."""
        return self.score.entropy_ceiling

    @property
    def diversity(self) -> float | None:
        """Diversity that does not depend on the number of rollouts."""
        return self.score.diversity

    @property
    def diversity_interval(self) -> Interval | None:
        """95 % interval of the diversity."""
        return self.score.diversity_interval

    # -- of all rollouts ----------------------------------------------------------------

    @property
    def n_episodes(self) -> int:
        """Number of rollouts n."""
        return len(self.returns)

    @property
    def n_contexts(self) -> int:
        """Number of contexts; 0 where every episode starts alike."""
        return len(set(self.contexts) - {None})

    @property
    def mean_return(self) -> float:
        """Mean of the returns."""
        return float(self.returns.mean())

    def __str__(self) -> str:
        """Return the table."""
        title = f"{self.env_id}, {self.n_episodes} episodes"
        if self.n_contexts:
            of_list = f" of the {self.split} list" if self.split else ""
            title += f" in {self.n_contexts} contexts{of_list}"
        lines = [title]
        for name, report in self.scores.items():
            lines += [f" {name}"] * (len(self.scores) > 1) + _table(report.rows())
        rest = [
            ("mean return", f"{self.mean_return:.3f}", ""),
            ("mean length", f"{self.lengths.mean():.1f}", "actions"),
        ]
        return "\n".join([*lines, *_table(rest)])

    def to_dict(self) -> dict[str, Any]:
        """Return the summary, without the rollouts, as JSON knows it.

        Returns
        -------
        summary : dict
            Identifiers and numbers; those of the first score by their own names, those of all by
            the names of the scores under ``"scores"`` where there are several.
        """
        summary = {
            "env_id": self.env_id,
            "split": self.split,
            "n_episodes": self.n_episodes,
            "n_contexts": self.n_contexts,
            **self.score.to_dict(),
            "mean_return": None if np.isnan(self.mean_return) else self.mean_return,
            "mean_length": float(self.lengths.mean()),
        }
        if len(self.scores) > 1:
            summary["scores"] = {name: report.to_dict() for name, report in self.scores.items()}
        return summary

    def to_frame(self) -> Any:
        """Return the outcomes as a data frame of pandas.

        Returns
        -------
        pandas.DataFrame
            A row for each rollout: ``context``, ``success``, ``behavior``, ``length``, ``return``;
            with several scores ``success_NAME`` and ``behavior_NAME`` of each.

        Raises
        ------
        ModuleNotFoundError
            If pandas is not installed.
        """
        pd = import_module("pandas")

        columns: dict[str, Sequence[Any] | NDArray[Any]] = {"context": self.contexts}
        for name, report in self.scores.items():
            ending = f"_{name}" if len(self.scores) > 1 else ""
            columns[f"success{ending}"] = report.successes
            columns[f"behavior{ending}"] = report.behaviors
        return pd.DataFrame({**columns, "length": self.lengths, "return": self.returns})


def _table(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    return [f"  {name:<13}  {value:>7}  {note}".rstrip() for name, value, note in rows]
