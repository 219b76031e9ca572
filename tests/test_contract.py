"""The laws of the contract, each one test over the list of estimators."""

import copy
import re
from functools import partial

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.estimator_checks import (
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
    parametrize_with_checks,
)
from torch.nn.modules.module import register_module_forward_pre_hook

import skvdd
from skvdd.base import BasePolicy, DensityPolicy
from skvdd.datasets import Episode
from skvdd.diffusion.base import BaseDiffusionPolicy
from skvdd.distillation.generator import BaseGeneratorDistiller
from skvdd.encoders import Encoder
from skvdd.mixture.base import BaseMixturePolicy
from tests.estimators import ask, judgement, label, make_estimators, methods, type_name

every_estimator = pytest.mark.parametrize("estimator", make_estimators(), ids=label)
every_windowed = pytest.mark.parametrize(
    "estimator", make_estimators(window_size=2, max_iter=4), ids=label
)
# Where something has to be learned.
every_trained = pytest.mark.parametrize("estimator", make_estimators(window_size=2), ids=label)
every_density = pytest.mark.parametrize(
    "estimator", [e for e in make_estimators() if hasattr(e, "log_prob")], ids=label
)


def every_method(*without):
    """Run a test with every method that an estimator has, for every estimator."""
    return pytest.mark.parametrize(
        ("estimator", "method"),
        [
            pytest.param(estimator, method, id=f"{label(estimator)}-{method}")
            for estimator in make_estimators(window_size=2, max_iter=4)
            for method in methods(estimator)
            if method not in without
        ],
    )


FITTED = {}


def fitted(estimator, X, y):
    """Return a fitted policy, the same one at every call: no test may change it."""
    key = joblib.hash([type_name(estimator), repr(estimator.get_params()), X, y])
    if key not in FITTED:
        FITTED[key] = clone(estimator).fit(X, y)
    return FITTED[key]


# The noise process, the transformer and the curriculum are on no path that the checks take; their
# constructors are checked below.
CHECKED = {"DiffusionPolicy", "GaussianMoEPolicy", "VDDDistiller", "ConsistencyDistiller"}


@parametrize_with_checks([e for e in make_estimators(max_iter=2) if label(e) in CHECKED])
def test_scikit_learn_conformance(estimator, check):
    check(estimator)


@every_estimator
def test_constructors_do_nothing_but_assign(estimator):
    check_no_attributes_set_in_init(type_name(estimator), clone(estimator))
    check_parameters_default_constructible(type_name(estimator), clone(estimator))


# -- shapes ---------------------------------------------------------------------------------------


@every_windowed
def test_shapes_are_those_of_the_contract(estimator, two_ways):
    X, y = two_ways
    policy = clone(estimator)
    if hasattr(policy, "denoising_score"):  # a short way, so that `score` is quick
        policy.set_params(noise_min=0.3, noise_max=1.0)
    policy.fit(X, y)
    assert policy.n_features_in_ == 6
    assert policy.sample(X).shape == (60, 2)
    assert policy.sample(X, n_samples=3).shape == (60, 3, 2)
    assert policy.predict(X).shape == policy.act(X).shape == (60, 2)
    assert type(policy.score(X, y)) is float
    if hasattr(policy, "log_prob"):
        assert policy.log_prob(X, y).shape == (60,)
        assert policy.score(X, y) == pytest.approx(policy.log_prob(X, y).mean())


@every_windowed
def test_actions_of_one_dimension_come_back_as_they_were_given(estimator, two_ways):
    X, y = two_ways
    policy = fitted(estimator, X, y[:, 0])
    assert policy.sample(X).shape == policy.predict(X).shape == policy.act(X).shape == (60,)
    assert policy.sample(X, n_samples=3).shape == (60, 3)
    column = fitted(estimator, X, y[:, :1])
    np.testing.assert_array_equal(column.predict(X)[:, 0], policy.predict(X))
    expected = ask(column, judgement(policy), X, y[:, :1])
    np.testing.assert_array_equal(ask(policy, judgement(policy), X, y[:, 0]), expected)


@every_windowed
def test_a_window_and_its_flat_row_are_the_same_decision(estimator, two_ways):
    X, y = two_ways
    flat = X.reshape(60, 6)
    from_windows, from_rows = fitted(estimator, X, y), fitted(estimator, flat, y)
    X, flat, y = X[:16], flat[:16], y[:16]
    for method in methods(estimator):
        expected = ask(from_windows, method, X, y)
        np.testing.assert_array_equal(ask(from_rows, method, X, y), expected)
        np.testing.assert_array_equal(ask(from_windows, method, flat, y), expected)


