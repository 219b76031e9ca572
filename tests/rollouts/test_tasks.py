"""Which task is meant, what can be played, and how other processes get to know it."""

import pickle
import subprocess
import sys
import threading

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from skvdd.envs import EnvPool, Score, TaskSpec, find_task, register_task, spec, task_names
from skvdd.rollouts import check_spaces, registered, resolve_task
from tests.rollouts.scenes import SCENE, Scene, refuses

# ---------------------------------------------------------------------------------------
# Which task
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pushing", "skvdd/Pushing-v0", "skvdd.envs:skvdd/Pushing-v0"])
def test_a_task_has_a_name_and_an_id(name):
    assert resolve_task(name) is find_task("pushing")


def test_an_environment_that_is_no_task_is_one_without_behaviors_or_contexts():
    task = resolve_task(SCENE)
    assert (task.name, task.env_id, task.n_episodes) == (SCENE, SCENE, 100)
    assert task.scores == (Score(),)
    assert task.n_contexts is task.score.n_behaviors is None
    assert find_task(SCENE) is None


def test_a_module_is_imported_for_its_environments(tmp_path, monkeypatch):
    (tmp_path / "skvddtest_module.py").write_text(
        "import gymnasium\n"
        "from tests.rollouts.scenes import Scene\n"
        "gymnasium.register('skvddtest/Imported-v0', entry_point=Scene)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert resolve_task("skvddtest_module:skvddtest/Imported-v0").env_id == (
            "skvddtest/Imported-v0"
        )
    finally:
        gymnasium.registry.pop("skvddtest/Imported-v0", None)
        sys.modules.pop("skvddtest_module", None)


def test_an_unknown_name_is_refused_with_the_known_ones():
    assert "avoiding" in task_names()
    with refuses(
        "env_id must be the name of a task or the id of a registered environment, got 'nowhere'. "
        f"The tasks are {', '.join(map(repr, task_names()))}; another environment becomes known by "
        "gymnasium.register, by importing the package that registers it, or as 'module:id'."
    ):
        resolve_task("nowhere")


@pytest.mark.parametrize(
    ("given", "kind"), [(Scene, "type"), (Scene(), "Scene"), (None, "NoneType")]
)
def test_what_is_no_name_is_refused(given, kind):
    with refuses(
        "env_id must be a str, the name of a task or the id of a registered environment, got "
        f"{kind}. gymnasium.register gives a class, or a function that makes an environment, an "
        "id.",
        TypeError,
    ):
        resolve_task(given)


# ---------------------------------------------------------------------------------------
# Spaces
# ---------------------------------------------------------------------------------------

BOX = spaces.Box(-1.0, 1.0, (2,), np.float64)
FLATTEN = "Register the environment wrapped in gymnasium.wrappers.FlattenObservation."
WRAP = "Register the environment in a gymnasium.ActionWrapper that takes one vector."


@pytest.mark.parametrize(
    ("space", "what"),
    [
        (spaces.Dict({"joints": BOX, "camera": BOX}), "a Dict of 'camera', 'joints'"),
        (spaces.Tuple([BOX, BOX]), "a Tuple of 2 spaces"),
        (spaces.Discrete(3), "Discrete(3)"),
        (spaces.Box(0, 255, (4, 4, 3), np.uint8), "Box(0, 255, (4, 4, 3), uint8)"),
    ],
)
@pytest.mark.parametrize(
    ("name", "remedy"), [("observation", FLATTEN), ("action", WRAP)], ids=["observation", "action"]
)
def test_spaces_that_are_no_vectors_are_refused_by_name(monkeypatch, space, what, name, remedy):
    with EnvPool(SCENE, 1) as pool:
        check_spaces(pool)
        monkeypatch.setattr(pool.envs[0].unwrapped, f"{name}_space", space)
        with refuses(f"the {name}s of {SCENE} must be vectors, got {what}. {remedy}"):
            check_spaces(pool)


def test_the_remedy_for_dictionaries_is_one():
    gymnasium.register("skvddtest/Flat-v0", entry_point=make_flat)
    try:
        with EnvPool("skvddtest/Flat-v0", 1) as pool:
            check_spaces(pool)
            observations, _ = pool.reset([0], [0])
        assert observations.shape == (1, 4)
    finally:
        del gymnasium.registry["skvddtest/Flat-v0"]


def make_flat():
    env = Scene(first={"joints": np.zeros(2), "camera": np.ones(2)})
    env.observation_space = spaces.Dict({"joints": BOX, "camera": BOX})
    return gymnasium.wrappers.FlattenObservation(env)


