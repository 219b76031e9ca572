"""ONNX Runtime, and the loop of a sampler around it. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skvdd.control.controller import Array, Engine
from skvdd.nn.samplers import SAMPLERS


class OnnxEngine:
    """A model in ONNX Runtime, on one thread.

    It can be pickled, and then needs onnxruntime alone.

    Parameters
    ----------
    model : bytes
        The serialized model.
    inputs : sequence of str
        Names of its inputs, in order.
    """

    def __init__(self, model: bytes, inputs: tuple[str, ...]) -> None:
        self._model, self._inputs = model, inputs
        self._run = _start(model)

    def __call__(self, *inputs: Array) -> tuple[Array, ...]:
        """Return the outputs of the model for arrays."""
        return tuple(self._run(None, dict(zip(self._inputs, inputs, strict=True))))

    def __getstate__(self) -> dict[str, Any]:
        return {"_model": self._model, "_inputs": self._inputs}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_model"], state["_inputs"])  # type: ignore[misc]


def _start(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"]).run


@dataclass(frozen=True)
class SamplerLoop:
    """The sampler of a diffusion policy in NumPy, around the two parts of its network.

    Parameters
    ----------
    encode : callable
        Maps raw rows (1, F) to contexts.
    denoise : callable
        Maps a context, noisy actions (1, 1, ...) and levels (1, 1), float32, to clean actions.
    sigmas : sequence of float
        Noise levels, ending in zero.
    sampler : str
        Key of `skvdd.nn.samplers.SAMPLERS`.
    start_scale : float
        Standard deviation of the start.
    bounds : tuple of ndarray or None
        Lowest and highest standardized action, to which clean actions are clipped.
    mean, scale : ndarray of shape (m,)
        Normalization of the actions.
    """

    encode: Engine
    denoise: Engine
    sigmas: Sequence[float]
    sampler: str
    start_scale: float
    bounds: tuple[Any, Any] | None
    mean: Array
    scale: Array

    def __call__(self, states: Array, noise: Array) -> tuple[Array]:
        """Map a row (1, F) and noise (1, k, ...) to an action (1, m)."""
        (context,) = self.encode(states)

        def denoise(actions: Any, sigma: float) -> Any:
            level = np.full((1, 1), sigma, dtype=np.float32)
            (clean,) = self.denoise(context, actions, level)
            return clean if self.bounds is None else clean.clip(*self.bounds)

        start, *fresh = noise.astype(np.float32)[0, :, None, None]
        scale = np.float32(self.start_scale)
        actions = SAMPLERS[self.sampler](denoise, scale * start, self.sigmas, fresh)[0, 0]
        last = actions[-1] if actions.ndim == 2 else actions  # of a window, the last
        return ((last * self.scale + self.mean)[None],)
