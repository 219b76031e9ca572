"""How the results of an experiment are written: Markdown, and a picture of the same name."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import published
from benchmarks.figures import Summary, dot_plot, grouped_dot_plot, line_plot, save, summarize
from benchmarks.methods import METHODS, Plan, candidate_name
from benchmarks.runs import CORE, machine, write
from skvdd.evaluation import evaluate_policy, time_action
from skvdd.plotting import TrajectoriesDisplay

Records = dict[str, list[dict[str, Any]]]  # of the seeds of each row

NFES = (1, 8, 32, 64)
TIMED_ITERATIONS = 100
DRAWN_ROLLOUTS = 60
SHOWN_SEED = 2  # whose policies are timed and drawn


def comparison(plan: Plan, name: str, title: str, records: Records) -> str:
    """Write success and entropy of each row, ours and the paper's where it has the task."""
    if plan.task.name not in published.SUCCESS:
        return dots(plan, name, title, records)
    success = published.SUCCESS[plan.task.name]
    entropy = published.ENTROPY.get(plan.task.name, {})
    rows = _quantities(plan, records)
    both = {
        row: (success[row].mean, entropy[row].mean if row in entropy else np.nan)
        for row in rows
        if row in success
    }
    dot_plot(rows, both, title, plan.folder / f"{name}.png")
    return _markdown(
        ("", "success", "paper", "entropy", "paper", "behaviors", "training, s", "seeds"),
        (
            (row, own[0], success.get(row, ""), own[1], entropy.get(row, ""), *_sizes(records[row]))
            for row, own in rows.items()
        ),
    )


def dots(plan: Plan, name: str, title: str, records: Records) -> str:
    """Write success and entropy of rows that the paper has no figures for."""
    dot_plot(_quantities(plan, records), {}, title, plan.folder / f"{name}.png")
    return _table(plan, records)


def against_experts(plan: Plan, name: str, title: str, records: Records) -> str:
    """Write success and entropy against the number of experts."""
    n_experts = [runs[0]["training"]["parameters"]["n_experts"] for runs in records.values()]
    line_plot(
        n_experts,
        list(_quantities(plan, records).values()),
        "experts",
        title,
        plan.folder / f"{name}.png",
    )
    return _table(plan, records)


def difficulties(plan: Plan, name: str, title: str, records: Records) -> str:
    """Write success and entropy of several methods on several sets of demonstrations."""
    groups: dict[str, dict[str, tuple[Summary, Summary]]] = {}
    for row, quantities in _quantities(plan, records).items():
        method, demonstrations = row.split(", ", 1)
        groups.setdefault(demonstrations, {})[method] = quantities
    grouped_dot_plot(groups, title, plan.folder / f"{name}.png")
    return _table(plan, records)


def steps(plan: Plan, name: str, title: str, records: Records) -> str:
    """Write table 5; the paper's row is BESO, our VE."""
    success = published.STEPS_SUCCESS.get(plan.task.name, {})
    entropy = published.STEPS_ENTROPY.get(plan.task.name, {})
    rows = _quantities(plan, records)
    dot_plot(rows, {}, title, plan.folder / f"{name}.png")

    def theirs(row: str, values: dict[int, float]) -> float | str:
        teacher, n_steps = row.split("-")
        return values.get(int(n_steps), "") if teacher == "VE" else ""

    return _markdown(
        ("", "success", "paper", "entropy", "paper"),
        ((row, a, theirs(row, success), b, theirs(row, entropy)) for row, (a, b) in rows.items()),
    )


def search(plan: Plan, name: str, title: str, records: Records) -> str:
    """Write what the search found, and the choice to ``tuned.json``."""
    scores = {row: _d3il_score(plan, runs[0]) for row, runs in records.items()}
    chosen = {}
    for method, row in METHODS.items():
        found = {
            candidate_name(method, parameters): parameters
            for parameters in row.candidates
            if candidate_name(method, parameters) in scores
        }
        if found:  # the first of equals: the list begins with the default
            chosen[method] = max(found, key=lambda candidate: scores[candidate])
            plan.tuned[method] = found[chosen[method]]
    write(plan.folder / "tuned.json", json.dumps(plan.tuned, indent=1) + "\n")
    return _markdown(
        ("candidate", "success", "entropy", "0.8 success + 0.2 entropy", "chosen"),
        (
            (
                row,
                f"{runs[0][plan.task.success]:.3f}",
                f"{runs[0]['entropy']:.3f}",
                f"{scores[row]:.3f}",
                "yes" if row in chosen.values() else "",
            )
            for row, runs in records.items()
        ),
    )


def _d3il_score(plan: Plan, record: dict[str, Any]) -> float:
    """Return how the authors of the benchmark select models."""
    return 0.8 * record[plan.task.success] + 0.2 * record["entropy"]


# -- what is measured, not rolled out -------------------------------------------------------------


