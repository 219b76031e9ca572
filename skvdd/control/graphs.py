"""What is deployed of a policy: a module from raw states to raw actions, scaling inside."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from skvdd.control.controller import Array
from skvdd.nn.mixture_network import MixtureNetwork


class Graph(nn.Module):
    """A network with the units of its states and actions.

    Raw numbers are float64, as their offset may be much larger than their spread; the network
    works in float32.

    Parameters
    ----------
    network : torch.nn.Module
        The network.
    row_scaler, action_scaler : StandardScaler
        Units of the columns of a row, and of an action.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    row_mean: Tensor
    row_scale: Tensor
    action_mean: Tensor
    action_scale: Tensor

    def __init__(
        self, network: nn.Module, row_scaler: StandardScaler, action_scaler: StandardScaler
    ) -> None:
        super().__init__()
        self.network = network
        for name, scaler in (("row", row_scaler), ("action", action_scaler)):
            self.register_buffer(f"{name}_mean", torch.tensor(scaler.mean_))
            self.register_buffer(f"{name}_scale", torch.tensor(scaler.scale_))

    def standardised(self, states: Tensor) -> Tensor:
        """Map raw rows (n, F), float64, to standardised ones, float32."""
        return ((states - self.row_mean) / self.row_scale).to(torch.float32)


class MixtureGraph(Graph):
    """States in, the parameters of their mixtures out.

    Parameters
    ----------
    network : MixtureNetwork
        The network.
    row_scaler, action_scaler : StandardScaler
        As in `Graph`.
    """

    inputs = ("states",)
    outputs = ("gates", "means", "scale_trils")
    network: MixtureNetwork

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map rows (n, F) to gates (n, K), means (n, K, d_a), factors (n, K, d_a, d_a)."""
        mixture = self.network(self.standardised(states))
        gates = torch.softmax(mixture.log_gate.to(torch.float64), dim=-1)
        means = mixture.mean.to(torch.float64) * self.action_scale + self.action_mean
        scale_trils = mixture.scale_tril.to(torch.float64) * self.action_scale[:, None]
        return gates, means, scale_trils


class SamplerGraph(Graph):
    """States and standard normal noise in, an action for each state out.

    Parameters
    ----------
    network : torch.nn.Module
        What ``draw`` calls.
    row_scaler, action_scaler : StandardScaler
        As in `Graph`.
    draw : callable
        Maps standardised rows (n, F) and noise (n, 1, m, ...) to standardised actions (n, 1, d_a).
    """

    inputs = ("states", "noise")
    outputs = ("actions",)

    def __init__(
        self,
        network: nn.Module,
        row_scaler: StandardScaler,
        action_scaler: StandardScaler,
        draw: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        super().__init__(network, row_scaler, action_scaler)
        self.draw = draw

    def forward(self, states: Tensor, noise: Tensor) -> tuple[Tensor]:
        """Map rows (n, F) and noise (n, m, ...) to actions (n, d_a)."""
        actions = self.draw(self.standardised(states), noise.to(torch.float32)[:, None])[:, 0]
        return (actions.to(torch.float64) * self.action_scale + self.action_mean,)


class TorchEngine:
    """A graph as it is, without autograd, on the caller's threads.

    Parameters
    ----------
    graph : Graph
        On the CPU.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    @torch.inference_mode()
    def __call__(self, *inputs: Array) -> tuple[Array, ...]:
        """Return the outputs of the graph for arrays."""
        return tuple(part.numpy() for part in self._graph(*map(torch.from_numpy, inputs)))
