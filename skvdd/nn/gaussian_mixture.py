"""A batch of Gaussian mixtures and its algebra, in log space and without loops over experts.

Axes: rows ``n``, experts ``K``, actions per row ``S``, action dimension ``d_a``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from skvdd.nn.triangular import cholesky, inverse

LOG_2PI = math.log(2.0 * math.pi)


@dataclass(frozen=True)
class GaussianMixture:
    """Parameters of one Gaussian mixture per row.

    Parameters
    ----------
    log_gate : Tensor of shape (n, K)
        Logarithms of the gating probabilities; each row's exponentials sum to one.
    mean : Tensor of shape (n, K, d_a)
        Means of the experts.
    scale_tril : Tensor of shape (n, K, d_a, d_a)
        Lower Cholesky factors of the experts' covariances.

    Examples
    --------
    >>> import torch
    >>> from skvdd.nn.gaussian_mixture import GaussianMixture, log_prob
    >>> origin = torch.zeros(1, 1, 2)
    >>> standard = GaussianMixture(torch.zeros(1, 1), origin, torch.eye(2)[None, None])
    >>> round(log_prob(standard, origin).item(), 4)
    -1.8379
    """

    log_gate: Tensor
    mean: Tensor
    scale_tril: Tensor

    def detach(self) -> GaussianMixture:
        """Return the same mixture, cut from the graph.

        Returns
        -------
        GaussianMixture
        """
        return GaussianMixture(self.log_gate.detach(), self.mean.detach(), self.scale_tril.detach())

    def to(self, *args: object, **kwargs: object) -> GaussianMixture:
        """Return the mixture with each tensor moved or cast.

        Parameters
        ----------
        *args, **kwargs
            Those of ``torch.Tensor.to``.

        Returns
        -------
        GaussianMixture
        """
        moved = (t.to(*args, **kwargs) for t in (self.log_gate, self.mean, self.scale_tril))  # type: ignore[call-overload]
        return GaussianMixture(*moved)

    def __getitem__(self, rows: slice | Tensor) -> GaussianMixture:
        """Return the mixtures of some rows."""
        return GaussianMixture(self.log_gate[rows], self.mean[rows], self.scale_tril[rows])


def component_log_prob(mixture: GaussianMixture, actions: Tensor) -> Tensor:
    """Return ``log N(a; mu_z, L_z L_z^T)`` of every action under every expert of its row.

    Parameters
    ----------
    mixture : GaussianMixture
        ``n`` mixtures of ``K`` experts.
    actions : Tensor of shape (n, S, d_a)
        ``S`` actions for each row.

    Returns
    -------
    Tensor of shape (n, S, K)
        Log-densities in nats.
    """
    white = _whiten(inverse(mixture.scale_tril), mixture, actions)
    return _component_log_prob(mixture, white).transpose(1, 2)


def log_prob(mixture: GaussianMixture, actions: Tensor) -> Tensor:
    """Return ``log q(a|s)`` (eq. 3), shape (n, S), of actions of shape (n, S, d_a)."""
    return torch.logsumexp(_joint(mixture, component_log_prob(mixture, actions)), dim=-1)


def log_responsibilities(mixture: GaussianMixture, actions: Tensor) -> Tensor:
    """Return ``log q(z|a, s)`` (eq. 15), shape (n, S, K), of actions of shape (n, S, d_a).

    Normalized in log space, so that it stays exact however far an action lies from all experts.
    """
    return torch.log_softmax(_joint(mixture, component_log_prob(mixture, actions)), dim=-1)


def action_score(mixture: GaussianMixture, actions: Tensor) -> Tensor:
    r"""Return ``grad_a log q(a|s) = sum_z q(z|a, s) Sigma_z^{-1} (mu_z - a)``.

    Parameters
    ----------
    mixture : GaussianMixture
        ``n`` mixtures of ``K`` experts.
    actions : Tensor of shape (n, S, d_a)
        Where to evaluate.

    Returns
    -------
    Tensor of shape (n, S, d_a)
        The score of the mixture, in closed form.
    """
    whitener = inverse(mixture.scale_tril)
    white = _whiten(whitener, mixture, actions)
    joint = mixture.log_gate[..., None] + _component_log_prob(mixture, white)
    weight = torch.softmax(joint, dim=1)
    # Sigma^{-1} (a - mu) = L^{-T} white
    return -((weight[..., None] * white) @ whitener).sum(dim=1)


def entropy(mixture: GaussianMixture) -> Tensor:
    """Return the differential entropy of each expert, shape (n, K), in nats."""
    d_a = mixture.mean.shape[-1]
    return _log_det(mixture) + 0.5 * d_a * (1.0 + LOG_2PI)


def rsample_experts(mixture: GaussianMixture, noise: Tensor) -> Tensor:
    """Return ``mu_z + L_z eps``, shape (n, K, v, d_a), for noise of that shape."""
    return mixture.mean[:, :, None] + noise @ mixture.scale_tril.mT


def smooth(mixture: GaussianMixture, sigma: Tensor) -> GaussianMixture:
    """Return the mixture convolved with ``N(0, sigma^2 I)``; ``sigma`` has shape (n,)."""
    scale = mixture.scale_tril
    eye = torch.eye(scale.shape[-1], dtype=scale.dtype, device=scale.device)
    covariance = scale @ scale.mT + sigma[:, None, None, None].square() * eye
    return GaussianMixture(mixture.log_gate, mixture.mean, cholesky(covariance))


def affine(mixture: GaussianMixture, shift: Tensor, scale: Tensor) -> GaussianMixture:
    """Return the mixture of ``scale * a + shift``; ``shift`` and ``scale`` have shape (d_a,)."""
    return GaussianMixture(
        mixture.log_gate, mixture.mean * scale + shift, mixture.scale_tril * scale[:, None]
    )


def _whiten(whitener: Tensor, mixture: GaussianMixture, actions: Tensor) -> Tensor:
    """Return ``L_z^{-1} (a - mu_z)``, shape (n, K, S, d_a): experts first, to spare copies."""
    return (actions[:, None] - mixture.mean[:, :, None]) @ whitener.mT


def _component_log_prob(mixture: GaussianMixture, white: Tensor) -> Tensor:
    """Return the log-densities (n, K, S) of whitened actions."""
    distance = white.square().sum(dim=-1)
    constant = _log_det(mixture) + 0.5 * white.shape[-1] * LOG_2PI
    return -0.5 * distance - constant[..., None]


def _log_det(mixture: GaussianMixture) -> Tensor:
    return mixture.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)


def _joint(mixture: GaussianMixture, component: Tensor) -> Tensor:
    return mixture.log_gate[:, None] + component
