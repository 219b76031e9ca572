"""What a task is: looked up by name, environment and set; registered by a user."""

import pickle
import re
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

import skvdd.envs
from skvdd.datasets.experts.recording import Demonstrator
from skvdd.envs import Score, TaskSpec, find_task, get_task, register_task, spec, task_names

OURS = ("aligning", "avoiding", "blockpush", "pushing", "sorting2", "sorting4", "sorting6")
IN_SIMULATOR = [name for name in OURS if name != "blockpush"]


def refused(message):
    """Expect an error whose whole message is this."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


@pytest.fixture
def forgotten():
    """Forget after a test what it registered."""
    tasks, environments = dict(spec._TASKS), dict(gymnasium.registry)
    yield
    spec._TASKS.clear()
    spec._TASKS.update(tasks)
    gymnasium.registry.clear()
    gymnasium.registry.update(environments)


# -- the tasks of the library -------------------------------------------------------------


def test_all_tasks_are_registered():
    assert set(OURS) <= set(task_names())


@pytest.mark.parametrize("name", OURS)
def test_a_task_is_found_by_each_of_its_names(name):
    task = get_task(name)
    assert find_task(task.env_id) is task
    assert [find_task(demonstrations) for demonstrations in task.demonstrators] == [task] * len(
        task.demonstrators
    )
    assert task.name in task.demonstrators


@pytest.mark.parametrize("name", OURS)
def test_what_a_spec_says_is_what_the_environment_does(name):
    task = get_task(name)
    env = gymnasium.make(task.env_id, disable_env_checker=True)
    observation, info = env.reset(seed=0)
    assert observation.shape == (len(task.states),)
    assert env.action_space.shape == (len(task.actions),)
    assert len(info.get("goal", ())) == task.goal_dim
    assert env.spec.max_episode_steps == task.time_limit
    assert (env.unwrapped.context_size == 0) == (task.n_contexts is None)


# Base of the entropy, whether unsolved contexts are left out, contexts, time limit: as published,
# but for the contexts of Block Push, whose 100 single rollouts tell no diversity.
@pytest.mark.parametrize(
    ("name", "base", "skips_unsolved", "n_contexts", "time_limit"),
    [
        ("avoiding", 24, False, None, 250),
        ("aligning", 2, False, 60, 400),
        ("pushing", 4, False, 30, 400),
        ("sorting2", 2, True, 60, 500),
        ("sorting4", 6, True, 60, 700),
        ("sorting6", 20, True, 60, 1200),
        ("blockpush", 2, False, 25, 299),
    ],
)
def test_protocols(name, base, skips_unsolved, n_contexts, time_limit):
    task = get_task(name)
    assert task.score.n_behaviors == base
    assert task.score.skips_unsolved == skips_unsolved
    assert (task.n_contexts, task.time_limit) == (n_contexts, time_limit)
    assert task.n_episodes == (200 if n_contexts is None else 16 * n_contexts)
    assert len(set(task.score.behaviors.values())) == base


class Found:
    """Half of all rollouts succeed, with an entropy of a quarter."""

    success_rate, entropy_d3il, mean_return = 0.5, 0.25, 0.7


# The numbers by which D3IL selects models of a task; Block Push has its return.
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("avoiding", 0.8 * 0.5 + 0.2 * 0.25),
        ("aligning", 0.5 * (0.5 + 0.25)),
        ("pushing", 0.5 * (0.5 + 0.25)),
        ("sorting4", 0.5 - (1.0 - 0.25)),
        ("blockpush", 0.7),
    ],
)
def test_models_are_selected_as_published(name, number):
    assert get_task(name).selection(Found()) == pytest.approx(number)


def test_the_selection_of_sorting_is_success_minus_the_divergence_from_equal_orders():
    # Two contexts, three behaviors; sum_c sum p log_3(p / (1/3)) / 2, from the definition.
    shares = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(shares > 0, shares * np.log(shares * 3.0) / np.log(3.0), 0.0)

    class Sorted:
        success_rate = 0.9
        entropy_d3il = (np.log(2.0) / np.log(3.0) + 0.0) / 2.0

    expected = 0.9 - terms.sum(axis=1).mean()
    assert get_task("sorting2").selection(Sorted()) == pytest.approx(expected)


def test_behaviors_have_names():
    assert get_task("pushing").behavior_name(3) == "gr-rg"
    assert get_task("aligning").behavior_name(1) == "outside"
    assert get_task("avoiding").behavior_name(2 + 4 + 256) == "2-1-4"
    assert get_task("avoiding").behavior_name(0) == "0"  # none of the 24


@pytest.mark.parametrize("name", OURS)
def test_a_spec_can_be_pickled(name):
    assert pickle.loads(pickle.dumps(get_task(name))) == get_task(name)


def test_what_tasks_are_is_known_without_the_simulator():
    code = (
        "import sys, skvdd.envs; skvdd.envs.get_task('pushing');"
        "print('mujoco._structs' in sys.modules);"
        "skvdd.envs.Pushing(); print('mujoco._structs' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "True"]


# -- splits and rewards, of all -----------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in OURS if name != "avoiding"])
def test_the_three_lists_of_contexts_are_disjoint(name):
    task = getattr(skvdd.envs, get_task(name).entry_point.partition(":")[2])
    lists = [
        {task.listed_context(i, split).tobytes() for i in range(200)}
        for split in ("train", "validation", "test")
    ]
    assert len(set.union(*lists)) == 600


def at_its_goal(name, env):
    """Put the objects of a task where they belong."""
    task = env.unwrapped
    if name == "avoiding":
        return  # the rod goes there by itself
    if name == "aligning":
        task._tray.place(*task._target_position[:2], -0.009, 0.0)
    elif name == "pushing":
        for cube, target in zip(task._cubes, ((0.42, 0.30), (0.63, 0.30)), strict=True):
            cube.place(*target, 0.011, 0.0)
    else:
        for color, block in zip(task.colors, task.blocks, strict=True):
            block.place({"r": 0.4, "b": 0.625}[color], 0.32, 0.3, 0.0)


@pytest.mark.parametrize("name", ["aligning", "pushing", "sorting2"])
def test_success_that_the_last_step_brings_is_rewarded(name):
    env = gymnasium.make(get_task(name).env_id, max_episode_steps=4, disable_env_checker=True)
    options = {"context": [0.5, -0.2, 0.0, 0.5, 0.3, 0.0]} if name == "aligning" else None
    env.reset(seed=0, options=options)
    still = np.zeros(env.action_space.shape)
    rewards = [env.step(still)[1] for _ in range(3)]
    at_its_goal(name, env)
    _, reward, terminated, truncated, info = env.step(still)
    assert (reward, terminated, truncated, info["success"]) == (1.0, False, True, True)
    assert sum(rewards) == 0.0


@pytest.mark.parametrize("name", IN_SIMULATOR)
def test_the_return_is_the_success_that_the_last_info_reports(name):
    env = gymnasium.make(get_task(name).env_id, max_episode_steps=8, disable_env_checker=True)
    rng = np.random.default_rng(0)
    for episode in range(4):
        env.reset(seed=episode)
        total, over = 0.0, False
        while not over:
            if rng.uniform() < 0.3:
                at_its_goal(name, env)
            _, reward, terminated, truncated, info = env.step(
                rng.uniform(-0.01, 0.01, env.action_space.shape)
            )
            total, over = total + reward, terminated or truncated
        assert total == float(info["success"])


# -- tasks of one's own -------------------------------------------------------------------


class Line(gymnasium.Env):
    """Goes along a line."""

    observation_space = action_space = Box(-1.0, 1.0, (1,), np.float64)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1), {}

    def step(self, action):
        return np.zeros(1), 0.0, True, False, {"success": True}


def test_a_task_registers_its_environment(forgotten):
    task = register_task(TaskSpec("line", "Line-v0", entry_point=Line, time_limit=7))
    assert get_task("line") is task is find_task("Line-v0")
    assert gymnasium.make("Line-v0").spec.max_episode_steps == 7
    assert task.is_registered


def test_a_task_can_be_registered_again(forgotten):
    register_task(TaskSpec("line", "Line-v0", entry_point=Line))
    again = register_task(TaskSpec("line", "Line-v0", n_contexts=3, n_rollouts=5))
    assert get_task("line") is again
    assert again.n_episodes == 15


def test_a_demonstrator_is_looked_up(forgotten):
    straight = Demonstrator(
        version=1, make_actor=lambda task, behavior, rng: None, description="straight"
    )
    task = register_task(TaskSpec("line", "Line-v0", demonstrators={"line": straight}))
    assert task.demonstrator() is task.demonstrator("line") is straight
    with refused("set_name must be one of 'line', got 'lines'."):
        task.demonstrator("lines")


def test_names_are_of_one_task(forgotten):
    register_task(TaskSpec("line", "Line-v0"))
    with refused("env_id must be of one task, 'Line-v0' is of 'line'."):
        register_task(TaskSpec("another", "Line-v0"))
    with refused("'avoiding-human' must name one set, it is one of 'avoiding'."):
        register_task(TaskSpec("avoiding-human", "Human-v0"))
    assert find_task("Human-v0") is None


def test_an_unknown_task_is_refused(forgotten):
    spec._TASKS.clear()
    register_task(TaskSpec("line", "Line-v0"))
    with refused(
        "task must be one of 'line', got 'lime'. skvdd.envs.register_task makes another one known."
    ):
        get_task("lime")
    assert find_task("lime") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": ()}, "scores of 'line' must be at least one, got none."),
        (
            {"scores": (Score(), Score())},
            "scores of 'line' must have different names, got ['success', 'success'].",
        ),
        ({"n_contexts": 0}, "n_contexts of 'line' must be an integer of at least 1, got 0."),
        ({"n_contexts": 2.5}, "n_contexts of 'line' must be an integer of at least 1, got 2.5."),
        ({"n_rollouts": True}, "n_rollouts of 'line' must be an integer of at least 1, got True."),
        ({"time_limit": 5}, "time_limit of 'line' needs entry_point, got None."),
    ],
)
def test_wrong_tasks_are_refused(arguments, message):
    with refused(message):
        TaskSpec("line", "Line-v0", **arguments)


def test_scores_of_another_type_are_refused():
    with pytest.raises(TypeError, match=r"^behaviors must be a mapping .* to names, got list\.$"):
        Score(behaviors=["left", "right"])
    with pytest.raises(TypeError, match=r"^scores of 'line' must be a tuple of Score, got Score"):
        TaskSpec("line", "Line-v0", scores=Score())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"behaviors": {0: "only"}}, "behaviors must be at least two, or none, got one."),
        ({"when": "first"}, "when must be 'last' or 'any', got 'first'."),
    ],
)
def test_wrong_scores_are_refused(arguments, message):
    with refused(message):
        Score(**arguments)
