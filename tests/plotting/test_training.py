"""Losses and snapshots of a training."""

import numpy as np
import pytest
from matplotlib import pyplot as plt

from skvdd import GaussianMoEPolicy, VDDDistiller
from skvdd.plotting import HistoryDisplay, TrainingSnapshots
from tests.estimators import SMALL, small_teacher
from tests.plotting.toys import refuses


@pytest.fixture(scope="module")
def training():
    """Return states, snapshots at every fifth report, and the student; nothing may change them."""
    rng = np.random.RandomState(0)
    states = rng.uniform(-1, 1, size=(40, 1))
    actions = rng.standard_normal((40, 2))
    teacher = small_teacher().fit(states, actions)
    snapshots = TrainingSnapshots(every=5)
    student = VDDDistiller(n_experts=2, init_iter=10, **SMALL).set_callbacks(snapshots)
    return states, snapshots, student.fit(states, actions, teacher=teacher)


def test_snapshots_come_in_the_order_of_training(training):
    _, snapshots, _ = training
    moments = [
        (policy.history_[-1]["stage"], policy.history_[-1]["iteration"])
        for policy in snapshots.policies_
    ]
    # Ten iterations of maximum likelihood and twenty of distillation, one a report.
    assert moments == [
        ("maximum likelihood", 5),
        ("maximum likelihood", 10),
        ("distillation", 5),
        ("distillation", 10),
        ("distillation", 15),
        ("distillation", 20),
    ]


def test_snapshots_are_policies_that_stay_as_they_were(training):
    states, snapshots, student = training
    gates = [policy.gating(states) for policy in snapshots.policies_]
    np.testing.assert_array_equal(gates[-1], student.gating(states))
    assert np.abs(gates[0] - gates[-1]).max() > 1e-4


def test_a_new_fit_begins_a_new_list():
    states, actions = np.zeros((20, 1)), np.eye(20, 2)
    snapshots = TrainingSnapshots()
    policy = GaussianMoEPolicy(n_experts=2, **{**SMALL, "max_iter": 3}).set_callbacks(snapshots)
    policy.fit(states, actions)
    first = snapshots.policies_
    policy.fit(states, actions)
    assert len(first) == len(snapshots.policies_) == 3
    assert first is not snapshots.policies_


def test_snapshots_of_every_none_are_refused():
    with refuses("every must be at least 1, got 0."):
        TrainingSnapshots(every=0)


def test_each_loss_of_each_stage_has_a_panel(training):
    _, _, student = training
    display = HistoryDisplay.from_estimator(student)
    expected = list(
        dict.fromkeys(
            (row["stage"], name)
            for row in student.history_
            for name in row
            if name not in ("stage", "iteration", "learning_rate")
        )
    )
    assert [(ax.get_title(), ax.get_ylabel()) for ax in display.axes_] == expected
    assert {stage for stage, _ in expected} == {"maximum likelihood", "distillation"}
    for line, (stage, name) in zip(display.lines_, expected, strict=True):
        rows = [row for row in student.history_ if row["stage"] == stage]
        np.testing.assert_array_equal(line.get_xdata(), [row["iteration"] for row in rows])
        np.testing.assert_array_equal(line.get_ydata(), [row[name] for row in rows])


def test_losses_can_be_chosen():
    history = [{"stage": "a", "iteration": i, "one": i, "two": -i} for i in range(3)]
    ax = plt.figure().subplots()
    display = HistoryDisplay(history, terms=["two"]).plot(ax)
    assert list(display.axes_) == [ax]
    np.testing.assert_array_equal(display.lines_[0].get_ydata(), [0, -1, -2])
    with refuses("terms must be among one, two, got 'three'."):
        HistoryDisplay(history, terms=["three"]).plot()
    with refuses("ax must be one per loss, 2, got 1."):
        HistoryDisplay(history).plot(ax)


def test_a_loss_that_is_not_in_every_row_is_drawn_where_it_is():
    history = [{"stage": "a", "iteration": 1, "one": 0.5}, {"stage": "a", "iteration": 2}]
    display = HistoryDisplay(history).plot()
    np.testing.assert_array_equal(display.lines_[0].get_xdata(), [1])


def test_nothing_to_draw_is_refused():
    with refuses("history has no losses: the policy was not trained, max_iter=0."):
        HistoryDisplay([]).plot()
    with refuses(
        "policy must have history_, got GaussianMoEPolicy without. Fit it first.", TypeError
    ):
        HistoryDisplay.from_estimator(GaussianMoEPolicy())
