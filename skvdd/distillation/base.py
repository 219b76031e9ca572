"""How a distiller finds its teacher, and what it sees of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
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

from skvdd._sklearn import StrOptions, callbacks_of, fixed_scaler, is_fitted
from skvdd.base import (
    MAX_ACTIONS,
    draw_seed,
    fit_state_scaler,
    policy_digest,
    resolve_device,
    row_noise,
    row_scaler,
)
from skvdd.diffusion.noise import karras
from skvdd.diffusion.policy import DiffusionPolicy
from skvdd.diffusion.samplers import draw_actions
from skvdd.diffusion.teacher import ScoreTeacher, StandardisedScore
from skvdd.streaming import (
    CONTEXT_BYTES,
    Contexts,
    Rows,
    StreamedContexts,
    fits,
    is_resident,
    standard_rows,
)

SAMPLING_STEPS = 32  # with which a teacher is sampled

Teacher = DiffusionPolicy | Pipeline | ScoreTeacher | FrozenEstimator
READY = (FrozenEstimator, ScoreTeacher)  # given to the constructor, they are used as they are


@dataclass(frozen=True)
class TeacherView:
    """A teacher as a distiller sees it: tensors on the device, standardised units.

    Parameters
    ----------
    model : object
        Answers ``context(states)``, ``score(context, actions, sigma)`` and ``denoise``.
    states : Tensor of shape (n, T * d + g) or StreamedRows
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
    states: Rows
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
    _rows_of_actions: Any
    _rows_of_states: Any

    _teacher_constraints: ClassVar[dict[str, list[Any]]] = {
        "teacher": [DiffusionPolicy, Pipeline, FrozenEstimator, ScoreTeacher, None],
        "encoder": [StrOptions({"auto", "teacher", "mlp", "transformer"})],
    }

    # Lets `fit(..., teacher=...)` pass through meta-estimators when metadata routing is on.
    __metadata_request__fit: ClassVar[dict[str, bool]] = {"teacher": True}
    __metadata_request__partial_fit: ClassVar[dict[str, bool]] = {"teacher": True}

    def _check_fit(
        self, X: ArrayLike, y: ArrayLike | None, teacher: Any, partial: bool
    ) -> tuple[NDArray, NDArray | None, Any]:
        """Validate what a fit is given; return (n, T * d + g), (n, d_a) or None, and the teacher.

        A `partial_fit` that goes on takes the teacher that the first call fitted.
        """
        goes_on = partial and is_fitted(self)
        if goes_on and teacher is None and not isinstance(self.teacher, READY):
            if not hasattr(self, "teacher_"):
                raise ValueError(
                    "teacher must be given to partial_fit, already fitted, if the first call was "
                    "given one or the policy was loaded from a file: a teacher that were fitted "
                    "now would have other units. Got None."
                )
            teacher = self.teacher_
        if y is None:
            return self._check_training_states(X, reset=not goes_on), None, teacher
        return *self._check_training_data(X, y, reset=not goes_on), teacher

    def _teacher_digest(self, teacher: Any) -> str | None:
        """Return what tells a fitted teacher from others; None where one is to be fitted here."""
        if teacher is None and isinstance(self.teacher, READY):
            teacher = self.teacher
        teacher = teacher.estimator if isinstance(teacher, FrozenEstimator) else teacher
        policy = last_step(teacher)
        if isinstance(policy, DiffusionPolicy) and is_fitted(policy):
            return policy_digest(policy)
        return None if teacher is None else type(teacher).__name__

    def _find_teacher(
        self, teacher: Any, X: ArrayLike, y: ArrayLike | None, rng: np.random.RandomState
    ) -> DiffusionPolicy | Pipeline | ScoreTeacher:
        """Return a fitted teacher; fits a clone of the constructor's if `fit` was given none."""
        if teacher is None or teacher is not getattr(self, "teacher_", None):
            vars(self).pop("teacher_", None)
        if teacher is None:
            teacher = self.teacher
            if not isinstance(teacher, READY):
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
        with self._handing_on(last_step(teacher)), context.propagate_callback_context(teacher):
            return teacher.fit(X, y)

    @contextmanager
    def _handing_on(self, policy: DiffusionPolicy) -> Iterator[None]:
        """Give a teacher, while it is fitted, those callbacks that want to know of it."""
        own = callbacks_of(policy)
        mine = [c for c in callbacks_of(self) if hasattr(c, "of_teacher")]
        policy.set_callbacks(*own, *(callback.of_teacher(self) for callback in mine))
        try:
            yield
        finally:
            policy.set_callbacks(*own)

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
        state_scaler = (
            policy.state_scaler_
            if own_states
            else fit_state_scaler(states, self.window_size, self.goal_dim)
        )
        model = copy.deepcopy(policy.network_).to(device).requires_grad_(False)
        levels = policy._noise()
        return TeacherView(
            model=model,
            states=policy._rows_of_states(teacher_states, device),
            own_states=own_states,
            encoder=policy.network_.config.get("encoder") if own_states else None,
            noise_min=policy.noise_min,
            noise_max=policy.noise_max,
            sigmas=levels.of_sampling(SAMPLING_STEPS),
            start_scale=levels.start_scale,
            bounds=(model.action_range[0], model.action_range[1]) if policy.sde == "vp" else None,
            state_scaler=state_scaler,
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

    def _state_rows(self, view: TeacherView, states: NDArray) -> Rows:
        """Return the student's own states, standardised, for training."""
        if view.own_states:  # in the units that both share
            return view.states
        return self._rows_of_states(states, resolve_device(self.device))

    def _action_rows(self, view: TeacherView, actions: NDArray | None, seed: int) -> Rows:
        """Return the given actions, or else some of the teacher, standardised, for training."""
        if actions is None:
            return sample_actions(view, seed)
        return self._rows_of_actions(actions, resolve_device(self.device))

    def _contexts(self, view: TeacherView) -> Contexts | None:
        """Return the teacher's contexts of all rows where they can be computed once for all."""
        # Noised states must be encoded anew in every step; those behind a pipeline cannot be.
        return encode(view) if self.state_noise == 0 or not view.own_states else None


def needs_no_host(step: Any) -> bool:
    """Say whether a GPU may repeat a step alone: a score function of the user's may do anything.

    Parameters
    ----------
    step : object
        Has ``teacher``, and ``states``, ``actions`` and ``contexts`` of the rows.
    """
    resident = is_resident(step.states, step.actions, step.contexts)
    return resident and not isinstance(step.teacher, StandardisedScore)


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
    rng = np.random.RandomState(seed)
    shape = (1, SAMPLING_STEPS, *view.model.action_shape)
    with torch.no_grad():
        actions = [
            draw_actions(
                view.model,
                states,
                torch.from_numpy(row_noise(rng, len(states), shape)).float().to(states.device),
                view.sigmas,
                "euler_ancestral",
                start_scale=view.start_scale,
                bounds=view.bounds,
            )
            for states in view.states.split(MAX_ACTIONS)
        ]
    return torch.cat(actions)[:, 0]


def encode(view: TeacherView) -> Contexts:
    """Return the teacher's contexts (n, h) of all rows of its view, streamed if too many."""
    streamed = StreamedContexts(view.model.context, view.states)
    n = len(view.states)
    one = streamed.index_select(0, torch.zeros(1, dtype=torch.int64, device=view.states.device))
    n_bytes = n * one.numel() * one.element_size()
    if n_bytes > CONTEXT_BYTES and not fits(n_bytes, one.device):
        return streamed
    contexts = one.new_empty((n, *one.shape[1:]))
    with torch.no_grad():
        for start, block in zip(
            range(0, n, MAX_ACTIONS), view.states.split(MAX_ACTIONS), strict=True
        ):
            contexts[start : start + len(block)] = view.model.context(block)
    return contexts


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
        states=standard_rows(columns, rows, device),
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
