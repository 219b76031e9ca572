"""A network as a list of NumPy calls: what the controller's ``"numpy"`` engine runs.

The functions carry the names of the ATen operators that they stand for, and take their arguments
in the same order; lists of tensors come last. Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

Array = NDArray[Any]


@dataclass(frozen=True)
class Call:
    """One step of a program.

    Parameters
    ----------
    function : str
        Key of `FUNCTIONS`.
    arguments : tuple
        Arguments, with gaps where values are filled in.
    slots : tuple of (int, int)
        Position of each gap, and the value that goes there.
    result : int
        Where the value goes.
    """

    function: str
    arguments: tuple[Any, ...]
    slots: tuple[tuple[int, int], ...]
    result: int


class Program:
    """Straight-line NumPy code with its constants; call it as the network it was made from.

    Parameters
    ----------
    calls : sequence of Call
        The steps.
    n_inputs, n_values : int
        Values 0 to ``n_inputs - 1`` are the arguments; a program has ``n_values`` in all.
    outputs : sequence of int
        Values to return.
    """

    def __init__(
        self, calls: Sequence[Call], n_inputs: int, n_values: int, outputs: Sequence[int]
    ) -> None:
        self.calls = tuple(calls)
        self.n_inputs, self.n_values, self.outputs = n_inputs, n_values, tuple(outputs)
        self._bind()

    def __call__(self, *inputs: Array) -> tuple[Array, ...]:
        """Return the outputs for arrays of the shapes and dtypes that were traced."""
        values: list[Any] = [*inputs, *self._blanks]
        for function, arguments, slots, result in self._steps:
            for position, value in slots:
                arguments[position] = values[value]
            values[result] = function(*arguments)
        return tuple(values[output] for output in self.outputs)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("calls", "n_inputs", "n_values", "outputs")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bind()

    def _bind(self) -> None:
        self._blanks = [None] * (self.n_values - self.n_inputs)
        self._steps = [
            (FUNCTIONS[call.function], list(call.arguments), call.slots, call.result)
            for call in self.calls
        ]


# ---------------------------------------------------------------------------------------
# The operators
# ---------------------------------------------------------------------------------------


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Return ``x W^T + b``."""
    product = x @ weight.T
    if bias is not None:
        product += bias
    return product


def layer_norm(
    x: Array,
    shape: Sequence[int],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Array:
    """Normalise along the last axis; the last argument is torch's alone."""
    # Products with a constant vector: a third of the time of mean and var on short rows.
    average = _average(shape[0])
    centred = x - x @ average
    normed = centred / np.sqrt((centred * centred) @ average + eps)
    if weight is not None:
        normed *= weight
    if bias is not None:
        normed += bias
    return normed


_AVERAGES: dict[int, Array] = {}


def _average(size: int) -> Array:
    if size not in _AVERAGES:
        _AVERAGES[size] = np.full((size, 1), 1.0 / size, dtype=np.float32)
    return _AVERAGES[size]


def silu(x: Array) -> Array:
    """Return ``x / (1 + exp(-x))``, in a form that cannot overflow."""
    half = 0.5 * x
    return half + half * np.tanh(half)


def gelu(x: Array) -> Array:
    """Return ``x Phi(x)``."""
    return 0.5 * x * (1.0 + erf(math.sqrt(0.5) * x))


def softplus(x: Array) -> Array:
    """Return ``log(1 + exp(x))``."""
    return np.logaddexp(np.float32(0.0), x)


def softmax(x: Array, axis: int) -> Array:
    """Return the exponentials of ``x``, normalised."""
    weight = np.exp(x - x.max(axis=axis, keepdims=True))
    return weight / weight.sum(axis=axis, keepdims=True)


def log_softmax(x: Array, axis: int) -> Array:
    """Return the logarithm of `softmax`."""
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
) -> Array:
    """Attend, every head on its own; masks other than the causal one are not used here."""
    logits = (query @ key.swapaxes(-1, -2)) * np.float32(1.0 / math.sqrt(query.shape[-1]))
    if is_causal:
        later = np.triu(np.ones(logits.shape[-2:], dtype=bool), k=1)
        logits[..., later] = -np.inf
    return softmax(logits, -1) @ value


def slice_(x: Array, axis: int = 0, start: int = 0, end: int | None = None, step: int = 1) -> Array:
    """Return part of an axis."""
    return x[(slice(None),) * (axis % x.ndim) + (slice(start, end, step),)]


def select(x: Array, axis: int, index: int) -> Array:
    """Return one place of an axis."""
    return x[(slice(None),) * (axis % x.ndim) + (index,)]


def split(x: Array, size: int, axis: int = 0) -> list[Array]:
    """Cut an axis into pieces of a size."""
    return np.split(x, range(size, x.shape[axis], size), axis)


def split_with_sizes(x: Array, sizes: Sequence[int], axis: int = 0) -> list[Array]:
    """Cut an axis into pieces of these sizes."""
    return np.split(x, np.cumsum(sizes)[:-1], axis)


def diag_embed(x: Array) -> Array:
    """Return diagonal matrices."""
    matrices = np.zeros((*x.shape, x.shape[-1]), dtype=x.dtype)
    index = np.arange(x.shape[-1])
    matrices[..., index, index] = x
    return matrices


def index_put(x: Array, values: Array, *indices: Array | None) -> Array:
    """Return a copy of ``x`` with some entries replaced; None is a whole axis."""
    copy = x.copy()
    copy[tuple(slice(None) if index is None else index for index in indices)] = values
    return copy


def expand(x: Array, sizes: Sequence[int]) -> Array:
    """Repeat axes of one, without a copy; -1 leaves an axis as it is."""
    lead = len(sizes) - x.ndim
    return np.broadcast_to(
        x, [x.shape[i - lead] if size == -1 else size for i, size in enumerate(sizes)]
    )


def clamp(x: Array, low: Any = None, high: Any = None) -> Array:
    """Return ``x`` within bounds."""
    return np.clip(x, low, high)


def addcmul(x: Array, first: Array, second: Array) -> Array:
    """Return ``x + first * second``."""
    return x + first * second


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "addcmul": addcmul,
    "cat": lambda axis, *parts: np.concatenate(parts, axis),
    "clamp": clamp,
    "constant": lambda value: value,
    "cos": np.cos,
    "diag_embed": diag_embed,
    "div": np.divide,
    "exp": np.exp,
    "expand": expand,
    "gelu": gelu,
    "gt": np.greater,
    "getitem": lambda parts, index: parts[index],
    "index_put": index_put,
    "index_select": lambda x, axis, index: np.take(x, index, axis),
    "layer_norm": layer_norm,
    "lerp": lambda x, end, weight: x + weight * (end - x),
    "linear": linear,
    "log": np.log,
    "log_softmax": log_softmax,
    "mul": np.multiply,
    "neg": np.negative,
    "pow": np.power,
    "reciprocal": np.reciprocal,
    "repeat_interleave": lambda x, repeats, axis=None: np.repeat(x, repeats, axis),
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "select": select,
    "silu": silu,
    "sin": np.sin,
    "slice": slice_,
    "softmax": softmax,
    "softplus": softplus,
    "split": split,
    "split_with_sizes": split_with_sizes,
    "sqrt": np.sqrt,
    "square": np.square,
    "stack": lambda axis, *parts: np.stack(parts, axis),
    "sub": np.subtract,
    "to": lambda x, dtype: x.astype(dtype),
    "transpose": np.swapaxes,
    "unbind": lambda x, axis=0: list(np.moveaxis(x, axis, 0)),
    "unsqueeze": np.expand_dims,
    "view": np.reshape,
    "where": np.where,
}
