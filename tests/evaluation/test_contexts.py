"""Where rollouts start: numbers, ranges, lists and tables; the list that searches play."""

import gymnasium
import numpy as np
import pytest

from skvdd.evaluation import evaluate_policy, rollout_scorer
from tests.evaluation.tasks import (
    LINE,
    SIGNPOST,
    Constant,
    Line,
    Sides,
    Signpost,
    evaluate,
    refuses,
)

ROWS = np.zeros((6, 2))


def starts(evaluation):
    """Return where the episodes started."""
    return [episode.states[0, 0] for episode in evaluation.episodes]


def play(contexts, n_episodes=None, **options):
    return evaluate(Sides(), n_episodes, task="Signpost", contexts=contexts, **options)


def test_rollouts_take_turns_in_the_contexts():
    evaluation = play(3, 6)
    assert evaluation.contexts == (0, 1, 2, 0, 1, 2)
    np.testing.assert_allclose(starts(evaluation), [0.0, 0.1, 0.2, 0.0, 0.1, 0.2])
    assert evaluation.to_dict()["n_contexts"] == evaluation.n_contexts == 3
    assert "6 episodes in 3 contexts of the test list" in str(evaluation)


def test_rollouts_are_shared_out_as_evenly_as_can_be():
    assert play(3, 5).contexts == (0, 1, 2, 0, 1)


# Numbers, and which list: test contexts start at a tenth of their number, validation contexts
# 0.025 and train contexts 0.05 beside them.
@pytest.mark.parametrize(
    ("contexts", "split", "numbers", "first"),
    [
        (None, "test", (0, 1, 2), 0.0),
        (2, "test", (0, 1), 0.0),
        (np.int64(2), "test", (0, 1), 0.0),
        (range(4, 6), "test", (4, 5), 0.4),
        ([3, 1], "test", (3, 1), 0.3),
        (np.array([3, 1]), "test", (3, 1), 0.3),
        ("test", "test", (0, 1, 2), 0.0),
        ("validation", "validation", (0, 1, 2), 0.025),
        ("train", "train", (0, 1, 2), 0.05),
        (("validation", 1), "validation", (0,), 0.025),
        (("validation", range(2, 4)), "validation", (2, 3), 0.225),
        (("train", [2]), "train", (2,), 0.25),
        (iter([3, 1]), "test", (3, 1), 0.3),
    ],
)
def test_contexts_are_numbers_of_a_list(contexts, split, numbers, first):
    evaluation = play(contexts)
    assert evaluation.split == split
    assert evaluation.contexts == numbers * 2  # two rollouts in each, as the task says
    assert starts(evaluation)[0] == pytest.approx(first)


def test_contexts_can_be_given_as_a_table():
    evaluation = play([[0.3], [-0.4]])
    np.testing.assert_allclose(starts(evaluation), [0.3, -0.4, 0.3, -0.4])
    assert (evaluation.split, evaluation.contexts) == (None, (0, 1, 0, 1))
    np.testing.assert_array_equal(evaluation.table, [[0.3], [-0.4]])
    assert "in 2 contexts\n" in str(evaluation)


@pytest.mark.parametrize(("n_episodes", "n_contexts"), [(1, 1), (4, 2), (5, 2), (6, 3), (60, 3)])
def test_without_contexts_each_of_the_list_gets_two_rollouts_at_least(n_episodes, n_contexts):
    assert play(None, n_episodes).n_contexts == n_contexts


def test_a_task_without_contexts_has_as_many_rollouts_as_it_says():
    evaluation = evaluate(Constant([0.1]), None)
    assert (evaluation.n_episodes, evaluation.n_contexts, evaluation.split) == (20, 0, None)
    assert set(evaluation.contexts) == {None}


def test_an_environment_that_is_no_task_has_100_rollouts():
    assert evaluate(Constant([0.1]), None, task="Indifferent").n_episodes == 100


class Scattered:
    """Goes right or left or nowhere, as the row of an episode in the batch says."""

    window_size = 1

    def act(self, X, *, random_state=None):
        sides = np.zeros(len(X))
        sides[:6] = [1, 1, 0, -1, 1, 0]
        return 0.1 * sides[:, None]


def test_the_entropy_is_the_mean_over_contexts_by_the_rule_of_the_task():
    # Of three contexts one is solved on both sides, one on one side twice, one never.
    evaluation = evaluate(Scattered(), 6, task="Signpost", contexts=3)
    assert evaluation.entropy_d3il == pytest.approx(1.0 / 2.0)  # the unsolved one is left out
    assert evaluation.diversity == pytest.approx((2.0 + 0.0) / 2.0)


def test_a_policy_whose_context_decides_is_not_diverse():
    # Pooled over contexts its two behaviors are equally frequent.
    class Away(Sides):
        def act(self, X, *, random_state=None):
            return 0.1 * np.sign(X[:, 0, :1])

    evaluation = evaluate(Away(), task="Signpost", contexts=[[0.3], [-0.4]])
    assert evaluation.success_rate == 1.0
    assert evaluation.n_behaviors == 2
    assert evaluation.entropy_d3il == evaluation.diversity == 0.0