# -- chunks ---------------------------------------------------------------------------------------


def chunks(X, y, length=3):
    """Return ``length`` actions for each row: its own, halved at each further step."""
    return X, np.stack([y / 2**step for step in range(length)], axis=1)


@every_windowed
def test_chunks_of_actions_come_back_as_chunks(estimator, two_ways, tmp_path):
    X, y = chunks(*two_ways)
    policy = fitted(estimator, X, y)
    assert policy.horizon_ == 3
    assert policy.action_shape_ == (3, 2)
    assert policy.sample(X).shape == policy.predict(X).shape == policy.act(X).shape == (60, 3, 2)
    assert policy.sample(X, n_samples=4).shape == (60, 4, 3, 2)
    if hasattr(policy, "log_prob"):
        assert ask(policy, "log_prob", X[:8], y[:8]).shape == (8,)
    if hasattr(policy, "denoise"):
        assert policy.denoise(X, y, 0.5).shape == policy.score_function(X, y, 0.5).shape == y.shape
    policy.save(tmp_path / "policy.safetensors")
    again = skvdd.load(tmp_path / "policy.safetensors")
    assert again.horizon_ == 3
    controller = policy.controller("torch", random_state=0)
    controller.reset()
    assert controller.act(X[0, 0]).shape == (3, 2)
    few = X[:8], y[:8]
    for method in methods(policy):
        np.testing.assert_array_equal(ask(again, method, *few), ask(policy, method, *few))


@every_windowed
def test_a_chunk_of_one_action_is_an_action(estimator, two_ways):
    X, y = two_ways
    single, chunked = fitted(estimator, X, y), fitted(estimator, X, y[:, None])
    assert chunked.horizon_ == single.horizon_ == 1
    for method in ("sample", "predict", "act"):
        expected = ask(single, method, X, y)
        np.testing.assert_array_equal(ask(chunked, method, X, y)[:, 0], expected)
    found = ask(chunked, judgement(single), X, y[:, None])
    np.testing.assert_array_equal(found, ask(single, judgement(single), X, y))


@every_density
def test_the_density_of_a_chunk_is_that_of_all_its_numbers(estimator, two_ways):
    X, y = chunks(two_ways[0][:, -1], two_ways[1])
    policy, scaled = fitted(estimator, X, y), fitted(estimator, X, 8 * y)
    X, y = X[:8], y[:8]
    # Each of six numbers is eight times as large: the density changes by the Jacobian alone.
    expected = ask(policy, "log_prob", X, y) - 6 * np.log(8)
    found = ask(scaled, "log_prob", X, 8 * y)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    if hasattr(policy, "experts"):
        density = sum(
            gate * multivariate_normal.pdf(y[0].ravel(), mean, covariance)
            for gate, mean, covariance in zip(
                policy.gating(X[:1])[0], *(part[0] for part in policy.experts(X[:1])), strict=True
            )
        )
        assert policy.log_prob(X[:1], y[:1])[0] == pytest.approx(np.log(density))


@every_windowed
@pytest.mark.parametrize("shape", [(60, 2, 3), (60, 3), (60, 1, 6), (60, 4, 2)])
def test_chunks_of_another_shape_are_refused(estimator, shape, two_ways):
    X, y = chunks(*two_ways)
    policy = fitted(estimator, X, y)
    name = type_name(estimator)
    message = f"y has shape {shape}, but {name} was fitted with actions of shape (n, 3, 2)."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ask(policy, judgement(policy), X, np.zeros(shape))


# -- randomness -----------------------------------------------------------------------------------


@every_method("score")  # which is one number for all rows
def test_a_row_is_the_same_alone_and_in_a_batch(estimator, method, two_ways):
    X, y = two_ways
    policy = fitted(estimator, X, y)
    together = ask(policy, method, X, y)
    np.testing.assert_array_equal(ask(policy, method, X[:1], y[:1]), together[:1])
    np.testing.assert_array_equal(ask(policy, method, X[:7], y[:7]), together[:7])


