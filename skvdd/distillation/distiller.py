"""The distiller of the paper as a scikit-learn estimator."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from skvdd._sklearn import Interval, StrOptions
from skvdd.diffusion.teacher import Teacher
from skvdd.distillation.algorithm import Distillation, noise_levels, start_at_random
from skvdd.distillation.base import TeacherMixin, another_teacher, no_network
from skvdd.encoders import Encoder
from skvdd.mixture.base import BaseMixturePolicy, place_experts
from skvdd.mixture.em import em_stage
from skvdd.nn.mixture_network import MixtureNetwork
from skvdd.training.fit import Fit, Stage


class VDDDistiller(TeacherMixin, BaseMixturePolicy):
    r"""Distill a teacher's score into a mixture of Gaussian experts.

    Variational Diffusion Distillation [1]_ minimizes the reverse Kullback-Leibler divergence
    :math:`KL(q(\cdot|s) \| \pi(\cdot|s))` between a mixture :math:`q` and a diffusion policy
    :math:`\pi` whose density is never evaluated, only its score. The bound of eq. 9 splits it into
    one objective for each expert (eq. 16) and one for the gating (eq. 13); each iteration takes a
    few steps of either. The result acts in one forward pass and has an exact likelihood.

    The defaults are not the paper's, but what has been measured to work better: the experts
    start from a maximum-likelihood fit, the objective is smoothed, so that it is unbiased at every
    noise level (`smoothed_expert_loss`), and a part of the forward divergence keeps modes
    (`likelihood_loss`). `VDDDistiller.paper` gives the published recipe.

    Parameters
    ----------
    teacher : DiffusionPolicy, Pipeline, FrozenEstimator, Teacher or None, default=None
        Teacher to use when `fit` is given none. A policy, or a pipeline that ends in one, is
        cloned and fitted on the data of `fit`; wrapped in ``FrozenEstimator`` it is used as it is,
        and so is a `ScoreTeacher`. ``None`` stands for ``DiffusionPolicy()`` of this
        ``window_size`` and ``goal_dim``.
    n_experts : int, default=8
        Number of experts, ``K``.
    objective : {"smoothed", "published"}, default="smoothed"
        Which objective the experts minimize.
    noise : {"loguniform", "uniform", "anneal"}, default="loguniform"
        Noise level of a step: log-uniform or uniform on ``[noise_min, noise_max]``; ``"anneal"``,
        log-uniform with the upper bound falling from ``noise_max`` to ``noise_min`` over training.
    noise_min, noise_max : float, default=0.1, 0.5
        Bounds of the noise levels, in standardized actions.
    n_samples : int, default=2
        Actions drawn from each expert in a step, ``v``.
    likelihood_weight : float, default=0.3
        Weight of the forward divergence :math:`KL(\pi \| q)` beside the reverse one, estimated on
        the actions of `fit` (`likelihood_loss`). It keeps modes that the reverse one would drop; 0
        is the paper's objective.
    expert_steps : int, default=2
        Optimizer steps of the experts in an iteration, which has one of the gating.
    init : {"kmeans", "random"}, default="kmeans"
        Start of the experts: at clusters of the actions, or with means uniform in ``[-1, 1]`` and
        unit variance.
    init_iter : int, default=4000
        Iterations of maximum likelihood on the actions of `fit` before distillation; 0 for none.
    covariance : {"full", "diag"}, default="full"
        Shape of the experts' covariances.
    scale_floor : float, default=1e-3
        Lowest diagonal entry of the Cholesky factor of an expert's covariance, in standardized
        actions. Where an action is often the same to the digit (a hand that holds its height),
        experts shrink to spikes whose likelihood dominates; a floor of 0.05 prevents that.
    window_size : int, default=1
        States in a row, ``T``; that of the teacher.
    goal_dim : int, default=0
        Columns ``g`` of the goal at the end of a row, as the teacher has them; 0 for none.
    encoder : {"auto", "teacher", "mlp", "transformer"} or Encoder, default="auto"
        Network over the row: the teacher's own, frozen, with a new head on its features, or one
        that is trained: a name, then of this policy's ``hidden_size`` and ``n_layers``, or an
        object of `skvdd.encoders`. ``"auto"`` is the teacher's where it has one, else ``"mlp"``.
    hidden_size, n_layers : int, default=128, 2
        Width and layers of the head, and of an encoder given by name.
    max_iter, batch_size : int, default=500, 256
        Iterations, and rows in a minibatch.
    learning_rate, weight_decay : float, default=1e-3, 1e-3
        AdamW's step size (after a warm-up, decaying as a cosine) and decay.
    ema_decay : float, default=0.998
        Factor of the exponential moving average (EMA) of the weights, which predicts; 0 for none.
    state_noise : float, default=0.035
        Standard deviation of Gaussian noise on the standardized states in training.
    device : str or torch.device, default="auto"
        Where to compute; ``"auto"`` takes a GPU if there is one.
    random_state : int, RandomState or None, default=None
        Source of initial weights, minibatches and training noise.
    warm_start : bool, default=False
        Whether `fit` continues from the weights and normalization of the last one, with the teacher
        that it trained.

    Attributes
    ----------
    teacher_ : DiffusionPolicy or Pipeline
        The teacher, only if it was fitted here.
    network_ : MixtureNetwork
        The trained network, with its normalization, which is the teacher's where it has one.
    action_shape_ : tuple of int
        Shape of an action as `fit` was given it: ``(d_a,)``, ``()`` or ``(H, d_a)``.
    horizon_ : int
        Actions in a chunk, ``H``; 1 for single actions.
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
        "noise": [StrOptions({"loguniform", "uniform", "anneal"})],
        "noise_min": [Interval(Real, 0, None, closed="neither")],
        "noise_max": [Interval(Real, 0, None, closed="neither")],
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "likelihood_weight": [Interval(Real, 0, None, closed="left")],
        "expert_steps": [Interval(Integral, 1, None, closed="left")],
        "init": [StrOptions({"kmeans", "random"})],
        "init_iter": [Interval(Integral, 0, None, closed="left")],
    }
    _detach_gating = True  # it assigns the experts, and does not shape their features

    def __init__(
        self,
        teacher: BaseEstimator | Teacher | None = None,
        *,
        n_experts: int = 8,
        objective: str = "smoothed",
        noise: str = "loguniform",
        noise_min: float = 0.1,
        noise_max: float = 0.5,
        n_samples: int = 2,
        likelihood_weight: float = 0.3,
        expert_steps: int = 2,
        init: str = "kmeans",
        init_iter: int = 4000,
        covariance: str = "full",
        scale_floor: float = 1e-3,
        window_size: int = 1,
        goal_dim: int = 0,
        encoder: str | Encoder = "auto",
        hidden_size: int = 128,
        n_layers: int = 2,
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
        self.init = init
        self.init_iter = init_iter
        self.covariance = covariance
        self.scale_floor = scale_floor
        self.window_size = window_size
        self.goal_dim = goal_dim
        self.encoder = encoder
        self.hidden_size = hidden_size
        self.n_layers = n_layers
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
            "noise": "uniform",
            "noise_min": 0.2,
            "noise_max": 0.5,
            "init": "random",
            "init_iter": 0,
            "encoder": "transformer",
            "hidden_size": 72,
            "n_layers": 4,
            "max_iter": 20_000,
            "batch_size": 1024,
            "learning_rate": 1e-4,
            "weight_decay": 0.0,
            "ema_decay": 0.0,
            "state_noise": 0.0,
        }
        return cls(**{**published, **overrides})

    # -- private steps ---------------------------------------------------------------------------

    def _complete(self, fit: Fit) -> Any:
        if self.encoder == "teacher" and teacher_encoder(fit) is None:
            raise ValueError(no_network(self))
        return super()._complete(fit)

    def _check_same_teacher(self, fit: Fit, partial: bool) -> None:
        super()._check_same_teacher(fit, partial)
        own = self.network_
        if own.encoder_frozen:
            its = teacher_encoder(fit)
            states = {} if its is None else its.encoder.state_dict()
            same = all(
                name in states and torch.equal(values.cpu(), states[name].cpu())
                for name, values in own.encoder.state_dict().items()
            )
            if not same:
                raise ValueError(another_teacher("another encoder", partial))

    def _build(self, fit: Fit) -> MixtureNetwork:
        """Return a fresh network; on the teacher's encoder, frozen, if it is to be taken over."""
        its = teacher_encoder(fit) if self.encoder in ("auto", "teacher") else None
        return MixtureNetwork(
            fit.data.layout,
            fit.data.n_actions,
            self._make_encoder() if its is None else its.config["encoder"],
            self.n_experts,
            self.hidden_size,
            self.n_layers,
            self.covariance,
            self.scale_floor,
            self._detach_gating,
            encoder_frozen=its is not None,
        )

    def _initialize(self, fit: Fit) -> None:
        super()._initialize(fit)
        network: Any = fit.network
        if network.encoder_frozen:
            network.encoder.load_state_dict(teacher_encoder(fit).encoder.state_dict())

    def _stages(self, fit: Fit) -> Iterator[Stage]:
        if fit.is_fresh:
            if self.init == "random":
                start_at_random(fit.network, fit.seed())
            else:
                place_experts(fit)
            if self.init_iter:
                yield em_stage(fit, self.init_iter, counts=False)
        yield Stage(
            "distillation", self._distillation(fit).updates(self.expert_steps), self.max_iter
        )

    def _distillation(self, fit: Fit) -> Distillation:
        return Distillation(
            fit,
            levels=self._draw_levels,
            objective=self.objective,
            n_samples=self.n_samples,
            likelihood_weight=self.likelihood_weight,
        )

    def _draw_levels(self, uniform: Tensor, progress: float | Tensor) -> Tensor:
        """Return the noise levels (n,) of a step, of uniform numbers (n,)."""
        return noise_levels(self.noise, uniform, progress, self.noise_min, self.noise_max)


def teacher_encoder(fit: Fit) -> Any:
    """Return the teacher's network if it has an encoder that a student can take over."""
    network = fit.teacher.network
    return network if network is not None and hasattr(network, "encoder") else None
