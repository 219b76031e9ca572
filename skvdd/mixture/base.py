"""The queries of every mixture-of-experts policy, however it was trained."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr
from sklearn.cluster import KMeans
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skvdd._sklearn import Interval, StrOptions
from skvdd.base import DensityPolicy
from skvdd.base.validation import check_n_samples
from skvdd.control.deployment import Deployment, MixtureGraph
from skvdd.nn import gaussian_mixture as gm
from skvdd.nn.gaussian_mixture import GaussianMixture
from skvdd.nn.mixture_network import MixtureNetwork
from skvdd.randomness import RandomStates, row_noise
from skvdd.training.fit import Fit

INITIAL_SCALE = 0.1  # least standard deviation of an expert at the start, in standardized actions
CLUSTERED_ROWS = 20_000  # rows that k-means sees: more do not move eight centers


class BaseMixturePolicy(DensityPolicy):
    r"""Base class of policies :math:`q(a|s) = \sum_z \xi_z(s) N(a; \mu_z(s), \Sigma_z(s))` (eq. 3).

    A subclass trains ``network_``, a `skvdd.nn.mixture_network.MixtureNetwork`.
    """

    network_: MixtureNetwork
    n_experts: int
    covariance: str
    scale_floor: float

    _network_classes = (MixtureNetwork,)
    _detach_gating: ClassVar[bool] = False  # whether the gating sends no gradient to the encoder
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **DensityPolicy._parameter_constraints,
        "n_experts": [Interval(Integral, 1, None, closed="left")],
        "covariance": [StrOptions({"full", "diag"})],
        "scale_floor": [Interval(Real, 0, None, closed="neither")],
    }

    def sample(
        self, X: ArrayLike, n_samples: int | None = None, *, random_state: RandomStates = None
    ) -> NDArray:
        """Draw actions: an expert from the gating, then an action from that expert.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            Observations.
        n_samples : int or None, default=None
            Actions for each row; ``None`` draws one and leaves the axis out.
        random_state : int, RandomState, sequence of n RandomState, or None
            Source of the noise, drawn row by row: an action does not depend on its neighbors.

        Returns
        -------
        ndarray of shape (n, d_a) or (n, n_samples, d_a)
            Actions in raw units, each in the shape that `fit` was given.
        """
        rows = self._check_rows(X)
        check_n_samples(n_samples)
        noise = row_noise(random_state, len(rows), (n_samples or 1, 1 + self.network_.n_actions))
        mixture = self._mixture(rows)
        expert = _draw_experts(mixture, noise[..., 0])
        mean = _pick(mixture.mean, expert)
        scale_tril = _pick(mixture.scale_tril, expert)
        actions = mean + (scale_tril @ torch.from_numpy(noise[..., 1:, None]))[..., 0]
        return self._shaped((actions[:, 0] if n_samples is None else actions).numpy())

    def act(self, X: ArrayLike, *, random_state: RandomStates = None) -> NDArray:
        """Return the actions that control uses: the mean of an expert drawn from the gating.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            Observations.
        random_state : int, RandomState, sequence of n RandomState, or None
            Source of the noise; a sequence gives each row a stream of its own.

        Returns
        -------
        ndarray of shape (n, d_a), or (n,)
            Actions in raw units.
        """
        rows = self._check_rows(X)
        noise = row_noise(random_state, len(rows), (1,))
        mixture = self._mixture(rows)
        return self._shaped(_pick(mixture.mean, _draw_experts(mixture, noise))[:, 0].numpy())

    def predict(self, X: ArrayLike) -> NDArray:
        """Return the mean of the most probable expert.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            Observations.

        Returns
        -------
        ndarray of shape (n, d_a), or (n,)
            Actions in raw units.
        """
        mixture = self._mixture(self._check_rows(X))
        means = _pick(mixture.mean, mixture.log_gate.argmax(dim=1)[:, None])[:, 0]
        return self._shaped(means.numpy())

    def log_prob(self, X: ArrayLike, y: ArrayLike) -> NDArray:
        """Return the log-density of actions.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            Observations.
        y : array-like of shape (n, d_a) or (n,)
            Actions, raw units.

        Returns
        -------
        ndarray of shape (n,)
            Log-densities in nats, in raw action units.
        """
        rows, actions = self._check_query(X, y)
        values = gm.log_prob(self._mixture(rows), torch.from_numpy(actions)[:, None])
        return values[:, 0].numpy()

    def gating(self, X: ArrayLike) -> NDArray:
        """Return the probability of each expert, shape (n, K), rows summing to one.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            Observations.

        Returns
        -------
        ndarray of shape (n, K)
            ``xi_z(s)``.
        """
        return self._mixture(self._check_rows(X)).log_gate.exp().numpy()

    def experts(self, X: ArrayLike) -> tuple[NDArray, NDArray]:
        """Return the experts' means and covariances in each state.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            Observations.

        Returns
        -------
        means : ndarray of shape (n, K, d_a)
            In raw action units, the action axis present even if `fit` was given shape (n,).
        covariances : ndarray of shape (n, K, d_a, d_a)
            In squared raw action units.
        """
        mixture = self._mixture(self._check_rows(X))
        return mixture.mean.numpy(), (mixture.scale_tril @ mixture.scale_tril.mT).numpy()

    def responsibilities(self, X: ArrayLike, y: ArrayLike) -> NDArray:
        """Return the probability that each expert produced an action (eq. 15).

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            Observations.
        y : array-like of shape (n, d_a) or (n,)
            Actions, raw units.

        Returns
        -------
        ndarray of shape (n, K)
            ``q(z|a, s)``, rows summing to one.
        """
        rows, actions = self._check_query(X, y)
        points = torch.from_numpy(actions)[:, None]
        return gm.log_responsibilities(self._mixture(rows), points)[:, 0].exp().numpy()

    def mixture(self, states: Tensor) -> GaussianMixture:
        """Return the mixtures of states as tensors, differentiable, for planning and learning.

        Nothing is validated, and gradients flow to the states and to the parameters of
        ``network_``, which are on the policy's device.

        Parameters
        ----------
        states : Tensor of shape (n, d), (n, T, d) or (n, T * d + g)
            Observations, raw units, floating point, on the device of ``network_``.

        Returns
        -------
        GaussianMixture
            ``log_gate`` (n, K), ``mean`` (n, K, m) and ``scale_tril`` (n, K, m, m) in raw action
            units, float64; a chunk of ``H`` actions is flat, ``m = H * d_a``.

        Examples
        --------
        >>> import numpy as np, torch
        >>> from skvdd import GaussianMoEPolicy
        >>> states, actions = np.random.RandomState(0).standard_normal((2, 50, 2))
        >>> policy = GaussianMoEPolicy(3, max_iter=5, random_state=0).fit(states, actions)
        >>> state = torch.zeros(1, 2, requires_grad=True)
        >>> policy.mixture(state).mean.sum().backward()
        >>> state.grad.shape
        torch.Size([1, 2])
        """
        check_is_fitted(self)
        return self._network().raw_mixture(states.flatten(1).to(torch.float64))

    # -- private steps ---------------------------------------------------------------------------

    def _deployment(self) -> Deployment:
        return Deployment.of(self, MixtureGraph)

    def _build(self, fit: Fit) -> MixtureNetwork:
        return MixtureNetwork(
            fit.data.layout,
            fit.data.n_actions,
            self._make_encoder(),
            self.n_experts,
            self.hidden_size,
            self.n_layers,
            self.covariance,
            self.scale_floor,
            self._detach_gating,
        )

    def _mixture(self, rows: NDArray) -> GaussianMixture:
        """Return the mixtures of rows (n, T * d + g), in raw action units, float64, on the CPU."""
        network = self._network()
        n, k, m = len(rows), network.n_experts, network.n_actions

        def parameters(rows: Tensor) -> Tensor:
            mixture = network(rows)
            parts = (mixture.log_gate, mixture.mean, mixture.scale_tril)
            return torch.cat([part.flatten(1) for part in parts], dim=1)

        values = self._evaluate(parameters, self._standard_rows(rows)).double()
        log_gate, mean, scale_tril = values.split([k, k * m, k * m * m], dim=1)
        mixture = GaussianMixture(
            torch.log_softmax(log_gate, dim=1),  # sums to one in float64 too
            mean.view(n, k, m),
            scale_tril.view(n, k, m, m),
        )
        units = map(torch.from_numpy, network.action_normalization.statistics)
        # Moving the experts, not the actions, puts the scaling's Jacobian into every density.
        return gm.affine(mixture, *units)


def place_experts(fit: Fit) -> None:
    """Start the experts of a fit's network at the clusters of its actions."""
    rng = np.random.RandomState(fit.seed())
    chosen = np.arange(len(fit.actions))
    if len(fit.actions) > CLUSTERED_ROWS:
        chosen = rng.choice(len(fit.actions), CLUSTERED_ROWS, replace=False)
    points = fit.actions.index_select(0, torch.from_numpy(chosen).to(fit.device))
    network: Any = fit.network
    means, scales = _cluster(points.cpu().double().numpy(), network.n_experts, rng)
    tensors = (torch.from_numpy(values).float().to(fit.device) for values in (means, scales))
    network.place_experts(*tensors)


