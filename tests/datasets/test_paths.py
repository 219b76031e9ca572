"""Ways of demonstrators: around circles, past an obstacle, over a grid."""

import math
from itertools import pairwise

import numpy as np
import pytest

from skvdd.datasets.experts.paths import Grid, Ways, heading_around, point_ahead, way_round

GRID = Grid((0.2, -0.4), (61, 81), 0.01)


def test_a_way_without_obstacles_is_straight():
    way = way_round(np.zeros(2), np.array([1.0, 0.0]), np.array([[0.5, 0.8]]), 0.1)
    np.testing.assert_array_equal(way, [[0.0, 0.0], [1.0, 0.0]])


def test_a_way_goes_around_an_obstacle():
    center = np.array([[0.5, 0.01]])
    way = way_round(np.zeros(2), np.array([1.0, 0.0]), center, 0.1)
    points = np.concatenate([np.linspace(a, b, 50) for a, b in pairwise(way)])
    assert np.linalg.norm(points - center, axis=1).min() >= 0.1
    assert points[:, 1].max() <= 1e-12  # on the nearer side
    length = np.linalg.norm(np.diff(way, axis=0), axis=1).sum()
    assert 1.0 < length < 1.03


def test_a_point_ahead_lies_along_the_way():
    way = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(point_ahead(way, 1.25), [1.0, 0.25])
    np.testing.assert_array_equal(point_ahead(way, 9.0), [1.0, 1.0])


# -- past an obstacle -------------------------------------------------------------------------


def test_a_free_heading_is_straight():
    heading = heading_around(np.zeros(2), np.array([1.0, 0.0]), np.array([0.5, 0.2]), clearance=0.1)
    np.testing.assert_array_equal(heading, [1.0, 0.0])


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_an_obstacle_is_passed_along_its_tangent(side):
    obstacle = np.array([0.5, 0.05 * side])
    heading = heading_around(np.zeros(2), np.array([1.0, 0.0]), obstacle, clearance=0.1)
    assert np.linalg.norm(heading) == pytest.approx(1.0)
    assert math.copysign(1.0, heading[1]) == -side
    closest = abs(heading[0] * obstacle[1] - heading[1] * obstacle[0])
    assert closest == pytest.approx(0.1)


@pytest.mark.parametrize("goal_y", [-1e-3, 1e-3])
def test_a_heading_leads_out_of_a_circle(goal_y):
    start, goal, obstacle = np.array([-0.03, 0.0]), np.array([1.0, goal_y]), np.zeros(2)
    heading = heading_around(start, goal, obstacle, clearance=0.05)
    assert np.linalg.norm(start + 0.01 * heading) > 0.03


def test_a_goal_beside_an_obstacle_can_be_reached():
    position, goal, obstacle = np.array([0.5, 0.01]), np.zeros(2), np.array([0.04, 0.0])
    for _ in range(200):
        heading = heading_around(position, goal, obstacle, clearance=0.05)
        position = position + min(0.01, np.linalg.norm(goal - position)) * heading
        if np.linalg.norm(goal - position) < 1e-6:
            break
    assert np.linalg.norm(goal - position) < 1e-6


# -- over a grid ------------------------------------------------------------------------------


def test_the_nearest_node_stands_for_a_point():
    node = GRID.node((0.334, -0.117))
    assert (GRID.node_x[node], GRID.node_y[node]) == pytest.approx((0.33, -0.12))


def test_on_even_ground_the_cost_is_the_length():
    ways = Ways(GRID, [GRID.node((0.6, 0.1))], np.ones(len(GRID.node_x)))
    assert ways.cost(np.array([0.4, -0.3])) == pytest.approx(np.hypot(0.2, 0.4), rel=0.03)
    assert ways.cost(np.array([0.6, 0.1])) == 0.0


def test_a_way_avoids_what_costs_more_than_the_detour():
    costs = np.where((abs(GRID.node_x - 0.5) < 0.1) & (abs(GRID.node_y) < 0.02), 10.0, 1.0)
    ways = Ways(GRID, [GRID.node((0.5, 0.1))], costs)
    point = np.array([0.5, -0.1])
    crossed = []
    while ways.cost(point) > 0.0:
        point = ways.ahead(point, 0.005)
        crossed.append(costs[GRID.node(point)])
    assert max(crossed) == 1.0
    np.testing.assert_allclose(point, [0.5, 0.1])


def test_of_several_goals_the_way_leads_to_the_nearest():
    ways = Ways(GRID, [GRID.node((0.3, 0.0)), GRID.node((0.7, 0.0))], np.ones(len(GRID.node_x)))
    np.testing.assert_allclose(ways.ahead(np.array([0.6, 0.0]), 9.0), [0.7, 0.0])
