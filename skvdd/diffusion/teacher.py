"""What a distiller asks of a teacher, and fitted policies and pipelines seen so."""

from __future__ import annotations

import copy
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skvdd.base.validation import flatten
from skvdd.devices import resolve_device
from skvdd.diffusion.denoiser import Denoiser
from skvdd.diffusion.noise import NoiseLevels
from skvdd.diffusion.policy import DiffusionPolicy
from skvdd.diffusion.score_teacher import ScoreTeacher
from skvdd.training.fingerprint import digest, network_digest, plain_parameters


@runtime_checkable
class Teacher(Protocol):
    r"""What a distiller asks of a teacher: scores of noised actions, given observations.

    `skvdd.ScoreTeacher` is one; `skvdd.diffusion.teacher.as_teacher` makes one of a fitted
    `skvdd.DiffusionPolicy`, or of a pipeline that ends in one. An object of your own with these
    attributes and methods can be given to ``fit`` as it is.

    Actions and noise levels are standardized: a level :math:`\sigma` is noise of standard
    deviation ``action_scale * sigma``. A chunk of ``H`` actions is flat, ``m = H * d_a`` numbers.

    Attributes
    ----------
    noise_min, noise_max : float
        Range of noise levels in which the score is good.
    action_mean, action_scale : ndarray of shape (m,), float64
        Normalization of actions, raw units.
    sees_states : bool
        Whether `prepare` changes nothing, so that noise on the student's states reaches `context`.
    replayable : bool
        Whether the score is always the same tensor operations, none of which needs the host. A GPU
        then repeats an iteration without Python.
    network : Denoiser or None
        A network that a student can start from, for `context` of raw states as the student sees
        them.

    Examples
    --------
    >>> from skvdd import ScoreTeacher
    >>> from skvdd.diffusion import Teacher
    >>> teacher = ScoreTeacher(lambda s, a, t: -a, n_actions=1, noise_min=0.1, noise_max=5.0)
    >>> isinstance(teacher, Teacher)
    True
    """

    noise_min: float
    noise_max: float
    action_mean: NDArray
    action_scale: NDArray
    sees_states: bool
    replayable: bool
    network: Denoiser | None

    def prepare(self, X: ArrayLike) -> NDArray:
        """Return what `context` takes for the rows of ``X``.

        Parameters
        ----------
        X : array-like of shape (n, T, d) or (n, T * d + g)
            Observations, raw units.

        Returns
        -------
        ndarray of shape (n, ...)
            ``X`` itself, unless there are steps before the teacher.
        """

    def context(self, states: Tensor) -> Tensor:
        """Return what is computed once for any number of actions.

        Parameters
        ----------
        states : Tensor of shape (n, T, d), or (n, T * d + g) where there is a goal
            Raw, float64.

        Returns
        -------
        Tensor of shape (n, ...)
        """

    def score(self, context: Tensor, actions: Tensor, sigma: Tensor) -> Tensor:
        """Return the scores of the noised density.

        Parameters
        ----------
        context : Tensor of shape (n, ...)
            Of n rows.
        actions : Tensor of shape (n, S, m)
            Noisy actions, S for each row.
        sigma : Tensor of shape (n, 1) or (n, S)
            Noise levels.

        Returns
        -------
        Tensor of shape (n, S, m)
        """

    def denoise(self, context: Tensor, actions: Tensor, sigma: Tensor) -> Tensor:
        """Return expected clean actions ``actions + sigma^2 * score``.

        Parameters
        ----------
        context, actions, sigma : Tensor
            As for `score`.

        Returns
        -------
        Tensor of shape (n, S, m)
        """

    def sample(self, X: ArrayLike, *, random_state: Any = None) -> NDArray:
        """Return an action for each row.

        Parameters
        ----------
        X : array-like of shape (n, T, d) or (n, T * d + g)
            Observations, raw units.
        random_state : int, RandomState or None, default=None
            Source of the noise.

        Returns
        -------
        ndarray of shape (n, m), or (n, H, m / H)
            Raw units.
        """


class PolicyTeacher:
    """A fitted diffusion policy, or a pipeline that ends in one, as a `Teacher`.

    It is a copy: later fits do not change it.

    Parameters
    ----------
    policy : DiffusionPolicy
        Fitted.
    steps : Pipeline or None
        Fitted steps before it, which are applied to the states.
    device : torch.device
        Where to compute.
    """

    replayable = True

    def __init__(self, policy: DiffusionPolicy, steps: Any, device: torch.device) -> None:
        # Fits replace attributes of a policy, but a pipeline fits its steps in place.
        self.policy, self.steps = copy.copy(policy), copy.deepcopy(steps)
        self.device = device
        self.model: Denoiser = copy.deepcopy(policy.network_).to(device).requires_grad_(False)
        self.sees_states = steps is None
        self.network = self.model if steps is None else None
        self.levels: NoiseLevels = policy.noise_levels_
        self.noise_min, self.noise_max = self.levels.noise_min, self.levels.noise_max
        self.start_scale = self.levels.start_scale
        self.action_mean, self.action_scale = self.model.action_normalization.statistics
        self.action_shape = policy.action_shape_

    def prepare(self, X: ArrayLike) -> NDArray:
        """Return the flat rows that the policy sees: those of ``X``, behind the earlier steps."""
        if self.steps is not None:
            layout = self.model.layout
            X = self.steps.transform(flatten(X, layout.window_size, 0) if np.ndim(X) == 3 else X)
        return self.policy._check_rows(X)

    def context(self, states: Tensor) -> Tensor:
        """Encode raw states (n, T, d) or rows (n, T * d + g)."""
        return self.model.context(self.model.row_normalization(states.flatten(1)))

    def score(self, context: Tensor, actions: Tensor, sigma: Tensor) -> Tensor:
        """Return scores (n, S, m) at actions (n, S, m) and levels (n, 1) or (n, S)."""
        return self.model.score(context, actions, sigma)

    def denoise(self, context: Tensor, actions: Tensor, sigma: Tensor) -> Tensor:
        """Return expected clean actions (n, S, m), shapes as `score`."""
        return self.model.denoise(context, actions, sigma)

    def sample(self, X: ArrayLike, *, random_state: Any = None) -> NDArray:
        """Return an action for each row of ``X``, by the policy's own sampler."""
        return self.policy.sample(self.prepare(X), random_state=random_state)


