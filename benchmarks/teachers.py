"""Which teacher? The context encoder against the published transformer, on the same data.

    python -m benchmarks.teachers --seeds 3 --jobs 2

For each seed, on one thread: the default teacher; the published transformer for as many seconds
as that took; the transformer for as many iterations; and a student of each. Every policy is
rolled out 200 times. One JSON a seed is left in the output folder, and the table is printed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from sklearn.base import clone

from benchmarks.avoiding import STUDENTS, TEACHERS, spread
from skvdd.datasets import load_demonstrations
from skvdd.demo import ENV_ID, TASK, default_estimators
from skvdd.evaluation import evaluate_policy

ROWS = {
    "context": "context encoder",
    "context_student": "VDD from it",
    "gpt_same_seconds": "transformer, as many seconds",
    "gpt": "transformer, as many iterations",
    "gpt_student": "VDD from it",
}
PROBE_ITERATIONS = 40


def run_seed(seed: int, output: Path, n_episodes: int) -> dict[str, Any]:
    """Return success, entropy and seconds of every row, or what an earlier run left."""
    record = output / f"seed{seed}.json"
    if not record.is_file():
        torch.set_num_threads(1)
        result = compare(seed, n_episodes)
        output.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(result, indent=2) + "\n")
    return json.loads(record.read_text())


def compare(seed: int, n_episodes: int) -> dict[str, Any]:
    """Train, distil and roll out both kinds of teacher."""
    states, actions, _ = load_demonstrations(TASK).windows(5)
    base = default_estimators(random_state=seed)
    gpt = clone(base.teacher).set_params(**TEACHERS["gpt"])
    student = clone(base.vdd).set_params(**STUDENTS["gpt"])
    result = {}

    def measure(name: str, policy: Any, **fit_params: Any) -> None:
        start = time.perf_counter()
        policy.fit(states, actions, **fit_params)
        seconds = time.perf_counter() - start
        report = evaluate_policy(policy, ENV_ID, n_episodes, random_state=seed, progress=False)
        result[name] = {
            "success_rate": report.success_rate,
            "entropy": report.entropy,
            "seconds": seconds,
            "n_iter": policy.n_iter_,
        }
        print(seed, name, result[name], flush=True)

    measure("context", base.teacher)
    measure("context_student", clone(student), teacher=base.teacher)
    probe = clone(gpt).set_params(max_iter=PROBE_ITERATIONS)
    start = time.perf_counter()
    probe.fit(states, actions)
    per_iteration = (time.perf_counter() - start) / PROBE_ITERATIONS
    affordable = int(result["context"]["seconds"] / per_iteration)
    measure("gpt_same_seconds", clone(gpt).set_params(max_iter=affordable))
    measure("gpt", gpt)
    measure("gpt_student", clone(student), teacher=gpt)
    return result


def main() -> None:
    """Run the seeds, several at once, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time")
    parser.add_argument("--episodes", type=int, default=200, help="rollouts of each policy")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/teachers"))
    arguments = parser.parse_args()
    results = Parallel(n_jobs=arguments.jobs)(
        delayed(run_seed)(seed, arguments.output, arguments.episodes)
        for seed in range(arguments.seeds)
    )
    print("| policy | success | entropy (base 24) | seconds of one thread | iterations |")
    print("| --- | --- | --- | --- | --- |")
    for key, name in ROWS.items():
        columns = {
            field: torch.tensor([float(result[key][field]) for result in results]).numpy()
            for field in ("success_rate", "entropy", "seconds", "n_iter")
        }
        print(
            f"| {name} | {spread(columns['success_rate'])} | {spread(columns['entropy'])} "
            f"| {columns['seconds'].mean():.0f} | {columns['n_iter'].mean():.0f} |"
        )


if __name__ == "__main__":
    main()
