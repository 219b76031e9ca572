"""How often a policy succeeds by one score of a task, and in how many ways."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skvdd.datasets.demonstrations import Behavior
from skvdd.envs import Score
from skvdd.metrics.behavior import (
    ceilings,
    diversities,
    diversity_error,
    entropies,
    entropy_error,
    mean_of,
)
from skvdd.metrics.intervals import (
    MIN_VALUES,
    bootstrap_interval,
    wilson_interval,
)

Array = NDArray[np.float64]
Counts = NDArray[np.int64]
Interval = tuple[float, float]

NUMBERS = (
    *("success_rate", "success_interval"),
    *("entropy_d3il", "entropy_interval", "entropy_ceiling"),
    *("diversity", "diversity_interval"),
    *("base", "n_behaviors"),
)
Z = 1.96  # standard errors on either side, 95 %


@dataclass(frozen=True, eq=False)
class ScoreReport:
    """How often a policy succeeds by one score of a task, and in how many ways.

    Parameters
    ----------
    score : Score
        The score.
    successes : ndarray of shape (n,)
        Whether each rollout succeeded.
    behaviors : tuple of length n
        The behavior of each rollout, failures included.
    contexts : tuple of length n
        The context of each rollout, None for all where every episode starts alike.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd.envs import Score
    >>> from skvdd.evaluation import ScoreReport
    >>> score = Score(behaviors={0: "left", 1: "right"})
    >>> report = ScoreReport(score, np.array([True] * 4), (0, 1, 0, 0), (0, 0, 1, 1))
    >>> report.success_rate, report.entropy_d3il, round(report.entropy_ceiling, 6)
    (1.0, 0.5, 0.5)
    """

    score: Score
    successes: NDArray[np.bool_] = field(repr=False)
    behaviors: tuple[Behavior, ...] = field(repr=False)
    contexts: tuple[int | None, ...] = field(repr=False)

    # -- success ------------------------------------------------------------------------

    @property
    def success_rate(self) -> float:
        """Share of the rollouts that succeeded."""
        return float(self.successes.mean())

    @cached_property
    def success_interval(self) -> Interval:
        """95 % interval of the success rate.

        With contexts, of the mean over contexts such as these: by the bootstrap over them, or,
        where all have the same rate, Wilson's with as many trials as contexts. Without, Wilson's.
        NaN with fewer than five contexts.
        """
        rates = self.success_rates
        if not self.has_contexts:
            return wilson_interval(int(self.successes.sum()), len(self.successes))
        if np.ptp(rates) > 0 or len(rates) < MIN_VALUES:
            return bootstrap_interval(rates)
        return wilson_interval(round(float(rates[0]) * len(rates)), len(rates))

    @cached_property
    def success_rates(self) -> Array:
        """The success rate in each context, in the order of `context_list`."""
        return np.array([self.successes[rows].mean() for rows in self._rows()])

    @property
    def has_contexts(self) -> bool:
        """Whether the rollouts start in contexts; otherwise every episode starts alike."""
        return self.contexts[0] is not None

    @property
    def context_list(self) -> list[int | None]:
        """The contexts, each once, in the order in which the rollouts take them."""
        return list(dict.fromkeys(self.contexts))

    # -- behaviors ----------------------------------------------------------------------

    @property
    def base(self) -> int | None:
        """Number of behaviors of the task; None where they are not told apart."""
        return self.score.n_behaviors

    @property
    def n_behaviors(self) -> int:
        """Number of distinct behaviors among the successful rollouts."""
        return len({b for b in self.solved if b is not None})

    @cached_property
    def solved(self) -> list[Behavior]:
        """The behavior of each successful rollout, None for the others.

        A success by a behavior that the task does not count has none.
        """
        known = self.score.behaviors
        return [
            behavior if success and behavior in known else None
            for behavior, success in zip(self.behaviors, self.successes, strict=True)
        ]

    @cached_property
    def counts(self) -> Counts:
        """How often each behavior solved each context, (contexts, base), in the task's order."""
        index = {behavior: k for k, behavior in enumerate(self.score.behaviors)}
        counts = np.zeros((len(self.context_list), len(index)), dtype=np.int64)
        places = {context: row for row, context in enumerate(self.context_list)}
        for context, behavior in zip(self.contexts, self.solved, strict=True):
            if behavior is not None:
                counts[places[context], index[behavior]] += 1
        return counts

    @property
    def entropy_d3il(self) -> float | None:
        """The entropy of D3IL (`~skvdd.metrics.entropy_d3il`); None without behaviors."""
        return None if self.base is None else mean_of(self.entropies)

    @cached_property
    def entropy_interval(self) -> Interval | None:
        """95 % interval of the entropy, see `diversity_interval`."""
        if self.base is None:
            return None
        low, high = self._interval(self.entropies, self.entropy_error)
        return max(low, 0.0), min(high, 1.0)

    @property
    def entropy_ceiling(self) -> float | None:
        """What a perfectly diverse policy would get with these numbers of successes.

        See `~skvdd.metrics.entropy_ceiling`.
        """
        if self.base is None:
            return None
        return mean_of(ceilings(self.counts, self.base, self.score.skips_unsolved))

    @property
    def diversity(self) -> float | None:
        """`~skvdd.metrics.behavior_diversity`; None without behaviors, NaN without successes."""
        return None if self.base is None else mean_of(self.diversities, empty=np.nan)

    @cached_property
    def diversity_interval(self) -> Interval | None:
        """95 % interval of the diversity.

        By the bootstrap over contexts; where every episode starts alike, 1.96 standard errors. NaN
        where too little was seen: with fewer than five contexts, or one value in all of them.
        """
        if self.base is None:
            return None
        low, high = self._interval(self.diversities, self.diversity_error)
        return max(low, 0.0), high

    @cached_property
    def entropies(self) -> Array:
        """D3IL's entropy in each context; NaN where it is left out."""
        return entropies(self.counts, self.base or 2, self.score.skips_unsolved)

    @cached_property
    def diversities(self) -> Array:
        """The diversity in each context; NaN with fewer than two successes."""
        return diversities(self.counts, self.base or 2)

    @property
    def entropy_error(self) -> float:
        """Standard error of the entropy where every episode starts alike."""
        return entropy_error(self.counts[0], self.base or 2)

    @property
    def diversity_error(self) -> float:
        """Standard error of the diversity where every episode starts alike."""
        return diversity_error(self.counts[0], self.base or 2)

    def _interval(self, values: Array, error: float) -> Interval:
        if self.has_contexts:
            return bootstrap_interval(values)
        return float(values[0]) - Z * error, float(values[0]) + Z * error

    def _rows(self) -> list[NDArray[np.intp]]:
        """Return the rollouts of each context."""
        labels = np.array([-1 if context is None else context for context in self.contexts])
        return [np.flatnonzero(labels == label) for label in dict.fromkeys(labels.tolist())]

    # -- as text and numbers ------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers, as JSON knows them.

        Returns
        -------
        dict
            Rates, entropies and their intervals.
        """
        return {name: _plain(getattr(self, name)) for name in NUMBERS}

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the lines of a table.

        Returns
        -------
        list of tuple of three str
            Name, number, remark.
        """
        rows = [("success rate", f"{self.success_rate:.3f}", within(self.success_interval))]
        if self.base is not None:
            diversity_remark = f"{within(self.diversity_interval)}, 1 if all equally frequent"
            rows += [
                (
                    "entropy, D3IL",
                    f"{self.entropy_d3il:.3f}",
                    f"{within(self.entropy_interval)}, "
                    f"{self.entropy_ceiling:.3f} if perfectly diverse",
                ),
                ("diversity", f"{self.diversity:.3f}", diversity_remark),
                ("behaviors", f"{self.n_behaviors}", f"of {self.base}"),
            ]
        return rows


def _plain(value: Any) -> Any:
    """Return a number, or a pair of them, that JSON has: None in place of NaN."""
    if isinstance(value, tuple):
        return [_plain(end) for end in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def within(interval: Interval | None) -> str:
    """Return an interval as it is printed."""
    if interval is None or np.isnan(interval[0]):
        return "no interval"
    return f"95 % in [{interval[0]:.3f}, {interval[1]:.3f}]"


def warn_of_unknown(env_id: str, report: ScoreReport) -> None:
    """Warn where successes have behaviors that the task does not count."""
    if report.base is None:
        return
    unknown = {
        repr(behavior)
        for behavior, success in zip(report.behaviors, report.successes, strict=True)
        if success and behavior is not None and behavior not in report.score.behaviors
    }
    if unknown:
        warnings.warn(
            f"{env_id} reports behaviors of successes that its task does not list, they count in "
            f"no entropy: {', '.join(sorted(unknown))}.",
            stacklevel=3,
        )
