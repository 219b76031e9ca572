"""The methods of the paper's tables, and what of each is searched for.

Every method has the library's defaults, but for what the paper searched over (its table 4): those
come from ``tuned.json`` in the results of a task, which ``python -m benchmarks.paper tune`` writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.runs import Run, Training
from skvdd import (
    ConsistencyDistiller,
    ConsistencyTrajectoryDistiller,
    DiffusionPolicy,
    GaussianMoEPolicy,
    IMCPolicy,
    VDDDistiller,
)


@dataclass(frozen=True)
class Task:
    """A benchmark task.

    Parameters
    ----------
    name, env_id : str
        Name in the command line, and its environment.
    n_rollouts : int
        Rollouts of a run at the full budget.
    n_contexts : int or None, default=None
        Contexts of the test list that they share; None where every episode starts alike.
    n_demonstrations : int or None, default=None
        Demonstrations to learn from; None for all that come with the library.
    window_size : int, default=5
        States that a policy sees.
    goal_dim : int, default=0
        Numbers of a goal that the demonstrations record.
    n_experts : int, default=8
        Experts of the mixtures, as in the paper.
    features : bool, default=False
        Whether policies see `~skvdd.datasets.features.task_features` in place of raw states.
    success : {"success_rate", "mean_return"}, default="success_rate"
        What the paper calls success; in Block Push half a point for each block.
    settings : dict, default={}
        Parameters of every policy of this task.
    parameters : dict of dict, default={}
        Parameters of single methods, by their names; what a search chose goes before them.
    """

    name: str
    env_id: str
    n_rollouts: int
    n_contexts: int | None = None
    n_demonstrations: int | None = None
    window_size: int = 5
    goal_dim: int = 0
    n_experts: int = 8
    features: bool = False
    success: str = "success_rate"
    settings: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)


def trained(
    teachers: int, mixtures: int | None = None, **students: Any
) -> dict[str, dict[str, Any]]:
    """Return parameters by method: iterations of teachers and mixtures, and what VDD has."""
    parameters: dict[str, dict[str, Any]] = {name: {"max_iter": teachers} for name in ("VE", "VP")}
    if mixtures is not None:
        parameters |= {name: {"max_iter": mixtures} for name in ("EM", "IMC")}
    return parameters | {name: students for name in ("VDD-VE", "VDD-VP") if students}


# What an episode of hundreds of steps needs takes wider networks. In Pushing the rod has to touch
# a cube to a millimeter: noise of states that helps a hand to recover elsewhere blurs that.
WIDE = {"state_noise": 0.02, "hidden_size": 256}
FINE = {"state_noise": 0.005, "hidden_size": 256, "batch_size": 1024}
# A longer distillation: noise levels up to twice the spread of the actions show an expert modes
# that are far apart, and one sample in one step of the experts leaves time for many iterations.
LONGER = {"scale_floor": 0.05, "noise_min": 0.2, "noise_max": 2.0, "init_iter": 12_000}
LONGER |= {"max_iter": 5_000, "expert_steps": 1, "n_samples": 1}
# Contexts and rollouts are those of the benchmarks' own protocols, but for Sorting's, of whose 60
# contexts here are 30, each with 8 rollouts in place of 8, 18 and 20, and Block Push's, whose 100
# single rollouts tell no entropy: 25 contexts with 8 each.
TASKS = {
    task.name: task
    for task in [
        Task("avoiding", "skvdd/Avoiding-v0", 200),
        Task(
            "pushing",
            "skvdd/Pushing-v0",
            *(480, 30, 1000),
            features=True,
            settings=FINE,
            parameters=trained(12_000, 8_000, noise_min=0.03, noise_max=0.25),
        ),
        Task(
            "aligning",
            "skvdd/Aligning-v0",
            *(480, 60, 1000),
            features=True,
            settings=WIDE,
            parameters=trained(24_000, 12_000, **LONGER),
        ),
        Task(
            "sorting2",
            "skvdd/Sorting2-v0",
            *(240, 30, 3000),
            features=True,
            settings={"state_noise": 0.02},
            parameters=trained(12_000, 8_000),
        ),
        Task(
            "sorting4",
            "skvdd/Sorting4-v0",
            *(240, 30, 3000),
            window_size=1,
            features=True,
            settings=WIDE,
            parameters=trained(24_000, 8_000, **LONGER),
        ),
        Task(
            "sorting6",
            "skvdd/Sorting6-v0",
            *(240, 30, 1000),
            window_size=1,
            features=True,
            settings=WIDE,
            parameters=trained(24_000, 8_000, **LONGER),
        ),
        Task(
            "blockpush",
            "skvdd/BlockPush-v0",
            *(200, 25, 1000),
            goal_dim=4,
            n_experts=4,
            features=True,
            success="mean_return",
            settings={"state_noise": 0.02},
            parameters=trained(24_000, encoder="mlp", init_iter=12_000),
        ),
    ]
}


@dataclass(frozen=True)
class Method:
    """A row of a table.

    Parameters
    ----------
    name : str
        As the paper calls it.
    make : callable
        Builds the unfitted estimator.
    teacher : str or None, default=None
        The method that is distilled.
    trained_as : str or None, default=None
        The method whose policy this one is, under other settings.
    settings : dict, default={}
        Those settings, ``n_steps`` or ``sampler``.
    candidates : tuple of dict, default=()
        Parameters that a search compares; the first is the library's default.
    """

    name: str
    make: Callable[..., Any]
    teacher: str | None = None
    trained_as: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    candidates: tuple[dict[str, Any], ...] = ()


# Three candidates for each method that the paper searched for: the library's default first, the
# paper's own choice for Avoiding, and points of its grid.
VDD_CANDIDATES = (
    {},
    {"noise_min": 0.2, "noise_max": 0.5},  # the paper's
    {"n_experts": 16},
)
CD_CANDIDATES = (
    {},
    {"n_levels": 2, "target_decay": 0.9999},  # the paper's
    {"n_levels": 40},
)
CTM_CANDIDATES = (
    {},
    {"n_levels": 20, "target_decay": 0.9999},  # the paper's
    {"n_levels": 10},
)
EM_CANDIDATES = (
    {},
    {"n_experts": 20},  # the paper's
    {"max_iter": 24_000},
)
IMC_CANDIDATES = (
    {},  # the paper's
    {"eta": 5.0},
    {"n_experts": 20},
)
METHODS = {
    method.name: method
    for method in [
        Method("VP", partial(DiffusionPolicy, "vp")),
        Method("VE", partial(DiffusionPolicy, "ve")),
        Method("VP-1", DiffusionPolicy, trained_as="VP", settings={"n_steps": 1}),
        Method("VE-1", DiffusionPolicy, trained_as="VE", settings={"n_steps": 1}),
        # The transformer runs whole for each noisy action: batches of 64 bring it to minutes.
        Method("GPT", partial(DiffusionPolicy, "ve", "gpt", batch_size=64)),
        Method("VDD-GPT", VDDDistiller, "GPT"),
        Method("CD-VE", ConsistencyDistiller, "VE", candidates=CD_CANDIDATES),
        Method("CTM-VE", ConsistencyTrajectoryDistiller, "VE", candidates=CTM_CANDIDATES),
        Method("VDD-VP", VDDDistiller, "VP", candidates=VDD_CANDIDATES),
        Method("VDD-VE", VDDDistiller, "VE", candidates=VDD_CANDIDATES),
        Method("EM", GaussianMoEPolicy, candidates=EM_CANDIDATES),
        Method("IMC", IMCPolicy, candidates=IMC_CANDIDATES),
    ]
}


@dataclass(frozen=True)
class Plan:
    """What all runs of a command share.

    Parameters
    ----------
    task : Task
        The task.
    folder : Path
        Its results.
    n_rollouts : int
        Rollouts of each run.
    shortening : int
        Iterations of every training are divided by it.
    tuned : dict
        Parameters that the search chose, by method.
    """

    task: Task
    folder: Path
    n_rollouts: int
    shortening: int
    tuned: dict[str, dict[str, Any]]

    def run(
        self,
        method: str,
        seed: int,
        *,
        name: str | None = None,
        demonstrations: str | None = None,
        n_demonstrations: int | None = None,
        parameters: dict[str, Any] | None = None,
        make: Callable[..., Any] | None = None,
    ) -> Run:
        """Return a run of a method; parameters replace the tuned ones, ``make`` the class."""
        training = self.training(
            method,
            seed,
            demonstrations=demonstrations,
            n_demonstrations=n_demonstrations,
            parameters=parameters,
            make=make,
        )
        return Run(
            name or method,
            training,
            self.task.env_id,
            self.n_rollouts,
            seed,
            METHODS[method].settings,
            self.task.n_contexts,
        )

    def training(
        self,
        method: str,
        seed: int,
        *,
        demonstrations: str | None = None,
        n_demonstrations: int | None = None,
        parameters: dict[str, Any] | None = None,
        make: Callable[..., Any] | None = None,
    ) -> Training:
        """Return the training of a method, and of its teacher of the same seed and data."""
        row = METHODS[method]
        data: dict[str, Any] = {
            "demonstrations": demonstrations or self.task.name,
            "n_demonstrations": n_demonstrations or self.task.n_demonstrations,
        }
        if row.trained_as:
            return self.training(row.trained_as, seed, **data)
        settings = {"window_size": self.task.window_size, **self.task.settings}
        estimator = (make or row.make)(random_state=seed, **settings)
        if "n_experts" in estimator.get_params():
            estimator.set_params(n_experts=self.task.n_experts)
        estimator.set_params(goal_dim=self.task.goal_dim)
        own = self.task.parameters.get(method, {})
        estimator.set_params(**{**own, **self.tuned.get(method, {}), **(parameters or {})})
        for name in {"max_iter", "init_iter"} & estimator.get_params().keys():
            shorter = getattr(estimator, name) // self.shortening
            estimator.set_params(**{name: shorter})
        teacher = self.training(row.teacher, seed, **data) if row.teacher else None
        return Training(
            estimator,
            teacher=teacher,
            goal="recorded" if self.task.goal_dim else None,
            features=self.task.name if self.task.features else None,
            **data,
        )


def read_tuned(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what the search chose for each method; nothing before there was one."""
    path = folder / "tuned.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def candidate_name(method: str, parameters: dict[str, Any]) -> str:
    """Return the row of a candidate in the table of a search."""
    setting = " ".join(f"{name}={value:g}" for name, value in parameters.items())
    return f"{method} {setting or 'default'}"
