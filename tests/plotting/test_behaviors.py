"""How often each behavior is shown."""

import numpy as np
import pytest
from matplotlib import pyplot as plt

from skvdd.datasets import Demonstrations, Episode
from skvdd.envs import Score, TaskSpec
from skvdd.envs.avoiding import BEHAVIORS, behavior_name
from skvdd.plotting import BehaviorDisplay
from tests.plotting.toys import Mixture, make_evaluation, refuses, registered

FAR, NEAR = BEHAVIORS[0], BEHAVIORS[-1]


def demonstrations_of(behaviors):
    return Demonstrations([Episode(np.zeros((2, 4)), np.zeros((2, 2)), b) for b in behaviors])


def titles(display):
    return [ax.get_title(loc="left") for ax in display.axes_]


def heights(display):
    """Return what is drawn, by the names at the axis."""
    names = [text.get_text() for text in display.axes_[-1].get_xticklabels()]
    return [
        dict(zip(names, [float(bar.get_height()) for bar in bars], strict=True))
        for bars in display.bars_
    ]


def test_bars_are_shares_of_all_episodes():
    evaluation = make_evaluation("avoiding", [FAR, NEAR, NEAR, FAR], [True, True, True, False])
    sources = {"people": demonstrations_of([FAR, FAR]), "VDD": evaluation}
    nobody = {behavior_name(behavior): 0.0 for behavior in BEHAVIORS}
    far, near = behavior_name(FAR), behavior_name(NEAR)
    assert heights(BehaviorDisplay.from_evaluations(sources)) == [
        {**nobody, far: 1.0},
        {**nobody, far: 0.25, near: 0.5},
    ]


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("avoiding", [behavior_name(behavior) for behavior in BEHAVIORS]),
        ("pushing", ["rr-gg", "gg-rr", "rg-gr", "gr-rg"]),
        ("aligning", ["inside", "outside"]),
        ("sorting4", ["rrbb", "rbrb", "rbbr", "brrb", "brbr", "bbrr"]),
        ("blockpush", ["block first", "block2 first"]),
    ],
)
def test_behaviors_have_the_names_and_the_order_of_their_task(task, names):
    display = BehaviorDisplay.from_evaluations({"VDD": make_evaluation(task)})
    assert list(heights(display)[0]) == names
    (line,) = display.axes_[0].lines
    assert line.get_ydata()[0] == pytest.approx(1.0 / len(names))


def test_behaviors_of_a_task_of_ones_own_have_its_names():
    behaviors = {number: f"way {number}" for number in (3, 1, 2)}
    task = TaskSpec("ways", "skvddtest/Ways-v0", scores=(Score(behaviors=behaviors),))
    with registered(task):
        evaluation = make_evaluation("ways", [1, 3], [True, True])
        display = BehaviorDisplay.from_evaluations({"VDD": evaluation})
    assert heights(display) == [{"way 3": 0.5, "way 1": 0.5, "way 2": 0.0}]


def test_of_many_behaviors_those_that_nobody_showed_are_left_out():
    behaviors = {number: f"way {number}" for number in range(25)}
    task = TaskSpec("ways", "skvddtest/Ways-v0", scores=(Score(behaviors=behaviors),))
    with registered(task):
        sources = {
            "people": demonstrations_of([20, 20, 7]),
            "VDD": make_evaluation("ways", [7, 3, 24], [True, True, False]),
        }
        display = BehaviorDisplay.from_evaluations(sources)
    assert [list(shares) for shares in heights(display)] == [["way 3", "way 7", "way 20"]] * 2
    (line,) = display.axes_[0].lines
    assert line.get_ydata()[0] == pytest.approx(1.0 / 25.0)


# -- what titles tell -----------------------------------------------------------------------


def test_where_all_episodes_start_alike_every_entropy_is_told():
    # Half of the demonstrations each: to base 24 the entropy is ln 2 / ln 24. The policy's shares
    # are 2/3 and 1/3; three draws from 24 ways differ almost always, ln 3 / ln 24 at most.
    sources = {
        "people": demonstrations_of([FAR, NEAR]),
        "VDD": make_evaluation("avoiding", [FAR, NEAR, FAR, FAR], [True, True, True, False]),
    }
    assert titles(BehaviorDisplay.from_evaluations(sources)) == [
        "people: entropy 0.218",
        "VDD: success rate 0.750, entropy 0.200 (0.328 if perfectly diverse)",
    ]


