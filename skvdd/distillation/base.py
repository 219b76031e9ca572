"""How a distiller finds its teacher, and what it asks it in training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from torch import Tensor

from skvdd._sklearn import StrOptions, callbacks_of, is_fitted
from skvdd.base.queries import MAX_ACTIONS
from skvdd.base.validation import continuation
from skvdd.diffusion.noise import check_noise_range
from skvdd.diffusion.policy import DiffusionPolicy
from skvdd.diffusion.score_teacher import ScoreTeacher
from skvdd.diffusion.teacher import (
    PolicyTeacher,
    Teacher,
    as_teacher,
    check_teacher,
    is_ready,
    last_step,
    not_a_teacher,
    teacher_digest,
)
from skvdd.encoders import ENCODERS, Encoder, make_encoder
from skvdd.nn.network import build_encoder
from skvdd.nn.normalization import row_statistics
from skvdd.randomness import draw_seed, seeded_network
from skvdd.training.fit import Data, Fit
from skvdd.training.rows import is_resident

CONTEXT_BYTES = 2**28  # of contexts that are kept; more are encoded when they are needed


class TeacherMixin:
    """Gives a distiller its teacher: from `fit`, from the constructor, or trained on the spot."""

    teacher: Any
    window_size: int
    goal_dim: int
    encoder: str | Encoder
    hidden_size: int
    n_layers: int
    device: str | torch.device
    network_: Any

    _needs_actions: ClassVar[bool] = False
    _teacher_constraints: ClassVar[dict[str, list[Any]]] = {
        "teacher": [DiffusionPolicy, Pipeline, FrozenEstimator, Teacher, None],
        "encoder": [StrOptions({"auto", "teacher", *ENCODERS}), Encoder],
    }

    # Lets `fit(..., teacher=...)` pass through meta-estimators when metadata routing is on.
    __metadata_request__fit: ClassVar[dict[str, bool]] = {"teacher": True}
    __metadata_request__partial_fit: ClassVar[dict[str, bool]] = {"teacher": True}

    # -- finding the teacher ---------------------------------------------------------------------

    def _find_teacher(self, data: Data, teacher: Any, partial: bool) -> Callable[[Fit], Teacher]:
        """Check the teacher of a fit, and return what makes it ready."""
        if self.encoder not in ("auto", "teacher"):  # before a teacher is trained
            seeded_network(lambda: build_encoder(self._make_encoder(), data.layout)[0], seed=0)
        if teacher is None and is_ready(self.teacher):
            teacher = self.teacher
        if teacher is None and self._continues(partial):
            teacher = self._last_teacher(partial)
        if teacher is None:
            return self._plan_teacher(data)
        check_teacher(teacher)
        view = as_teacher(teacher, self.device)
        self._check_layout(last_step(view.policy) if isinstance(view, PolicyTeacher) else None)
        self._check_noise(view.noise_min, view.noise_max)
        own = teacher if teacher is getattr(self, "teacher_", None) else None

        def ready(fit: Fit) -> Teacher:
            fit.teacher_estimator = own
            return view

        return ready

    def _continues(self, partial: bool) -> bool:
        return (partial or self.warm_start) and is_fitted(self)  # type: ignore[attr-defined]

    def _last_teacher(self, partial: bool) -> Any:
        """Return the teacher that an earlier fit trained."""
        if not hasattr(self, "teacher_"):
            name = "partial_fit" if partial else "fit with warm_start=True"
            raise ValueError(
                f"teacher must be given to {name}, already fitted, if the first call was given one "
                "or the policy was loaded from a file: a teacher that is fitted now would have "
                "another normalization. Got None."
            )
        return self.teacher_

    def _plan_teacher(self, data: Data) -> Callable[[Fit], Teacher]:
        """Return what trains the constructor's teacher, or the default one."""
        name = type(self).__name__
        if data.actions is None:
            raise ValueError(
                f"{name} requires y to be passed, but the target y is None: without actions a "
                "teacher must be given, already fitted, as fit(X, teacher=...)."
            )
        teacher = self.teacher
        if teacher is None:
            teacher = DiffusionPolicy(
                window_size=self.window_size, goal_dim=self.goal_dim, device=self.device
            )
        policy = last_step(teacher)
        if not isinstance(policy, DiffusionPolicy):
            raise TypeError(not_a_teacher(teacher))
        self._check_layout(policy)
        self._check_noise(policy.noise_min, policy.noise_max)
        if is_fitted(policy):
            warnings.warn(
                f"the teacher given to the constructor of {name} is fitted, but a clone of it is "
                "trained anew. Give it to fit(..., teacher=teacher), or wrap it: "
                f"{name}(FrozenEstimator(teacher)).",
                UserWarning,
                stacklevel=2,
            )
        return lambda fit: self._train_teacher(fit, clone(teacher))

    def _train_teacher(self, fit: Fit, teacher: Any) -> Teacher:
        """Train a teacher on the data of a fit."""
        policy, data = last_step(teacher), fit.data
        if policy.random_state is None:
            policy.random_state = draw_seed(fit.rng)
        X = data.X if hasattr(data.X, "columns") else data.rows
        y = data.actions.reshape(len(data.rows), *data.action_shape)  # type: ignore[union-attr]
        context = fit.context.subcontext(task_name="teacher", max_subtasks=0)
        with self._handing_on(policy), context.propagate_callback_context(teacher):
            teacher.fit(X, y)
        fit.teacher_estimator, fit.interrupted = teacher, policy.interrupted_
        return as_teacher(teacher, self.device)

    @contextmanager
    def _handing_on(self, policy: DiffusionPolicy) -> Iterator[None]:
        """Give a teacher, while it is fitted, those callbacks that follow it too."""
        own = callbacks_of(policy)
        mine = [c for c in callbacks_of(self) if hasattr(c, "of_teacher")]
        policy.set_callbacks(*own, *(callback.of_teacher(self) for callback in mine))
        try:
            yield
        finally:
            policy.set_callbacks(*own)

    def _teacher_digest(self, teacher: Any) -> str | None:
        """Return what tells a fitted teacher from others; None where one is to be fitted here."""
        if teacher is None and is_ready(self.teacher):
            teacher = self.teacher
        return None if teacher is None else teacher_digest(teacher)

    # -- checks ----------------------------------------------------------------------------------

    def _check_parameters(self) -> None:
        super()._check_parameters()  # type: ignore[misc]
        if hasattr(self, "noise_min"):
            check_noise_range(self.noise_min, self.noise_max)  # type: ignore[attr-defined]
        if self.encoder == "teacher" and isinstance(self.teacher, ScoreTeacher):
            raise ValueError(no_network(self))

    def _check_layout(self, policy: DiffusionPolicy | None) -> None:
        """Raise a ValueError if a teacher takes other rows."""
        for name in ("window_size", "goal_dim"):
            its, own = getattr(policy, name, None), getattr(self, name)
            if policy is not None and its != own:
                raise ValueError(
                    f"the teacher has {name}={its}, but {type(self).__name__} has {name}={own}; "
                    "they must be equal."
                )

    def _check_noise(self, noise_min: float, noise_max: float) -> None:
        """Raise a ValueError if a student wants noise levels that its teacher does not have."""
        low, high = getattr(self, "noise_min", noise_min), getattr(self, "noise_max", noise_max)
        if low < noise_min or high > noise_max:
            raise ValueError(
                f"noise_min={low} and noise_max={high} must lie within the teacher's noise "
                f"levels, [{noise_min}, {noise_max}]."
            )

    def _complete(self, fit: Fit) -> Data:
        """Compare the data with the teacher; where no actions are given, take its action shape."""
        data, n_actions = fit.data, len(fit.teacher.action_scale)
        _check_same_columns(data, fit.teacher)
        if data.actions is None:
            shape = getattr(fit.teacher, "action_shape", (n_actions,))
            return replace(data, X=_as_asked(data, fit.teacher), action_shape=shape)
        if data.n_actions != n_actions:
            raise ValueError(
                f"y has {data.n_actions} action dimensions, but the teacher has {n_actions}."
            )
        return data

    def _check_same_teacher(self, fit: Fit, partial: bool) -> None:
        """Raise a ValueError if continuing would mix two teachers' normalizations."""
        mean, scale = self.network_.action_normalization.statistics
        same = np.array_equal(mean, fit.teacher.action_mean)
        if not (same and np.array_equal(scale, fit.teacher.action_scale)):
            raise ValueError(another_teacher("another normalization of actions", partial))

    # -- the network -----------------------------------------------------------------------------

    def _set_network(self, fit: Fit, partial: bool) -> None:
        if not fit.is_fresh:
            self._check_same_teacher(fit, partial)
        super()._set_network(fit, partial)  # type: ignore[misc]

    def _initialize(self, fit: Fit) -> None:
        """Take the teacher's normalization; of rows, where it sees the same ones."""
        network, teacher = fit.network, fit.teacher
        network.action_normalization.set(teacher.action_mean, teacher.action_scale)
        if teacher.network is not None:
            network.row_normalization.set(*teacher.network.row_normalization.statistics)
        else:
            network.row_normalization.set(*row_statistics(fit.data.rows, fit.data.layout))

    def _make_encoder(self) -> Encoder:
        """Return the encoder of a network of the student's own."""
        own = "mlp" if self.encoder in ("auto", "teacher") else self.encoder
        return make_encoder(own, self.hidden_size, self.n_layers)

    def _attributes(self, fit: Fit) -> dict[str, Any]:
        own = fit.teacher_estimator
        return {} if own is None else {"teacher_": own}


