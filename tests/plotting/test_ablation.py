"""Scores as a parameter changes."""

import numpy as np
from matplotlib import pyplot as plt
from sklearn.base import BaseEstimator

from skvdd.plotting import AblationDisplay
from tests.plotting.toys import legend_labels, refuses


class Toy(BaseEstimator):
    """Scores what its parameters say."""

    def __init__(self, level=1.0, random_state=None):
        self.level = level
        self.random_state = random_state

    def fit(self, X, y, *, teacher=0.0):
        self.teacher_ = teacher
        return self

    def score(self, X, y):
        return self.level + 10.0 * self.random_state + 100.0 * self.teacher_


def test_an_ablation_trains_each_value_with_each_seed():
    policy = Toy()
    display = AblationDisplay.from_estimator(
        policy,
        np.zeros((3, 1)),
        np.zeros(3),
        param_name="level",
        param_range=[1.0, 2.0],
        random_states=(0, 1, 2),
        fit_params={"teacher": 1.0},
    )
    np.testing.assert_allclose(display.scores["score"], [[101, 111, 121], [102, 112, 122]])
    assert policy.random_state is None  # clones are trained
    assert not hasattr(policy, "teacher_")
    line, _, (interval,) = display.errorbars_["score"]
    np.testing.assert_allclose(line.get_ydata(), [111.0, 112.0])
    # Student's t with two degrees of freedom, 4.303, times 10 / sqrt(3).
    np.testing.assert_allclose(np.ptp(interval.get_segments()[0][:, 1]), 2 * 24.84, rtol=1e-3)
    assert [text.get_text() for text in display.ax_.get_xticklabels()] == ["1", "2"]
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("level", "score")


def test_an_ablation_draws_every_score_of_a_scorer():
    def scorer(policy, X, y):
        return {"success_rate": policy.level, "entropy": 1.0 - policy.level}

    ax = plt.figure().subplots()
    display = AblationDisplay.from_estimator(
        Toy(),
        np.zeros((3, 1)),
        param_name="level",
        param_range=[0.25, 0.5],
        scoring=scorer,
        ax=ax,
    )
    assert display.ax_ is ax
    assert legend_labels(ax) == ["success_rate", "entropy"]
    np.testing.assert_allclose(display.errorbars_["entropy"][0].get_ydata(), [0.75, 0.5])


def test_values_that_are_no_numbers_are_not_joined():
    scores = {"success": [[0.9, 0.8], [0.7, 0.6]]}
    for values, style in ((["min", "max"], "None"), ([True, False], "None"), ([1, 2], "-")):
        line, *_ = AblationDisplay("noise", values, scores).plot().errorbars_["success"]
        assert line.get_linestyle() == style


def test_an_ablation_refuses_what_it_cannot_change():
    data = {"X": np.zeros((3, 1)), "y": np.zeros(3)}
    with refuses("param_name must be a parameter of Toy (level, random_state), got 'n_experts'."):
        AblationDisplay.from_estimator(Toy(), **data, param_name="n_experts", param_range=[1])
    with refuses("param_range must hold at least one, got none."):
        AblationDisplay.from_estimator(Toy(), **data, param_name="level", param_range=[])
    with refuses("random_states must hold at least one, got none."):
        AblationDisplay.from_estimator(
            Toy(), **data, param_name="level", param_range=[1], random_states=()
        )
