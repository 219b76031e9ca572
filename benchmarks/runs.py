"""Runs: a trained policy, rolled out, one record each; what is there is not done again."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from sklearn.pipeline import make_pipeline

from benchmarks.provenance import commit, describe_set, digest, environment
from benchmarks.records import Row, Store, compacted
from benchmarks.training import Cost, Foreign, Training
from skvdd.envs import get_task
from skvdd.evaluation import Evaluation, evaluate_policy


@dataclass(frozen=True, eq=False)
class Run:
    """A trained policy and how it is rolled out.

    Parameters
    ----------
    name : str
        What tables call it.
    training : Training
        The policy.
    task : str
        Where it acts.
    n_rollouts, seed : int
        How many rollouts, and their seed.
    settings : dict, default={}
        How actions are drawn: ``n_steps``, ``sampler``.
    n_contexts : int or None, default=None
        Contexts that the rollouts share.
    split : str, default="test"
        The list that they are of; a name alone where there are none.
    budget : str, default="full"
        Name of the budget.
    """

    name: str
    training: Training
    task: str
    n_rollouts: int
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    n_contexts: int | None = None
    split: str = "test"
    budget: str = "full"

    @cached_property
    def key(self) -> str:
        """Hash of training and rollouts."""
        return digest(json.dumps([self.training.key, self.seed, *self._played()]))

    @cached_property
    def setting(self) -> str:
        """The key without the seeds: equal for runs that a table may average."""
        return digest(json.dumps([self.training.setting, *self._played()]))

    def _played(self) -> list[Any]:
        env_id = get_task(self.task).env_id
        return [env_id, self.split, self.n_contexts, self.n_rollouts, self.settings]

    def policy(self) -> tuple[Any, Cost]:
        """Return the trained policy, behind its features, and what it took."""
        policy, cost = self.training.policy()
        if self.settings:
            policy = policy.with_sampler(**self.settings)
        if not self.training.is_ours:
            goal_dim = get_task(self.task).goal_dim
            policy = Foreign(policy, self.training.window_size, goal_dim)
        return make_pipeline(self.training.transformer(), policy), cost

    def roll_out(self, policy: Any) -> Evaluation:
        """Return the rollouts of the policy."""
        return evaluate_policy(
            policy,
            self.task,
            self.n_rollouts,
            contexts=None if self.n_contexts is None else (self.split, self.n_contexts),
            random_state=self.seed,
            progress=False,
        )

    def record(self, folder: Path, code: str) -> str:
        """Roll out, add the record to those of a folder, and say what it is.

        ``code`` is the commit that was loaded.
        """
        policy, cost = self.policy()
        start = time.perf_counter()
        evaluation = self.roll_out(policy)
        seconds = time.perf_counter() - start
        store = Store(folder)
        store.add(
            self._row(evaluation, cost, code), compacted(evaluation), described(self.training)
        )
        entropy = evaluation.entropy_d3il
        told = (
            ""
            if entropy is None
            else (
                f", entropy {entropy:.3f} of {evaluation.entropy_ceiling:.3f}, "
                f"diversity {evaluation.diversity:.3f}"
            )
        )
        return (
            f"{self.name}, seed {self.seed}: success {evaluation.success_rate:.3f}{told} "
            f"(trained in {cost.seconds:.0f} s of {cost.clock}, played in {seconds:.0f} s)"
        )

    def _row(self, evaluation: Evaluation, cost: Cost, code: str) -> Row:
        task, training = get_task(self.task), self.training
        data = describe_set(training.demonstrations, training.n_demonstrations)
        summary = evaluation.to_dict()
        own = ("env_id", "n_contexts", "n_episodes", "success_rate", "entropy_d3il")
        own += ("entropy_ceiling", "diversity", "n_behaviors", "mean_return", "mean_length")
        row = {name: summary[name] for name in own}
        for name in ("success", "entropy", "diversity"):
            low, high = summary[f"{name}_interval"] or (None, None)
            row |= {f"{name}_low": low, f"{name}_high": high}
        return {
            **row,
            "key": self.key,
            "training": training.key,
            "setting": self.setting,
            "name": self.name,
            "budget": self.budget,
            "split": self.split,
            "seed": self.seed,
            "success": summary[task.headline],
            "iterations": cost.iterations,
            "seconds": cost.seconds,
            "clock": cost.clock,
            "trained_on": cost.trained_on,
            "demonstrations": data["name"],
            "demonstrator_version": data["version"],
            "n_demonstrations": data["n_episodes"],
            "rows": data["rows"],
            **environment(code),
        }


def described(training: Training | None) -> dict[str, Any]:
    """Return what a training and those before it are, by their keys."""
    if training is None:
        return {}
    return {training.key: training.describe(), **described(training.teacher)}


# -- many runs -----------------------------------------------------------------------------------


def execute(runs: Sequence[Run], folder: Path, jobs: int, imports: Sequence[str] = ()) -> list[str]:
    """Make the record of every run, several at once, teachers first.

    Parameters
    ----------
    runs : sequence of Run
        What is wanted; a training or a run that several share is done once.
    folder : Path
        Where the records go.
    jobs : int
        Runs at a time, one thread each.
    imports : sequence of str, default=()
        Modules that every process imports first: they register tasks.

    Returns
    -------
    list of str
        What failed and why; the other runs are not harmed.
    """
    code = commit()  # of what is loaded: the files may change before the last run is done
    present = Store(folder).keys()
    wanted = {run.key: run for run in runs if run.key not in present}
    if len(wanted) < len({run.key for run in runs}):
        print(f"{len({run.key for run in runs}) - len(wanted)} are recorded already", flush=True)
    by_seed = sorted(wanted.values(), key=lambda run: run.seed)
    teachers = {run.training.teacher.key: run for run in by_seed if run.training.teacher}
    # What several students wait for must not fail for each.
    failed = _each(
        jobs,
        [(_train, key, (run.training.teacher, imports)) for key, run in teachers.items()],
    )
    able = [run for run in by_seed if not (_keys(run.training) & failed.keys())]
    failed |= _each(jobs, [(_record, run.key, (run, folder, imports, code)) for run in able])
    return list(failed.values())


def _keys(training: Training | None) -> set[str]:
    """Return the keys of a training and those before it."""
    return set() if training is None else {training.key} | _keys(training.teacher)


def _train(training: Training, imports: Sequence[str]) -> str:
    _import(imports)
    print(f"{_label(training)}: training", flush=True)
    _, cost = training.policy()
    return f"{_label(training)}: trained in {cost.seconds:.0f} s of {cost.clock}"


def _record(run: Run, folder: Path, imports: Sequence[str], code: str) -> str:
    # A process of its own has loaded the files as they were when it began.
    code = code if commit() == code else f"{code}..{commit()}"
    _import(imports)
    print(f"{_label(run)}: training, or loading, and playing", flush=True)
    return run.record(folder, code)


def _import(modules: Sequence[str]) -> None:
    for module in modules:
        import_module(module)


Call = tuple[Callable[..., str], str, tuple[Any, ...]]


def _each(jobs: int, calls: Sequence[Call]) -> dict[str, str]:
    """Make every call, print what each says, and return the errors of those that failed."""
    attempt = _attempt if jobs == 1 else _attempt_apart
    outcomes = Parallel(n_jobs=jobs, prefer="threads", return_as="generator_unordered")(
        delayed(attempt)(*call) for call in calls
    )
    errors = {}
    for number, (key, message, failed) in enumerate(outcomes, start=1):
        now = time.strftime("%H:%M:%S")
        print(f"[{number}/{len(calls)} {now}] {message}", flush=True)
        if failed:
            errors[key] = message
    return errors


def _attempt_apart(
    function: Callable[..., str], key: str, arguments: tuple[Any, ...]
) -> tuple[str, str, bool]:
    """Make a call in a process of its own, whose death is one failure and harms no other."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        try:
            return process.submit(_attempt, function, key, arguments).result()
        except BrokenProcessPool as error:
            return key, f"FAILED {_label(arguments[0])}: {error}", True


def _attempt(
    function: Callable[..., str], key: str, arguments: tuple[Any, ...]
) -> tuple[str, str, bool]:
    torch.set_num_threads(1)
    try:
        return key, function(*arguments), False
    except Exception:
        return key, f"FAILED {_label(arguments[0])}\n{traceback.format_exc()}", True


def _label(work: Run | Training) -> str:
    """Return what a message calls a run or a training."""
    if isinstance(work, Run):
        return f"{work.name}, seed {work.seed}"
    return f"{type(work.estimator).__name__}, seed {work.parameters.get('random_state')}"
