"""Whatever valid is given, the contract holds; whatever invalid, it is refused before any training.

Constructor arguments are drawn from what each estimator says of itself, so a new argument is tested
as soon as it exists.
"""

from numbers import Integral
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.base import clone

from skvdd._sklearn import Interval, StrOptions
from tests.estimators import SMALL, ask, judgement, label, make_estimators, methods, small_teacher

few = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# -- what is valid --------------------------------------------------------------------------------

# Their meaning is tested elsewhere; here they would only cost time, or are no ranges of numbers.
SETTLED = {"device", "teacher", "window_size", "goal_dim", "hidden_size", "max_iter"}
RATE = st.floats(1e-4, 1e-2)  # larger ones are legal, and training may diverge
NOISE = {"noise_min": 0.3, "noise_max": 1.0}  # a short way, so that a likelihood is quick


def argument(constraint):
    """Draw a value that one constraint of a parameter allows, of a size that trains quickly."""
    if isinstance(constraint, StrOptions):
        return st.sampled_from(sorted(constraint.options))
    if isinstance(constraint, Interval) and constraint.type is Integral:
        return st.integers(constraint.left, constraint.left + 3)
    if isinstance(constraint, Interval):
        high = 1.0 if constraint.right is None else constraint.right
        low = constraint.left + (0.0 if constraint.closed in {"left", "both"} else 1e-4)
        return st.floats(low, high, exclude_max=constraint.closed in {"left", "neither"})
    return {"boolean": st.booleans(), "random_state": st.integers(0, 9)}[constraint]


@st.composite
def policies(draw, estimators):
    """Draw an estimator with arguments that are valid one by one, and the layout of its rows."""
    estimator = clone(draw(st.sampled_from(estimators)))
    window_size, goal_dim = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    layout = {"window_size": window_size, "goal_dim": goal_dim}
    hidden_size = draw(st.sampled_from([2, 4, 8]))  # of which four heads do not share 2
    chosen = {**layout, "hidden_size": hidden_size, "max_iter": draw(st.integers(0, 3))}
    own = estimator.get_params(deep=False)
    for name in sorted(set(own) - SETTLED - set(NOISE)):
        if draw(st.booleans()):
            constraint = estimator._parameter_constraints[name][0]
            chosen[name] = draw(RATE if name == "learning_rate" else argument(constraint))
    if "teacher" in own:
        chosen["teacher"] = small_teacher(**layout, **NOISE, max_iter=1)
    if "noise_min" in own:
        chosen.update(NOISE)
    return estimator.set_params(**chosen)


def backwards(values):
    """Return the same array with a stride below zero."""
    return np.ascontiguousarray(values[::-1])[::-1]


LAYOUTS = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "every other row": lambda values: np.repeat(values, 2, axis=0)[::2],
    "float32": lambda values: values.astype(np.float32),
    "integers": lambda values: np.rint(4 * values).astype(np.int64),
    "big-endian": lambda values: values.astype(">f8"),
    "lists": np.ndarray.tolist,
    "tensor": lambda values: torch.from_numpy(values.copy()),
    "data frame": lambda values: pd.DataFrame(values).rename(columns="c{}".format),
}


@st.composite
def demonstrations(draw, policy):
    """Draw rows and actions of any shape, type and layout in memory."""
    n, d, d_a = draw(st.integers(2, 12)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rng = np.random.RandomState(draw(st.integers(0, 99)))
    X = rng.standard_normal((n, policy.window_size * d + policy.goal_dim))
    y = rng.standard_normal((n, d_a))
    if draw(st.booleans()):
        X[:, draw(st.integers(0, X.shape[1] - 1))] = 1.0
    if d_a == 1 and draw(st.booleans()):
        y = y[:, 0]
    elif draw(st.booleans()):
        y = np.stack([y] * draw(st.integers(1, 3)), axis=1)
    of_arrays = sorted(LAYOUTS.keys() - {"data frame"})
    X = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](X)
    y = LAYOUTS[draw(st.sampled_from(of_arrays if y.ndim == 3 else sorted(LAYOUTS)))](y)
    if isinstance(X, np.ndarray) and policy.goal_dim == 0 and draw(st.booleans()):
        X = X.reshape(n, policy.window_size, d)
    for values in (X, y):
        if isinstance(values, np.ndarray):
            values.flags.writeable = False
    return X, y