@pytest.mark.parametrize(
    ("contexts", "message"),
    [
        (0, "contexts must be at least 1, got 0."),
        (("test", 0), "contexts must be at least 1, got 0."),
        (
            [0.3, 0.4],
            "contexts must be a number, numbers from 0, a list of the task (train, test, "
            "validation), a pair of both, or a table with a row for each; got [0.3, 0.4].",
        ),
        (
            [-1],
            "contexts must be a number, numbers from 0, a list of the task (train, test, "
            "validation), a pair of both, or a table with a row for each; got [-1].",
        ),
        ([1, 1], "contexts must be different numbers, got [1, 1]."),
        (
            "held-out",
            "contexts must name one of the lists ('train', 'test', 'validation'), got 'held-out'.",
        ),
        (
            np.zeros((2, 1, 1)),
            "contexts must be a number, numbers, or a table with one row for each of them; got "
            "shape (2, 1, 1).",
        ),
        (
            [[]],
            "contexts must be a number, numbers, or a table with one row for each of them; got "
            "shape (1, 0).",
        ),
        (
            [[0.1], [0.2, 0.3]],
            "contexts must be numbers, or a table with rows of equal length, got "
            "[[0.1], [0.2, 0.3]].",
        ),
        (3 * 10**9, "n_episodes must be at least one for each of the 3000000000 contexts, got 6."),
        (8, "n_episodes must be at least one for each of the 8 contexts, got 6."),
    ],
)
def test_wrong_contexts_are_refused(contexts, message):
    with refuses(message):
        play(contexts, 6)
    with refuses(message):
        rollout_scorer(SIGNPOST, 6, contexts=contexts)


@pytest.mark.parametrize("contexts", [3, "validation", [[0.1]]])
def test_a_task_whose_episodes_start_alike_takes_no_contexts(contexts):
    with refuses(
        f"contexts must be None for line, whose episodes all start alike, got {contexts!r}. "
        "Choose with one random_state and report with another."
    ):
        evaluate_policy(Constant([0.1]), LINE, contexts=contexts)


def test_an_environment_that_is_no_task_has_no_list_of_its_own():
    with refuses(
        "contexts must say how many, since skvddtest/Indifferent-v0 is no registered task, got a "
        "list alone. skvdd.envs.register_task makes it one."
    ):
        evaluate_policy(Constant([0.1]), "skvddtest/Indifferent-v0", contexts="test")


# -- searches ---------------------------------------------------------------------------------


class Starts:
    """Remembers where its first episodes started."""

    window_size = 1

    def __init__(self, n):
        self.n, self.seen = n, None

    def act(self, X, *, random_state=None):
        if self.seen is None:
            self.seen = X[: self.n, 0, 0].round(6).tolist()
        return np.ones((len(X), 1))


@pytest.mark.parametrize(
    ("contexts", "seen"),
    [
        (None, [0.025, 0.125, 0.225]),
        (2, [0.025, 0.125]),
        (range(2, 4), [0.225, 0.325]),
        ("test", [0.0, 0.1, 0.2]),
        (("test", 1), [0.0]),
        ([[0.7]], [0.7]),
    ],
)
def test_a_scorer_plays_validation_contexts_unless_another_list_is_named(contexts, seen):
    policy = Starts(len(seen))
    rollout_scorer(SIGNPOST, contexts=contexts)(policy, ROWS)
    assert policy.seen == seen


def test_a_scorer_plays_the_contexts_of_a_table():
    scorer = rollout_scorer(SIGNPOST, 4, contexts=[[0.3], [-0.4]], metric="entropy_d3il")
    assert scorer(Sides(), ROWS) == 0.0  # one behavior in each context


@pytest.mark.parametrize("contexts", [iter([3, 1]), ("validation", iter([3, 1]))])
def test_a_scorer_plays_the_contexts_of_an_iterator_at_every_call(contexts):
    scorer = rollout_scorer(SIGNPOST, 4, contexts=contexts)
    for _ in range(2):
        policy = Starts(2)
        scorer(policy, ROWS)
        assert policy.seen == [0.325, 0.125]


def test_equal_rows_of_a_table_are_no_reason_to_warn():
    assert play([[0.3], [0.3]]).n_contexts == 2  # warnings are errors here


# -- environments that do not listen --------------------------------------------------------


def test_an_environment_that_ignores_its_context_is_warned_of():
    with pytest.warns(UserWarning, match=r"^skvddtest/Deaf-v0 starts alike in two contexts"):
        # The Line draws its start from its seed, whatever the options say.
        evaluate_unregistered(contexts=2)


def evaluate_unregistered(**options):
    env_id = "skvddtest/Deaf-v0"
    gymnasium.register(env_id, entry_point=Line, max_episode_steps=60)
    try:
        return evaluate_policy(Constant([0.1]), env_id, 4, progress=False, **options)
    finally:
        del gymnasium.registry[env_id]


def test_an_environment_that_ignores_its_list_is_warned_of(monkeypatch):
    monkeypatch.setattr(Signpost, "shift", dict.fromkeys(("train", "validation", "test"), 0.0))
    with pytest.warns(UserWarning, match=r"starts alike in the validation and the test list"):
        play("validation")


def test_an_environment_that_knows_no_lists_is_searched_in_its_contexts():
    class Contexts(Signpost):
        def reset(self, *, seed=None, options=None):
            assert set(options or {}) <= {"context"}
            return super().reset(seed=seed, options=options)

    gymnasium.register("skvddtest/Contexts-v0", entry_point=Contexts, max_episode_steps=60)
    try:
        scorer = rollout_scorer("skvddtest/Contexts-v0", contexts=2)
        assert scorer(Constant([0.1]), ROWS) == 1.0
    finally:
        del gymnasium.registry["skvddtest/Contexts-v0"]
