"""The library in one run: train a teacher, distill it, and compare on the simulated robot."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.callback import ProgressBar

import skvdd
from skvdd.datasets import Demonstrations, load_demonstrations
from skvdd.diffusion import DiffusionPolicy
from skvdd.distillation import VDDDistiller
from skvdd.evaluation import Evaluation, evaluate_policy, time_action
from skvdd.mixture import GaussianMoEPolicy

# ---------------------------------------------------------------------------------------
# The recipe: the library's defaults, and a window of five observations as in the paper
# ---------------------------------------------------------------------------------------

TASK = "avoiding"
WINDOW_SIZE = 5
GRID_SIZE = 24  # of the pictured densities, each point of which costs an integral


@dataclass(frozen=True)
class DemoEstimators:
    """The three policies of the demo, before training.

    Attributes
    ----------
    teacher : DiffusionPolicy
        The slow policy.
    vdd : VDDDistiller
        The mixture that is distilled from it.
    em : GaussianMoEPolicy
        The same mixture, fitted to the demonstrations instead.
    """

    teacher: Any
    vdd: Any
    em: Any


def default_estimators(n_experts: int = 8, random_state: int = 0) -> DemoEstimators:
    """Return the estimators that `run_demo` trains unless told otherwise.

    Parameters
    ----------
    n_experts : int, default=8
        Experts of both mixtures.
    random_state : int, default=0
        Seed of all three.

    Returns
    -------
    estimators : DemoEstimators
        Unfitted.
    """
    common: dict[str, Any] = {"window_size": WINDOW_SIZE, "random_state": random_state}
    return DemoEstimators(
        teacher=DiffusionPolicy(sde="ve", **common),
        vdd=VDDDistiller(n_experts=n_experts, **common),
        em=GaussianMoEPolicy(n_experts=n_experts, **common),
    )


# ---------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------


def run_demo(
    output: str | os.PathLike[str] = "demo",
    random_state: int = 0,
    n_episodes: int = 200,
    n_experts: int = 8,
    progress: bool = True,
    estimators: DemoEstimators | None = None,
) -> dict[str, Any]:
    """Train, distill, roll out and draw; leave everything in one folder.

    Parameters
    ----------
    output : path-like, default="demo"
        Folder for ``results.json``, ``trajectories.png``, ``experts.png``,
        ``teacher.safetensors`` and ``vdd.safetensors``; files of an earlier run are replaced.
    random_state : int, default=0
        Seeds training and rollouts.
    n_episodes : int, default=200
        Rollouts of each policy.
    n_experts : int, default=8
        Experts of both mixtures.
    progress : bool, default=True
        Say what is going on, with progress bars.
    estimators : DemoEstimators, default=None
        What to train in place of `default_estimators`; `n_experts` is then not used.

    Returns
    -------
    results : dict
        What ``results.json`` holds: for ``teacher``, ``teacher_one_step``, ``vdd`` and ``em``
        what `skvdd.evaluation.Evaluation.to_dict` tells, success rate, entropy and diversity with
        their intervals, and ``action_ms``, milliseconds per action; ``seconds`` per stage;
        ``versions``; and the arguments.
    """
    if n_episodes < 1:
        raise ValueError(f"n_episodes must be at least 1, got {n_episodes}.")
    folder = _make_folder(output)
    if estimators is None:
        estimators = default_estimators(n_experts, random_state)
    console = Console()
    stages = _Stages(console, progress)

    demonstrations = load_demonstrations(TASK)
    _train(estimators, demonstrations, stages)
    policies = _policies(estimators)
    evaluations = _evaluate(policies, _titles(estimators), n_episodes, random_state, stages)
    milliseconds = _time(policies, demonstrations, stages)
    with stages.stage("pictures", "Drawing"):
        _draw(folder, evaluations["vdd"], estimators, demonstrations)

    results = {
        **{
            name: {**evaluations[name].to_dict(), "action_ms": milliseconds[name]}
            for name in policies
        },
        "seconds": stages.seconds,
        "versions": _versions(),
        "random_state": random_state,
        "n_episodes": n_episodes,
    }
    _save(folder, estimators, results)
    console.print(_table(results, _titles(estimators)))
    console.print(
        f"Results, pictures and policies are in {folder}.", highlight=False, soft_wrap=True
    )
    return results


def _train(estimators: DemoEstimators, demonstrations: Demonstrations, stages: _Stages) -> None:
    states, actions, _ = demonstrations.windows(estimators.teacher.window_size)
    with stages.stage("train_teacher", "Training the diffusion teacher"):
        _fit(estimators.teacher, stages.progress, states, actions)
    with stages.stage("train_vdd", "Distilling it"):
        _fit(estimators.vdd, stages.progress, states, actions, teacher=estimators.teacher)
    with stages.stage("train_em", "Fitting the same mixture to the demonstrations by EM"):
        _fit(estimators.em, stages.progress, states, actions)


def _fit(estimator: Any, progress: bool, *data: NDArray, **fit_params: Any) -> None:
    if progress:
        estimator.set_callbacks(ProgressBar())
    estimator.fit(*data, **fit_params)
    if progress:
        estimator.set_callbacks()


def _policies(estimators: DemoEstimators) -> dict[str, Any]:
    """Return what is compared, in the order of the table."""
    return {
        "teacher": estimators.teacher,
        "teacher_one_step": estimators.teacher.with_sampler(n_steps=1),
        "vdd": estimators.vdd,
        "em": estimators.em,
    }


def _titles(estimators: DemoEstimators) -> dict[str, str]:
    """Return what the policies are called where they are compared."""
    return {
        "teacher": f"teacher, {estimators.teacher.n_steps} steps",
        "teacher_one_step": "teacher, 1 step",
        "vdd": f"VDD, {estimators.vdd.n_experts} experts",
        "em": f"EM, {estimators.em.n_experts} experts",
    }


def _evaluate(
    policies: dict[str, Any],
    titles: dict[str, str],
    n_episodes: int,
    random_state: int,
    stages: _Stages,
) -> dict[str, Evaluation]:
    evaluations = {}
    with stages.stage("evaluate", f"Rolling out {n_episodes} episodes of each"):
        for name in stages.track(policies, "evaluate_policy"):
            evaluations[name] = evaluate_policy(
                policies[name], TASK, n_episodes, random_state=random_state, progress=False
            )
            stages.say(f"{titles[name]}: {evaluations[name]}")
    return evaluations


def _time(
    policies: dict[str, Any], demonstrations: Demonstrations, stages: _Stages
) -> dict[str, float]:
    with stages.stage("time", "Timing one action"):
        window = demonstrations.windows(policies["teacher"].window_size)[0][0]
        return {name: time_action(policy, window) for name, policy in policies.items()}


def _versions() -> dict[str, str]:
    packages = ("torch", "numpy", "scikit-learn", "mujoco")
    return {
        "python": platform.python_version(),
        "skvdd": skvdd.__version__,
        **{package: version(package) for package in packages},
    }


# ---------------------------------------------------------------------------------------
# What the user sees
# ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stages:
    """Announces the stages of the run and remembers how long each took."""

    console: Console
    progress: bool
    seconds: dict[str, float] = field(default_factory=dict)

    def say(self, text: str) -> None:
        if self.progress:
            self.console.print(text, highlight=False, markup=False)

    def track(self, names: Iterable[str], title: str) -> Iterable[str]:
        """Yield one after the other, with a bar like those of scikit-learn's `ProgressBar`."""
        return track(
            list(names),
            title,
            console=self.console,
            complete_style="#F7931E",
            finished_style="#29ABE2",
            disable=not self.progress,
        )

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        self.say(f"{title} ...")
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)


