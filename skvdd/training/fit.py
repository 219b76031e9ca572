"""The life of one fit. Nothing of it touches the estimator until it is done."""

from __future__ import annotations

import copy
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from skvdd.nn.layout import RowLayout
from skvdd.nn.network import PolicyNetwork
from skvdd.randomness import draw_seed
from skvdd.training.loop import REPORTS, Run, Settings, Update
from skvdd.training.minibatches import BatchGenerator, add_noise, batch_generator
from skvdd.training.processes import from_first
from skvdd.training.rows import Rows, standard_rows

# Modules of scikit-learn that pass an estimator's fit on and then end; all others fit more.
PASSING_ON = ("sklearn.pipeline", "sklearn.base", "sklearn.callback", "sklearn.utils")


@dataclass(frozen=True)
class Data:
    """Validated training data.

    Parameters
    ----------
    X : array-like
        As it was given.
    rows : ndarray of shape (n, T * d + g)
        Flat rows, raw units; float64 unless they are streamed.
    actions : ndarray of shape (n, m) or None
        Flat actions, raw units, likewise; None where the teacher gives them.
    layout : RowLayout
        Columns of a row.
    action_shape : tuple of int
        Shape of one action as it was given: ``()``, ``(d_a,)`` or ``(H, d_a)``.
    """

    X: Any
    rows: NDArray
    actions: NDArray | None
    layout: RowLayout
    action_shape: tuple[int, ...]

    @property
    def n_actions(self) -> int:
        """Numbers in one action."""
        return math.prod(self.action_shape)


@dataclass(frozen=True)
class Stage:
    """One training run of a fit.

    Parameters
    ----------
    name : str
        Name in the history and in progress bars.
    updates : sequence of Update
        The steps of one iteration.
    max_iter : int
        Iterations.
    counts : bool, default=True
        Whether its iterations count as ``n_iter_``; those of a warm start do not.
    """

    name: str
    updates: Sequence[Update]
    max_iter: int
    counts: bool = True


@dataclass
class FitStart:
    """What callbacks get when a fit begins, as ``metadata["fit"]``.

    Parameters
    ----------
    rng : RandomState
        Source of every seed of the fit; a callback that resumes an earlier fit puts its in place.
    fingerprint : callable
        Returns what decides the result: class, parameters, and digests of the data, of the
        teacher, and of the weights that the fit starts from.
    """

    rng: np.random.RandomState
    fingerprint: Callable[[], dict[str, Any]]


