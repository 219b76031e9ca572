"""The table of demonstrators: what counts as a success."""

from dataclasses import replace

import numpy as np

from benchmarks.demonstrators import success_rate
from skvdd.envs import get_task

PUSHING = get_task("pushing")


def rate(make_actor, behavior, n_contexts):
    """Return the success rate at Pushing of a demonstrator that acts so."""
    demonstrator = replace(PUSHING.demonstrator(), make_actor=make_actor)
    task = replace(PUSHING, demonstrators={"pushing": demonstrator})
    return success_rate(task, "pushing", behavior, n_contexts)


def test_a_demonstrator_that_solves_the_task_succeeds():
    assert success_rate(PUSHING, "pushing", 0, 1) == 1.0
    assert success_rate(get_task("avoiding"), "avoiding", 37, 2) == 1.0


def test_another_behavior_than_the_one_asked_for_is_no_success():
    make_actor = PUSHING.demonstrator().make_actor
    assert rate(lambda task, _, rng: make_actor(task, 0, rng), 1, 1) == 0.0


def test_a_rod_that_rests_never_succeeds():
    assert rate(lambda task, behavior, rng: lambda state: np.zeros(2), 0, 2) == 0.0
