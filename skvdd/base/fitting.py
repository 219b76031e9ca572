"""The one fit: validate, build or continue, train the stages, and only then change the policy."""

from __future__ import annotations

import copy
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterator
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike

from skvdd._sklearn import CallbackSupportMixin, fit_context, is_fitted, with_callbacks
from skvdd.base.validation import check_same_data, check_same_network, check_training_data
from skvdd.devices import check_device, resolve_device
from skvdd.encoders import Encoder, make_encoder
from skvdd.nn.network import PolicyNetwork
from skvdd.nn.normalization import action_statistics, row_statistics
from skvdd.randomness import as_random_state, restored_on_error, seeded_network
from skvdd.training.fingerprint import digest, network_digest, plain_parameters
from skvdd.training.fit import Data, Fit, FitStart, Stage, is_inside_search
from skvdd.training.loop import Settings
from skvdd.training.processes import from_first, is_first_process, n_processes
from skvdd.training.threads import fit_settings

STALE = ("feature_names_in_", "teacher_")  # attributes that not every fit leaves


class FitMixin(CallbackSupportMixin, metaclass=ABCMeta):
    """`fit` and `partial_fit` of every policy.

    A subclass builds a network (`_build`) and says how it is trained (`_stages`).
    """

    network_: Any
    history_: list[dict[str, Any]]
    n_iter_: int

    # Parameters that every subclass has.
    window_size: int
    goal_dim: int
    encoder: str | Encoder
    hidden_size: int
    n_layers: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    ema_decay: float
    state_noise: float
    random_state: int | np.random.RandomState | None
    warm_start: bool

    _needs_actions: ClassVar[bool] = True

    @with_callbacks
    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: ArrayLike | None = None, *, teacher: Any = None) -> Self:
        """Learn a policy from demonstrations, or distill it from a teacher.

        A fit that fails changes nothing: the policy is what it was before.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            Observations, one row a decision: a state, a window of states (oldest first), or a flat
            window with a goal. Raw units.
        y : array-like of shape (n, d_a), (n,) or (n, H, d_a)
            The action taken after each window, or a chunk of ``H`` actions. Raw units. A distiller
            can do without: then one action is drawn from the teacher for each row, and the teacher
            must be given.
        teacher : DiffusionPolicy, Pipeline, FrozenEstimator, ScoreTeacher or Teacher, default=None
            Only for distillers: a fitted teacher, used in place of the constructor's. The earlier
            steps of a pipeline are applied to ``X``.

        Returns
        -------
        self : object
            The fitted policy.

        Raises
        ------
        ValueError
            If an argument, the data or the teacher break a rule; before any training.
        NotFittedError
            If the teacher given here is not fitted.
        TypeError
            If the teacher is none, or if the policy does not learn from one.
        FloatingPointError
            If a loss ceases to be finite.
        """
        return self._fit(X, y, teacher, partial=False)

    @with_callbacks
    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: ArrayLike, y: ArrayLike | None = None, *, teacher: Any = None) -> Self:
        """Learn from more data: the first call is a `fit`, later ones continue from its weights.

        Each call takes ``max_iter`` iterations, with a new schedule of the learning rate, on the
        rows of this call alone: give old and new rows together if the old ones are not to be
        forgotten. The normalization stays that of the first call. ``history_`` and ``n_iter_``
        accumulate. With an integer ``random_state`` each call has random numbers of its own.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            Observations, with the columns of the first call.
        y : array-like of shape (n, d_a), (n,) or (n, H, d_a)
            The action taken after each window, as in `fit`.
        teacher : DiffusionPolicy, Pipeline, FrozenEstimator, ScoreTeacher or Teacher, default=None
            Only for distillers: a fitted teacher with the action normalization and noise range of
            the first call's. ``None`` is the ``teacher_`` that the first call fitted, or the
            constructor's, if that is fitted or frozen. To train the teacher too, call its
            ``partial_fit`` and give it here; the student then needs an encoder of its own
            (``encoder="mlp"``).

        Returns
        -------
        self : object
            The fitted policy.

        Raises
        ------
        ValueError, NotFittedError, TypeError, FloatingPointError
            As in `fit`; the policy then is what it was before.
        """
        return self._fit(X, y, teacher, partial=True)

    # -- what a subclass gives -------------------------------------------------------------------

    @abstractmethod
    def _build(self, fit: Fit) -> PolicyNetwork:
        """Return a fresh network for the data, and the teacher, of a fit."""

    @abstractmethod
    def _stages(self, fit: Fit) -> Iterator[Stage]:
        """Yield the training runs of a fit; each begins when the one before has ended."""

    def _check_parameters(self) -> None:
        """Raise a ValueError where parameters do not fit each other; before any work."""
        check_device(self.device)
        self._make_encoder().check()

    def _find_teacher(self, data: Data, teacher: Any, partial: bool) -> Callable[..., Any] | None:
        """Check the teacher of a fit, and return what makes it ready; None for no teacher."""
        if teacher is not None:
            raise TypeError(
                f"{type(self).__name__} learns from demonstrations and takes no teacher. "
                "VDDDistiller distills one."
            )
        return None

    def _initialize(self, fit: Fit) -> None:
        """Set the normalization of a fresh network, and weights that come from elsewhere."""
        data, network = fit.data, fit.network
        network.row_normalization.set(*row_statistics(data.rows, data.layout))
        last = data.action_shape[-1] if data.action_shape else 1
        network.action_normalization.set(*action_statistics(np.asarray(data.actions), last))

    def _attributes(self, fit: Fit) -> dict[str, Any]:
        """Return what a subclass learns beside its network."""
        return {}

    # -- the one fit -----------------------------------------------------------------------------

    def _fit(self, X: ArrayLike, y: ArrayLike | None, teacher: Any, *, partial: bool) -> Self:
        self._check_parameters()
        continues = (partial or self.warm_start) and is_fitted(self)
        candidate = _shallow_copy(self)  # gets the attributes of validation
        data = check_training_data(
            candidate,
            X,
            y,
            reset=not (partial and continues),
            needs_actions=self._needs_actions,
        )
        if continues:
            check_same_data(self, data, partial=partial)
        with (
            restored_on_error(self.random_state),
            torch.inference_mode(False),  # copies made in it could not be trained
            torch.enable_grad(),
        ):
            fit = self._run(data, teacher, candidate, partial=partial, continues=continues)
        fit.network.eval()
        before = (self.history_, self.n_iter_) if partial and continues else ([], 0)
        learned = fit.fitted(fit, fit.network, before[0] + fit.history, before[1] + fit.n_iter)
        for name in STALE:
            self.__dict__.pop(name, None)
        self.__dict__.update(learned)
        if fit.interrupted and is_inside_search():
            raise KeyboardInterrupt
        return self

    def _run(
        self, data: Data, teacher: Any, candidate: Self, *, partial: bool, continues: bool
    ) -> Fit:
        """Train a network, and leave the policy as it is."""
        make_teacher = self._find_teacher(data, teacher, partial)
        start = FitStart(
            self._random_numbers(partial),
            lambda: self._fingerprint(data, teacher, continues),
        )
        context = self._init_callback_context(max_subtasks=None)
        context.call_on_fit_task_begin(estimator=self, metadata={"fit": start})
        fit = Fit(
            estimator=self,
            data=data,
            settings=Settings(
                self.learning_rate, self.weight_decay, self.ema_decay, self.batch_size
            ),
            device=resolve_device(self.device),
            rng=start.rng,
            context=context,
            fitted=lambda *state: {**_features(candidate), **self._fitted(*state)},
            is_fresh=not continues,
        )
        if make_teacher is not None:
            fit.teacher = make_teacher(fit)
        fit.data = self._complete(fit)
        self._set_network(fit, partial)
        with fit_settings(fit.device, self._work(fit)):
            for stage in self._stages(fit):
                if fit.interrupted:  # whoever interrupted one stage wants no later one
                    break
                fit.train(stage)
        context.call_on_fit_task_end(estimator=self, metadata={"interrupted": fit.interrupted})
        return fit

    def _complete(self, fit: Fit) -> Data:
        """Return the data of a fit with what only the teacher could add."""
        return fit.data

    def _set_network(self, fit: Fit, partial: bool) -> None:
        """Build the network of a fit, or copy the one that it continues from."""
        if fit.is_fresh:
            fit.network = seeded_network(lambda: self._build(fit), fit.seed())
            self._initialize(fit)
        else:
            wanted = seeded_network(lambda: self._build(fit), seed=0)  # only its shape counts
            check_same_network(self.network_, wanted, partial=partial)
            fit.network = copy.deepcopy(self.network_)
        fit.network.to(fit.device)

    def _work(self, fit: Fit) -> float:
        """Return about how many multiply-adds an iteration takes: three passes over all weights."""
        n_weights = sum(parameter.numel() for parameter in fit.network.parameters())
        return 3.0 * n_weights * self.batch_size

    def _fitted(
        self, fit: Fit, network: PolicyNetwork, history: list[dict[str, Any]], n_iter: int
    ) -> dict[str, Any]:
        """Return the attributes of the policy as a fit leaves them."""
        shape = fit.data.action_shape if fit.is_fresh else self.action_shape_
        return {
            "network_": network,
            "action_shape_": shape,
            "horizon_": shape[0] if len(shape) == 2 else 1,
            "history_": history,
            "n_iter_": n_iter,
            "interrupted_": fit.interrupted,
            **self._attributes(fit),
        }

    def _random_numbers(self, partial: bool) -> np.random.RandomState:
        """Return the source of the seeds of a fit, the same in all processes."""
        seed = self.random_state
        if partial and is_fitted(self) and isinstance(seed, Integral):
            seed = np.random.RandomState([int(seed), self.n_iter_])  # not those of earlier calls
        rng = as_random_state(seed)
        if n_processes() > 1:
            state = from_first(rng.get_state)
            if not is_first_process():
                rng = np.random.RandomState()
                rng.set_state(state)
        return rng

    def _fingerprint(self, data: Data, teacher: Any, continues: bool) -> dict[str, Any]:
        """Return what decides the result of a fit."""
        return {
            "class": type(self).__name__,
            "parameters": plain_parameters(self),
            "X": digest([data.rows]),
            "y": None if data.actions is None else digest([data.actions]),
            "teacher": self._teacher_digest(teacher),
            "start": network_digest(self.network_) if continues else None,
        }

    def _teacher_digest(self, teacher: Any) -> str | None:
        """Return a short text that differs for teachers that differ; None for no fitted one."""
        return None

    def _make_encoder(self) -> Encoder:
        """Return the encoder that the parameters describe."""
        return make_encoder(self.encoder, self.hidden_size, self.n_layers)


def _features(candidate: Any) -> dict[str, Any]:
    """Return what validation has learned of the columns."""
    names = ("n_features_in_", "feature_names_in_")
    return {name: getattr(candidate, name) for name in names if hasattr(candidate, name)}


def _shallow_copy(estimator: Any) -> Any:
    """Return an estimator with the same attributes, none of them copied."""
    new = object.__new__(type(estimator))
    vars(new).update(vars(estimator))
    return new