def test_entropies_pooled_over_contexts_are_never_told():
    """Each context is solved in one way, another one in each: diverse only when pooled."""
    contexts = (0, 0, 1, 1)
    evaluation = make_evaluation("aligning", [0, 0, 1, 1], [True] * 4, contexts)
    sources = {"demonstrations": demonstrations_of([0, 1, 0, 1]), "VDD": evaluation}
    display = BehaviorDisplay.from_evaluations(sources)
    assert titles(display) == [
        "demonstrations",
        "VDD: success rate 1.000, entropy 0.000 (0.500 if perfectly diverse)",
    ]
    assert heights(display) == [{"inside": 0.5, "outside": 0.5}] * 2


def test_the_success_rate_counts_successes_by_behaviors_that_the_task_does_not_list():
    evaluation = make_evaluation("aligning", [0, "over", 1], [True, True, False], (0, 0, 0))
    display = BehaviorDisplay.from_evaluations({"VDD": evaluation})
    assert titles(display)[0].startswith("VDD: success rate 0.667, ")
    assert heights(display) == [{"inside": pytest.approx(1 / 3), "outside": 0.0}]


# -- where from -----------------------------------------------------------------------------


def test_behaviors_are_drawn_on_the_axes_given():
    ax = plt.figure().subplots()
    display = BehaviorDisplay.from_evaluations({"VDD": make_evaluation("pushing")}, ax=ax)
    assert list(display.axes_) == [ax]
    assert display.figure_ is ax.figure
    with refuses("ax must be one per source, 1, got 2."):
        display.plot(plt.figure().subplots(2))


def test_behaviors_of_an_estimator_are_those_of_its_rollouts():
    class PastTheObstacles(Mixture):
        """Always takes the way on the far side."""

        def act(self, X, *, random_state=None):
            x = X[:, -1, 0]
            return np.stack([np.clip(0.72 - x, 0.0, 0.01), np.where(x > 0.6, 0.01, 0.0)], axis=1)

    demonstrations = demonstrations_of(BEHAVIORS)
    display = BehaviorDisplay.from_estimator(
        PastTheObstacles(), "avoiding", 2, demonstrations=demonstrations, random_state=0
    )
    assert titles(display) == [
        "demonstrations: entropy 1.000",
        # Two draws from 24 ways are equal once in 24 times, otherwise ln 2 / ln 24.
        "PastTheObstacles: success rate 1.000, entropy 0.000 (0.209 if perfectly diverse)",
    ]
    assert list(heights(display)[1].values()) == [0.0] * 23 + [1.0]  # 2-3-4, the last


def test_an_estimator_plays_the_contexts_that_are_asked_for(monkeypatch):
    calls = []

    def evaluate(*arguments, **options):
        calls.append((arguments[1:], options))
        return make_evaluation("pushing", contexts=(4, 4))

    monkeypatch.setattr("skvdd.evaluation.evaluate_policy", evaluate)
    BehaviorDisplay.from_estimator(Mixture(), "pushing", contexts=("validation", [4]))
    assert calls == [
        (
            ("pushing", None),
            {"contexts": ("validation", [4]), "random_state": None, "progress": False},
        )
    ]


def test_behaviors_of_no_task_or_several_are_refused():
    with refuses("sources must hold evaluations of one task, got no evaluation."):
        BehaviorDisplay.from_evaluations({"people": demonstrations_of([FAR])})
    with refuses(
        "sources must hold evaluations of one task, got skvdd/Avoiding-v0, skvdd/Pushing-v0."
    ):
        BehaviorDisplay.from_evaluations({"a": make_evaluation(), "b": make_evaluation("pushing")})


def test_a_task_without_behaviors_is_refused():
    with registered(TaskSpec("plain", "skvddtest/Plain-v0")):
        evaluation = make_evaluation("plain", [None, None])
    with refuses(
        "sources must be of a task with behaviors, skvddtest/Plain-v0 tells none apart. Name its "
        "behaviors in a TaskSpec and call skvdd.envs.register_task if it does."
    ):
        BehaviorDisplay.from_evaluations({"a": evaluation})
