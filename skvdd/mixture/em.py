"""Mixtures of experts by maximum likelihood: expectation-maximisation with minibatches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skvdd.mixture.imitation import ImitatingMixturePolicy
from skvdd.nn import gaussian_mixture as gm
from skvdd.nn.gaussian_mixture import GaussianMixture
from skvdd.nn.mixture_network import MixtureNetwork
from skvdd.streaming import Rows, is_resident
from skvdd.training import Loss, Update, add_noise


@dataclass(frozen=True)
class EMLoss:
    """The two halves of the expected complete log-likelihood, negative and averaged over rows.

    Parameters
    ----------
    experts : Tensor of shape ()
        ``-E sum_z r_z log N_z(a|s)``.
    gating : Tensor of shape ()
        ``-E sum_z r_z log xi_z(s)``.
    """

    experts: Tensor
    gating: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum; its gradient is that of the negative log-likelihood."""
        return self.experts + self.gating


def em_loss(mixture: GaussianMixture, actions: Tensor) -> EMLoss:
    """Return the objective of the M-step, after an E-step on the same rows.

    Parameters
    ----------
    mixture : GaussianMixture
        Mixtures of ``n`` states.
    actions : Tensor of shape (n, d_a)
        The action taken in each.

    Returns
    -------
    EMLoss
        Differentiable in the mixture, with the responsibilities frozen.
    """
    component = gm.component_log_prob(mixture, actions[:, None])[:, 0]
    # E-step: r_z = q(z|a, s), held fixed.
    responsibility = torch.softmax(mixture.log_gate + component, dim=-1).detach()
    # M-step: weighted maximum likelihood and cross-entropy.
    return EMLoss(
        experts=-(responsibility * component).sum(dim=-1).mean(),
        gating=-(responsibility * mixture.log_gate).sum(dim=-1).mean(),
    )


def em_update(
    network: MixtureNetwork,
    states: Rows,
    actions: Rows,
    *,
    state_noise: float,
    learning_rate: float,
    generator: torch.Generator,
) -> Update:
    """Return the optimiser step of EM on standardised states (n, T, d) and actions (n, d_a)."""

    def loss(rows: Tensor, progress: float | Tensor) -> Loss:
        noised = add_noise(states.index_select(0, rows), state_noise, generator)
        terms = em_loss(network(noised), actions.index_select(0, rows))
        return Loss(
            terms.total, {"experts": terms.experts.detach(), "gating": terms.gating.detach()}
        )

    parameters = [p for p in network.parameters() if p.requires_grad]
    replayable = is_resident(states, actions)
    return Update("complete_nll", loss, parameters, learning_rate, replayable=replayable)


class GaussianMoEPolicy(ImitatingMixturePolicy):
    r"""A mixture of Gaussian experts, trained by maximum likelihood.

    The baseline that a distilled mixture has to beat ("EM-GPT" in the VDD paper). Every minibatch
    is one step of expectation-maximisation: the responsibilities
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
        Lowest diagonal entry of the Cholesky factor of an expert's covariance, in standardised
        actions. Where an action is often the same to the digit (a hand that holds its height),
        experts shrink to spikes whose likelihood drowns all else; a floor of 0.05 prevents that.
    window_size : int, default=1
        States in a row, ``T``.
    goal_dim : int, default=0
        Columns ``g`` of the goal at the end of a row; 0 for none.
    encoder : {"mlp", "transformer"}, default="mlp"
        Network over the state window.
    hidden_size, n_layers, n_heads : int, default=128, 2, 4
        Width, layers of encoder and head, attention heads (transformer only).
    max_iter, batch_size : int, default=12000, 256
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
    network_ : MixtureNetwork
        The trained network, in standardised units.
    state_scaler_, action_scaler_ : StandardScaler
        Units of states and actions.
    n_actions_ : int
        Action dimension ``d_a``.
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

    _stage = "maximum likelihood"

    def __init__(
        self,
        n_experts: int = 8,
        *,
        covariance: str = "full",
        scale_floor: float = 1e-3,
        window_size: int = 1,
        goal_dim: int = 0,
        encoder: str = "mlp",
        hidden_size: int = 128,
        n_layers: int = 2,
        n_heads: int = 4,
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

    def _update(
        self, network: MixtureNetwork, states: Rows, actions: Rows, generator: torch.Generator
    ) -> Update:
        return em_update(
            network,
            states,
            actions,
            state_noise=self.state_noise,
            learning_rate=self.learning_rate,
            generator=generator,
        )
