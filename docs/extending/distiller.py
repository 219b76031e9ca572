"""A distillation method: one step of the student, from noise to where the teacher's path ends.

Luhman and Luhman (2021), "Knowledge distillation in iterative generative models".
"""

from itertools import pairwise

import numpy as np
import torch

from skvdd import DiffusionPolicy
from skvdd.distillation.generator import BaseGeneratorDistiller
from skvdd.distillation.paths import heun_step
from skvdd.training import Loss


# [objective]
def endpoint_loss(student, teacher, noise, levels):
    """Return the mean squared distance to the ends of the teacher's paths.

    ``student`` and ``teacher`` map actions (n, S, d_a) and noise levels (n, S) to clean actions;
    ``noise`` is (n, S, d_a), ``levels`` fall from the highest to the lowest.
    """
    sigmas = [level.expand(noise.shape[:2]) for level in levels]
    start = end = levels[0] * noise
    with torch.no_grad():
        for sigma, sigma_next in pairwise(sigmas):
            end = heun_step(teacher, end, sigma, sigma_next)
    return ((student(start, sigmas[0]) - end) ** 2).mean()


# [estimator]
def generate(network, rows, noise, *, levels):
    """Turn noise (n, S, steps, d_a) into actions (n, S, d_a), by one call at the highest level."""
    start = network.start_scale * noise[:, :, 0]
    return network.conditioned(rows)(start, start.new_full(start.shape[:2], levels[0]))


class EndpointDistiller(BaseGeneratorDistiller):
    """Learn where the path of the teacher's probability-flow ODE ends, from where it starts.

    Parameters are those of `ConsistencyDistiller`; ``n_levels`` is that of the teacher's path.
    """

    target_decay = 0.0  # this objective has no use for an EMA of the student
    _loss_name = "endpoint"  # column of the history
    _generate = staticmethod(generate)

    def __init__(
        self,
        teacher=None,
        *,
        n_levels=10,
        n_steps=1,
        window_size=1,
        goal_dim=0,
        encoder="auto",
        hidden_size=128,
        n_layers=2,
        max_iter=3000,
        batch_size=256,
        learning_rate=5e-4,
        weight_decay=1e-3,
        ema_decay=0.998,
        state_noise=0.035,
        device="auto",
        random_state=None,
        warm_start=False,
    ):
        self.teacher = teacher
        self.n_levels = n_levels
        self.n_steps = n_steps
        self.window_size = window_size
        self.goal_dim = goal_dim
        self.encoder = encoder
        self.hidden_size = hidden_size
        self.n_layers = n_layers
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.ema_decay = ema_decay
        self.state_noise = state_noise
        self.device = device
        self.random_state = random_state
        self.warm_start = warm_start

    def _loss(self, batch):
        falling = batch.levels[1:].flip(0)  # given ascending from zero; a path ends at noise_min
        return Loss(endpoint_loss(batch.student, batch.teacher, batch.noise, falling))

    def _overrides(self, noise_min):
        return {"boundary": noise_min}  # the student is the identity at noise_min


# [use]
if __name__ == "__main__":
    rng = np.random.RandomState(0)
    states = rng.uniform(-1, 1, size=(1000, 1))
    actions = np.sign(rng.standard_normal((1000, 1))) * (1 + 0.5 * states)  # left or right
    teacher = DiffusionPolicy(hidden_size=32, max_iter=300, random_state=0).fit(states, actions)
    student = EndpointDistiller(n_levels=6, max_iter=100, random_state=0).fit(
        states, actions, teacher=teacher
    )
    for policy in (teacher, student):
        drawn = policy.sample([[0.0]], 200, random_state=0)
        print(f"{(drawn > 0).mean():.2f} to the right, at {np.abs(drawn).mean():.2f}")
