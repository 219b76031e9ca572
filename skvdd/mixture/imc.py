"""Mixtures of experts by the information-maximizing curriculum."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from skvdd._sklearn import Interval
from skvdd.base.queries import MAX_ACTIONS
from skvdd.encoders import Encoder
from skvdd.mixture.base import BaseMixturePolicy, place_experts
from skvdd.mixture.em import MixtureLoss, weighted_loss
from skvdd.nn import gaussian_mixture as gm
from skvdd.nn.gaussian_mixture import GaussianMixture
from skvdd.training.fit import Fit, Stage
from skvdd.training.loop import Loss, Update
from skvdd.training.rows import is_resident


@dataclass(frozen=True)
class Curriculum:
    """Which rows each expert learns from.

    Parameters
    ----------
    log_weight : Tensor of shape (n, K)
        ``log w_nz``, at most 0.
    log_responsibility : Tensor of shape (n, K)
        ``log p(z|n)``, the fraction of each expert in the weights of a row.
    """

    log_weight: Tensor
    log_responsibility: Tensor


def next_curriculum(component: Tensor, log_responsibility: Tensor, eta: float) -> Curriculum:
    r"""Return the curriculum of the next round.

    .. math:: \log w_{nz} = \log N(a_n; \mu_z(s_n), \Sigma_z(s_n)) / \eta + \log p(z|n), \quad
              p(z|n) \leftarrow w_{nz} / \sum_j w_{nj}

    Parameters
    ----------
    component : Tensor of shape (n, K)
        Log-density of each expert at the action of each row.
    log_responsibility : Tensor of shape (n, K)
        ``log p(z|n)`` of the round before.
    eta : float
        Pacing.

    Returns
    -------
    Curriculum
        The weights of a row shifted so that the largest is one.
    """
    log_weight = component / eta + log_responsibility
    return Curriculum(
        log_weight - log_weight.amax(dim=1, keepdim=True), torch.log_softmax(log_weight, dim=1)
    )


def imc_loss(
    mixture: GaussianMixture,
    actions: Tensor,
    curriculum: Curriculum,
    weight: Tensor | None = None,
) -> MixtureLoss:
    """Return the objective of one round on some rows.

    Parameters
    ----------
    mixture : GaussianMixture
        Mixtures of ``n`` states.
    actions : Tensor of shape (n, d_a)
        The action taken in each.
    curriculum : Curriculum
        Of these rows.
    weight : Tensor of shape (n,), default=None
        Weight of each state; ``None`` is one for all.

    Returns
    -------
    MixtureLoss
        Differentiable in the mixture, the curriculum held fixed.
    """
    component = gm.component_log_prob(mixture, actions[:, None])[:, 0]
    target = curriculum.log_responsibility.exp()
    return weighted_loss(mixture, component, curriculum.log_weight.exp(), target, weight)


class _Rounds:
    """The optimizer step of the curriculum, which weights all rows anew in each round."""

    def __init__(self, fit: Fit, eta: float, round_iter: int) -> None:
        self.fit, self.eta, self.round_iter = fit, eta, round_iter
        self.network: Any = fit.network
        n_experts = int(fit.network.config["n_experts"])
        shape = (len(fit.rows), n_experts)
        even = torch.full(shape, -math.log(n_experts), dtype=torch.float32, device=fit.device)
        self.curriculum = Curriculum(even, even.clone())

    @property
    def memory(self) -> dict[str, Tensor]:
        """What is kept from step to step, changed in place."""
        return dict(vars(self.curriculum))

    def prepare(self, iteration: int) -> None:
        """Begin a round if one is due."""
        if iteration % self.round_iter == 0:
            self._advance()

    def step(self, index: Tensor, progress: float | Tensor) -> Loss:
        """Return the objective on some rows."""
        rows = self.fit.noised_rows(index)
        chosen = Curriculum(
            self.curriculum.log_weight.index_select(0, index),
            self.curriculum.log_responsibility.index_select(0, index),
        )
        actions = self.fit.actions.index_select(0, index)
        return imc_loss(self.network(rows), actions, chosen).as_loss

    @torch.no_grad()
    def _advance(self) -> None:
        """Weight all rows by how well the experts explain them now."""
        curriculum = (self.curriculum.log_weight, self.curriculum.log_responsibility)
        parts = (self.fit.rows, self.fit.actions, *curriculum)
        for block in zip(*(part.split(MAX_ACTIONS) for part in parts), strict=True):
            rows, actions, log_weight, log_responsibility = block
            component = gm.component_log_prob(self.network(rows), actions[:, None])[:, 0]
            new = next_curriculum(component, log_responsibility, self.eta)
            log_weight.copy_(new.log_weight)  # into the whole: blocks are views
            log_responsibility.copy_(new.log_responsibility)


class IMCPolicy(BaseMixturePolicy):
    r"""A mixture of Gaussian experts, trained by the information-maximizing curriculum.

    The mode-seeking baseline ("IMC-GPT" in the VDD paper [2]_). Every expert has a curriculum over
    the demonstrations and learns from the rows that it already explains. In each round the weights

    .. math:: \log w_{nz} = \log N(a_n; \mu_z(s_n), \Sigma_z(s_n)) / \eta + \log p(z|n), \quad
              p(z|n) = w_{nz} / \sum_j w_{nj}

    are computed for all rows, with :math:`p(z|n)` of the round before; then the experts take
    gradient steps of weighted maximum likelihood, and the gating one on the cross-entropy against
    :math:`p(z|n)`. Since a round builds on the last, rows drift to the expert that explains them
    best, the faster the smaller :math:`\eta`; where maximum likelihood would let several experts
    average, one takes over. The experts start at the clusters of the actions (k-means).

    Parameters
    ----------
    n_experts : int, default=8
        Number of experts, ``K``.
    eta : float, default=1.0
        Pacing :math:`\eta`: how soft the choice of a row's expert is in a round.
    round_iter : int, default=200
        Iterations between two updates of the curriculum, which look at all rows.
    covariance : {"full", "diag"}, default="full"
        Shape of the experts' covariances.
    scale_floor : float, default=1e-3
        Lowest diagonal entry of the Cholesky factor of an expert's covariance, in standardized
        actions. Where an action is often the same to the digit (a hand that holds its height),
        experts shrink to spikes whose likelihood dominates; a floor of 0.05 prevents that.
    window_size : int, default=1
        States in a row, ``T``.
    goal_dim : int, default=0
        Columns ``g`` of the goal at the end of a row; 0 for none.
    encoder : {"mlp", "transformer"} or Encoder, default="mlp"
        Network over the row: a name, then of this policy's ``hidden_size`` and ``n_layers``, or an
        object of `skvdd.encoders`.
    hidden_size, n_layers : int, default=128, 2
        Width and layers of the head, and of an encoder given by name.
    max_iter, batch_size : int, default=12000, 256
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
        Whether `fit` continues from the weights and normalization of the last one; the
        curriculum begins anew.

    Attributes
    ----------
    network_ : MixtureNetwork
        The trained network, with its normalization.
    action_shape_ : tuple of int
        Shape of an action as `fit` was given it: ``(d_a,)``, ``()`` or ``(H, d_a)``.
    horizon_ : int
        Actions in a chunk, ``H``; 1 for single actions.
    n_iter_ : int
        Iterations done.
    history_ : list of dict
        One row for each report: iteration, learning rate, mean losses.
    interrupted_ : bool
        Whether a KeyboardInterrupt ended `fit`.
    n_features_in_ : int
        Columns of a flat row, ``T * d``.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Their names, if ``X`` had any.

    References
    ----------
    .. [1] Blessing, Celik, Jia, Reuss, Li, Lioutikov, Neumann (2023), "Information maximizing
       curriculum: a curriculum-based approach for learning versatile skills", NeurIPS.
    .. [2] Zhou et al. (2024), "Variational distillation of diffusion policies into mixture of
       experts", section 5.3.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd import IMCPolicy
    >>> rng = np.random.RandomState(0)
    >>> states = rng.uniform(-1, 1, size=(200, 1))
    >>> actions = np.sign(rng.standard_normal((200, 1))) * (1 + states)  # left or right
    >>> policy = IMCPolicy(n_experts=2, max_iter=100, random_state=0).fit(states, actions)
    >>> policy.gating(states[:3]).shape
    (3, 2)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseMixturePolicy._parameter_constraints,
        "eta": [Interval(Real, 0, None, closed="neither")],
        "round_iter": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        n_experts: int = 8,
        *,
        eta: float = 1.0,
        round_iter: int = 200,
        covariance: str = "full",
        scale_floor: float = 1e-3,
        window_size: int = 1,
        goal_dim: int = 0,
        encoder: str | Encoder = "mlp",
        hidden_size: int = 128,
        n_layers: int = 2,
        max_iter: int = 12_000,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-3,
        ema_decay: float = 0.998,
        state_noise: float = 0.035,
        device: str | torch.device = "auto",
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
    ) -> None:
        self.n_experts = n_experts
        self.eta = eta
        self.round_iter = round_iter
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

    def _stages(self, fit: Fit) -> Iterator[Stage]:
        if fit.is_fresh:
            place_experts(fit)
        rounds = _Rounds(fit, self.eta, self.round_iter)
        update = Update(
            "curriculum_nll",
            rounds.step,
            [p for p in fit.network.parameters() if p.requires_grad],
            memory=rounds.memory,
            prepare=rounds.prepare,
            replayable=is_resident(fit.rows, fit.actions),
        )
        yield Stage("curriculum", [update], self.max_iter)
