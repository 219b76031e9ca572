"""How a distiller finds its teacher, and what it sees of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skvdd._sklearn import StrOptions, fixed_scaler
from skvdd.base import (
    MAX_ACTIONS,
    draw_seed,
    fit_state_scaler,
    resolve_device,
    row_noise,
    row_scaler,
    standardise,
)
from skvdd.diffusion.noise import karras
from skvdd.diffusion.policy import DiffusionPolicy
from skvdd.diffusion.samplers import draw_actions
from skvdd.diffusion.teacher import ScoreTeacher, StandardisedScore

SAMPLING_STEPS = 32  # with which a teacher is sampled

Teacher = DiffusionPolicy | Pipeline | ScoreTeacher | FrozenEstimator


@dataclass(frozen=True)
class TeacherView:
    """A teacher as a distiller sees it: tensors on the device, standardised units.

    Parameters
    ----------
    model : object
        Answers ``context(states)``, ``score(context, actions, sigma)`` and ``denoise``.
    states : Tensor of shape (n, T * d + g)
        What ``context`` is given for each row of the training data.
    own_states : bool
        Whether these are the student's own standardised states (they are not behind a pipeline).
    encoder : dict or None
        Arguments of the encoder behind ``context``, if it is one that a student can take over.
    noise_min, noise_max : float
        Noise levels at which the score may be asked.
    sigmas : list of float
        Noise levels along which its actions are drawn.
    start_scale : float
        Standard deviation of the noise that its samples start from.
    bounds : tuple of Tensor or None
        Lowest and highest action, where its samples are clipped.
    state_scaler, action_scaler : StandardScaler
        The units that teacher and student share; ``state_scaler`` is that of the student's own
        states.
    single_output : bool
        Whether the teacher was given actions of shape (n,).
    """

    model: Any
    states: Tensor
    own_states: bool
    encoder: dict[str, Any] | None
    noise_min: float
    noise_max: float
    sigmas: list[float]
    start_scale: float
    bounds: tuple[Tensor, Tensor] | None
    state_scaler: StandardScaler
    action_scaler: StandardScaler
    single_output: bool


class TeacherMixin:
    """Gives a distiller its teacher: from `fit`, from the constructor, or trained on the spot."""

    teacher: Any
    window_size: int
    goal_dim: int
    encoder: str
    state_noise: float
    device: str | torch.device
    n_actions_: int
    state_scaler_: StandardScaler
    action_scaler_: StandardScaler
    interrupted_: bool
    _single_output: bool
    _callback_fit_ctx: Any
    _check_training_data: Any
    _check_training_states: Any
    _standardise_actions: Any

    _teacher_constraints: ClassVar[dict[str, list[Any]]] = {
        "teacher": [DiffusionPolicy, Pipeline, FrozenEstimator, ScoreTeacher, None],
        "encoder": [StrOptions({"auto", "teacher", "mlp", "transformer"})],
    }

    # Lets `fit(..., teacher=...)` pass through meta-estimators when metadata routing is on.
    __metadata_request__fit: ClassVar[dict[str, bool]] = {"teacher": True}

    def _check_distillation_data(
        self, X: ArrayLike, y: ArrayLike | None
    ) -> tuple[NDArray, NDArray | None]:
        """Validate ``(X, y)`` and return them as (n, T * d + g) and (n, d_a) or None."""
        if y is not None:
            return self._check_training_data(X, y)
        return self._check_training_states(X), None

    def _find_teacher(
        self, teacher: Any, X: ArrayLike, y: ArrayLike | None, rng: np.random.RandomState
    ) -> DiffusionPolicy | Pipeline | ScoreTeacher:
        """Return a fitted teacher; fits a clone of the constructor's if `fit` was given none."""
        vars(self).pop("teacher_", None)
        if teacher is None:
            teacher = self.teacher
            if not isinstance(teacher, FrozenEstimator | ScoreTeacher):
                self.teacher_ = self._fit_teacher(teacher, X, y, rng)
                self.interrupted_ = last_step(self.teacher_).interrupted_
                return self.teacher_
        if isinstance(teacher, FrozenEstimator):
            teacher = teacher.estimator
        check_teacher(teacher)
        return teacher

    def _fit_teacher(
        self, teacher: Any, X: ArrayLike, y: ArrayLike | None, rng: np.random.RandomState
    ) -> DiffusionPolicy | Pipeline:
        if teacher is None:
            teacher = DiffusionPolicy(
                window_size=self.window_size, goal_dim=self.goal_dim, device=self.device
            )
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None: "
                "without actions a teacher must be given, already fitted, as fit(X, teacher=...)."
            )
        if not isinstance(last_step(teacher), DiffusionPolicy):
            raise TypeError(_not_a_teacher(teacher))
        teacher = clone(teacher)
        if last_step(teacher).random_state is None:
            last_step(teacher).random_state = draw_seed(rng)
        context = self._callback_fit_ctx.subcontext(task_name="teacher")
        with context.propagate_callback_context(teacher):
            return teacher.fit(X, y)

    def _view_teacher(self, teacher: Any, X: ArrayLike, states: NDArray) -> TeacherView:
        """Check a fitted teacher against the data and return the student's view of it."""
        device = resolve_device(self.device)
        if isinstance(teacher, ScoreTeacher):
            return _view_score(teacher, states, self.window_size, self.goal_dim, device)
        policy = last_step(teacher)
        for name in ("window_size", "goal_dim"):
            its, own = getattr(policy, name), getattr(self, name)
            if its != own:
                raise ValueError(
                    f"the teacher has {name}={its}, but {type(self).__name__} has {name}={own}; "
                    "they must be equal."
                )
        own_states = policy is teacher
        teacher_states = policy._check_states(X if own_states else teacher[:-1].transform(X))
        own_scaler = fit_state_scaler(states, self.window_size, self.goal_dim)
        model = copy.deepcopy(policy.network_).to(device).requires_grad_(False)
        levels = policy._noise()
        return TeacherView(
            model=model,
            states=policy._standardise_states(teacher_states).to(device),
            own_states=own_states,
            encoder=policy.network_.config.get("encoder") if own_states else None,
            noise_min=policy.noise_min,
            noise_max=policy.noise_max,
            sigmas=levels.of_sampling(SAMPLING_STEPS),
            start_scale=levels.start_scale,
            bounds=(model.action_range[0], model.action_range[1]) if policy.sde == "vp" else None,
            state_scaler=policy.state_scaler_ if own_states else own_scaler,
            action_scaler=policy.action_scaler_,
            single_output=policy._single_output,
        )

    def _check_actions(self, view: TeacherView, actions: NDArray | None) -> None:
        """Take the teacher's action dimension where no actions are given, else compare it."""
        n_actions = len(view.action_scaler.scale_)
        if actions is None:
            self.n_actions_, self._single_output = n_actions, view.single_output
        if self.n_actions_ != n_actions:
            raise ValueError(
                f"y has {self.n_actions_} action dimensions, but the teacher has {n_actions}."
            )

    def _has_units_of(self, view: TeacherView) -> bool:
        """Say whether a teacher has the units that this distiller was fitted with."""
        units = (
            (self.state_scaler_, view.state_scaler),
            (self.action_scaler_, view.action_scaler),
        )
        return all(
            np.array_equal(own.mean_, its.mean_) and np.array_equal(own.scale_, its.scale_)
            for own, its in units
        )

    def _action_rows(self, view: TeacherView, actions: NDArray | None, seed: int) -> Tensor:
        """Return the given actions, or else some of the teacher, standardised, on the device."""
        if actions is None:
            return sample_actions(view, seed)
        return self._standardise_actions(actions).to(resolve_device(self.device))

    def _contexts(self, view: TeacherView) -> Tensor | None:
        """Return the teacher's contexts of all rows where they can be computed once for all."""
        # Noised states must be encoded anew in every step; those behind a pipeline cannot be.
        return encode(view) if self.state_noise == 0 or not view.own_states else None


