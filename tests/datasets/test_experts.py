"""All demonstrators: they act on what they observe, and show every start in every behavior."""

import copy
import platform
import re
from collections import Counter
from dataclasses import replace

import gymnasium
import mujoco
import numpy as np
import pytest

from skvdd.datasets import Episode, load_demonstrations
from skvdd.datasets.experts import recording
from skvdd.datasets.experts.avoiding import ROUND, plan_evenly, plan_long_tail
from skvdd.datasets.experts.recording import Demonstrator, demonstrate, record
from skvdd.envs import Score, TaskSpec, get_task, task_names
from tests.datasets.line import LINE, Line, Reuser

SETS = [name for task in task_names() for name in get_task(task).demonstrators]
IN_CONTEXTS = [name for name in SETS if get_task(name).n_contexts is not None]
AVOIDING = [name for name in SETS if name not in IN_CONTEXTS]
N_STEPS = 100


def refused(message, error):
    """Expect an error whose whole message is this."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


# -- what a demonstrator looks at -------------------------------------------------------------


def disturb(task):
    """Shift all that is simulated."""
    task.data.qpos += 0.02
    if hasattr(task, "_set_point"):
        task._set_point = task._set_point + 0.02
    mujoco.mj_forward(task.model(), task.data)


def actions_of(set_name, demonstrator, disturbance=None):
    """Return the first actions of an episode; each is chosen while the simulator is disturbed."""
    spec = get_task(set_name)
    env = gymnasium.make(spec.env_id, disable_env_checker=True)
    task, actions = env.unwrapped, []
    start = None if spec.n_contexts is None else {"context": 1, "split": "train"}
    observation, _ = env.reset(options=start)
    behavior = list(spec.score.behaviors)[-1]
    act = demonstrator.make_actor(task, behavior, np.random.default_rng(4))
    over = False
    while not over and len(actions) < N_STEPS:
        data, attributes = copy.copy(task.data), dict(vars(task))
        if disturbance is not None:
            disturbance(task)
        actions.append(act(observation))
        mujoco.mj_copyData(task.data, task.model(), data)
        vars(task).update(attributes)
        observation, _, over, _, _ = env.step(actions[-1])
    return np.array(actions)


@pytest.mark.parametrize("set_name", SETS)
def test_a_demonstrator_acts_on_its_observation_alone(set_name):
    demonstrator = get_task(set_name).demonstrator(set_name)
    undisturbed = actions_of(set_name, demonstrator)
    assert len(np.unique(undisturbed, axis=0)) > 50
    np.testing.assert_array_equal(actions_of(set_name, demonstrator, disturb), undisturbed)


@pytest.mark.parametrize(
    "look",
    [
        lambda task: task.blocks[0].position[:2],
        lambda task: task.tcp_position[:2],
        lambda task: task.set_point[:2],
    ],
)
def test_a_demonstrator_that_looks_at_the_simulator_is_found_out(look):
    def make_actor(task, behavior, rng):
        return lambda observation: 0.001 * (look(task) - observation[:2]) + rng.normal(0, 1e-4, 2)

    peeking = Demonstrator(make_actor, version=1, description="peeks")
    honest = actions_of("sorting4", peeking)
    assert (actions_of("sorting4", peeking, disturb) != honest).any()


# -- which behavior, where --------------------------------------------------------------------


@pytest.fixture
def attempts(monkeypatch):
    """Attempts at episodes: behavior, options and seeds; all succeed, but nothing is simulated."""
    made = []

    def attempt(demonstrator, env, behavior, rng, *, options, seed, score):
        made.append((behavior, options, seed, rng.integers(2**62)))
        return Episode(np.zeros((1, 1)), np.zeros((1, 1)), behavior), False

    monkeypatch.setattr(recording, "_attempt", attempt)
    return made


@pytest.mark.parametrize("set_name", IN_CONTEXTS)
def test_every_start_is_shown_in_every_behavior(attempts, set_name):
    behaviors = tuple(get_task(set_name).score.behaviors)
    n = len(behaviors)
    numbers = range(3 * n + 1)
    demos = record(set_name, len(numbers), n_jobs=1, progress=False)
    assert demos.behaviors == (3 * behaviors + behaviors[:1])
    wanted = [{"context": number // n, "split": "train"} for number in numbers]
    assert [options for _, options, _, _ in attempts] == wanted
    assert [e.metadata for e in demos] == [
        {"context": number // n, "attempts": 1} for number in numbers
    ]
    for draws in zip(*((seed, draw) for _, _, seed, draw in attempts), strict=True):
        assert len(set(draws)) == len(numbers)


@pytest.mark.parametrize("set_name", IN_CONTEXTS)
def test_the_sets_that_come_along_show_every_start_in_every_behavior(set_name):
    behaviors = tuple(get_task(set_name).score.behaviors)
    demos = load_demonstrations(set_name)
    assert demos.behaviors == behaviors * (len(demos) // len(behaviors))
    contexts = [episode.metadata["context"] for episode in demos]
    listed = [(i, context) for i, context in enumerate(contexts) if context is not None]
    assert len(listed) > 0.98 * len(demos)
    assert all(context == i // len(behaviors) for i, context in listed)


@pytest.mark.parametrize("set_name", SETS)
def test_the_sets_that_come_along_are_what_the_demonstrators_do(set_name):
    embedded = load_demonstrations(set_name)
    alike = (embedded.metadata["mujoco"], "x86_64") == (mujoco.__version__, platform.machine())
    for one, other in zip(
        embedded[1:3], record(set_name, 3, first=1, n_jobs=1, progress=False), strict=True
    ):
        for name in ("states", "actions"):
            made, kept = getattr(other, name), getattr(one, name)
            assert made.dtype == kept.dtype
            if alike:
                np.testing.assert_array_equal(made, kept)
            else:  # last bits differ, and contacts spread that
                np.testing.assert_allclose(made[:40], kept[:40], rtol=0, atol=1e-4)


@pytest.mark.parametrize("set_name", SETS)
def test_a_recording_is_what_the_environment_returned(set_name):
    spec = get_task(set_name)
    env = gymnasium.make(spec.env_id, disable_env_checker=True)
    (episode,) = record(set_name, 2, first=1, n_jobs=1, progress=False)
    start = None if spec.n_contexts is None else {"context": 0, "split": "train"}
    observation, info = env.reset(options=start)
    terminated = False
    for state, action in zip(episode.states, episode.actions, strict=True):
        assert not terminated
        np.testing.assert_array_equal(observation.astype(state.dtype), state)
        observation, _, terminated, _, info = env.step(action)
    assert terminated
    assert (info["success"], info["behavior"]) == (True, episode.behavior)


def test_another_seed_gives_other_episodes():
    one, other = (
        record("pushing", 3, first=2, random_state=seed, n_jobs=1, progress=False)
        for seed in (0, 1)
    )
    assert one.behaviors == other.behaviors
    assert len(one[0]) != len(other[0]) or (one[0].actions != other[0].actions).any()
    assert other.metadata["random_state"] == 1


# -- the orders of Avoiding -------------------------------------------------------------------


@pytest.mark.parametrize("set_name", AVOIDING)
def test_avoiding_goes_on_as_the_embedded_sets_began(attempts, set_name):
    demos = record(set_name, 3 * ROUND, n_jobs=1, progress=False)
    assert demos.behaviors[:ROUND] == load_demonstrations(set_name).behaviors
    first = Counter(demos.behaviors[:ROUND])
    for start in (ROUND, 2 * ROUND):
        assert Counter(demos.behaviors[start : start + ROUND]) == first
    draws = [draw for *_, draw in attempts]
    assert len(set(draws)) == 3 * ROUND
    assert [options for _, options, _, _ in attempts] == 3 * ROUND * [None]


def test_rounds_of_a_long_tail_are_in_other_orders():
    behaviors = [plan_long_tail(number, 0, 0.85)[0] for number in range(2 * ROUND)]
    assert behaviors[:ROUND] != behaviors[ROUND:]


@pytest.mark.parametrize("plan", [plan_evenly, lambda n, seed: plan_long_tail(n, seed, 0.85)])
def test_a_plan_counts_how_often_a_behavior_was_shown(plan):
    seen = Counter()
    for number in range(250):
        behavior, seed = plan(number, 7)
        assert seed == (7, behavior, seen[behavior])
        seen[behavior] += 1


# -- attempts ---------------------------------------------------------------------------------


def walker(step=lambda rng: 0.35, **options):
    """Return a demonstrator of the line that walks to one end whatever was asked for."""

    def make_actor(task, behavior, rng):
        length = step(rng)
        return lambda observation: np.array([length])

    return Demonstrator(make_actor, version=1, description="walks", **options)


def line(demonstrator, **changes):
    """Return the task of a line with another demonstrator."""
    return replace(LINE, demonstrators={"line": demonstrator}, **changes)


@pytest.fixture(autouse=True)
def registered():
    gymnasium.register("Line-v0", entry_point=Line, max_episode_steps=20)
    yield
    gymnasium.registry.pop("Line-v0")


def test_only_what_shows_the_behavior_is_kept():
    either = walker(lambda rng: rng.choice([-0.35, 0.35]))
    demos = record(line(either), 40, n_jobs=1, progress=False)
    assert demos.behaviors == 20 * ("left", "right")
    for episode in demos:
        assert (episode.actions[0, 0] > 0) == (episode.behavior == "right")
    assert np.mean([e.metadata["attempts"] for e in demos]) == pytest.approx(2.0, abs=0.8)


def test_after_five_failures_the_context_is_drawn_anew(monkeypatch):
    tried = []

    def attempt(demonstrator, env, behavior, rng, *, options, seed, score):
        tried.append((options, env.reset(seed=seed, options=options)[0].item()))
        return Episode(*np.zeros((2, 1, 1)), behavior) if len(tried) == 7 else None, False

    monkeypatch.setattr(recording, "_attempt", attempt)
    demos = record(line(walker()), 3, first=2, n_jobs=1, progress=False)
    assert demos[0].metadata == {"context": None, "attempts": 7}
    listed = {"context": 1, "split": "train"}
    assert [options for options, _ in tried] == 5 * [listed] + 2 * [None]
    assert len({place for _, place in tried}) == 3


def test_what_never_succeeds_is_named():
    end = "Infos must tell 'success' and 'behavior', as the task's Score has them, and the "
    end += "demonstrator reach them."
    with refused(f"'line' was not solved in behavior 'left' in 100 attempts. {end}", RuntimeError):
        record(line(walker()), 1, n_jobs=1, progress=False)
    resting = line(walker(lambda rng: 0.0), scores=(Score(),))
    with refused(f"'line' was not solved in 100 attempts. {end}", RuntimeError):
        record(resting, 1, n_jobs=1, progress=False)


def test_a_task_without_behaviors_and_contexts_is_recorded():
    task = line(walker(), scores=(Score(),), n_contexts=None)
    demos = record(task, 3, n_jobs=1, progress=False)
    assert demos.behaviors == (None, None, None)
    assert len({episode.states[0, 0] for episode in demos}) == 3
    assert demos[0].metadata == {"context": None, "attempts": 1}


def test_longer_episodes_than_wanted_are_not_recorded():
    env, rng = Line(), np.random.default_rng(0)
    length = len(demonstrate(walker(), env, "right", rng, seed=0))
    assert demonstrate(walker(max_length=length), env, "right", rng, seed=0) is not None
    assert demonstrate(walker(max_length=length - 1), env, "right", rng, seed=0) is None


@pytest.mark.parametrize(("dtype", "expected"), [("float32", np.float32), ("float64", np.float64)])
def test_states_are_recorded_as_precisely_as_wanted(dtype, expected):
    episode = demonstrate(
        walker(state_dtype=dtype), Line(), "right", np.random.default_rng(0), seed=0
    )
    assert (episode.states.dtype, episode.actions.dtype) == (expected, np.float32)


class Bell(gymnasium.Env):
    """Tells a success in the second of some steps, under other names."""

    observation_space = action_space = Line.observation_space

    def __init__(self, third=None, n_steps=4):
        self._third = {"rung": False} if third is None else third
        self._last = n_steps

    def reset(self, *, seed=None, options=None):
        self._n_steps = 0
        return np.zeros(1), {}

    def step(self, action):
        self._n_steps += 1
        info = {2: {"rung": True, "side": "left"}, 3: self._third}.get(self._n_steps, {})
        return np.zeros(1), 0.0, self._n_steps == self._last, False, info


def ring(behavior, when, **options):
    """Try to show a behavior of the bell."""
    score = Score(success_key="rung", behavior_key="side", when=when)
    rng = np.random.default_rng(0)
    return demonstrate(walker(), Bell(**options), behavior, rng, score=score)


@pytest.mark.parametrize(("when", "solved"), [("any", True), ("last", False)])
def test_a_score_says_when_and_under_which_name_success_counts(when, solved):
    assert (ring("left", when) is not None) == solved


@pytest.mark.parametrize(("when", "shown"), [("any", "left"), ("last", "right")])
def test_a_score_says_which_of_two_behaviors_counts(when, shown):
    third = {"rung": True, "side": "right"}
    for behavior in ("left", "right"):
        episode = ring(behavior, when, third=third)
        assert (episode is not None) == (behavior == shown)


@pytest.mark.parametrize("when", ["any", "last"])
def test_success_that_is_neither_true_nor_false_is_refused(when):
    message = "'rung' must be true or false, got nan in step 2 of a demonstration."
    with refused(message, ValueError):
        ring("left", when, third={"rung": np.nan})


def test_an_endless_attempt_is_cut(monkeypatch):
    monkeypatch.setattr(recording, "LONGEST", 7)
    assert len(ring("left", "any", n_steps=7)) == 7
    assert ring("left", "any", n_steps=8) is None


def test_attempts_that_were_cut_are_told(monkeypatch):
    monkeypatch.setattr(recording, "LONGEST", 7)
    del gymnasium.registry["Line-v0"]
    gymnasium.register("Line-v0", entry_point=Line)  # without a limit
    slow = walker(lambda rng: rng.choice([0.0, 0.5], p=[0.9, 0.1]))
    with refused(
        "'line' was not solved in behavior 'left' in 100 attempts, 88 of them cut after 7 actions. "
        "Infos must tell 'success' and 'behavior', as the task's Score has them, and the "
        "demonstrator reach them. max_length of the Demonstrator says after how many actions.",
        RuntimeError,
    ):
        record(line(slow), 1, n_jobs=1, progress=False)


def test_an_environment_with_a_limit_of_its_own_is_not_cut(monkeypatch):
    monkeypatch.setattr(recording, "LONGEST", 2)
    (episode,) = record(line(walker(lambda rng: -0.1)), 1, n_jobs=1, progress=False)
    assert len(episode) > 2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
def test_arrays_that_are_used_again_are_recorded_as_they_were(dtype):
    own = np.zeros(1, np.float32)

    def make_actor(task, behavior, rng):
        return lambda observation: np.multiply(2.9, observation + 1.0, out=own, casting="unsafe")

    actor = Demonstrator(make_actor, version=1, description="uses its array again")
    env = Reuser(dtype)
    episode = demonstrate(actor, env, None, np.random.default_rng(0))
    assert episode.states.tolist() == [[0.0], [1.0], [2.0]]
    np.testing.assert_array_equal(episode.actions, np.float32([[2.9], [5.8], [8.7]]))
    assert episode.goals.tolist() == [[5.0], [5.0], [5.0]]
    played = [3, 6, 9] if dtype == np.int8 else episode.actions[:, 0].astype(dtype).tolist()
    assert env.played == [(value, np.dtype(dtype)) for value in played]


def test_a_task_of_ones_own_is_recorded_in_other_processes():
    task = TaskSpec("bell", "Bell-v0", Bell, 9, (Score(success_key="rung", when="any"),))
    task = replace(task, demonstrators={"bell": walker()})
    gymnasium.register("Bell-v0", entry_point=Bell)
    try:
        demos = record(task, 9, n_jobs=2, progress=False)
    finally:
        gymnasium.registry.pop("Bell-v0")
    assert (len(demos), demos.name) == (9, "bell")
