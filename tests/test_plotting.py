"""Displays: what is drawn, in which colours, and what is refused."""

import re
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from matplotlib.patches import Circle, Ellipse

from skvdd.datasets import Demonstrations, Episode
from skvdd.envs.avoiding import OBSTACLES
from skvdd.evaluation import Evaluation
from skvdd.plotting import (
    EXPERT_COLORS,
    ExpertsDisplay,
    TrajectoriesDisplay,
    expert_colors,
    save_figure,
)

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def refuses(message, error=ValueError):
    """Expect an error whose whole message is this."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


# ---------------------------------------------------------------------------------------
# Fakes
# ---------------------------------------------------------------------------------------


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


def make_evaluation(env_id="skvdd/Avoiding-v0"):
    """Return two straight paths, one on either side; the second fails half-way."""
    y = np.linspace(-0.28, 0.35, 10)
    paths = [np.stack([np.full(10, 0.6), y], 1), np.stack([np.full(10, 0.4), y], 1)[:6]]
    episodes = [Episode(np.hstack([p, p]), np.zeros((len(p), 2))) for p in paths]
    return Evaluation(
        env_id=env_id,
        n_episodes=2,
        success_rate=0.5,
        success_interval=(0.1, 0.9),
        entropy=0.0,
        entropy_base=24,
        n_behaviors=1,
        successes=np.array([True, False]),
        behaviors=(1, 2),
        contexts=(None, None),
        returns=np.array([1.0, 0.0]),
        lengths=np.array([10, 6]),
        episodes=Demonstrations(episodes),
    )


def legend_labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# ---------------------------------------------------------------------------------------
# Colours
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_experts", [1, 8, 10, 16])
def test_every_expert_has_a_colour_of_its_own(n_experts):
    colors = {to_rgba(color) for color in expert_colors(n_experts)}
    assert len(colors) == n_experts


def test_an_expert_keeps_its_colour_when_there_are_more():
    assert expert_colors(8)[:3] == expert_colors(3)


# ---------------------------------------------------------------------------------------
# TrajectoriesDisplay
# ---------------------------------------------------------------------------------------


def test_a_path_has_the_colour_of_its_most_likely_expert():
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


@pytest.mark.parametrize("policy", [None, Gaussian()], ids=["none", "no gating"])
def test_without_experts_a_path_has_the_colour_of_its_success(policy):
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
        "got one of CartPole-v1."
    ):
        TrajectoriesDisplay.from_evaluation(make_evaluation("CartPole-v1"))


# ---------------------------------------------------------------------------------------
# ExpertsDisplay
# ---------------------------------------------------------------------------------------

LEFT_AND_RIGHT = np.array([[[0, 0, 0.4, 0]] * 2, [[0, 0, 0.6, 0]] * 2], dtype=float)


@pytest.fixture
def display():
    return ExpertsDisplay.from_estimators(Mixture(), Gaussian(), LEFT_AND_RIGHT, grid_size=21)


def ellipses(ax):
    return [patch for patch in ax.patches if isinstance(patch, Ellipse)]


def test_ellipses_show_one_and_two_sigma(display):
    sizes = [(e.width, e.height) for e in ellipses(display.axes_[0])]
    assert len(sizes) == 4  # two experts; the third is switched off
    np.testing.assert_allclose(sizes, [(0.4, 0.6), (0.8, 1.2)] * 2)


def test_ellipses_follow_the_covariance():
    turn = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    covariance = turn @ np.diag([0.01, 0.09]) @ turn.T
    grid = (np.linspace(-1, 1, 3), np.linspace(-1, 1, 3))
    display = ExpertsDisplay(
        grid, np.zeros((1, 3, 3)), np.ones((1, 1)), np.zeros((1, 1, 2)), covariance[None, None]
    ).plot()
    ellipse = ellipses(display.axes_[0])[0]
    path = ellipse.get_transform() - display.axes_[0].transData
    outline = path.transform(ellipse.get_path().vertices)[:-1]
    # Whitened, the one-sigma outline is the unit circle.
    radii = np.linalg.norm(outline @ np.linalg.inv(np.linalg.cholesky(covariance)).T, axis=1)
    np.testing.assert_allclose(radii[::3], 1.0, atol=1e-6)  # the others are control points


def test_likelier_experts_are_drawn_stronger(display):
    faint, strong = (ellipses(display.axes_[1])[i] for i in (0, 2))
    assert strong.get_linewidth() > faint.get_linewidth()
    assert strong.get_alpha() > faint.get_alpha()


def test_the_density_is_the_teachers_on_the_grid(display):
    assert display.log_density.shape == (2, 21, 21)
    x, y = display.grid
    expected = Gaussian().log_prob(np.zeros(1), np.array([[x[3], y[5]]]))
    np.testing.assert_allclose(display.log_density[:, 5, 3], expected[0])


def test_the_grid_holds_samples_and_ellipses(display):
    x, y = display.grid
    samples = Gaussian().sample(LEFT_AND_RIGHT, 256, random_state=0)
    assert x[0] < min(-1.4, samples[..., 0].min())
    assert x[-1] > max(1.4, samples[..., 0].max())
    assert y[0] < samples[..., 1].min()
    assert y[-1] > samples[..., 1].max()


def test_labels_scale_and_titles():
    display = ExpertsDisplay.from_estimators(
        Mixture(),
        Gaussian(),
        LEFT_AND_RIGHT,
        grid_size=5,
        titles=("left", "right"),
        action_names=("Δx (mm)", "Δy (mm)"),
        action_scale=1000.0,
    )
    assert [ax.get_title() for ax in display.axes_] == ["left", "right"]
    assert [ax.get_xlabel() for ax in display.axes_] == ["Δx (mm)"] * 2
    assert display.axes_[0].get_ylabel() == "Δy (mm)"
    assert display.axes_[0].xaxis.get_major_formatter()(0.0025) == "2.5"
    assert legend_labels(display.axes_[-1]) == ["expert 1", "expert 2"]


def test_flat_windows_are_welcome():
    flat = LEFT_AND_RIGHT.reshape(2, -1)
    display = ExpertsDisplay.from_estimators(Mixture(), Gaussian(), flat, grid_size=5)
    assert len(display.axes_) == 2


def test_experts_are_drawn_on_the_axes_given():
    _, axes = plt.subplots(1, 2)
    display = ExpertsDisplay.from_estimators(
        Mixture(), Gaussian(), LEFT_AND_RIGHT, axes=axes, grid_size=5
    )
    assert list(display.axes_) == list(axes)
    assert display.figure_ is axes[0].figure


@pytest.mark.parametrize("name", ["axes", "titles"])
def test_panels_and_titles_are_one_per_state(display, name):
    value = {"axes": [plt.figure().subplots()], "titles": ["only one"]}[name]
    with refuses(f"{name} must be one per state, 2, got 1."):
        display.plot(**{name: value})


def test_policies_with_another_number_of_actions_are_refused():
    class SevenJoints(Mixture):
        def experts(self, X):
            return np.zeros((len(X), 3, 7)), np.zeros((len(X), 3, 7, 7))

    with refuses(
        "ExpertsDisplay draws policies with 2 actions, got one with 7. "
        "Build the display from two components of its means and covariances instead."
    ):
        ExpertsDisplay.from_estimators(SevenJoints(), Gaussian(), LEFT_AND_RIGHT)


def test_estimators_in_the_wrong_place_are_refused():
    with refuses(
        "policy must have gating and experts, got Gaussian without gating and experts.", TypeError
    ):
        ExpertsDisplay.from_estimators(Gaussian(), Gaussian(), LEFT_AND_RIGHT)
    with refuses(
        "teacher must have log_prob and sample, got Mixture without log_prob and sample.",
        TypeError,
    ):
        ExpertsDisplay.from_estimators(Mixture(), Mixture(), LEFT_AND_RIGHT)


# ---------------------------------------------------------------------------------------
# Files and imports
# ---------------------------------------------------------------------------------------


def test_save_figure_writes_a_picture_and_closes(display, tmp_path):
    save_figure(display.figure_, tmp_path / "experts.png")
    assert plt.imread(tmp_path / "experts.png").shape[0] > 200
    assert not plt.fignum_exists(display.figure_.number)


def test_only_plotting_needs_matplotlib():
    code = (
        "import sys, skvdd.evaluation, skvdd.demo, skvdd.__main__; "
        "raise SystemExit('matplotlib' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