# ---------------------------------------------------------------------------------------
# Other processes
# ---------------------------------------------------------------------------------------

LOCAL = "skvddtest/Local-v0"


@pytest.fixture
def local(monkeypatch):
    """Registers classes under one id; what another process has received is forgotten."""
    monkeypatch.setattr("skvdd.rollouts.tasks._RECEIVED", set())

    def register(environment, task=None):
        gymnasium.registry.pop(LOCAL, None)
        gymnasium.register(LOCAL, entry_point=environment, max_episode_steps=9)
        if task is not None:
            register_task(task)

    def forget():
        gymnasium.registry.pop(LOCAL, None)
        spec._TASKS.pop("local", None)

    yield register, forget
    forget()


def make_class(number):
    class Local(Scene):
        made = number

    return Local


def test_an_environment_is_known_where_it_is_unpickled(local):
    register, forget = local
    register(make_class(1))
    pickled = pickle.dumps(registered(LOCAL))
    forget()
    pickle.loads(pickled)
    env = gymnasium.make(LOCAL)
    assert env.unwrapped.made == 1
    assert env.spec.max_episode_steps == 9
    assert resolve_task(LOCAL).score == Score()


def test_a_task_is_known_where_it_is_unpickled(local):
    register, forget = local
    task = TaskSpec("local", LOCAL, scores=(Score(behaviors={0: "left", 1: "right"}),))
    register(make_class(1), task)
    pickled = pickle.dumps(registered("local"))
    forget()
    pickle.loads(pickled)
    assert resolve_task("local") == resolve_task(LOCAL) == task
    assert gymnasium.make(LOCAL).unwrapped.made == 1


def test_a_task_that_registers_its_environment_is_known_where_it_is_unpickled(local):
    _, forget = local
    task = register_task(TaskSpec("local", LOCAL, entry_point=make_class(4), time_limit=5))
    pickled = pickle.dumps(registered("local"))
    forget()
    for _ in range(2):  # a worker gets it again with every block
        pickle.loads(pickled)
        assert resolve_task(LOCAL).time_limit == task.time_limit
        env = gymnasium.make("skvddtest/Local-v0")
        assert (env.unwrapped.made, env.spec.max_episode_steps) == (4, 5)


def test_what_a_process_has_by_itself_is_left_alone(local):
    register, _ = local
    register(make_class(1))
    pickled = pickle.dumps(registered(LOCAL))
    register(make_class(2))
    pickle.loads(pickled)
    assert gymnasium.make(LOCAL).unwrapped.made == 2


def test_a_worker_plays_the_newest_environment_of_its_parent(local):
    register, forget = local
    sent = []
    for number in (1, 2):  # as a notebook does, whose workers stay
        register(make_class(number))
        sent.append(pickle.dumps(registered(LOCAL)))
    forget()
    for number in (1, 2):
        pickle.loads(sent[number - 1])
        assert gymnasium.make(LOCAL).unwrapped.made == number


def test_what_cannot_be_sent_is_named_with_the_remedy(local):
    register, _ = local
    lock = threading.Lock()
    register(lambda: lock)
    with refuses(
        f"{LOCAL} cannot be sent to other processes: TypeError: cannot pickle '_thread.lock' "
        "object. Stay in this one with n_jobs=1, or register the environment in a module and name "
        "both, env_id='module:id'.",
        pickle.PicklingError,
    ):
        pickle.dumps(registered(LOCAL))


def test_with_a_module_no_more_than_names_are_sent(local):
    register, _ = local
    lock = threading.Lock()
    register(lambda: lock)
    registration = pickle.loads(pickle.dumps(registered(f"tests.rollouts.scenes:{LOCAL}")))
    assert registration.module == "tests.rollouts.scenes"
    assert registration.spec is gymnasium.spec(LOCAL)


SCRIPT = """
import pickle, sys
import gymnasium
from gymnasium.spaces import Box
from skvdd.rollouts import registered

class Own(gymnasium.Env):
    observation_space = action_space = Box(-1, 1, (2,))

gymnasium.register("skvddtest/Local-v0", Own)
sys.stdout.buffer.write(pickle.dumps(registered("skvddtest/Local-v0")))
"""


def test_a_class_of_a_script_is_known_to_other_processes(local, tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    pickled = subprocess.run([sys.executable, path], capture_output=True, timeout=100, check=True)
    pickle.loads(pickled.stdout)
    assert type(gymnasium.make(LOCAL).unwrapped).__name__ == "Own"
