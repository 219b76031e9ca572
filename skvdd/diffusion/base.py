"""The queries of a fitted diffusion policy."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skvdd.base import DensityPolicy
from skvdd.base.validation import check_n_samples, check_n_steps
from skvdd.control.deployment import Deployment, SamplerGraph
from skvdd.devices import resolve_device
from skvdd.diffusion.denoiser import ContextDenoiser, Denoiser
from skvdd.diffusion.gpt import GPTDenoiser
from skvdd.diffusion.likelihood import flow_log_prob, likelihood_steps, probe_directions
from skvdd.diffusion.noise import NoiseLevels
from skvdd.nn.samplers import SAMPLERS, densest, draw_actions, n_noises
from skvdd.randomness import RandomStates, row_noise

SCORE_LEVELS = 4  # noise levels a row of `denoising_score`
PREDICT_DRAWS = 8  # fixed draws, of which `predict` returns one
GPT_LIKELIHOOD_ROWS = 512  # of the transformer, evaluated at once with a graph


class BaseDiffusionPolicy(DensityPolicy):
    """Base class of fitted denoisers: sampling, likelihood, scores.

    A subclass trains ``network_``, a `skvdd.diffusion.denoiser.Denoiser`.
    """

    network_: Denoiser
    noise_levels_: NoiseLevels
    sampler_: str
    n_steps_: int

    _network_classes = (ContextDenoiser, GPTDenoiser)
    _learned_beside = ("noise_levels_", "sampler_", "n_steps_")

    def sample(
        self,
        X: ArrayLike,
        n_samples: int | None = None,
        *,
        random_state: RandomStates = None,
        n_steps: int | None = None,
        sampler: str | None = None,
    ) -> NDArray:
        """Draw actions from the policy.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            Observations.
        n_samples : int or None, default=None
            Actions for each row; ``None`` draws one and leaves the axis out.
        random_state : int, RandomState, sequence of n RandomState, or None
            Source of the noise, drawn row by row, all steps at once: an action depends neither on
            its neighbors in the batch nor on the device.
        n_steps, sampler : int, str or None, default=None
            In place of the parameters of the same names.

        Returns
        -------
        ndarray of shape (n, d_a) or (n, n_samples, d_a)
            Actions in raw units, each in the shape that `fit` was given.
        """
        rows = self._check_rows(X)
        check_n_samples(n_samples)
        n_steps, sampler = self._sampling(n_steps, sampler)
        shape = (n_samples or 1, n_noises(sampler, n_steps), *self.network_.action_shape)
        noise = torch.from_numpy(row_noise(random_state, len(rows), shape)).float()
        actions = self._sample(rows, noise, n_steps, sampler)
        return self._raw_actions(actions[:, 0] if n_samples is None else actions)

    def predict(self, X: ArrayLike) -> NDArray:
        """Return one action for each row, without randomness: a typical sample.

        Eight actions are drawn from the same fixed noise for every row, and the one that is closest
        to its two nearest neighbors is returned. It is an action that the policy takes, in one of
        its modes where it has several, never between them.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            Observations.

        Returns
        -------
        ndarray of shape (n, d_a), or as `fit` was given actions
            Actions in raw units.
        """
        rows = self._check_rows(X)
        n_steps, sampler = self._sampling(None, None)
        shape = (PREDICT_DRAWS, n_noises(sampler, n_steps), *self.network_.action_shape)
        noise = torch.from_numpy(row_noise(0, 1, shape)).float()
        actions = self._sample(rows, noise.expand(len(rows), *shape), n_steps, sampler)
        return self._raw_actions(densest(actions))

    def with_sampler(self, sampler: str | None = None, n_steps: int | None = None) -> Self:
        """Return a copy of the fitted policy that draws its actions otherwise.

        Parameters
        ----------
        sampler : str or None, default=None
            See the constructor; ``None`` keeps it.
        n_steps : int or None, default=None
            Steps of the sampler; ``None`` keeps them.

        Returns
        -------
        DiffusionPolicy
            With the same network.

        Examples
        --------
        >>> import numpy as np
        >>> from skvdd import DiffusionPolicy
        >>> states = actions = np.linspace(-1, 1, 20)[:, None]
        >>> policy = DiffusionPolicy(max_iter=1, random_state=0).fit(states, actions)
        >>> policy.with_sampler("heun", n_steps=4).n_steps_
        4
        """
        check_is_fitted(self)
        n_steps, sampler = self._sampling(n_steps, sampler)
        new = copy.copy(self)
        new.sampler, new.n_steps = new.sampler_, new.n_steps_ = sampler, n_steps
        return new

    def log_prob(
        self,
        X: ArrayLike,
        y: ArrayLike,
        *,
        tolerance: float = 1e-3,
        random_state: int | np.random.RandomState | None = 0,
    ) -> NDArray:
        r"""Return the exact log-density of actions, by the probability-flow ODE.

        It is the density of the policy at ``noise_min``. Runge-Kutta steps of fourth order, equal
        in :math:`\ln \sigma`: 12 for each nat of the noise range at a tolerance of 1e-3 (62 steps,
        248 evaluations of the network, at the default range), and more as the inverse fourth root
        of the tolerance. The divergence is exact up to 32 action dimensions, at the price of
        ``d_a`` derivatives for each evaluation; above, it is Hutchinson's estimate along 32 random
        directions. The density at ``noise_max`` is read off the denoiser, by line integrals of the
        score and a cubature that makes it integrate to one (without derivatives, 41 and 251
        evaluations in one and two dimensions, ``10 d_a^2 + 11`` up to 32); above, it is taken for a
        Gaussian. It should be near to one: above two dimensions, ``noise_max`` of at least 3 keeps
        the tolerance.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            Observations.
        y : array-like of shape (n, d_a), (n,) or (n, H, d_a)
            Actions, raw units.
        tolerance : float, default=1e-3
            Error in nats of the integral; float32 arithmetic ends at about 1e-4.
        random_state : int, RandomState or None, default=0
            Source of the directions, above 32 dimensions.

        Returns
        -------
        ndarray of shape (n,)
            Log-densities in nats, in raw action units.
        """
        if not tolerance > 0:
            raise ValueError(f"tolerance must be positive, got {tolerance!r}.")
        rows, actions = self._check_query(X, y)
        network, levels = self._network(), self.noise_levels_
        ends = levels.noise_min, levels.noise_max
        n_steps = likelihood_steps(*ends, tolerance)
        probes = probe_directions(network.n_actions, random_state)
        probes = probes if probes is None else probes.to(resolve_device(self.device))

        def log_density(rows: Tensor, actions: Tensor) -> Tensor:
            context = network.context(rows)

            def denoise(actions: Tensor, sigma: Tensor) -> Tensor:
                level = sigma.expand(len(actions), 1)
                return network.denoise(context, actions[:, None], level)[:, 0]

            return flow_log_prob(denoise, actions[:, 0], *ends, n_steps, probes)[:, None]

        # The whole transformer runs for each action, and keeps its graph.
        block = GPT_LIKELIHOOD_ROWS if isinstance(network, GPTDenoiser) else len(rows)
        standard = (self._standard_rows(rows), self._standard_actions(actions)[:, None])
        values = [
            self._evaluate(log_density, *(part[i : i + block] for part in standard))
            for i in range(0, len(rows), block)
        ]
        _, scale = network.action_normalization.statistics
        return torch.cat(values)[:, 0].double().numpy() - np.log(scale).sum()

    def denoising_score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Return minus the training loss on given data; higher is better.

        It needs one evaluation of the network for each of four noise levels a row, where `score`
        integrates an ODE. Noise and levels are the same at every call.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            Observations.
        y : array-like of shape (n, d_a), (n,) or (n, H, d_a)
            Actions taken in them.

        Returns
        -------
        float
            Minus the mean square of the residual, of about unit variance at each noise level.
        """
        rows, actions = self._check_query(X, y)
        network, shape = self._network(), (SCORE_LEVELS, self.network_.n_actions)
        noise = torch.from_numpy(row_noise(0, len(rows), shape)).float()
        uniform = (
            torch.arange(SCORE_LEVELS, dtype=torch.float32, device="cpu") + 0.5
        ) / SCORE_LEVELS
        sigma = self.noise_levels_.of_training(uniform).expand(len(rows), -1)
        clean = self._standard_actions(actions)[:, None].expand(-1, SCORE_LEVELS, -1)

        def residual(rows: Tensor, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
            return network.residual(network.context(rows), clean, noise, sigma)

        values = self._evaluate(residual, self._standard_rows(rows), clean, noise, sigma)
        return -float(values.double().square().mean())

    def score_function(self, X: ArrayLike, y: ArrayLike, noise_level: ArrayLike) -> NDArray:
        r"""Return the score :math:`\nabla_a \log \pi_\sigma(a|s)` of the noised policy.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            Observations.
        y : array-like of shape (n, d_a), (n,) or (n, H, d_a)
            Noised actions, raw units.
        noise_level : float or array-like of shape (n,)
            Standard deviation of the noise, in standardized actions.

        Returns
        -------
        ndarray of shape (n, d_a), or (n,)
            Gradient of the log-density with respect to the raw action.
        """
        score = self._at_noise_level(X, y, noise_level, "score").double().numpy()
        _, scale = self.network_.action_normalization.statistics
        # Eq. 7 needs the gradient in raw units: the chain rule divides by the scale.
        return self._shaped(score / scale)

    def denoise(self, X: ArrayLike, y: ArrayLike, noise_level: ArrayLike) -> NDArray:
        """Return the expected clean action, given noised ones.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            Observations.
        y : array-like of shape (n, d_a), (n,) or (n, H, d_a)
            Noised actions, raw units.
        noise_level : float or array-like of shape (n,)
            Standard deviation of the noise, in standardized actions.

        Returns
        -------
        ndarray of shape (n, d_a), or (n,)
            Actions in raw units.
        """
        return self._raw_actions(self._at_noise_level(X, y, noise_level, "denoise"))

    def _restore(self, network: Any, learned: dict[str, Any]) -> None:
        if not isinstance(learned.get("noise_levels_"), NoiseLevels):
            raise ValueError("it has no noise levels")
        super()._restore(network, learned)

    # -- private steps ---------------------------------------------------------------------------

    def _sample(self, rows: NDArray, noise: Tensor, n_steps: int, sampler: str) -> Tensor:
        """Turn noise (n, S, 1 + steps, d_a) into standardized actions (n, S, d_a)."""
        sampling = partial(draw_actions, self._network(), **self._schedule(n_steps, sampler))
        return self._evaluate(sampling, self._standard_rows(rows), noise)

    def _schedule(self, n_steps: int, sampler: str) -> dict[str, Any]:
        """Return the arguments of `draw_actions` that do not change from row to row."""
        levels = self.noise_levels_
        return {
            "sigmas": levels.of_sampling(n_steps),
            "sampler": sampler,
            "start_scale": levels.start_scale,
            "bounds": tuple(self.network_.action_range) if levels.sde == "vp" else None,
        }

    def _deployment(self) -> Deployment:
        schedule = self._schedule(self.n_steps_, self.sampler_)
        if schedule["bounds"] is not None:
            schedule["bounds"] = tuple(bound.cpu() for bound in schedule["bounds"])
        noise_shape = (n_noises(self.sampler_, self.n_steps_), *self.network_.action_shape)
        return Deployment.of(
            self, SamplerGraph, noise_shape=noise_shape, in_loop=True, draw=draw_actions, **schedule
        )

    def _sampling(self, n_steps: int | None, sampler: str | None) -> tuple[int, str]:
        """Return steps and sampler of a call: what is given, or what was learned."""
        n_steps = self.n_steps_ if n_steps is None else check_n_steps(n_steps)
        sampler = self.sampler_ if sampler is None else sampler
        sampler = "euler_ancestral" if sampler == "auto" else sampler
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {sorted(SAMPLERS)}, got {sampler!r}.")
        return n_steps, sampler

    def _at_noise_level(
        self, X: ArrayLike, y: ArrayLike, noise_level: ArrayLike, call: str
    ) -> Tensor:
        """Evaluate a call of the denoiser and return it standardized, (n, m)."""
        rows, actions = self._check_query(X, y)
        sigma = np.asarray(noise_level, dtype=np.float64)
        if sigma.shape not in {(), (len(rows),)} or not np.all((sigma > 0) & np.isfinite(sigma)):
            raise ValueError(
                f"noise_level must be one positive number or one for each of the {len(rows)} "
                f"rows, got {noise_level!r}."
            )
        network = self._network()

        def function(rows: Tensor, actions: Tensor, sigma: Tensor) -> Tensor:
            return getattr(network, call)(network.context(rows), actions, sigma)

        level = torch.from_numpy(np.broadcast_to(sigma, len(rows)).astype(np.float32))
        standard = (self._standard_rows(rows), self._standard_actions(actions)[:, None])
        return self._evaluate(function, *standard, level[:, None])[:, 0]
