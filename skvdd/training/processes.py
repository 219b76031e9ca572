"""Several processes that train together: those of the default group of `torch.distributed`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")

# What torch's back ends say when another process is gone; other errors are not renamed.
LOST = ("connection", "peer", "timed out", "timeout", "socket", "aborted", "broken pipe", "closed")


def n_processes() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Return the number of this process among those that train together."""
    return dist.get_rank() if n_processes() > 1 else 0


def is_first_process() -> bool:
    """Say whether this process is the one that writes files and shows progress."""
    return process_rank() == 0


def from_first(compute: Callable[[], Result]) -> Result:
    """Return what ``compute`` returns in the first process, where alone it is called."""
    if n_processes() == 1:
        return compute()
    result = [compute() if is_first_process() else None]
    with together():
        dist.broadcast_object_list(result)
    return result[0]  # type: ignore[return-value]


def sum_over_processes(values: torch.Tensor) -> None:
    """Add up the values of all processes, in place."""
    with together():
        dist.all_reduce(values)


def copy_from_first(tensors: list[torch.Tensor]) -> None:
    """Give all processes the tensors of the first, in place."""
    with together():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


@contextmanager
def together() -> Iterator[None]:
    """Turn the loss of another process into an error that says so."""
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error).lower() for word in LOST):
            raise
        raise RuntimeError(
            f"process {dist.get_rank()} of {dist.get_world_size()} has lost another one in "
            "training: it has ended with an error of its own, was killed, or cannot be reached. "
            "Its output says more; a Checkpoint lets the fit be resumed."
        ) from error
