"""The experiments: which runs each needs, for which tasks it exists, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks import published
from benchmarks.plan import Plan
from benchmarks.runs import Run
from benchmarks.tables import Column
from benchmarks.variants import HighestLevel, LowestLevel, UniformGating
from skvdd import DiffusionPolicy
from skvdd.envs import TaskSpec

Planner = Callable[[Plan, Sequence[int]], list[Run]]
Variants = dict[str, tuple[str, dict[str, Any]]]  # method and options, by row


@dataclass(frozen=True)
class Experiment:
    """A table or figure.

    Parameters
    ----------
    title : str
        What it shows.
    runs : callable
        ``runs(plan, seeds)`` returns what it needs.
    tasks : tuple of str or None, default=None
        The tasks for which it exists; None for all.
    against : str or None, default=None
        The row with which the others are compared.
    picture : {"dots", "line", "groups"}, default="dots"
        How it is drawn: rows, over the number of experts, or methods in groups of rows.
    beside : {"methods", "steps"} or None, default=None
        Which figures of the paper stand beside ours: those of methods, or by steps of the sampler.
    """

    title: str
    runs: Planner
    tasks: tuple[str, ...] | None = None
    against: str | None = None
    picture: Literal["dots", "line", "groups"] = "dots"
    beside: Literal["methods", "steps"] | None = None

    def exists_for(self, task: str) -> bool:
        """Say whether a task has it."""
        return self.tasks is None or task in self.tasks

    def published(self, task: TaskSpec) -> list[Column]:
        """Return the figures of the paper that stand beside ours."""
        if self.beside is None:
            return []
        if self.beside == "steps":
            tables = published.STEPS_SUCCESS, published.STEPS_ENTROPY
            found = [
                {f"VE-{n}": figure for n, figure in table.get(task.name, {}).items()}
                for table in tables
            ]
        else:
            found = [table.get(task.name, {}) for table in (published.SUCCESS, published.ENTROPY)]
        heads = ("success in the paper", "entropy in the paper")
        return [Column(head, table) for head, table in zip(heads, found, strict=True) if table]


# -- what is run ---------------------------------------------------------------------------------


def methods(*names: str) -> Planner:
    """Return the plan of a table: each method with each seed."""
    return lambda plan, seeds: [plan.run(name, seed) for name in names for seed in seeds]


def rows(variants: Callable[[Plan], Variants]) -> Planner:
    """Return the plan of rows, each a method with options."""
    return lambda plan, seeds: [
        plan.run(method, seed, name=name, **options)
        for name, (method, options) in variants(plan).items()
        for seed in seeds
    ]


def untuned(variants: Callable[[Plan], Variants]) -> Planner:
    """Return the plan of rows whose parameters no search has chosen."""
    return lambda plan, seeds: rows(variants)(replace(plan, tuned={}), seeds)


def students(variants: dict[str, dict[str, Any]]) -> Planner:
    """Return the plan of an ablation: VDD from the VE teacher, each variant with its options."""
    return untuned(lambda plan: {name: ("VDD-VE", options) for name, options in variants.items()})


def sampler_steps(plan: Plan, seeds: Sequence[int]) -> list[Run]:
    """Return the plan of table 5: both teachers with more steps."""
    return [
        plan.run(teacher, seed, name=f"{teacher}-{steps}", settings={"n_steps": steps})
        for teacher in ("VP", "VE")
        for steps in (16, 32, 64)
        for seed in seeds
    ]


def budgets(plan: Plan) -> Variants:
    """Return the rows that take a distillation apart, with as many iterations for each.

    What a student has more than EM is a teacher (its iterations, and an encoder that learned by
    denoising) and the distillation itself; each row leaves some of it out. Parameters that a search
    has chosen are taken.
    """
    student = plan.training("VDD-VE", 0)
    own, teacher = student.estimator, student.teacher
    whole = own.init_iter + own.max_iter + teacher.estimator.max_iter
    # One step of distillation, the fewest there can be, leaves the start as it was.
    longer = {"init_iter": own.init_iter + own.max_iter - 1, "max_iter": 1}
    return {
        "VE, the teacher": ("VE", {}),
        "VDD-VE": ("VDD-VE", {}),
        "VDD-VE, start alone": ("VDD-VE", {"exact": {"max_iter": 1}}),
        "EM on the teacher's encoder": ("VDD-VE", {"exact": longer}),
        "EM, as many iterations": ("EM", {"exact": {"max_iter": whole}}),
        "EM": ("EM", {}),
    }


def teachers(plan: Plan) -> Variants:
    """Return the rows that compare teachers: both processes, and the transformer.

    The short transformer takes about as many seconds as the teacher that encodes states once.
    """
    names = ("VE", "VDD-VE", "VP", "VDD-VP", "GPT", "VDD-GPT")
    short = ("GPT", {"parameters": {"max_iter": 1500}})
    return {"GPT, a quarter of the iterations": short, **{name: (name, {}) for name in names}}


# With an encoder of its own the student's start is a whole EM.
OWN_ENCODER: dict[str, Any] = {"encoder": "mlp", "init_iter": 12_000}
DIFFICULTIES: dict[str, tuple[str, int | None]] = {
    "clean": ("avoiding", None),
    "clean, 24 episodes": ("avoiding", 24),
    "overlapping": ("avoiding-overlapping", None),
    "hesitant": ("avoiding-hesitant", None),
    "long tail": ("avoiding-longtail", None),
    "human-like": ("avoiding-human", None),
    "human-like, 24 episodes": ("avoiding-human", 24),
}


def on_sets(sets: Sequence[str], learners: dict[str, tuple[str, dict[str, Any]]]) -> Planner:
    """Return the plan of methods, with parameters, on several sets of demonstrations."""

    def variants(plan: Plan) -> Variants:
        found: Variants = {}
        for name in sets:
            demonstrations, n_demonstrations = DIFFICULTIES[name]
            data = {"demonstrations": demonstrations, "n_demonstrations": n_demonstrations}
            for row, (method, parameters) in learners.items():
                found[f"{row}, {name}"] = (method, {**data, "parameters": parameters})
        return found

    return untuned(variants)


LEARNERS: dict[str, tuple[str, dict[str, Any]]] = {
    "VE": ("VE", {}),
    "VDD-VE": ("VDD-VE", {}),
    "VDD-VE own encoder": ("VDD-VE", OWN_ENCODER),
    "EM": ("EM", {}),
    "IMC": ("IMC", {}),
}
# "own encoder, long" and "EM" learn the same network as long from the same rows; only one of them
# then listens to the teacher.
ORIGINS: dict[str, tuple[str, dict[str, Any]]] = {
    "VDD-VE": ("VDD-VE", {}),
    "start alone": ("VDD-VE", {"max_iter": 1}),
    "own encoder": ("VDD-VE", {"encoder": "mlp"}),
    "own encoder, long": ("VDD-VE", OWN_ENCODER),
    "EM": ("EM", {}),
    "EM, 4000 iterations": ("EM", {"max_iter": 4000}),
}


# -- the experiments -----------------------------------------------------------------------------

TABLE_1 = ("VP", "VE", "VP-1", "VE-1", "CD-VE", "CTM-VE", "VDD-VP", "VDD-VE")
TABLE_2 = ("EM", "IMC", "VDD-VP", "VDD-VE")
N_EXPERTS = (1, 2, 4, 8, 16, 32)
GATINGS: dict[str, dict[str, Any]] = {
    "with gating": {},
    "without gating": {"make": UniformGating},
}
# Between the bounds of the student, or over the whole range of its teacher.
WHOLE = {name: getattr(DiffusionPolicy(), name) for name in ("noise_min", "noise_max")}
NOISES: dict[str, dict[str, Any]] = {
    "lowest level": {"make": LowestLevel, "parameters": WHOLE},
    "highest level": {"make": HighestLevel, "parameters": WHOLE},
    "uniform, whole range": {"parameters": {"noise": "uniform", **WHOLE}},
    **{noise: {"parameters": {"noise": noise}} for noise in ("uniform", "anneal", "loguniform")},
}
BOUNDS = ((0.03, 0.1), (0.05, 0.25), (0.1, 0.5), (0.1, 1.0), (0.2, 0.5), (0.4, 1.0))
AVOIDING = ("avoiding",)

EXPERIMENTS = {
    "table1": Experiment(
        "Distillation, and the teachers", methods(*TABLE_1), against="VDD-VE", beside="methods"
    ),
    "table2": Experiment(
        "Mixtures of experts, learned and distilled",
        methods(*TABLE_2),
        against="VDD-VE",
        beside="methods",
    ),
    "table5": Experiment(
        "Steps of the sampler", sampler_steps, ("avoiding", "aligning", "pushing"), beside="steps"
    ),
    "budgets": Experiment(
        "Maximum likelihood and distillation with as many iterations",
        rows(budgets),
        ("aligning", "sorting4", "sorting6"),
        against="VDD-VE",
    ),
    "figure3a": Experiment(
        "Number of experts",
        students({f"{n} experts": {"parameters": {"n_experts": n}} for n in N_EXPERTS}),
        AVOIDING,
        picture="line",
    ),
    "figure3b": Experiment("With and without a gating", students(GATINGS), AVOIDING),
    "figure3d": Experiment("Choices of the noise level", students(NOISES), AVOIDING),
    "bounds": Experiment(
        "Bounds of the noise level",
        students(
            {
                f"{low:g} to {high:g}": {"parameters": {"noise_min": low, "noise_max": high}}
                for low, high in BOUNDS
            }
        ),
        AVOIDING,
    ),
    "teachers": Experiment("Teachers: VE, VP, and the transformer", untuned(teachers), AVOIDING),
    "origins": Experiment(
        "Where the advantage of a student comes from",
        on_sets(("overlapping", "human-like"), ORIGINS),
        AVOIDING,
        picture="groups",
    ),
    "difficulty": Experiment(
        "Harder demonstrations", on_sets(tuple(DIFFICULTIES), LEARNERS), AVOIDING, picture="groups"
    ),
}
