"""What every mixture-of-experts policy can be asked, however it was trained."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr
from sklearn.cluster import KMeans
from torch import Tensor

from skvdd._sklearn import Interval, StrOptions
from skvdd.base import DensityPolicy, RandomStates, check_n_samples, resolve_device, row_noise
from skvdd.control.controller import Layout
from skvdd.control.graphs import MixtureGraph
from skvdd.nn import gaussian_mixture as gm
from skvdd.nn.gaussian_mixture import GaussianMixture
from skvdd.nn.mixture_network import MixtureNetwork
from skvdd.streaming import Rows

INITIAL_SCALE = 0.1  # least standard deviation of an expert at the start, in standardised actions
CLUSTERED_ROWS = 20_000  # rows that k-means looks at: more do not move eight centres


class BaseMixturePolicy(DensityPolicy):
    r"""Base class of policies :math:`q(a|s) = \sum_z \xi_z(s) N(a; \mu_z(s), \Sigma_z(s))` (eq. 3).

    A subclass trains ``network_``, a `skvdd.nn.mixture_network.MixtureNetwork`.
    """

    network_: MixtureNetwork
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
            State windows.
        n_samples : int or None, default=None
            Actions for each window; ``None`` draws one and leaves the axis out.
        random_state : int, RandomState, sequence of n RandomState, or None
            Source of the noise, drawn row by row: an action does not depend on its neighbours.

        Returns
        -------
        ndarray of shape (n, d_a) or (n, n_samples, d_a)
            Actions in raw units; without the last axis if `fit` was given actions of shape (n,).
        """
        states = self._check_states(X)
        check_n_samples(n_samples)
        noise = row_noise(random_state, len(states), (n_samples or 1, 1 + self.n_actions_))
        mixture = self._mixture(states)
        expert = _draw_experts(mixture, noise[..., 0])
        mean = _pick(mixture.mean, expert)
        scale_tril = _pick(mixture.scale_tril, expert)
        actions = mean + (scale_tril @ torch.from_numpy(noise[..., 1:, None]))[..., 0]
        return self._as_fitted(actions[:, 0] if n_samples is None else actions)

    def act(self, X: ArrayLike, *, random_state: RandomStates = None) -> NDArray:
        """Return the actions that control uses: the mean of an expert drawn from the gating.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            State windows.
        random_state : int, RandomState, sequence of n RandomState, or None
            Source of the noise; a sequence gives each row a stream of its own.

        Returns
        -------
        ndarray of shape (n, d_a), or (n,)
            Actions in raw units.
        """
        states = self._check_states(X)
        noise = row_noise(random_state, len(states), (1,))
        mixture = self._mixture(states)
        return self._as_fitted(_pick(mixture.mean, _draw_experts(mixture, noise))[:, 0])

    def predict(self, X: ArrayLike) -> NDArray:
        """Return the mean of the most probable expert.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            State windows.

        Returns
        -------
        ndarray of shape (n, d_a), or (n,)
            Actions in raw units.
        """
        mixture = self._mixture(self._check_states(X))
        return self._as_fitted(_pick(mixture.mean, mixture.log_gate.argmax(dim=1)[:, None])[:, 0])

    def log_prob(self, X: ArrayLike, y: ArrayLike) -> NDArray:
        """Return the log-density of actions.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            State windows.
        y : array-like of shape (n, d_a) or (n,)
            Actions, raw units.

        Returns
        -------
        ndarray of shape (n,)
            Log-densities in nats, in raw action units.
        """
        states, actions = self._check_query(X, y)
        values = gm.log_prob(self._mixture(states), torch.tensor(actions)[:, None])
        return values[:, 0].numpy()

    def gating(self, X: ArrayLike) -> NDArray:
        """Return the probability of each expert, shape (n, K), rows summing to one.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            State windows.

        Returns
        -------
        ndarray of shape (n, K)
            ``xi_z(s)``.
        """
        return self._mixture(self._check_states(X)).log_gate.exp().numpy()

    def experts(self, X: ArrayLike) -> tuple[NDArray, NDArray]:
        """Return the experts' means and covariances in each state.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            State windows.

        Returns
        -------
        means : ndarray of shape (n, K, d_a)
            In raw action units, the action axis present even if `fit` was given shape (n,).
        covariances : ndarray of shape (n, K, d_a, d_a)
            In squared raw action units.
        """
        mixture = self._mixture(self._check_states(X))
        return mixture.mean.numpy(), (mixture.scale_tril @ mixture.scale_tril.mT).numpy()

    def responsibilities(self, X: ArrayLike, y: ArrayLike) -> NDArray:
        """Return the probability that each expert produced an action (eq. 15).

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            State windows.
        y : array-like of shape (n, d_a) or (n,)
            Actions, raw units.

        Returns
        -------
        ndarray of shape (n, K)
            ``q(z|a, s)``, rows summing to one.
        """
        states, actions = self._check_query(X, y)
        points = torch.tensor(actions)[:, None]
        return gm.log_responsibilities(self._mixture(states), points)[:, 0].exp().numpy()

    # -- private steps ---------------------------------------------------------------------------

    def _deployed(self) -> tuple[MixtureGraph, Layout]:
        return MixtureGraph(*self._deployed_parts()), self._layout(None)

    def _make_network(self, config: dict[str, Any]) -> MixtureNetwork:
        return MixtureNetwork(**config)

    def _mixture(self, states: NDArray) -> GaussianMixture:
        """Return the mixtures of states (n, T, d), in raw action units, float64, on the CPU."""
        network = self._network()
        n, k, d_a = len(states), network.n_experts, network.n_actions

        def rows(states: Tensor) -> Tensor:
            mixture = network(states)
            parts = (mixture.log_gate, mixture.mean, mixture.scale_tril)
            return torch.cat([part.flatten(1) for part in parts], dim=1)

        values = self._evaluate(rows, self._standardise_states(states)).double()
        log_gate, mean, scale_tril = values.split([k, k * d_a, k * d_a * d_a], dim=1)
        mixture = GaussianMixture(
            torch.log_softmax(log_gate, dim=1),  # sums to one in float64 too
            mean.view(n, k, d_a),
            scale_tril.view(n, k, d_a, d_a),
        )
        scaler = self.action_scaler_
        # Moving the experts, not the actions, puts the scaling's Jacobian into every density.
        return gm.affine(mixture, torch.tensor(scaler.mean_), torch.tensor(scaler.scale_))

    def _as_fitted(self, actions: Tensor) -> NDArray:
        values = actions.numpy()
        return values[..., 0] if self._single_output else values

    def _place_experts(self, actions: Rows, seed: int) -> None:
        """Start the experts at the clusters of standardised actions (n, d_a)."""
        rng = np.random.RandomState(seed)
        chosen = np.arange(len(actions))
        if len(actions) > CLUSTERED_ROWS:
            chosen = rng.choice(len(actions), CLUSTERED_ROWS, replace=False)
        index = torch.from_numpy(chosen).to(resolve_device(self.device))
        points = actions.index_select(0, index).double().cpu().numpy()
        means, scales = _cluster(points, self.n_experts, rng)
        self.network_.place_experts(
            torch.from_numpy(means).float(), torch.from_numpy(scales).float()
        )


def _cluster(
    points: NDArray, n_experts: int, rng: np.random.RandomState
) -> tuple[NDArray, NDArray]:
    """Return centres (K, d_a) of the points and the spread (K,) of each cluster."""
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
    return values[torch.arange(len(values))[:, None], expert]
