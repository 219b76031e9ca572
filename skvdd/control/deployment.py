"""What is deployed of a policy: modules from raw observations to raw actions."""

from __future__ import annotations

import copy
from abc import ABCMeta, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skvdd.control.controller import Sizes
from skvdd.nn.layout import RowLayout
from skvdd.nn.network import PolicyNetwork


class Graph(nn.Module):
    """A network from raw float64 arrays to raw float64 arrays.

    Parameters
    ----------
    network : PolicyNetwork
        On the CPU.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __init__(self, network: PolicyNetwork, **schedule: Any) -> None:
        super().__init__()
        self.network: Any = network


class PolicyGraph(Graph, metaclass=ABCMeta):
    """A whole policy.

    Parameters
    ----------
    network : PolicyNetwork
        On the CPU.
    """

    @abstractmethod
    def standardized(self, *outputs: Tensor) -> tuple[Tensor, ...]:
        """Return outputs in units of the spread of the actions, to compare them by."""


class MixtureGraph(PolicyGraph):
    """Observations in, the parameters of their mixtures out.

    Parameters
    ----------
    network : MixtureNetwork
        On the CPU.
    """

    inputs = ("states",)
    outputs = ("gates", "means", "scale_trils")

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map rows (n, F) to gates (n, K), means (n, K, m), factors (n, K, m, m)."""
        mixture = self.network.raw_mixture(states)
        return mixture.log_gate.exp(), mixture.mean, mixture.scale_tril

    def standardized(self, *outputs: Tensor) -> tuple[Tensor, ...]:
        """Return gates as they are, means and factors in units of the spread of the actions."""
        gates, means, factors = outputs
        units = self.network.action_normalization
        return gates, (means - units.mean) / units.scale, factors / units.scale[:, None]


class SamplerGraph(PolicyGraph):
    """Observations and standard normal noise in, an action for each observation out.

    Parameters
    ----------
    network : PolicyNetwork
        On the CPU.
    draw : callable
        ``draw(network, rows, noise, **schedule)`` maps standardized rows (n, F) and noise
        (n, 1, k, ...) to standardized actions (n, 1, m).
    **schedule
        What does not change from row to row.
    """

    inputs = ("states", "noise")
    outputs = ("actions",)

    def __init__(
        self, network: PolicyNetwork, draw: Callable[..., Tensor], **schedule: Any
    ) -> None:
        super().__init__(network)
        self.draw, self.schedule = draw, schedule

    def forward(self, states: Tensor, noise: Tensor) -> tuple[Tensor]:
        """Map rows (n, F) and noise (n, k, ...) to actions (n, m)."""
        rows = self.network.row_normalization(states)
        standard = self.draw(self.network, rows, noise.to(torch.float32)[:, None], **self.schedule)
        return (self.network.action_normalization.inverse(standard[:, 0]),)

    def standardized(self, *outputs: Tensor) -> tuple[Tensor, ...]:
        """Return actions in units of their spread."""
        units = self.network.action_normalization
        return tuple((actions - units.mean) / units.scale for actions in outputs)


class ContextGraph(Graph):
    """The part of a denoiser that runs once: observations in, context out."""

    inputs = ("states",)
    outputs = ("context",)

    def forward(self, states: Tensor) -> tuple[Tensor]:
        """Map rows (n, F), raw float64, to contexts (n, h), float32."""
        # A copy: a context that is the row itself would be input and output at once.
        return (self.network.context(self.network.row_normalization(states)) * 1.0,)


class DenoiseGraph(Graph):
    """The part of a denoiser that runs in each step of a sampler."""

    inputs = ("context", "actions", "sigma")
    outputs = ("clean",)

    def forward(self, context: Tensor, actions: Tensor, sigma: Tensor) -> tuple[Tensor]:
        """Map contexts, noisy actions (n, 1, ...) and levels (n, 1), float32, to clean actions."""
        return (self.network.denoise(context, actions, sigma),)


@dataclass(frozen=True)
class Deployment:
    """What control needs of a policy.

    Parameters
    ----------
    graph : PolicyGraph
        The whole policy, on the CPU.
    layout : RowLayout
        Columns of a row.
    sizes : Sizes
        What goes through a controller.
    sampling : dict or None
        Of a diffusion policy: ``sigmas``, ``sampler``, ``start_scale`` and ``bounds``, for a loop
        around its network; None where the whole graph runs at once.
    """

    graph: PolicyGraph
    layout: RowLayout
    sizes: Sizes
    sampling: dict[str, Any] | None = None

    @classmethod
    def of(
        cls,
        policy: Any,
        graph_class: type[PolicyGraph],
        *,
        noise_shape: tuple[int, ...] | None = None,
        in_loop: bool = False,
        **arguments: Any,
    ) -> Deployment:
        """Return the deployment of a copy of a fitted policy.

        Parameters
        ----------
        policy : BasePolicy
            Fitted.
        graph_class : type
            `MixtureGraph` or `SamplerGraph`.
        noise_shape : tuple of int or None
            Standard normal numbers that one action takes; None for a mixture.
        in_loop : bool
            Whether ONNX Runtime runs the network inside a sampler's loop.
        **arguments
            Of the graph.
        """
        network = copy.deepcopy(policy.network_).cpu().eval().requires_grad_(False)
        low, high = network.row_normalization.bounds()
        layout = network.layout
        sizes = Sizes(
            layout.n_states,
            layout.window_size,
            layout.goal_dim,
            noise_shape,
            policy.action_shape_ or (1,),
            low,
            high,
        )
        sampling = {k: v for k, v in arguments.items() if k != "draw"} if in_loop else None
        return cls(graph_class(network, **arguments), layout, sizes, sampling)

    def examples(self) -> tuple[Tensor, ...]:
        """Return inputs of one row, zeros, for the graph."""
        on_cpu: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
        states = torch.zeros(1, self.layout.n_columns, **on_cpu)
        if self.sizes.noise_shape is None:
            return (states,)
        return states, torch.zeros(1, *self.sizes.noise_shape, **on_cpu)