def plain(values):
    """Return the same numbers as a new array."""
    values = values.numpy() if isinstance(values, torch.Tensor) else values
    return np.array(values, dtype=np.float64, order="C")


def assert_contract(policy, X, y):
    """Assert what section by section every fitted policy promises of shapes and repetition."""
    rows, actions = plain(X), plain(y)
    n, single = len(rows), actions.shape[1:]
    assert policy.n_features_in_ == rows[0].size
    assert policy.horizon_ == (single[0] if len(single) == 2 else 1)
    assert hasattr(policy, "feature_names_in_") == isinstance(X, pd.DataFrame)
    assert isinstance(policy.n_iter_, int)
    assert isinstance(policy.history_, list)
    assert policy.sample(X, n_samples=2, random_state=0).shape == (n, 2, *single)
    for method in ("predict", "act", "sample"):
        answers = ask(policy, method, X, y)
        assert answers.shape == actions.shape
        assert answers.dtype == np.float64
        assert np.isfinite(answers).all()
        np.testing.assert_array_equal(ask(policy, method, X, y), answers)
        np.testing.assert_array_equal(ask(policy, method, X[:1], y[:1]), answers[:1])
    judged = ask(policy, judgement(policy), X[:2], y[:2])
    assert np.shape(judged) == (() if judgement(policy) == "score" else (2,))
    assert np.isfinite(judged).all()
    if hasattr(policy, "gating"):
        np.testing.assert_allclose(policy.gating(X).sum(axis=1), 1.0, rtol=1e-6)
        means, covariances = policy.experts(X)
        m = actions[0].size
        assert means.shape == (n, policy.n_experts, m)
        assert covariances.shape == (n, policy.n_experts, m, m)
        assert (np.linalg.eigvalsh(covariances) > 0.0).all()


def no_training(*args, **options):
    raise AssertionError("the training began")


def why_refused(policy, X, y):
    """Return the message where this combination of arguments is refused, having trained nothing."""
    with patch("skvdd.training.fit.Fit.train", no_training):
        try:
            clone(policy).fit(X, y)
        except ValueError as error:
            return str(error)
        except AssertionError:
            return None
    return None  # there was nothing to train


@pytest.mark.parametrize("kind", make_estimators(), ids=label)
@few
@given(draw=st.data())
def test_what_is_valid_obeys_the_contract(kind, draw):
    policy = draw.draw(policies([kind]))
    X, y = draw.draw(demonstrations(policy))
    before = repr(policy.get_params())
    refusal = why_refused(policy, X, y)
    event(f"{label(kind)}: {'refused' if refusal else 'fitted'}")
    if refusal:  # single arguments are valid, not all that go together
        assert any(name in refusal for name in policy.get_params())
        return
    assert policy.fit(X, y) is policy
    assert repr(policy.get_params()) == before
    assert_contract(policy, X, y)


@pytest.mark.parametrize("kind", make_estimators(), ids=label)
def test_the_order_in_memory_is_of_no_account(kind):
    X, y = np.random.RandomState(0).standard_normal((2, 2000, 5))
    kind = clone(kind).set_params(max_iter=0)
    expected = clone(kind).fit(X, y)
    for layout in (np.asfortranarray, backwards):
        policy = clone(kind).fit(layout(X), layout(y))
        for method in ("predict", "act", judgement(kind)):
            found = ask(policy, method, layout(X[:2]), layout(y[:2]))
            np.testing.assert_array_equal(found, ask(expected, method, X[:2], y[:2]))


# -- what is not valid ----------------------------------------------------------------------------

JUNK = [-1, "junk", [], 2.5j, float("nan"), object()]  # valid for no argument of any estimator

TWO = {"window_size": 2, **SMALL}
ROWS = np.random.RandomState(0).standard_normal((12, 6))
ACTIONS = np.random.RandomState(1).standard_normal((12, 2))


