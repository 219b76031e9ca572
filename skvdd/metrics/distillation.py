"""A student compared with its teacher, density against density."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan, sqrt
from numbers import Integral
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state

from skvdd.metrics.density import KLEstimate

Array = NDArray[np.float64]

# A policy's region is where its density is highest and all but this fraction of its samples lie.
OUTSIDE = 0.01


class ShareEstimate(NamedTuple):
    """A Monte-Carlo estimate of a probability.

    Attributes
    ----------
    estimate : float
        The fraction, from 0 to 1.
    standard_error : float
        Of the estimate, in the same unit.

    Examples
    --------
    >>> from skvdd.metrics import ShareEstimate
    >>> share, error = ShareEstimate(estimate=0.99, standard_error=0.005)
    >>> f"{share:.1%} +- {error:.1%}"
    '99.0% +- 0.5%'
    """

    estimate: float
    standard_error: float


class DensityPolicy(Protocol):
    """All that `distillation_report` asks of a policy."""

    def sample(self, X: Any, n_samples: int, *, random_state: Any = None) -> NDArray:
        """Return actions, (n, n_samples, d_a) or (n, n_samples)."""
        ...

    def log_prob(self, X: Any, y: NDArray) -> NDArray:
        """Return the log-density of actions, (n,), in nats."""
        ...


@dataclass(frozen=True)
class DistillationReport:
    """What `distillation_report` found; ``print`` shows it as a table.

    Attributes
    ----------
    forward_kl : KLEstimate
        ``E_teacher[log pi - log q]``, nats per state; grows where the student lacks what the
        teacher does.
    reverse_kl : KLEstimate
        ``E_student[log q - log pi]``, what VDD minimizes; grows where the student does what the
        teacher does not.
    coverage : ShareEstimate
        Share of the teacher's actions in the student's region: recall of modes.
    precision : ShareEstimate
        Share of the student's actions in the teacher's region.
    n_states, n_samples : int
        Number of states, and of actions per state and policy.

    Examples
    --------
    >>> from skvdd.metrics import DistillationReport, KLEstimate, ShareEstimate
    >>> divergence, share = KLEstimate(0.02, 0.01), ShareEstimate(0.97, 0.01)
    >>> print(DistillationReport(divergence, divergence, share, share, n_states=50, n_samples=100))
    Distillation over 50 states, 100 actions in each
    forward KL    0.020 +- 0.010  nats, E_teacher[log pi - log q]
    reverse KL    0.020 +- 0.010  nats, E_student[log q - log pi]
    coverage      0.970 +- 0.010  teacher's actions in the student's region, 0.990 if equal
    precision     0.970 +- 0.010  student's actions in the teacher's region, 0.990 if equal
    """

    forward_kl: KLEstimate
    reverse_kl: KLEstimate
    coverage: ShareEstimate
    precision: ShareEstimate
    n_states: int
    n_samples: int

    @property
    def equal_share(self) -> float:
        """What coverage and precision are expected to be if student and teacher are equal."""
        return 1.0 - max(OUTSIDE, 1.0 / (self.n_samples + 1))

    def __str__(self) -> str:
        """Return the table: a line for each number, with its standard error."""
        same = f"{self.equal_share:.3f} if equal"
        rows: list[tuple[str, KLEstimate | ShareEstimate, str]] = [
            ("forward KL", self.forward_kl, "nats, E_teacher[log pi - log q]"),
            ("reverse KL", self.reverse_kl, "nats, E_student[log q - log pi]"),
            ("coverage", self.coverage, f"teacher's actions in the student's region, {same}"),
            ("precision", self.precision, f"student's actions in the teacher's region, {same}"),
        ]
        title = f"Distillation over {self.n_states} states, {self.n_samples} actions in each"
        lines = [
            f"{name:<11}{value.estimate:>8.3f} +- {value.standard_error:<6.3f} {meaning}"
            for name, value, meaning in rows
        ]
        return "\n".join([title, *lines])


def distillation_report(
    student: DensityPolicy,
    teacher: DensityPolicy,
    X: ArrayLike,
    *,
    n_samples: int = 64,
    random_state: int | np.random.RandomState | None = None,
) -> DistillationReport:
    r"""Compare a distilled policy with its teacher, density against density.

    In each state both policies are sampled and each sample is given its log-density under both.
    With the teacher :math:`\pi` and the student :math:`q`,

    .. math:: KL(\pi \| q) = E_\pi[\log \pi - \log q] , \qquad
              KL(q \| \pi) = E_q[\log q - \log \pi]

    say how far apart they are. The forward divergence is large where the student misses a mode of
    the teacher, the reverse one where it acts between modes or wider than they are; VDD minimizes
    the reverse one, so that a small reverse and a large forward divergence mean dropped modes.

    Neither number tells how much is missed. *Coverage* does: a policy's region in a state is where
    its density is at least the 1 % quantile of that of its own samples, and coverage is the
    fraction of the teacher's samples in the student's region. *Precision* is that of the student's
    samples in the teacher's region. A student with one of two equal modes has coverage 0.5 and
    precision near 0.99; one spread evenly over twice the teacher's volume the reverse. Policies
    that are equal, with divergences of zero, have 0.99 for both, or ``1 - 1 / (n_samples + 1)``
    with fewer than 99 samples, which cannot show a quantile so low: `equal_share` of the report.
    More than that is no better: a student wider than its teacher has a coverage of one.

    Parameters
    ----------
    student, teacher : object
        Policies with ``sample(X, n_samples, random_state=...)``, which returns actions of shape
        (n, n_samples, d_a) or (n, n_samples), and ``log_prob(X, y)``, which returns (n,).
    X : array-like of shape (n, d) or (n, T, d)
        States to compare in; independent ones (of other episodes, say) if the standard errors
        are to be trusted.
    n_samples : int, default=64
        Actions drawn from each policy in each state, at least two.
    random_state : int, RandomState or None, default=None
        Source of the two policies' seeds.

    Returns
    -------
    report : DistillationReport
        The four numbers, averaged over states. States are the sampling unit: with more than one,
        standard errors come from the means of the states, which contain the noise of the samples;
        with one they come from its samples, and speak of that state alone.

    Raises
    ------
    TypeError
        If a policy lacks one of the two methods.
    ValueError
        If ``X`` or ``n_samples`` cannot be used, or a policy answers with another shape, with
        NaN, or gives its own samples no finite density. A sample to which *the other* policy gives
        none makes that divergence infinite, its standard error nan.

    Notes
    -----
    The likelihood of a `DiffusionPolicy` is that of its density at ``noise_min``, exact up to the
    integration. Its samples come from a sampler of few steps and are only approximately of that
    density: the forward divergence is the mean of the log-ratio over what the teacher *does*, and
    may even be negative by the error of the sampler. It comes nearer to the divergence of the two
    densities with more steps (``n_steps``) and with the deterministic flow (``sampler="heun"``),
    the one that the likelihood integrates. The student's samples are exact, so the reverse
    divergence has no such error; both compare with a teacher blurred by ``noise_min``.

    Examples
    --------
    A teacher with two modes, of which the student found one:

    >>> import numpy as np
    >>> from scipy.stats import norm
    >>> from skvdd.metrics import distillation_report
    >>> class Modes:
    ...     def __init__(self, *means):
    ...         self.means = means
    ...
    ...     def sample(self, X, n_samples, *, random_state=None):
    ...         rng = np.random.RandomState(random_state)
    ...         shape = (len(X), n_samples)
    ...         return X + rng.choice(self.means, shape) + rng.normal(size=shape)
    ...
    ...     def log_prob(self, X, y):
    ...         return np.log(np.mean([norm.pdf(y - X[:, 0], m) for m in self.means], axis=0))
    >>> X = np.linspace(-1, 1, 50)[:, None]
    >>> report = distillation_report(Modes(-4), Modes(-4, 4), X, n_samples=200, random_state=0)
    >>> print(f"{report.reverse_kl.estimate:.2f}, {report.coverage.estimate:.2f}")  # log 2, 1 / 2
    0.69, 0.50
    """
    policies = {"student": student, "teacher": teacher}
    for name, policy in policies.items():
        _check_density_policy(policy, name)
    X = X if hasattr(X, "iloc") else np.asarray(X)
    n_states = _check_report_size(X, n_samples)
    rows = _repeat_rows(X, n_samples)
    seeds = check_random_state(random_state).randint(np.iinfo(np.int32).max, size=2)
    samples = {
        name: _sample(policy, name, X, n_samples, int(seed))
        for (name, policy), seed in zip(policies.items(), seeds, strict=True)
    }
    density = {
        (judge, source): _log_prob(policy, judge, rows, samples[source], source).reshape(
            n_states, n_samples
        )
        for judge, policy in policies.items()
        for source in policies
    }
    forward = density["teacher", "teacher"] - density["student", "teacher"]
    reverse = density["student", "student"] - density["teacher", "student"]
    return DistillationReport(
        forward_kl=KLEstimate(*_mean_over_states(forward)),
        reverse_kl=KLEstimate(*_mean_over_states(reverse)),
        coverage=_share_inside(density["student", "teacher"], density["student", "student"]),
        precision=_share_inside(density["teacher", "student"], density["teacher", "teacher"]),
        n_states=n_states,
        n_samples=int(n_samples),
    )


def _share_inside(log_density: Array, own: Array) -> ShareEstimate:
    """Return the fraction of densities that reach the low quantile of a policy's own there."""
    # Weibull's plotting positions: a new sample of the policy falls below the k-th smallest of S
    # with probability k / (S + 1). NumPy's default would put 2.5 % outside for 64 samples.
    bound = np.quantile(own, OUTSIDE, axis=1, keepdims=True, method="weibull")
    return ShareEstimate(*_mean_over_states((log_density >= bound).astype(float)))