@every_windowed
@pytest.mark.parametrize("max_actions", [100, 8192])
def test_a_row_has_the_same_samples_alone_and_in_a_batch(
    estimator, max_actions, two_ways, monkeypatch
):
    monkeypatch.setattr("skvdd.base.queries.MAX_ACTIONS", max_actions)
    X, y = two_ways
    policy = fitted(estimator, X, y)
    for n_samples in (2, 5, 20, 33):
        together = policy.sample(X, n_samples, random_state=0)
        for n in (1, 3, 16):
            some = policy.sample(X[:n], n_samples, random_state=0)
            np.testing.assert_array_equal(some, together[:n])


@every_windowed
@pytest.mark.parametrize("method", ["sample", "act"])
def test_a_stream_for_each_row_makes_it_independent_of_its_place(estimator, method, two_ways):
    X, y = two_ways
    policy = fitted(estimator, X, y)

    def draw(rows):
        streams = [np.random.RandomState(row) for row in rows]
        return getattr(policy, method)(X[rows], random_state=streams)

    np.testing.assert_array_equal(draw([0, 1, 2, 3])[[3, 1]], draw([3, 1]))


@every_estimator
def test_a_sequence_of_streams_must_have_one_for_each_row(estimator):
    X, y = np.random.RandomState(0).standard_normal((2, 20, 2))
    policy = fitted(estimator, X, y)
    message = (
        "random_state, given as a sequence, must hold one RandomState for each row of X: got 1 "
        "for 20 rows."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        policy.sample(X, random_state=[np.random.RandomState(0)])


@every_windowed
def test_the_seed_decides_the_fit_and_nothing_else_does(estimator, two_ways):
    X, y = two_ways
    first = fitted(estimator, X, y).predict(X)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    np.testing.assert_array_equal(clone(estimator).fit(X, y).predict(X), first)
    other = clone(estimator).set_params(random_state=1).fit(X, y)
    assert np.abs(other.predict(X) - first).max() > 1e-6


@every_trained
def test_samples_vary_and_repeat_with_the_seed(estimator, two_ways):
    X, y = two_ways
    policy = fitted(estimator, X, y)
    a, b = (policy.sample(X, n_samples=2, random_state=7) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    # Not all of them: a hardly trained predictor of noise draws where the data end, clipped.
    assert np.mean(a[:, 0] != a[:, 1]) > 0.9


# -- costs ----------------------------------------------------------------------------------------


def vectors_per_call(policy, X, n_samples):
    """Return how many vectors each linear layer was given at once, for all samples of rows."""
    counts = []

    def count(module, inputs):
        if isinstance(module, torch.nn.Linear):
            counts.append(inputs[0].numel() // inputs[0].shape[-1])

    hook = register_module_forward_pre_hook(count)
    try:
        policy.sample(X, n_samples, random_state=0)
    finally:
        hook.remove()
    return counts


@every_windowed
def test_many_samples_of_one_row_cost_what_they_cost_for_many_rows(estimator, two_ways):
    X, y = two_ways
    policy = fitted(estimator, X, y)
    many_rows = sum(vectors_per_call(policy, X[:16], 64))
    # Contexts of the 16 rows that a lonely row is asked as, and rounding, are not a tenth of it.
    assert sum(vectors_per_call(policy, X[:1], 16 * 64)) <= 1.1 * many_rows


@every_windowed
def test_the_memory_of_a_query_does_not_grow_with_its_samples(estimator, two_ways, monkeypatch):
    monkeypatch.setattr("skvdd.base.queries.MAX_ACTIONS", 256)  # less than the many below
    X, y = two_ways
    policy = fitted(estimator, X, y)
    few = max(vectors_per_call(policy, X[:16], 16))
    for rows, n_samples in ((X[:1], 256), (X[:1], 2000), (X, 50), (X, 300)):
        # The rows themselves, filled up to 64, are evaluated at once.
        assert max(vectors_per_call(policy, rows, n_samples)) <= max(few, 64)


# -- units ----------------------------------------------------------------------------------------


@every_windowed
def test_units_change_the_density_by_their_jacobian_alone(estimator, two_ways):
    X, y = two_ways
    policy = fitted(estimator, X, y)
    # Powers of two scale floating point exactly, so training takes the very same course.
    scaled = fitted(estimator, 4 * X, 8 * y)
    np.testing.assert_allclose(scaled.predict(4 * X), 8 * policy.predict(X), rtol=1e-12)
    if hasattr(policy, "log_prob"):
        expected = ask(policy, "log_prob", X, y) - 2 * np.log(8)
        np.testing.assert_allclose(ask(scaled, "log_prob", 4 * X, 8 * y), expected, rtol=1e-9)
    else:  # the energy score is one of standardized actions
        assert scaled.score(4 * X, 8 * y) == pytest.approx(policy.score(X, y), rel=1e-9)


@every_density
def test_the_density_of_one_dimensional_actions_integrates_to_one(estimator, two_ways):
    X, y = two_ways
    # A predictor of noise begins with a density as wide as the noise, and needs longer to be one
    # that the density at noise_max can be read off.
    of_noise = estimator.get_params().get("sde") == "vp"
    policy = clone(estimator).set_params(max_iter=400 if of_noise else 60)
    n_points = 1201
    if hasattr(policy, "denoising_score"):  # wide enough for fewer points, each of which is slow
        policy.set_params(noise_min=0.1)
        n_points = 401
    policy.fit(X[:, -1], y[:, 0])
    grid = np.linspace(-12, 12, n_points)
    rows = np.repeat(X[:2, -1], len(grid), axis=0)
    density = np.exp(policy.log_prob(rows, np.tile(grid, 2))).reshape(2, -1)
    np.testing.assert_allclose(
        np.trapezoid(density, grid, axis=1), 1.0, atol=0.02 if of_noise else 5e-3
    )


@every_estimator
def test_constant_columns_and_far_offsets_do_no_harm(estimator):
    rng = np.random.RandomState(0)
    X, y = rng.standard_normal((2, 40, 2))
    X[:, 1] = 5.0
    policy = fitted(estimator, 1e6 + X, 1e6 + y)
    assert np.isfinite(ask(policy, judgement(policy), 1e6 + X, 1e6 + y)).all()
    assert np.abs(policy.predict(1e6 + X) - 1e6).max() < 100


@every_estimator
def test_a_single_demonstration_is_enough_to_fit(estimator):
    policy = fitted(estimator, np.zeros((2, 3)), np.zeros((2, 1)))
    assert np.isfinite(policy.predict(np.ones((1, 3)))).all()


# -- what is given stays as it is ------------------------------------------------------------------


@every_windowed
def test_what_is_given_is_not_modified(estimator, two_ways):
    X, y = (np.array(values) for values in two_ways)
    X.flags.writeable = y.flags.writeable = False
    before = X.copy(), y.copy()
    torch.set_warn_always(True)  # of arrays that it could write to, and must not
    try:
        policy = clone(estimator).fit(X, y)
        for method in methods(policy):
            ask(policy, method, X, y)
    finally:
        torch.set_warn_always(False)
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(y, before[1])


@every_windowed
def test_fit_leaves_constructor_arguments_untouched(estimator, two_ways):
    policy = clone(estimator)
    before = {name: repr(value) for name, value in policy.get_params().items()}
    policy.fit(*two_ways)
    assert {name: repr(value) for name, value in policy.get_params().items()} == before


@every_windowed
def test_data_frames_lists_and_other_layouts_are_welcome(estimator, two_ways):
    X, y = two_ways
    flat = X.reshape(60, 6)
    names = [f"s{i}" for i in range(6)]
    expected = fitted(estimator, flat, y).predict(flat)
    frame = pd.DataFrame(flat, columns=names)
    policy = fitted(estimator, frame, pd.DataFrame(y))
    assert list(policy.feature_names_in_) == names
    np.testing.assert_array_equal(policy.predict(frame), expected)
    np.testing.assert_array_equal(
        fitted(estimator, flat.tolist(), y.tolist()).predict(flat), expected
    )
    np.testing.assert_array_equal(
        fitted(estimator, np.asfortranarray(X), np.asfortranarray(y)).predict(flat), expected
    )


@every_windowed
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64])
def test_tensors_of_any_type_are_welcome(estimator, dtype, two_ways):
    X, y = (torch.from_numpy(4 * values).to(dtype) for values in two_ways)
    numbers = [values.to(torch.float64).numpy() for values in (X, y)]
    expected = fitted(estimator, *numbers)
    given = [X.requires_grad_() if X.is_floating_point() else X, y]
    policy = clone(estimator).fit(*given)
    for method in methods(policy):
        np.testing.assert_array_equal(ask(policy, method, *given), ask(expected, method, *numbers))


@every_windowed
def test_masked_entries_are_refused_and_masks_without_any_are_not(estimator, two_ways):
    X, y = two_ways
    nothing_masked = [np.ma.masked_array(values) for values in two_ways]
    policy = clone(estimator).fit(*nothing_masked)
    expected = fitted(estimator, X, y).predict(X)
    np.testing.assert_array_equal(policy.predict(nothing_masked[0]), expected)
    padded = [np.ma.masked_greater(values, 0.5) for values in two_ways]
    message = r" has \d+ masked entries, which nothing can be learned from: leave out their rows"
    for call in (clone(estimator).fit, policy.partial_fit, getattr(policy, judgement(policy))):
        with pytest.raises(ValueError, match=f"^X{message}"):
            call(padded[0], y)
        with pytest.raises(ValueError, match=f"^y{message}"):
            call(X, padded[1])
    with pytest.raises(ValueError, match=f"^X{message}"):
        policy.predict(padded[0])


@pytest.mark.parametrize("name", ["states", "actions", "goals"])
def test_an_episode_with_masked_entries_is_refused(name):
    given = {"states": np.ones((5, 2)), "actions": np.ones((5, 1)), "goals": np.ones((5, 1))}
    given[name] = np.ma.masked_array(given[name], mask=given[name] > 0)
    with pytest.raises(ValueError, match=rf"^{name} of an episode have \d+ masked entries"):
        Episode(**given)


def as_dict(values):
    return {"position": values[..., 0], "speed": values[..., 1:]}


def as_data_set(values):
    return torch.utils.data.TensorDataset(torch.from_numpy(values))


@every_windowed
@pytest.mark.parametrize("wrap", [as_dict, as_data_set])
def test_mappings_and_data_sets_are_refused_with_the_way_out(estimator, wrap, two_ways):
    X, y = two_ways
    message = f" must be an array, got a {type(wrap(X)).__name__}. Give its arrays one by one"
    policy = fitted(estimator, X, y)
    for call in (clone(estimator).fit, getattr(policy, judgement(policy))):
        for name, given in (("X", (wrap(X), y)), ("y", (X, wrap(y)))):
            with pytest.raises(TypeError, match=f"^{name}{message}"):
                call(*given)
    with pytest.raises(TypeError, match=f"^X{message}"):
        policy.predict(wrap(X))


# -- training -------------------------------------------------------------------------------------


@every_trained
def test_the_history_is_a_list_of_plain_rows(estimator, two_ways):
    policy = fitted(estimator, *two_ways)
    assert policy.n_iter_ == 20
    assert policy.interrupted_ is False
    for row in policy.history_:
        assert set(map(type, row.values())) <= {str, int, float}
        assert {"stage", "iteration", "learning_rate"} < set(row)
    assert policy.history_[-1]["iteration"] == 20


@every_trained
def test_a_warm_start_continues_from_what_was_learned(estimator, two_ways):
    X, y = two_ways
    policy = clone(estimator).set_params(warm_start=True).fit(X, y)
    before = policy.predict(X)
    policy.set_params(max_iter=0).fit(X, y)
    np.testing.assert_array_equal(policy.predict(X), before)
    policy.set_params(max_iter=20).fit(X, y)
    assert np.abs(policy.predict(X) - before).max() > 0
    policy.set_params(max_iter=0, warm_start=False).fit(X, y)
    assert np.abs(policy.predict(X) - before).max() > 1e-3


@every_windowed
def test_a_warm_start_refuses_data_of_another_shape(estimator, two_ways):
    X, y = two_ways
    policy = clone(estimator).set_params(warm_start=True).fit(X, y)
    message = (
        "warm_start=True continues from a fit with states of 3 and actions of 2 dimensions, got 2 "
        "and 2. Set warm_start=False."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        policy.fit(X[:, :, :2], y)


@every_trained
def test_noise_on_the_states_and_averaging_change_what_is_learned(estimator, two_ways):
    X, y = two_ways
    plain = clone(estimator).set_params(state_noise=0.0, ema_decay=0.0).fit(X, y).predict(X)
    noised = clone(estimator).set_params(state_noise=0.5, ema_decay=0.0).fit(X, y).predict(X)
    averaged = clone(estimator).set_params(state_noise=0.0, ema_decay=0.99).fit(X, y).predict(X)
    assert np.abs(noised - plain).max() > 1e-4
    assert np.abs(averaged - plain).max() > 1e-4


class Stopper:
    """A callback that ends training at the first report, by request or by interruption."""

    def __init__(self, interrupt):
        self.interrupt = interrupt

    def setup(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        if self.interrupt and context.max_subtasks == 0:
            raise KeyboardInterrupt
        return True

    def teardown(self, estimator, context):
        pass


@every_windowed
def test_an_interrupt_leaves_a_fitted_policy_and_a_warning(estimator, two_ways):
    X, y = two_ways
    policy = clone(estimator)
    policy.set_callbacks(Stopper(interrupt=True))
    with pytest.warns(ConvergenceWarning, match="training was interrupted after 1 of"):
        policy.fit(X, y)
    assert policy.interrupted_
    assert np.isfinite(ask(policy, judgement(policy), X, y)).all()


@every_windowed
def test_a_callback_can_end_training(estimator, two_ways):
    policy = clone(estimator)
    policy.set_callbacks(Stopper(interrupt=False))
    policy.fit(*two_ways)
    assert policy.n_iter_ == 1
    assert not policy.interrupted_


@every_windowed
def test_a_loss_that_is_not_finite_ends_training_with_its_name(estimator, two_ways):
    X, y = two_ways
    policy = clone(estimator).set_params(learning_rate=1e30, ema_decay=0.0)
    with pytest.raises(FloatingPointError, match=r"^the loss term '\w+' is .* at iteration \d+: "):
        policy.fit(X, y)


# -- errors ---------------------------------------------------------------------------------------


@every_method()
def test_an_unfitted_policy_says_so(estimator, method, two_ways):
    X, y = two_ways
    with pytest.raises(NotFittedError, match=f"This {type_name(estimator)} instance is not fitted"):
        ask(clone(estimator), method, X, y)


@every_windowed
def test_windows_of_another_length_are_refused(estimator, two_ways):
    X, y = two_ways
    longer = np.concatenate([X, X], axis=1)
    message = "X has windows of 4 states (shape (60, 4, 3)), but window_size=2."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        clone(estimator).fit(longer, y)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fitted(estimator, X, y).predict(longer)


@every_windowed
def test_rows_that_hold_no_whole_window_are_refused(estimator):
    message = (
        "X has 5 columns, which is no multiple of window_size=2: a flat row holds window_size "
        "states, oldest first. Give X as (n, window_size, d), or set window_size=1."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        clone(estimator).fit(np.ones((4, 5)), np.ones((4, 2)))


@every_windowed
def test_other_features_and_actions_than_in_fit_are_refused(estimator, two_ways):
    X, y = two_ways
    policy = fitted(estimator, X, y)
    with pytest.raises(ValueError, match=r"^X has 8 features, but .* is expecting 6 features"):
        policy.predict(np.ones((3, 8)))
    message = f"y has 3 columns, but {type_name(estimator)} was fitted with 2 action dimensions."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ask(policy, judgement(policy), X, np.ones((60, 3)))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        ask(policy, judgement(policy), X, y[:5])


@every_windowed
@pytest.mark.parametrize("shape", [(60, 1, 1, 2), (60, 2, 0)])
def test_actions_that_are_neither_actions_nor_chunks_are_refused(estimator, shape, two_ways):
    message = f"y must have shape (n,), (n, d_a) or (n, H, d_a), got {shape}: one row is one"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        clone(estimator).fit(two_ways[0], np.zeros(shape))


@every_windowed
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(estimator, bad, two_ways):
    X, y = (values.copy() for values in two_ways)
    X[3, 1, 2] = bad
    with pytest.raises(ValueError, match="Input X contains"):
        clone(estimator).fit(X, y)
    policy = fitted(estimator, *two_ways)
    with pytest.raises(ValueError, match="Input X contains"):
        policy.predict(X)
    y[0, 0] = bad
    with pytest.raises(ValueError, match=r"Input y contains|Input contains"):
        ask(policy, judgement(policy), two_ways[0], y)


@every_windowed
def test_a_device_that_is_not_there_is_refused_before_training(estimator, two_ways):
    message = (
        "device='nowhere' cannot be used on this machine. Use 'auto', 'cpu', or a device that "
        "torch finds and that has float64."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        clone(estimator).set_params(device="nowhere").fit(*two_ways)


@every_windowed
def test_a_width_that_heads_do_not_divide_is_refused(estimator, two_ways):
    gpt = estimator.get_params().get("architecture") == "gpt"
    network = "architecture='gpt'" if gpt else "the transformer"
    message = (
        f"hidden_size must be a multiple of n_heads for {network}, got hidden_size=10 and "
        "n_heads=4."
    )
    policy = clone(estimator).set_params(hidden_size=10)
    if not gpt:
        policy.set_params(encoder="transformer")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        policy.fit(*two_ways)


@every_windowed
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("window_size", 0),
        ("hidden_size", 2.5),
        ("max_iter", -1),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("weight_decay", -1.0),
        ("ema_decay", 1.0),
        ("state_noise", -0.1),
        ("encoder", "cnn"),
        ("random_state", "seed"),
        ("warm_start", "yes"),
    ],
)
def test_invalid_parameters_are_named(estimator, name, value, two_ways):
    with pytest.raises(ValueError, match=f"^The '{name}' parameter of {type_name(estimator)} must"):
        clone(estimator).set_params(**{name: value}).fit(*two_ways)


@every_windowed
@pytest.mark.parametrize("n_samples", [0, -1, 1.5])
def test_an_impossible_number_of_samples_is_refused(estimator, n_samples, two_ways):
    X, y = two_ways
    message = f"n_samples must be None or an integer of at least 1, got {n_samples!r}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fitted(estimator, X, y).sample(X, n_samples=n_samples)


@every_windowed
def test_a_transformer_encodes_windows_too(estimator, two_ways):
    X, y = two_ways
    policy = clone(estimator).set_params(encoder="transformer").fit(X, y)
    last_only = copy.deepcopy(X)
    last_only[:, 0] = 0
    assert np.abs(policy.predict(last_only) - policy.predict(X)).max() > 0


# -- numbers at the end of their range -------------------------------------------------------------

LARGEST = [
    np.finfo(np.float64).max,
    np.finfo(np.float64).min,
    float(np.finfo(np.float32).max),
    1e200,
    1e-320,  # which float64 has, and float32 has not
]


def is_finite_or_refused(name, call):
    """Say whether finite numbers come, or a ValueError about an argument."""
    try:
        return np.isfinite(call()).all()
    except ValueError as error:
        return re.match(f"{name} has (the value|values)", str(error)) is not None


@every_windowed
@pytest.mark.parametrize("value", LARGEST)
def test_the_largest_numbers_give_a_finite_answer_or_are_named(estimator, value, two_ways):
    policy = fitted(estimator, *two_ways)
    two_ways = [values[:16] for values in two_ways]
    X, y = (values.copy() for values in two_ways)
    X[3, 1, 2] = y[5, 1] = value
    for method in methods(policy):
        asked = partial(ask, policy, method)
        assert is_finite_or_refused("X", partial(asked, X, two_ways[1])), method
    judged = partial(ask, policy, judgement(policy))
    assert is_finite_or_refused("y", partial(judged, two_ways[0], y))
    new = clone(estimator)
    for name, given in (("X", (X, two_ways[1])), ("y", (two_ways[0], y))):
        assert is_finite_or_refused(name, lambda given=given: new.fit(*given).predict(given[0]))


@every_windowed
def test_a_generator_of_numpy_is_refused_with_the_way_out(estimator, two_ways):
    X, y = two_ways
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"^The 'random_state' parameter of \w+ must be"):
        clone(estimator).set_params(random_state=generator).fit(X, y)
    policy = fitted(estimator, X, y)
    message = r"^random_state must be an integer, .*: random_state=int\(generator\.integers\("
    for method in ("sample", "act"):
        with pytest.raises(ValueError, match=message):
            getattr(policy, method)(X, random_state=generator)


# -- classes --------------------------------------------------------------------------------------

ABSTRACT = [
    BasePolicy,
    DensityPolicy,
    BaseMixturePolicy,
    BaseDiffusionPolicy,
    BaseGeneratorDistiller,
    Encoder,
]


@pytest.mark.parametrize("base", ABSTRACT)
def test_a_base_class_makes_no_object(base):
    with pytest.raises(TypeError, match="abstract"):
        base()


@pytest.mark.parametrize("base", ABSTRACT)
def test_a_subclass_that_forgets_a_method_is_told_which(base):
    (first, *others) = sorted(base.__abstractmethods__)
    made = {name: lambda self, *args: None for name in others}
    with pytest.raises(TypeError, match=f"abstract method '?{first}'?"):
        type("Forgetful", (base,), made)()
    complete = type("Complete", (base,), {**made, first: lambda self, *args: None})
    assert isinstance(complete(), base)
