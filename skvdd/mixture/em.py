"""Mixtures of experts by maximum likelihood: expectation-maximization with minibatches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skvdd.encoders import Encoder
from skvdd.mixture.base import BaseMixturePolicy, place_experts
from skvdd.nn import gaussian_mixture as gm
from skvdd.nn.gaussian_mixture import GaussianMixture
from skvdd.training.fit import Fit, Stage
from skvdd.training.loop import Loss, Update
from skvdd.training.rows import is_resident


@dataclass(frozen=True)
class MixtureLoss:
    """The two halves of a weighted maximum-likelihood objective, averaged over rows.

    Parameters
    ----------
    experts : Tensor of shape ()
        ``-E sum_z w_z log N_z(a|s)``.
    gating : Tensor of shape ()
        ``-E sum_z p_z log xi_z(s)``.
    """

    experts: Tensor
    gating: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum."""
        return self.experts + self.gating

    @property
    def as_loss(self) -> Loss:
        """The sum, with both halves as columns of the history."""
        return Loss(self.total, {"experts": self.experts.detach(), "gating": self.gating.detach()})


def weighted_loss(
    mixture: GaussianMixture,
    component: Tensor,
    expert_weight: Tensor,
    gating_target: Tensor,
    weight: Tensor | None = None,
) -> MixtureLoss:
    """Return weighted maximum likelihood of the experts and cross-entropy of the gating.

    Parameters
    ----------
    mixture : GaussianMixture
        Mixtures of ``n`` states.
    component : Tensor of shape (n, K)
        Log-density of each expert at the action of each state.
    expert_weight, gating_target : Tensor of shape (n, K)
        Weights of the experts, and probabilities that the gating should have.
    weight : Tensor of shape (n,), default=None
        Weight of each state; ``None`` is one for all.

    Returns
    -------
    MixtureLoss
        Differentiable in mixture and component.
    """
    experts = (expert_weight * component).sum(dim=-1)
    gating = (gating_target * mixture.log_gate).sum(dim=-1)
    if weight is not None:
        experts, gating = weight * experts, weight * gating
    return MixtureLoss(-experts.mean(), -gating.mean())


def em_loss(mixture: GaussianMixture, actions: Tensor, weight: Tensor | None = None) -> MixtureLoss:
    """Return the objective of the M-step, after an E-step on the same rows.

    Its gradient is that of the negative log-likelihood.

    Parameters
    ----------
    mixture : GaussianMixture
        Mixtures of ``n`` states.
    actions : Tensor of shape (n, d_a)
        The action taken in each.
    weight : Tensor of shape (n,), default=None
        Weight of each state; ``None`` is one for all.

    Returns
    -------
    MixtureLoss
        Differentiable in the mixture, with the responsibilities frozen.
    """
    component = gm.component_log_prob(mixture, actions[:, None])[:, 0]
    # E-step: r_z = q(z|a, s), held fixed.
    responsibility = torch.softmax(mixture.log_gate + component, dim=-1).detach()
    # M-step: weighted maximum likelihood and cross-entropy.
    return weighted_loss(mixture, component, responsibility, responsibility, weight)


def em_stage(fit: Fit, max_iter: int, *, counts: bool = True) -> Stage:
    """Return the training run of EM on the rows and actions of a fit.

    Parameters
    ----------
    fit : Fit
        Its network is a `MixtureNetwork`.
    max_iter : int
        Iterations.
    counts : bool, default=True
        Whether they count as ``n_iter_``.

    Returns
    -------
    Stage
    """
    network, rows, actions = fit.network, fit.rows, fit.actions

    def loss(index: Tensor, progress: float | Tensor) -> Loss:
        noised = fit.noised_rows(index)
        return em_loss(network(noised), actions.index_select(0, index)).as_loss

    parameters = [p for p in network.parameters() if p.requires_grad]
    replayable = is_resident(rows, actions)
    update = Update("complete_nll", loss, parameters, replayable=replayable)
    return Stage("maximum likelihood", [update], max_iter, counts)


class GaussianMoEPolicy(BaseMixturePolicy):
    r"""A mixture of Gaussian experts, trained by maximum likelihood.

    The baseline that a distilled mixture has to beat ("EM-GPT" in the VDD paper). Every minibatch
    is one step of expectation-maximization: the responsibilities
    :math:`r_{nz} \propto \xi_z(s_n) N(a_n; \mu_z(s_n), \Sigma_z(s_n))` are computed and frozen,
    then experts and gating take a gradient step on

    .. math:: -\sum_n \sum_z r_{nz} \big[ \log N(a_n; \mu_z(s_n), \Sigma_z(s_n))
              + \log \xi_z(s_n) \big] .

    The experts start at the clusters of the actions (k-means).

    Parameters
    ----------
    n_experts : int, default=8
        Number of experts, ``K``.
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
        Whether `fit` continues from the weights and normalization of the last one.

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
    .. [1] Zhou et al. (2024), "Variational distillation of diffusion policies into mixture of
       experts", section 5.3.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd import GaussianMoEPolicy
    >>> rng = np.random.RandomState(0)
    >>> states = rng.uniform(-1, 1, size=(200, 1))
    >>> actions = np.sign(rng.standard_normal((200, 1))) * (1 + states)  # left or right
    >>> policy = GaussianMoEPolicy(n_experts=2, max_iter=100, random_state=0).fit(states, actions)
    >>> policy.gating(states[:3]).shape
    (3, 2)
    """

    def __init__(
        self,
        n_experts: int = 8,
        *,
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
        yield em_stage(fit, self.max_iter)
