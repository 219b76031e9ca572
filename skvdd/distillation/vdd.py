"""The objectives of variational diffusion distillation: a mixture that follows a score.

Equation numbers are those of Zhou et al. (2024). Axes: rows ``n``, experts ``K``, samples of each
expert ``v``, actions ``d_a``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skvdd.nn import gaussian_mixture as gm
from skvdd.nn.gaussian_mixture import GaussianMixture


@dataclass(frozen=True)
class ExpertLoss:
    """The experts' objective and its parts, before weighting and averaging.

    Parameters
    ----------
    total : Tensor of shape ()
        What is minimized.
    score : Tensor of shape (n, K, v)
        ``f(a, s, t) . a``, whose gradient is the score trick of eq. 7.
    log_responsibility : Tensor of shape (n, K, v)
        ``log q(z|a, s)`` of the expert that drew the action: experts repel each other.
    entropy : Tensor of shape (n, K)
        Entropy of each expert.

    Examples
    --------
    It comes from `expert_loss`:

    >>> import torch
    >>> from skvdd.distillation.vdd import expert_loss
    >>> from skvdd.nn.gaussian_mixture import GaussianMixture
    >>> mixture = GaussianMixture(torch.zeros(1, 1), torch.zeros(1, 1, 1), torch.ones(1, 1, 1, 1))
    >>> loss = expert_loss(mixture, torch.ones(1, 1, 4, 1), -torch.ones(1, 1, 4, 1))
    >>> loss.score.mean(), loss.log_responsibility.mean()  # one expert explains everything
    (tensor(-1.), tensor(0.))
    """

    total: Tensor
    score: Tensor
    log_responsibility: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class SmoothedLoss:
    """The smoothed objective of the experts.

    Parameters
    ----------
    total : Tensor of shape ()
        A surrogate whose gradient is that of the divergence; its value means nothing.
    gap : Tensor of shape (n, K, v, d_a)
        Score of the noised student minus score of the noised teacher: zero where they agree.

    Examples
    --------
    It comes from `smoothed_expert_loss`; here of one standard normal expert, and a teacher that is
    the same at noise level 1:

    >>> import torch
    >>> from skvdd.distillation.vdd import smoothed_expert_loss
    >>> from skvdd.nn.gaussian_mixture import GaussianMixture
    >>> mixture = GaussianMixture(torch.zeros(1, 1), torch.zeros(1, 1, 1), torch.ones(1, 1, 1, 1))
    >>> noisy = torch.tensor([[[[2.0]]]])  # at this level the variance of both is two
    >>> smoothed_expert_loss(mixture, noisy, -noisy / 2.0, torch.ones(1, 1)).gap.abs().max() < 1e-6
    tensor(True)
    """

    total: Tensor
    gap: Tensor


def expert_loss(
    mixture: GaussianMixture,
    samples: Tensor,
    scores: Tensor,
    *,
    weighting: str = "gating",
    weight: Tensor | None = None,
) -> ExpertLoss:
    r"""Return the published objective of the experts (eq. 16).

    .. math:: -\frac{1}{nK} \sum_{s, z} \xi_z(s) \Big\{ E_{a \sim q(\cdot|s, z)} \big[
              f(a, s, t) \cdot a + \log \tilde q(z|a, s) \big] + H(q(\cdot|s, z)) \Big\}

    Gradients flow through the samples and the entropy, never through the score, the gating or the
    parameters inside the responsibilities.

    Parameters
    ----------
    mixture : GaussianMixture
        The student in ``n`` states.
    samples : Tensor of shape (n, K, v, d_a)
        Reparameterised draws ``mu_z + L_z eps`` of each expert.
    scores : Tensor of shape (n, K, v, d_a)
        The teacher's scores at the samples.
    weighting : {"gating", "uniform"}, default="gating"
        Weight of each expert: its detached gating probability, or ``1 / K``.
    weight : Tensor of shape (n,), default=None
        Weight of each state; ``None`` is one for all.

    Returns
    -------
    ExpertLoss
        The objective and its parts.

    Examples
    --------
    One standard normal expert, whose entropy is 1.419, and a teacher without preferences:

    >>> import torch
    >>> from skvdd.distillation.vdd import expert_loss
    >>> from skvdd.nn.gaussian_mixture import GaussianMixture
    >>> mixture = GaussianMixture(torch.zeros(1, 1), torch.zeros(1, 1, 1), torch.ones(1, 1, 1, 1))
    >>> samples = torch.zeros(1, 1, 4, 1)
    >>> print(f"{expert_loss(mixture, samples, torch.zeros_like(samples)).total:.3f}")
    -1.419
    """
    score = (scores.detach() * samples).sum(dim=-1)  # eq. 7: gradient f . da/dphi
    log_responsibility = _own_log_responsibility(mixture.detach(), samples)  # eq. 15
    entropy = gm.entropy(mixture)
    objective = (score + log_responsibility).mean(dim=2) + entropy  # eq. 16
    total = -(_expert_weight(mixture, weighting, weight) * objective).mean()
    return ExpertLoss(total, score, log_responsibility, entropy)


def smoothed_expert_loss(
    mixture: GaussianMixture,
    samples: Tensor,
    scores: Tensor,
    sigma: Tensor,
    *,
    weighting: str = "gating",
    weight: Tensor | None = None,
    smoothed: GaussianMixture | None = None,
) -> SmoothedLoss:
    r"""Return a surrogate of :math:`E_\sigma\, \sigma\, KL(q_\sigma \| \pi_\sigma)`.

    The published form asks the score of the noised teacher at samples of the clean student, which
    widens every expert by about :math:`\sigma^2`. Here the student is noised too: the samples
    carry noise of the same level, and :math:`q_\sigma` is the mixture with covariances
    :math:`L_z L_z^T + \sigma^2 I`, so the optimum is the teacher at every noise level.

    The decomposition of eq. 8 is exact for :math:`\tilde q = q`, and since
    :math:`\log q = \log \xi_z + \log q_z - \log q(z|a)`, the gradient of eq. 16 is that of

    .. math:: \mathrm{sg}\big[\nabla_a \log q_\sigma(a|s) - \nabla_a \log \pi_\sigma(a|s)\big]
              \cdot a

    up to terms of zero mean. This form has no noise left where student and teacher agree
    ("sticking the landing", Roeder et al., 2017).

    Parameters
    ----------
    mixture : GaussianMixture
        The student in ``n`` states.
    samples : Tensor of shape (n, K, v, d_a)
        ``mu_z + L_z eps + sigma eps'``.
    scores : Tensor of shape (n, K, v, d_a)
        Scores of the teacher, noised by ``sigma``, at the samples.
    sigma : Tensor of shape (n,)
        Noise level of each state.
    weighting : {"gating", "uniform"}, default="gating"
        Weight of each expert: its detached gating probability, or ``1 / K``.
    weight : Tensor of shape (n,), default=None
        Weight of each state; ``None`` is one for all.
    smoothed : GaussianMixture, default=None
        ``smooth(mixture, sigma)``, where it is at hand.

    Returns
    -------
    SmoothedLoss
        The surrogate, and the gap between the scores.

    Examples
    --------
    A teacher that is the same standard normal leaves no gap; noised by 1 its score is ``-a / 2``:

    >>> import torch
    >>> from skvdd.distillation.vdd import smoothed_expert_loss
    >>> from skvdd.nn.gaussian_mixture import GaussianMixture
    >>> mixture = GaussianMixture(torch.zeros(1, 1), torch.zeros(1, 1, 1), torch.ones(1, 1, 1, 1))
    >>> samples = torch.ones(1, 1, 4, 1)
    >>> loss = smoothed_expert_loss(mixture, samples, -samples / 2, torch.ones(1))
    >>> bool(loss.gap.abs().max() < 1e-6)
    True
    """
    smoothed = gm.smooth(mixture.detach(), sigma) if smoothed is None else smoothed.detach()
    own_score = gm.action_score(smoothed, samples.detach().flatten(1, 2)).view_as(samples)
    gap = (own_score - scores).detach()
    surrogate = (gap * samples).sum(dim=-1).mean(dim=2)
    weights = sigma[:, None] * _expert_weight(mixture, weighting, weight)
    return SmoothedLoss((weights * surrogate).mean(), gap)


def likelihood_loss(mixture: GaussianMixture, actions: Tensor, weight: Tensor) -> Tensor:
    r"""Return the forward half of the experts' objective, on actions of the teacher.

    .. math:: -\frac{1}{nK} \sum_{s, z} w_s\, r_z(a, s) \log q(a|s, z), \quad
              r_z = \mathrm{sg}\big[ q(z|a, s) \big]

    Its gradient in the experts is that of the weighted negative log-likelihood, the divergence
    :math:`KL(\pi \| q)` up to a constant, over ``K``: the direction in which the gating learns
    (eq. 14), for the experts. A divergence :math:`KL(q \| \pi)` alone may drop a mode at no
    cost; this one cannot.

    Parameters
    ----------
    mixture : GaussianMixture
        The student in ``n`` states, convolved with noise if the actions carry any.
    actions : Tensor of shape (n, d_a)
        An action of the teacher in each.
    weight : Tensor of shape (n,)
        Weight ``w`` of each state.

    Returns
    -------
    Tensor of shape ()
        Mean over rows and experts.

    Examples
    --------
    >>> import torch
    >>> from skvdd.distillation.vdd import likelihood_loss
    >>> from skvdd.nn.gaussian_mixture import GaussianMixture
    >>> mixture = GaussianMixture(torch.zeros(1, 1), torch.zeros(1, 1, 1), torch.ones(1, 1, 1, 1))
    >>> print(f"{likelihood_loss(mixture, torch.zeros(1, 1), torch.ones(1)):.3f}")  # ln(2 pi) / 2
    0.919
    """
    component = gm.component_log_prob(mixture, actions[:, None])[:, 0]
    responsibility = torch.softmax(mixture.log_gate + component, dim=1).detach()  # eq. 15
    return -(weight[:, None] * responsibility * component).mean()


def gating_loss(
    log_gate: Tensor, log_responsibilities: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Return the cross-entropy of the gating against responsibilities (eq. 13).

    Parameters
    ----------
    log_gate : Tensor of shape (n, K)
        ``log xi_z(s)``.
    log_responsibilities : Tensor of shape (n, K)
        ``log q(z|a, s)`` at actions of the teacher (eq. 15); not differentiated.
    weight : Tensor of shape (n,), default=None
        Weight of each state; ``None`` is one for all.

    Returns
    -------
    Tensor of shape ()
        Mean over rows and experts, as in the published code.

    Examples
    --------
    >>> import torch
    >>> from skvdd.distillation.vdd import gating_loss
    >>> even = torch.full((1, 2), 0.5).log()
    >>> print(f"{gating_loss(even, even):.3f}")  # ln(2) / 2
    0.347
    """
    cross_entropy = -log_responsibilities.detach().exp() * log_gate
    return (cross_entropy if weight is None else weight[:, None] * cross_entropy).mean()


def _own_log_responsibility(mixture: GaussianMixture, samples: Tensor) -> Tensor:
    """Return ``log q(z|a, s)`` of the expert ``z`` that drew each sample, (n, K, v)."""
    every = gm.log_responsibilities(mixture, samples.flatten(1, 2))
    every = every.view(*samples.shape[:3], -1)
    return every.diagonal(dim1=1, dim2=3).transpose(1, 2)


def _expert_weight(mixture: GaussianMixture, weighting: str, weight: Tensor | None) -> Tensor:
    gate = mixture.log_gate.detach().exp()
    experts = gate if weighting == "gating" else torch.full_like(gate, 1.0 / gate.shape[1])
    return experts if weight is None else weight[:, None] * experts
