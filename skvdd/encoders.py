"""Encoders of observations: small configurations that build the first part of a network.

A policy's ``encoder`` is a name for the common ones, ``"mlp"`` or ``"transformer"``, which then
have the policy's ``hidden_size`` and ``n_layers``, or an object of this module, or one of your own.
"""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from numbers import Integral
from typing import Any, ClassVar

from sklearn.base import BaseEstimator, clone
from torch import nn

from skvdd._sklearn import Interval
from skvdd.nn.encoders import CausalTransformer, ResidualMLP
from skvdd.nn.layout import RowLayout
from skvdd.registry import register

__all__ = ["Encoder", "MLPEncoder", "TransformerEncoder"]


class Encoder(BaseEstimator, metaclass=ABCMeta):
    """Base class of encoders: the constructor assigns, `build` makes the network.

    A subclass follows scikit-learn's conventions, so that ``encoder__hidden_size`` works in a grid
    search. Policies with an encoder of your own are saved to files as any other; the module that
    defines it has to be imported before they are loaded.

    Examples
    --------
    >>> from torch import nn
    >>> from skvdd import GaussianMoEPolicy
    >>> from skvdd.encoders import Encoder
    >>> class Linear(Encoder):
    ...     def __init__(self, n_features=8):
    ...         self.n_features = n_features
    ...
    ...     def build(self, layout):
    ...         return nn.Linear(layout.n_columns, self.n_features)
    >>> GaussianMoEPolicy(encoder=Linear(16)).get_params()["encoder__n_features"]
    16
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        register(cls)

    @abstractmethod
    def build(self, layout: RowLayout) -> nn.Module:
        """Return a fresh network for rows of a layout.

        Parameters
        ----------
        layout : RowLayout
            Columns of a row: ``n_states``, ``window_size``, ``goal_dim`` and ``n_columns``.

        Returns
        -------
        torch.nn.Module
            Maps standardized rows (n, n_columns), float32, to features (n, h), each row by itself.
        """

    def check(self) -> None:
        """Raise a ValueError if a parameter breaks a rule."""
        self._validate_params()


class MLPEncoder(Encoder):
    """A residual multilayer perceptron over the whole row.

    Parameters
    ----------
    hidden_size : int, default=128
        Width, and number of features.
    n_layers : int, default=2
        Residual layers.

    Examples
    --------
    >>> from skvdd import DiffusionPolicy
    >>> from skvdd.encoders import MLPEncoder
    >>> policy = DiffusionPolicy(encoder=MLPEncoder(hidden_size=64, n_layers=3))
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "hidden_size": [Interval(Integral, 1, None, closed="left")],
        "n_layers": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(self, hidden_size: int = 128, n_layers: int = 2) -> None:
        self.hidden_size = hidden_size
        self.n_layers = n_layers

    def build(self, layout: RowLayout) -> nn.Module:
        """Return a fresh `skvdd.nn.encoders.ResidualMLP`.

        Parameters
        ----------
        layout : RowLayout
            Columns of a row.

        Returns
        -------
        torch.nn.Module
            Maps standardized rows (n, n_columns) to features (n, hidden_size).
        """
        return ResidualMLP(layout.n_columns, self.hidden_size, self.n_layers)


class TransformerEncoder(Encoder):
    """A causal transformer over the states of the window, with the goal as the first token.

    Parameters
    ----------
    hidden_size : int, default=128
        Width of a token, and number of features; a multiple of ``n_heads``.
    n_layers : int, default=2
        Transformer blocks.
    n_heads : int, default=4
        Attention heads.

    Examples
    --------
    >>> from skvdd import DiffusionPolicy
    >>> from skvdd.encoders import TransformerEncoder
    >>> policy = DiffusionPolicy(window_size=5, encoder=TransformerEncoder(72, 4, n_heads=4))
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **MLPEncoder._parameter_constraints,
        "n_heads": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(self, hidden_size: int = 128, n_layers: int = 2, n_heads: int = 4) -> None:
        self.hidden_size = hidden_size
        self.n_layers = n_layers
        self.n_heads = n_heads

    def build(self, layout: RowLayout) -> nn.Module:
        """Return a fresh `skvdd.nn.encoders.CausalTransformer`.

        Parameters
        ----------
        layout : RowLayout
            Columns of a row.

        Returns
        -------
        torch.nn.Module
            Maps standardized rows (n, n_columns) to features (n, hidden_size).
        """
        return CausalTransformer(layout, self.hidden_size, self.n_layers, self.n_heads)

    def check(self) -> None:
        """Raise a ValueError if a parameter breaks a rule."""
        super().check()
        check_heads(self.hidden_size, self.n_heads, "the transformer")


def make_encoder(encoder: str | Encoder, hidden_size: int, n_layers: int) -> Encoder:
    """Return the encoder that a policy's ``encoder`` means, of the policy's size if it is a name.

    The result is a copy: what is done to the parameter later does not change it.
    """
    if isinstance(encoder, str):
        return ENCODERS[encoder](hidden_size, n_layers)
    return clone(encoder)


def check_heads(hidden_size: int, n_heads: int, network: str) -> None:
    """Raise a ValueError unless ``n_heads`` divides ``hidden_size``."""
    if hidden_size % n_heads:
        raise ValueError(
            f"hidden_size must be a multiple of n_heads for {network}, got "
            f"hidden_size={hidden_size} and n_heads={n_heads}."
        )


ENCODERS: dict[str, type[Encoder]] = {"mlp": MLPEncoder, "transformer": TransformerEncoder}