def last_step(teacher: Any) -> Any:
    """Return the last step of a pipeline, or what is no pipeline as it is."""
    return teacher[-1] if isinstance(teacher, Pipeline) else teacher


def check_teacher(teacher: Any) -> None:
    """Raise unless ``teacher`` is something fitted that gives scores."""
    if isinstance(teacher, ScoreTeacher):
        return
    policy = last_step(teacher)
    if not isinstance(policy, DiffusionPolicy):
        raise TypeError(_not_a_teacher(teacher))
    try:
        check_is_fitted(policy)
    except NotFittedError as error:
        raise NotFittedError(
            f"the teacher given to fit, {type(policy).__name__}, is not fitted yet. Fit it first, "
            "or give it to the constructor, which fits a clone of it on (X, y)."
        ) from error


def sample_actions(view: TeacherView, seed: int) -> Tensor:
    """Draw one action of the teacher for each row of its view, standardised, (n, d_a)."""
    n = len(view.states)
    rng = np.random.RandomState(seed)
    noise = torch.from_numpy(
        row_noise(rng, n, (1, SAMPLING_STEPS, *view.model.action_shape))
    ).float()
    with torch.no_grad():
        blocks = zip(view.states.split(MAX_ACTIONS), noise.split(MAX_ACTIONS), strict=True)
        actions = [
            draw_actions(
                view.model,
                states,
                noise.to(states.device),
                view.sigmas,
                "euler_ancestral",
                start_scale=view.start_scale,
                bounds=view.bounds,
            )
            for states, noise in blocks
        ]
    return torch.cat(actions)[:, 0]


def encode(view: TeacherView) -> Tensor:
    """Return the teacher's contexts of all rows of its view, (n, h)."""
    with torch.no_grad():
        return torch.cat([view.model.context(block) for block in view.states.split(MAX_ACTIONS)])


def _view_score(
    teacher: ScoreTeacher, rows: NDArray, window_size: int, goal_dim: int, device: torch.device
) -> TeacherView:
    state_scaler = fit_state_scaler(rows, window_size, goal_dim)
    columns = row_scaler(state_scaler, window_size, goal_dim)
    action_scaler = fixed_scaler(
        np.broadcast_to(np.asarray(teacher.action_mean, dtype=np.float64), teacher.n_actions),
        np.full(teacher.n_actions, float(teacher.action_scale)),
    )
    units = (columns.mean_, columns.scale_, action_scaler.mean_, action_scaler.scale_)
    tensors = (torch.tensor(unit, dtype=torch.float32, device=device) for unit in units)
    return TeacherView(
        model=StandardisedScore(teacher, *tensors, window_size=window_size, goal_dim=goal_dim),
        states=standardise(columns, rows).to(device),
        own_states=True,
        encoder=None,
        noise_min=teacher.noise_min,
        noise_max=teacher.noise_max,
        sigmas=karras(SAMPLING_STEPS, teacher.noise_min, teacher.noise_max).tolist(),
        start_scale=teacher.noise_max,
        bounds=None,
        state_scaler=state_scaler,
        action_scaler=action_scaler,
        single_output=False,
    )


def _not_a_teacher(teacher: Any) -> str:
    return (
        "teacher must be a DiffusionPolicy, a Pipeline that ends in one, a FrozenEstimator of "
        f"either, or a ScoreTeacher, got {type(teacher).__name__}."
    )
