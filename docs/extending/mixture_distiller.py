"""A distillation method with a mixture: its score has to be the teacher's, where noise leads to.

Hyvärinen (2005), "Estimation of non-normalized statistical models by score matching"; here the
score of the data is given.
"""

import numpy as np
import torch

from skvdd import DiffusionPolicy
from skvdd.diffusion.noise import log_uniform
from skvdd.distillation.base import TeacherContexts, TeacherMixin
from skvdd.mixture.base import BaseMixturePolicy, place_experts
from skvdd.nn import gaussian_mixture as gm
from skvdd.training import Loss, Stage, Update, draw


# [objective]
def score_matching_loss(mixture, actions, scores, sigma):
    """Return the mean of sigma^2 |grad log q_sigma - grad log pi_sigma|^2.

    ``mixture`` is the student in n states, ``actions`` (n, S, d_a) carry noise of levels ``sigma``
    (n,), ``scores`` (n, S, d_a) are the teacher's at those actions.
    """
    own = gm.action_score(gm.smooth(mixture, sigma), actions)
    return (sigma[:, None, None] * (own - scores)).square().sum(dim=-1).mean()


# [estimator]
class ScoreMatchingDistiller(TeacherMixin, BaseMixturePolicy):
    """A mixture whose noised score is the teacher's. Parameters are those of `VDDDistiller`."""

    def __init__(
        self,
        teacher=None,
        *,
        n_experts=8,
        noise_min=0.1,
        noise_max=2.0,
        covariance="full",
        scale_floor=0.05,
        window_size=1,
        goal_dim=0,
        encoder="mlp",
        hidden_size=128,
        n_layers=2,
        max_iter=3000,
        batch_size=256,
        learning_rate=1e-3,
        weight_decay=1e-3,
        ema_decay=0.998,
        state_noise=0.035,
        device="auto",
        random_state=None,
        warm_start=False,
    ):
        self.teacher = teacher
        self.n_experts = n_experts
        self.noise_min = noise_min
        self.noise_max = noise_max
        self.covariance = covariance
        self.scale_floor = scale_floor
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

    def _stages(self, fit):
        if fit.is_fresh:
            place_experts(fit)  # at clusters of the actions
        contexts = TeacherContexts(fit)

        def loss(index, progress):
            rows = fit.noised_rows(index)
            uniform = draw(torch.rand, (len(index),), fit.generator)
            sigma = log_uniform(uniform, self.noise_min, self.noise_max)
            actions = fit.actions.index_select(0, index)[:, None]
            noise = draw(torch.randn, actions.shape, fit.generator)
            noised = actions + sigma[:, None, None] * noise
            with torch.no_grad():
                scores = fit.teacher.score(contexts.of(index, rows), noised, sigma[:, None])
            return Loss(score_matching_loss(fit.network(rows), noised, scores, sigma))

        parameters = list(fit.network.parameters())
        update = Update("score_gap", loss, parameters, replayable=contexts.is_resident)
        yield Stage("distillation", [update], self.max_iter)


# [use]
if __name__ == "__main__":
    rng = np.random.RandomState(0)
    states = rng.uniform(-1, 1, size=(1000, 1))
    actions = np.sign(rng.standard_normal((1000, 1))) * (1 + 0.5 * states)  # left or right
    actions += 0.1 * rng.standard_normal(actions.shape)
    teacher = DiffusionPolicy(hidden_size=32, max_iter=600, random_state=0).fit(states, actions)
    student = ScoreMatchingDistiller(
        n_experts=2, hidden_size=32, max_iter=400, learning_rate=3e-3, random_state=0
    )
    student.fit(states, teacher=teacher)  # the actions are the teacher's
    means, _ = student.experts([[-0.5], [0.5]])
    print(np.sort(means[..., 0]).round(1))  # near -0.75, 0.75; -1.25, 1.25
    print(student.gating([[0.0]]).round(1), student.history_[-1]["score_gap"])
