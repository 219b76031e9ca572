"""Rollouts: reproducible to the last bit, checked, summed up; the scorer; and the stopwatch."""

import json
import pickle
import re

import gymnasium
import joblib
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from sklearn import config_context
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skvdd import VDDDistiller, evaluation
from skvdd.evaluation import Evaluation, evaluate_policy, rollout_scorer, time_action
from skvdd.rollouts import BLOCK_SIZE
from tests.estimators import SMALL, small_teacher

# ---------------------------------------------------------------------------------------
# A tiny task: walk along a line from a random start; the end reached is the behaviour
# ---------------------------------------------------------------------------------------


class Line(gymnasium.Env):
    """Succeeds beyond ±1; which side is the behaviour."""

    n_behaviors = 2

    def __init__(self, start_width=0.2):
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = Box(-np.inf, np.inf, (1,), np.float64)
        self.start_width = start_width

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-self.start_width, self.start_width)
        self.speed = 0.0
        return self._observation(), self._info()

    def step(self, action):
        self.speed = 0.8 * self.speed + float(action[0])
        self.position += self.speed
        success = abs(self.position) > 1.0
        return self._observation(), float(success), success, False, self._info()

    def _observation(self):
        return np.array([self.position, self.speed])

    def _info(self):
        return {
            "success": abs(self.position) > 1.0,
            "behavior": "right" if self.position > 0.0 else "left",
        }


class Silent(Line):
    """Does not tell success."""

    n_behaviors = None

    def _info(self):
        return {"speed": self.speed}


class Indifferent(Line):
    """Does not tell behaviours apart."""

    n_behaviors = None

    def _info(self):
        return {"success": abs(self.position) > 1.0}


class Signpost(Line):
    """Starts where its context says, and tells a goal: the way it came from."""

    skips_unsolved = True

    def reset(self, *, seed=None, options=None):
        self.goal = None
        super().reset(seed=seed)
        context = (options or {}).get("context", 0)
        self.goal = np.array([-1.0 if np.ndim(context) else float(context)])
        self.position = context[0] if np.ndim(context) else 0.1 * context
        self.speed = 0.0
        return self._observation(), self._info()

    def _info(self):
        return {**super()._info(), "goal": self.goal}


class Buttons(Line):
    """Takes no vectors as actions."""

    def __init__(self):
        super().__init__()
        self.action_space = Discrete(2)


@pytest.fixture(scope="module", autouse=True)
def registered():
    """Register the tasks of this module while its tests run."""
    classes = (Line, Silent, Indifferent, Signpost, Buttons)
    tasks = {f"skvddtest/{task.__name__}-v0": task for task in classes}
    for env_id, task in tasks.items():
        gymnasium.register(env_id, entry_point=task, max_episode_steps=60)
    yield
    for env_id in tasks:
        del gymnasium.registry[env_id]


class RandomWalk:
    """A float32 network, which rounds differently at different batch sizes, plus noise."""

    window_size = 3

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.first = torch.randn(6, 50, generator=generator)
        self.second = torch.randn(50, 1, generator=generator) / 50.0
        self.batches = []

    def act(self, X, *, random_state=None):
        self.batches.append(np.shape(X))
        rows = torch.from_numpy(X.reshape(len(X), -1)).float()
        mean = torch.tanh(torch.tanh(rows @ self.first) @ self.second).double().numpy()
        noise = np.stack([rng.standard_normal(1) for rng in random_state])
        return 0.05 * mean + 0.05 * noise


class Constant:
    """Always gives the same action."""

    def __init__(self, action, window_size=1):
        self.action, self.window_size = action, window_size

    def act(self, X, *, random_state=None):
        return np.array([self.action] * len(X))


