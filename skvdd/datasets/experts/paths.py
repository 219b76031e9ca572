"""Ways in the plane: around circles, past an obstacle, and over a grid where ground has a price."""

from __future__ import annotations

import math
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from skvdd.datasets.experts.steering import cross, distance, turned

Array = NDArray[np.float64]

N_CORNERS = 12  # of the polygons that stand for circles
STEPS = ((1, 0), (0, 1), (1, 1), (1, -1), (1, 2), (2, 1), (1, -2), (2, -1))  # cells of a grid

# ---------------------------------------------------------------------------------------
# Around circles
# ---------------------------------------------------------------------------------------


def way_round(start: Array, goal: Array, centers: Array, radius: float) -> Array:
    """Return the shortest way between two points that keeps out of some circles.

    Parameters
    ----------
    start, goal : ndarray of shape (2,)
        Its ends, m. A circle that contains one of them shrinks until it does not.
    centers : ndarray of shape (n, 2)
        Centers of the circles, m.
    radius : float
        Their radius, m.

    Returns
    -------
    ndarray of shape (k, 2)
        Corners of the way, from start to goal, m.
    """
    ends = np.array([start, goal])
    room = np.linalg.norm(ends[:, None] - centers, axis=2).min(axis=0)
    radii = np.minimum(radius, 0.99 * room)
    points = np.concatenate([ends, _polygons(centers, radii)])
    lengths = np.linalg.norm(points[:, None] - points, axis=2)
    lengths[_crosses(points, centers, radii)] = 0.0  # no edge
    _, before = dijkstra(lengths, indices=0, return_predecessors=True)
    way = [1]
    while way[-1] > 0:
        way.append(before[way[-1]])
    return points[way[::-1]]


def _polygons(centers: Array, radii: Array) -> Array:
    """Return the corners of regular polygons whose sides pass just outside circles, (m, 2)."""
    angles = 2.0 * math.pi * np.arange(N_CORNERS) / N_CORNERS
    corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) / math.cos(math.pi / N_CORNERS)
    return (centers[:, None] + 1.001 * radii[:, None, None] * corners).reshape(-1, 2)


def _crosses(points: Array, centers: Array, radii: Array) -> NDArray[np.bool_]:
    """Say which of the straight lines between n points cross a circle, (n, n)."""
    line = (points[None] - points[:, None])[:, :, None]  # (n, n, 1, 2)
    to_center = (centers - points[:, None])[:, None]  # (n, 1, circles, 2)
    squared = np.maximum(np.sum(line**2, axis=3), 1e-12)
    share = np.clip(np.sum(line * to_center, axis=3) / squared, 0.0, 1.0)
    nearest = share[..., None] * line - to_center
    return (np.linalg.norm(nearest, axis=3) < radii).any(axis=2)


def point_ahead(way: Array, length: float) -> Array:
    """Return the point at a length from the start of a way, measured along it, or its end.

    Examples
    --------
    >>> import numpy as np
    >>> from skvdd.datasets.experts.paths import point_ahead
    >>> point_ahead(np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]), 1.25)
    array([1.  , 0.25])
    """
    for one, other in pairwise(way):
        piece = distance(one, other)
        if piece > length:
            return one + (other - one) * length / piece
        length -= piece
    return way[-1]


def heading_around(start: Array, goal: Array, obstacle: Array, clearance: float) -> Array:
    """Return the direction to a goal, or past an obstacle that is in the way.

    Parameters
    ----------
    start, goal, obstacle : ndarray of shape (2,)
        Points, m. The goal is another than the start.
    clearance : float
        Radius of a circle around the obstacle, m, along whose tangent the way leads; from within
        it leads out. The circle is made smaller where the goal lies in it.

    Returns
    -------
    ndarray of shape (2,)
        Of length one.
    """
    length, away = math.dist(start, goal), math.dist(start, obstacle)
    heading = (goal - start) / length
    ahead, aside = float((obstacle - start) @ heading), cross(heading, obstacle - start)
    radius = min(clearance, 0.95 * math.dist(goal, obstacle))
    if not 0.0 < ahead < length or abs(aside) >= radius:
        return heading
    if away > radius:
        bend = math.asin(radius / away)
    else:
        bend = math.pi * (1.0 - 0.5 * away / radius)
    return turned((obstacle - start) / away, -math.copysign(bend, aside))


# ---------------------------------------------------------------------------------------
# Over a grid
# ---------------------------------------------------------------------------------------


class Grid:
    """Nodes of a rectangular grid, joined to their neighbors in sixteen directions.

    Parameters
    ----------
    corner : tuple of two float
        Where its first node is, m.
    shape : tuple of two int
        Nodes along x and y.
    cell : float
        From one node to the next, m.

    Attributes
    ----------
    node_x, node_y : ndarray of shape (n_nodes,)
        Where the nodes are, m.
    """

    def __init__(self, corner: tuple[float, float], shape: tuple[int, int], cell: float) -> None:
        self._x, self._y = (c + cell * np.arange(n) for c, n in zip(corner, shape, strict=True))
        self._cell = cell
        self.node_x = np.repeat(self._x, shape[1])
        self.node_y = np.tile(self._y, shape[0])

    def node(self, point: ArrayLike) -> int:
        """Return the node that is nearest to a point (m)."""
        x, y = np.asarray(point)
        return int(np.abs(self._x - x).argmin() * len(self._y) + np.abs(self._y - y).argmin())

    @cached_property
    def edges(self) -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
        """Nodes from and to which the edges lead, and their lengths in m."""
        n_x, n_y = len(self._x), len(self._y)
        nodes = np.arange(n_x * n_y).reshape(n_x, n_y)
        starts, ends, lengths = [], [], []
        for dx, dy in STEPS:
            start = nodes[: n_x - dx, max(0, -dy) : n_y - max(0, dy)].ravel()
            starts.append(start)
            ends.append(start + dx * n_y + dy)
            lengths.append(np.full(len(start), self._cell * math.hypot(dx, dy)))
        return np.concatenate(starts), np.concatenate(ends), np.concatenate(lengths)


class Ways:
    """The cheapest ways from everywhere on a grid to some of its nodes.

    Parameters
    ----------
    grid : Grid
        The grid.
    goals : array-like of int
        Nodes at which a way may end.
    costs : ndarray of shape (n_nodes,)
        What a way costs per length, at each node.
    """

    def __init__(self, grid: Grid, goals: ArrayLike, costs: Array) -> None:
        start, end, length = grid.edges
        weights = length * 0.5 * (costs[start] + costs[end])
        graph = csr_array((weights, (start, end)), shape=(len(costs), len(costs)))
        self._grid = grid
        self._costs, self._next, _ = dijkstra(
            graph, directed=False, indices=goals, return_predecessors=True, min_only=True
        )

    def cost(self, start: Array) -> float:
        """Return the cost of the way from a point."""
        return float(self._costs[self._grid.node(start)])

    def ahead(self, start: Array, length: float) -> Array:
        """Return the first point of the way that is so far from its start, or its end, m, (2,)."""
        node, x, y = self._grid.node(start), self._grid.node_x, self._grid.node_y
        while self._next[node] >= 0:
            node = self._next[node]
            if math.hypot(x[node] - start[0], y[node] - start[1]) >= length:
                break
        return np.array([x[node], y[node]])
