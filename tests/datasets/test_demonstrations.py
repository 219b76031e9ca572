"""The container: windows, subsets, files; and the sets that come with the library."""

import json
import re
import subprocess
import sys
from collections import Counter
from io import UnsupportedOperation
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare

from skvdd.datasets import Demonstrations, Episode, append_goals, load_demonstrations
from skvdd.datasets.demonstrations import Demonstrations as SameDemonstrations
from skvdd.envs import get_task, task_names
from skvdd.envs.avoiding import ROW_Y, gaps_of

REPOSITORY = Path(__file__).resolve().parents[2]
SETS = [name for task in task_names() for name in get_task(task).demonstrators]
VARIANTS = [name for name in get_task("avoiding").demonstrators if name != "avoiding"]


def refused(message, error=ValueError):
    """Expect an error whose whole message is this."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def make_set(dtype=np.float64):
    """Two episodes whose numbers tell where they belong: 10 * episode + step."""
    episodes = []
    for number, (length, behavior) in enumerate([(3, "left"), (2, "right")], start=1):
        steps = 10.0 * number + np.arange(length, dtype=dtype)
        episodes.append(
            Episode(np.stack([steps, -steps], axis=1).astype(dtype), steps[:, None], behavior)
        )
    return Demonstrations(episodes, name="toy", metadata={"seed": 3, "units": ["m", None]})


def with_goals():
    """The same, and goals that tell where they belong too, pictures, and a file of each."""
    episodes = [
        Episode(
            episode.states,
            episode.actions,
            episode.behavior,
            episode.states[:, :1] + np.array([0.25, 0.5, 0.75]),
            {"hand": [f"hand/{number}/{i}.jpg" for i in range(len(episode))]},
            {"file": f"{number}.pkl"},
        )
        for number, episode in enumerate(make_set())
    ]
    return Demonstrations(episodes, name="toy", metadata={"seed": 3})


# -- windows --------------------------------------------------------------------------------


def test_windows_of_one_state():
    states, actions, groups = make_set().windows()
    assert states.shape == (5, 1, 2)
    assert states[:, 0, 0].tolist() == [10, 11, 12, 20, 21]
    assert actions.tolist() == [[10], [11], [12], [20], [21]]
    assert groups.tolist() == [0, 0, 0, 1, 1]


def test_the_start_of_an_episode_is_padded_with_its_first_state():
    states, _, _ = make_set().windows(window_size=3)
    assert states.shape == (5, 3, 2)
    assert states[:, :, 0].tolist() == [
        [10, 10, 10],
        [10, 10, 11],
        [10, 11, 12],
        [20, 20, 20],
        [20, 20, 21],
    ]
    np.testing.assert_array_equal(states[:, :, 1], -states[:, :, 0])


def test_a_window_may_be_longer_than_an_episode():
    states, _, _ = make_set().windows(np.int64(4))
    assert states[2, :, 0].tolist() == [10, 10, 11, 12]
    assert states[4, :, 0].tolist() == [20, 20, 20, 21]


@pytest.mark.parametrize("window_size", [0, -1, 2.0, "2", None])
def test_a_wrong_window_size_is_refused(window_size):
    with refused(f"window_size must be an integer of at least 1, got {window_size!r}."):
        make_set().windows(window_size)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_precision_is_kept(dtype):
    states, actions, _ = make_set(dtype).windows(2)
    assert states.dtype == actions.dtype == dtype


# -- goals ----------------------------------------------------------------------------------


def test_append_goals_puts_the_goal_behind_the_window():
    windows, _, _ = make_set().windows(window_size=2)
    goals = np.arange(15.0).reshape(5, 3)
    rows = append_goals(windows, goals)
    assert rows.shape == (5, 7)
    np.testing.assert_array_equal(rows[:, :4].reshape(5, 2, 2), windows)
    np.testing.assert_array_equal(rows[:, 4:], goals)
    np.testing.assert_array_equal(append_goals(windows.reshape(5, 4), goals), rows)


def test_append_goals_takes_one_goal_for_all_windows():
    windows, _, _ = make_set().windows(window_size=2)
    rows = append_goals(windows, [7, 8])
    np.testing.assert_array_equal(rows[:, 4:], np.tile([7.0, 8.0], (5, 1)))
    rows[0, 4] = 0.0  # a copy: the rows do not share one goal
    assert rows[1, 4] == 7.0


def test_a_vector_is_one_goal_even_if_as_long_as_the_windows():
    assert append_goals(np.zeros((3, 2)), [1.0, 2.0, 3.0]).shape == (3, 5)


@pytest.mark.parametrize("shape", [(4,), (0, 2), (3, 0), (1, 2, 3, 4)])
def test_windows_of_another_shape_are_refused(shape):
    with refused(
        "windows must have shape (n, T, d) or (n, T * d), with at least one row and column, got "
        f"{shape}."
    ):
        append_goals(np.zeros(shape), [1.0])


@pytest.mark.parametrize("shape", [(), (0,), (4, 2), (1, 2), (3, 0), (3, 1, 1)])
def test_goals_of_another_shape_are_refused(shape):
    with refused(
        "goals must have shape (3, g), one for each of the 3 windows, or (g,), one for all, with "
        f"at least one column, got {shape}."
    ):
        append_goals(np.zeros((3, 2)), np.zeros(shape))


def test_goals_lie_in_the_future_of_the_same_episode():
    demos = load_demonstrations("avoiding", 8)
    numbered = [
        Episode(1000.0 * i + np.arange(len(episode))[:, None], episode.actions)
        for i, episode in enumerate(demos)
    ]
    rows, actions, groups = Demonstrations(numbered).windows(goal="future", random_state=0)
    own, goal = rows.T
    last = 1000.0 * groups + np.array([len(episode) for episode in demos])[groups] - 1
    assert (goal[own < last] > own[own < last]).all()
    assert (goal <= last).all()
    np.testing.assert_array_equal(goal[own == last], last[own == last])
    np.testing.assert_array_equal(actions, demos.windows()[1])
    np.testing.assert_array_equal(groups, demos.windows()[2])


@pytest.mark.parametrize("row", [0, 3])
def test_goals_are_uniform_over_the_future(row):
    steps = np.arange(8.0)[:, None]
    demos = Demonstrations([Episode(steps, steps), Episode(steps - 100, steps)])
    rng = np.random.RandomState(0)
    goals = [demos.windows(goal="future", random_state=rng)[0][row, 1] for _ in range(3000)]
    reached, counts = np.unique(goals, return_counts=True)
    assert reached.tolist() == list(range(row + 1, 8))
    assert chisquare(counts).pvalue > 0.01


def test_goal_rows_begin_with_the_window_and_end_with_columns_of_a_state():
    demos = make_set()
    windows, _, _ = demos.windows(window_size=3)
    rows, _, _ = demos.windows(3, goal="future", random_state=0)
    assert rows.shape == (5, 8)
    np.testing.assert_array_equal(rows[:, :6], windows.reshape(5, 6))
    np.testing.assert_array_equal(rows[:, 7], -rows[:, 6])
    chosen, _, _ = demos.windows(3, goal="future", goal_columns=[-1], random_state=0)
    np.testing.assert_array_equal(chosen, rows[:, [0, 1, 2, 3, 4, 5, 7]])
    swapped, _, _ = demos.windows(3, goal="future", goal_columns=np.array([1, 0]), random_state=0)
    np.testing.assert_array_equal(swapped, rows[:, [0, 1, 2, 3, 4, 5, 7, 6]])


def test_goals_follow_the_seed():
    demos = load_demonstrations("avoiding", 2)
    one, again, other = (demos.windows(goal="future", random_state=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_goals_keep_the_precision():
    assert make_set(np.float32).windows(2, goal="future")[0].dtype == np.float32


@pytest.mark.parametrize("columns", [[], [[0]], [0.0], [True, False], 0, "ab"])
def test_goal_columns_that_are_no_numbers_are_refused(columns):
    with refused(
        "goal_columns must be a sequence of at least one column number, or None for all; got "
        f"{columns!r}."
    ):
        make_set().windows(goal="future", goal_columns=columns)


@pytest.mark.parametrize("column", [2, -3])
def test_goal_columns_out_of_range_are_refused(column):
    with refused(f"goal_columns must lie within the 2 columns of a state, got {column}."):
        make_set().windows(goal="future", goal_columns=[0, column])


def test_a_wrong_window_size_is_refused_with_goals_too():
    with refused("window_size must be an integer of at least 1, got 0."):
        make_set().windows(0, goal="future")


def test_recorded_goals_follow_their_windows():
    demos = with_goals()
    rows, actions, groups = demos.windows(2, goal="recorded")
    assert rows.shape == (5, 2 * 2 + 3)
    np.testing.assert_array_equal(rows[:, :4], demos.windows(2)[0].reshape(5, 4))
    np.testing.assert_array_equal(rows[:, 4:] - actions, np.tile([0.25, 0.5, 0.75], (5, 1)))
    assert groups.tolist() == [0, 0, 0, 1, 1]
    chosen, _, _ = demos.windows(2, goal="recorded", goal_columns=[-1, 0])
    np.testing.assert_array_equal(chosen, rows[:, [0, 1, 2, 3, 6, 4]])


def test_recorded_goals_have_to_be_there():
    with refused(
        "goal='recorded' needs episodes with goals, and these have none; 'future' takes states "
        "that were reached later."
    ):
        make_set().windows(goal="recorded")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"goal": "past"}, "goal must be 'future', 'recorded' or None, got 'past'."),
        ({"goal_columns": [0]}, "goal_columns choose from a goal, so goal must not be None."),
        (
            {"goal": "recorded", "goal_columns": [3]},
            "goal_columns must lie within the 3 columns of a goal, got 3.",
        ),
    ],
)
def test_wrong_goals_are_refused(arguments, message):
    with refused(message):
        with_goals().windows(**arguments)


# -- the container ----------------------------------------------------------------------------


def test_a_set_is_a_sequence_of_episodes():
    demos = make_set()
    assert SameDemonstrations is Demonstrations
    assert len(demos) == 2
    assert [len(episode) for episode in demos] == [3, 2]
    assert demos[1].behavior == "right"
    assert demos.n_rows == 5
    assert demos.behaviors == ("left", "right")


def test_representations_are_one_line():
    demos = make_set()
    assert repr(demos) == "Demonstrations('toy', 2 episodes, 5 rows, 2 states, 1 action)"
    assert repr(demos[0]) == "Episode(3 steps, 2 states, 1 actions, behavior='left')"


def test_describe_lists_behaviors_and_ranges():
    assert make_set().describe().splitlines() == [
        "Demonstrations('toy', 2 episodes, 5 rows, 2 states, 1 action)",
        "    behavior  episodes   share  shortest  longest",
        "        left         1   50.0%         3        3",
        "       right         1   50.0%         2        2",
        "",
        "            minimum       mean    maximum",
        "state 0          10       14.8         21",
        "state 1         -21      -14.8        -10",
        "action 0         10       14.8         21",
    ]


def test_describe_names_the_columns_that_the_metadata_name():
    named = Demonstrations(
        with_goals().episodes, metadata={"states": ["x", "y"], "actions": ["too", "many"]}
    )
    labels = [line.split("  ")[0] for line in named.describe().splitlines()[6:]]
    assert labels == ["state 0, x", "state 1, y", "action 0", *(f"goal {i}" for i in range(3))]


def test_describe_bears_mixed_and_missing_behaviors():
    one = np.ones((1, 1))
    demos = Demonstrations([Episode(one, one, b) for b in (None, 3, "a", 2, None)])
    table = demos.describe().split("\n\n")[0]
    assert [line.split()[0] for line in table.splitlines()[2:]] == ["None", "2", "3", "a"]


def test_a_subset_shares_episodes_and_keeps_the_order_given():
    demos = make_set()
    subset = demos.subset([-1, 0])
    assert subset.episodes == (demos[1], demos[0])
    assert (subset.name, subset.metadata) == (demos.name, demos.metadata)
    subset.metadata["seed"] = 4
    assert demos.metadata["seed"] == 3


def test_a_subset_is_chosen_by_slice_mask_and_behavior():
    one = np.ones((1, 1))
    demos = Demonstrations([Episode(one, one, b) for b in ("a", "b", None, "a", 4)])
    assert demos.subset(slice(1, None, 2)).behaviors == ("b", "a")
    assert demos.subset(np.array([True, False, True, False, False])).behaviors == ("a", None)
    assert demos.subset(behaviors="a").behaviors == ("a", "a")
    assert demos.subset(behaviors=4).behaviors == (4,)
    assert demos.subset(behaviors=["b", None]).behaviors == ("b", None)
    assert demos.subset([4, 3, 0], behaviors=["a"]).episodes == (demos[3], demos[0])
    assert demos[-2:].episodes == demos.episodes[-2:]
    assert demos[::2].name == demos.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"indices": [True]},
            "indices that are a mask must have 2 entries, one for each episode, got 1.",
        ),
        (
            {"behaviors": ["left", "up", 3]},
            "behaviors must be among those that the episodes show, got 'up', 3.",
        ),
        (
            {"indices": [0], "behaviors": "right"},
            "Demonstrations need at least one episode, got none.",
        ),
        ({"indices": []}, "Demonstrations need at least one episode, got none."),
    ],
)
def test_a_subset_that_is_none_is_refused(arguments, message):
    with refused(message):
        make_set().subset(**arguments)


@pytest.mark.parametrize(("test_size", "n_test"), [(0.25, 24), (10, 10)])
def test_a_split_parts_the_episodes(test_size, n_test):
    demos = load_demonstrations()
    train, test = demos.split(test_size, random_state=0)
    assert len(test) == n_test
    assert {*train.episodes, *test.episodes} == set(demos.episodes)
    assert len(train) + len(test) == len(demos)
    order = [demos.episodes.index(episode) for episode in test]
    assert order == sorted(order)
    again, other = (demos.split(test_size, random_state=seed)[1] for seed in (0, 1))
    assert again.episodes == test.episodes != other.episodes


def test_a_split_can_keep_the_shares_of_behaviors():
    one = np.ones((1, 1))
    demos = Demonstrations([Episode(one, one, b) for b in 12 * ["a"] + 6 * [None]])
    for seed in range(5):
        _, test = demos.split(6, stratify=True, random_state=seed)
        assert Counter(test.behaviors) == {"a": 4, None: 2}
    shares = {Counter(demos.split(6, random_state=seed)[1].behaviors)["a"] for seed in range(5)}
    assert len(shares) > 1


def test_a_split_by_single_behaviors_is_refused():
    with refused(
        "stratify needs at least two episodes of each behavior, got one of 'left', 'right'."
    ):
        make_set().split(1, stratify=True)


def test_sets_are_put_together():
    demos = make_set()
    both = demos + demos
    assert (both.name, both.metadata) == (demos.name, demos.metadata)
    assert both.episodes == demos.episodes + demos.episodes
    other = Demonstrations(demos.episodes[:1], "other", {"seed": 4})
    three = demos + other + demos
    assert three.name == "toy + other + toy"
    assert three.metadata == {
        "parts": [
            {"name": "toy", "n_episodes": 2, "metadata": demos.metadata},
            {"name": "other", "n_episodes": 1, "metadata": {"seed": 4}},
            {"name": "toy", "n_episodes": 2, "metadata": demos.metadata},
        ]
    }


def test_names_of_columns_survive_where_both_have_them():
    one = Demonstrations(make_set().episodes, "one", {"states": ["x", "y"], "actions": ["dx"]})
    two = Demonstrations(make_set().episodes, "two", {"states": ["x", "y"], "actions": ["dy"]})
    assert (one + two).metadata["states"] == ["x", "y"]
    assert "actions" not in (one + two).metadata


def test_only_episodes_make_a_set():
    message = "Demonstrations are made of Episode objects, got tuple at 1. Use Episode(states, "
    with pytest.raises(TypeError, match=f"^{re.escape(message + 'actions).')}$"):
        Demonstrations([make_set()[0], (np.zeros((3, 2)), np.zeros((3, 1)))])


def test_only_sets_are_put_together():
    with pytest.raises(TypeError):
        make_set() + 1


def test_a_subset_out_of_range_is_refused():
    with refused("indices must lie within 2 episodes, got 2."):
        make_set().subset([0, 2])


def test_episodes_are_frozen_copies():
    states, actions = np.zeros((2, 1)), np.zeros((2, 1))
    episode = Episode(states, actions)
    states[0] = 1.0
    assert episode.states[0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        episode.actions[0] = 1.0
    with pytest.raises(AttributeError):
        episode.behavior = "other"


def test_integers_become_floats_and_numpy_behaviors_plain():
    episode = Episode([[1, 2]], [[3]], np.int64(5))
    assert episode.states.dtype == episode.actions.dtype == np.float64
    assert type(episode.behavior) is int


@pytest.mark.parametrize(
    ("states", "actions", "message"),
    [
        (
            np.zeros(3),
            np.zeros((3, 1)),
            "states of an episode must be a table with one row per decision and at least one row "
            "and column, got shape (3,).",
        ),
        (
            np.zeros((3, 1)),
            np.zeros((0, 1)),
            "actions of an episode must be a table with one row per decision and at least one row "
            "and column, got shape (0, 1).",
        ),
        (
            np.array([[0.0], [np.nan]]),
            np.zeros((2, 1)),
            "states of an episode must be finite, got NaN or infinity in row 1.",
        ),
        (
            np.zeros((3, 1)),
            np.zeros((2, 1)),
            "states and actions of an episode must have equally many rows, got 3 states and 2 "
            "actions. A last state without an action has to be dropped.",
        ),
    ],
)
def test_wrong_episodes_are_refused(states, actions, message):
    with refused(message):
        Episode(states, actions)


def test_an_episode_keeps_goals_pictures_and_metadata():
    episode = with_goals()[1]
    assert episode.goals.tolist() == [[20.25, 20.5, 20.75], [21.25, 21.5, 21.75]]
    assert episode.images == {"hand": ("hand/1/0.jpg", "hand/1/1.jpg")}
    assert episode.metadata == {"file": "1.pkl"}
    with pytest.raises(ValueError, match="read-only"):
        episode.goals[0] = 1.0


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"goals": np.ones((2, 1))}, "goals of an episode must be as many as its 3 states, got 2."),
        (
            {"goals": np.ones(3)},
            "goals of an episode must be a table with one row per decision and at least one row "
            "and column, got shape (3,).",
        ),
        (
            {"images": {"hand": ["0.jpg"]}},
            "images of 'hand' of an episode must be as many as its 3 states, got 1.",
        ),
    ],
)
def test_wrong_goals_and_pictures_are_refused(extra, message):
    with refused(message):
        Episode(np.ones((3, 1)), np.ones((3, 1)), **extra)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (
            {},
            {"goals": np.ones((1, 2))},
            "All episodes must have goals of the same number of columns, or none; episode 0 has 0 "
            "columns, episode 1 has 2.",
        ),
        (
            {"images": {"hand": ["0.jpg"]}},
            {"images": {"eye": ["0.jpg"]}},
            "All episodes must have images of the same cameras; episode 0 has ['hand'], episode 1 "
            "has ['eye'].",
        ),
    ],
)
def test_episodes_with_other_goals_or_cameras_are_refused(one, other, message):
    table = np.ones((1, 1))
    with refused(message):
        Demonstrations([Episode(table, table, **one), Episode(table, table, **other)])


def test_a_behavior_has_to_be_plain():
    with refused("behavior must be a str, an int or None, got (1, 2).", TypeError):
        Episode(np.zeros((1, 1)), np.zeros((1, 1)), (1, 2))


def test_sets_that_do_not_fit_together_are_refused():
    one, two = np.zeros((1, 1)), np.zeros((1, 2))
    with refused(
        "All episodes must have the same numbers of states and actions; episode 0 has 1 and 1, "
        "episode 1 has 2 and 1."
    ):
        Demonstrations([Episode(one, one), Episode(two, one)])
    with refused("Demonstrations need at least one episode, got none."):
        Demonstrations([])


# -- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_file_gives_back_what_was_saved(tmp_path, dtype):
    demos = make_set(dtype)
    path = tmp_path / "toy.demonstrations"
    demos.save(path)
    loaded = Demonstrations.load(path)
    assert (loaded.name, loaded.metadata, loaded.behaviors) == (
        demos.name,
        demos.metadata,
        demos.behaviors,
    )
    for one, other in zip(loaded, demos, strict=True):
        assert one.states.dtype == dtype
        np.testing.assert_array_equal(one.states, other.states)
        np.testing.assert_array_equal(one.actions, other.actions)


@pytest.mark.parametrize("options", [{}, {"compressed": False}])
def test_a_file_keeps_goals_pictures_and_metadata(tmp_path, options):
    with_goals().save(tmp_path / "toy.npz", **options)
    for one, other in zip(Demonstrations.load(tmp_path / "toy.npz"), with_goals(), strict=True):
        np.testing.assert_array_equal(one.goals, other.goals)
        assert (one.images, one.metadata, one.behavior) == (
            other.images,
            other.metadata,
            other.behavior,
        )


def root_of(array):
    """Return the array that another one is a view of, in the end."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def test_a_file_can_be_mapped_instead_of_read(tmp_path):
    path = tmp_path / "toy.npz"
    with_goals().save(path, compressed=False)
    demos = Demonstrations.load(path, mmap_mode="r")
    for episode in demos.subset([1]):
        for table in (episode.states, episode.actions, episode.goals):
            assert isinstance(root_of(table), np.memmap)
            with pytest.raises(ValueError, match="read-only"):
                table[0] = 1.0
    for goal in (None, "recorded"):
        for one, other in zip(
            demos.windows(2, goal=goal), with_goals().windows(2, goal=goal), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    assert demos.describe() == with_goals().describe()
    assert not isinstance(root_of(Demonstrations.load(path)[0].states), np.memmap)


def test_a_compressed_file_cannot_be_mapped(tmp_path):
    path = tmp_path / "toy.npz"
    make_set().save(path)
    with refused(
        f"{path} is compressed, and such files cannot be memory-mapped: save the set with "
        "compressed=False, or load it without mmap_mode.",
        UnsupportedOperation,
    ):
        Demonstrations.load(path, mmap_mode="r")


def test_a_file_is_mapped_for_reading_only(tmp_path):
    with refused("mmap_mode must be 'r' or None, got 'r+'."):
        Demonstrations.load(tmp_path / "toy.npz", mmap_mode="r+")


def test_files_of_version_1_are_read(tmp_path):
    archive(tmp_path / "toy.npz")
    (episode,) = Demonstrations.load(tmp_path / "toy.npz")
    assert (len(episode), episode.goals, episode.images, episode.metadata) == (2, None, None, {})


def test_equal_sets_make_equal_files(tmp_path):
    make_set().save(tmp_path / "a.npz")
    make_set().save(str(tmp_path / "b.npz"))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_failed_save_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "toy.npz"
    make_set().save(path)
    before = path.read_bytes()

    def disk_full(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError, match=r"^disk full$"):
        make_set().subset([0]).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_metadata_that_json_cannot_hold_are_refused(tmp_path):
    demos = Demonstrations(make_set().episodes, metadata={"array": np.zeros(2)})
    with refused(
        "name, behaviors and metadata must be made of what JSON can hold (dict with str keys, "
        "list, str, int, float, bool, None) to be saved: Object of type ndarray is not JSON "
        "serializable.",
        TypeError,
    ):
        demos.save(tmp_path / "toy.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_reported_as_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        Demonstrations.load(tmp_path / "nothing.npz")


def archive(path, **changes):
    """Write an archive that differs from a good one."""
    header = {"format": "skvdd-demonstrations", "version": 1, "name": "", "metadata": {}}
    header |= {"behaviors": [None], **changes.pop("header", {})}
    arrays = {"lengths": [2], "states": np.ones((2, 1)), "actions": np.ones((2, 1))} | changes
    arrays = {key: value for key, value in arrays.items() if value is not None}
    np.savez(path, header=np.array(json.dumps(header)), **arrays)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"header": {"format": "other"}}, "format 'other', version 1"),
        ({"header": {"version": 3}}, "format 'skvdd-demonstrations', version 3"),
        (
            {"lengths": [3]},
            "lengths add up to 3 rows, found 2 of states, 2 of actions and 2 of goals",
        ),
        (
            {"actions": np.ones((1, 1))},
            "lengths add up to 2 rows, found 2 of states, 1 of actions and 2 of goals",
        ),
        (
            {"goals": np.ones((3, 1))},
            "lengths add up to 2 rows, found 2 of states, 2 of actions and 3 of goals",
        ),
        ({"states": None}, "'states' is not in the archive"),
        (
            {"states": np.full((2, 1), np.inf)},
            "states of an episode must be finite, got NaN or infinity in row 0.",
        ),
        (
            {"states": np.array([["a"], ["b"]], dtype=object)},
            "states holds objects instead of numbers",
        ),
    ],
)
def test_foreign_archives_are_refused(tmp_path, changes, reason):
    path = tmp_path / "toy.npz"
    archive(path, **changes)
    with refused(
        f"{path} is damaged, or not a demonstrations file of version 1 or 2 as "
        f"Demonstrations.save writes it ({reason})"
    ):
        Demonstrations.load(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 not really", b"\x93NUMPY"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "toy.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path} is damaged, or not a")):
        Demonstrations.load(path)