class TeacherContexts:
    """A teacher's contexts of the rows of a fit.

    Those of a teacher behind a pipeline are computed once, since noise on the student's states
    cannot reach it; those of others too, where there is no noise.

    Parameters
    ----------
    fit : Fit
        With teacher and network.
    """

    def __init__(self, fit: Fit) -> None:
        self.teacher, self.network, self.layout = fit.teacher, fit.network, fit.data.layout
        its = self.teacher.network
        self.same_rows = its is not None and all(
            np.array_equal(a, b)
            for a, b in zip(
                its.row_normalization.statistics,
                self.network.row_normalization.statistics,
                strict=True,
            )
        )
        self.kept = self._encode_all(fit)
        self.is_resident = self.teacher.replayable and is_resident(fit.rows, fit.actions)

    @torch.no_grad()
    def of(self, index: Tensor, rows: Tensor) -> Tensor:
        """Return the contexts of rows, standardized as the student's, with their index (b,)."""
        if self.kept is not None:
            return self.kept.index_select(0, index)
        return self._encode(rows)

    def _encode(self, rows: Tensor) -> Tensor:
        if self.same_rows:
            return self.teacher.network.context(rows)
        raw = self.network.row_normalization.inverse(rows)
        return self.teacher.context(self.layout.unflatten(raw))

    @torch.no_grad()
    def _encode_all(self, fit: Fit) -> Tensor | None:
        """Return the contexts of all rows, or None where each minibatch needs new ones."""
        if self.teacher.sees_states:
            if fit.estimator.state_noise:
                return None
            one = self._encode(fit.rows.index_select(0, _index(fit, 1)))
            if len(fit.rows) * one[0].numel() * one.element_size() > CONTEXT_BYTES:
                return None
            return torch.cat([self._encode(block) for block in fit.rows.split(MAX_ACTIONS)])
        X = fit.data.X if hasattr(fit.data.X, "columns") else fit.data.rows
        # Writable, for torch: rows may be mapped from a file that is not.
        raw = torch.from_numpy(np.require(self.teacher.prepare(X), np.float64, ["C", "W"]))
        blocks = raw.split(MAX_ACTIONS)
        return torch.cat([self.teacher.context(block.to(fit.device)) for block in blocks])


