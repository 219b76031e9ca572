"""Displays: what is drawn, in which colors, and what is refused."""

import re
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.patches import Circle, Ellipse
from PIL import Image
from sklearn.base import BaseEstimator

from skvdd import GaussianMoEPolicy, ScoreTeacher, VDDDistiller
from skvdd.datasets import Demonstrations, Episode
from skvdd.envs.avoiding import BEHAVIORS, OBSTACLES, behavior_name
from skvdd.evaluation import Evaluation
from skvdd.plotting import (
    EXPERT_COLORS,
    AblationDisplay,
    BehaviorDisplay,
    ExpertsDisplay,
    HistoryDisplay,
    LatencyDisplay,
    TrainingSnapshots,
    TrajectoriesDisplay,
    expert_colors,
    save_figure,
)
from tests.estimators import SMALL, small_teacher

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

    def score_function(self, X, y, noise_level):
        assert len(X) == len(y)
        return ([0.0, 2.0] - y) / (1.0 + noise_level**2)


class StraightAhead(Mixture):
    """Drives toward the finish, into the first obstacle or past it."""

    def act(self, X, *, random_state=None):
        return np.tile([0.0, 0.01], (len(X), 1))


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
# Colors
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_experts", [1, 8, 10, 16])
def test_every_expert_has_a_color_of_its_own(n_experts):
    colors = {to_rgba(color) for color in expert_colors(n_experts)}
    assert len(colors) == n_experts


def test_an_expert_keeps_its_color_when_there_are_more():
    assert expert_colors(8)[:3] == expert_colors(3)


def _linear(color):
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _lab(linear):
    """Return CIELAB coordinates, whose distances are about those that are seen."""
    to_xyz = [[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]]
    x, y, z = np.cbrt(np.clip(to_xyz @ linear, 1e-6, None) / [0.9505, 1.0, 1.0888])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# What is left of linear red, green and blue (Machado, Oliveira and Fernandes 2009).
SEEN_BY = {
    "all": np.eye(3),
    "protanopes": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopes": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}


@pytest.mark.parametrize("eyes", SEEN_BY)
def test_colors_can_be_told_apart(eyes):
    seen = [_lab(SEEN_BY[eyes] @ _linear(color)) for color in EXPERT_COLORS]
    apart = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    # A just noticeable difference is 2.3; thin lines need several times that.
    assert min(apart) > 10.0


@pytest.mark.parametrize("color", EXPERT_COLORS)
def test_colors_read_on_white_and_on_black(color):
    luminance = [0.2126, 0.7152, 0.0722] @ _linear(color)
    # Okabe and Ito's own orange has 2.2 on white; nothing may be worse.
    assert 1.05 / (luminance + 0.05) > 2.2
    assert (luminance + 0.05) / 0.05 > 2.2


# ---------------------------------------------------------------------------------------
# TrajectoriesDisplay
# ---------------------------------------------------------------------------------------


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
        "got one of CartPole-v1."
    ):
        TrajectoriesDisplay.from_evaluation(make_evaluation("CartPole-v1"))


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


# ---------------------------------------------------------------------------------------
# ExpertsDisplay
# ---------------------------------------------------------------------------------------

LEFT_AND_RIGHT = np.array([[[0, 0, 0.4, 0]] * 2, [[0, 0, 0.6, 0]] * 2], dtype=float)


