"""Experts over the density and the score of their teacher."""

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.patches import Ellipse
from PIL import Image

from skvdd import GaussianMoEPolicy, ScoreTeacher
from skvdd.plotting import ExpertsDisplay
from tests.estimators import SMALL
from tests.plotting.toys import LEFT_AND_RIGHT, Gaussian, Mixture, legend_labels, refuses


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


@pytest.mark.parametrize("goal_dim", [0, 1])
def test_a_teacher_is_asked_about_rows_as_the_policy_has_learned_them(goal_dim):
    shapes = []

    def score(states, actions, sigma):
        shapes.append(tuple(states.shape))
        return -actions

    rng = np.random.RandomState(0)
    X, y = rng.standard_normal((40, 4 + goal_dim)), rng.standard_normal((40, 2))
    policy = GaussianMoEPolicy(2, window_size=2, goal_dim=goal_dim, **SMALL).fit(X, y)
    policy.set_params(window_size=1, goal_dim=1 - goal_dim)
    teacher = ScoreTeacher(score, n_actions=2, noise_min=0.1, noise_max=1.0)
    ExpertsDisplay.from_estimator(policy, X[:1], teacher=teacher, score_level=0.5, grid_size=5)
    assert shapes == [(1, 5) if goal_dim else (1, 2, 2)]


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
