"""What the runs of one command share: a task, a budget, and what a search chose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from benchmarks.methods import METHODS, Method, taken
from benchmarks.presets import Parameters, preset_of
from benchmarks.runs import Run
from benchmarks.training import Training, parameters_of
from skvdd.envs import TaskSpec

FIRST_SEED = 2  # the library's defaults were chosen on seeds 0 and 1, so these are not reported
ITERATIONS = ("max_iter", "init_iter")


@dataclass(frozen=True)
class Budget:
    """How much is spent on a run.

    Parameters
    ----------
    name : str
        Its name.
    shortening : float
        Iterations of every training are divided by it.
    sharing : int
        Contexts are divided by it, with as many rollouts in each; without contexts, rollouts.
    """

    name: str
    shortening: float
    sharing: int


BUDGETS = {budget.name: budget for budget in (Budget("full", 1, 1), Budget("quick", 8, 4))}


@dataclass(frozen=True)
class Plan:
    """What all runs of a command share.

    Parameters
    ----------
    task : TaskSpec
        The task.
    budget : Budget
        How long policies learn, and in how many contexts they play.
    tuned : dict, default={}
        Parameters that a search chose, by method.
    split : {"test", "validation", "train"}, default="test"
        The list of contexts; a name alone where every episode starts alike.
    n_demonstrations : int or None, default=None
        Demonstrations to learn from, in place of those of the preset.
    """

    task: TaskSpec
    budget: Budget
    tuned: dict[str, Parameters] = field(default_factory=dict)
    split: str = "test"
    n_demonstrations: int | None = None

    # -- rollouts --------------------------------------------------------------------------------

    @property
    def n_contexts(self) -> int | None:
        """Contexts in which every run plays; None where every episode starts alike."""
        n = self.task.n_contexts
        return None if n is None else ceil(n / self.budget.sharing)

    @property
    def n_rollouts(self) -> int:
        """Rollouts of a run."""
        if self.n_contexts is None:
            return ceil(self.task.n_rollouts / self.budget.sharing)
        return self.n_contexts * self.task.n_rollouts

    def run(
        self,
        method: str | Method,
        seed: int,
        *,
        name: str | None = None,
        settings: Parameters | None = None,
        **options: Any,
    ) -> Run:
        """Return a run of a method; ``settings`` are of the sampler, options those of training."""
        method = METHODS[method] if isinstance(method, str) else method
        return Run(
            name or method.name,
            self.training(method, seed, **options),
            self.task.name,
            self.n_rollouts,
            seed,
            settings or method.settings,
            self.n_contexts,
            self.split,
            self.budget.name,
        )

    # -- trainings -------------------------------------------------------------------------------

    def training(
        self,
        method: str | Method,
        seed: int,
        *,
        demonstrations: str | None = None,
        n_demonstrations: int | None = None,
        parameters: Parameters | None = None,
        exact: Parameters | None = None,
        make: Callable[..., Any] | None = None,
    ) -> Training:
        """Return the training of a method, and of its teacher of the same seed and data.

        Parameters
        ----------
        method : str or Method
            Which.
        seed : int
            Of policy and teacher.
        demonstrations, n_demonstrations : str and int, default=None
            Other data than those of the task.
        parameters : dict, default=None
            Replace those of preset and search; iterations among them are divided as others are.
        exact : dict, default=None
            Replace all before, as they are.
        make : callable, default=None
            Another class than the method's.
        """
        method = METHODS[method] if isinstance(method, str) else method
        n = n_demonstrations or self.n_demonstrations or preset_of(self.task).n_demonstrations
        data: dict[str, Any] = {
            "demonstrations": demonstrations or self.task.name,
            "n_demonstrations": n,
        }
        if method.trained_as:
            options = {**data, "parameters": parameters, "exact": exact}
            return self.training(method.trained_as, seed, **options)
        make = make or method.make
        arguments = self._arguments(method, seed, parameters or {}, exact or {}, make)
        teacher = self.training(method.teacher, seed, **data) if method.teacher else None
        return Training(
            make(**arguments),
            teacher=teacher,
            goal="recorded" if self.task.goal_dim else None,
            features=self.task.name if self.task.features else None,
            arguments=arguments if method.is_foreign else None,
            **data,
        )

    def _arguments(
        self,
        method: Method,
        seed: int,
        parameters: Parameters,
        exact: Parameters,
        make: Callable[..., Any],
    ) -> Parameters:
        """Return what the unfitted policy is made with."""
        preset = preset_of(self.task)
        given = {"random_state": seed, "window_size": preset.window_size}
        given["goal_dim"] = self.task.goal_dim
        own: Parameters = {}
        if not method.is_foreign:
            given |= {"n_experts": preset.n_experts, **preset.settings}
            own = {**preset.parameters.get(method.name, {}), **self.tuned.get(method.name, {})}
        chosen = {**taken(make, given), **own, **parameters, **exact}
        known = parameters_of(make(**chosen), chosen)
        shorter = {
            name: known[name] and max(1, int(known[name] / self.budget.shortening))
            for name in ITERATIONS
            if name in known and name not in exact
        }
        return {**chosen, **shorter}
