"""Mixtures that learn from demonstrations, and what their training has in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from torch import Tensor

from skvdd._sklearn import fit_context, with_callbacks
from skvdd.base import draw_seed, resolve_device, seeded_network
from skvdd.mixture.base import BaseMixturePolicy
from skvdd.nn.mixture_network import MixtureNetwork
from skvdd.training import Update


class ImitatingMixturePolicy(BaseMixturePolicy):
    """Base class of mixtures that are fitted to demonstrations, without a teacher.

    The experts start at the clusters of the actions (k-means). A subclass gives the optimiser
    step and names it.
    """

    _stage: str  # name of the training run

    @with_callbacks
    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit the mixture to demonstrations.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            State windows, oldest state first.
        y : array-like of shape (n, d_a) or (n,)
            The action taken after each window.

        Returns
        -------
        self : object
            The fitted policy.

        Raises
        ------
        ValueError
            If an argument or the data break a rule; before any training.
        FloatingPointError
            If the loss ceases to be finite.
        """
        states, actions = self._check_training_data(X, y)
        goes_on = self._goes_on()
        self._begin_fit(n_stages=1)
        rng = check_random_state(self.random_state)
        if not goes_on:
            self._fit_scalers(states, actions)
            self.network_ = self._build(draw_seed(rng))
            self._place_experts(self._standardise_actions(actions), draw_seed(rng))
        self._learn(states, actions, draw_seed(rng))
        return self._end_fit()

    @abstractmethod
    def _update(
        self, network: MixtureNetwork, states: Tensor, actions: Tensor, generator: torch.Generator
    ) -> Update:
        """Return the optimiser step on standardised rows and actions."""

    def _build(self, seed: int) -> MixtureNetwork:
        return seeded_network(
            lambda: MixtureNetwork(
                self._encoder_config(),
                self.n_experts,
                self.n_actions_,
                self.hidden_size,
                self.n_layers,
                self.covariance,
                learn_gating=True,
            ),
            seed,
        )

    def _learn(self, states: NDArray, actions: NDArray, seed: int) -> None:
        device = resolve_device(self.device)
        generator = torch.Generator(device).manual_seed(seed)
        network = self._network()
        update = self._update(
            network,
            self._standardise_states(states).to(device),
            self._standardise_actions(actions).to(device),
            generator,
        )
        self._train(
            network,
            [update],
            len(states),
            stage=self._stage,
            max_iter=self.max_iter,
            generator=generator,
        )
