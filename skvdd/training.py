"""The one training loop: minibatches by index on the device, schedule, averaging, history.

What is minimised comes in as `Update` objects; the loop knows nothing of policies. Where the
default process group of `torch.distributed` has several processes, they share every minibatch:
each takes a slice of the same rows, with the same random numbers, and gradients are averaged.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from skvdd.replay import Replay

REPORTS = 100  # rows of history, and calls of the callbacks, in one run
WARM_UP = 0.05  # share of the run in which the learning rate rises to its full value
GRADIENT_NORM = 1.0  # gradients longer than this are shortened to it

Result = TypeVar("Result")


@dataclass(frozen=True)
class Loss:
    """One evaluation of an objective.

    Parameters
    ----------
    total : Tensor of shape ()
        What the optimiser minimises.
    terms : dict of str to Tensor of shape ()
        What else is worth a column in the history; detached.
    """

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """One kind of optimiser step inside an iteration.

    Parameters
    ----------
    name : str
        Column of ``total`` in the history.
    loss : callable
        Maps the row indices of a minibatch (b,) and the share of training that is done, in
        [0, 1], to a `Loss`. The share is a number, or a tensor where an iteration is replayed.
    parameters : sequence of Parameter
        What this step changes.
    learning_rate : float
        Peak of the schedule.
    repeats : int, default=1
        Steps of this kind in each iteration.
    memory : mapping of str to Tensor
        What the loss remembers from step to step, changed in place; part of every checkpoint.
    prepare : callable, optional
        Called before every iteration, for what is not done in each alike.
    replayable : bool, default=True
        Whether a GPU may repeat the loss without Python: always the same operations, none of which
        needs the host (`skvdd.replay`).
    """

    name: str
    loss: Callable[[Tensor, float | Tensor], Loss]
    parameters: Sequence[nn.Parameter]
    learning_rate: float
    repeats: int = 1
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    prepare: Callable[[], None] | None = None
    replayable: bool = True


@dataclass(frozen=True)
class Training:
    """What a run leaves behind.

    Parameters
    ----------
    network : torch.nn.Module
        The trained network: averaged weights where ``ema_decay > 0``, in evaluation mode.
    history : list of dict
        One plain row for each report: ``iteration``, ``learning_rate``, the mean of each loss.
    n_iter : int
        Iterations done.
    interrupted : bool
        Whether a KeyboardInterrupt ended the run.
    """

    network: nn.Module
    history: list[dict[str, float]]
    n_iter: int
    interrupted: bool


@dataclass
class FitStart:
    """What callbacks are told when a fit begins, as ``metadata["fit"]``.

    Parameters
    ----------
    rng : RandomState
        Source of every seed of the fit; a callback that resumes an earlier fit puts its in place.
    fingerprint : callable
        Returns what decides the result: class, parameters, and digests of the data, of the
        teacher, and of the weights that the fit goes on from.
    """

    rng: np.random.RandomState
    fingerprint: Callable[[], dict[str, Any]]


def train(
    estimator: Any,
    network: nn.Module,
    updates: Sequence[Update],
    n_rows: int,
    *,
    stage: str,
    max_iter: int,
    batch_size: int,
    weight_decay: float,
    ema_decay: float,
    generator: torch.Generator,
) -> Training:
    """Train ``network`` in place by minibatch steps of every update in turn.

    Callbacks are given the `Run` as ``metadata["run"]``, and at the end of a report its row of the
    history as ``metadata["row"]``, to which they may add columns.

    Parameters
    ----------
    estimator : estimator
        Whose callbacks are told of the progress; its callback context must be set up.
    network : torch.nn.Module
        Holds the parameters of all updates.
    updates : sequence of Update
        The steps of one iteration, in order.
    n_rows : int
        Minibatches are indices below this number, drawn uniformly.
    stage : str
        Name of the run in the history and in progress bars.
    max_iter, batch_size : int
        Iterations, and rows in a minibatch (fewer if there are fewer rows).
    weight_decay, ema_decay : float
        AdamW's decay; factor of the exponential moving average of the weights, 0 for none.
    generator : torch.Generator
        Draws the minibatches, on the device of the network; a `BatchGenerator` where several
        processes train together.

    Returns
    -------
    Training
        Also after a KeyboardInterrupt, with a ConvergenceWarning.

    Raises
    ------
    FloatingPointError
        If a loss is not finite; names the iteration and the term.
    ValueError
        If there are more processes than rows in a minibatch.
    RuntimeError
        If another of several processes ends or cannot be reached.
    """
    network.train()
    _keep_freed_memory()
    batch = Batch.of(n_rows, min(batch_size, n_rows))
    run = Run(network, updates, batch, stage, max_iter, weight_decay, ema_decay, generator)
    report_every = max(1, math.ceil(max_iter / REPORTS))
    context = estimator._callback_fit_ctx.subcontext(
        task_name=stage, max_subtasks=math.ceil(max_iter / report_every)
    )
    told = {"run": run}
    context.call_on_fit_task_begin(estimator=estimator, metadata=told)
    try:
        while not run.finished:
            task = context.subcontext(task_name=f"{report_every} iterations")
            task.call_on_fit_task_begin(estimator=estimator, metadata=told)
            for _ in range(min(report_every, max_iter - run.iteration)):
                run.step()
            stop = task.call_on_fit_task_end(
                estimator=estimator,
                metadata={**told, "row": run.report()},
                reconstruction_attributes=run.snapshot,
            )
            run.stopped = from_first(lambda stop=stop: stop)  # type: ignore[misc]
    except KeyboardInterrupt:
        run.interrupted = True
        warnings.warn(
            f"{type(estimator).__name__}: training was interrupted after {run.iteration} of "
            f"{max_iter} iterations; the policy is fitted with what it has learnt so far.",
            ConvergenceWarning,
            stacklevel=3,
        )
    context.call_on_fit_task_end(
        estimator=estimator, metadata=told, reconstruction_attributes=run.snapshot
    )
    return Training(run.averaged().eval(), run.history, run.iteration, run.interrupted)


class Run:
    """The state of a run: optimisers, average, history, and what callbacks remember of it.

    Parameters
    ----------
    network, updates, stage, max_iter, weight_decay, ema_decay, generator
        As in `train`.
    batch : Batch
        The minibatches.

    Attributes
    ----------
    iteration : int
        Iterations done.
    stopped, interrupted : bool
        Whether a callback, or a KeyboardInterrupt, has ended the run.
    history : list of dict
        Rows so far.
    notes : dict of str to dict
        Numbers that callbacks remember, by the name of the callback.
    kept : dict of str to dict of Tensor
        Weights that callbacks keep, likewise.
    """

    def __init__(
        self,
        network: nn.Module,
        updates: Sequence[Update],
        batch: Batch,
        stage: str,
        max_iter: int,
        weight_decay: float,
        ema_decay: float,
        generator: torch.Generator,
    ) -> None:
        self.network, self.updates, self.batch = network, updates, batch
        self.stage, self.max_iter, self.ema_decay = stage, max_iter, ema_decay
        self.generator = generator
        self.iteration, self.stopped, self.interrupted = 0, False, False
        self.history: list[dict[str, Any]] = []
        self.notes: dict[str, dict[str, float]] = {}
        self.kept: dict[str, dict[str, Tensor]] = {}
        self.loss_names: list[str] = []
        self.losses: list[Tensor] = []  # a row each iteration, not yet read back
        if batch.is_shared:
            _share(network, updates, batch, generator)
        replayed = (
            generator.device.type == "cuda"
            and not batch.is_shared
            and all(update.replayable for update in updates)
        )
        # What changes from one iteration to the next: numbers, or tensors that a replay reads.
        self.progress: float | Tensor = 0.0
        rates: Sequence[float | Tensor] = [update.learning_rate for update in updates]
        if replayed:
            clock = torch.tensor([0.0, *rates], device=generator.device)
            self.progress, rates = clock[0], clock[1:].unbind()
        self.optimisers = [
            torch.optim.AdamW(
                u.parameters, lr=lr, weight_decay=weight_decay, fused=True, capturable=replayed
            )
            for u, lr in zip(updates, rates, strict=True)
        ]
        self._replay = Replay(generator) if replayed else None
        self.average = copy.deepcopy(network) if ema_decay else None
        # Listed once: to walk through the modules takes longer than to average their weights.
        modules = self.averaged(), network
        self._weights = [list(module.parameters()) for module in modules]
        self._buffers = [list(module.buffers()) for module in modules]

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.stopped or self.iteration >= self.max_iter

    def step(self) -> None:
        """Do one iteration: every update, as often as it repeats, each on rows of its own."""
        self._set_clock()
        for update in self.updates:
            if update.prepare is not None:
                update.prepare()
        descend = self._descend_all
        self.losses.append(self._replay(descend) if self._replay else descend())
        if self.average is not None:
            self._follow()
        self.iteration += 1

    def _set_clock(self) -> None:
        """Set the share of training that is done, and the learning rates of this iteration."""
        progress, factor = self.iteration / max(1, self.max_iter), self._learning_rate_factor()
        if isinstance(self.progress, Tensor):
            self.progress.fill_(progress)
        else:
            self.progress = progress
        for update, optimiser in zip(self.updates, self.optimisers, strict=True):
            rate, group = update.learning_rate * factor, optimiser.param_groups[0]
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _descend_all(self) -> Tensor:
        """Take the steps of an iteration and return the losses, in the order of their names."""
        terms: dict[str, Tensor] = {}
        for update, optimiser in zip(self.updates, self.optimisers, strict=True):
            for _ in range(update.repeats):
                loss = update.loss(self.batch.draw(self.generator), self.progress)
                _descend(loss.total, update, optimiser, self.batch)
                terms |= {update.name: loss.total.detach(), **loss.terms}
        self.loss_names = list(terms)
        return torch.stack(list(terms.values()))

    def report(self) -> dict[str, Any]:
        """Read back the losses since the last report and add their means to the history."""
        names = self.loss_names
        values = self.batch.average(torch.stack(self.losses).double()).cpu()
        self._check_finite(names, values)
        self.losses.clear()
        rate = float(self.updates[0].learning_rate * self._learning_rate_factor())
        row = {"stage": self.stage, "iteration": self.iteration, "learning_rate": rate}
        row |= dict(zip(names, values.mean(dim=0).tolist(), strict=True))
        self.history.append(row)
        return row

    def averaged(self) -> nn.Module:
        """Return the network that the run has learnt so far."""
        return self.network if self.average is None else self.average

    def snapshot(self) -> dict[str, Any]:
        """Return the attributes that make a fitted estimator of the run as it stands."""
        return {
            "network_": copy.deepcopy(self.averaged()).eval(),
            "history_": list(self.history),
            "n_iter_": self.iteration,
            "interrupted_": False,
        }

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a copy of all that the run needs to go on: nested tensors, and plain values."""
        tensors = {
            "generator": self.generator.get_state(),
            "network": self.network.state_dict(),
            "average": {} if self.average is None else self.average.state_dict(),
            "optimisers": {
                str(i): {str(j): moments for j, moments in o.state_dict()["state"].items()}
                for i, o in enumerate(self.optimisers)
            },
            "memory": {str(i): update.memory for i, update in enumerate(self.updates)},
            "kept": self.kept,
        }
        values = {
            "iteration": self.iteration,
            "stopped": self.stopped,
            "history": self.history,
            "notes": self.notes,
        }
        return _detached(tensors), copy.deepcopy(values)

    def load(self, tensors: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Go on from a state that `state` returned."""
        self.generator.set_state(tensors["generator"])
        self.network.load_state_dict(tensors["network"])
        if self.average is not None:
            self.average.load_state_dict(tensors["average"])
        for i, optimiser in enumerate(self.optimisers):
            moments = tensors.get("optimisers", {}).get(str(i), {})
            state = {int(j): values for j, values in moments.items()}
            optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        for i, update in enumerate(self.updates):
            for name, value in update.memory.items():
                value.copy_(tensors["memory"][str(i)][name])
        self.kept = copy.deepcopy(dict(tensors.get("kept", {})))
        values = copy.deepcopy(dict(values))
        self.iteration, self.stopped = values["iteration"], values["stopped"]
        self.history, self.notes = values["history"], values["notes"]

    def _learning_rate_factor(self) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        progress = self.iteration / max(1, self.max_iter)
        if progress < WARM_UP:
            return (self.iteration + 1) / (WARM_UP * self.max_iter + 1)
        return 0.5 * (1.0 + math.cos(math.pi * (progress - WARM_UP) / (1.0 - WARM_UP)))

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average towards the network; its memory grows to ``1 / (1 - decay)`` steps."""
        # Short runs, and the start of long ones, must not remember the untrained weights.
        n = self.iteration
        memory = min(self.ema_decay, (1.0 + n) / (10.0 + n)) if n else 0.0
        averages, weights = self._weights
        torch._foreach_lerp_(averages, weights, 1.0 - memory)  # type: ignore[arg-type]
        for own, new in zip(*self._buffers, strict=True):
            own.copy_(new)

    def _check_finite(self, names: list[str], values: Tensor) -> None:
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            step, term = bad[0].tolist()
            iteration = self.iteration - len(values) + step
            raise FloatingPointError(
                f"the loss term {names[term]!r} is {values[step, term].item()} at iteration "
                f"{iteration}: training diverged. Lower learning_rate, or look for extreme values "
                "in the data."
            )


def _detached(tensors: Any) -> Any:
    """Return nested tensors as copies on the CPU, which training does not change."""
    if isinstance(tensors, Tensor):
        return tensors.detach().to("cpu", copy=True).contiguous()
    return {name: _detached(value) for name, value in tensors.items()}


def _keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the tensors of the next step.

    glibc gives blocks back to the system, and clearing fresh pages then costs as much as the
    arithmetic. It stops doing so for blocks smaller than the largest it has seen freed, up to
    32 MiB; nothing is touched here, so this costs nothing, and elsewhere it does nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def _descend(loss: Tensor, update: Update, optimiser: torch.optim.Optimizer, batch: Batch) -> None:
    for parameter in update.parameters:  # as `zero_grad` does, without its book-keeping
        parameter.grad = None
    loss.backward()
    if batch.is_shared:
        batch.average_gradients(update.parameters)
    nn.utils.clip_grad_norm_(update.parameters, GRADIENT_NORM, foreach=True)
    optimiser.step()


# ---------------------------------------------------------------------------------------
# Minibatches and their random numbers
# ---------------------------------------------------------------------------------------


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
        n = n_processes()
        if size < n:
            raise ValueError(
                f"batch_size must be at least the number of processes, {n}, got minibatches of "
                f"{size} rows."
            )
        rank = dist.get_rank() if n > 1 else 0
        start, end = rank * size // n, (rank + 1) * size // n
        return cls(n_rows, size, start, end - start)

    @property
    def is_shared(self) -> bool:
        """Whether other processes have a part."""
        return self.length < self.size

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw a minibatch and return the indices (length,) of this process's rows."""
        size = (self.size,)
        rows = torch.randint(self.n_rows, size, generator=generator, device=generator.device)
        return rows[self.start : self.start + self.length]

    def average(self, values: Tensor) -> Tensor:
        """Return the mean over all processes, each counting as many times as it has rows."""
        if self.is_shared:
            values = values * (self.length / self.size)
            with _together():
                dist.all_reduce(values)
        return values

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients of means over this process's rows by those over the minibatch."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        mean = self.average(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = mean.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


class BatchGenerator(torch.Generator):
    """A generator that knows which part of each minibatch is this process's.

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
    a row has the same numbers in whichever process it lies.

    Parameters
    ----------
    sampler : callable
        `torch.randn`, `torch.rand`, or another with their arguments.
    shape : sequence of int
        What is wanted.
    generator : torch.Generator
        Source of the numbers, whose device they are on.
    dim : int, default=0
        Axis of the rows.

    Returns
    -------
    Tensor of that shape
    """
    batch = getattr(generator, "batch", None)
    if batch is None:
        return sampler(shape, generator=generator, device=generator.device)
    whole = [*shape[:dim], batch.size, *shape[dim + 1 :]]
    numbers = sampler(whole, generator=generator, device=generator.device)
    return numbers.narrow(dim, batch.start, batch.length)


def add_noise(states: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Return standardised states with Gaussian noise of standard deviation ``scale``."""
    if scale == 0:
        return states
    return states + scale * draw(torch.randn, states.shape, generator)


# ---------------------------------------------------------------------------------------
# Several processes
# ---------------------------------------------------------------------------------------


def n_processes() -> int:
    """Return how many processes train together: those of the default process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first_process() -> bool:
    """Say whether this process is the one that writes files and shows progress."""
    return n_processes() == 1 or dist.get_rank() == 0


def from_first(compute: Callable[[], Result]) -> Result:
    """Return what ``compute`` returns in the first process, where alone it is called."""
    if n_processes() == 1:
        return compute()
    result = [compute() if is_first_process() else None]
    with _together():
        dist.broadcast_object_list(result)
    return result[0]  # type: ignore[return-value]


def _share(
    network: nn.Module, updates: Sequence[Update], batch: Batch, generator: torch.Generator
) -> None:
    """Let all processes start from the same weights and share the random numbers of a row."""
    generator.batch = batch  # type: ignore[attr-defined]
    remembered = [tensor for update in updates for tensor in update.memory.values()]
    with _together():
        for tensor in [*network.state_dict().values(), *remembered]:
            dist.broadcast(tensor, src=0)


@contextmanager
def _together() -> Iterator[None]:
    """Turn the failure of an exchange between processes into an error that says so."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"process {dist.get_rank()} of {dist.get_world_size()} has lost another one in "
            "training: it has ended with an error of its own, was killed, or cannot be reached. "
            "Its output says more; a Checkpoint lets the fit be resumed."
        ) from error
