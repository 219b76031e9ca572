"""Minibatches, and the random numbers of their rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skvdd.training.processes import n_processes, process_rank, sum_over_processes


@dataclass(frozen=True)
class Batch:
    """The minibatches of a run, and which part of each is this process's.

    Parameters
    ----------
    n_rows : int
        Rows to draw from.
    size : int
        Rows in a minibatch.
    start, length : int
        First row and number of rows that this process takes.
    """

    n_rows: int
    size: int
    start: int
    length: int

    @classmethod
    def of(cls, n_rows: int, size: int) -> Batch:
        """Return this process's part of minibatches of ``size`` rows."""
        n, rank = n_processes(), process_rank()
        if size < n:
            raise ValueError(
                f"batch_size must be at least the number of processes, {n}, got minibatches of "
                f"{size} rows."
            )
        start, end = rank * size // n, (rank + 1) * size // n
        return cls(n_rows, size, start, end - start)

    @property
    def is_shared(self) -> bool:
        """Whether other processes have a part."""
        return self.length < self.size

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw a minibatch and return the indices (length,) of this process's rows."""
        rows = torch.randint(
            self.n_rows,
            (self.size,),
            generator=generator,
            dtype=torch.int64,
            device=generator.device,
        )
        return rows[self.start : self.start + self.length]

    def average(self, values: Tensor) -> Tensor:
        """Return the mean over all processes, each counting as many times as it has rows."""
        if self.is_shared:
            values = values * (self.length / self.size)
            sum_over_processes(values)
        return values

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients of means over this process's rows by those over the minibatch."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        mean = self.average(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = mean.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


class BatchGenerator(torch.Generator):
    """A generator with the part of each minibatch that is this process's.

    Attributes
    ----------
    batch : Batch or None
        Set where several processes train together.
    """

    batch: Batch | None = None


def batch_generator(device: torch.device, seed: int) -> BatchGenerator:
    """Return the generator of a training run."""
    generator = BatchGenerator(device)
    generator.manual_seed(seed)
    return generator


def draw(
    sampler: Callable[..., Tensor],
    shape: Sequence[int],
    generator: torch.Generator,
    *,
    dim: int = 0,
) -> Tensor:
    """Return random numbers for the rows of a minibatch.

    Where several processes share the minibatch, each draws those of all rows and takes its own:
    a row has the same numbers in whichever process it lies. Objectives therefore draw here, and
    never from torch itself.

    Parameters
    ----------
    sampler : callable
        `torch.randn`, `torch.rand`, or another with their arguments.
    shape : sequence of int
        Shape of the result.
    generator : torch.Generator
        Source of the numbers, whose device they are on.
    dim : int, default=0
        Axis of the rows.

    Returns
    -------
    Tensor of that shape
        Of the sampler's type; floating numbers are float32.
    """
    batch = getattr(generator, "batch", None)
    options: dict = {"generator": generator, "device": generator.device}
    if sampler in (torch.randn, torch.rand):
        options["dtype"] = torch.float32  # not the user's default
    if batch is None:
        return sampler(shape, **options)
    whole = [*shape[:dim], batch.size, *shape[dim + 1 :]]
    return sampler(whole, **options).narrow(dim, batch.start, batch.length)


def add_noise(
    rows: Tensor, scale: float, generator: torch.Generator, *, n_columns: int | None = None
) -> Tensor:
    """Return standardized rows with Gaussian noise of standard deviation ``scale``.

    Only the first ``n_columns`` get noise: states, but not goals.
    """
    if scale == 0:
        return rows
    if n_columns is None or n_columns == rows.shape[1]:
        return rows + scale * draw(torch.randn, rows.shape, generator)
    states, goals = rows.tensor_split([n_columns], dim=1)
    noised = states + scale * draw(torch.randn, states.shape, generator)
    return torch.cat([noised, goals], dim=1)
