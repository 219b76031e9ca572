"""Colors and files."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb, to_rgba

from skvdd.plotting import (
    EXPERT_COLORS,
    AblationDisplay,
    BehaviorDisplay,
    ExpertsDisplay,
    HistoryDisplay,
    LatencyDisplay,
    TrajectoriesDisplay,
    expert_colors,
    save_figure,
)
from tests.plotting.toys import LEFT_AND_RIGHT, Gaussian, Mixture, make_evaluation


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
# Light and dark
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_no_text_is_lost_on_the_background(style):
    history = [{"stage": "a", "iteration": i, "loss": i} for i in range(3)]
    with plt.style.context(style):
        displays = [
            TrajectoriesDisplay.from_evaluation(make_evaluation(), Mixture()),
            TrajectoriesDisplay.from_evaluation(make_evaluation(), Mixture()).plot_experts(),
            ExpertsDisplay.from_estimator(
                Mixture(), LEFT_AND_RIGHT, teacher=Gaussian(), score_level=1.0, grid_size=5
            ),
            BehaviorDisplay.from_evaluations({"VDD": make_evaluation()}),
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


def test_save_figure_writes_a_picture_and_closes(tmp_path):
    figure = LatencyDisplay(["VDD", "teacher"], [0.2, 4.0]).plot().figure_
    save_figure(figure, tmp_path / "picture.png")
    picture = plt.imread(tmp_path / "picture.png")
    assert picture.shape[0] > 200
    np.testing.assert_allclose(picture[0, 0], 1.0)  # the margin is the figure's own white
    assert not plt.fignum_exists(figure.number)


def test_only_plotting_needs_matplotlib():
    code = (
        "import sys, skvdd.evaluation, skvdd.demo, skvdd.__main__; "
        "raise SystemExit('matplotlib' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
