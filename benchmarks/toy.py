"""Distillation where the truth is known: divergences and modes found, over four seeds.

    python -m benchmarks.toy

Every task has a score in closed form at every noise level; the student learns from nothing else
(and from samples of the truth for the gating). Divergences are Monte-Carlo estimates in nats with
exact densities on both sides, averaged over states.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch
from joblib import Parallel, delayed

from skvdd import ScoreTeacher, VDDDistiller
from skvdd.metrics import kl_divergence
from skvdd.nn import gaussian_mixture as gm
from skvdd.nn.gaussian_mixture import GaussianMixture


@dataclass(frozen=True)
class Task:
    """A conditional mixture of isotropic Gaussians with equal weights, scale one."""

    name: str
    n_experts: int
    n_states: int

    @property
    def spread(self) -> float:
        """Half the range of the states: the paper's ring is seen from a single one."""
        return 0.0 if self.name.endswith("one state") else 1.0

    def means(self, states: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Return means (n, M, d_a) in states (n, d), and the standard deviation of each mode."""
        turn = states[:, :1]
        if self.name == "ring of the paper, one state":
            return _ring(turn, 8, 2.0), 0.5
        if self.name == "ring of 8, turning with the state":
            return _ring(turn, 8, 1.4), 0.1
        if self.name == "switch in 1-D":
            side = torch.tensor([-1.0, 1.0], dtype=states.dtype)
            return ((1.0 + 0.5 * turn) * side)[..., None], 0.1
        if self.name == "two moons":
            return _moons(turn, 12), 0.2
        corner = torch.tensor(np.random.RandomState(3).choice([-1.0, 1.0], (4, 9)))
        return corner.to(states) + 0.3 * turn[..., None], 0.2  # 9-D, four modes

    def mixture(self, states: torch.Tensor, sigma: torch.Tensor) -> GaussianMixture:
        """Return the truth in states (n, d), convolved with noise of levels (n,)."""
        means, std = self.means(states)
        n, n_modes, d_a = means.shape
        scale = (std**2 + sigma.square()).sqrt()[:, None, None, None]
        eye = torch.eye(d_a, dtype=states.dtype).expand(n, n_modes, d_a, d_a)
        gate = means.new_full((n, n_modes), -float(np.log(n_modes)))
        return GaussianMixture(gate, means, scale * eye)

    def score(
        self, states: torch.Tensor, actions: torch.Tensor, sigma: torch.Tensor
    ) -> torch.Tensor:
        """Return the exact score, as `skvdd.ScoreTeacher` wants it."""
        return gm.action_score(self.mixture(states[:, -1], sigma[:, 0]), actions)

    def sample(self, states: torch.Tensor, rng: np.random.RandomState, n: int) -> torch.Tensor:
        """Draw (len(states), n, d_a) actions of the truth."""
        means, std = self.means(states)
        mode = torch.from_numpy(rng.randint(means.shape[1], size=(len(states), n)))
        picked = means[torch.arange(len(states))[:, None], mode]
        return picked + std * torch.from_numpy(rng.standard_normal(picked.shape)).to(picked)


TASKS = (
    Task("ring of the paper, one state", n_experts=8, n_states=10_000),
    Task("ring of 8, turning with the state", n_experts=8, n_states=10_000),
    Task("two moons", n_experts=12, n_states=10_000),
    Task("switch in 1-D", n_experts=2, n_states=10_000),
    Task("9-D, 4 modes", n_experts=4, n_states=10_000),
)


def run(task: Task, seed: int) -> dict[str, float]:
    """Distill one task with one seed and measure it."""
    torch.set_num_threads(1)
    rng = np.random.RandomState(seed)
    states = task.spread * rng.uniform(-1, 1, size=(task.n_states, 1))
    tensor = torch.from_numpy(states)
    actions = task.sample(tensor, rng, 1)[:, 0].numpy()
    teacher = ScoreTeacher(task.score, n_actions=actions.shape[1], noise_min=0.01, noise_max=5.0)
    start = time.perf_counter()
    student = VDDDistiller(n_experts=task.n_experts, random_state=seed, **RECIPE)
    student.fit(states, actions, teacher=teacher)
    seconds = time.perf_counter() - start
    return {**divergences(task, student, rng), "seconds": seconds}


# Nothing is to be generalized beyond the states here, so no noise is put on them; the interval of
# noise levels shrinks onto the sharp end; the experts learn from nothing but the score.
RECIPE = {
    "likelihood_weight": 0.0,
    "noise": "anneal",
    "noise_min": 0.02,
    "noise_max": 0.5,
    "init_iter": 0,
    "state_noise": 0.0,
    "max_iter": 1000,
    "batch_size": 128,
    "learning_rate": 2e-3,
    "hidden_size": 64,
    "weight_decay": 0.0,
    "n_samples": 4,
}


def divergences(
    task: Task, student: VDDDistiller, rng: np.random.RandomState, n: int = 200
) -> dict[str, float]:
    """Return both divergences and the fraction of modes that have an expert's mass."""
    states = task.spread * np.linspace(-1, 1, 50)[:, None]
    tensor = torch.from_numpy(states)
    truth = task.mixture(tensor, torch.zeros(len(states), dtype=torch.float64))
    rows = np.repeat(states, n, axis=0)

    def densities(actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log_p = gm.log_prob(truth, torch.from_numpy(actions)).numpy().ravel()
        return log_p, student.log_prob(rows, actions.reshape(len(rows), -1))

    own = student.sample(states, n_samples=n, random_state=rng)
    own = own.reshape(len(states), n, -1)
    log_p, log_q = densities(own)
    reverse = kl_divergence(log_q, log_p).estimate
    log_p, log_q = densities(task.sample(tensor, rng, n).numpy())
    forward = kl_divergence(log_p, log_q).estimate
    nearest = gm.log_responsibilities(truth, torch.from_numpy(own)).argmax(dim=-1).numpy()
    n_modes = truth.mean.shape[1]
    found = np.mean([len(np.unique(row)) / n_modes for row in nearest])
    return {"reverse": reverse, "forward": forward, "modes": found}


def _ring(turn: torch.Tensor, n_modes: int, radius: float) -> torch.Tensor:
    angle = turn + 2 * torch.pi * torch.arange(n_modes, dtype=turn.dtype) / n_modes
    return radius * torch.stack([angle.cos(), angle.sin()], dim=-1)


def _moons(turn: torch.Tensor, n_modes: int) -> torch.Tensor:
    """Return two interleaved half circles, each a string of Gaussians, shifted by the state."""
    angle = torch.pi * torch.linspace(0, 1, n_modes // 2, dtype=turn.dtype)
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=-1)
    lower = torch.stack([0.5 - angle.cos(), 0.25 - angle.sin()], dim=-1)
    return torch.cat([upper, lower]) + 0.3 * turn[..., None]


def main() -> None:
    """Run all tasks and seeds and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--task", type=int, help="only the task of this number")
    arguments = parser.parse_args()
    tasks = TASKS if arguments.task is None else TASKS[arguments.task : arguments.task + 1]
    print("| task | KL(q, p), each seed | KL(p, q), each seed | modes found | seconds |")
    print("| --- | --- | --- | --- | --- |")
    for task in tasks:
        results = Parallel(n_jobs=arguments.jobs)(
            delayed(run)(task, seed) for seed in range(arguments.seeds)
        )
        columns = {key: [result[key] for result in results] for key in results[0]}
        reverse, forward = (
            ", ".join(f"{value:.4f}" for value in columns[key]) for key in ("reverse", "forward")
        )
        print(
            f"| {task.name} | {reverse} | {forward} | {np.mean(columns['modes']):.3f} "
            f"| {np.mean(columns['seconds']):.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
