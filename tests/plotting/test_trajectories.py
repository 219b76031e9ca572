"""Rollouts of Avoiding in the plane."""

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from matplotlib.patches import Circle

from skvdd import GaussianMoEPolicy
from skvdd.envs.avoiding import OBSTACLES
from skvdd.plotting import EXPERT_COLORS, TrajectoriesDisplay
from tests.estimators import SMALL
from tests.plotting.toys import (
    Gaussian,
    Mixture,
    StraightAhead,
    legend_labels,
    make_evaluation,
    refuses,
)


def test_a_path_has_the_color_of_its_most_likely_expert():
    display = TrajectoriesDisplay.from_evaluation(make_evaluation(), Mixture())
    colors = [tuple(color[:3]) for color in display.lines_.get_colors()]
    right, left = to_rgba(EXPERT_COLORS[1])[:3], to_rgba(EXPERT_COLORS[0])[:3]
    assert colors == [right] * 9 + [left] * 5


def test_the_legend_names_the_experts_in_use():
    display = TrajectoriesDisplay.from_evaluation(make_evaluation(), Mixture())
    assert legend_labels(display.ax_) == [
        "expert 1 (38 %)",
        "expert 2 (62 %)",
        "failure (1 of 2)",
    ]


def test_the_windows_are_those_that_the_policy_has_learned_with():
    evaluation = make_evaluation()
    windows, actions, _ = evaluation.episodes.windows(2)
    noise = np.random.RandomState(0).standard_normal(actions.shape)
    policy = GaussianMoEPolicy(2, window_size=2, **SMALL).fit(windows, noise)
    expected = TrajectoriesDisplay.from_evaluation(evaluation, policy)
    policy.set_params(window_size=3)
    found = TrajectoriesDisplay.from_evaluation(evaluation, policy)
    np.testing.assert_array_equal(np.concatenate(found.experts), np.concatenate(expected.experts))


@pytest.mark.parametrize("policy", [None, Gaussian()], ids=["none", "no gating"])
def test_without_experts_a_path_has_the_color_of_its_success(policy):
    display = TrajectoriesDisplay.from_evaluation(make_evaluation(), policy)
    assert legend_labels(display.ax_) == ["success (1)", "failure (1)"]
    colors = [tuple(color[:3]) for color in display.lines_.get_colors()]
    assert colors.count(to_rgba(EXPERT_COLORS[0])[:3]) == 9
    assert colors.count(to_rgba(EXPERT_COLORS[1])[:3]) == 5


def test_paths_run_along_y_to_the_right():
    display = TrajectoriesDisplay.from_evaluation(make_evaluation())
    segments = np.array(display.lines_.get_segments())
    np.testing.assert_allclose(segments[0, 0], [-0.28, 0.6])
    np.testing.assert_allclose(segments[8, 1], [0.35, 0.6])


def test_a_cross_ends_a_path_that_failed():
    display = TrajectoriesDisplay.from_evaluation(make_evaluation(), Mixture())
    (crosses,) = display.ax_.collections[1:]
    np.testing.assert_allclose(crosses.get_offsets(), [[0.07, 0.4]])


def test_the_obstacles_are_where_the_task_has_them():
    display = TrajectoriesDisplay.from_evaluation(make_evaluation())
    circles = [patch for patch in display.ax_.patches if isinstance(patch, Circle)]
    drawn = {(*circle.center, circle.radius) for circle in circles}
    assert drawn == {(o.y, o.x, o.radius) for o in OBSTACLES}


def test_the_axes_tell_their_units():
    ax = TrajectoriesDisplay.from_evaluation(make_evaluation()).ax_
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("y (m)", "x (m)")


def test_trajectories_are_drawn_on_the_axes_given():
    _, ax = plt.subplots()
    display = TrajectoriesDisplay.from_evaluation(make_evaluation(), ax=ax)
    assert display.ax_ is ax
    assert display.figure_ is ax.figure


def test_a_display_built_by_hand_counts_its_experts():
    path = np.array([[0.5, -0.2], [0.5, 0.0], [0.5, 0.2]])
    display = TrajectoriesDisplay([path], [True], [np.array([0, 2, 2])]).plot()
    assert legend_labels(display.ax_) == ["expert 1 (33 %)", "expert 3 (67 %)"]


def test_an_expert_hardly_used_is_not_said_to_be_unused():
    path = np.linspace([0.5, -0.2], [0.5, 0.2], 300)
    display = TrajectoriesDisplay([path], [True], [np.array([1] + [0] * 299)]).plot()
    assert legend_labels(display.ax_) == ["expert 1 (100 %)", "expert 2 (< 1 %)"]


def test_an_episode_of_one_step_is_no_trouble():
    display = TrajectoriesDisplay([np.zeros((1, 2)), np.zeros((3, 2))], [False, True]).plot()
    assert len(display.lines_.get_segments()) == 2


def test_rollouts_of_another_task_are_refused():
    with refuses(
        "evaluation must be one of skvdd/Avoiding-v0, whose obstacles are drawn, "
        "got one of skvdd/Pushing-v0."
    ):
        TrajectoriesDisplay.from_evaluation(make_evaluation("pushing"))


def test_panels_are_of_the_experts_in_use():
    display = TrajectoriesDisplay.from_evaluation(make_evaluation(), Mixture()).plot_experts()
    assert [ax.get_title() for ax in display.axes_] == ["expert 1 (38 %)", "expert 2 (62 %)"]
    drawn = [len(ax.collections[0].get_segments()) for ax in display.axes_]
    assert drawn == [5, 9]
    assert display.figure_ is display.axes_[0].figure


def test_panels_want_axes_for_each_expert_in_use():
    display = TrajectoriesDisplay.from_evaluation(make_evaluation(), Mixture())
    with refuses("ax must be one per expert in use, 2, got 1."):
        display.plot_experts(plt.figure().subplots())
    panels = plt.figure().subplots(2)
    assert list(display.plot_experts(panels).axes_) == list(panels)


def test_panels_need_experts():
    with refuses(
        "plot_experts needs a display with experts, got one without: give from_evaluation a "
        "mixture policy, or use plot."
    ):
        TrajectoriesDisplay.from_evaluation(make_evaluation()).plot_experts()


def test_trajectories_of_an_estimator_are_its_rollouts():
    display = TrajectoriesDisplay.from_estimator(StraightAhead(), 2, random_state=0)
    assert len(display.paths) == 2
    np.testing.assert_allclose(display.paths[0][0], [0.5249, -0.2797], atol=1e-4)  # the start
    assert np.all(np.diff(display.paths[0][:, 1]) > -1e-4)  # straight ahead
    assert legend_labels(display.ax_)[-1] == "failure (2 of 2)"  # the first obstacle is in the way
