"""The distiller of the paper as a scikit-learn estimator."""

from __future__ import annotations

import copy
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator

from skvdd._sklearn import Interval, StrOptions, fit_context, with_callbacks
from skvdd.base import continuation, draw_seed, resolve_device, seeded_network
from skvdd.diffusion.noise import check_noise_range
from skvdd.diffusion.teacher import ScoreTeacher
from skvdd.distillation.base import TeacherMixin, TeacherView, needs_no_host
from skvdd.distillation.vdd import Distillation
from skvdd.mixture.base import BaseMixturePolicy
from skvdd.mixture.em import em_update
from skvdd.nn.mixture_network import MixtureNetwork
from skvdd.training import Update, batch_generator

BOUNDED = frozenset({"interval", "loguniform", "anneal"})  # noise choices that use the bounds


class VDDDistiller(TeacherMixin, BaseMixturePolicy):
    r"""Distil a teacher's score into a mixture of Gaussian experts.

    Variational Diffusion Distillation [1]_ minimises the reverse Kullback-Leibler divergence
    :math:`KL(q(\cdot|s) \| \pi(\cdot|s))` between a mixture :math:`q` and a diffusion policy
    :math:`\pi` whose density is never evaluated, only its score. The bound of eq. 9 splits it into
    one objective for each expert (eq. 16) and one for the gating (eq. 13); each iteration takes a
    few steps of either. The result acts in one forward pass and has an exact likelihood.

    The defaults are not those of the paper but what has been measured to work better: the experts
    start from a maximum-likelihood fit, the objective is smoothed, so that it is unbiased at every
    noise level (`smoothed_expert_loss`), and a share of the forward divergence keeps behaviours
    (`likelihood_loss`). `VDDDistiller.paper` gives the published recipe.

    Parameters
    ----------
    teacher : DiffusionPolicy, Pipeline, FrozenEstimator, ScoreTeacher or None, default=None
        Teacher to use when `fit` is given none. A policy, or a pipeline that ends in one, is
        cloned and fitted on the data of `fit`, fitted or not; wrapped in ``FrozenEstimator`` it is
        used as it is. ``None`` stands for ``DiffusionPolicy()`` of this ``window_size``
        and ``goal_dim``.
    n_experts : int, default=8
        Number of experts, ``K``.
    objective : {"smoothed", "published"}, default="smoothed"
        Which objective the experts minimise.
    noise : {"loguniform", "interval", "anneal", "uniform", "min", "max"}, default="loguniform"
        Noise level of a step: log-uniform or uniform on ``[noise_min, noise_max]``; ``"anneal"``,
        log-uniform with the upper bound falling from ``noise_max`` to ``noise_min`` over training;
        ``"uniform"`` over the teacher's range; ``"min"`` or ``"max"``, an end of that range.
    noise_min, noise_max : float, default=0.1, 0.5
        Bounds of the noise levels, in standardised actions.
    n_samples : int, default=2
        Actions drawn from each expert in a step, ``v``.
    likelihood_weight : float, default=0.3
        Weight of the forward divergence :math:`KL(\pi \| q)` beside the reverse one, estimated on
        the ``gating_actions`` (`likelihood_loss`). It keeps behaviours that the reverse one would
        give up; 0 is the paper's objective.
    expert_steps, gating_steps : int, default=2, 1
        Optimiser steps of each kind in an iteration.
    expert_weighting : {"gating", "uniform"}, default="gating"
        Weight of an expert in a state: its gating probability, or the same for all.
    learn_gating : bool, default=True
        Whether the gating is learnt; without it every expert has probability ``1 / K``.
    gating_actions : {"data", "teacher"}, default="data"
        Actions that the gating (and the maximum-likelihood start) learns from: those given to
        `fit`, or one drawn from the teacher for each row before training. Without ``y`` it is
        the latter.
    init : {"em", "kmeans", "random"}, default="em"
        Start of the experts: clusters of the actions, then ``init_iter`` iterations of maximum
        likelihood; the clusters alone; or means uniform in ``[-1, 1]`` and unit variance.
    init_iter : int, default=4000
        Iterations of maximum likelihood in ``init="em"``.
    covariance : {"full", "diag"}, default="full"
        Shape of the experts' covariances.
    scale_floor : float, default=1e-3
        Lowest diagonal entry of the Cholesky factor of an expert's covariance, in standardised
        actions. Where an action is often the same to the digit (a hand that holds its height),
        experts shrink to spikes whose likelihood drowns all else; a floor of 0.05 prevents that.
    window_size : int, default=1
        States in a row, ``T``; that of the teacher.
    goal_dim : int, default=0
        Columns ``g`` of the goal at the end of a row, as the teacher has them; 0 for none.
    encoder : {"auto", "teacher", "mlp", "transformer"}, default="auto"
        Network over the state window: the teacher's own, frozen, with a new head on its context,
        or one that is trained. ``"auto"`` is the teacher's where it has one, else ``"mlp"``.
    hidden_size, n_layers, n_heads : int, default=128, 2, 4
        Width, layers of encoder and head, attention heads (transformer only).
    max_iter, batch_size : int, default=500, 256
        Iterations, and rows in a minibatch.
    learning_rate, weight_decay : float, default=1e-3, 1e-3
        AdamW's step size (after a warm-up, decaying as a cosine) and decay.
    ema_decay : float, default=0.998
        Factor of the moving average of the weights that predicts; 0 for none.
    state_noise : float, default=0.035
        Standard deviation of Gaussian noise on the standardised states in training.
    device : str or torch.device, default="auto"
        Where to compute; ``"auto"`` takes a GPU if there is one.
    random_state : int, RandomState or None, default=None
        Source of initial weights, minibatches and training noise.
    warm_start : bool, default=False
        Whether `fit` goes on from the weights and units of the last one.

    Attributes
    ----------
    teacher_ : DiffusionPolicy or Pipeline
        The teacher, only if it was fitted here.
    network_ : MixtureNetwork
        The trained network, in standardised units.
    state_scaler_, action_scaler_ : StandardScaler
        Units of states and actions: the teacher's, where it has them.
    n_actions_ : int
        Action dimension ``d_a``.
    n_iter_ : int
        Iterations of distillation done.
    history_ : list of dict
        One row for each report: stage, iteration, learning rate, mean losses. ``score_gap`` is the
        mean of :math:`\sigma^2 \|\nabla \log q_\sigma - \nabla \log \pi_\sigma\|^2`;
        ``likelihood`` is the forward half, before its weight.
    interrupted_ : bool
        Whether a KeyboardInterrupt ended `fit`.
    n_features_in_ : int
        Columns of a flat row, ``T * d``.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Their names, if ``X`` had any.

    References
    ----------
    .. [1] Zhou, Blessing, Li, Celik, Jia, Neumann, Lioutikov (2024), "Variational distillation of
       diffusion policies into mixture of experts", NeurIPS.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd import DiffusionPolicy, VDDDistiller
    >>> rng = np.random.RandomState(0)
    >>> states = rng.uniform(-1, 1, size=(200, 1))
    >>> actions = np.sign(rng.standard_normal((200, 1))) * (1 + states)  # left or right
    >>> teacher = DiffusionPolicy(max_iter=100, random_state=0).fit(states, actions)
    >>> student = VDDDistiller(n_experts=2, max_iter=50, init_iter=50, random_state=0)
    >>> student.fit(states, actions, teacher=teacher).sample(states[:3], random_state=0).shape
    (3, 1)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseMixturePolicy._parameter_constraints,
        **TeacherMixin._teacher_constraints,
        "objective": [StrOptions({"smoothed", "published"})],
        "noise": [StrOptions({"loguniform", "interval", "anneal", "uniform", "min", "max"})],
        "noise_min": [Interval(Real, 0, None, closed="neither")],
        "noise_max": [Interval(Real, 0, None, closed="neither")],
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "likelihood_weight": [Interval(Real, 0, None, closed="left")],
        "expert_steps": [Interval(Integral, 1, None, closed="left")],
        "gating_steps": [Interval(Integral, 1, None, closed="left")],
        "expert_weighting": [StrOptions({"gating", "uniform"})],
        "learn_gating": ["boolean"],
        "gating_actions": [StrOptions({"data", "teacher"})],
        "init": [StrOptions({"em", "kmeans", "random"})],
        "init_iter": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self,
        teacher: BaseEstimator | ScoreTeacher | None = None,
        *,
        n_experts: int = 8,
        objective: str = "smoothed",
        noise: str = "loguniform",
        noise_min: float = 0.1,
        noise_max: float = 0.5,
        n_samples: int = 2,
        likelihood_weight: float = 0.3,
        expert_steps: int = 2,
        gating_steps: int = 1,
        expert_weighting: str = "gating",
        learn_gating: bool = True,
        gating_actions: str = "data",
        init: str = "em",
        init_iter: int = 4000,
        covariance: str = "full",
        scale_floor: float = 1e-3,
        window_size: int = 1,
        goal_dim: int = 0,
        encoder: str = "auto",
        hidden_size: int = 128,
        n_layers: int = 2,
        n_heads: int = 4,
        max_iter: int = 500,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-3,
        ema_decay: float = 0.998,
        state_noise: float = 0.035,
        device: str | torch.device = "auto",
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
    ) -> None:
        self.teacher = teacher
        self.n_experts = n_experts
        self.objective = objective
        self.noise = noise
        self.noise_min = noise_min
        self.noise_max = noise_max
        self.n_samples = n_samples
        self.likelihood_weight = likelihood_weight
        self.expert_steps = expert_steps
        self.gating_steps = gating_steps
        self.expert_weighting = expert_weighting
        self.learn_gating = learn_gating
        self.gating_actions = gating_actions
        self.init = init
        self.init_iter = init_iter
        self.covariance = covariance
        self.scale_floor = scale_floor
        self.window_size = window_size
        self.goal_dim = goal_dim
        self.encoder = encoder
        self.hidden_size = hidden_size
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.ema_decay = ema_decay
        self.state_noise = state_noise
        self.device = device
        self.random_state = random_state
        self.warm_start = warm_start

    @classmethod
    def paper(cls, **overrides: Any) -> Self:
        """Return a distiller with the published recipe (table 4 of the paper, Avoiding).

        A transformer of its own, random experts, the published objective with noise levels uniform
        in ``[0.2, 0.5]``, 20 000 iterations of batch 1024. The learning rate decays as a cosine
        where the published one is linear.

        Parameters
        ----------
        **overrides
            Constructor parameters that replace published values.

        Returns
        -------
        VDDDistiller

        Examples
        --------
        >>> from skvdd import VDDDistiller
        >>> VDDDistiller.paper(window_size=5).objective
        'published'
        """
        published = {
            "objective": "published",
            "likelihood_weight": 0.0,
            "noise": "interval",
            "noise_min": 0.2,
            "noise_max": 0.5,
            "init": "random",
            "encoder": "transformer",
            "hidden_size": 72,
            "n_layers": 4,
            "n_heads": 4,
            "max_iter": 20_000,
            "batch_size": 1024,
            "learning_rate": 1e-4,
            "weight_decay": 0.0,
            "ema_decay": 0.0,
            "state_noise": 0.0,
        }
        return cls(**{**published, **overrides})

    @with_callbacks
    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: ArrayLike | None = None, *, teacher: Any = None) -> Self:
        """Distil a teacher in the states of ``X``.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            State windows, oldest state first.
        y : array-like of shape (n, d_a) or (n,), or None, default=None
            Demonstrated actions, for the gating and the start of the experts. Without them one
            action is drawn from the teacher for each row, which must then be given.
        teacher : DiffusionPolicy, Pipeline, FrozenEstimator or ScoreTeacher, default=None
            A fitted teacher, used in place of the constructor's. Of a pipeline, the earlier steps
            are applied to the states. Through a grid search a pipeline can only be given to the
            constructor, frozen: scikit-learn takes whatever has a length for data of the rows.

        Returns
        -------
        self : VDDDistiller

        Raises
        ------
        ValueError
            If an argument, the data or the teacher break a rule; before any training.
        NotFittedError
            If the teacher given here is not fitted.
        FloatingPointError
            If a loss ceases to be finite.
        """
        return self._fit(X, y, teacher, partial=False)

    @with_callbacks
    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: ArrayLike, y: ArrayLike | None = None, *, teacher: Any = None) -> Self:
        """Distil in more states: the first call is a `fit`, later ones go on from its weights.

        Each call takes ``max_iter`` iterations, with a learning rate that rises and falls anew, on
        the rows of this call alone: give old and new rows together if the old ones are not to be
        forgotten. Only the first call fits the experts by maximum likelihood. ``history_`` and
        ``n_iter_`` count on; with an integer ``random_state`` each call has random numbers of its
        own.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            State windows, oldest state first, with the columns of the first call.
        y : array-like of shape (n, d_a) or (n,), or None, default=None
            Demonstrated actions, as in `fit`.
        teacher : DiffusionPolicy, Pipeline, FrozenEstimator or ScoreTeacher, default=None
            A fitted teacher with the units of the first call's. ``None`` is the ``teacher_`` that
            the first call fitted, as it is, or what the constructor was given to be used as it
            is. Where the teacher is to learn as well, call its ``partial_fit``, which keeps its
            units, and give it here; that needs a student with an encoder of its own
            (``encoder="mlp"`` or ``"transformer"``).

        Returns
        -------
        self : VDDDistiller

        Raises
        ------
        ValueError
            If an argument, the data or the teacher break a rule; before any training.
        NotFittedError
            If the teacher given here is not fitted.
        FloatingPointError
            If a loss ceases to be finite.
        """
        with self._counting_on():
            return self._fit(X, y, teacher, partial=True)

    # -- private steps ---------------------------------------------------------------------------

    def _fit(self, X: ArrayLike, y: ArrayLike | None, teacher: Any, *, partial: bool) -> Self:
        check_noise_range(self.noise_min, self.noise_max)
        states, actions, teacher = self._check_fit(X, y, teacher, partial)
        digest = self._teacher_digest(teacher)
        rng = self._begin_fit(3, states, actions, partial=partial, teacher=digest)
        view = self._view_teacher(self._find_teacher(teacher, X, y, rng), X, states)
        self._check_against_teacher(view, actions)
        fresh = not self._goes_on(partial)
        if not fresh:
            self._check_same_teacher(view, partial)
        else:
            self.state_scaler_, self.action_scaler_ = view.state_scaler, view.action_scaler
            self.network_ = self._build(view, draw_seed(rng))
        steps = self._prepare(view, states, actions, rng)
        if fresh:
            self._start_experts(steps, draw_seed(rng))
        self._distil(steps)
        return self._end_fit()

    def _check_against_teacher(self, view: TeacherView, actions: NDArray | None) -> None:
        """Raise a ValueError where data or parameters do not fit the teacher."""
        self._check_actions(view, actions)
        low, high = view.noise_min, view.noise_max
        if self.noise in BOUNDED and not low <= self.noise_min < self.noise_max <= high:
            raise ValueError(
                f"noise_min={self.noise_min} and noise_max={self.noise_max} must lie within the "
                f"teacher's noise levels, [{low}, {high}]."
            )
        if self.encoder == "teacher" and view.encoder is None:
            raise ValueError(
                "encoder='teacher' needs a teacher with an encoder of the same states: not a "
                "ScoreTeacher, not architecture='gpt', and not behind a Pipeline. Use "
                "encoder='mlp'."
            )

    def _check_same_teacher(self, view: TeacherView, partial: bool) -> None:
        """Raise a ValueError if going on would mix the units or encoders of two teachers."""
        same = self._has_units_of(view)
        own = self.network_.encoder
        if same and not any(p.requires_grad for p in own.parameters()):
            its = {} if view.encoder is None else view.model.encoder.state_dict()
            same = all(
                name in its and torch.equal(values.cpu(), its[name].cpu())
                for name, values in own.state_dict().items()
            )
        if not same:
            goes_on, way_out = continuation(partial)
            raise ValueError(
                f"{goes_on} with the teacher of the last fit, but this teacher has other units or "
                f"another encoder. {way_out}"
            )

    def _build(self, view: TeacherView, seed: int) -> MixtureNetwork:
        """Return a fresh network; on the teacher's encoder, frozen, if it is to be taken over."""
        taken_over = view.encoder if self.encoder in {"auto", "teacher"} else None
        network = seeded_network(
            lambda: MixtureNetwork(
                taken_over or self._encoder_config(),
                self.n_experts,
                self.n_actions_,
                self.hidden_size,
                self.n_layers,
                self.covariance,
                self.learn_gating,
                self.scale_floor,
            ),
            seed,
        )
        if taken_over:
            network.encoder = copy.deepcopy(view.model.encoder).cpu().requires_grad_(False)
        return network

    def _prepare(
        self,
        view: TeacherView,
        states: NDArray,
        actions: NDArray | None,
        rng: np.random.RandomState,
    ) -> Distillation:
        """Bring everything that the two steps need to the device."""
        device = resolve_device(self.device)
        sampling_seed, training_seed = draw_seed(rng), draw_seed(rng)
        demonstrated = actions if self.gating_actions == "data" else None
        return Distillation(
            network=self._network(),
            teacher=view.model,
            states=self._state_rows(view, states),
            actions=self._action_rows(view, demonstrated, sampling_seed),
            contexts=self._contexts(view),
            shares_encoder=not any(p.requires_grad for p in self.network_.encoder.parameters()),
            objective=self.objective,
            noise=self.noise,
            weighting=self.expert_weighting,
            bounds=(self.noise_min, self.noise_max),
            teacher_bounds=(view.noise_min, view.noise_max),
            n_samples=self.n_samples,
            likelihood_weight=self.likelihood_weight,
            state_noise=self.state_noise,
            generator=batch_generator(device, training_seed),
        )

    def _start_experts(self, steps: Distillation, seed: int) -> None:
        if self.init == "random":
            shape = (self.n_experts, self.n_actions_)
            means = np.random.RandomState(seed).uniform(-1, 1, size=shape)
            scales = torch.ones(self.n_experts)
            steps.network.place_experts(torch.from_numpy(means).float(), scales)
            return
        self._place_experts(steps.actions, seed)
        if self.init == "em":
            update = em_update(
                steps.network,
                steps.states,
                steps.actions,
                state_noise=self.state_noise,
                learning_rate=self.learning_rate,
                generator=steps.generator,
            )
            self._train(
                steps.network,
                [update],
                len(steps.states),
                stage="maximum likelihood",
                max_iter=self.init_iter,
                generator=steps.generator,
            )

    def _distil(self, steps: Distillation) -> None:
        """Alternate the two steps (algorithm 1)."""
        network = self._network()
        steps = replace(steps, network=network)
        parameters = list(network.expert_parameters())
        updates = [
            Update(
                "experts",
                steps.expert_step,
                parameters,
                self.learning_rate,
                self.expert_steps,
                replayable=needs_no_host(steps),
            ),
            Update(
                "gating",
                steps.gating_step,
                list(network.gating.parameters()),
                self.learning_rate,
                self.gating_steps,
                replayable=needs_no_host(steps),
            ),
        ]
        self._train(
            network,
            updates if self.learn_gating else updates[:1],
            len(steps.states),
            stage="distillation",
            max_iter=self.max_iter,
            generator=steps.generator,
        )
