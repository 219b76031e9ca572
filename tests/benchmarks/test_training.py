"""A training is named by all that decides what is learned, and is done once."""

import json
from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from benchmarks import provenance, training
from benchmarks.training import Foreign, Training
from skvdd import GaussianMoEPolicy, VDDDistiller
from skvdd.datasets import features
from tests.benchmarks import sides
from tests.estimators import SMALL, small_teacher


def em(n=10, **parameters):
    kinds = {"demonstrations": "sides", "n_demonstrations": n}
    kinds |= {k: parameters.pop(k) for k in ("goal", "teacher", "features") if k in parameters}
    return Training(GaussianMoEPolicy(**{"n_experts": 2, **SMALL, **parameters}), **kinds)


def walker(**arguments):
    return Training(sides.Walker(**arguments), "sides", 10, arguments=arguments)


@pytest.fixture
def fitted(monkeypatch):
    """Names of the classes that were fitted."""
    names = []
    for cls in (GaussianMoEPolicy, VDDDistiller, type(small_teacher()), sides.Walker):

        def fit(self, *args, _fit=cls.fit, **kwargs):
            names.append(type(self).__name__)
            return _fit(self, *args, **kwargs)

        monkeypatch.setattr(cls, "fit", fit)
    return names


def test_a_key_depends_on_every_parameter_the_data_and_the_teacher():
    keys = [
        em().key,
        em(n_experts=3).key,
        em(random_state=1).key,
        em(n=11).key,
        em(goal="future").key,
        em(teacher=em()).key,
        em(teacher=em(random_state=1)).key,
        Training(GaussianMoEPolicy(2, **SMALL), "avoiding", 10).key,
        Training(GaussianMoEPolicy(2, **SMALL), "avoiding-human", 10).key,
        walker().key,
        walker(pace=2.0).key,
    ]
    assert len(set(keys)) == len(keys)
    assert em().key == keys[0]


@pytest.mark.parametrize("changed", ["rows", "version"])
def test_a_key_depends_on_the_rows_that_are_used_and_on_the_version_of_the_set(
    changed, monkeypatch
):
    before, load = em().key, training.load_demonstrations

    def other(name, n=None):
        found = load(name, n)
        if changed == "version":
            return replace(found, metadata={**found.metadata, "version": 8})
        episodes = list(found)
        last = replace(episodes[-1], actions=episodes[-1].actions * 1.001)
        return replace(found, episodes=[*episodes[:-1], last])

    monkeypatch.setattr(provenance, "load_demonstrations", other)
    provenance.describe_set.cache_clear()
    assert em().key != before


def test_a_key_depends_on_what_features_return(monkeypatch):
    def key():
        provenance.describe_features.cache_clear()
        return Training(GaussianMoEPolicy(2, **SMALL), "pushing", 4, features="pushing").key

    before, own = key(), features.pushing_features
    monkeypatch.setattr(features, "pushing_features", lambda states: own(states) + 1e-14)
    assert key() == before  # processors differ in the last digits
    monkeypatch.setattr(features, "pushing_features", lambda states: own(states) * 1.1)
    assert key() != before


def test_a_key_of_a_method_from_elsewhere_depends_on_its_code(monkeypatch):
    before = walker().key
    monkeypatch.setattr(training, "source_digest", lambda cls: "other code")
    assert walker().key != before


def test_a_setting_does_not_depend_on_the_seeds_of_a_policy_and_its_teacher():
    one, other = (em(random_state=s, teacher=em(random_state=s)) for s in (0, 1))
    assert one.key != other.key
    assert one.setting == other.setting
    assert em(n_experts=3).setting != em().setting


def test_what_is_trained_is_not_trained_again(fitted):
    first, cost = em().policy()
    again, same_cost = em().policy()
    assert fitted == ["GaussianMoEPolicy"]
    assert cost == same_cost
    states, _ = em().rows()
    np.testing.assert_array_equal(
        first.act(states[:20], random_state=0), again.act(states[:20], random_state=0)
    )


def test_a_cost_counts_teacher_start_and_distillation():
    teacher = Training(small_teacher(), "sides", 10)
    student = Training(
        VDDDistiller(n_experts=2, init_iter=7, **SMALL), "sides", 10, teacher=teacher
    )
    _, cost = student.policy()
    assert cost.iterations == student.iterations == 20 + 7 + 20
    assert cost.seconds == pytest.approx(
        sum(
            json.loads((training.CACHE / f"{t.key}.json").read_text())["seconds"]
            for t in (teacher, student)
        )
    )
    assert cost.clock == "cpu"


