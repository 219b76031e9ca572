"""Fakes that are drawn: a mixture, a teacher, and what an evaluation found."""

import re
from contextlib import contextmanager

import numpy as np
import pytest

from skvdd.datasets import Demonstrations, Episode
from skvdd.envs import get_task, register_task, spec
from skvdd.evaluation import Evaluation, ScoreReport

LEFT_AND_RIGHT = np.array([[[0, 0, 0.4, 0]] * 2, [[0, 0, 0.6, 0]] * 2], dtype=float)


def refuses(message, error=ValueError):
    """Expect an error whose whole message is this."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


class Mixture:
    """Three experts: one per side of the table, and one that is switched off."""

    window_size = 2

    def gating(self, X):
        right = X.reshape(len(X), 2, -1)[:, -1, 2] > 0.5
        return np.where(right[:, None], [0.25, 0.75, 0.0], [0.75, 0.25, 0.0])

    def experts(self, X):
        means = np.array([[-1.0, 2.0], [1.0, 2.0], [0.0, 0.0]])
        covariances = np.array([np.diag([0.04, 0.09])] * 3)
        return np.tile(means, (len(X), 1, 1)), np.tile(covariances, (len(X), 1, 1, 1))


class Gaussian:
    """A teacher: one round Gaussian at (0, 2)."""

    def log_prob(self, X, y):
        assert len(X) == len(y)
        return -0.5 * ((y - [0.0, 2.0]) ** 2).sum(axis=1) - np.log(2.0 * np.pi)

    def sample(self, X, n_samples=None, *, random_state=None):
        rng = np.random.RandomState(random_state)
        return rng.normal([0.0, 2.0], 1.0, size=(len(X), n_samples, 2))

    def score_function(self, X, y, noise_level):
        assert len(X) == len(y)
        return ([0.0, 2.0] - y) / (1.0 + noise_level**2)


class StraightAhead(Mixture):
    """Drives toward the finish, into the first obstacle or past it."""

    def act(self, X, *, random_state=None):
        return np.tile([0.0, 0.01], (len(X), 1))


@contextmanager
def registered(task):
    """Know a task for a while."""
    register_task(task)
    try:
        yield task
    finally:
        del spec._TASKS[task.name]


def make_evaluation(task="avoiding", behaviors=None, successes=(True, False), contexts=None):
    """Return an evaluation of which the verdicts are told, and the paths are straight.

    There are two paths, one on either side of the table; the second ends half-way.
    """
    task = get_task(task)
    n = len(successes)
    behaviors = tuple(list(task.score.behaviors)[:n] if behaviors is None else behaviors)
    contexts = (None,) * n if contexts is None else contexts
    y = np.linspace(-0.28, 0.35, 10)
    paths = [np.stack([np.full(10, 0.6), y], 1), np.stack([np.full(10, 0.4), y], 1)[:6]]
    episodes = [Episode(np.hstack([p, p]), np.zeros((len(p), 2))) for p in paths]
    return Evaluation(
        env_id=task.env_id,
        split=None if contexts[0] is None else "test",
        scores={"success": ScoreReport(task.score, np.array(successes), behaviors, contexts)},
        contexts=contexts,
        returns=np.array(successes, dtype=float),
        lengths=np.full(n, 10),
        episodes=Demonstrations(episodes),
    )


def legend_labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]
