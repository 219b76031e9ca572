"""What displays ask of policies and teachers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skvdd.diffusion import Teacher
from skvdd.rollouts.policies import fitted_sizes

Array = NDArray[np.floating]

# Experts below this weight are switched off: drawing them would only clutter the picture.
GATE_THRESHOLD = 0.01


def check_estimators(policy: Any, teacher: Any, score_level: float | None) -> None:
    """Refuse a policy without experts, and a teacher without what is drawn of it."""
    _check_has("policy", policy, ("gating", "experts"))
    if isinstance(teacher, Teacher):
        if score_level is None:
            raise ValueError(
                f"score_level must be a noise level where teacher is a {type(teacher).__name__}, "
                "which has no density to draw, got None."
            )
        return
    _check_has("teacher", teacher, ("log_prob", "sample"))
    if score_level is not None:
        _check_has("teacher", teacher, ("score_function",))


def _check_has(role: str, estimator: Any, needed: tuple[str, ...]) -> None:
    missing = [name for name in needed if not hasattr(estimator, name)]
    if missing:
        raise TypeError(
            f"{role} must have {' and '.join(needed)}, got {type(estimator).__name__} "
            f"without {' and '.join(missing)}."
        )


def check_two_actions(means: Array) -> None:
    """Refuse experts of another number of actions than two."""
    if means.shape[-1] != 2:
        raise ValueError(
            f"ExpertsDisplay draws policies with 2 actions, got one with {means.shape[-1]}. "
            "Build the display from two components of its means and covariances instead."
        )


def action_grid(
    means: Array, covariances: Array, gates: Array, teacher: Any, X: Array, grid_size: int
) -> tuple[Array, Array]:
    """Return axes that hold the teacher's samples and the two-sigma ellipses of the experts."""
    drawn = gates > GATE_THRESHOLD
    reach = 2.0 * np.sqrt(np.diagonal(covariances, axis1=-2, axis2=-1))[drawn]
    points = [means[drawn] - reach, means[drawn] + reach]
    if not isinstance(teacher, Teacher) and hasattr(teacher, "sample"):
        points.append(teacher.sample(X, 256, random_state=0).reshape(-1, 2))
    low, high = np.min(np.concatenate(points), axis=0), np.max(np.concatenate(points), axis=0)
    margin = 0.1 * (high - low)
    x, y = np.linspace(low - margin, high + margin, grid_size).T
    return x, y


def density_on_grid(teacher: Any, X: Array, grid: tuple[Array, Array]) -> Array:
    """Return the teacher's log density (m, g, g), one state after another to bound memory."""
    mesh = np.stack(np.meshgrid(*grid), axis=-1)
    actions = mesh.reshape(-1, 2)
    rows = [teacher.log_prob(np.repeat(x[None], len(actions), axis=0), actions) for x in X]
    return np.stack(rows).reshape(len(X), *mesh.shape[:2])


def scores_on_grid(
    teacher: Any, policy: Any, X: Array, grid: tuple[Array, Array], level: float
) -> Array:
    """Return the teacher's scores (m, g, g, 2) at a noise level in standardized actions."""
    mesh = np.stack(np.meshgrid(*grid), axis=-1)
    actions = mesh.reshape(-1, 2)
    if isinstance(teacher, Teacher):
        rows = _scores_of_teacher(teacher, policy, X, actions, level)
    else:
        rows = np.stack(
            [
                teacher.score_function(np.repeat(x[None], len(actions), axis=0), actions, level)
                for x in X
            ]
        )
    return rows.reshape(len(X), *mesh.shape)


def _scores_of_teacher(
    teacher: Teacher, policy: Any, X: Array, actions: Array, level: float
) -> Array:
    """Return the scores (n, S, d_a) of a teacher, raw units, asked as in training."""
    rows = X.reshape(len(X), -1)
    window_size, goal_dim = fitted_sizes(policy)
    states = rows if goal_dim else rows.reshape(len(X), window_size, -1)
    device = getattr(teacher, "device", "cpu")
    standard = (actions - teacher.action_mean) / teacher.action_scale
    with torch.no_grad():
        scores = teacher.score(
            teacher.context(torch.as_tensor(teacher.prepare(states), device=device)),
            torch.tensor(standard, dtype=torch.float32, device=device).expand(len(X), -1, -1),
            torch.full((len(X), 1), level, dtype=torch.float32, device=device),
        )
    return scores.double().cpu().numpy() / teacher.action_scale
