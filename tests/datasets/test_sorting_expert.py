"""The demonstrators of Sorting: every order of colors, honest recordings."""

import gymnasium
import numpy as np
import pytest

from skvdd.datasets import load_demonstrations
from skvdd.datasets.experts import sorting as expert
from skvdd.datasets.experts.recording import demonstrate, record
from skvdd.envs import get_task
from skvdd.envs.sorting import BINS, color_orders

FREE = ()  # no other blocks
N_BLOCKS = (2, 4, 6)
ALL = [(2, order, context) for order in color_orders(2) for context in (0, 1)] + [
    *((4, order, i) for i, order in enumerate(color_orders(4))),
    *((6, order, i) for i, order in enumerate(("rrrbbb", "brbrbr"))),
]


def way(ways, start, step=0.01):
    """Follow a way to its end."""
    points = [np.array(start)]
    while len(points) < 200:
        points.append(ways.ahead(points[-1], step))
        if (points[-1] == points[-2]).all():
            break
    return np.array(points)


# -- ways ---------------------------------------------------------------------------------


def test_without_blocks_the_way_is_straight():
    ways = expert.ways_of_rod((0.6, 0.1), FREE)
    points = way(ways, (0.4, -0.3))
    np.testing.assert_allclose(points[-1], [0.6, 0.1], atol=expert.CELL)
    np.testing.assert_allclose(points[:, 0] - 0.4, (points[:, 1] + 0.3) / 2, atol=0.015)
    assert ways.cost(np.array([0.4, -0.3])) == pytest.approx(np.hypot(0.2, 0.4), rel=0.03)


def test_the_rod_goes_around_blocks():
    blocks = ((0.5, 0.0),)
    points = way(expert.ways_of_rod((0.5, 0.1), blocks), (0.5, -0.1))
    assert np.hypot(points[:, 0] - 0.5, points[:, 1]).min() > 0.05


def test_walled_in_the_rod_nudges_a_block():
    angles = np.linspace(0.0, 2.0 * np.pi, 8, endpoint=False)
    blocks = tuple((0.5 + 0.08 * np.cos(a), 0.08 * np.sin(a)) for a in angles)
    points = way(expert.ways_of_rod((0.5, 0.15), blocks), (0.5, 0.0))
    np.testing.assert_allclose(points[-1], [0.5, 0.15], atol=expert.CELL)


@pytest.mark.parametrize(("color", "other"), ["rb", "br"])
def test_blocks_enter_their_own_bin(color, other):
    goal, start = BINS[color], (BINS[other].x, 0.0)
    points = way(expert.ways_of_block(color, FREE), start)
    assert abs(points[-1, 0] - goal.x) < expert.MOUTH + expert.CELL / 2
    assert points[-1, 1] > expert.PLATFORM_EDGE + expert.DEEP
    aside = np.abs(points[:, 0] - goal.x) > expert.MOUTH + 0.01
    assert points[aside, 1].max() < 0.17  # half a block from the edge


# -- demonstrations -------------------------------------------------------------------------


@pytest.mark.parametrize(("n_blocks", "order", "context"), ALL)
def test_every_order_succeeds(n_blocks, order, context):
    # Of 280 attempts in test contexts all succeeded.
    env = gymnasium.make(f"skvdd/Sorting{n_blocks}-v0")
    start = {"context": context, "split": "test"}
    rng = np.random.default_rng(context)
    assert demonstrate(expert.DEMONSTRATOR, env, order, rng, options=start) is not None


@pytest.mark.parametrize(
    ("color", "place", "expected"),
    [
        ("r", (0.40, 0.30), True),
        ("b", (0.40, 0.30), False),  # the bin of the others
        ("r", (0.40, 0.225), False),  # inside, and still on the edge
        ("r", (0.40, 0.10), False),
        ("b", (0.62, 0.24), True),
    ],
)
def test_a_block_is_sorted_once_it_has_fallen_into_its_bin(color, place, expected):
    assert expert.is_sorted(color, *place) is expected


@pytest.fixture(scope="module")
def recorded():
    return record("sorting2", 4, random_state=7, n_jobs=1, progress=False)


def test_recordings_contain_deviations_and_corrections(recorded):
    # The heading wanders by tens of degrees and its noise remembers itself.
    for episode in recorded:
        heading = np.unwrap(np.arctan2(episode.actions[:, 1], episode.actions[:, 0]))
        turns = np.diff(heading)
        assert 0.05 < turns.std() < 0.6
        assert np.count_nonzero(np.diff(np.sign(turns))) > 20


# -- the sets that come with the library ------------------------------------------------------


@pytest.fixture(scope="module", params=N_BLOCKS)
def embedded(request):
    return load_demonstrations(f"sorting{request.param}")


def test_steps_are_short_and_episodes_too(embedded):
    assert max(map(len, embedded)) < 0.95 * get_task(embedded.name).time_limit
    assert np.mean([episode.metadata["attempts"] for episode in embedded]) < 1.1
    steps = np.concatenate([np.linalg.norm(e.actions, axis=1) for e in embedded])
    assert steps.max() < 0.0105
    assert 0.006 < np.median(steps) < 0.009
