"""Save fitted policies to safetensors files, and load them: no pickle, nothing executed.

A file holds the network's tensors and the scalers' arrays; its header holds everything else as
JSON: class, constructor parameters, fitted attributes, the network's configuration, and since
version 2 of the format a checksum of the whole file.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np
import torch
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from skvdd._sklearn import fixed_scaler

POLICIES: dict[str, type] = {}  # what a file may name: nothing else is ever built
INITIALISING = threading.Lock()  # torch draws initial weights from one generator for all threads
FORMAT = "skvdd-policy"
FORMAT_VERSION = 2
READ_VERSIONS = (1, 2)
MAX_SIZE = 2**32  # bytes of a file, of which reading it takes a small multiple
MAX_HEADER = 2**23  # bytes of its header
BLANK = "0" * 64  # stands for the checksum while it is computed
WIDTHS = ("hidden_size", "head_size", "n_experts")  # of networks: at least one
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
    does not need it. What is written has been read back before.

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
    ValueError
        If it could not be loaded again: weights that are not finite, or parameters that were
        changed after the fit and do not go with what was fitted.
    OSError
        If the file cannot be written; one of that name is then as it was.
    """
    check_is_fitted(policy)
    content = _content(policy)
    try:
        _restore(*_read(io.BytesIO(content), len(content)))
    except Exception as error:
        raise ValueError(
            f"this {type(policy).__name__} cannot be saved, since no file of it could be loaded: "
            f"{error}"
        ) from error
    write_whole(Path(path), content)