def _table(results: dict[str, Any], titles: dict[str, str]) -> Table:
    title = f"{TASK}, {results['n_episodes']} episodes each"
    table = Table("policy", title=title, box=SIMPLE_HEAD)  # fits into 80 columns
    for column in (
        "success rate (95 %)",
        "entropy, D3IL\n(if uniform)",
        "diversity",
        "action\nms",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for name, policy in titles.items():
        row = results[name]
        low, high = row["success_interval"]
        diversity = row["diversity"]  # None with fewer than two successes
        table.add_row(
            policy,
            f"{row['success_rate']:.3f} ({low:.3f}–{high:.3f})",
            f"{row['entropy_d3il']:.3f} ({row['entropy_ceiling']:.3f})",
            "–" if diversity is None else f"{diversity:.3f}",
            f"{row['action_ms']:.2f}",
        )
    return table


def _draw(
    folder: Path,
    evaluation: Evaluation,
    estimators: DemoEstimators,
    demonstrations: Demonstrations,
) -> None:
    from skvdd.plotting import ExpertsDisplay, TrajectoriesDisplay, save_figure

    trajectories = TrajectoriesDisplay.from_evaluation(evaluation, estimators.vdd)
    with _replacing(folder / "trajectories.png") as path:
        save_figure(trajectories.figure_, path)
    experts = ExpertsDisplay.from_estimator(
        estimators.vdd,
        _decision_points(demonstrations, estimators.vdd.window_size),
        teacher=estimators.teacher,
        grid_size=GRID_SIZE,
        titles=("at the start", "before row 2", "before row 3"),
        action_names=("Δx (mm)", "Δy (mm)"),
        action_scale=1000.0,
    )
    with _replacing(folder / "experts.png") as path:
        save_figure(experts.figure_, path)


def _decision_points(demonstrations: Demonstrations, window_size: int) -> NDArray:
    """Return the windows (3, T, d) of one demonstration where ways part."""
    states, _, _ = demonstrations.subset([0]).windows(window_size)
    measured_y = states[:, -1, 3]
    return states[[int(np.argmax(measured_y >= y)) for y in (-np.inf, -0.02, 0.16)]]


# ---------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------


def _make_folder(output: str | os.PathLike[str]) -> Path:
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output must be a folder, got {folder}, which is a file.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _save(folder: Path, estimators: DemoEstimators, results: dict[str, Any]) -> None:
    for name in ("teacher", "vdd"):
        with _replacing(folder / f"{name}.safetensors") as path:
            getattr(estimators, name).save(path)
    with _replacing(folder / "results.json") as path:
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a name beside `path`; the file takes its place once it is complete."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
