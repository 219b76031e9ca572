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

from skvdd.control.deployment import Deployment, Graph
from skvdd.control.runtime import OnnxEngine
from skvdd.persistence import write_whole
from skvdd.randomness import own_settings

CHECKED_BATCHES = (1, 2, 7, 64)
TOLERANCE = 1e-5  # in units of the spread of the actions
TRACED_ROWS = 3  # one row would be taken for a constant


def export_onnx(deployment: Deployment, path: str | Path) -> None:
    """Write a policy to an ONNX file, after it has been found to give what torch gives.

    Parameters
    ----------
    deployment : Deployment
        Of the policy.
    path : str or Path
        The file; it is there whole or not at all.

    Raises
    ------
    ModuleNotFoundError
        If the ``onnx`` extra is not installed.
    RuntimeError
        If ONNX Runtime gives other numbers than torch.
    """
    model = to_onnx(deployment.graph, deployment.examples())
    verify(deployment, model)
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
        The serialized model.
    """
    _check_installed()
    rows = tuple(example.expand(TRACED_ROWS, *example.shape[1:]) for example in examples)
    any_number = torch.export.Dim("rows", min=1)
    with (
        own_settings("cpu"),
        warnings.catch_warnings(),
        _quiet("torch.onnx"),
        _quiet("onnxscript"),
    ):
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


def verify(deployment: Deployment, model: bytes) -> None:
    """Raise a RuntimeError unless ONNX Runtime gives what torch gives, at several batch sizes.

    Actions are compared in units of their spread, however small that is.
    """
    graph, rng = deployment.graph, np.random.RandomState(0)
    run = OnnxEngine(model, graph.inputs)
    for n in CHECKED_BATCHES:
        inputs = [_normal(rng, example, n) for example in deployment.examples()]
        inputs[0] = graph.network.row_normalization.inverse(inputs[0])
        with torch.inference_mode():
            expected = graph.standardized(*graph(*inputs))
        arrays = run(*(tensor.numpy() for tensor in inputs))
        found = graph.standardized(*map(torch.from_numpy, arrays))
        for name, wanted, got in zip(graph.outputs, expected, found, strict=True):
            error = float((got - wanted).abs().max())
            if not error <= TOLERANCE * max(1.0, float(wanted.abs().max())):
                raise RuntimeError(
                    f"the exported model gives other {name} than torch for {n} rows: they differ "
                    f"by {error:.2g} standard deviations. Nothing was written."
                )


def _normal(rng: np.random.RandomState, example: Tensor, n: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal((n, *example.shape[1:])))


def _check_installed() -> None:
    missing = [name for name in ("onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{' and '.join(missing)} must be installed for ONNX: pip install 'skvdd[onnx]'."
        )


class _quiet:
    """Silence a logger's progress reports for a while."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *error: object) -> None:
        self._logger.setLevel(self._level)