def load(path: str | Path) -> Any:
    """Read a policy that `save` wrote; it predicts at once, on whatever device this machine has.

    Nothing in a file is executed, and no more memory is taken than a small multiple of its size.
    Files of this version are read only if their checksum is right.

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
    OSError
        If it cannot be read.

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
    with open(path, "rb") as file:
        try:
            header, content = _read(file, os.fstat(file.fileno()).st_size)
        except _Unreadable as error:
            raise ValueError(f"{str(path)!r} {error}") from error
    try:
        return _restore(header, content)
    except Exception as error:  # damage shows anywhere, and can raise nearly anything
        raise ValueError(f"{str(path)!r} is damaged: {error}") from error


# -- writing ----------------------------------------------------------------------------------


def _content(policy: Any) -> bytes:
    """Return the file of a policy, with its checksum."""
    tensors = {f"network.{k}": v.detach().cpu() for k, v in policy.network_.state_dict().items()}
    for name in SCALERS:
        scaler = getattr(policy, name)
        tensors[f"{name}.mean"] = torch.tensor(scaler.mean_, dtype=torch.float64)
        tensors[f"{name}.scale"] = torch.tensor(scaler.scale_, dtype=torch.float64)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    header = json.dumps(_header(policy), default=_plain)
    content = serialise(contiguous, metadata={"skvdd": header})
    return content.replace(BLANK.encode(), _checksum(content).encode(), 1)


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _header(policy: Any) -> dict[str, Any]:
    parameters = policy.get_params(deep=False)
    parameters.pop("teacher", None)
    names = getattr(policy, "feature_names_in_", None)
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "sha256": BLANK,  # first among what is free, so that its place is found
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
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} for {path.name!r}.")
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # what failed first is what the caller must hear of
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Let a rename survive a power failure too, where the system can promise that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# -- reading ----------------------------------------------------------------------------------


class _Unreadable(ValueError):
    """What is wrong with a file that is not read to its end."""


def _read(file: BinaryIO, size: int) -> tuple[dict[str, Any], bytes]:
    """Return the header of a file and its whole content, of which the rest is read only if ours."""
    try:
        layout = _layout(file, size)
        header = json.loads(layout.get("__metadata__", {}).get("skvdd", "null"))
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise _Unreadable(f"is not a policy saved by skvdd: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise _Unreadable("is not a policy saved by skvdd.")
    if header.get("version") not in READ_VERSIONS:
        raise _Unreadable(
            f"has format version {header.get('version')}, but this skvdd reads versions "
            f"{READ_VERSIONS[0]} to {READ_VERSIONS[-1]}. Update skvdd."
        )
    if size > MAX_SIZE:
        raise _Unreadable(f"has {size} bytes, but a policy has at most {MAX_SIZE}.")
    file.seek(0)
    return header, file.read(size)


def _layout(file: BinaryIO, size: int) -> dict[str, Any]:
    """Return the header of a safetensors file that is as long as its header says."""
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(size - 8, MAX_HEADER):
        raise ValueError("it does not begin as a safetensors file")
    layout = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in layout.items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ValueError(f"it has {size} bytes where its header says {expected}")
    return layout


def _restore(header: dict[str, Any], content: bytes) -> Any:
    """Return the policy of a file; any error means a damaged file."""
    if header["version"] > 1 or "sha256" in header:
        _check_checksum(header["sha256"], content)
    tensors = deserialise(content)
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
    _check_attributes(policy)
    sizes = (policy._n_states + policy.goal_dim, policy.n_actions_)
    for name, size in zip(SCALERS, sizes, strict=True):
        arrays = (_units(tensors.pop(f"{name}.{part}"), size, name) for part in ("mean", "scale"))
        setattr(policy, name, fixed_scaler(*arrays))
        if not (getattr(policy, name).scale_ > 0).all():
            raise ValueError(f"the scale of {name} is not positive")
    weights = {name.removeprefix("network."): tensor for name, tensor in tensors.items()}
    policy.network_ = _network(policy, header["network"], weights)
    return policy


def _check_checksum(stated: Any, content: bytes) -> None:
    if not (isinstance(stated, str) and len(stated) == len(BLANK)):
        raise ValueError(f"its checksum is {stated!r}, which is no SHA-256")
    found = _checksum(content.replace(stated.encode(), BLANK.encode(), 1))
    if found != stated:
        raise ValueError(f"its checksum is {found}, but should be {stated}")


def _check_attributes(policy: Any) -> None:
    """Raise a ValueError unless the attributes are what `fit` leaves, and go together."""
    counts = [getattr(policy, name) for name in ("n_features_in_", "n_actions_", "n_iter_")]
    if any(type(count) is not int or count < 0 for count in counts):
        raise ValueError("its numbers of features, actions and iterations are no numbers")
    if type(policy._single_output) is not bool or type(policy.interrupted_) is not bool:
        raise ValueError("its attributes are not those of a fitted policy")
    if policy.n_actions_ < 1 or (policy._single_output and policy.n_actions_ > 1):
        raise ValueError(f"it has {policy.n_actions_} actions where it cannot")
    if not (isinstance(policy.history_, list) and all(type(r) is dict for r in policy.history_)):
        raise ValueError("its history is no list of rows")
    names = getattr(policy, "feature_names_in_", None)
    if names is not None and not (
        names.shape == (policy.n_features_in_,) and all(isinstance(name, str) for name in names)
    ):
        raise ValueError(f"it does not name its {policy.n_features_in_} features")
    n_columns = policy.n_features_in_ - policy.goal_dim
    if n_columns < 1 or n_columns % policy.window_size:
        raise ValueError(
            f"{policy.n_features_in_} features do not fit window_size={policy.window_size} and "
            f"goal_dim={policy.goal_dim}"
        )


def _units(tensor: Tensor, size: int, name: str) -> np.ndarray:
    """Return means or scales of so many columns."""
    if tensor.dtype != torch.float64 or tensor.shape != (size,):
        raise ValueError(
            f"{name} has {tensor.dtype} of shape {tuple(tensor.shape)} where {size} numbers of "
            "torch.float64 are needed"
        )
    if not tensor.isfinite().all():
        raise ValueError(f"{name} is not finite")
    return tensor.numpy().copy()


def _network(policy: Any, config: dict[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    """Return the network of a configuration with given weights, if they fit it."""
    _check_sizes(policy, config, len(weights))
    with torch.device("meta"):  # which takes no memory, whatever sizes a file may claim
        blank = _fresh_network(policy, config)
    _check_weights(weights, blank.state_dict())
    network = _fresh_network(policy, config)
    network.load_state_dict(weights)
    if not all(parameter.isfinite().all() for parameter in network.parameters()):
        raise ValueError("its weights are not finite")
    if any(buffer.isnan().any() for buffer in network.buffers()):
        raise ValueError("it holds what is not a number")
    return network.eval()


def _check_sizes(policy: Any, config: dict[str, Any], n_weights: int) -> None:
    """Refuse other sizes than the policy's, and more layers than weights, before they are built."""
    expected = {
        "n_states": policy._n_states,
        "n_actions": policy.n_actions_,
        "n_goals": policy.goal_dim,
        "window_size": policy.window_size,
    }
    for name, value in config.items():
        if isinstance(value, dict):
            _check_sizes(policy, value, n_weights)
        elif value != expected.get(name, value):
            raise ValueError(f"its network has {name}={value}, the policy {expected[name]}")
        elif name == "n_layers" and value > n_weights:
            raise ValueError(f"its network has {value} layers, but the file {n_weights} tensors")
        elif name in WIDTHS and value is not None and value < 1:
            raise ValueError(f"its network has {name}={value}")


def _fresh_network(policy: Any, config: dict[str, Any]) -> nn.Module:
    # Initial weights are drawn only to be replaced: not at the cost of the user's generator.
    with INITIALISING, torch.random.fork_rng(devices=[]):
        return policy._make_network(config)


def _check_weights(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in sorted(weights.keys() ^ expected.keys()):
        raise ValueError(f"the tensor {name!r} is {'too much' if name in weights else 'missing'}")
    for name, tensor in sorted(weights.items()):
        found, needed = ((t.dtype, tuple(t.shape)) for t in (tensor, expected[name]))
        if found != needed:
            raise ValueError(
                f"the tensor {name!r} has {found[0]} of shape {found[1]} where {needed[0]} of "
                f"shape {needed[1]} is needed"
            )
