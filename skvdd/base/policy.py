"""The contract of every policy.

A policy is a conditional density p(action | observations). Axes: rows ``n`` (one row, one
decision), window ``T``, state ``d``, goal ``g``, chunk ``H``, action ``d_a``, samples ``S``.
Inside, a row is flat, ``T * d + g`` columns: the window, oldest state first, then the goal, where
there is one; an action is flat too, ``m = H * d_a`` numbers.
"""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from skvdd._sklearn import Interval, ProgressBar, StrOptions
from skvdd.base.fitting import FitMixin
from skvdd.base.queries import QueryMixin
from skvdd.base.stored import StoredMixin
from skvdd.control.controller import Controller
from skvdd.encoders import ENCODERS, Encoder
from skvdd.persistence import save
from skvdd.randomness import RandomStates
from skvdd.registry import register
from skvdd.training.processes import from_first, is_first_process


class BasePolicy(FitMixin, QueryMixin, StoredMixin, DensityMixin, BaseEstimator, metaclass=ABCMeta):
    """Base class of all policies: the fit, validation, batches, saving, control.

    A subclass builds a network (`_build`), says how it is trained (`_stages`), and implements
    `sample`, `predict` and `score`; one whose density can be evaluated is a `DensityPolicy`.
    """

    _doc_link_module = "skvdd"
    _doc_link_template = (
        "https://skvdd.readthedocs.io/en/stable/api/generated/skvdd.{estimator_name}.html"
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        register(cls)

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "window_size": [Interval(Integral, 1, None, closed="left")],
        "goal_dim": [Interval(Integral, 0, None, closed="left")],
        "encoder": [StrOptions(set(ENCODERS)), Encoder],
        "hidden_size": [Interval(Integral, 1, None, closed="left")],
        "n_layers": [Interval(Integral, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "ema_decay": [Interval(Real, 0, 1, closed="left")],
        "state_noise": [Interval(Real, 0, None, closed="left")],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "warm_start": ["boolean"],
    }

    # -- what a user calls -----------------------------------------------------------------------

    @abstractmethod
    def sample(
        self, X: ArrayLike, n_samples: int | None = None, *, random_state: RandomStates = None
    ) -> NDArray:
        """Draw actions from ``p(a|s)``."""

    @abstractmethod
    def predict(self, X: ArrayLike) -> NDArray:
        """Return one action for each row, without randomness."""

    @abstractmethod
    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Return how well demonstrated actions are explained; higher is better."""

    def act(self, X: ArrayLike, *, random_state: RandomStates = None) -> NDArray:
        """Return the actions that control uses: one sample for each row.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            Observations, one row a decision.
        random_state : int, RandomState, sequence of n RandomState, or None
            Source of the noise; a sequence gives each row a stream of its own.

        Returns
        -------
        ndarray of shape (n, d_a), or as `fit` was given actions
            Actions in raw units.
        """
        return self.sample(X, random_state=random_state)

    def save(self, path: str | Path) -> None:
        """Write the fitted policy to one safetensors file, without pickle.

        Parameters
        ----------
        path : str or Path
            File to write; a file of that name is replaced only once the new one is complete.
            Of several processes that train together, the first writes it, and the others wait.
        """
        from_first(lambda: save(self, path))

    def set_callbacks(self, *callbacks: Any) -> Self:
        """Set the callbacks of `fit`: those of `sklearn.callback` and of `skvdd.callbacks`.

        Parameters
        ----------
        *callbacks : callback
            They replace those set before. Of several processes that train together, only the
            first shows progress bars.

        Returns
        -------
        self : object
        """
        if not is_first_process():
            callbacks = tuple(c for c in callbacks if not isinstance(c, ProgressBar))
        return super().set_callbacks(*callbacks)

    def controller(
        self, engine: str = "auto", *, random_state: int | np.random.RandomState | None = None
    ) -> Controller:
        """Return the policy as an object for real-time control.

        It keeps the window of states, and goes from an observation to an action without validation
        or autograd. It is a copy: later fits do not change it.

        Parameters
        ----------
        engine : {"auto", "torch", "onnx"}, default="auto"
            What runs the network: torch, or ONNX Runtime (the ``onnx`` extra), both on the CPU.
            ``"auto"`` is ONNX Runtime where it is installed.
        random_state : int, RandomState or None, default=None
            Source of what `Controller.act` draws: with the same numbers its actions are those of
            `act`.

        Returns
        -------
        Controller
            With ``reset()`` and ``act(observation)``.

        Raises
        ------
        ModuleNotFoundError
            If ``engine="onnx"`` and the ``onnx`` extra is not installed.
        """
        from skvdd.control.engines import make_controller

        check_is_fitted(self)
        return make_controller(self._deployment(), engine, random_state)

    def export_onnx(self, path: str | Path) -> None:
        """Write the fitted policy to an ONNX file, for any number of rows, normalization inside.

        Inputs are ``states`` (n, T * d + g), float64, and of a policy that turns noise into actions
        ``noise`` (n, k, m), float64, standard normal. Outputs are ``gates`` (n, K), ``means``
        (n, K, m) and ``scale_trils`` (n, K, m, m), the Cholesky factors of the covariances; of
        others ``actions`` (n, m). The model is compared with torch at several batch sizes before
        it is written.

        Parameters
        ----------
        path : str or Path
            File to write; a file of that name is replaced only once the new one is complete.

        Raises
        ------
        ModuleNotFoundError
            If the ``onnx`` extra is not installed.
        RuntimeError
            If the model gives other numbers than torch; nothing is written then.
        """
        from skvdd.control.onnx import export_onnx

        check_is_fitted(self)
        export_onnx(self._deployment(), path)

    @abstractmethod
    def _deployment(self) -> Any:
        """Return what control needs: a `skvdd.control.deployment.Deployment`."""

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        tags.input_tags.three_d_array = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "network_")


class DensityPolicy(BasePolicy):
    """Base class of policies whose density can be evaluated."""

    @abstractmethod
    def log_prob(self, X: ArrayLike, y: ArrayLike) -> NDArray:
        """Return the log-density of actions."""

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Return the mean log-density of demonstrated actions; higher is better.

        Parameters
        ----------
        X : array-like of shape (n, d), (n, T, d) or (n, T * d + g)
            Observations.
        y : array-like of shape (n, d_a), (n,) or (n, H, d_a)
            Actions taken in them.

        Returns
        -------
        float
            Mean of `log_prob`, in nats per decision.
        """
        return float(np.mean(self.log_prob(X, y)))