def test_a_plain_array_is_refused(tmp_path):
    path = tmp_path / "toy.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(ValueError, match=r"\(File is not a zip file\)$"):
        Demonstrations.load(path)


def test_damage_never_shows_as_another_error(tmp_path):
    path = tmp_path / "toy.npz"
    make_set().save(path)
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [good[: len(good) * part // 10] for part in range(10)]
    for place in rng.integers(len(good), size=150):
        damaged.append(good[:place] + bytes([good[place] ^ 0x55]) + good[place + 1 :])
    for content in damaged:
        path.write_bytes(content)
        try:
            loaded = Demonstrations.load(path)
        except ValueError as caught:
            error = caught
        else:  # a bit that carries no content
            np.testing.assert_array_equal(loaded.windows()[0], make_set().windows()[0])
            continue
        np.testing.assert_equal(str(error).startswith(f"{path} is damaged"), True)


# -- the embedded sets ------------------------------------------------------------------------


def test_the_embedded_set():
    demos = load_demonstrations()
    assert repr(demos).startswith("Demonstrations('avoiding', 96 episodes, 12086 rows, 4 states")
    assert set(Counter(demos.behaviors).values()) == {4}
    assert len(set(demos.behaviors)) == 24
    assert demos.metadata["random_state"] == 0
    assert demos.metadata["environment"] == "skvdd/Avoiding-v0"


@pytest.mark.parametrize("task", SETS)
def test_the_embedded_files_are_small(task):
    assert (REPOSITORY / f"skvdd/datasets/data/{task}.npz").stat().st_size <= 1_000_000


@pytest.mark.parametrize("task", VARIANTS)
def test_the_embedded_variants(task):
    demos = load_demonstrations(task)
    assert (demos.name, len(demos), len(set(demos.behaviors))) == (task, 96, 24)
    assert demos.metadata["style"] == task.removeprefix("avoiding-")
    assert demos.metadata["random_state"] == 0
    assert 96 <= demos.metadata["n_attempts"] <= 400
    states, actions, _ = demos.windows()
    assert states.shape[1:] == (1, 4)
    assert actions.shape[1:] == (2,)
    assert states.dtype == actions.dtype == np.float32
    assert max(map(len, demos)) <= 200


@pytest.mark.parametrize("task", ["avoiding-longtail", "avoiding-human"])
def test_the_long_tail_is_as_documented(task):
    counts = sorted(Counter(load_demonstrations(task).behaviors).values(), reverse=True)
    assert counts == [21, 11, 8, 6, 5, 4, 4, 4, 3, 3, 3, 3] + 9 * [2] + 3 * [1]


@pytest.mark.parametrize("task", ["avoiding-hesitant", "avoiding-human"])
def test_hesitation_stands_still_and_hurries(task):
    demos = load_demonstrations(task)
    steps = np.linalg.norm(demos.windows()[1], axis=1)
    slow, fast = np.quantile(steps[steps > 0.0005], [0.05, 0.95])
    assert 0.10 < np.mean(steps < 0.0005) < 0.20
    assert 3.0 < fast / slow < 4.5
    assert 0.02 < steps.max() < 0.03
    n_pausing = [np.count_nonzero(np.hypot(*e.actions.T) < 0.0005) for e in demos]
    assert np.mean(np.array(n_pausing) >= 5) > 0.75


def late_ambiguity(demos):
    """Return how often the nearest states of other episodes go through another next gap.

    Of the states 5 to 8 cm before a row, the mean over rows.
    """
    states, _, groups = demos.windows()
    states, gaps = states[:, 0], np.array([gaps_of(b) for b in demos.behaviors])[groups]
    shares = []
    for row, y in enumerate(ROW_Y):
        late = (states[:, 3] > y - 0.08) & (states[:, 3] < y - 0.05)
        near, gap, group = states[late], gaps[late, row], groups[late]
        distance = np.linalg.norm(near[:, None] - near, axis=-1)
        distance[group[:, None] == group] = np.inf
        neighbors = np.argsort(distance, axis=1)[:, :10]
        shares.append(np.mean(gap[neighbors] != gap[:, None]))
    return np.mean(shares)


@pytest.mark.parametrize("task", ["avoiding-overlapping", "avoiding-human"])
def test_overlapping_behaviors_share_states_until_late(task):
    assert late_ambiguity(load_demonstrations("avoiding")) < 0.13
    assert late_ambiguity(load_demonstrations(task)) > 0.25


@pytest.mark.parametrize("task", ["avoiding", "avoiding-hesitant", "avoiding-overlapping"])
@pytest.mark.parametrize("n_episodes", [1, 8, 24, 40])
def test_a_beginning_spreads_over_behaviors_and_gaps(task, n_episodes):
    demos = load_demonstrations(task, n_episodes)
    assert len(demos) == n_episodes
    counts = Counter(demos.behaviors)
    assert len(counts) == min(n_episodes, 24)
    assert max(counts.values()) - min(counts.values()) <= 1
    for row, n_gaps in enumerate((2, 3, 4)):
        gaps = Counter(gaps_of(behavior)[row] for behavior in demos.behaviors)
        assert max(gaps.values()) - min(gaps[g] for g in range(n_gaps)) <= 1


def test_reading_demonstrations_needs_no_simulator():
    program = (
        "import sys; from skvdd.datasets import load_demonstrations; load_demonstrations(); "
        "sys.exit(int('mujoco._structs' in sys.modules or 'torch' in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True, timeout=120)
