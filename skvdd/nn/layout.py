"""How a flat row of observations is laid out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from skvdd.registry import register


@register
@dataclass(frozen=True)
class RowLayout:
    """The columns of a row: a window of states, oldest first, then a goal.

    Parameters
    ----------
    n_states : int
        Numbers in one state, ``d``.
    window_size : int, default=1
        States in a window, ``T``.
    goal_dim : int, default=0
        Numbers in the goal, ``g``; 0 for none.

    Examples
    --------
    >>> from skvdd.nn.layout import RowLayout
    >>> RowLayout(n_states=4, window_size=5, goal_dim=2).n_columns
    22
    """

    n_states: int
    window_size: int = 1
    goal_dim: int = 0

    @property
    def n_window(self) -> int:
        """Columns of the window, ``T * d``."""
        return self.n_states * self.window_size

    @property
    def n_columns(self) -> int:
        """Columns of a row, ``T * d + g``."""
        return self.n_window + self.goal_dim

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Split rows into windows and goals.

        Parameters
        ----------
        rows : Tensor of shape (n, T * d + g)
            Flat rows.

        Returns
        -------
        windows : Tensor of shape (n, T, d)
        goals : Tensor of shape (n, g)
        """
        windows, goals = rows.split([self.n_window, self.goal_dim], dim=1)
        return windows.unflatten(1, (self.window_size, -1)), goals

    def unflatten(self, rows: Tensor) -> Tensor:
        """Return rows as windows; rows with a goal stay flat.

        Parameters
        ----------
        rows : Tensor of shape (n, T * d + g)
            Flat rows.

        Returns
        -------
        Tensor of shape (n, T, d), or (n, T * d + g)
        """
        return rows if self.goal_dim else rows.unflatten(1, (self.window_size, -1))
