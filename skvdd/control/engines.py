"""What runs a graph: torch, ONNX Runtime or NumPy."""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from skvdd.control.controller import Array, Controller, Engine, Layout
from skvdd.control.graphs import Graph, TorchEngine
from skvdd.control.onnx import OnnxEngine, to_onnx
from skvdd.control.translate import to_numpy

ENGINES = ("torch", "onnx", "numpy")
TRIALS = 30  # calls of each engine that "auto" times


def make_controller(graph: Graph, layout: Layout, engine: str, random_state: Any) -> Controller:
    """Return a controller of a graph.

    Parameters
    ----------
    graph : Graph
        On the CPU.
    layout : Layout
        Sizes of what goes in.
    engine : {"auto", "torch", "onnx", "numpy"}
        What runs it; ``"auto"`` is the fastest of them in a quick trial, ONNX Runtime where it is
        installed.
    random_state : int, RandomState or None
        Source of the controller's draws.
    """
    if engine not in {"auto", *ENGINES}:
        raise ValueError(f"engine must be 'auto', 'torch', 'onnx' or 'numpy', got {engine!r}.")
    examples = example_inputs(layout)
    if engine == "auto":
        engine, runs = _fastest(graph, examples)
    else:
        runs = make_engine(graph, engine, examples)
    return Controller(runs, engine, layout, random_state)


def example_inputs(layout: Layout) -> tuple[torch.Tensor, ...]:
    """Return inputs of one row, zeros, for the graph of a layout."""
    n_columns = layout.n_states * layout.window_size + layout.goal_dim
    states = torch.zeros(1, n_columns, dtype=torch.float64)
    if layout.noise_shape is None:
        return (states,)
    return states, torch.zeros(1, *layout.noise_shape, dtype=torch.float64)


def make_engine(graph: Graph, name: str, examples: tuple[torch.Tensor, ...]) -> Engine:
    """Return what maps arrays to arrays as the graph maps tensors to tensors."""
    graph = graph.cpu().eval()
    if name == "torch":
        return TorchEngine(graph)
    if name == "numpy":
        return to_numpy(graph, *examples)
    return OnnxEngine(to_onnx(graph, examples), graph.inputs)


def _fastest(graph: Graph, examples: tuple[torch.Tensor, ...]) -> tuple[str, Engine]:
    """Return the engine that takes the least time for one state, by the median of a few calls."""
    arrays = [example.numpy() for example in examples]
    timed = []
    for name in ENGINES:
        if name == "onnx" and not (find_spec("onnxruntime") and find_spec("onnxscript")):
            continue
        try:
            engine = make_engine(graph, name, examples)
        except NotImplementedError:  # an operator that NumPy has no name for
            continue
        timed.append((_median_seconds(engine, arrays), name, engine))
    _, name, engine = min(timed, key=lambda entry: entry[0])
    return name, engine


def _median_seconds(engine: Engine, arrays: list[Array]) -> float:
    engine(*arrays)
    seconds = []
    for _ in range(TRIALS):
        start = time.perf_counter()
        engine(*arrays)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))