def test_a_method_from_elsewhere_is_fitted_on_flat_rows_and_kept(fitted):
    wanted = walker()
    policy, cost = wanted.policy()
    assert (cost.clock, cost.iterations) == ("wall", None)
    assert wanted.policy()[0].step_ == policy.step_ == pytest.approx(0.4, abs=0.01)
    assert fitted == ["Walker"]


def test_what_a_fit_changes_changes_no_key_or_setting_of_a_method_from_elsewhere():
    wanted, other = walker(random_state=0), walker(random_state=1)
    key = wanted.key
    wanted.estimator.weights = np.ones(3)
    wanted.policy()
    assert wanted.key == walker(random_state=0).key == key
    assert wanted.setting == other.setting == walker().setting
    assert wanted.describe()["parameters"] == {"pace": 1.0, "random_state": 0}


def test_an_argument_that_a_key_cannot_name_is_refused():
    expected = (
        "^random_state of Walker must be a number, a text, None, or lists and dicts of them, so "
        r"that a key can name it, got Generator\.$"
    )
    with pytest.raises(TypeError, match=expected):
        walker(random_state=np.random.default_rng(0))
    expected = r"^a parameter must have a repr that is always the same, got <object .* at 0x\w+>\.$"
    with pytest.raises(TypeError, match=expected):
        _ = em(encoder=object()).key


def test_a_method_that_does_not_tell_its_parameters_needs_its_arguments():
    expected = (
        "^arguments must be those that Walker was made with, since it has no get_params, got "
        r"None\.$"
    )
    with pytest.raises(ValueError, match=expected):
        Training(sides.Walker(), "sides", 10)


def test_a_method_that_pickle_cannot_write_is_refused_before_it_is_trained(fitted):
    wanted = walker()
    wanted.estimator.choose = lambda x: x
    with pytest.raises(TypeError, match=r"^Walker must be what pickle can write, to be kept "):
        wanted.policy()
    assert fitted == []


def test_a_trained_method_that_pickle_cannot_write_is_played_and_said_not_to_be_kept(capsys):
    wanted = Training(sides.Closed(), "sides", 10, arguments={})
    policy, cost = wanted.policy()
    assert policy is wanted.estimator
    assert cost.clock == "wall"
    assert "Closed was not kept, pickle cannot write it trained (" in capsys.readouterr().out
    assert not wanted.path.exists()


def test_a_row_of_a_method_from_elsewhere_depends_on_its_own_generator_alone():
    class Noise:
        def act(self, X, *, random_state):
            assert X.shape == (1, 10)
            return random_state.uniform(size=(1, 2))

    def acted(*seeds):
        generators = [np.random.RandomState(seed) for seed in seeds]
        return Foreign(Noise(), 2, 0).act(np.zeros((len(seeds), 2, 5)), random_state=generators)

    assert acted(0, 1, 2).shape == (3, 2)
    np.testing.assert_array_equal(acted(0, 1, 2)[:2], acted(0, 1, 9)[:2])
    assert (acted(0, 1)[0] != acted(0, 1)[1]).all()


def test_a_training_that_was_killed_goes_on_where_it_was(monkeypatch):
    teacher = Training(small_teacher(), "sides", 10)
    student = Training(
        VDDDistiller(n_experts=2, init_iter=20, **SMALL), "sides", 10, teacher=teacher
    )

    def distill(until=None):
        ticks = count()

        def clock():
            if (tick := next(ticks)) == until:
                raise OSError("killed")
            return tick

        monkeypatch.setattr(Training, "_clock", lambda self: clock)
        return student.policy()

    teacher.policy()
    whole, cost = distill()
    (training.CACHE / f"{student.key}.json").unlink()
    with pytest.raises(OSError, match=r"^killed$"):
        distill(until=60)  # after the twenty reports of the start, two ticks each
    (checkpoint,) = training.CACHE.glob("*.checkpoint")
    resumed, cost_again = distill()
    assert not checkpoint.exists()
    states, _ = teacher.rows()
    np.testing.assert_array_equal(
        whole.sample(states[:20], random_state=0), resumed.sample(states[:20], random_state=0)
    )
    assert cost_again.seconds == pytest.approx(cost.seconds, abs=3)
