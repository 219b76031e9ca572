"""The table of demonstrators: what counts as a success."""

from dataclasses import replace

import numpy as np

from benchmarks.demonstrators import success_rate
from skvdd.datasets.experts.pushing import DEMONSTRATORS

PUSHING = DEMONSTRATORS["pushing"]


def test_a_demonstrator_that_solves_the_task_succeeds():
    assert success_rate(PUSHING, 0, 1) == 1.0


def test_another_behavior_than_the_one_asked_for_is_no_success():
    stubborn = replace(PUSHING, make_actor=lambda task, _, rng: PUSHING.make_actor(task, 0, rng))
    assert success_rate(stubborn, 1, 1) == 0.0


def test_a_rod_that_rests_never_succeeds():
    resting = replace(PUSHING, make_actor=lambda task, behavior, rng: lambda state: np.zeros(2))
    assert success_rate(resting, 0, 2) == 0.0