def as_teacher(teacher: Any, device: str | torch.device = "auto") -> Teacher:
    """Return a teacher as distillers see it.

    Parameters
    ----------
    teacher : DiffusionPolicy, Pipeline, FrozenEstimator, ScoreTeacher or Teacher
        A fitted policy, a pipeline that ends in one, either of them frozen, or an object that
        gives scores already.
    device : str or torch.device, default="auto"
        Where a policy computes.

    Returns
    -------
    Teacher

    Raises
    ------
    TypeError
        If it is nothing of that kind.
    NotFittedError
        If the policy is not fitted.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd import DiffusionPolicy
    >>> from skvdd.diffusion.teacher import as_teacher
    >>> states = actions = np.linspace(-1, 1, 20)[:, None]
    >>> teacher = as_teacher(DiffusionPolicy(max_iter=1, random_state=0).fit(states, actions))
    >>> teacher.noise_min, teacher.noise_max
    (0.03, 5.0)
    """
    check_teacher(teacher)
    teacher = unfrozen(teacher)
    policy = last_step(teacher)
    if isinstance(policy, DiffusionPolicy):
        steps = teacher[:-1] if isinstance(teacher, Pipeline) and len(teacher) > 1 else None
        return PolicyTeacher(policy, steps, resolve_device(device))
    return teacher


def check_teacher(teacher: Any) -> None:
    """Raise unless ``teacher`` gives scores as it is."""
    teacher = unfrozen(teacher)
    policy = last_step(teacher)
    if not isinstance(policy, DiffusionPolicy):
        if not isinstance(teacher, Teacher):
            raise TypeError(not_a_teacher(teacher))
        return
    try:
        check_is_fitted(policy)
    except NotFittedError as error:
        raise NotFittedError(
            f"the teacher given to fit, {type(policy).__name__}, is not fitted yet. Fit it first, "
            "or give it to the constructor, which fits a clone of it on (X, y)."
        ) from error


def last_step(teacher: Any) -> Any:
    """Return the last step of a pipeline, or what is no pipeline as it is."""
    return teacher[-1] if isinstance(teacher, Pipeline) else teacher


def unfrozen(teacher: Any) -> Any:
    """Return what is inside a FrozenEstimator, or what is none as it is."""
    return teacher.estimator if isinstance(teacher, FrozenEstimator) else teacher


def is_ready(teacher: Any) -> bool:
    """Say whether a constructor's teacher is used as it is, rather than cloned and fitted."""
    return isinstance(teacher, FrozenEstimator | ScoreTeacher) or (
        teacher is not None
        and not isinstance(last_step(teacher), DiffusionPolicy)
        and isinstance(teacher, Teacher)
    )


def teacher_digest(teacher: Any) -> str:
    """Return a short text that differs for teachers that differ, as far as possible."""
    teacher = unfrozen(teacher)
    policy = last_step(teacher)
    if not isinstance(policy, DiffusionPolicy):
        units = [np.asarray(part) for part in (teacher.action_mean, teacher.action_scale)]
        levels = teacher.noise_min, teacher.noise_max
        return " ".join([type(teacher).__name__, *map(str, levels), digest(units)])
    sampling = (policy.noise_levels_, policy.sampler_, policy.n_steps_)
    steps = _steps_digest(teacher[:-1]) if isinstance(teacher, Pipeline) else ""
    return " ".join([network_digest(policy.network_), *map(str, sampling), steps])


def _steps_digest(steps: Pipeline) -> str:
    """Return a short text that differs for steps with other parameters or learned arrays."""
    learned = [
        f"{name} {digest([value])}"
        for _, step in steps.steps
        for name, value in sorted(getattr(step, "__dict__", {}).items())
        if isinstance(value, np.ndarray) and value.dtype != object
    ]
    return " ".join([str(plain_parameters(steps)), *learned])


def not_a_teacher(teacher: Any) -> str:
    """Return the message for what is no teacher."""
    return (
        "teacher must be a DiffusionPolicy, a Pipeline that ends in one, a FrozenEstimator of "
        "either, a ScoreTeacher, or an object of the protocol skvdd.diffusion.Teacher, got "
        f"{type(teacher).__name__}."
    )
