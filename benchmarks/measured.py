"""What is measured on single policies, not rolled out in many contexts: times, sizes, paths."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks import published
from benchmarks.figures import save
from benchmarks.plan import FIRST_SEED, Plan
from benchmarks.provenance import commit, environment
from benchmarks.tables import markdown
from benchmarks.training import CORE, write
from skvdd.evaluation import evaluate_policy, time_action
from skvdd.persistence import write_whole
from skvdd.plotting import TrajectoriesDisplay

NFES = (1, 8, 32, 64)
TIMED_ITERATIONS = 100
DRAWN_EXPERTS = (1, 2, 4, 8)
DRAWN_ROLLOUTS = 60
STEP = 1e-4  # m, in which drawn positions are kept


@dataclass(frozen=True)
class Measurement:
    """Something that is measured once and kept.

    Parameters
    ----------
    title : str
        What it is.
    measure : callable
        ``measure(plan, path)`` writes the file.
    report : callable
        ``report(path, picture)`` returns Markdown, and draws the picture if it has one.
    ending : str, default="json"
        Of the file.
    tasks : tuple of str or None, default=None
        The tasks for which it exists; None for all.
    """

    title: str
    measure: Callable[[Plan, Path], None]
    report: Callable[[Path, Path], str]
    ending: str = "json"
    tasks: tuple[str, ...] | None = None

    def exists_for(self, task: str) -> bool:
        """Say whether a task has it."""
        return self.tasks is None or task in self.tasks


def keep(path: Path, rows: dict[str, Any]) -> None:
    """Write measured rows, with what they were measured on."""
    found = {"rows": rows, "core": CORE, **environment(commit())}
    write(path, json.dumps(found, indent=1) + "\n")


# -- table 3 -------------------------------------------------------------------------------------


def measure_times(plan: Plan, path: Path) -> None:
    """Measure milliseconds for one action on one thread."""
    window = plan.training("VE", FIRST_SEED).rows()[0][0]
    times = {}
    for teacher in ("VE", "VP"):
        policy, _ = plan.training(teacher, FIRST_SEED).policy()
        for nfe in NFES:  # of Euler's sampler, with one evaluation a step
            times[f"{teacher} {nfe}"] = time_action(policy.with_sampler("euler", nfe), window)
    times["VDD 1"] = time_action(plan.training("VDD-VE", FIRST_SEED).policy()[0], window)
    keep(path, times)


def report_times(path: Path, picture: Path) -> str:
    """Return table 3."""
    found = json.loads(path.read_text())
    keys = [(key, *key.split()) for key in found["rows"]]
    table = markdown(
        ("", "NFE", "one action, ms", "paper, ms (Pushing, RTX 3070)"),
        (
            (policy, n, f"{found['rows'][key]:.2f}", published.ACTION_MS[policy].get(int(n), ""))
            for key, policy, n in keys
        ),
    )
    return f"One thread of {_origin(found)}.\n\n{table}"


# -- table 7 -------------------------------------------------------------------------------------


def measure_sizes(plan: Plan, path: Path) -> None:
    """Measure parameters and seconds against the number of experts."""
    plain = replace(plan, tuned={})
    training = plain.training("VE", FIRST_SEED)
    states, actions = training.rows()
    teacher, _ = training.policy()
    rows = {}
    for n_experts in published.PARAMETERS:
        options = {"n_experts": n_experts, "init_iter": 0, "max_iter": TIMED_ITERATIONS}
        student = plain.training("VDD-VE", FIRST_SEED, exact=options).estimator
        start = time.perf_counter()
        student.fit(states, actions, teacher=teacher)
        seconds = time.perf_counter() - start
        rows[str(n_experts)] = {
            "parameters": sum(p.numel() for p in student.network_.parameters()),
            "seconds": 1000 / TIMED_ITERATIONS * seconds,
        }
    keep(path, rows)


def report_sizes(path: Path, picture: Path) -> str:
    """Return table 7."""
    found = json.loads(path.read_text())
    table = markdown(
        ("experts", "parameters", "paper", "1000 iterations, s", "paper, s (RTX 3070)"),
        (
            (
                n,
                f"{row['parameters']:,}",
                f"{published.PARAMETERS[int(n)]:,}",
                f"{row['seconds']:.1f}",
                published.SECONDS[int(n)],
            )
            for n, row in found["rows"].items()
        ),
    )
    return f"One thread of {_origin(found)}.\n\n{table}"


def _origin(found: dict[str, Any]) -> str:
    return f"{found['processor']}, torch {found['torch']}, at {found['commit']}"


# -- figure 4 ------------------------------------------------------------------------------------


def measure_paths(plan: Plan, path: Path) -> None:
    """Roll students of several sizes out; keep where they went, by which expert."""
    arrays: dict[str, NDArray[Any]] = {}
    for n_experts in DRAWN_EXPERTS:
        training = replace(plan, tuned={}).training(
            "VDD-VE", FIRST_SEED, parameters={"n_experts": n_experts}
        )
        policy, _ = training.policy()
        evaluation = evaluate_policy(
            policy, plan.task.name, DRAWN_ROLLOUTS, random_state=0, progress=False
        )
        display = TrajectoriesDisplay.from_evaluation(evaluation, policy, ax=_blank_axes())
        places = np.concatenate(display.paths) / STEP
        arrays[f"{n_experts} places"] = places.round().astype(np.int16)
        arrays[f"{n_experts} lengths"] = np.array([len(p) for p in display.paths], np.int16)
        arrays[f"{n_experts} successes"] = np.asarray(display.successes)
        arrays[f"{n_experts} experts"] = np.concatenate(display.experts).astype(np.int8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_whole(path, buffer.getvalue())


def report_paths(path: Path, picture: Path) -> str:
    """Draw figure 4: rollouts colored by the most probable expert, and each of eight experts."""
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    axes = figure.subplots(3, 4)
    with np.load(path, allow_pickle=False) as found:
        displays = [_display(found, n) for n in DRAWN_EXPERTS]
    for axis, n_experts, display in zip(axes[0], DRAWN_EXPERTS, displays, strict=True):
        display.plot(axis)
        axis.set_title(f"{n_experts} expert{'s' * (n_experts > 1)}")
        axis.get_legend().remove()
    share = np.bincount(np.concatenate(display.experts), minlength=DRAWN_EXPERTS[-1])
    for expert, axis in enumerate(axes[1:].flat):
        display.plot(axis, expert=expert)
        axis.set_title(f"expert {expert + 1}: {share[expert] / share.sum():.0%} of decisions")
        axis.get_legend().remove()
    save(figure, picture)
    return f"{DRAWN_ROLLOUTS} rollouts of the student of seed {FIRST_SEED}."


def _display(found: Any, n_experts: int) -> TrajectoriesDisplay:
    ends = np.cumsum(found[f"{n_experts} lengths"])[:-1]
    paths = np.split(found[f"{n_experts} places"] * STEP, ends)
    experts = np.split(found[f"{n_experts} experts"].astype(np.intp), ends)
    return TrajectoriesDisplay(paths, found[f"{n_experts} successes"], experts, n_experts)


def _blank_axes() -> Any:
    return Figure().subplots()


MEASUREMENTS = {
    "table3": Measurement("Time of one action", measure_times, report_times),
    "table7": Measurement(
        "Size and seconds of a student", measure_sizes, report_sizes, tasks=("avoiding",)
    ),
    "figure4": Measurement(
        "Rollouts by expert", measure_paths, report_paths, "npz", tasks=("avoiding",)
    ),
}