@dataclass
class Fit:
    """A fit in progress.

    Parameters
    ----------
    estimator : estimator
        The policy that is fitted; read only.
    data : Data
        Validated training data.
    settings : Settings
        How to train.
    device : torch.device
        Where to compute.
    rng : RandomState
        Source of all seeds.
    context : CallbackContext
        Root of the tasks that callbacks see.
    fitted : callable
        Maps this fit, a network, a history and a number of iterations to the attributes of a
        fitted estimator.
    teacher : Teacher or None
        The teacher, seen as the protocol `skvdd.diffusion.Teacher`.
    teacher_estimator : estimator or None
        The same as an estimator, if it was trained for this policy.
    network : PolicyNetwork
        Trained in place, on the device.
    is_fresh : bool
        Whether the network was built in this fit, rather than in an earlier one.
    """

    estimator: Any
    data: Data
    settings: Settings
    device: torch.device
    rng: np.random.RandomState
    context: Any
    fitted: Callable[..., dict[str, Any]]
    teacher: Any = None
    teacher_estimator: Any = None
    network: PolicyNetwork = field(init=False)
    is_fresh: bool = True
    history: list[dict[str, Any]] = field(default_factory=list)
    n_iter: int = 0
    interrupted: bool = False

    def seed(self) -> int:
        """Draw a seed."""
        return draw_seed(self.rng)

    @cached_property
    def generator(self) -> BatchGenerator:
        """Source of minibatches and of all noise of training."""
        return batch_generator(self.device, self.seed())

    @cached_property
    def rows(self) -> Rows:
        """Standardized rows (n, T * d + g), for training."""
        return standard_rows(self.network.row_normalization, self.data.rows, self.device)

    @cached_property
    def actions(self) -> Rows:
        """Standardized actions (n, m), for training; drawn from the teacher if none were given."""
        actions = self.data.actions
        if actions is None:
            # By its own sampler, in raw units.
            actions = self.teacher.sample(self.data.X, random_state=self.seed())
            actions = np.asarray(actions, dtype=np.float64).reshape(len(self.data.rows), -1)
        return standard_rows(self.network.action_normalization, actions, self.device)

    def noised_rows(self, index: Tensor) -> Tensor:
        """Return standardized rows (b, T * d + g), with ``state_noise`` on the states."""
        return add_noise(
            self.rows.index_select(0, index),
            self.estimator.state_noise,
            self.generator,
            n_columns=self.data.layout.n_window,
        )

    def train(self, stage: Stage) -> None:
        """Train the network for one stage, with reports to the callbacks.

        A KeyboardInterrupt ends the stage with a ConvergenceWarning; inside a search, which would
        start other fits, it is raised again once the policy is fitted.

        Raises
        ------
        FloatingPointError
            If a loss is not finite; names the iteration and the term.
        ValueError
            If there are more processes than rows in a minibatch.
        RuntimeError
            If another of several processes ends or cannot be reached.
        """
        self.network.train()
        run = Run(
            self.network,
            stage.updates,
            len(self.data.rows),
            self.settings,
            stage=stage.name,
            max_iter=stage.max_iter,
            generator=self.generator,
            earlier=self.history,
        )
        try:
            self._report(run)
        except KeyboardInterrupt:
            run.interrupted = self.interrupted = True
            warnings.warn(
                f"{type(self.estimator).__name__}: training was interrupted after {run.iteration} "
                f"of {stage.max_iter} iterations; the policy is fitted with what it has learned "
                "so far.",
                ConvergenceWarning,
                stacklevel=2,
            )
        self._end(run, stage)

    def _report(self, run: Run) -> None:
        """Step to the end of a run, with a report to the callbacks every hundredth part."""
        every = max(1, math.ceil(run.max_iter / REPORTS))
        self._stage_context = self.context.subcontext(
            task_name=run.stage, max_subtasks=math.ceil(run.max_iter / every)
        )
        who: dict[str, Any] = {"estimator": self.estimator}
        self._stage_context.call_on_fit_task_begin(**who, metadata={"run": run})
        while not run.finished:
            task = self._stage_context.subcontext(task_name=f"{every} iterations")
            task.call_on_fit_task_begin(**who, metadata={"run": run})
            for _ in range(min(every, run.max_iter - run.iteration)):
                run.step()
            stop = task.call_on_fit_task_end(
                **who,
                metadata={"run": run, "row": run.report()},
                reconstruction_attributes=lambda: self._snapshot(run),
            )
            run.stopped = from_first(lambda stop=stop: stop)  # type: ignore[misc]

    def _end(self, run: Run, stage: Stage) -> None:
        self._stage_context.call_on_fit_task_end(
            estimator=self.estimator,
            metadata={"run": run},
            reconstruction_attributes=lambda: self._snapshot(run),
        )
        run.finish()
        self.history = self.history + run.history
        self.n_iter = run.iteration if stage.counts else 0

    def _snapshot(self, run: Run) -> dict[str, Any]:
        """Return the attributes of a fitted policy as the run stands, with a network of its own."""
        network = copy.deepcopy(run.averaged()).eval()
        return self.fitted(self, network, self.history + run.history, run.iteration)


def is_inside_search() -> bool:
    """Say whether a fit runs inside an estimator or search that will start other fits."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("sklearn.") and not module.startswith(PASSING_ON):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