def _check_same_columns(data: Data, teacher: Teacher) -> None:
    """Raise a ValueError if a teacher's network, or a step before it, takes other rows."""
    its = teacher.network
    if its is None:
        if not teacher.sees_states:  # the steps of a pipeline check their columns
            teacher.prepare(data.X[:1] if hasattr(data.X, "columns") else data.rows[:1])
    elif its.layout.n_columns != data.layout.n_columns:
        raise ValueError(
            f"X has {data.layout.n_columns} columns, but the teacher has learned from "
            f"{its.layout.n_columns}."
        )


def _as_asked(data: Data, teacher: Teacher) -> Any:
    """Return the observations as a teacher's `sample` takes them: windows where `context` does."""
    named = hasattr(data.X, "columns")  # by which the steps of a pipeline may choose
    if named and (isinstance(teacher, PolicyTeacher) or not teacher.sees_states):
        return data.X
    rows, layout = data.rows, data.layout
    return rows if layout.goal_dim else rows.reshape(-1, layout.window_size, layout.n_states)


def _index(fit: Fit, n: int) -> Tensor:
    return torch.arange(n, dtype=torch.int64, device=fit.device)


def no_network(student: Any) -> str:
    """Return the message for a student that wants the network of a teacher that has none."""
    return (
        f"encoder='teacher' of {type(student).__name__} needs a teacher with an encoder of the "
        "same states: not a ScoreTeacher, not architecture='gpt', and not behind a Pipeline. Use "
        "encoder='mlp'."
    )


def another_teacher(what: str, partial: bool) -> str:
    """Return the message for a fit that continues with another teacher."""
    continues, remedy = continuation(partial)
    return f"{continues} with the teacher of the last fit, but this teacher has {what}. {remedy}"