def spoil(values, what):
    """Return a copy with one entry that is no number."""
    values = values.astype(type(what) if isinstance(what, complex) else object)
    values.flat[3] = what
    return values


def spoilt(values):
    """Draw an array-like of demonstrations that no estimator can use, whatever the other one is."""
    lacking = [np.nan, np.inf, -np.inf, "left", 1j]
    return st.one_of(
        st.sampled_from(lacking).map(lambda what: spoil(values, what)),
        st.sampled_from(
            [
                values[:0],
                values[:7],  # fewer than of the other
                values[0, 0],
                values[:, :, None, None],
                csr_array(values),
                [list(row) for row in values[:11]] + [[0.0]],
                {"states": values},
                "demonstrations",
            ]
        ),
    )


SPOILT_ROWS = st.one_of(
    spoilt(ROWS),
    st.sampled_from([None, ROWS[:, 0], ROWS[:, :5], ROWS.reshape(12, 3, 2), ROWS[:, :0]]),
)
SPOILT_ACTIONS = st.one_of(spoilt(ACTIONS), st.sampled_from([None, ACTIONS[:, :0]]))
OTHER_ACTIONS = [ACTIONS.reshape(12, 1, 2), ACTIONS[:, :1], ACTIONS[:, 0]]  # than those of a fit


def refused_without_training(act):
    """Call what must fail, with an error of ours or scikit-learn's and before any training."""
    training = patch("skvdd.training.fit.Fit.train", no_training)
    with training, pytest.raises((ValueError, TypeError)) as caught:
        act()
    raised_in = caught.traceback[-1].path
    assert "torch" not in raised_in.parts, f"a crash inside torch: {caught.value}"
    return str(caught.value)


@pytest.mark.parametrize("kind", make_estimators(**TWO), ids=label)
@few
@given(draw=st.data())
def test_an_argument_that_is_not_valid_is_named_before_training(kind, draw):
    name = draw.draw(st.sampled_from(sorted(kind.get_params(deep=False))))
    policy = clone(kind).set_params(**{name: draw.draw(st.sampled_from(JUNK))})
    assert name in refused_without_training(lambda: policy.fit(ROWS, ACTIONS))
    assert not hasattr(policy, "network_")


@pytest.mark.parametrize("kind", make_estimators(**TWO), ids=label)
@few
@given(draw=st.data())
def test_demonstrations_that_are_not_valid_are_refused_before_training(kind, draw):
    X, y = draw.draw(
        st.one_of(
            st.tuples(SPOILT_ROWS, st.just(ACTIONS)), st.tuples(st.just(ROWS), SPOILT_ACTIONS)
        )
    )
    policy = clone(kind)
    assert refused_without_training(lambda: policy.fit(X, y))
    assert not hasattr(policy, "network_")


@pytest.mark.parametrize("kind", make_estimators(**TWO), ids=label)
def test_what_is_missing_among_objects_is_refused_before_training(kind):
    y = spoil(ACTIONS, None)
    message = refused_without_training(lambda: clone(kind).fit(ROWS, y))
    assert message.startswith("Input y contains NaN")


@pytest.fixture(scope="module")
def fitted():
    return [
        clone(kind).set_params(max_iter=1).fit(ROWS, ACTIONS) for kind in make_estimators(**TWO)
    ]


@few
@given(draw=st.data())
def test_a_question_that_is_not_valid_is_refused(fitted, draw):
    policy = draw.draw(st.sampled_from(fitted))
    method = draw.draw(st.sampled_from(methods(policy)))
    X, y = ROWS, ACTIONS
    if method in {"score", "log_prob"} and draw.draw(st.booleans()):
        spoilt_actions = SPOILT_ACTIONS.filter(lambda value: value is not None)
        y = draw.draw(st.one_of(spoilt_actions, st.sampled_from(OTHER_ACTIONS)))
    else:
        X = draw.draw(SPOILT_ROWS.filter(lambda value: not is_part(value)))
    assert refused_without_training(lambda: ask(policy, method, X, y))


def is_part(rows):
    """Say whether these are fewer rows than there are actions: no fault but for a judgement."""
    return isinstance(rows, np.ndarray) and rows.shape == (7, 6)
