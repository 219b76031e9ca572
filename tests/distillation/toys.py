"""Teachers that are known in closed form, for the tests of distilled generators."""

from dataclasses import dataclass

import torch

from skvdd import ScoreTeacher
from skvdd.diffusion.noise import karras
from skvdd.diffusion.samplers import heun


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


def two_modes(states, actions, noise_level):
    """Score of the noised mixture around the last state."""
    means = states[:, -1, :1, None] + torch.tensor(OFFSETS)
    variance = WIDTH**2 + noise_level[..., None] ** 2
    distance = means - actions
    weight = torch.softmax(torch.tensor(SHARES).log() - distance**2 / (2 * variance), dim=-1)
    return (weight * distance).sum(dim=-1, keepdim=True) / variance


def one_mode(states, actions, noise_level):
    """Score of a Gaussian of standard deviations 0.3 and 0.8 around two columns of the state."""
    variance = torch.tensor([0.09, 0.64]) + noise_level[..., None] ** 2
    return (states[:, -1:, :2] - actions) / variance


def known_teacher(score=two_modes, n_actions=1, **units):
    return ScoreTeacher(score, n_actions=n_actions, noise_min=0.03, noise_max=5.0, **units)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def ends_of_paths(teacher, policy, states, noise):
    """Follow the teacher's ODE from the noise (n, S, d_a) with which a policy starts its samples.

    An independent truth for what a student of one step learns: action by action. The start does
    not know the state, so these are not quite the teacher's samples.
    """
    scaler = policy.action_scaler_
    noise_max = teacher.noise_max
    windows = torch.from_numpy(states).float()[:, None]
    sigmas = karras(200, teacher.noise_min, noise_max, 7.0).tolist()

    def denoise(actions, sigma):
        level = torch.full((len(states), 1), sigma)
        return actions + sigma**2 * teacher.score(windows, actions, level)

    assert (scaler.scale_ == 1).all()
    assert (scaler.mean_ == 0).all()
    return heun(denoise, noise_max * torch.from_numpy(noise).float(), sigmas, []).numpy()


class Stub:
    """A network of the generators whose denoiser is a given function, whatever the state."""

    def __init__(self, function, noise_min=0.03, noise_max=5.0, start_scale=5.0):
        self.function = function
        self.noise_min, self.noise_max, self.start_scale = noise_min, noise_max, start_scale

    def conditioned(self, states):
        return self.function
