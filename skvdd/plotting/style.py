"""What all pictures share: colors that read on white and on black, axes, files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

# Okabe and Ito's colors without yellow, which is lost on white, and black, which is lost on
# black; then four more of those that stay farthest from them to any eye.
EXPERT_COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
    "#BB3344", "#88BB66", "#5544EE", "#2277FF",
)  # fmt: skip
SUCCESS_COLOR, FAILURE_COLOR, FINISH_COLOR = EXPERT_COLORS[:3]
BAR_COLOR = EXPERT_COLORS[0]
MUTED = "0.5"  # gray for what stands behind the data: as far from white as from black


def expert_colors(n_experts: int) -> list[Any]:
    """Return one color per expert, the same in every picture.

    Parameters
    ----------
    n_experts : int
        Number of experts K.

    Returns
    -------
    colors : list of length K
        Colors that people with color-blindness can tell apart, for up to ten experts;
        beyond that, evenly spaced ones. All read on light and on dark backgrounds.

    Examples
    --------
    >>> from skvdd.plotting import expert_colors
    >>> expert_colors(2)
    ['#0072B2', '#D55E00']
    """
    if n_experts <= len(EXPERT_COLORS):
        return list(EXPERT_COLORS[:n_experts])
    return list(colormaps["turbo"](np.linspace(0.06, 0.94, n_experts)))


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, without empty margins, and close it.

    Parameters
    ----------
    figure : matplotlib Figure
        For example ``display.figure_``.
    path : path-like
        File to write.

    Examples
    --------
    >>> import io
    >>> import matplotlib.pyplot as plt
    >>> from skvdd.plotting import save_figure
    >>> file = io.BytesIO()
    >>> save_figure(plt.figure(), file)
    >>> file.getvalue()[1:4]
    b'PNG'
    """
    figure.savefig(path, dpi=160, bbox_inches="tight")
    plt.close(figure)


def text_color() -> str:
    """Return the color of text in the current style of matplotlib: black or white, mostly."""
    return str(plt.rcParams["text.color"])


def choose_axes(
    ax: Axes | Sequence[Axes] | NDArray[Any] | None,
    n_panels: int,
    panel: str,
    make: Callable[[], Any],
) -> NDArray[np.object_]:
    """Return one axes for each panel: those given, or those that `make` returns."""
    axes = np.empty(0, dtype=object)
    if ax is None:
        axes = np.array(make(), dtype=object)
    elif isinstance(ax, Axes):
        axes = np.array([ax], dtype=object)
    else:
        axes = np.array(ax, dtype=object)
    axes = axes.ravel()
    if len(axes) != n_panels:
        raise ValueError(f"ax must be one per {panel}, {n_panels}, got {len(axes)}.")
    return cast("NDArray[np.object_]", axes)


def open_frame(ax: Axes) -> None:
    """Leave out the two sides of the frame that carry no scale."""
    ax.spines[["top", "right"]].set_visible(False)


def line_handle(color: Any, label: str) -> Line2D:
    """Return an entry of a legend."""
    return Line2D([], [], color=color, lw=2.5, label=label)