@pytest.fixture
def display():
    return ExpertsDisplay.from_estimator(
        Mixture(), LEFT_AND_RIGHT, teacher=Gaussian(), grid_size=21
    )


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
    display = ExpertsDisplay.from_estimator(
        Mixture(),
        LEFT_AND_RIGHT,
        teacher=Gaussian(),
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
    display = ExpertsDisplay.from_estimator(Mixture(), flat, teacher=Gaussian(), grid_size=5)
    assert len(display.axes_) == 2


def test_experts_are_drawn_on_the_axes_given():
    _, axes = plt.subplots(1, 2)
    display = ExpertsDisplay.from_estimator(
        Mixture(), LEFT_AND_RIGHT, teacher=Gaussian(), ax=axes, grid_size=5
    )
    assert list(display.axes_) == list(axes)
    assert display.figure_ is axes[0].figure


@pytest.mark.parametrize("name", ["ax", "titles"])
def test_panels_and_titles_are_one_per_state(display, name):
    value = {"ax": [plt.figure().subplots()], "titles": ["only one"]}[name]
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
        ExpertsDisplay.from_estimator(SevenJoints(), LEFT_AND_RIGHT, teacher=Gaussian())


def test_estimators_in_the_wrong_place_are_refused():
    with refuses(
        "policy must have gating and experts, got Gaussian without gating and experts.", TypeError
    ):
        ExpertsDisplay.from_estimator(Gaussian(), LEFT_AND_RIGHT)
    with refuses(
        "teacher must have log_prob and sample, got Mixture without log_prob and sample.",
        TypeError,
    ):
        ExpertsDisplay.from_estimator(Mixture(), LEFT_AND_RIGHT)


def test_a_score_level_needs_a_teacher_with_scores():
    class Density(Gaussian):
        score_function = property()  # raises AttributeError: not there

    with refuses(
        "teacher must have score_function, got Density without score_function.", TypeError
    ):
        ExpertsDisplay.from_estimator(Mixture(), LEFT_AND_RIGHT, teacher=Density(), score_level=0.5)


def test_without_a_teacher_the_density_is_the_policys_own():
    class Whole(Mixture, Gaussian):
        pass

    display = ExpertsDisplay.from_estimator(Whole(), LEFT_AND_RIGHT, grid_size=5)
    corner = np.array([[display.grid[0][0], display.grid[1][0]]])
    expected = Gaussian().log_prob(np.zeros(1), corner)
    np.testing.assert_allclose(display.log_density[:, 0, 0], expected[0])


def test_arrows_are_the_teachers_score():
    display = ExpertsDisplay.from_estimator(
        Mixture(), LEFT_AND_RIGHT, teacher=Gaussian(), score_level=2.0, grid_size=21
    )
    x, y = display.grid
    expected = (np.array([0.0, 2.0]) - [x[3], y[5]]) / 5.0
    np.testing.assert_allclose(display.scores[1, 5, 3], expected)
    (arrows,) = (c for c in display.axes_[0].collections if hasattr(c, "U"))
    toward = arrows.U * (0.0 - arrows.X) + arrows.V * (2.0 - arrows.Y)
    assert np.all(toward >= 0.0)
    assert np.hypot(arrows.U, arrows.V).max() <= 1.0


def test_a_score_function_is_asked_in_standardized_actions():
    asked = {}

    def score(states, actions, sigma):
        asked.update(states=states, sigma=sigma)
        return 18.0 * actions

    teacher = ScoreTeacher(score, n_actions=2, noise_min=0.1, noise_max=1.0, action_scale=3.0)
    display = ExpertsDisplay.from_estimator(
        Mixture(), LEFT_AND_RIGHT, teacher=teacher, score_level=0.5, grid_size=9
    )
    assert display.log_density is None
    np.testing.assert_allclose(asked["states"], LEFT_AND_RIGHT)
    np.testing.assert_allclose(asked["sigma"], 0.5)
    x, y = display.grid  # raw: 18 times a third of the action, and divided by three once more
    np.testing.assert_allclose(display.scores[0, 5, 3], [2 * x[3], 2 * y[5]], rtol=1e-6)


def test_a_score_function_wants_a_noise_level():
    teacher = ScoreTeacher(lambda s, a, n: a, n_actions=2, noise_min=0.1, noise_max=1.0)
    with refuses(
        "score_level must be a noise level where teacher is a ScoreTeacher, which has no density "
        "to draw, got None."
    ):
        ExpertsDisplay.from_estimator(Mixture(), LEFT_AND_RIGHT, teacher=teacher)


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_the_density_fades_into_the_background(style):
    with plt.style.context(style):
        display = ExpertsDisplay.from_estimator(
            Mixture(), LEFT_AND_RIGHT, teacher=Gaussian(), grid_size=5
        )
        (image,) = display.axes_[0].images
        assert image.cmap(0.0)[3] == 0.0
        assert image.cmap(1.0)[:3] == to_rgb(plt.rcParams["text.color"])


# -- films ------------------------------------------------------------------------------


class Moved(Mixture):
    """The mixture on its way, experts shifted along the first action."""

    def __init__(self, shift):
        self.shift = shift
        self.history_ = [{"stage": "distillation", "iteration": int(10 * shift)}]

    def experts(self, X):
        means, covariances = super().experts(X)
        return means + np.array([self.shift, 0.0]), covariances


def test_a_film_shows_every_policy_in_turn(display):
    limits = display.axes_[0].get_xlim()
    film = display.animate([Moved(0.5), Moved(0.25)], LEFT_AND_RIGHT)
    for shift, label in ((0.5, "distillation, iteration 5"), (0.25, "distillation, iteration 2")):
        film._func([0.5, 0.25].index(shift))
        first = ellipses(display.axes_[0])
        assert len(first) == 4
        np.testing.assert_allclose(first[0].center, [-1.0 + shift, 2.0])
        assert display.axes_[0].texts[-1].get_text() == label
    assert display.axes_[0].get_xlim() == limits
    film._draw_was_started = True  # or matplotlib warns that nobody looked at it


def test_a_film_can_be_written(display, tmp_path):
    film = display.animate([Moved(0.5), Moved(0.25), Moved(0.0)], LEFT_AND_RIGHT, interval=50)
    film.save(tmp_path / "film.gif", writer="pillow", dpi=40)
    with Image.open(tmp_path / "film.gif") as picture:
        assert picture.n_frames == 3
        assert picture.info["duration"] == 50


def test_a_film_wants_policies_of_its_display(display):
    with refuses("policies must be at least one, got none."):
        display.animate([], LEFT_AND_RIGHT)
    with refuses(
        "policies and X must give experts of the shape of this display's, (2, 3, 2), got "
        "(1, 3, 2) from policy 0."
    ):
        display.animate([Mixture()], LEFT_AND_RIGHT[:1])


# ---------------------------------------------------------------------------------------
# TrainingSnapshots and HistoryDisplay
# ---------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------
# BehaviorDisplay
# ---------------------------------------------------------------------------------------

FAR, NEAR = BEHAVIORS[0], BEHAVIORS[-1]


def evaluation_of(behaviors, successes, env_id="skvdd/Avoiding-v0", base=24, entropy=0.25):
    """Return an evaluation of which only the verdicts matter."""
    values = dict(vars(make_evaluation(env_id)))
    values |= {
        "behaviors": tuple(behaviors),
        "successes": np.array(successes),
        "entropy": entropy,
        "entropy_base": base,
    }
    return Evaluation(**values)


def demonstrations_of(behaviors):
    return Demonstrations([Episode(np.zeros((2, 4)), np.zeros((2, 2)), b) for b in behaviors])


def test_bars_are_shares_of_all_episodes():
    evaluation = evaluation_of([FAR, NEAR, NEAR, FAR], [True, True, True, False])
    demonstrations = demonstrations_of([FAR, FAR])
    display = BehaviorDisplay.from_evaluations({"people": demonstrations, "VDD": evaluation})
    order = sorted((FAR, NEAR), key=behavior_name)
    labels = [text.get_text() for text in display.axes_[-1].get_xticklabels()]
    assert labels == [behavior_name(behavior) for behavior in order]
    heights = [
        dict(zip(order, (b.get_height() for b in bars), strict=True)) for bars in display.bars_
    ]
    assert heights == [{FAR: 1.0, NEAR: 0.0}, {FAR: 0.25, NEAR: 0.5}]


def test_titles_tell_entropy_and_success():
    # Two behaviors, half of the demonstrations each: the entropy to base 24 is ln 2 / ln 24.
    sources = {
        "people": demonstrations_of([FAR, NEAR]),
        "VDD": evaluation_of([FAR, NEAR, FAR, FAR], [True, True, True, False]),
    }
    display = BehaviorDisplay.from_evaluations(sources)
    assert [ax.get_title(loc="left") for ax in display.axes_] == [
        "people: task entropy 0.218, success rate 1.000",
        "VDD: task entropy 0.250, success rate 0.750",
    ]


def test_behaviors_are_drawn_on_the_axes_given_under_names_given():
    evaluation = evaluation_of([1, 10, 2], [True] * 3, env_id="CartPole-v1", base=3)
    ax = plt.figure().subplots()
    display = BehaviorDisplay.from_evaluations({"VDD": evaluation}, ax=ax)
    assert list(display.axes_) == [ax]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "2", "10"]
    display = BehaviorDisplay.from_evaluations({"VDD": evaluation}, names="way {}".format)
    labels = [text.get_text() for text in display.axes_[0].get_xticklabels()]
    assert labels == ["way 1", "way 10", "way 2"]


