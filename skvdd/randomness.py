"""Random numbers: noise by rows, seeds, and networks whose weights depend on a seed alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from torch import nn

Network = TypeVar("Network", bound=nn.Module)
RandomStates = int | np.random.RandomState | Sequence[np.random.RandomState] | None

_INITIALIZING = threading.RLock()  # torch has one generator and one default type for all threads


def row_noise(random_state: RandomStates, n: int, shape: tuple[int, ...]) -> NDArray:
    """Return standard normal noise of shape (n, *shape), drawn row by row.

    The numbers of a row do not depend on how many rows follow it; given one ``RandomState`` a row,
    they do not depend on the other rows at all.

    Parameters
    ----------
    random_state : int, RandomState, sequence of n RandomState, or None
        Source of the numbers.
    n : int
        Number of rows.
    shape : tuple of int
        Shape of the noise of one row.

    Returns
    -------
    ndarray of shape (n, *shape), float64

    Raises
    ------
    ValueError
        If ``random_state`` is something else, or a sequence of another length.
    """
    if isinstance(random_state, Sequence):
        streams: Sequence[Any] = random_state
        others = [rng for rng in streams if not isinstance(rng, np.random.RandomState)]
        if others or len(random_state) != n:
            found = repr(others[0]) if others else f"{len(random_state)} for {n} rows"
            raise ValueError(
                "random_state, given as a sequence, must hold one RandomState for each row of X: "
                f"got {found}."
            )
        return np.stack([rng.standard_normal(shape) for rng in random_state])
    return as_random_state(random_state).standard_normal((n, *shape))


def as_random_state(random_state: Any) -> np.random.RandomState:
    """Return the RandomState that a ``random_state`` means, or a ValueError that names it."""
    try:
        return check_random_state(random_state)
    except ValueError as error:
        raise ValueError(
            "random_state must be an integer, a numpy.random.RandomState or None, got "
            f"{random_state!r}. Of a numpy.random.Generator give an integer that it draws: "
            "random_state=int(generator.integers(2**31))."
        ) from error


def draw_seed(rng: np.random.RandomState) -> int:
    """Draw a seed for another generator."""
    return int(rng.randint(np.iinfo(np.int32).max))


@contextmanager
def restored_on_error(random_state: Any) -> Iterator[None]:
    """Put a RandomState back to where it was if what is done with it fails."""
    if not isinstance(random_state, np.random.RandomState):
        yield
        return
    before = random_state.get_state()
    try:
        yield
    except BaseException:
        random_state.set_state(before)
        raise


def seeded_network(build: Callable[[], Network], seed: int) -> Network:
    """Build a float32 network on the CPU whose initial weights depend on ``seed`` alone.

    Modules draw their weights from torch's global CPU generator, whose state is put back.
    """
    with own_settings("cpu"):
        generator = torch.default_generator
        state = generator.get_state()
        try:
            generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs as well
            return build()
        finally:
            generator.set_state(state)


def empty_network(build: Callable[[], Network]) -> Network:
    """Build a float32 network of shapes alone, on the meta device: it takes no memory or time."""
    with own_settings("meta"):
        return build()


@contextmanager
def own_settings(device: str) -> Iterator[None]:
    """Make tensors of float32 on a device, with gradients, whatever the user's defaults are."""
    with _INITIALIZING, torch.device(device), torch.inference_mode(False), torch.enable_grad():
        dtype = torch.get_default_dtype()
        try:
            torch.set_default_dtype(torch.float32)
            yield
        finally:
            torch.set_default_dtype(dtype)
