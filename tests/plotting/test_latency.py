"""The time of a decision."""

import numpy as np
from matplotlib import pyplot as plt

from skvdd.plotting import LatencyDisplay
from tests.plotting.toys import StraightAhead, refuses


def test_times_are_measured_and_drawn_in_order(monkeypatch):
    times = {"slow": 12.34, "fast": 0.0567}
    monkeypatch.setattr(
        "skvdd.evaluation.time_action",
        lambda policy, X_row, *, n_calls, n_threads: times[policy],
    )
    ax = plt.figure().subplots()
    display = LatencyDisplay.from_estimators({"teacher": "slow", "VDD": "fast"}, [0.0], ax=ax)
    assert display.ax_ is ax
    np.testing.assert_allclose(display.points_.get_offsets(), [[12.34, 0.0], [0.0567, 1.0]])
    assert [text.get_text() for text in ax.texts] == ["12 ms", "0.057 ms"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["teacher", "VDD"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # from top to bottom


def test_times_of_no_policy_are_refused():
    with refuses("policies must be at least one, got none."):
        LatencyDisplay.from_estimators({}, [0.0])


def test_times_of_a_real_policy_are_positive():
    display = LatencyDisplay.from_estimators({"VDD": StraightAhead()}, np.zeros((2, 4)), n_calls=2)
    assert display.milliseconds[0] > 0.0
