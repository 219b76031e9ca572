"""The one training loop: minibatches by index on the device, schedule, EMA, history.

An `Update` says what is minimized; the loop has no notion of policies. Where the default process
group of `torch.distributed` has several processes, they share every minibatch: each takes a slice
of the same rows, with the same random numbers, and gradients are averaged.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from skvdd.training.minibatches import Batch
from skvdd.training.processes import copy_from_first
from skvdd.training.replay import Replay

REPORTS = 100  # rows of history, and calls of the callbacks, in one run
WARM_UP = 0.05  # fraction of the run in which the learning rate rises to its full value
MAX_GRADIENT_NORM = 1.0  # longer gradients are clipped to this norm


@dataclass(frozen=True)
class Loss:
    """One evaluation of an objective.

    Parameters
    ----------
    total : Tensor of shape ()
        What the optimizer minimizes.
    terms : dict of str to Tensor of shape ()
        What else is worth a column in the history; detached.
    """

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """One kind of optimizer step inside an iteration.

    Parameters
    ----------
    name : str
        Column of ``total`` in the history.
    loss : callable
        Maps the row indices of a minibatch (b,) and the fraction of training that is done, in
        [0, 1], to a `Loss`. The fraction is a number, or a tensor where an iteration is replayed.
    parameters : sequence of Parameter
        What this step changes.
    repeats : int, default=1
        Steps of this kind in each iteration.
    memory : mapping of str to Tensor
        State of the loss, changed in place from step to step; part of every checkpoint.
    prepare : callable, optional
        Called with the number of iterations done before each iteration, for what is not done in
        each alike.
    replayable : bool, default=True
        Whether a GPU may repeat the loss without Python: always the same operations, none of which
        needs the host (`skvdd.training.replay`).
    """

    name: str
    loss: Callable[[Tensor, float | Tensor], Loss]
    parameters: Sequence[nn.Parameter]
    repeats: int = 1
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    prepare: Callable[[int], None] | None = None
    replayable: bool = True


@dataclass(frozen=True)
class Settings:
    """How a run trains.

    Parameters
    ----------
    learning_rate : float
        Peak of the schedule, which rises linearly and then falls as a cosine.
    weight_decay : float
        Of AdamW.
    ema_decay : float
        Factor of the exponential moving average (EMA) of the weights; 0 for none.
    batch_size : int
        Rows in a minibatch; all rows if there are fewer.
    """

    learning_rate: float
    weight_decay: float
    ema_decay: float
    batch_size: int


class Run:
    """The state of a run: optimizers, EMA, history, and what callbacks keep with it.

    Parameters
    ----------
    network : torch.nn.Module
        Holds the parameters of all updates; trained in place.
    updates : sequence of Update
        The steps of one iteration, in order.
    n_rows : int
        Minibatches are indices below this number, drawn uniformly.
    settings : Settings
        Learning rate, decays, batch size.
    stage : str
        Name of the run in the history and in progress bars.
    max_iter : int
        Iterations.
    generator : torch.Generator
        Draws the minibatches, on the device of the network; a `BatchGenerator` where several
        processes train together.

    Attributes
    ----------
    iteration : int
        Iterations done.
    stopped, interrupted : bool
        Whether a callback, or a KeyboardInterrupt, has ended the run.
    history : list of dict
        Rows so far.
    earlier : list of dict
        Rows of the earlier stages of the same fit.
    notes : dict of str to dict
        Numbers that callbacks keep, by the name of the callback.
    kept : dict of str to dict of Tensor
        Weights that callbacks keep, likewise.
    """

    def __init__(
        self,
        network: nn.Module,
        updates: Sequence[Update],
        n_rows: int,
        settings: Settings,
        *,
        stage: str,
        max_iter: int,
        generator: torch.Generator,
        earlier: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.network, self.updates, self.settings = network, updates, settings
        self.stage, self.max_iter, self.generator = stage, max_iter, generator
        self.batch = Batch.of(n_rows, min(settings.batch_size, n_rows))
        self.iteration, self.stopped, self.interrupted = 0, False, False
        self.history: list[dict[str, Any]] = []
        self.earlier = list(earlier)
        self.notes: dict[str, dict[str, float]] = {}
        self.kept: dict[str, dict[str, Tensor]] = {}
        self.loss_names: list[str] = []
        self.losses: list[Tensor] = []  # a row each iteration, not yet read back
        if self.batch.is_shared:
            _share(network, updates, self.batch, generator)
        self._replay = Replay(generator) if self._can_be_replayed() else None
        self.optimizers = self._make_optimizers()
        self.ema = copy.deepcopy(network) if settings.ema_decay else None
        # Listed once: to walk through the modules takes longer than to average their weights.
        pair = network, self.averaged()
        trained = [p.requires_grad for p in network.parameters()]
        self._weights = [
            [p for p, chosen in zip(module.parameters(), trained, strict=True) if chosen]
            for module in pair
        ]
        self._buffers = [list(module.buffers()) for module in pair]

    def _can_be_replayed(self) -> bool:
        on_gpu = self.generator.device.type == "cuda"
        return on_gpu and not self.batch.is_shared and all(u.replayable for u in self.updates)

    def _make_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return an optimizer for each update, and set up what changes between iterations."""
        self.progress: float | Tensor = 0.0
        rate: float | Tensor = self.settings.learning_rate
        if self._replay is not None:  # tensors that a replay reads, in place of numbers
            clock = torch.tensor([0.0, rate], dtype=torch.float32, device=self.generator.device)
            self.progress, rate = clock.unbind()
        return [
            torch.optim.AdamW(
                update.parameters,
                lr=rate,
                weight_decay=self.settings.weight_decay,
                fused=True,
                capturable=self._replay is not None,
            )
            for update in self.updates
        ]

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.stopped or self.iteration >= self.max_iter

    def step(self) -> None:
        """Do one iteration: every update, as often as it repeats, each on rows of its own."""
        self._set_clock()
        for update in self.updates:
            if update.prepare is not None:
                update.prepare(self.iteration)
        steps = self._optimizer_steps
        self.losses.append(self._replay(steps) if self._replay else steps())
        if self.ema is not None:
            self._update_ema()
        self.iteration += 1

    def _set_clock(self) -> None:
        """Set the fraction of training that is done, and the learning rate of this iteration."""
        progress, rate = self.iteration / max(1, self.max_iter), self._learning_rate(self.iteration)
        if isinstance(self.progress, Tensor):
            self.progress.fill_(progress)
        else:
            self.progress = progress
        for optimizer in self.optimizers:
            group = optimizer.param_groups[0]
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _learning_rate(self, iteration: int) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        progress = iteration / max(1, self.max_iter)
        if progress < WARM_UP:
            factor = (iteration + 1) / (WARM_UP * self.max_iter + 1)
        else:
            factor = 0.5 * (1.0 + math.cos(math.pi * (progress - WARM_UP) / (1.0 - WARM_UP)))
        return self.settings.learning_rate * factor

    def _optimizer_steps(self) -> Tensor:
        """Take the steps of an iteration and return the losses, in the order of their names."""
        terms: dict[str, Tensor] = {}
        for update, optimizer in zip(self.updates, self.optimizers, strict=True):
            for _ in range(update.repeats):
                loss = update.loss(self.batch.draw(self.generator), self.progress)
                self._optimizer_step(loss.total, update.parameters, optimizer)
                terms |= {update.name: loss.total.detach(), **loss.terms}
        self.loss_names = list(terms)
        return torch.stack(list(terms.values()))

    def _optimizer_step(
        self, loss: Tensor, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        for parameter in parameters:  # as `zero_grad` does, without its bookkeeping
            parameter.grad = None
        loss.backward()
        if self.batch.is_shared:
            self.batch.average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM, foreach=True)
        optimizer.step()

    @torch.no_grad()
    def _update_ema(self) -> None:
        """Move the EMA toward the network; its memory grows to ``1 / (1 - decay)`` steps."""
        # Short runs, and the start of long ones, must not remember the untrained weights.
        n = self.iteration
        memory = min(self.settings.ema_decay, (1.0 + n) / (10.0 + n)) if n else 0.0
        weights, averages = self._weights
        torch._foreach_lerp_(averages, weights, 1.0 - memory)  # type: ignore[arg-type]
        own, buffers = self._buffers
        if buffers:
            torch._foreach_copy_(buffers, own)

    def report(self) -> dict[str, Any]:
        """Read back the losses since the last report and add their means to the history."""
        names = self.loss_names
        values = self.batch.average(torch.stack(self.losses)).cpu().double()
        self._check_finite(names, values)
        self.losses.clear()
        row = {
            "stage": self.stage,
            "iteration": self.iteration,
            "learning_rate": self._learning_rate(self.iteration - 1),
        }
        row |= dict(zip(names, values.mean(dim=0).tolist(), strict=True))
        self.history.append(row)
        return row

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

    def averaged(self) -> nn.Module:
        """Return the network that predicts: the EMA of the weights, where there is one."""
        return self.network if self.ema is None else self.ema

    def finish(self) -> None:
        """Leave the EMA of the weights in the network, which then is in evaluation mode."""
        if self.ema is not None:
            self.network.load_state_dict(self.ema.state_dict())
        self.network.eval()

    # -- checkpoints -----------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a copy of all that the run needs to resume: nested tensors, and plain values."""
        tensors = {
            "generator": self.generator.get_state(),
            "network": self.network.state_dict(),
            "ema": {} if self.ema is None else self.ema.state_dict(),
            "optimizers": {
                str(i): {str(j): moments for j, moments in o.state_dict()["state"].items()}
                for i, o in enumerate(self.optimizers)
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
        """Resume from a state that `state` returned; any error means that it is damaged."""
        _check_values(values, self.max_iter)
        _set_state(self.generator, tensors["generator"])
        self.network.load_state_dict(tensors["network"])
        if self.ema is not None:
            self.ema.load_state_dict(tensors["ema"])
        for i, optimizer in enumerate(self.optimizers):
            moments = tensors.get("optimizers", {}).get(str(i), {})
            state = {int(j): moment for j, moment in moments.items()}
            _check_moments(state, self.updates[i].parameters)
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        for i, update in enumerate(self.updates):
            for name, value in update.memory.items():
                value.copy_(tensors["memory"][str(i)][name])
        self.kept = copy.deepcopy(dict(tensors.get("kept", {})))
        values = copy.deepcopy(dict(values))
        self.iteration, self.stopped = values["iteration"], values["stopped"]
        self.history, self.notes = values["history"], values["notes"]


def _check_values(values: Mapping[str, Any], max_iter: int) -> None:
    """Raise a ValueError where plain values of a state cannot be those of a run."""
    if not 0 <= values["iteration"] <= max_iter:
        raise ValueError(f"iteration {values['iteration']} of {max_iter}")
    for name, rows in (("history", values["history"]), ("notes", values["notes"].values())):
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"its {name} has rows that are none")


def _check_moments(
    state: Mapping[int, Mapping[str, Tensor]], parameters: Sequence[nn.Parameter]
) -> None:
    """Raise a ValueError unless an optimizer's moments have the shapes of its parameters."""
    for j, moments in state.items():
        shape = parameters[j].shape
        if any(moments[name].shape != shape for name in ("exp_avg", "exp_avg_sq")):
            raise ValueError(f"the optimizer's moments of parameter {j} are not of shape {shape}")


def _set_state(generator: torch.Generator, state: Tensor) -> None:
    """Set a generator's state; that of another kind of device becomes a seed."""
    if state.shape == generator.get_state().shape:
        generator.set_state(state)
        return
    digest = hashlib.sha256(state.numpy().tobytes()).digest()
    generator.manual_seed(int.from_bytes(digest[:6], "little"))


def _detached(tensors: Any) -> Any:
    """Return nested tensors as copies on the CPU, which training does not change."""
    if isinstance(tensors, Tensor):
        return tensors.detach().to("cpu", copy=True).contiguous()
    return {name: _detached(value) for name, value in tensors.items()}


def _share(
    network: nn.Module, updates: Sequence[Update], batch: Batch, generator: torch.Generator
) -> None:
    """Let all processes start from the same weights and share the random numbers of a row."""
    generator.batch = batch  # type: ignore[attr-defined]
    memory = [tensor for update in updates for tensor in update.memory.values()]
    copy_from_first([*network.state_dict().values(), *memory])
