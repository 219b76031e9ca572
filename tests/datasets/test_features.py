"""Features of the tasks with objects: what is seen from one another, whatever the units."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from skvdd import GaussianMoEPolicy
from skvdd.datasets import load_demonstrations
from skvdd.datasets.features import bearing, behind, rotation, task_features
from skvdd.envs import TaskSpec, get_task, register_task, spec, task_names
from tests.estimators import SMALL

TASKS = [name for name in task_names() if get_task(name).features is not None]


def rows_of(task, window_size, n_episodes=2):
    demonstrations = load_demonstrations(task, n_episodes)
    if task != "blockpush":
        return demonstrations.windows(window_size)[0]
    options = {"goal_columns": [0, 1, 3, 4], "random_state": 0}
    return demonstrations.windows(window_size, goal="future", **options)[0]


def test_a_bearing_leads_from_one_point_to_the_other():
    rng = np.random.default_rng(0)
    start, end = rng.uniform(-1.0, 1.0, (2, 50, 3, 2))
    cosine, sine, distance, near = np.moveaxis(bearing(start, end), -1, 0)
    np.testing.assert_allclose(start[..., 0] + distance * cosine, end[..., 0], atol=1e-12)
    np.testing.assert_allclose(start[..., 1] + distance * sine, end[..., 1], atol=1e-12)
    np.testing.assert_array_equal(near, np.minimum(distance, 0.15))


def test_a_bearing_to_where_one_is_has_no_direction():
    assert bearing(np.zeros(2), np.zeros(2)).tolist() == [0.0, 0.0, 0.0, 0.0]


def test_a_place_seen_from_a_cube_does_not_depend_on_where_its_goal_lies():
    rng = np.random.default_rng(0)
    cube, direction = rng.uniform(-1.0, 1.0, (50, 2)), rng.uniform(-np.pi, np.pi, 50)
    ahead = np.stack([np.cos(direction), np.sin(direction)], axis=1)
    left = np.stack([-ahead[:, 1], ahead[:, 0]], axis=1)
    x, y = rng.uniform(-0.3, 0.3, (2, 50, 1))
    goal = cube + rng.uniform(0.1, 1.0, (50, 1)) * ahead
    found = behind(cube + x * ahead + y * left, cube, goal)
    place = np.concatenate([x, y], axis=1)
    turn = -place / np.hypot(x, y)  # of the line from rod to cube, against the way
    expected = np.concatenate([place, np.clip(place, -0.1, 0.1), turn], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_cube_looks_the_same_after_a_quarter_turn():
    angles = np.linspace(-3.0, 3.0, 20)
    turned = rotation(angles + np.pi / 2, 4)
    np.testing.assert_allclose(rotation(angles, 4), turned, atol=1e-12)


@pytest.mark.parametrize("task", TASKS)
def test_features_of_real_episodes_are_finite_and_few(task):
    rows = rows_of(task, window_size=1)
    features = task_features(task).fit_transform(rows)
    assert features.shape[0] == len(rows)
    assert np.isfinite(features).all()
    assert np.abs(features).max() <= 2.0  # meters and cosines: nothing that spoils the units


@pytest.mark.parametrize("task", TASKS)
def test_each_state_of_a_window_has_its_own_features(task):
    single, window = task_features(task), task_features(task, window_size=3)
    rows = rows_of(task, window_size=3)
    n_goal = get_task(task).goal_dim
    flat = rows.reshape(len(rows), -1)
    goal = flat[:, flat.shape[1] - n_goal :]
    states = flat[:, : flat.shape[1] - n_goal].reshape(len(rows), 3, -1)
    parts = [single.transform(np.concatenate([states[:, i], goal], axis=1)) for i in range(3)]
    alone = [part[:, : part.shape[1] - n_goal] for part in parts]
    np.testing.assert_array_equal(window.transform(rows), np.concatenate([*alone, goal], axis=1))


@pytest.mark.parametrize(
    ("task", "moving", "still"),
    [
        ("pushing", [0, 4], [2, 3, *range(6, 14)]),  # set-point and cube; its lead, rod to cube
        ("sorting4", [0, 2], range(4, 13)),  # rod and block; rod to block
    ],
)
def test_moving_all_the_plane_moves_no_direction_between_rod_and_cube(task, moving, still):
    states = rows_of(task, window_size=1)[:, 0].astype(np.float64)
    moved = states.copy()
    moved[:, [0, 2, *range(4, states.shape[1], 3)]] += 0.1
    features, after = (task_features(task).transform(x) for x in (states, moved))
    changed = np.abs(features - after).max(axis=0) > 1e-9
    assert changed[moving].all()
    assert not changed[still].any()


@pytest.mark.parametrize("task", ["aligning", "sorting2", "sorting4", "sorting6"])
def test_where_in_the_plane_the_set_point_is_does_not_matter(task):
    states = rows_of(task, window_size=1)[:, 0]
    elsewhere = states.copy()
    elsewhere[:, :2] += 0.05
    seen, still_seen = (task_features(task).transform(x) for x in (states, elsewhere))
    np.testing.assert_array_equal(seen, still_seen)


def test_aligning_sees_how_high_the_set_point_is_and_above_the_tool():
    states = rows_of("aligning", window_size=1)[:, 0].astype(np.float64)
    higher = states.copy()
    higher[:, 2] += 0.05
    before, after = (task_features("aligning").transform(x) for x in (states, higher))
    risen = np.zeros(before.shape[1])
    risen[[2, 3]] = 0.05
    np.testing.assert_allclose(after - before, np.tile(risen, (len(states), 1)), atol=1e-12)


def swapped(states, one, other):
    """Return states of Sorting in which two blocks have changed places."""
    exchanged = states.copy()
    first, second = (slice(4 + 3 * block, 7 + 3 * block) for block in (one, other))
    exchanged[:, first], exchanged[:, second] = states[:, second], states[:, first]
    return exchanged


@pytest.mark.parametrize(("one", "other", "alike"), [(0, 2, True), (3, 5, True), (2, 3, False)])
def test_blocks_stand_in_for_one_another_within_their_color_alone(one, other, alike):
    states = rows_of("sorting6", window_size=1)[:, 0]
    features = task_features("sorting6")
    same = features.transform(states) == features.transform(swapped(states, one, other))
    assert same.all(axis=1).all() == alike


def test_the_nearest_block_of_a_color_comes_first_and_one_in_a_bin_last():
    states = np.zeros((2, 4 + 3 * 4))
    states[:, 2:4] = 0.5, 0.19  # the rod
    states[:, [4, 5]], states[:, [7, 8]] = (0.5, 0.1), (0.5, 0.0)  # red
    states[:, [10, 11]], states[:, [13, 14]] = (0.6, -0.1), (0.6, 0.1)  # blue
    states[1, [4, 5]] = 0.45, 0.21  # nearest of all, and over the edge
    features = task_features("sorting4").transform(states)
    centers = features[:, 2 : 2 + 4 * 21].reshape(2, 4, 21)[:, :, :2]
    np.testing.assert_array_equal(centers[0], [[0.5, 0.1], [0.5, 0.0], [0.6, 0.1], [0.6, -0.1]])
    np.testing.assert_array_equal(centers[1, :2], [[0.5, 0.0], [0.45, 0.21]])


@pytest.mark.parametrize("task", ["sorting2", "blockpush"])
def test_many_rows_have_the_features_of_each(task, monkeypatch):
    rows, features = rows_of(task, window_size=1)[:103], task_features(task)
    whole = features.transform(rows)
    monkeypatch.setattr("skvdd.datasets.features.AT_ONCE", 10)
    np.testing.assert_array_equal(features.transform(rows), whole)


@pytest.mark.parametrize(
    ("given", "kept"), [("float32", "float32"), ("float64", "float64"), ("int64", "float64")]
)
def test_features_have_the_floating_type_of_the_rows(given, kept):
    rows = np.arange(1.0, 49.0).reshape(3, 16)
    exact = task_features("sorting4").transform(rows)
    features = task_features("sorting4").transform(rows.astype(given))
    assert features.dtype == kept
    # reckoned in float64, then rounded once
    np.testing.assert_array_equal(features, exact.astype(kept))


def test_a_clone_makes_the_same_features():
    rows = rows_of("pushing", 2)
    one = task_features("pushing", 2)
    np.testing.assert_array_equal(one.transform(rows), clone(one).transform(rows))


def test_a_pipeline_takes_windows_and_flat_rows_alike():
    states, actions, _ = load_demonstrations("pushing", 2).windows(2)
    pipeline = make_pipeline(
        task_features("pushing", 2), GaussianMoEPolicy(2, window_size=2, **SMALL)
    )
    pipeline.fit(states, actions)
    flat = states.reshape(len(states), -1)
    np.testing.assert_array_equal(pipeline.predict(states[:9]), pipeline.predict(flat[:9]))


def summed(states):
    return states.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("features", [summed, f"{__name__}:summed"])
def test_a_task_of_ones_own_has_features(monkeypatch, features):
    monkeypatch.setattr(spec, "_TASKS", dict(spec._TASKS))
    register_task(TaskSpec("line", "Line-v0", features=features))
    transformer = task_features("line", window_size=2)
    monkeypatch.undo()  # where it is loaded, nobody knows the task
    loaded = pickle.loads(pickle.dumps(transformer))
    assert loaded.transform(np.arange(12.0).reshape(2, 2, 3)).tolist() == [
        [3.0, 12.0],
        [21.0, 30.0],
    ]


def test_errors_name_task_and_columns():
    with pytest.raises(ValueError, match=r"^task must have features, and 'avoiding' has none\.$"):
        task_features("avoiding")
    with pytest.raises(ValueError, match=r"^task must be one of 'aligning', .*got 'juggling'\. "):
        task_features("juggling")
    with pytest.raises(ValueError, match=r"^rows must hold 3 states each, got 20 columns\.$"):
        task_features("pushing", 3).transform(np.zeros((4, 20)))
    with pytest.raises(ValueError, match="3 states each and 4 numbers of a goal, got 20 columns"):
        task_features("blockpush", 3).transform(np.zeros((4, 20)))
