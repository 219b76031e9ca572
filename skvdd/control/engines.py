"""What runs a deployed policy: torch, or ONNX Runtime with a sampler's loop around it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from skvdd.control.controller import Array, Controller, Engine
from skvdd.control.deployment import ContextGraph, DenoiseGraph, Deployment, Graph
from skvdd.control.onnx import to_onnx
from skvdd.control.runtime import OnnxEngine, SamplerLoop
from skvdd.randomness import as_random_state

ENGINES = ("torch", "onnx")


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


def make_controller(deployment: Deployment, engine: str, random_state: Any) -> Controller:
    """Return a controller of a policy.

    Parameters
    ----------
    deployment : Deployment
        Of the policy.
    engine : {"auto", "torch", "onnx"}
        What runs it; ``"auto"`` is ONNX Runtime where the ``onnx`` extra is installed.
    random_state : int, RandomState or None
        Source of the controller's draws.
    """
    if engine not in {"auto", *ENGINES}:
        raise ValueError(f"engine must be 'auto', 'torch' or 'onnx', got {engine!r}.")
    if engine == "auto":
        engine = "onnx" if _has_onnx() else "torch"
    rng = as_random_state(random_state)
    return Controller(make_engine(deployment, engine), engine, deployment.sizes, rng)


def make_engine(deployment: Deployment, name: str) -> Engine:
    """Return what maps arrays to arrays as the graph maps tensors to tensors."""
    graph = deployment.graph
    if name == "torch":
        return TorchEngine(graph)
    if deployment.sampling is None:
        return OnnxEngine(to_onnx(graph, deployment.examples()), graph.inputs)
    return _sampler_loop(deployment)


def _sampler_loop(deployment: Deployment) -> SamplerLoop:
    """Return the loop of a sampler around the two parts of a denoiser."""
    network, sampling = deployment.graph.network, dict(deployment.sampling or {})
    encode, denoise = ContextGraph(network), DenoiseGraph(network)
    states, noise = deployment.examples()
    with torch.no_grad():
        (context,) = encode(states)
    on_cpu: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    actions, sigma = torch.zeros(1, 1, *noise.shape[2:], **on_cpu), torch.ones(1, 1, **on_cpu)
    bounds = sampling.pop("bounds")
    mean, scale = network.action_normalization.statistics
    return SamplerLoop(
        OnnxEngine(to_onnx(encode, (states,)), encode.inputs),
        OnnxEngine(to_onnx(denoise, (context, actions, sigma)), denoise.inputs),
        bounds=None if bounds is None else (np.asarray(bounds[0]), np.asarray(bounds[1])),
        mean=mean,
        scale=scale,
        **sampling,
    )


def _has_onnx() -> bool:
    return all(find_spec(name) is not None for name in ("onnx", "onnxruntime", "onnxscript"))
