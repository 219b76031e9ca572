"""Save fitted policies to safetensors files, and load them: no pickle, nothing executed.

A file holds the network's tensors, normalization included. Its header holds everything else as
JSON: class, constructor parameters, fitted attributes, the arguments that build the network, and a
checksum of the whole file.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from skvdd.nn.normalization import Normalization
from skvdd.registry import (
    UnknownClassError,
    arguments_of,
    class_name,
    from_plain,
    is_foreign,
    is_registered,
    registered,
    to_plain,
)

FORMAT = "skvdd-policy"
FORMAT_VERSION = 3
MAX_SIZE = 2**32  # bytes of a file, of which reading it takes a small multiple
MAX_HEADER = 2**23  # bytes of its header
BLANK = "0" * 64  # stands for the checksum while it is computed
MODULES = ("diffusion.policy", "distillation", "mixture")  # whose classes a file may name


def save(policy: Any, path: str | Path) -> None:
    """Write a fitted policy to one safetensors file.

    The file is written beside ``path`` and renamed when it is complete, so an older file of that
    name survives any failure. Of a distiller, the ``teacher`` parameter is left out: the student
    does not need it. The content is read back before it is written.

    Parameters
    ----------
    policy : BasePolicy
        A fitted policy.
    path : str or Path
        Where to write. A symbolic link stays one; the file that it points to is replaced.

    Raises
    ------
    NotFittedError
        If the policy is not fitted.
    ValueError
        If it could not be loaded again, for example because weights are not finite.
    OSError
        If the file cannot be written; one of that name is then as it was.
    """
    check_is_fitted(policy)
    try:
        content = _content(policy)
        _restore(*_read(io.BytesIO(content), len(content)))
    except Exception as error:
        raise ValueError(
            f"this {type(policy).__name__} cannot be saved, since no file of it could be loaded: "
            f"{error}"
        ) from error
    write_whole(Path(path), content)


def load(path: str | Path) -> Any:
    """Read a policy that `save` wrote; it can be used at once, on any machine.

    Nothing in a file is executed, and no more memory is taken than a small multiple of its size.
    The checksum is verified. The policy's ``device`` is ``"auto"``.

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
        If the file is damaged, is no policy, or names a class that is not imported.
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
    except UnknownClassError as error:
        raise ValueError(f"{str(path)!r} {error}") from error
    except Exception as error:  # damage shows anywhere, and can raise nearly anything
        raise ValueError(f"{str(path)!r} is damaged: {error}") from error


# -- writing ----------------------------------------------------------------------------------