def _cluster(
    points: NDArray, n_experts: int, rng: np.random.RandomState
) -> tuple[NDArray, NDArray]:
    """Return centers (K, d_a) of the points and the spread (K,) of each cluster."""
    n_clusters = min(n_experts, len(np.unique(points, axis=0)))
    k_means = KMeans(n_clusters, n_init=10, random_state=rng).fit(points)
    distance = ((points - k_means.cluster_centers_[k_means.labels_]) ** 2).mean(axis=1)
    counts = np.bincount(k_means.labels_, minlength=n_clusters)
    spread = np.sqrt(np.bincount(k_means.labels_, distance, n_clusters) / counts)
    # More experts than distinct actions: the spare ones start beside the others.
    index = np.arange(n_experts) % n_clusters
    means = k_means.cluster_centers_[index]
    means[n_clusters:] += INITIAL_SCALE * rng.standard_normal(means[n_clusters:].shape)
    return means, np.maximum(spread[index], INITIAL_SCALE)


def _draw_experts(mixture: GaussianMixture, normal: NDArray) -> Tensor:
    """Return experts (n, S) drawn from the gating by inverting its cumulative sum."""
    uniform = torch.from_numpy(ndtr(normal))
    cumulative = mixture.log_gate.exp().cumsum(dim=1)
    # Rounding may leave the last sum a hair below one: the last expert takes what is beyond.
    return torch.searchsorted(cumulative, uniform).clamp(max=cumulative.shape[1] - 1)


def _pick(values: Tensor, expert: Tensor) -> Tensor:
    """Return ``values[i, expert[i, j]]``, shape (n, S, ...)."""
    return values[torch.arange(len(values), device=values.device)[:, None], expert]
