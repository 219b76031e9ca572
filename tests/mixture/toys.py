"""Data for the tests of mixtures: two lines in closed form, two directions, random mixtures."""

import numpy as np
import torch
from scipy.stats import norm

SHARE, SLOPE, WIDTH = 0.75, 0.5, 0.1  # of the upper line, of both, and around either


def two_lines(seed, n):
    """Actions on one of two lines that rise with the state, three in four on the upper one."""
    rng = np.random.RandomState(seed)
    x = rng.uniform(-1, 1, size=n)
    side = np.where(rng.uniform(size=n) < SHARE, 1.0, -1.0)
    return x[:, None], side + SLOPE * x + WIDTH * rng.standard_normal(n)


def true_log_density(X, y):
    center = SLOPE * X[:, 0]
    return np.logaddexp(
        np.log(SHARE) + norm.logpdf(y, center + 1, WIDTH),
        np.log(1 - SHARE) + norm.logpdf(y, center - 1, WIDTH),
    )


def directions():
    """States in windows of two, and two-dimensional actions that go left or right."""
    rng = np.random.RandomState(0)
    states = rng.uniform(-1, 1, size=(60, 2, 3))
    side = np.sign(rng.standard_normal(60))
    actions = np.stack([side * (1 + states[:, -1, 0]), states[:, -1, 1]], axis=1)
    return states, actions + 0.1 * rng.standard_normal(actions.shape)


def random_parameters(seed, n=4, n_experts=3, d_a=2):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    chol = 0.3 * normal(n, n_experts, d_a, d_a).tril(-1)
    chol = chol + torch.diag_embed(0.5 + normal(n, n_experts, d_a).abs())
    leaves = (normal(n, n_experts), normal(n, n_experts, d_a), chol)
    return [leaf.requires_grad_() for leaf in leaves], normal(n, d_a)
