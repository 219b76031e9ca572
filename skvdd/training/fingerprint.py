"""Short texts that tell data, networks and parameters apart: what a checkpoint belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from torch import nn


def digest(arrays: Sequence[NDArray]) -> str:
    """Return a short text that differs where arrays differ, in shape or in any bit."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.shape} {array.dtype};".encode())
        sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)  # no copy
    shape = " x ".join(map(str, arrays[0].shape))
    return f"{shape}, sha256 {sha.hexdigest()}"


def network_digest(network: nn.Module) -> str:
    """Return a short text that differs where networks have other weights or normalization."""
    return digest([value.cpu().numpy() for value in network.state_dict().values()])


def plain_parameters(estimator: BaseEstimator) -> dict[str, Any]:
    """Return the parameters that decide a result, nested ones too, as JSON has them."""
    parameters = estimator.get_params(deep=True)
    # Where it is computed may change.
    decisive = {k: v for k, v in sorted(parameters.items()) if k.split("__")[-1] != "device"}
    return {name: _plain(value) for name, value in decisive.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, np.ndarray) and value.dtype != object:
        return digest([value])
    known = isinstance(value, bool | int | float | str | None)
    return value if known else type(value).__name__
