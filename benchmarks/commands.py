"""What the command line does: train and roll out, search, and print tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.experiments import EXPERIMENTS
from benchmarks.measured import MEASUREMENTS
from benchmarks.methods import METHODS, Method, find_method, read_tuned, setting_name, taken
from benchmarks.pages import SEARCH, page
from benchmarks.plan import BUDGETS, FIRST_SEED, Plan
from benchmarks.presets import Parameters
from benchmarks.records import Store
from benchmarks.runs import Run, execute
from benchmarks.tables import Table, by_name
from benchmarks.training import write
from skvdd.envs import get_task

TUNING_SEED = 100  # never one that is reported
TUNING_SHARE = 2  # divisor of the contexts of a search


def seeds_of(n_seeds: int) -> range:
    """Return the seeds that are reported."""
    return range(FIRST_SEED, FIRST_SEED + n_seeds)


# -- run and table -------------------------------------------------------------------------------


def run(
    task: str,
    methods: Sequence[str],
    folder: Path,
    *,
    n_seeds: int = 3,
    jobs: int = 1,
    budget: str = "full",
    split: str = "test",
    settings: Sequence[str] = (),
    iterations: int | None = None,
    equal: bool = True,
    n_demonstrations: int | None = None,
    imports: Sequence[str] = (),
) -> list[str]:
    """Train methods and roll them out; print their table, and return what failed.

    Parameters
    ----------
    task : str
        Name of a registered task.
    methods : sequence of str
        Names of methods, or ``"module:Class"``.
    folder : Path
        Where the records go.
    n_seeds, jobs : int, default=3, 1
        How many seeds, and runs at a time.
    budget : {"full", "quick"}, default="full"
        How much is spent.
    split : str, default="test"
        The list of contexts.
    settings : sequence of str, default=()
        ``"max_iter=24000"`` for all methods that take it, ``"EM:n_experts=20"`` for one.
    iterations : int or None, default=None
        Iterations of all trainings of a method together; None is what VDD-VE takes in this task.
    equal : bool, default=True
        Whether every method gets as many; False leaves what the preset of the task says.
    n_demonstrations : int or None, default=None
        In place of what the preset says.
    imports : sequence of str, default=()
        Modules that register tasks.
    """
    plan = Plan(get_task(task), BUDGETS[budget], read_tuned(folder), split, n_demonstrations)
    if iterations is not None:
        plan = scaled(plan, iterations)
    wanted = []
    _check_settings(settings, methods)
    for method in map(find_method, methods):
        chosen = parameters_for(method, settings)
        fair = at_equal_cost(plan, method, chosen, iterations) if equal else {}
        name = setting_name(method.name, chosen)
        exact = {**fair, **chosen}
        wanted += [plan.run(method, seed, name=name, exact=exact) for seed in seeds_of(n_seeds)]
    print(f"{task}: {len(wanted)} runs", flush=True)
    failures = execute(wanted, folder, jobs, imports)
    print(f"\n{_table_of(task, wanted, folder)}\n", flush=True)
    return failures


def parameters_for(method: Method, settings: Iterable[str]) -> Parameters:
    """Return what ``--set`` says for a method."""
    chosen = {}
    for setting in settings:
        target, _, text = setting.partition("=")
        owner, _, name = target.rpartition(":")
        if not text or not name:
            raise ValueError(f"--set must be [METHOD:]NAME=VALUE, got {setting!r}.")
        if owner and find_method(owner).name != method.name:
            continue
        if not owner and not taken(method.make, {name: None}):
            continue
        chosen[name] = _value(text)
    return chosen


def _check_settings(settings: Iterable[str], methods: Sequence[str]) -> None:
    """Raise a ValueError for a setting that no method takes."""
    for setting in settings:
        if not any(parameters_for(method, [setting]) for method in map(find_method, methods)):
            raise ValueError(f"--set must be of {' or '.join(methods)}, got {setting!r}.")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def at_equal_cost(
    plan: Plan, method: Method, chosen: Parameters, iterations: int | None = None
) -> Parameters:
    """Return the iterations that give a method so many in all, or as many as VDD-VE has."""
    whole = iterations or plan.training("VDD-VE", 0).iterations
    training = plan.training(method, 0, exact=chosen)
    own = training.parameters.get("max_iter")
    if own is None or "max_iter" in chosen:
        return {}
    before = training.iterations - own  # of its teacher, and of its start
    if whole <= before:
        raise ValueError(
            f"--iterations must be more than the {before} that {method.name} has before its own, "
            f"got {whole}."
        )
    return {"max_iter": whole - before}


def scaled(plan: Plan, iterations: int) -> Plan:
    """Return the plan in which VDD-VE has about so many iterations in all."""
    whole = replace(plan, budget=BUDGETS["full"]).training("VDD-VE", 0).iterations
    return replace(plan, budget=replace(plan.budget, shortening=whole / iterations))


def _table_of(task: str, runs: Sequence[Run], folder: Path) -> Table:
    """Return the table of some runs."""
    wanted = {run.key for run in runs}
    found = [r for r in Store(folder).records(get_task(task)) if r.row["key"] in wanted]
    rows = by_name(found)
    return Table(get_task(task), {name: rows[name] for name in rows}, next(iter(rows), None))


def table(
    task: str,
    folder: Path,
    *,
    rows: Sequence[str] = (),
    against: str | None = None,
    split: str = "test",
    budget: str = "full",
) -> Table:
    """Return the table of all that is recorded of a task, from records alone.

    Parameters
    ----------
    task : str
        Name of a registered task.
    folder : Path
        Its records.
    rows : sequence of str, default=()
        Names of rows, in this order; none for all.
    against : str or None, default=None
        A method, or a row, with which the others are compared.
    split, budget : str, default="test", "full"
        Of the runs.
    """
    spec = get_task(task)
    records = [
        record
        for record in Store(folder).records(spec)
        if (record.row["split"], record.row["budget"]) == (split, budget)
    ]
    found = by_name(records)
    known = ", ".join(map(repr, found)) or "none"
    wanted = []
    for name in rows or found:
        if not (matching := _rows_of(name, found)):
            raise ValueError(f"--rows must be of {known}, got {name!r}.")
        wanted += matching
    chosen = {name: found[name] for name in wanted}
    if against is None:
        return Table(spec, chosen)
    matching = _rows_of(against, chosen)
    if len(matching) != 1:
        known = ", ".join(map(repr, matching or chosen)) or "none"
        raise ValueError(f"--against must be one of {known}, got {against!r}.")
    return Table(spec, chosen, matching[0])


def _rows_of(name: str, rows: Iterable[str]) -> list[str]:
    """Return the row of a name, or all of the method of that name."""
    try:
        method = find_method(name).name
    except (TypeError, ValueError):
        method = name
    for exact in (name, method):
        if exact in rows:
            return [exact]
    return [row for row in rows if row.startswith((f"{method},", f"{method} "))]


# -- search --------------------------------------------------------------------------------------


def search(
    task: str,
    methods: Sequence[str],
    folder: Path,
    *,
    jobs: int = 1,
    budget: str = "full",
    n_demonstrations: int | None = None,
    imports: Sequence[str] = (),
) -> list[str]:
    """Compare the candidates of methods in contexts of the validation list; keep the best.

    Parameters
    ----------
    task, methods, folder, jobs, budget, n_demonstrations, imports : as in `run`
        Which.
    """
    spec = get_task(task)
    whole = BUDGETS[budget]
    fewer = replace(whole, sharing=whole.sharing * TUNING_SHARE)
    plan = Plan(spec, fewer, split="validation", n_demonstrations=n_demonstrations)
    runs: dict[str, tuple[str, Parameters, Run]] = {}
    for method in map(find_method, methods):
        if not method.candidates:
            searched = ", ".join(m for m in METHODS if METHODS[m].candidates)
            raise ValueError(f"--method must be one of {searched}, got {method.name}.")
        for candidate in method.candidates:
            name = setting_name(method.name, candidate)
            one = plan.run(method, TUNING_SEED, name=name, parameters=candidate)
            runs[name] = (method.name, candidate, one)
    store, entry = Store(folder), _entry(SEARCH, budget)
    command = f"python -m benchmarks search --task {task} --method {' '.join(methods)}"
    if n_demonstrations is not None:
        command += f" --n-demonstrations {n_demonstrations}"
    everything = [one for _, _, one in runs.values()]
    store.show(entry, shown(everything, command + _options(budget)))
    failures = execute(everything, folder, jobs, imports)
    scores = {
        record.row["key"]: spec.selection(record.evaluation) for record in store.records(spec)
    }
    best: dict[str, tuple[float, Parameters]] = {}
    for method_name, candidate, one in runs.values():
        score = scores.get(one.key, -float("inf"))
        # The first of equals: the list begins with the default.
        if method_name not in best or score > best[method_name][0]:
            best[method_name] = (score, candidate)
    tuned = {**read_tuned(folder), **{name: found for name, (_, found) in best.items()}}
    if not failures:
        write(folder / "tuned.json", json.dumps(tuned, indent=1) + "\n")
    _print_page(task, entry, folder)
    return failures


# -- paper ---------------------------------------------------------------------------------------


def paper(
    names: Sequence[str],
    task: str,
    folder: Path,
    *,
    n_seeds: int = 3,
    jobs: int = 1,
    budget: str = "full",
    n_demonstrations: int | None = None,
    imports: Sequence[str] = (),
) -> list[str]:
    """Do experiments, print their tables, and return what failed.

    Parameters
    ----------
    names : sequence of str
        Which; ``"all"`` is all that exist for the task.
    task, folder, n_seeds, jobs, budget, n_demonstrations, imports : as in `run`
        Where, and how much.
    """
    known = available(task)
    unknown = [name for name in names if name not in [*known, "all"]]
    if unknown:
        raise ValueError(
            f"experiment of {task} must be one of {', '.join(known)}, or all, got {unknown[0]!r}."
        )
    failures: list[str] = []
    plan = Plan(
        get_task(task),
        BUDGETS[budget],
        read_tuned(folder),
        n_demonstrations=n_demonstrations,
    )
    for name in known if "all" in names else names:
        if name in MEASUREMENTS:
            path = folder / f"{name}.{MEASUREMENTS[name].ending}"
            if not path.is_file():
                folder.mkdir(parents=True, exist_ok=True)
                MEASUREMENTS[name].measure(plan, path)
            continue
        runs = EXPERIMENTS[name].runs(plan, seeds_of(n_seeds))
        command = f"python -m benchmarks paper {name} --task {task} --seeds {n_seeds}"
        if n_demonstrations is not None:
            command += f" --n-demonstrations {n_demonstrations}"
        Store(folder).show(_entry(name, budget), shown(runs, command + _options(budget)))
        print(f"{EXPERIMENTS[name].title}: {len(runs)} runs", flush=True)
        failures += execute(runs, folder, jobs, imports)
        _print_page(task, _entry(name, budget), folder)
    return failures


def available(task: str) -> dict[str, str]:
    """Return the names of the experiments that exist for a task, and their titles."""
    every: dict[str, Any] = {**EXPERIMENTS, **MEASUREMENTS}
    return {name: found.title for name, found in every.items() if found.exists_for(task)}


def shown(runs: Sequence[Run], command: str) -> dict[str, Any]:
    """Return which runs a table shows: keys by row and seed."""
    rows: dict[str, dict[str, str]] = {}
    for one in runs:
        rows.setdefault(one.name, {})[str(one.seed)] = one.key
    return {"command": command, "rows": rows}


def _entry(name: str, budget: str) -> str:
    """Return what a table is called: quick ones stand beside the full ones."""
    return name if budget == "full" else f"{name}-{budget}"


def _options(budget: str) -> str:
    return "" if budget == "full" else f" --budget {budget}"


def _print_page(task: str, name: str, folder: Path) -> None:
    spec, store = get_task(task), Store(folder)
    records = {record.row["key"]: record for record in store.records(spec)}
    print("\n" + page(spec, name, store.read("tables")[name], records, None) + "\n", flush=True)