def refuses(message, error=ValueError):
    """Expect an error whose whole message is this."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def evaluate(policy, n_episodes=20, *, task="Line", random_state=0, **options):
    """Evaluate on a task of this module, without a progress bar."""
    options = {"progress": False, "random_state": random_state, **options}
    return evaluate_policy(policy, f"skvddtest/{task}-v0", n_episodes, **options)


def assert_same_rollouts(first, second):
    """Compare all that an evaluation holds, bit for bit."""
    assert first.to_dict() == second.to_dict()
    assert first.behaviors == second.behaviors
    for name in ("successes", "returns", "lengths"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    for one, other in zip(first.episodes, second.episodes, strict=True):
        np.testing.assert_array_equal(one.states, other.states)
        np.testing.assert_array_equal(one.actions, other.actions)


# ---------------------------------------------------------------------------------------
# Reproducibility
# ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    """More episodes than one batch has rows, so that places in it are shared."""
    return evaluate(RandomWalk(), BLOCK_SIZE + 10)


@pytest.mark.parametrize("n_envs", [1, 3, 8, 70])
def test_rollouts_do_not_depend_on_the_number_of_environments(reference, n_envs):
    assert_same_rollouts(reference, evaluate(RandomWalk(), BLOCK_SIZE + 10, n_envs=n_envs))


@pytest.mark.parametrize(("n_jobs", "n_envs"), [(2, None), (3, 5), (-1, None)])
def test_rollouts_do_not_depend_on_the_number_of_jobs(reference, n_jobs, n_envs):
    with joblib.parallel_config("threading"):  # other processes do not know this module's tasks
        found = evaluate(RandomWalk(), BLOCK_SIZE + 10, n_jobs=n_jobs, n_envs=n_envs)
    assert_same_rollouts(reference, found)


def test_the_number_of_jobs_is_what_joblib_is_told_around_it(monkeypatch):
    blocks = []
    play_block = evaluation._play_block
    monkeypatch.setattr(
        "skvdd.evaluation._play_block", lambda *args: blocks.append(1) or play_block(*args)
    )
    with joblib.parallel_config("threading", n_jobs=2):
        evaluate(RandomWalk(), BLOCK_SIZE + 1, n_jobs=1)
        assert not blocks
        evaluate(RandomWalk(), BLOCK_SIZE + 1)
        assert len(blocks) == 2


@pytest.mark.parametrize("n_jobs", [0, 1.5, "two"])
def test_a_wrong_number_of_jobs_is_refused(n_jobs):
    with refuses(f"n_jobs must be None or an integer other than 0, got {n_jobs!r}."):
        evaluate(Constant([0.1]), n_jobs=n_jobs)


def test_the_same_seed_gives_the_same_rollouts(reference):
    assert_same_rollouts(reference, evaluate(RandomWalk(), BLOCK_SIZE + 10))


def test_another_seed_gives_other_rollouts(reference):
    other = evaluate(RandomWalk(), BLOCK_SIZE + 10, random_state=1)
    assert (other.lengths != reference.lengths).any()


def test_the_first_episodes_of_a_longer_evaluation_are_those_of_a_shorter_one(reference):
    shorter = evaluate(RandomWalk(), 5)
    for one, other in zip(shorter.episodes, reference.episodes, strict=False):
        np.testing.assert_array_equal(one.actions, other.actions)


def test_episodes_have_seeds_and_noise_of_their_own(reference):
    starts = {episode.states[0, 0] for episode in reference.episodes}
    actions = {episode.actions[0, 0] for episode in reference.episodes}
    assert len(starts) == len(actions) == BLOCK_SIZE + 10


def test_a_random_state_instance_is_consumed():
    rng = np.random.RandomState(0)
    first, second = (
        evaluate(RandomWalk(), random_state=rng),
        evaluate(RandomWalk(), random_state=rng),
    )
    assert_same_rollouts(first, evaluate(RandomWalk()))
    assert (first.lengths != second.lengths).any()


@pytest.mark.parametrize("n_envs", [1, 20])
def test_every_call_of_act_has_one_size(n_envs):
    policy = RandomWalk()
    evaluate(policy, n_envs=n_envs)
    assert set(policy.batches) == {(BLOCK_SIZE, 3, 2)}


# ---------------------------------------------------------------------------------------
# What the policy is given, what it gave
# ---------------------------------------------------------------------------------------


def test_the_windows_of_the_episodes_are_what_the_policy_saw():
    class Recorder(RandomWalk):
        def act(self, X, *, random_state=None):
            seen.append(X[0])
            return super().act(X, random_state=random_state)

    seen = []
    evaluation = evaluate(Recorder(), 1)
    states, actions, groups = evaluation.episodes.windows(3)
    np.testing.assert_array_equal(states, seen)
    np.testing.assert_array_equal(states[0], [states[0, 0]] * 3)
    assert len(actions) == len(groups) == evaluation.lengths[0]


def test_states_and_actions_follow_the_task():
    (episode,) = evaluate(Constant([0.1]), 1).episodes
    np.testing.assert_allclose(np.diff(episode.states[:, 0]), episode.states[1:, 1], atol=1e-12)
    np.testing.assert_array_equal(episode.actions, 0.1)


def test_env_kwargs_reach_the_environment():
    evaluation = evaluate(Constant([0.1]), env_kwargs={"start_width": 0.0})
    assert {episode.states[0, 0] for episode in evaluation.episodes} == {0.0}


def test_actions_of_one_dimension_may_come_as_a_vector():
    assert_same_rollouts(evaluate(Constant(0.1)), evaluate(Constant([0.1])))


# ---------------------------------------------------------------------------------------
# The record
# ---------------------------------------------------------------------------------------


def test_a_policy_that_goes_right_always_succeeds_in_one_way():
    evaluation = evaluate(Constant([0.1]))
    assert evaluation.success_rate == 1.0
    assert evaluation.success_interval == pytest.approx((0.8389, 1.0), abs=1e-4)
    assert evaluation.entropy == 0.0
    assert evaluation.n_behaviors == 1
    assert evaluation.behaviors == ("right",) * 20
    np.testing.assert_array_equal(evaluation.returns, 1.0)
    # 0.1, 0.18, 0.244 ... add up to 1.2 after 5 steps at the latest, from -0.2.
    assert evaluation.lengths.max() <= 6


def test_a_policy_that_stands_still_always_fails():
    evaluation = evaluate(Constant([0.0]))
    assert evaluation.success_rate == evaluation.entropy == 0.0
    assert evaluation.n_behaviors == 0
    assert set(evaluation.behaviors) == {"left", "right"}
    np.testing.assert_array_equal(evaluation.lengths, 60)
    np.testing.assert_array_equal(evaluation.returns, 0.0)


def test_entropy_counts_only_successes(reference):
    shares = [
        np.mean(
            [
                b == side
                for b, ok in zip(reference.behaviors, reference.successes, strict=True)
                if ok
            ]
        )
        for side in ("left", "right")
    ]
    assert 0 < reference.successes.sum() < len(reference.successes)
    assert reference.entropy == pytest.approx(-sum(p * np.log2(p) for p in shares))
    assert reference.entropy_base == 2


def test_a_task_without_behaviors_has_no_entropy():
    evaluation = evaluate(Constant([0.1]), task="Indifferent")
    assert evaluation.success_rate == 1.0
    assert evaluation.entropy is evaluation.entropy_base is None
    assert evaluation.n_behaviors == 0


def test_the_table_is_aligned():
    evaluation = evaluate(Constant([0.1]), env_kwargs={"start_width": 0.0})
    assert str(evaluation) == (
        "skvddtest/Line-v0, 20 episodes\n"
        "  success rate    1.000  95 % in [0.839, 1.000]\n"
        "  task entropy    0.000  base 2\n"
        "  behaviors           1  of 2\n"
        "  mean return     1.000\n"
        "  mean length       5.0  actions"
    )


def test_the_table_leaves_out_what_the_task_does_not_tell():
    table = str(evaluate(Constant([0.1]), task="Indifferent"))
    assert "success rate" in table
    assert "entropy" not in table
    assert "behaviors" not in table


def test_the_summary_survives_json(reference):
    summary = reference.to_dict()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["n_episodes"] == BLOCK_SIZE + 10


def test_the_record_is_frozen_and_short_to_print(reference):
    assert isinstance(reference, Evaluation)
    with pytest.raises(AttributeError):
        reference.success_rate = 1.0
    assert len(repr(reference)) < 300


def test_a_short_evaluation_prints_nothing(capfd):
    evaluate(Constant([0.1]), progress=True)
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------


def test_an_unknown_environment_is_refused():
    known = ", ".join(sorted(name for name in gymnasium.registry if name.startswith("skvdd/")))
    assert "skvdd/Avoiding-v0" in known
    with refuses(
        "env_id must name a registered environment, got 'skvdd/Nowhere-v0'. skvdd has "
        f"{known}; import the package that registers another one, or call gymnasium.register."
    ):
        evaluate_policy(Constant([0.1]), "skvdd/Nowhere-v0")


@pytest.mark.parametrize("name", ["n_episodes", "n_envs"])
def test_counts_below_one_are_refused(name):
    with refuses(f"{name} must be at least 1, got 0."):
        evaluate(Constant([0.1]), **{name: 0})


def test_what_is_no_policy_is_refused():
    with refuses(
        "policy must have act and window_size, or be a Pipeline that ends in what has them, got "
        "object without act and window_size. Every policy of skvdd has them; wrap any other one.",
        TypeError,
    ):
        evaluate(object())


def test_actions_of_another_shape_are_refused():
    with refuses(
        "policy.act must return one action of skvddtest/Line-v0 per row, shape (64, 1), "
        "got shape (64, 2) in episode 0. Was the policy fitted on the actions of another "
        "environment?"
    ):
        evaluate(Constant([0.1, 0.1]))


def test_actions_that_are_not_finite_are_refused():
    class Diverges(Constant):
        def act(self, X, *, random_state=None):
            actions = super().act(X)
            actions[X[:, -1, 0] > 0.5] = np.nan
            return actions

    # From 0 the path is 0.1, 0.28, 0.524: the action of step 3 is refused.
    with refuses(
        "policy.act must return finite actions, got [nan] in episode 0 of skvddtest/Line-v0, "
        "step 3. Look for a training that diverged, or for states far from its data."
    ):
        evaluate(Diverges([0.1]), env_kwargs={"start_width": 0.0})


def test_an_environment_that_does_not_tell_success_is_refused():
    with refuses(
        "the infos of skvddtest/Silent-v0 must tell 'success', got ['speed']. "
        "Wrap the environment so that its info says whether the episode succeeded."
    ):
        evaluate(Constant([0.0]), task="Silent")


def test_an_environment_without_vectors_is_refused():
    with refuses(
        "the actions of skvddtest/Buttons-v0 must be vectors, got Discrete(2). Flatten them "
        "first, for example with gymnasium's wrappers."
    ):
        evaluate(Constant([0.1]), task="Buttons")


# ---------------------------------------------------------------------------------------
# The scorer
# ---------------------------------------------------------------------------------------


class Push(BaseEstimator):
    """An estimator that pushes as hard as it is told, to random sides; fit learns nothing."""

    window_size = 1

    def __init__(self, force=0.1):
        self.force = force

    def fit(self, X, y=None):
        self.fitted_ = True
        return self

    def act(self, X, *, random_state=None):
        noise = [[0.05 * rng.standard_normal()] for rng in random_state]
        return self.force * np.sign(np.reshape(X, (len(X), -1))[:, :1]) + np.array(noise)


ROWS = np.zeros((6, 2))
LINE = "skvddtest/Line-v0"


def test_a_scorer_returns_what_an_evaluation_finds():
    policy = RandomWalk()
    found = evaluate(policy, 30)
    assert 0.0 < found.success_rate < 1.0
    scores = {
        "success_rate": found.success_rate,
        "entropy": found.entropy,
        "mean_return": found.returns.mean(),
        "d3il": 0.8 * found.success_rate + 0.2 * found.entropy,
    }
    for metric, score in scores.items():
        scorer = rollout_scorer(LINE, 30, metric=metric)
        assert type(scorer(policy, ROWS)) is float
        assert scorer(policy, ROWS) == scorer(policy, None, np.zeros(6)) == pytest.approx(score)
    assert rollout_scorer(LINE, 30, metric=list(scores))(policy, ROWS) == pytest.approx(scores)


def test_several_scores_come_from_the_same_rollouts():
    policy = RandomWalk()
    rollout_scorer(LINE, 5)(policy, ROWS)
    n_calls = len(policy.batches)
    rollout_scorer(LINE, 5, metric=["d3il", "success_rate", "entropy"])(policy, ROWS)
    assert len(policy.batches) == 2 * n_calls


def test_a_scorer_follows_its_seed():
    policy, metric = RandomWalk(), ["success_rate", "entropy"]
    score = rollout_scorer(LINE, 30, metric=metric, random_state=0)(policy, ROWS)
    assert score == rollout_scorer(LINE, 30, metric=metric, random_state=0)(policy, ROWS)
    assert score != rollout_scorer(LINE, 30, metric=metric, random_state=1)(policy, ROWS)
    anew = rollout_scorer(LINE, 30, metric=metric, random_state=None)
    assert len({tuple(anew(policy, ROWS).values()) for _ in range(5)}) > 1


def test_a_scorer_survives_pickling_and_copying():
    scorer = rollout_scorer(
        LINE, 30, metric=["success_rate", "entropy"], env_kwargs={"start_width": 0.5}
    )
    search = clone(GridSearchCV(Push(), {}, scoring=scorer))
    score = scorer(RandomWalk(), ROWS)
    assert pickle.loads(pickle.dumps(scorer))(RandomWalk(), ROWS) == score
    assert search.scoring(RandomWalk(), ROWS) == score


def test_env_kwargs_and_goal_reach_the_rollouts():
    assert rollout_scorer(LINE, 5)(Constant([0.0]), ROWS) == 0.0
    assert rollout_scorer(LINE, 50, env_kwargs={"start_width": 5.0})(Constant([0.0]), ROWS) > 0.5
    policy = GoalPolicy()
    rollout_scorer("skvdd/Avoiding-v0", 1, goal=[1.0, 2.0, 3.0])(policy, ROWS)
    np.testing.assert_array_equal(policy.asked[0][0, -3:], [1.0, 2.0, 3.0])


def test_a_grid_search_finds_the_policy_that_behaves_best():
    search = GridSearchCV(
        Push(),
        {"force": [0.0, 0.1, -0.1]},
        scoring=rollout_scorer(LINE, 20),
        cv=GroupKFold(2),
        error_score="raise",
    )
    search.fit(ROWS, groups=[0, 0, 0, 1, 1, 1])
    assert search.best_params_ == {"force": 0.1}
    assert search.best_score_ == 1.0


def test_a_grid_search_lists_several_scores():
    search = GridSearchCV(
        Push(),
        {"force": [-0.1, 0.1]},
        scoring=rollout_scorer(LINE, 20, metric=["success_rate", "entropy"]),
        refit="entropy",
        cv=[([0, 1], [2])],
        error_score="raise",
    ).fit(ROWS)
    success, entropy = (
        search.cv_results_[f"mean_test_{name}"] for name in ("success_rate", "entropy")
    )
    assert success[1] == 1.0 > success[0]
    assert entropy[1] == search.best_score_ > 0.9


def test_cross_validation_takes_a_scorer():
    scores = cross_val_score(Push(), ROWS, scoring=rollout_scorer(LINE, 5), cv=3)
    np.testing.assert_array_equal(scores, 1.0)
    scorer = rollout_scorer(LINE, 5, metric=["mean_return", "d3il"])
    results = cross_validate(Push(), ROWS, scoring=scorer, cv=3)
    np.testing.assert_array_equal(results["test_mean_return"], 1.0)
    assert len(results["test_d3il"]) == 3


@pytest.mark.parametrize("routing", [False, True])
def test_a_distiller_is_searched_with_a_teacher_given_to_fit(routing):
    rng = np.random.RandomState(0)
    X, y = rng.normal(size=(40, 2)), rng.normal(size=(40, 1))
    teacher = small_teacher().fit(X, y)
    student = VDDDistiller(n_experts=2, init_iter=5, **{**SMALL, "max_iter": 5})
    with config_context(enable_metadata_routing=routing):
        search = GridSearchCV(
            student,
            {"noise_min": [0.1, 0.2]},
            scoring=rollout_scorer(LINE, 5, metric=["success_rate", "d3il"]),
            refit="d3il",
            cv=[(np.arange(40), [0])],
            error_score="raise",
        ).fit(X, y, teacher=teacher)
    assert np.isfinite(search.cv_results_["mean_test_d3il"]).all()
    frozen = FrozenEstimator(search.best_estimator_)
    scorer = rollout_scorer(LINE, 5, metric="d3il")
    assert scorer(frozen, X) == scorer(search.best_estimator_, X) == search.best_score_


def test_a_pipeline_is_scored_as_its_last_step_behind_the_others():
    frozen = FrozenEstimator(Push().fit(ROWS))
    reverse = FunctionTransformer(np.negative)
    scorer = rollout_scorer(LINE, 5)
    assert scorer(make_pipeline(FunctionTransformer(), frozen).fit(ROWS), ROWS) == 1.0
    assert scorer(make_pipeline(reverse, frozen).fit(ROWS), ROWS) == 0.0


@pytest.mark.parametrize("metric", ["entropy", "d3il", ["success_rate", "entropy"]])
def test_a_scorer_of_behaviors_needs_a_task_that_tells_them(metric):
    name = metric if isinstance(metric, str) else "entropy"
    with refuses(
        "metric must be success_rate or mean_return for skvddtest/Indifferent-v0, which tells no "
        f"behaviors apart, got '{name}'. Give the environment the attribute n_behaviors if it "
        "does."
    ):
        rollout_scorer("skvddtest/Indifferent-v0", metric=metric)
    scorer = rollout_scorer("skvddtest/Indifferent-v0", 5, metric=["success_rate", "mean_return"])
    assert scorer(Constant([0.1]), ROWS) == {"success_rate": 1.0, "mean_return": 1.0}


def test_a_scorer_refuses_wrong_arguments_when_it_is_made():
    for metric, came in [("speed", "'speed'"), (["entropy", "speed"], "'speed'"), ([], "none")]:
        with refuses(
            "metric must be one or several of success_rate, entropy, d3il, mean_return, got "
            f"{came}."
        ):
            rollout_scorer(LINE, metric=metric)
    with refuses("n_episodes must be at least 1, got 0."):
        rollout_scorer(LINE, 0)
    for seed in (-1, 2**32, 0.5, "0"):
        with refuses(f"random_state must be None or an integer in [0, 2**32), got {seed!r}."):
            rollout_scorer(LINE, random_state=seed)
    with pytest.raises(ValueError, match=r"^random_state must be None .* got RandomState\("):
        rollout_scorer(LINE, random_state=np.random.RandomState(0))
    with pytest.raises(
        ValueError, match=r"^env_id must name a registered environment, got 'No-v0'"
    ):
        rollout_scorer("No-v0")
    with pytest.raises(ValueError, match=r"^the actions of skvddtest/Buttons-v0 must be vectors"):
        rollout_scorer("skvddtest/Buttons-v0")
    with pytest.raises(TypeError, match="colour"):
        rollout_scorer(LINE, env_kwargs={"colour": "red"})


# ---------------------------------------------------------------------------------------
# The stopwatch
# ---------------------------------------------------------------------------------------


def test_time_action_times_single_decisions():
    class Counted(Constant):
        def act(self, X, *, random_state=None):
            calls.append((X.shape, torch.get_num_threads()))
            return super().act(X)

    calls = []
    threads = torch.get_num_threads()
    milliseconds = time_action(Counted([0.1]), [[0.0, 1.0]] * 3, n_calls=10)
    assert 0.0 < milliseconds < 100.0
    assert calls == [((1, 3, 2), 1)] * 11
    assert torch.get_num_threads() == threads


def test_time_action_restores_threads_after_an_error():
    class Broken(Constant):
        def act(self, X, *, random_state=None):
            raise RuntimeError("broken")

    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="broken"):
        time_action(Broken([0.1]), [[0.0]], n_threads=threads + 1)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", ["n_calls", "n_threads"])
def test_time_action_refuses_counts_below_one(name):
    with refuses(f"{name} must be at least 1, got 0."):
        time_action(Constant([0.1]), [[0.0]], **{name: 0})


# ---------------------------------------------------------------------------------------
# The robot
# ---------------------------------------------------------------------------------------


class Wander:
    """Heads for the finish with steps that sway to either side."""

    window_size = 2

    def act(self, X, *, random_state=None):
        sway = np.array([rng.normal() for rng in random_state])
        return np.stack([0.002 * sway, np.full(len(X), 0.009)], axis=1)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_avoiding_rollouts_do_not_depend_on_the_number_of_environments(n_envs):
    options = {"random_state": 0, "progress": False}
    first = evaluate_policy(Wander(), "skvdd/Avoiding-v0", 6, n_envs=6, **options)
    second = evaluate_policy(Wander(), "skvdd/Avoiding-v0", 6, n_envs=n_envs, **options)
    assert first.entropy_base == 24
    assert_same_rollouts(first, second)


# -- goals ----------------------------------------------------------------------------------


class GoalPolicy:
    """Remembers what it was asked and goes straight on."""

    window_size, goal_dim = 2, 3

    def __init__(self):
        self.asked = []

    def act(self, X, *, random_state=None):
        self.asked.append(X)
        return np.tile([0.0, 0.01], (len(X), 1))


def test_a_goal_is_the_end_of_every_row():
    policy = GoalPolicy()
    evaluate_policy(policy, "skvdd/Avoiding-v0", n_episodes=1, goal=[1.0, 2.0, 3.0])
    assert policy.asked[0].shape == (64, 2 * 4 + 3)
    np.testing.assert_array_equal(policy.asked[0][:, -3:], np.tile([1.0, 2.0, 3.0], (64, 1)))


@pytest.mark.parametrize("goal", [None, [1.0], [[1.0, 2.0, 3.0]]])
def test_a_goal_of_another_shape_is_refused(goal):
    with pytest.raises(
        ValueError, match=r"goal must have shape \(3,\), the goal_dim of the policy"
    ):
        evaluate_policy(GoalPolicy(), "skvdd/Avoiding-v0", n_episodes=1, goal=goal)


class Follower:
    """Walks to the side of its goal, and remembers what it was asked."""

    window_size, goal_dim = 1, 1

    def __init__(self):
        self.asked = []

    def act(self, X, *, random_state=None):
        self.asked.append(X)
        return np.where(X[:, -1:] > 0.5, 0.1, -0.1)


def test_without_a_goal_each_episode_has_the_one_its_environment_tells():
    policy = Follower()
    evaluation = evaluate_policy(policy, "skvddtest/Signpost-v0", n_episodes=4, contexts=2)
    np.testing.assert_array_equal(policy.asked[0][:4, -1], [0.0, 1.0, 0.0, 1.0])
    assert evaluation.behaviors == ("left", "right", "left", "right")


def test_a_told_goal_of_another_shape_is_refused():
    policy = Follower()
    policy.goal_dim = 2
    with pytest.raises(ValueError, match=r"goal must have shape \(2,\).* tell one of shape \(1,\)"):
        evaluate_policy(policy, "skvddtest/Signpost-v0", n_episodes=1)


# -- contexts ---------------------------------------------------------------------------------


class Sides:
    """Walks away from the middle, or stays where a start beyond 0.15 was."""

    window_size = 1

    def act(self, X, *, random_state=None):
        position = X[:, 0, 0]
        return np.where(np.abs(position) > 0.45, 0.0, np.where(position > 0, 0.1, -0.1))[:, None]


def test_rollouts_take_turns_in_the_contexts():
    evaluation = evaluate_policy(Sides(), "skvddtest/Signpost-v0", n_episodes=6, contexts=3)
    assert evaluation.contexts == (0, 1, 2, 0, 1, 2)
    starts = [episode.states[0, 0] for episode in evaluation.episodes]
    np.testing.assert_allclose(starts, [0.0, 0.1, 0.2, 0.0, 0.1, 0.2])
    assert evaluation.to_dict()["n_contexts"] == evaluation.n_contexts == 3
    assert "6 episodes in 3 contexts" in str(evaluation)


def test_contexts_can_be_given_as_a_table():
    table = [[0.3], [-0.4]]
    evaluation = evaluate_policy(Sides(), "skvddtest/Signpost-v0", n_episodes=4, contexts=table)
    starts = [episode.states[0, 0] for episode in evaluation.episodes]
    np.testing.assert_allclose(starts, [0.3, -0.4, 0.3, -0.4])


class Scattered:
    """Goes right or left or nowhere, as the row of an episode in the batch says."""

    window_size = 1

    def act(self, X, *, random_state=None):
        sides = np.zeros(len(X))
        sides[:6] = [1, 1, 0, -1, 1, 0]
        return 0.1 * sides[:, None]


@pytest.mark.parametrize(("skips_unsolved", "entropy"), [(True, 1.0 / 2.0), (False, 1.0 / 3.0)])
def test_the_entropy_is_the_mean_over_contexts_by_the_rule_of_the_task(
    monkeypatch, skips_unsolved, entropy
):
    # Of three contexts one is solved on both sides, one on one side twice, one never.
    monkeypatch.setattr(Signpost, "skips_unsolved", skips_unsolved)
    evaluation = evaluate_policy(Scattered(), "skvddtest/Signpost-v0", n_episodes=6, contexts=3)
    assert evaluation.entropy == pytest.approx(entropy)


@pytest.mark.parametrize(
    ("contexts", "message"),
    [
        (0, "contexts must be an integer of at least 1, got 0."),
        (1.5, "contexts must be an integer of at least 1, got 1.5."),
        ([0.3, 0.4], "contexts must be a number, or a table with one row for each of them; got "),
        (4, "n_episodes must be a multiple of the number of contexts, 4, got 6."),
    ],
)
def test_wrong_contexts_are_refused(contexts, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate_policy(Sides(), "skvddtest/Signpost-v0", n_episodes=6, contexts=contexts)
    with pytest.raises(ValueError, match=re.escape(message)):
        rollout_scorer("skvddtest/Signpost-v0", 6, contexts=contexts)


def test_the_scorer_plays_in_contexts():
    scorer = rollout_scorer("skvddtest/Signpost-v0", 4, contexts=[[0.3], [-0.4]], metric="entropy")
    assert scorer(Sides(), ROWS) == 0.0  # one behaviour in each context
    scorer = rollout_scorer("skvddtest/Signpost-v0", 4, metric="success_rate")
    assert scorer(Sides(), ROWS) == 1.0