def _mean_over_states(values: Array) -> tuple[float, float]:
    """Return mean and standard error of values (n_states, n_samples)."""
    if np.isposinf(values).any():
        return inf, nan
    units = values.mean(axis=1) if len(values) > 1 else values[0]
    return float(units.mean()), float(units.std(ddof=1) / sqrt(len(units)))


def _sample(policy: DensityPolicy, name: str, X: Any, n_samples: int, seed: int) -> NDArray:
    """Return a policy's actions as rows, (n_states * n_samples, d_a) or without the d_a."""
    actions = np.asarray(policy.sample(X, n_samples, random_state=seed))
    if actions.ndim not in (2, 3) or actions.shape[:2] != (len(X), n_samples):
        raise ValueError(
            f"{name}.sample must return actions of shape ({len(X)}, {n_samples}, d_a) or "
            f"({len(X)}, {n_samples}), got {actions.shape}."
        )
    if not np.isfinite(actions).all():
        raise ValueError(f"{name}.sample must return finite actions, got nan or infinity.")
    return actions.reshape(-1, *actions.shape[2:])


def _log_prob(policy: DensityPolicy, name: str, rows: Any, actions: NDArray, source: str) -> Array:
    """Return the checked log-densities of the actions drawn from ``source``, one per row."""
    log_density = np.asarray(policy.log_prob(rows, actions), dtype=float)
    if log_density.shape != (len(actions),):
        raise ValueError(
            f"{name}.log_prob must return one number for each of the {len(actions)} rows, got "
            f"shape {log_density.shape}."
        )
    if np.isnan(log_density).any() or np.isposinf(log_density).any():
        raise ValueError(
            f"{name}.log_prob must not return nan or +inf, got it for {source}.sample."
        )
    if name == source and np.isneginf(log_density).any():
        raise ValueError(f"{name}.log_prob must be finite at its own samples, got -inf.")
    return log_density


def _check_density_policy(policy: Any, name: str) -> None:
    missing = [m for m in ("sample", "log_prob") if not callable(getattr(policy, m, None))]
    if missing:
        raise TypeError(
            f"{name} must have the methods sample and log_prob, got {type(policy).__name__} "
            f"without {' and '.join(missing)}."
        )


def _check_report_size(X: Any, n_samples: int) -> int:
    """Return the number of states, or say what is wrong with it or with that of samples."""
    if X.ndim not in (2, 3) or len(X) == 0:
        raise ValueError(
            f"X must have shape (n, d) or (n, T, d) with at least one state, got {X.shape}."
        )
    if not isinstance(n_samples, Integral) or n_samples < 2:
        raise ValueError(f"n_samples must be an integer of at least 2, got {n_samples!r}.")
    return len(X)


def _repeat_rows(X: Any, n_samples: int) -> Any:
    """Return each row so many times in turn; a data frame keeps the names of its columns."""
    if hasattr(X, "iloc"):
        return X.iloc[np.repeat(np.arange(len(X)), n_samples)]
    return np.repeat(X, n_samples, axis=0)
