"""Check a teacher against identities that hold for every score, and name what breaks them."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state, resample
from torch import Tensor

from skvdd.diffusion.faults import (
    HIGH,
    NETWORK,
    Array,
    raise_faults,
    span,
    strange_actions,
    unstable,
    wrong_means,
    wrong_scores,
)

PROTOCOL = ("noise_min", "noise_max", "action_mean", "action_scale", "prepare", "context")
MIN_ROWS = 32  # with fewer, five standard errors are no longer rare
N_DRAWS = 8  # noises for each row and level
N_LEVELS = 6  # from noise_min to noise_max, or to HIGH


@dataclass(frozen=True, eq=False)
class TeacherReport:
    """What `verify_teacher` measured; ``str`` makes a table of it.

    Parameters
    ----------
    source : str
        Where the clean actions come from, ``"y"`` or ``"teacher.sample"``.
    n_rows : int
        Number of rows.
    noise_levels : ndarray of shape (L,)
        Where the teacher was asked, ascending, in standardized actions.
    scale : ndarray of shape (L, m)
        Slope of the score over ``x - m``, divided by ``-1 / (s**2 + sigma**2)``: 1 is right. NaN
        where its standard error exceeds 0.2.
    slope : ndarray of shape (L, m)
        Slope of the clean over the denoised action: 1 is right. NaN where the latter hardly varies.
    loss : ndarray of shape (L,)
        Mean squared error of the denoised action, divided by that of the best linear function of
        the noisy action: at most 1.
    moved : ndarray of shape (L,)
        Mean square of ``denoised - noisy`` actions, divided by ``sigma**2``: at most 1.
    center : ndarray of shape (L, m)
        Mean of ``denoised - clean`` actions: 0 is right.
    differences : dict of str to float
        Relative differences of the score: ``"repeated"``, when asked twice; ``"neighbors"``, when
        asked among other actions; ``"tweedie"``, from what ``denoise`` says. 0 is right.
    """

    source: str
    n_rows: int
    noise_levels: Array
    scale: Array
    slope: Array
    loss: Array
    moved: Array
    center: Array
    differences: dict[str, float]

    def __str__(self) -> str:
        columns = (self.scale, self.slope, self.loss[:, None], self.moved[:, None], self.center)
        rows = [
            (f"{sigma:.3g}", *(span(values, "z.2f") for values in figures))
            for sigma, *figures in zip(self.noise_levels, *columns, strict=True)
        ]
        names = ("noise level", "scale", "slope", "loss", "moved", "center")
        table = [names, *rows, ("right:", "1", "1", "at most 1", "at most 1", "0")]
        return "\n".join(
            [
                f"{self.n_rows} rows, actions of {self.scale.shape[1]} numbers from {self.source}",
                *("".join(f"{cell:>18}" for cell in row).rstrip() for row in table),
                "Differences, where 0 is right: "
                + ", ".join(f"{name} {value:.0e}" for name, value in self.differences.items()),
            ]
        )


@torch.no_grad()
def verify_teacher(
    teacher: Any,
    X: ArrayLike,
    y: ArrayLike | None = None,
    *,
    n_rows: int = 256,
    random_state: int | np.random.RandomState | None = 0,
) -> TeacherReport:
    r"""Check that what a teacher returns are the scores of a policy.

    It asks for noisy actions :math:`x = a + \sigma \epsilon` at six or seven noise levels, and
    compares with what is true of any distribution of clean actions a: Stein's identity
    :math:`E[(x_j - m_j)\, \partial_j \log p_\sigma(x)] = -1`, which at high noise makes the score
    :math:`-(x - m) / (s^2 + \sigma^2)`; Tweedie's formula (Efron, 2011, eq. 1.4), by which
    :math:`D = x + \sigma^2 \nabla \log p_\sigma(x)` is the mean of a given x; and Jensen's
    inequality :math:`E|D - x|^2 \le \sigma^2 m`. Wrong signs, scales, units, times and batches
    break them in ways of their own. So does a network that has hardly been trained.

    Parameters
    ----------
    teacher : ScoreTeacher, fitted DiffusionPolicy, Pipeline that ends in one, or another teacher
        What is checked.
    X : array-like of shape (n, T, d) or (n, T * d + g)
        States as ``teacher.sample`` takes them.
    y : array-like of shape (n, m) or (n, H, m / H), default=None
        Demonstrated actions in those states, raw units, like those the teacher was trained on; 32
        or more. None draws them from the teacher: that finds less, since they share its faults.
    n_rows : int, default=256
        Number of rows to use, at least 32, chosen from ``X``; repeatedly if ``y`` is None.
    random_state : int, RandomState or None, default=0
        Chooses rows and noise.

    Returns
    -------
    TeacherReport
        The figures. All are right, within tolerances for sampling and for learned networks.

    Raises
    ------
    ValueError
        If anything is wrong, with a line for each fault, its figure and the way out; or if ``X``,
        ``y`` or ``n_rows`` is not valid.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd.diffusion.score_teacher import ScoreTeacher
    >>> from skvdd.diffusion.verify import verify_teacher
    >>> def score(states, actions, sigma):
    ...     return (states[:, -1:] - actions) / (0.5**2 + sigma[..., None] ** 2)
    >>> states = np.random.RandomState(0).uniform(-1, 1, size=(100, 1, 1))
    >>> teacher = ScoreTeacher(score, n_actions=1, noise_min=0.1, noise_max=5)
    >>> print(f"{verify_teacher(teacher, states).scale[-1, 0]:.1f}")
    1.0
    >>> wrong = ScoreTeacher(lambda *a: -score(*a), n_actions=1, noise_min=0.1, noise_max=5)
    >>> verify_teacher(wrong, states)
    Traceback (most recent call last):
    ValueError: ...The sign is wrong...
    """
    teacher = _as_teacher(teacher)
    rng = check_random_state(random_state)
    drawn = y is None
    rows, raw = _choose_rows(teacher, X, y, n_rows, rng)
    asked, levels = _Asked.of(teacher, rows, rng), _levels(teacher)
    differences = asked.differences(levels[N_LEVELS // 2])
    raw = teacher.sample(rows, random_state=rng) if drawn else raw
    actions = (raw.reshape(len(raw), -1) - teacher.action_mean) / teacher.action_scale
    strange = strange_actions(actions, drawn)
    if strange:  # around any other actions, the scores at high noise can still be checked
        actions = rng.standard_normal(actions.shape)
    figures = asked.measure(actions, levels)
    wrong = wrong_scores(figures, teacher.action_scale, not strange, drawn or bool(strange))
    if not (drawn and wrong):  # wrong scores draw strange actions
        wrong = strange + wrong
    raise_faults(unstable(**differences) + (wrong or wrong_means(figures)))
    return TeacherReport(
        source="teacher.sample" if drawn else "y",
        n_rows=len(actions),
        noise_levels=levels,
        scale=np.where(figures["scale"][1] > 0.2, np.nan, figures["scale"][0]),
        **{name: figures[name][0] for name in ("slope", "loss", "moved", "center")},
        differences=differences,
    )


# ---------------------------------------------------------------------------------------
# Questions and figures
# ---------------------------------------------------------------------------------------


def _as_teacher(teacher: Any) -> Any:
    if all(hasattr(teacher, name) for name in PROTOCOL):
        return teacher
    from skvdd.diffusion.teacher import as_teacher

    return as_teacher(teacher, "cpu")  # where the states are put below


def _choose_rows(
    teacher: Any, X: Any, y: Any, n_rows: int, rng: np.random.RandomState
) -> tuple[Any, Any]:
    """Return some rows of X and y, in random order."""
    if not isinstance(n_rows, Integral) or n_rows < MIN_ROWS:
        raise ValueError(f"n_rows must be an integer of at least {MIN_ROWS}, got {n_rows!r}.")
    if y is None and teacher.noise_max < 1.0:
        raise ValueError(
            "y must be given where noise_max is below 1: actions cannot be drawn from noise that "
            f"does not hide them. Got noise_max={teacher.noise_max:.3g}."
        )
    if y is None:
        few = len(X) < n_rows
        return resample(X, n_samples=n_rows, replace=few, random_state=rng), None
    y, m = np.asarray(y, dtype=np.float64), len(teacher.action_scale)
    if len(y) < MIN_ROWS or y.size != len(y) * m or not np.isfinite(y).all():
        raise ValueError(
            f"y must have at least {MIN_ROWS} rows of {m} finite numbers, like the teacher's "
            f"actions, got shape {y.shape} with {np.sum(~np.isfinite(y))} not finite. Leave such "
            "rows out, or pass None: then actions are drawn from the teacher."
        )
    n_rows = min(n_rows, len(y))
    return tuple(resample(X, y, n_samples=n_rows, replace=False, random_state=rng))


def _levels(teacher: Any) -> Array:
    levels = np.geomspace(teacher.noise_min, min(HIGH, teacher.noise_max), N_LEVELS)
    return levels if teacher.noise_max <= HIGH else np.append(levels, teacher.noise_max)


@dataclass(frozen=True, eq=False)
class _Asked:
    """A teacher, its contexts of n rows, and standard normal noise (n, N_DRAWS, m)."""

    teacher: Any
    context: Tensor
    noise: Array

    @classmethod
    def of(cls, teacher: Any, X: Any, rng: np.random.RandomState) -> _Asked:
        device = getattr(teacher, "device", torch.device("cpu"))
        context = teacher.context(torch.tensor(teacher.prepare(X), device=device))
        shape = (len(context), N_DRAWS, len(teacher.action_scale))
        return cls(teacher, context, rng.standard_normal(shape))

    def __call__(self, x: Array, sigma: float, rows: slice = slice(None), to: str = "score") -> Any:
        """Return the score of actions x (n, S, m) in some rows, or another answer; float64."""
        context = self.context[rows]
        actions = torch.tensor(x, dtype=torch.float32, device=context.device)
        level = torch.full((len(x), 1), sigma, dtype=torch.float32, device=context.device)
        answer = getattr(self.teacher, to)(context, actions, level).double().cpu().numpy()
        if answer.shape != x.shape:
            raise_faults(
                [f"{to} must return the shape of the actions, {x.shape}, got {answer.shape}."]
            )
        lost = np.mean(~np.isfinite(answer))
        if lost:
            raise_faults(
                [
                    f"At noise level {sigma:.3g}, {lost:.1%} of what {to} returns is not finite. "
                    "Avoid division by zero, or narrow noise_min and noise_max."
                ]
            )
        return answer

    def differences(self, sigma: float) -> dict[str, float]:
        """Return relative root mean squares of what should be zero."""
        x, few = sigma * self.noise, slice(3, 11)
        score = self(x, sigma)
        pairs = {
            "repeated": (self(x, sigma), score),
            "neighbors": (self(x[few, :1], sigma, few), score[few, :1]),
            "tweedie": ((self(x, sigma, to="denoise") - x) / sigma**2, score),
        }
        return {
            name: float(np.linalg.norm(one - other) / (np.linalg.norm(other) or 1.0))
            for name, (one, other) in pairs.items()
        }

    def measure(self, actions: Array, levels: Array) -> dict[str, Array]:
        """Return each figure and its standard error, (2, L, ...), and what they depend on."""
        centers = self._centers(actions, min(levels[-1], HIGH))
        rows = [self._measure(actions, centers, sigma) for sigma in levels]
        figures = {name: np.stack([row[name] for row in rows], axis=1) for name in rows[0]}
        # Of the actions in a state, which the teacher cannot resolve below its lowest level.
        variance = ((actions - centers) ** 2).mean(axis=0) + levels[0] ** 2
        pooled = np.sqrt(actions.var(axis=0).mean())
        return {**figures, "sigma": levels[:, None], "variance": variance, "pooled": pooled}

    def _centers(self, actions: Array, sigma: float) -> Array:
        """Return a guess (n, m) of the mean action in each state: where the scores point to.

        The identities hold around whatever depends on the state alone; errors are smallest here.
        """
        mean = actions.mean(axis=0)
        x = mean + sigma * self.noise
        guess = (x + sigma**2 * self(x, sigma)).mean(axis=1)
        better = ((actions - guess) ** 2).mean(axis=0) < actions.var(axis=0)
        return np.where(better, guess, mean)

    def _measure(self, actions: Array, centers: Array, sigma: float) -> dict[str, Array]:
        """Return the figures at one noise level, each with its error, (2, ...)."""
        clean, mean = actions[:, None], actions.mean(axis=0)
        x = clean + sigma * self.noise
        score = self(x, sigma)
        denoised = x + sigma**2 * score
        away, spread = x - centers[:, None], ((actions - centers) ** 2).mean(axis=0)
        # The best linear function of x pulls it toward the mean.
        variance = actions.var(axis=0) + self.teacher.noise_min**2
        linear = mean + variance / (variance + sigma**2) * (x - mean)
        error = ((linear - clean) ** 2).sum(axis=2)
        varies = denoised - denoised.mean(axis=(0, 1))
        hardly = (varies**2).mean(axis=(0, 1)) < 0.1 * variance + (3.0 * NETWORK * sigma) ** 2
        return {
            "scale": _ratio(-score * away, away**2 / (spread + sigma**2)),
            "slope": np.where(hardly, np.nan, _ratio((clean - mean) * varies, varies**2)),
            "loss": _ratio(((denoised - clean) ** 2).sum(axis=2), error),
            "network": _ratio(np.full_like(error, x.shape[2] * (NETWORK * sigma) ** 2), error),
            "score as clean": _ratio(((score - clean) ** 2).sum(axis=2), error),
            "moved": _ratio((score**2).mean(axis=2), np.full_like(error, sigma**-2)),
            "center": _ratio(denoised - clean, np.ones_like(x)),
        }


def _ratio(top: Array, bottom: Array) -> Array:
    """Return the ratio of the sums over rows and noises, and its standard error, (2, ...).

    Rows are independent, the noises (axis 1) of one row are not.
    """
    top, bottom = top.mean(axis=1), bottom.mean(axis=1)
    mean = bottom.mean(axis=0) + np.finfo(float).tiny
    ratio = top.mean(axis=0) / mean
    return np.stack([ratio, (top - ratio * bottom).std(axis=0, ddof=1) / mean / len(top) ** 0.5])
