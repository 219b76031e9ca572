"""Denoisers: what every one of them can do, and the one that encodes an observation only once."""

from __future__ import annotations

import math
from abc import ABCMeta, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from skvdd.nn.blocks import ModulatedBlock, NoiseEmbedding, silu, zero_
from skvdd.nn.layout import RowLayout
from skvdd.nn.network import BuildsEncoder, PolicyNetwork, build_encoder


class Denoiser(PolicyNetwork, metaclass=ABCMeta):
    r"""A preconditioned denoiser of actions, conditioned on observations.

    .. math:: D(a; s, \sigma) = c_{skip}\, a + c_{out}\, F(c_{in}\, a, s, \sigma)

    Rows and actions are standardized. A subclass implements `context` and the network ``F``.

    Parameters
    ----------
    layout : RowLayout
        Columns of a row.
    n_actions : int
        Numbers ``d_a`` in an action.
    sigma_data : float
        Standard deviation of the data in the preconditioning.
    preconditioning : {"edm", "noise"}
        What ``F`` predicts, see `precondition`.
    boundary : float
        Noise level at which ``D`` is the identity; above zero in a consistency model.
    target_min : float or None
        In a consistency trajectory model, the lowest level above zero that a jump may end at:
        `denoise` then takes the end too. ``None`` is a plain denoiser.
    **config
        The other arguments of the constructor of the subclass.

    Attributes
    ----------
    action_range : Tensor of shape (2, n_actions)
        Lowest and highest standardized action of the training data.
    """

    action_range: Tensor

    def __init__(
        self,
        layout: RowLayout,
        n_actions: int,
        *,
        sigma_data: float,
        preconditioning: str,
        boundary: float,
        target_min: float | None,
        **config: Any,
    ) -> None:
        super().__init__(
            layout,
            n_actions,
            sigma_data=sigma_data,
            preconditioning=preconditioning,
            boundary=boundary,
            target_min=target_min,
            **config,
        )
        self.sigma_data, self.preconditioning = sigma_data, preconditioning
        self.boundary = boundary
        self.register_buffer("action_range", unbounded(n_actions))

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of what a sampler draws for a row."""
        return (self.n_actions,)

    @abstractmethod
    def context(self, rows: Tensor) -> Tensor:
        """Return what is computed once for any number of actions.

        Parameters
        ----------
        rows : Tensor of shape (n, T * d + g)
            Standardized rows.

        Returns
        -------
        Tensor of shape (n, h)
        """

    @abstractmethod
    def _output(
        self, context: Tensor, scaled: Tensor, sigma: Tensor, target: Tensor | None
    ) -> Tensor:
        """Return ``F`` at actions that are scaled by ``c_in``, of their shape."""

    def denoise(
        self, context: Tensor, actions: Tensor, sigma: Tensor, target: Tensor | None = None
    ) -> Tensor:
        """Return ``D(a; s, sigma)``, the expected clean action.

        Parameters
        ----------
        context : Tensor of shape (n, h)
            Result of `context`.
        actions : Tensor of shape (n, S, d_a)
            Noisy actions, several for each row.
        sigma : Tensor of shape (n, S) or (n, 1)
            Noise levels; one level for all actions of a row is cheaper.
        target : Tensor of the shape of ``sigma``, default=None
            Levels that jumps end at, for a network with ``target_min``.

        Returns
        -------
        Tensor of shape (n, S, d_a)
        """
        c_skip, c_out, c_in = self._coefficients(sigma, actions)
        output = self._output(context, c_in * actions, sigma, target)
        return torch.addcmul(c_skip * actions, c_out, output)

    def score(self, context: Tensor, actions: Tensor, sigma: Tensor) -> Tensor:
        r"""Return the score :math:`\nabla_a \log \pi_\sigma(a|s) = (D - a) / \sigma^2`.

        Parameters
        ----------
        context, actions, sigma : Tensor
            As for `denoise`.

        Returns
        -------
        Tensor of the shape of ``actions``
            Of standardized actions.
        """
        gap = self.denoise(context, actions, sigma) - actions
        return gap / expand_levels(sigma, actions).square()

    def residual(self, context: Tensor, actions: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return ``F - (a - c_skip a_sigma) / c_out``, whose mean square is the training loss.

        The target has unit variance at every noise level (Karras et al. 2022, sec. 5); where the
        noise is predicted, it is the noise.

        Parameters
        ----------
        context : Tensor of shape (n, h)
            Result of `context`.
        actions : Tensor of shape (n, S, d_a)
            Clean actions.
        noise : Tensor of shape (n, S, d_a)
            Standard normal numbers.
        sigma : Tensor of shape (n, S)
            Noise levels.

        Returns
        -------
        Tensor of shape (n, S, d_a)
        """
        noisy = torch.addcmul(actions, expand_levels(sigma, actions), noise)
        c_skip, c_out, c_in = self._coefficients(sigma, actions)
        output = self._output(context, c_in * noisy, sigma, None)
        return output - (actions - c_skip * noisy) / c_out

    def _coefficients(self, sigma: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        levels = expand_levels(sigma, actions)
        return precondition(self.preconditioning, levels, self.sigma_data, self.boundary)


class ContextDenoiser(Denoiser):
    """A denoiser that encodes the observations once, and denoises many actions cheaply.

    Parameters
    ----------
    layout : RowLayout
        Columns of a row.
    n_actions : int
        Numbers ``d_a`` in an action.
    encoder : Encoder
        Builds the encoder, see `skvdd.encoders`.
    hidden_size, n_layers : int
        Width and number of modulated layers of the head ``F``.
    sigma_data, boundary : float, default=1.0, 0.0
        As in `Denoiser`.
    preconditioning : {"edm", "noise"}, default="edm"
        Likewise.
    target_min : float or None, default=None
        Likewise.

    Examples
    --------
    The network of a fitted policy:

    >>> import torch
    >>> from skvdd import DiffusionPolicy
    >>> states = actions = torch.linspace(-1, 1, 20)[:, None].numpy()
    >>> policy = DiffusionPolicy(max_iter=1, hidden_size=8, n_layers=1).fit(states, actions)
    >>> network = policy.network_
    >>> type(network).__name__
    'ContextDenoiser'
    >>> context = network.context(torch.zeros(4, 1))
    >>> network.score(context, torch.zeros(4, 3, 1), torch.ones(4, 1)).shape
    torch.Size([4, 3, 1])
    """

    def __init__(
        self,
        layout: RowLayout,
        n_actions: int,
        encoder: BuildsEncoder,
        hidden_size: int,
        n_layers: int,
        sigma_data: float = 1.0,
        preconditioning: str = "edm",
        boundary: float = 0.0,
        target_min: float | None = None,
    ) -> None:
        super().__init__(
            layout,
            n_actions,
            sigma_data=sigma_data,
            preconditioning=preconditioning,
            boundary=boundary,
            target_min=target_min,
            encoder=encoder,
            hidden_size=hidden_size,
            n_layers=n_layers,
        )
        self.encoder, n_features = build_encoder(encoder, layout)
        self.noise_embedding = NoiseEmbedding(hidden_size)
        if target_min is not None:
            self.target_embedding = TargetEmbedding(hidden_size, target_min)
        self.condition = nn.Linear(n_features, hidden_size)
        self.input = nn.Linear(n_actions, hidden_size)
        self.blocks = nn.ModuleList(ModulatedBlock(hidden_size) for _ in range(n_layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.output = zero_(nn.Linear(hidden_size, n_actions))

    def context(self, rows: Tensor) -> Tensor:
        """Encode rows.

        Parameters
        ----------
        rows : Tensor of shape (n, T * d + g)
            Standardized rows.

        Returns
        -------
        Tensor of shape (n, h)
            Features.
        """
        return self.encoder(rows)

    def _output(
        self, context: Tensor, scaled: Tensor, sigma: Tensor, target: Tensor | None
    ) -> Tensor:
        condition = self.condition(context)[:, None] + self.noise_embedding(sigma)
        if target is not None:
            condition = condition + self.target_embedding(target)
        condition = silu(condition)
        hidden = self.input(scaled).add_(condition)
        for block in self.blocks:
            hidden = block(hidden, condition)
        return self.output(silu(self.norm(hidden)))


class TargetEmbedding(NoiseEmbedding):
    """Embed the noise level that a jump ends at, zero included.

    The embedding is zero at first, so that a network it is added to answers as before.

    Parameters
    ----------
    hidden_size : int
        Width ``h`` of the embedding.
    lowest : float
        Lowest level above zero; added to all levels, whose logarithms are then finite.
    """

    def __init__(self, hidden_size: int, lowest: float) -> None:
        super().__init__(hidden_size)
        self.lowest = lowest
        zero_(self.linear)

    def forward(self, sigma: Tensor) -> Tensor:
        """Map noise levels of shape (...) to embeddings (..., h)."""
        return super().forward(sigma + self.lowest)


def unbounded(n_actions: int) -> Tensor:
    """Return bounds (2, d_a) that bind no action, to be replaced by those of the data."""
    return torch.tensor([[-math.inf], [math.inf]], dtype=torch.float32).repeat(1, n_actions)


def expand_levels(sigma: Tensor, actions: Tensor) -> Tensor:
    """Give noise levels (n, S) as many axes as actions have."""
    return sigma.reshape(sigma.shape + (1,) * (actions.ndim - sigma.ndim))


def precondition(
    kind: str, sigma: Tensor, sigma_data: float, boundary: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``c_skip, c_out, c_in`` of a denoiser ``D = c_skip x + c_out F(c_in x)``.

    Parameters
    ----------
    kind : {"edm", "noise"}
        ``"edm"``: table 1 of Karras et al. (2022); the target of ``F`` has unit variance.
        ``"noise"``: ``F`` predicts the noise from the scaled action ``alpha x``, as DDPM does.
    sigma : Tensor
        Noise levels.
    sigma_data : float
        Standard deviation of the data, for ``"edm"``.
    boundary : float, default=0.0
        Noise level at which ``D`` is the identity (Song et al. 2023, appendix C).

    Returns
    -------
    tuple of three Tensor
        Of the shape of ``sigma``.
    """
    above = sigma - boundary
    if kind == "noise":
        return torch.ones_like(sigma), -above, (1.0 + sigma.square()).rsqrt()
    if kind != "edm":
        raise ValueError(f"preconditioning must be 'edm' or 'noise', got {kind!r}.")
    scale = (sigma.square() + sigma_data**2).rsqrt()
    return sigma_data**2 / (above.square() + sigma_data**2), above * sigma_data * scale, scale
