"""Policies as ONNX files."""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skvdd.control.controller import Array
from skvdd.control.graphs import Graph, TorchEngine
from skvdd.persistence import write_whole

CHECKED_BATCHES = (1, 2, 7, 64)
TOLERANCE = 1e-5  # of the outputs' largest magnitude
TRACED_ROWS = 3  # one row would be taken for a constant


def export_onnx(graph: Graph, examples: tuple[Tensor, ...], path: str | Path) -> None:
    """Write a graph to an ONNX file, after it has been found to give what torch gives.

    Parameters
    ----------
    graph : Graph
        What to write.
    examples : tuple of Tensor
        One row of each input.
    path : str or Path
        The file; it is there whole or not at all.

    Raises
    ------
    ModuleNotFoundError
        If the ``onnx`` extra is not installed.
    RuntimeError
        If ONNX Runtime gives other numbers than torch.
    """
    graph = graph.cpu().eval()
    model = to_onnx(graph, examples)
    verify(graph, model, examples)
    write_whole(Path(path), model)


def to_onnx(graph: Graph, examples: tuple[Tensor, ...]) -> bytes:
    """Return a graph as an ONNX model, with any number of rows.

    Parameters
    ----------
    graph : Graph
        On the CPU.
    examples : tuple of Tensor
        One row of each input.

    Returns
    -------
    bytes
        The serialised model.
    """
    _check_installed()
    rows = tuple(example.expand(TRACED_ROWS, *example.shape[1:]) for example in examples)
    any_number = torch.export.Dim("rows", min=1)
    with warnings.catch_warnings(), _quiet("torch.onnx"), _quiet("onnxscript"):
        warnings.simplefilter("ignore")  # of the exporter about itself
        program = torch.onnx.export(
            graph,
            rows,
            dynamo=True,
            verbose=False,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=tuple({0: any_number} for _ in rows),
            custom_translation_table={
                torch.ops.aten.scaled_dot_product_attention.default: _attention
            },
        )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def _attention(
    query: Any, key: Any, value: Any, mask: None = None, dropout: float = 0.0, causal: bool = False
) -> Any:
    """Translate attention with the sizes that are known, all but the number of rows.

    The exporter's own translation computes shapes and mask anew in every run, in twenty operations
    more a layer: a fifth of the time that one row takes.
    """
    from onnx import numpy_helper
    from onnxscript import opset18

    n_queries, size = query.shape[-2:]
    scale = opset18.Constant(value_float=size**-0.5)
    logits = opset18.MatMul(opset18.Mul(query, scale), opset18.Transpose(key, perm=[0, 1, 3, 2]))
    if causal:
        later = np.triu(np.full((n_queries, n_queries), -np.inf, dtype=np.float32), k=1)
        logits = opset18.Add(logits, opset18.Constant(value=numpy_helper.from_array(later)))
    return opset18.MatMul(opset18.Softmax(logits, axis=-1), value)


def verify(graph: Graph, model: bytes, examples: tuple[Tensor, ...]) -> None:
    """Raise a RuntimeError unless ONNX Runtime gives what torch gives, at several batch sizes."""
    rng = np.random.RandomState(0)
    reference, exported = TorchEngine(graph), OnnxEngine(model, graph.inputs)
    for n in CHECKED_BATCHES:
        inputs = [_like(rng, example, n) for example in examples]
        inputs[0] = inputs[0] * graph.row_scale.numpy() + graph.row_mean.numpy()
        pairs = zip(reference(*inputs), exported(*inputs), strict=True)
        for name, (expected, found) in zip(graph.outputs, pairs, strict=True):
            error = float(np.abs(found - expected).max())
            if not error <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
                raise RuntimeError(
                    f"the exported model gives other {name} than torch for {n} rows: they differ "
                    f"by {error:.2g}. Nothing was written."
                )


def _like(rng: np.random.RandomState, example: Tensor, n: int) -> np.ndarray:
    return rng.standard_normal((n, *example.shape[1:]))


def _check_installed() -> None:
    missing = [name for name in ("onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{' and '.join(missing)} must be installed for ONNX: pip install 'skvdd[onnx]'."
        )


class OnnxEngine:
    """A graph in ONNX Runtime, on one thread.

    Parameters
    ----------
    model : bytes
        The graph, as `to_onnx` returns it.
    inputs : sequence of str
        Names of its inputs, in order.
    """

    def __init__(self, model: bytes, inputs: tuple[str, ...]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
        self._run, self._inputs = session.run, inputs

    def __call__(self, *inputs: Array) -> tuple[Array, ...]:
        """Return the outputs of the graph for arrays."""
        return tuple(self._run(None, dict(zip(self._inputs, inputs, strict=True))))


class _quiet:
    """Keep a logger's progress reports to itself for a while."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *error: object) -> None:
        self._logger.setLevel(self._level)
