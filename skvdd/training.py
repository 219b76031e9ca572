"""The one training loop: minibatches by index on the device, schedule, averaging, history.

What is minimised comes in as `Update` objects; the loop knows nothing of policies.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

REPORTS = 100  # rows of history, and calls of the callbacks, in one run
WARM_UP = 0.05  # share of the run in which the learning rate rises to its full value
GRADIENT_NORM = 1.0  # gradients longer than this are shortened to it


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
        [0, 1], to a `Loss`.
    parameters : sequence of Parameter
        What this step changes.
    learning_rate : float
        Peak of the schedule.
    repeats : int, default=1
        Steps of this kind in each iteration.
    """

    name: str
    loss: Callable[[Tensor, float], Loss]
    parameters: Sequence[nn.Parameter]
    learning_rate: float
    repeats: int = 1


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
        Draws the minibatches, on the device of the network.

    Returns
    -------
    Training
        Also after a KeyboardInterrupt, with a ConvergenceWarning.

    Raises
    ------
    FloatingPointError
        If a loss is not finite; names the iteration and the term.
    """
    network.train()
    _keep_freed_memory()
    run = _Run(network, updates, max_iter, weight_decay, ema_decay, generator)
    report_every = max(1, math.ceil(max_iter / REPORTS))
    context = estimator._callback_fit_ctx.subcontext(
        task_name=stage, max_subtasks=math.ceil(max_iter / report_every)
    )
    context.call_on_fit_task_begin(estimator=estimator)
    history: list[dict[str, Any]] = []
    interrupted = False
    try:
        while run.iteration < max_iter:
            task = context.subcontext(task_name=f"{report_every} iterations")
            task.call_on_fit_task_begin(estimator=estimator)
            for _ in range(min(report_every, max_iter - run.iteration)):
                run.step(n_rows, batch_size)
            history.append({"stage": stage, **run.report()})
            if task.call_on_fit_task_end(
                estimator=estimator, reconstruction_attributes=lambda: run.snapshot(history)
            ):
                break
    except KeyboardInterrupt:
        interrupted = True
        warnings.warn(
            f"{type(estimator).__name__}: training was interrupted after {run.iteration} of "
            f"{max_iter} iterations; the policy is fitted with what it has learnt so far.",
            ConvergenceWarning,
            stacklevel=3,
        )
    context.call_on_fit_task_end(
        estimator=estimator, reconstruction_attributes=lambda: run.snapshot(history)
    )
    return Training(run.averaged().eval(), history, run.iteration, interrupted)


def add_noise(states: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Return standardised states with Gaussian noise of standard deviation ``scale``."""
    if scale == 0:
        return states
    noise = torch.randn(states.shape, generator=generator, device=states.device)
    return states + scale * noise


class _Run:
    """The state of a run: optimisers, schedules, average, losses not yet read back."""

    def __init__(
        self,
        network: nn.Module,
        updates: Sequence[Update],
        max_iter: int,
        weight_decay: float,
        ema_decay: float,
        generator: torch.Generator,
    ) -> None:
        self.network, self.updates, self.generator = network, updates, generator
        self.max_iter, self.iteration = max_iter, 0
        self.optimisers = [
            torch.optim.AdamW(
                u.parameters, lr=u.learning_rate, weight_decay=weight_decay, fused=True
            )
            for u in updates
        ]
        self.schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimiser, self._learning_rate_factor)
            for optimiser in self.optimisers
        ]
        self.average = (
            AveragedModel(network, multi_avg_fn=_moving_average(ema_decay)) if ema_decay else None
        )
        self.losses: list[dict[str, Tensor]] = []

    def step(self, n_rows: int, batch_size: int) -> None:
        """Do one iteration: every update, as often as it repeats, each on rows of its own."""
        progress = self.iteration / max(1, self.max_iter)
        terms: dict[str, Tensor] = {}
        for update, optimiser in zip(self.updates, self.optimisers, strict=True):
            for _ in range(update.repeats):
                rows = torch.randint(
                    n_rows,
                    (min(batch_size, n_rows),),
                    generator=self.generator,
                    device=self.generator.device,
                )
                loss = update.loss(rows, progress)
                _descend(loss.total, update, optimiser)
                terms |= {update.name: loss.total.detach(), **loss.terms}
        for schedule in self.schedules:
            schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.losses.append(terms)
        self.iteration += 1

    def report(self) -> dict[str, float]:
        """Read back the losses since the last report and return their means as a row."""
        names = list(self.losses[0])
        values = torch.stack([torch.stack([row[name] for name in names]) for row in self.losses])
        values = values.double().cpu()
        self._check_finite(names, values)
        self.losses.clear()
        rate = float(self.schedules[0].get_last_lr()[0])
        row = {"iteration": self.iteration, "learning_rate": rate}
        return row | dict(zip(names, values.mean(dim=0).tolist(), strict=True))

    def averaged(self) -> nn.Module:
        """Return the network that the run has learnt so far."""
        return self.network if self.average is None else self.average.module

    def snapshot(self, history: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the attributes that make a fitted estimator of the run as it stands."""
        return {
            "network_": copy.deepcopy(self.averaged()).eval(),
            "history_": list(history),
            "n_iter_": self.iteration,
            "interrupted_": False,
        }

    def _learning_rate_factor(self, iteration: int) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        progress = iteration / max(1, self.max_iter)
        if progress < WARM_UP:
            return (iteration + 1) / (WARM_UP * self.max_iter + 1)
        return 0.5 * (1.0 + math.cos(math.pi * (progress - WARM_UP) / (1.0 - WARM_UP)))

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


def _keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the tensors of the next step.

    glibc gives blocks back to the system, and clearing fresh pages then costs as much as the
    arithmetic. It stops doing so for blocks smaller than the largest it has seen freed, up to
    32 MiB; nothing is touched here, so this costs nothing, and elsewhere it does nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def _descend(loss: Tensor, update: Update, optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(update.parameters, GRADIENT_NORM, foreach=True)
    optimiser.step()


def _moving_average(decay: float) -> Callable[..., None]:
    """Return an update of averaged weights whose memory grows to ``1 / (1 - decay)`` steps."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], n_averaged: Tensor) -> None:
        # Short runs, and the start of long ones, must not remember the untrained weights.
        n = float(n_averaged)
        torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1.0 + n) / (10.0 + n)))

    return update
