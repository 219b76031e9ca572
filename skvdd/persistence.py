"""Save fitted policies to safetensors files, and load them: no pickle, nothing executed.

A file holds the network's tensors and the scalers' arrays; its header holds everything else as
JSON: class, constructor parameters, fitted attributes, the network's configuration.
"""

from __future__ import annotations

import json
import os
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from sklearn.utils.validation import check_is_fitted

from skvdd._sklearn import fixed_scaler

POLICIES: dict[str, type] = {}  # what a file may name: nothing else is ever built
FORMAT = "skvdd-policy"
FORMAT_VERSION = 1
SCALERS = ("state_scaler_", "action_scaler_")
ATTRIBUTES = (
    "n_features_in_",
    "n_actions_",
    "_single_output",
    "n_iter_",
    "history_",
    "interrupted_",
)


def register(policy_class: type) -> None:
    """Let files name a class of policies; every subclass of `BasePolicy` is registered so."""
    POLICIES[policy_class.__name__] = policy_class


def save(policy: Any, path: str | Path) -> None:
    """Write a fitted policy to one safetensors file.

    The file is written beside ``path`` and renamed when it is complete, so an older file of that
    name survives any failure. Of a distiller, the ``teacher`` parameter is left out: the student
    does not need it.

    Parameters
    ----------
    policy : BasePolicy
        A fitted policy of this library.
    path : str or Path
        Where to write.

    Raises
    ------
    NotFittedError
        If the policy is not fitted.
    """
    check_is_fitted(policy)
    tensors = {f"network.{k}": v.detach().cpu() for k, v in policy.network_.state_dict().items()}
    for name in SCALERS:
        scaler = getattr(policy, name)
        tensors[f"{name}.mean"] = torch.tensor(scaler.mean_, dtype=torch.float64)
        tensors[f"{name}.scale"] = torch.tensor(scaler.scale_, dtype=torch.float64)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    header = json.dumps(_header(policy), default=_plain)
    write_whole(Path(path), serialise(contiguous, metadata={"skvdd": header}))


def load(path: str | Path) -> Any:
    """Read a policy that `save` wrote; it predicts at once, on whatever device this machine has.

    Parameters
    ----------
    path : str or Path
        File to read.

    Returns
    -------
    BasePolicy
        A fitted policy of the class that was saved.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, or is no policy of this library.

    Examples
    --------
    >>> import numpy as np, tempfile, os, skvdd
    >>> states, actions = np.random.RandomState(0).standard_normal((2, 50, 1))
    >>> policy = skvdd.GaussianMoEPolicy(2, max_iter=5, random_state=0).fit(states, actions)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     policy.save(os.path.join(folder, "policy.safetensors"))
    ...     again = skvdd.load(os.path.join(folder, "policy.safetensors"))
    >>> bool(np.all(again.predict(states) == policy.predict(states)))
    True
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no policy file at {str(path)!r}.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = json.loads((file.metadata() or {}).get("skvdd", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"{str(path)!r} is not a policy saved by skvdd: {error}") from error
    _check_format(header, path)
    try:
        return _restore(header, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, Warning) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from error


def _header(policy: Any) -> dict[str, Any]:
    parameters = policy.get_params(deep=False)
    parameters.pop("teacher", None)
    names = getattr(policy, "feature_names_in_", None)
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "class": type(policy).__name__,
        "parameters": parameters,
        "attributes": {name: getattr(policy, name) for name in ATTRIBUTES},
        "feature_names_in_": None if names is None else list(names),
        "network": policy.network_.config,
    }


def _plain(value: Any) -> Any:
    """Return as JSON can hold it what a policy may hold beside plain numbers and strings."""
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.random.RandomState):
        return None  # a policy that is loaded does not need the state of its generator
    raise TypeError(f"a policy file cannot hold a {type(value).__name__}: {value!r}.")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all.

    Parameters
    ----------
    path : Path
        The file; one of that name is replaced once the new one is complete.
    content : bytes
        What it is to hold.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} to save a policy in.")
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _check_format(header: Any, path: Path) -> None:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{str(path)!r} is not a policy saved by skvdd.")
    if header.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"{str(path)!r} has format version {header.get('version')}, but this skvdd reads "
            f"version {FORMAT_VERSION}. Update skvdd."
        )


def _restore(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    for package in ("diffusion", "distillation", "mixture"):  # whose policies a file may name
        import_module(f"skvdd.{package}")
    if header["class"] not in POLICIES:
        raise ValueError(f"it names the unknown class {header['class']!r}")
    policy = POLICIES[header["class"]](**header["parameters"])
    policy._validate_params()
    for name in ATTRIBUTES:
        setattr(policy, name, header["attributes"][name])
    if header["feature_names_in_"] is not None:
        policy.feature_names_in_ = np.array(header["feature_names_in_"], dtype=object)
    for name in SCALERS:
        arrays = (tensors.pop(f"{name}.{part}").numpy() for part in ("mean", "scale"))
        setattr(policy, name, fixed_scaler(*arrays))
    # Initial weights are drawn only to be replaced: not at the cost of the user's generator. A
    # warning in drawing them, of tensors without elements, can only come from a damaged header.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="error"):
        network = policy._make_network(header["network"])
    network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items()})
    policy.network_ = network.eval()
    return policy
