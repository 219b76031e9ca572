"""Teachers that are known in closed form, and small students, for the tests of distillers."""

import re
from dataclasses import dataclass

import numpy as np
import torch

from skvdd import (
    ConsistencyDistiller,
    ConsistencyTrajectoryDistiller,
    ScoreTeacher,
    VDDDistiller,
)
from skvdd.diffusion.noise import karras
from skvdd.nn.samplers import heun
from tests.estimators import SMALL


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian policy, the same in every state, and the paths of its probability-flow ODE."""

    mean: torch.Tensor
    variance: torch.Tensor

    def denoise(self, actions, sigma):
        noise = sigma[..., None] ** 2
        return (self.variance * actions + noise * self.mean) / (self.variance + noise)

    def move(self, actions, t, s):
        """Follow the path of each action from level t to level s."""
        spread = (self.variance + s[..., None] ** 2) / (self.variance + t[..., None] ** 2)
        return self.mean + (actions - self.mean) * spread.sqrt()

    def guess(self, actions, t, s):
        """The g of the trajectory model that jumps along the paths, at s = t the denoiser."""
        share = (s / t)[..., None]
        jumped = (self.move(actions, t, s) - share * actions) / (1 - share)
        return torch.where(share == 1, self.denoise(actions, t), jumped)


def gaussian():
    return Gaussian(
        torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([0.09, 1.5]).double()
    )


# Two modes in closed form: three in ten actions lie below the state, seven in ten above it.
SHARES, OFFSETS, WIDTH = (0.3, 0.7), (-1.0, 1.0), 0.2


def two_modes(states, actions, sigma):
    """Score of the noised mixture around the last state."""
    means = states[:, -1, :1, None] + torch.tensor(OFFSETS)
    variance = WIDTH**2 + sigma[..., None] ** 2
    distance = means - actions
    weight = torch.softmax(torch.tensor(SHARES).log() - distance**2 / (2 * variance), dim=-1)
    return (weight * distance).sum(dim=-1, keepdim=True) / variance


def one_mode(states, actions, sigma):
    """Score of a Gaussian of standard deviations 0.3 and 0.8 around two columns of the state."""
    variance = torch.tensor([0.09, 0.64]) + sigma[..., None] ** 2
    return (states[:, -1:, :2] - actions) / variance


def known_teacher(score=two_modes, n_actions=1, **units):
    return ScoreTeacher(score, n_actions=n_actions, noise_min=0.03, noise_max=5.0, **units)


class OwnTeacher:
    """What a user may write who needs none of this library's classes: the protocol, nothing else.

    In raw units, actions are normal around the first two columns of the last state.
    """

    noise_min, noise_max = 0.03, 5.0
    sees_states, replayable, network = True, True, None
    width = 0.5  # standardized

    def __init__(self, action_mean=(0.1, -0.2), action_scale=(2.0, 0.5)):
        self.action_mean, self.action_scale = np.array(action_mean), np.array(action_scale)

    def prepare(self, X):
        return np.asarray(X, dtype=np.float64)

    def context(self, states):
        mean, scale = map(torch.from_numpy, (self.action_mean, self.action_scale))
        return ((states[:, -1, :2] - mean) / scale).float()

    def score(self, context, actions, sigma):
        return (context[:, None] - actions) / (self.width**2 + sigma[..., None] ** 2)

    def denoise(self, context, actions, sigma):
        return actions + sigma[..., None] ** 2 * self.score(context, actions, sigma)

    def sample(self, X, *, random_state=None):
        states = np.reshape(X, (len(X), 2, 3))
        noise = np.random.RandomState(random_state).standard_normal((len(X), 2))
        return states[:, -1, :2] + self.width * self.action_scale * noise


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def ends_of_paths(teacher, states, noise):
    """Follow the teacher's ODE from the noise (n, S, d_a) with which a student starts its samples.

    An independent truth for what a student of one step learns: action by action, standardized. The
    start does not know the state, so these are not quite the teacher's samples.
    """
    context = teacher.context(torch.from_numpy(states)[:, None])
    sigmas = karras(200, teacher.noise_min, teacher.noise_max, 7.0).tolist()

    def denoise(actions, sigma):
        level = torch.full((len(states), 1), sigma)
        return actions + sigma**2 * teacher.score(context, actions, level)

    start = teacher.noise_max * torch.from_numpy(noise).float()
    return heun(denoise, start, sigmas, []).numpy()


class Stub:
    """A network of the generators whose denoiser is a given function, whatever the state."""

    def __init__(self, function, noise_min=0.03, noise_max=5.0, start_scale=5.0):
        self.function = function
        self.noise_min, self.noise_max, self.start_scale = noise_min, noise_max, start_scale

    def conditioned(self, rows):
        return self.function


# -- students -------------------------------------------------------------------------------------

STUDENTS = {
    "VDD": (VDDDistiller, {"n_experts": 2, "init_iter": 4}),
    "CD": (ConsistencyDistiller, {"n_levels": 5}),
    "CTM": (ConsistencyTrajectoryDistiller, {"n_levels": 5}),
}


def small_student(kind, teacher=None, **parameters):
    """Return an unfitted student for windows of two states."""
    student, own = STUDENTS[kind]
    return student(teacher, **{**SMALL, "max_iter": 6, "window_size": 2, **own, **parameters})


def answers(policy, X):
    """Return what a policy answers in some states, so that equality is that of the policies."""
    if hasattr(policy, "experts"):
        return np.concatenate([part.ravel() for part in (policy.gating(X), *policy.experts(X))])
    return policy.sample(X, 3, random_state=0)


def exactly(message):
    return f"^{re.escape(message)}$"
