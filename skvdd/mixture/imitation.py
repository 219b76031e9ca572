"""Mixtures that learn from demonstrations, and what their training has in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

import torch
from numpy.typing import ArrayLike

from skvdd._sklearn import fit_context, is_fitted, with_callbacks
from skvdd.base import draw_seed, resolve_device, seeded_network
from skvdd.mixture.base import BaseMixturePolicy
from skvdd.nn.mixture_network import MixtureNetwork
from skvdd.streaming import Rows
from skvdd.training import Update, batch_generator


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
        return self._fit(X, y, partial=False)

    @with_callbacks
    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learn from more demonstrations: the first call is a `fit`, later ones go on from it.

        Each call takes ``max_iter`` iterations, with a learning rate that rises and falls anew, on
        the rows of this call alone: give old and new rows together if the old ones are not to be
        forgotten. The units of states and actions stay those of the first call. ``history_`` and
        ``n_iter_`` count on; with an integer ``random_state`` each call has random numbers of its
        own.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            State windows, oldest state first, with the columns of the first call.
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
        with self._counting_on():
            return self._fit(X, y, partial=True)

    @abstractmethod
    def _update(
        self, network: MixtureNetwork, states: Rows, actions: Rows, generator: torch.Generator
    ) -> Update:
        """Return the optimiser step on standardised rows and actions."""

    def _fit(self, X: ArrayLike, y: ArrayLike, *, partial: bool) -> Self:
        states, actions = self._check_training_data(X, y, reset=not (partial and is_fitted(self)))
        goes_on = self._goes_on(partial)
        rng = self._begin_fit(1, states, actions, partial=partial)
        if not goes_on:
            self._fit_scalers(states, actions)
            self.network_ = self._build(draw_seed(rng))
        device = resolve_device(self.device)
        action_rows = self._rows_of_actions(actions, device)
        if not goes_on:
            self._place_experts(action_rows, draw_seed(rng))
        self._learn(self._rows_of_states(states, device), action_rows, draw_seed(rng))
        return self._end_fit()

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
                scale_floor=self.scale_floor,
            ),
            seed,
        )

    def _learn(self, states: Rows, actions: Rows, seed: int) -> None:
        generator = batch_generator(resolve_device(self.device), seed)
        network = self._network()
        update = self._update(network, states, actions, generator)
        self._train(
            network,
            [update],
            len(states),
            stage=self._stage,
            max_iter=self.max_iter,
            generator=generator,
        )