def test_behaviors_of_an_estimator_are_those_of_its_rollouts():
    class PastTheObstacles(Mixture):
        """Always takes the way on the far side."""

        def act(self, X, *, random_state=None):
            x = X[:, -1, 0]
            return np.stack([np.clip(0.72 - x, 0.0, 0.01), np.where(x > 0.6, 0.01, 0.0)], axis=1)

    demonstrations = demonstrations_of(BEHAVIORS)
    display = BehaviorDisplay.from_estimator(
        PastTheObstacles(), "skvdd/Avoiding-v0", 2, demonstrations=demonstrations, random_state=0
    )
    assert [ax.get_title(loc="left") for ax in display.axes_] == [
        "demonstrations: task entropy 1.000, success rate 1.000",
        "PastTheObstacles: task entropy 0.000, success rate 1.000",
    ]
    assert [bar.get_height() for bar in display.bars_[1]] == [0.0] * 23 + [1.0]  # 2-3-4, the last


def test_behaviors_of_no_task_or_several_are_refused():
    with refuses("sources must hold evaluations of one task, got no evaluation."):
        BehaviorDisplay.from_evaluations({"people": demonstrations_of([FAR])})
    with refuses("sources must hold evaluations of one task, got CartPole-v1, skvdd/Avoiding-v0."):
        BehaviorDisplay.from_evaluations(
            {"a": make_evaluation(), "b": make_evaluation("CartPole-v1")}
        )
    with refuses("sources must be of a task with behaviors, CartPole-v1 tells none apart."):
        BehaviorDisplay.from_evaluations(
            {"a": evaluation_of([None], [True], "CartPole-v1", None, None)}
        )


