"""The demo over several seeds: success and entropy of teacher, VDD and EM on Avoiding.

    python -m benchmarks.avoiding --seeds 3 --jobs 2
    python -m benchmarks.avoiding --teacher vp
    python -m benchmarks.avoiding --teacher gpt

Each seed trains all policies anew and evaluates them over 200 rollouts each; one thread a seed.
``--teacher`` chooses the kind of diffusion policy: the default, a variance-preserving one, or the
published transformer. Results go to one folder a seed (``results.json`` and pictures) and, as a
table, to the screen.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed

from skvdd.demo import default_estimators, run_demo

POLICIES = {
    "teacher": "diffusion teacher, 16 steps",
    "teacher_one_step": "diffusion teacher, 1 step",
    "vdd": "VDD, 8 experts",
    "em": "EM, 8 experts",
}


# The published transformer runs whole for each noisy action: half the width and smaller batches
# bring its training and its distillation to minutes.
TEACHERS = {
    "ve": {},
    "vp": {"sde": "vp"},
    "gpt": {"architecture": "gpt", "batch_size": 64},
}
STUDENTS = {"gpt": {"batch_size": 128}}


def run_seed(seed: int, teacher: str, output: Path, n_episodes: int) -> dict:
    """Run the demo with one thread, or read what an earlier run of this seed left."""
    folder = output / teacher / f"seed{seed}"
    record = folder / "results.json"
    if not record.is_file():
        torch.set_num_threads(1)
        estimators = default_estimators(random_state=seed)
        estimators.teacher.set_params(**TEACHERS[teacher])
        estimators.vdd.set_params(**STUDENTS.get(teacher, {}))
        run_demo(
            str(folder),
            random_state=seed,
            n_episodes=n_episodes,
            progress=False,
            estimators=estimators,
        )
    return json.loads(record.read_text())


def table(results: list[dict]) -> str:
    """Return mean and standard deviation over the seeds as a Markdown table."""
    lines = [
        "| policy | success | entropy (base 24) | behaviours |",
        "| --- | --- | --- | --- |",
    ]
    for key, name in POLICIES.items():
        columns = {
            field: np.array([result[key][field] for result in results], dtype=float)
            for field in ("success_rate", "entropy", "n_behaviors")
        }
        lines.append(
            f"| {name} | {spread(columns['success_rate'])} | {spread(columns['entropy'])} "
            f"| {columns['n_behaviors'].mean():.1f} |"
        )
    return "\n".join(lines)


def spread(values: np.ndarray) -> str:
    """Return mean ± standard deviation."""
    return f"{values.mean():.3f} ± {values.std(ddof=1) if len(values) > 1 else 0:.3f}"


def main() -> None:
    """Run the seeds, several at once, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", choices=TEACHERS, default="ve", help="kind of teacher")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time")
    parser.add_argument("--episodes", type=int, default=200, help="rollouts of each policy")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/avoiding"))
    arguments = parser.parse_args()
    results = Parallel(n_jobs=arguments.jobs)(
        delayed(run_seed)(seed, arguments.teacher, arguments.output, arguments.episodes)
        for seed in range(arguments.seeds)
    )
    print(table(results))


if __name__ == "__main__":
    main()
