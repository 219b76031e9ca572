"""The loop: what the environments are given, when episodes end, and how they are judged."""

import numpy as np
import pytest
from gymnasium.spaces import Box

from skvdd.envs import Score, TaskSpec
from skvdd.rollouts import Start, plan_rollouts
from tests.rollouts.scenes import SCENE, Noisy, Still, play, play_one, refuses

FLOATS = Box(-0.1, 0.1, (2,), np.float32)

# ---------------------------------------------------------------------------------------
# Plan
# ---------------------------------------------------------------------------------------


def test_rollouts_take_one_start_after_the_other():
    starts = [Start(7, {"context": 7}), Start(3, {"context": 3, "split": "train"})]
    rollouts = plan_rollouts(5, 0, starts)
    assert [rollout.context for rollout in rollouts] == [7, 3, 7, 3, 7]
    assert rollouts[3].options == {"context": 3, "split": "train"}
    rollouts[3].options.clear()  # as an environment may do
    assert rollouts[1].options == starts[1].options == {"context": 3, "split": "train"}


def test_seeds_do_not_depend_on_starts_or_on_how_many_follow():
    alone, many = plan_rollouts(2, 3), plan_rollouts(9, 3, [Start(0, {})])
    assert [r.seed for r in alone] == [r.seed for r in many[:2]]
    assert [r.noise.randint(1000) for r in alone] == [r.noise.randint(1000) for r in many[:2]]
    assert alone[0].context is alone[0].options is None


@pytest.mark.parametrize(("n_envs", "n_threads"), [(1, 1), (3, 1), (7, 2), (8, 3)])
def test_a_rollout_depends_on_its_seeds_alone(n_envs, n_threads):
    infos = [{"success": k % 3 == 0} for k in range(12)]
    expected, _ = play(Noisy(), 70, n_envs=70, infos=infos)
    found, _ = play(Noisy(), 70, n_envs=n_envs, n_threads=n_threads, infos=infos)
    assert len({rollout.actions[0][0] for rollout in found}) == 70
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.states, other.states)
        np.testing.assert_array_equal(one.actions, other.actions)
        assert one.outcomes == other.outcomes


# ---------------------------------------------------------------------------------------
# Actions
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_actions_have_the_type_of_the_action_space(dtype):
    space = Box(-0.1, 0.1, (2,), dtype)
    rollout, env = play_one(Still([0.1, -0.03]), action_space=space)
    assert space.contains(env.given[0])
    assert rollout.actions[0].dtype == np.float64
    np.testing.assert_array_equal(rollout.actions[0], env.given[0])  # recorded as it was played


def test_whole_numbers_are_rounded():
    _, env = play_one(Still([2.9999, -0.4]), action_space=Box(0, 5, (2,), np.int64))
    assert env.given[0].tolist() == [3, 0]


@pytest.mark.parametrize(("clip", "expected"), [(True, [0.1, -0.1]), (False, [0.5, -3.0])])
def test_actions_are_clipped_if_wanted(clip, expected):
    options = {"clip_actions": clip}
    rollout, env = play_one(Still([0.5, -3.0]), action_space=FLOATS, options=options)
    np.testing.assert_allclose(env.given[0], expected, rtol=1e-6)
    np.testing.assert_allclose(rollout.actions[0], expected, rtol=1e-6)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_and_not_clipped(value, clip):
    with refuses(
        f"policy.act must return finite actions, got [0.0, {value}] in episode 0 of {SCENE}, step "
        "0. Look for a training that diverged, or for states far from its data."
    ):
        play(Still([0.0, value]), action_space=FLOATS, options={"clip_actions": clip})


@pytest.mark.parametrize(
    ("space", "action"), [(FLOATS, [1e39, 0.0]), (Box(0, 255, (2,), np.uint8), [-1.0, 4.0])]
)
def test_what_the_type_does_not_hold_is_refused(space, action):
    with refuses(
        f"policy.act must return what {space.dtype} holds, got {action} in episode 0 of {SCENE}, "
        "step 0. Look for a training that diverged, or for states far from its data."
    ):
        play(Still(action), action_space=space)
    play(Still(action), action_space=space, options={"clip_actions": True})


def test_what_policy_and_environment_do_to_their_arrays_changes_no_record():
    class Reuses(Still):
        buffer = np.zeros((64, 2))

        def act(self, X, *, random_state=None):
            self.buffer += 1.0
            return self.buffer

    rollout, env = play_one(Reuses(), infos=[{"success": True}] * 3)
    env.given[0] *= 100.0
    assert np.array(rollout.actions)[:, 0].tolist() == [1.0, 2.0, 3.0]


