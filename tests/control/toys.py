"""Policies to deploy, what they observe, and their controllers."""

import numpy as np

WINDOW, N_STATES = 3, 4


def make_data(n=60, n_actions=2, goal_dim=0, seed=0):
    """Rows of windows (and goals) in far-off units, and actions that depend on the last state."""
    rng = np.random.RandomState(seed)
    X = 1e4 + 3.0 * rng.standard_normal((n, WINDOW * N_STATES + goal_dim))
    y = 50.0 + 0.01 * np.tanh(X[:, -n_actions:] - 1e4)
    return X, y + 0.001 * rng.standard_normal(y.shape)


def observations(n=8, seed=1):
    return 1e4 + 3.0 * np.random.RandomState(seed).standard_normal((n, N_STATES))


def windows(states):
    """Return what the controller has seen at each step, the start padded by its first state."""
    padded = np.concatenate([np.repeat(states[:1], WINDOW - 1, axis=0), states])
    return [padded[i : i + WINDOW] for i in range(len(states))]


def first_action(controller, goal=None):
    """Return the first action of an episode."""
    controller.reset(goal)
    return controller.act(observations()[0])


def spread(policy):
    """Return the standard deviations of a policy's actions, one after the other."""
    return policy.network_.action_normalization.statistics[1]