# ---------------------------------------------------------------------------------------
# AblationDisplay and LatencyDisplay
# ---------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------
# Light and dark
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_no_text_is_lost_on_the_background(style):
    history = [{"stage": "a", "iteration": i, "loss": i} for i in range(3)]
    evaluation = evaluation_of([FAR, NEAR], [True, False])
    with plt.style.context(style):
        displays = [
            TrajectoriesDisplay.from_evaluation(make_evaluation(), Mixture()),
            TrajectoriesDisplay.from_evaluation(make_evaluation(), Mixture()).plot_experts(),
            ExpertsDisplay.from_estimator(
                Mixture(), LEFT_AND_RIGHT, teacher=Gaussian(), score_level=1.0, grid_size=5
            ),
            BehaviorDisplay.from_evaluations({"VDD": evaluation}),
            HistoryDisplay(history).plot(),
            AblationDisplay("n_experts", [1, 2], {"success": [[1.0], [0.9]]}).plot(),
            LatencyDisplay(["VDD"], [0.2]).plot(),
        ]
        for display in displays:
            background = np.array(to_rgb(display.figure_.get_facecolor()))
            for text in display.figure_.findobj(matplotlib.text.Text):
                if text.get_text():
                    ink = np.array(to_rgb(text.get_color()))
                    assert np.abs(ink - background).max() > 0.35, text


# ---------------------------------------------------------------------------------------
# Files and imports
# ---------------------------------------------------------------------------------------


def test_save_figure_writes_a_picture_and_closes(display, tmp_path):
    save_figure(display.figure_, tmp_path / "experts.png")
    picture = plt.imread(tmp_path / "experts.png")
    assert picture.shape[0] > 200
    np.testing.assert_allclose(picture[0, 0], 1.0)  # the margin is the figure's own white
    assert not plt.fignum_exists(display.figure_.number)


def test_only_plotting_needs_matplotlib():
    code = (
        "import sys, skvdd.evaluation, skvdd.demo, skvdd.__main__; "
        "raise SystemExit('matplotlib' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
