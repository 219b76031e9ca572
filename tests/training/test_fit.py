"""The life of a fit: its seeds, its noise, what callbacks see of it, and how it is interrupted."""

import copy

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from skvdd import GaussianMoEPolicy, load
from skvdd.encoders import Encoder
from tests.estimators import SMALL, label, make_estimators

LABELS = [label(estimator) for estimator in make_estimators()]
WITH_ENCODER = [i for i, name in enumerate(LABELS) if "gpt" not in name]


class Evaluator:
    """A callback that looks at the estimator as if fitting had stopped."""

    def __init__(self, look):
        self.look, self.seen = look, []

    def setup(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        if fitted_estimator is not None:
            self.seen.append(self.look(fitted_estimator))

    def teardown(self, estimator, context):
        pass


class Interrupts(Evaluator):
    """A callback that presses control-C at the third report."""

    def __init__(self):
        super().__init__(self.count)
        self.n = 0

    def count(self, fitted):
        self.n += 1
        if self.n == 3:
            raise KeyboardInterrupt


# -- what callbacks are given ---------------------------------------------------------------


@pytest.mark.parametrize("estimator", make_estimators(window_size=2, max_iter=3), ids=label)
def test_the_estimator_given_to_a_callback_predicts(estimator, two_ways):
    states, actions = two_ways
    evaluator = Evaluator(lambda fitted: fitted.predict(states))
    fitted = estimator.set_callbacks(evaluator).fit(states, actions)
    np.testing.assert_array_equal(evaluator.seen[-1], fitted.predict(states))


@pytest.mark.parametrize("estimator", make_estimators(window_size=2, max_iter=3), ids=label)
def test_the_estimator_given_to_a_callback_can_be_saved(estimator, two_ways, tmp_path):
    states, actions = two_ways

    def save(fitted):
        fitted.save(tmp_path / "checkpoint.safetensors")
        return load(tmp_path / "checkpoint.safetensors").predict(states)

    evaluator = Evaluator(save)
    fitted = estimator.set_callbacks(evaluator).fit(states, actions)
    np.testing.assert_array_equal(evaluator.seen[-1], fitted.predict(states))


def test_the_estimator_given_to_a_callback_is_that_of_this_moment(two_ways):
    """Number of iterations, history and columns are there, and the fitted one has no more."""
    seen = Evaluator(lambda fitted: fitted)
    policy = GaussianMoEPolicy(2, window_size=2, **{**SMALL, "max_iter": 3}).set_callbacks(seen)
    policy.fit(*two_ways)
    assert [fitted.n_iter_ for fitted in seen.seen] == [1, 2, 3, 3]
    assert [len(fitted.history_) for fitted in seen.seen] == [1, 2, 3, 3]
    learned = {name for name in vars(policy) if name.endswith("_")}
    for fitted in seen.seen:
        assert {name for name in vars(fitted) if name.endswith("_")} == learned
        assert fitted is not policy


# -- seeds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", range(len(LABELS)), ids=LABELS)
def test_a_seed_decides_every_weight(make, two_ways):
    def fit(seed):
        estimator = make_estimators(window_size=2, max_iter=5, random_state=seed)[make]
        return estimator.fit(*two_ways).network_.state_dict()

    first, again, other = fit(3), fit(3), fit(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("estimator", make_estimators(window_size=2, max_iter=3), ids=label)
def test_fit_and_queries_leave_the_global_generators_alone(estimator, two_ways, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("the generators of the GPUs are the user's")

    states, actions = two_ways
    torch_state, numpy_state = torch.get_rng_state(), copy.deepcopy(np.random.get_state())  # noqa: NPY002
    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    estimator.fit(states, actions)
    estimator.sample(states, random_state=0)
    estimator.act(states, random_state=0)
    estimator.predict(states)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_equal(np.random.get_state(), numpy_state)  # noqa: NPY002


# -- noise ----------------------------------------------------------------------------------

SEEN = []  # by encoders in training


class Recording(Encoder):
    """An encoder that writes down the rows that it is trained on."""

    def __init__(self, n_features=8):
        self.n_features = n_features

    def build(self, layout):
        return Recorder(layout.n_columns, self.n_features)


class Recorder(nn.Linear):
    def forward(self, rows):
        if self.training:
            SEEN.append(rows.detach().clone())
        return super().forward(rows)


@pytest.mark.parametrize("make", WITH_ENCODER, ids=[LABELS[i] for i in WITH_ENCODER])
def test_noise_on_the_states_leaves_goals_alone(make, two_ways):
    states, actions = two_ways
    goals = np.repeat([-1.0, 0.0, 2.0], 20)[:, None]
    X = np.hstack([states.reshape(60, 6), goals])
    SEEN.clear()
    estimator = make_estimators(
        window_size=2, goal_dim=1, state_noise=100.0, max_iter=3, encoder=Recording()
    )[make]
    policy = estimator.fit(X, actions)
    rows = torch.cat([rows for rows in SEEN if len(rows) == 32])  # minibatches
    standard = policy.network_.row_normalization.standardize(X)
    assert set(rows[:, 6].tolist()) == set(standard[:, 6].tolist())
    assert rows[:, :6].std().item() > 50.0


def test_noise_on_the_states_is_that_of_the_parameter(two_ways):
    """In units of the spread of each column, whatever that is."""
    X, y = two_ways[0].reshape(60, 6) * [1.0, 10.0, 1e3, 1.0, 10.0, 1e3], two_ways[1]
    SEEN.clear()
    settings = {**SMALL, "max_iter": 50, "batch_size": 60, "window_size": 2}
    policy = GaussianMoEPolicy(2, encoder=Recording(), state_noise=3.0, **settings).fit(X, y)
    seen = torch.cat([rows for rows in SEEN if len(rows) == 60])
    assert len(seen) == 50 * 60
    own = policy.network_.row_normalization.standardize(X).var(dim=0, correction=0)
    # Five standard errors of a variance of 3000 numbers.
    expected = (own + 9.0).tolist()
    assert seen.var(dim=0).tolist() == pytest.approx(expected, rel=5 * (2 / 3000) ** 0.5)


# -- interrupts -----------------------------------------------------------------------------


def test_an_interrupt_ends_a_search_with_all_its_fits(two_ways):
    X, y = two_ways[0].reshape(60, 6), two_ways[1]
    interrupts = Interrupts()
    policy = GaussianMoEPolicy(2, window_size=2, **SMALL).set_callbacks(interrupts)
    search = GridSearchCV(policy, {"n_experts": [1, 2]}, cv=2)
    with pytest.warns(ConvergenceWarning, match="interrupted after 3"):
        with pytest.raises(KeyboardInterrupt):
            search.fit(X, y)
    assert interrupts.n == 4  # the interrupted report, and the end of that run
    assert not hasattr(search, "best_estimator_")


def test_an_interrupt_leaves_a_fitted_pipeline(two_ways):
    X, y = two_ways[0].reshape(60, 6), two_ways[1]
    policy = GaussianMoEPolicy(2, window_size=2, **SMALL).set_callbacks(Interrupts())
    pipeline = make_pipeline(StandardScaler(), policy)
    with pytest.warns(ConvergenceWarning, match="interrupted after 3 of 20"):
        pipeline.fit(X, y)
    assert pipeline[-1].interrupted_
    assert pipeline[-1].n_iter_ == 3
    assert pipeline.predict(X).shape == y.shape


@pytest.mark.parametrize("make", range(len(LABELS)), ids=LABELS)
def test_an_interrupted_stage_is_the_last_one(make, two_ways):
    estimator = clone(make_estimators(window_size=2)[make]).set_callbacks(Interrupts())
    with pytest.warns(ConvergenceWarning, match="interrupted after 3"):
        estimator.fit(*two_ways)
    assert estimator.interrupted_
    assert len(estimator.history_) == 3
    assert {row["stage"] for row in estimator.history_} == {estimator.history_[0]["stage"]}
    assert np.isfinite(estimator.predict(two_ways[0])).all()