def _content(policy: Any) -> bytes:
    """Return the file of a policy, with its checksum."""
    tensors = {n: t.detach().cpu().contiguous() for n, t in policy.network_.state_dict().items()}
    header = json.dumps(_header(policy))  # a score in the history may be no number
    content = serialize(tensors, metadata={"skvdd": header})
    return content.replace(BLANK.encode(), _checksum(content).encode(), 1)


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _header(policy: Any) -> dict[str, Any]:
    parameters = policy.get_params(deep=False)
    parameters.pop("teacher", None)
    if "device" in parameters:
        parameters["device"] = "auto"  # the machine that loads it may have none of that name
    if isinstance(parameters.get("random_state"), np.random.RandomState):
        parameters["random_state"] = None  # a policy that is loaded needs no generator's state
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "sha256": BLANK,  # first among what is free, so that its place is found
        "class": class_name(type(policy)),
        "parameters": to_plain(parameters),
        "attributes": to_plain(policy._learned()),
        "network": {
            "class": type(policy.network_).__name__,
            "config": to_plain(policy.network_.config),
        },
    }


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all.

    Parameters
    ----------
    path : Path
        The file; one of that name is replaced once the new one is complete. Where it is a symbolic
        link, the file that it points to is.
    content : bytes
        What it is to hold.
    """
    path = path.resolve()
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
        with suppress(OSError):  # the first error is the one to report
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
    """Says why a file is not read to its end."""


def _read(file: BinaryIO, size: int) -> tuple[dict[str, Any], bytes]:
    """Return the header of a file and its whole content, of which the rest is read only if ours."""
    try:
        tensors = _tensor_table(file, size)
        header = json.loads(tensors.get("__metadata__", {}).get("skvdd", "null"))
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise _Unreadable(f"is not a policy saved by skvdd: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise _Unreadable("is not a policy saved by skvdd.")
    if header.get("version") != FORMAT_VERSION:
        raise _Unreadable(
            f"has format version {header.get('version')}, but this skvdd reads version "
            f"{FORMAT_VERSION}. Use the skvdd that wrote it, or fit the policy again."
        )
    if size > MAX_SIZE:
        raise _Unreadable(f"has {size} bytes, but a policy has at most {MAX_SIZE}.")
    file.seek(0)
    return header, file.read(size)


def _tensor_table(file: BinaryIO, size: int) -> dict[str, Any]:
    """Return the header of a safetensors file that is as long as its header says."""
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(size - 8, MAX_HEADER):
        raise ValueError("it does not begin as a safetensors file")
    table = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in table.items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ValueError(f"it has {size} bytes where its header says {expected}")
    return table


def _restore(header: dict[str, Any], content: bytes) -> Any:
    """Return the policy of a file; any error means a damaged file."""
    _check_checksum(header["sha256"], content)
    for module in MODULES:
        import_module(f"skvdd.{module}")
    policy = registered(header["class"])(**from_plain(header["parameters"]))
    policy._validate_params()
    config = from_plain(header["network"]["config"])
    network = _network(policy, header["network"]["class"], config, deserialize(content))
    policy._restore(network, from_plain(header["attributes"]))
    return policy


def _check_checksum(stated: Any, content: bytes) -> None:
    if not (isinstance(stated, str) and len(stated) == len(BLANK)):
        raise ValueError(f"its checksum is {stated!r}, which is no SHA-256")
    found = _checksum(content.replace(stated.encode(), BLANK.encode(), 1))
    if found != stated:
        raise ValueError(f"its checksum is {found}, but should be {stated}")


def _network(
    policy: Any, name: str, config: dict[str, Any], tensors: dict[str, Tensor]
) -> nn.Module:
    """Return the network of a configuration with the tensors of the file, if they fit it."""
    networks = {cls.__name__: cls for cls in policy._network_classes}
    if name not in networks:
        raise ValueError(f"a {type(policy).__name__} has no network {name!r}")
    _check_sizes(config, len(tensors))
    _check_tensors(tensors, _expected_tensors(networks[name], config) or tensors)
    network = _materialize(networks[name], config)
    _check_tensors(tensors, network.state_dict())
    network.load_state_dict(tensors)
    if not all(parameter.isfinite().all() for parameter in network.parameters()):
        raise ValueError("its weights are not finite")
    if any(buffer.isnan().any() for buffer in network.buffers()):
        raise ValueError("it holds what is not a number")
    for module in network.modules():
        if isinstance(module, Normalization):
            _check_normalization(module)
    return network.eval()


def _expected_tensors(network_class: Any, config: dict[str, Any]) -> dict[str, Tensor] | None:
    """Return the tensors of a network without their memory, whatever sizes a file may claim.

    None stands for a network with an encoder of the user's that cannot be built so.
    """
    from skvdd.randomness import empty_network

    try:
        return empty_network(lambda: network_class(**config)).state_dict()
    except Exception:
        if _has_foreign(config):
            return None
        raise


def _materialize(network_class: Any, config: dict[str, Any]) -> nn.Module:
    from skvdd.randomness import seeded_network

    return seeded_network(lambda: network_class(**config), seed=0)


def _has_foreign(config: dict[str, Any]) -> bool:
    """Say whether a configuration has an encoder of the user's."""
    return any(
        is_foreign(value) or (isinstance(value, dict) and _has_foreign(value))
        for value in config.values()
    )


def _check_sizes(config: Any, n_tensors: int) -> None:
    """Refuse sizes that would take long to build before their tensors are missed."""
    for name, value in _numbers(config):
        if value < 0 or (name == "n_layers" and value > n_tensors):
            raise ValueError(f"its network has {name}={value}, the file {n_tensors} tensors")


def _numbers(config: Any) -> list[tuple[str, int]]:
    """Return the integers of a configuration and of the objects in it, by name."""
    found = []
    for name, value in config.items():
        if isinstance(value, int):
            found.append((name, value))
        elif isinstance(value, dict):
            found += _numbers(value)
        elif is_registered(value) and not is_foreign(value):  # whose numbers may mean anything
            found += _numbers(arguments_of(value))
    return found


def _check_tensors(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in sorted(tensors.keys() ^ expected.keys()):
        state = "not expected" if name in tensors else "missing"
        raise ValueError(f"the tensor {name!r} is {state}")
    for name, tensor in sorted(tensors.items()):
        found, needed = ((t.dtype, tuple(t.shape)) for t in (tensor, expected[name]))
        if found != needed:
            raise ValueError(
                f"the tensor {name!r} has {found[0]} of shape {found[1]} where {needed[0]} of "
                f"shape {needed[1]} is needed"
            )


def _check_normalization(module: Normalization) -> None:
    if not (module.mean.isfinite().all() and module.scale.isfinite().all()):
        raise ValueError("its normalization is not finite")
    if not (module.scale > 0).all():
        raise ValueError("its normalization has a scale that is not positive")