def test_chunks_of_one_action_are_played_and_longer_ones_are_refused():
    class Chunks(Still):
        def act(self, X, *, random_state=None):
            return np.full((len(X), self.action, 2), 0.25)

    rollout, _ = play_one(Chunks(1))
    assert rollout.actions[0].tolist() == [0.25, 0.25]
    with refuses(
        "policy.act must return one action per decision, got chunks of 3, shape (64, 3, 2). Fit it "
        "on single actions, or wrap it in a policy whose act returns the first of each chunk."
    ):
        play(Chunks(3))


# ---------------------------------------------------------------------------------------
# Observations
# ---------------------------------------------------------------------------------------


def test_a_dictionary_that_the_space_does_not_announce_is_refused():
    with refuses(
        f"the observations of {SCENE} must be vectors, as its observation_space says, got a dict "
        "of 'joints', 'gripper'."
    ):
        play(first={"joints": np.zeros(2), "gripper": 1.0})


def test_rewards_of_one_element_add_up():
    rollout, _ = play_one(reward=np.array([0.5]), infos=[{"success": True}] * 4)
    assert rollout.total_reward == 2.0


# ---------------------------------------------------------------------------------------
# Success
# ---------------------------------------------------------------------------------------


def test_success_may_be_told_at_the_end_only():
    rollout, _ = play_one(infos=[{}, {}, {"success": True, "behavior": "left"}])
    assert rollout.outcomes == {"success": (True, "left")}


def test_an_episode_that_tells_no_success_is_refused_with_what_it_tells():
    with refuses(
        f"the infos of {SCENE} must tell 'success', none of episode 0 does, and the last one tells "
        "'is_success', 'n'. Wrap the environment so that its info says whether the episode "
        "succeeded."
    ):
        play(infos=[{}, {"is_success": True, "n": 3}])


def test_a_success_that_is_nan_is_refused_where_it_is_told():
    with refuses(f"'success' must be true or false, got nan in episode 0 of {SCENE}, step 1."):
        play(infos=[{"success": False}, {"success": np.nan}])


def test_a_task_is_judged_by_all_its_scores_in_the_same_rollouts():
    scores = (
        Score("one", when="any"),
        Score("two", success_key="second", behavior_key="order"),
    )
    infos = [{"success": True, "second": False}, {"success": False, "second": True, "order": "rg"}]
    task = TaskSpec("scene", SCENE, scores=scores)
    rollout, env = play_one(task=task, infos=infos)
    assert rollout.outcomes == {"one": (True, None), "two": (True, "rg")}
    assert len(env.given) == 2
    with refuses(
        f"the infos of {SCENE} must tell 'second', none of episode 0 does, and the last one tells "
        "'success'. Wrap the environment so that its info says whether the episode succeeded."
    ):
        play(task=task)


def test_every_episode_is_judged_anew():
    class FirstOnly:
        asked = 0

        def __len__(self):
            return 1

        def __getitem__(self, index):
            self.asked += 1
            return {"success": self.asked == 1}

    task = TaskSpec("scene", SCENE, scores=(Score(when="any"),))
    played, _ = play(n_episodes=3, task=task, infos=FirstOnly())
    assert [rollout.outcomes["success"][0] for rollout in played] == [True, False, False]


# ---------------------------------------------------------------------------------------
# The end
# ---------------------------------------------------------------------------------------


def test_a_limit_cuts_an_endless_episode():
    played, _ = play(n_episodes=3, n_envs=2, ends=False, options={"max_episode_steps": 5})
    for rollout in played:
        assert len(rollout.actions) == len(rollout.states) == 5
        assert rollout.outcomes == {"success": (True, None)}


def test_the_limit_of_the_environment_stays_in_force():
    for ours, its in ((5, 3), (3, 5)):
        options = {"max_episode_steps": ours}
        rollout, _ = play_one(ends=False, max_episode_steps=its, options=options)
        assert len(rollout.actions) == 3


def test_an_endless_episode_is_cut_with_one_warning(monkeypatch):
    monkeypatch.setattr("skvdd.rollouts.driver.LONGEST", 20)
    with pytest.warns(UserWarning, match="which has no limit") as caught:
        played, _ = play(n_episodes=3, ends=False)
    assert [str(warning.message) for warning in caught] == [
        f"Episodes of {SCENE}, which has no limit, are cut after 20 actions. max_episode_steps "
        "says after how many."
    ]
    assert [len(rollout.actions) for rollout in played] == [20] * 3


def test_an_environment_with_a_limit_of_its_own_is_never_cut(monkeypatch):
    monkeypatch.setattr("skvdd.rollouts.driver.LONGEST", 5)
    rollout, _ = play_one(ends=False, max_episode_steps=8)
    assert len(rollout.actions) == 8


@pytest.mark.parametrize("number", [0, -1, 2.0, True, "10"])
def test_a_limit_that_is_no_number_of_steps_is_refused(number):
    with refuses(f"max_episode_steps must be None or an integer of at least 1, got {number!r}."):
        play(options={"max_episode_steps": number})