def action_times(plan: Plan, name: str, title: str, records: Records) -> str:
    """Measure and write table 3: milliseconds for one action on one thread."""

    def measure() -> dict[str, float]:
        window = plan.training("VE", SHOWN_SEED).rows()[0][0]
        times = {}
        for teacher in ("VE", "VP"):
            policy, _ = plan.training(teacher, SHOWN_SEED).policy()
            for nfe in NFES:  # of Euler's sampler, with one evaluation a step
                times[f"{teacher} {nfe}"] = time_action(policy.with_sampler("euler", nfe), window)
        times["VDD 1"] = time_action(plan.training("VDD-VE", SHOWN_SEED).policy()[0], window)
        return times

    times = _measured(plan.folder / f"{name}.json", measure)
    keys = [(key, *key.split()) for key in times]
    return _markdown(
        ("", "NFE", "one action, ms", "paper, ms (Pushing, RTX 3070)"),
        (
            (policy, nfe, f"{times[key]:.2f}", published.ACTION_MS[policy].get(int(nfe), ""))
            for key, policy, nfe in keys
        ),
    )


def sizes(plan: Plan, name: str, title: str, records: Records) -> str:
    """Measure and write table 7: parameters and seconds against the number of experts."""
    untuned = replace(plan, tuned={})

    def measure() -> dict[str, dict[str, float]]:
        training = untuned.training("VE", SHOWN_SEED)
        states, actions = training.rows()
        teacher, _ = training.policy()
        rows = {}
        for n_experts in published.PARAMETERS:
            student = untuned.training(
                "VDD-VE", SHOWN_SEED, parameters={"n_experts": n_experts}
            ).estimator
            student.set_params(init_iter=0, max_iter=TIMED_ITERATIONS)
            start = time.perf_counter()
            student.fit(states, actions, teacher=teacher)
            seconds = time.perf_counter() - start
            rows[str(n_experts)] = {
                "parameters": sum(p.numel() for p in student.network_.parameters()),
                "seconds": 1000 / TIMED_ITERATIONS * seconds,
            }
        return rows

    rows = _measured(plan.folder / f"{name}.json", measure)
    return _markdown(
        ("experts", "parameters", "paper", "1000 iterations, s", "paper, s (RTX 3070)"),
        (
            (
                n,
                f"{row['parameters']:,}",
                f"{published.PARAMETERS[int(n)]:,}",
                f"{row['seconds']:.1f}",
                published.SECONDS[int(n)],
            )
            for n, row in rows.items()
        ),
    )


def trajectories(plan: Plan, name: str, title: str, records: Records) -> str:
    """Draw figure 4: rollouts colored by the most probable expert, and each of eight experts."""
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    axes = figure.subplots(3, 4)
    untuned = replace(plan, tuned={})
    for axis, n_experts in zip(axes[0], (1, 2, 4, 8), strict=True):
        training = untuned.training("VDD-VE", SHOWN_SEED, parameters={"n_experts": n_experts})
        policy, _ = training.policy()
        evaluation = evaluate_policy(
            policy, plan.task.env_id, DRAWN_ROLLOUTS, random_state=0, progress=False
        )
        display = TrajectoriesDisplay.from_evaluation(evaluation, policy, ax=axis)
        axis.set_title(f"{n_experts} expert{'s' * (n_experts > 1)}")
        axis.get_legend().remove()
    share = np.bincount(np.concatenate(display.experts), minlength=8)
    for expert, axis in enumerate(axes[1:].flat):
        display.plot(axis, expert=expert)
        axis.set_title(f"expert {expert + 1}: {share[expert] / share.sum():.0%} of decisions")
        axis.get_legend().remove()
    save(figure, plan.folder / f"{name}.png")
    return f"{DRAWN_ROLLOUTS} rollouts of the student of seed {SHOWN_SEED}."


def _measured(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what was measured with the present core before, or measure it now and keep it."""
    if not path.is_file() or json.loads(path.read_text()).get("core") != CORE:
        write(path, json.dumps({"rows": measure(), "core": CORE, **machine()}, indent=1) + "\n")
    return json.loads(path.read_text())["rows"]


# -- parts of a table -----------------------------------------------------------------------------


def _table(plan: Plan, records: Records) -> str:
    return _markdown(
        ("", "success", "entropy", "behaviors", "training, s", "seeds"),
        ((row, *own, *_sizes(records[row])) for row, own in _quantities(plan, records).items()),
    )


def _quantities(plan: Plan, records: Records) -> dict[str, tuple[Summary, Summary]]:
    """Return success and entropy of each row."""
    return {
        row: (
            summarize([run[plan.task.success] for run in runs]),
            summarize([run["entropy"] for run in runs]),
        )
        for row, runs in records.items()
    }


def _sizes(runs: list[dict[str, Any]]) -> tuple[str, str, str]:
    """Return the mean number of behaviors and seconds of training, and the number of seeds."""
    behaviors = statistics.fmean(run["n_behaviors"] for run in runs)
    seconds = statistics.fmean(run["training_seconds"] for run in runs)
    return f"{behaviors:.1f}", f"{seconds:.0f}", str(len(runs))


def _markdown(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    header = tuple(header)
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
