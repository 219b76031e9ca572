"""The training loop, on toys whose every step is known; and what callbacks see of it."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from skvdd import load
from skvdd._sklearn import CallbackSupportMixin, with_callbacks
from skvdd.training import REPORTS, WARM_UP, Loss, Update, add_noise, train
from tests.estimators import label, make_estimators


class Slope(nn.Module):
    """Two numbers; their sum has the gradient (1, 1) everywhere."""

    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(2))


class Toy(CallbackSupportMixin, BaseEstimator):
    """The least that the loop needs of an estimator."""

    @with_callbacks
    def fit(self, network, updates, **settings):
        self._init_callback_context(max_subtasks=1).call_on_fit_task_begin(estimator=self)
        defaults = {
            "n_rows": 10,
            "stage": "toy",
            "max_iter": 20,
            "batch_size": 4,
            "weight_decay": 0.0,
            "ema_decay": 0.0,
            "generator": torch.Generator().manual_seed(0),
        }
        settings = {**defaults, **settings}
        n_rows = settings.pop("n_rows")
        training = train(self, network, updates, n_rows, **settings)
        self._callback_fit_ctx.call_on_fit_task_end(estimator=self)
        return training

    def predict(self):
        return self.network_.values.tolist()


def falling(network, learning_rate=0.1, steps=None, **options):
    """Walk down the sum of the values: AdamW steps by the learning rate, for ever the same way."""

    def loss(rows, progress):
        if steps is not None:
            steps.append(network.values.detach().clone())
        return Loss(network.values.sum())

    return Update("slope", loss, list(network.parameters()), learning_rate, **options)


def learning_rates(max_iter, peak=0.1):
    """The schedule, spelt out: twenty parts of a run, one to rise and nineteen to fall."""
    rise = max_iter / 20
    return [
        peak * (i + 1) / (rise + 1)
        if i < rise
        else peak * (1 + math.cos(math.pi * (i - rise) / (max_iter - rise))) / 2
        for i in range(max_iter)
    ]


# -- history --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_iter", "reported"),
    [
        (5, [1, 2, 3, 4, 5]),
        (100, [*range(1, 101)]),
        (101, [*range(2, 101, 2), 101]),
        (250, [*range(3, 250, 3), 250]),
    ],
)
def test_the_history_has_at_most_a_hundred_rows_and_ends_with_the_run(max_iter, reported):
    network = Slope()
    training = Toy().fit(network, [falling(network)], max_iter=max_iter)
    assert [row["iteration"] for row in training.history] == reported
    assert len(reported) <= REPORTS
    assert training.n_iter == max_iter
    assert training.interrupted is False


def test_a_row_holds_the_mean_of_each_loss_since_the_last_row():
    network, calls = Slope(), []

    def loss(rows, progress):
        calls.append(len(calls))
        return Loss(
            network.values.sum() * 0 + calls[-1], {"square": torch.tensor(calls[-1] ** 2.0)}
        )

    update = Update("count", loss, list(network.parameters()), 0.1)
    history = Toy().fit(network, [update], max_iter=300).history
    assert list(history[0]) == ["stage", "iteration", "learning_rate", "count", "square"]
    assert history[0]["stage"] == "toy"
    assert history[0]["count"] == 1.0  # of 0, 1 and 2
    assert history[0]["square"] == pytest.approx(5 / 3)
    assert history[-1]["count"] == 298.0
    assert all(type(value) in {str, int, float} for row in history for value in row.values())


def test_what_prepares_an_iteration_is_called_once_before_its_steps():
    network, calls = Slope(), []

    def loss(rows, progress):
        calls.append("step")
        return Loss(network.values.sum())

    update = Update(
        "slope", loss, list(network.parameters()), 0.1, 2, prepare=lambda: calls.append("prepare")
    )
    Toy().fit(network, [update], max_iter=3)
    assert calls == 3 * ["prepare", "step", "step"]


def test_the_learning_rate_rises_for_a_twentieth_of_the_run_and_falls_as_a_cosine():
    network = Slope()
    history = Toy().fit(network, [falling(network, 0.5)], max_iter=100).history
    rate = {row["iteration"]: row["learning_rate"] for row in history}
    assert WARM_UP == 0.05
    assert rate[1] == pytest.approx(0.5 * 2 / 6)
    assert rate[4] == pytest.approx(0.5 * 5 / 6)
    assert rate[5] == pytest.approx(0.5)  # the end of the warm-up
    assert rate[24] == pytest.approx(0.25 * (1 + math.cos(math.pi / 5)))
    assert rate[100] == pytest.approx(0.0, abs=1e-12)
    assert max(rate.values()) == rate[5]


@pytest.mark.parametrize("max_iter", [1, 7, 40, 100])
def test_every_step_is_as_long_as_the_schedule_says(max_iter):
    network, steps = Slope(), []
    Toy().fit(network, [falling(network, steps=steps)], max_iter=max_iter)
    walked = -torch.stack([*steps, network.values.detach()]).diff(dim=0)
    expected = torch.tensor(learning_rates(max_iter))[:, None].expand(-1, 2)
    torch.testing.assert_close(walked, expected, rtol=1e-3, atol=1e-5)


def test_weights_decay_in_proportion_to_the_learning_rate():
    """Loshchilov and Hutter (2019): theta <- theta - lr * decay * theta - lr * sign."""
    network, expected = Slope(), 0.0
    Toy().fit(network, [falling(network)], max_iter=30, weight_decay=0.5)
    for rate in learning_rates(30):
        expected -= rate * 0.5 * expected + rate
    assert network.values.tolist() == pytest.approx([expected] * 2, rel=1e-4)


# -- minibatches and updates ----------------------------------------------------------------


@pytest.mark.parametrize(("n_rows", "batch_size", "size"), [(10, 4, 4), (3, 8, 3), (1, 1, 1)])
def test_a_minibatch_is_of_rows_that_are_there(n_rows, batch_size, size):
    network, batches = Slope(), []

    def loss(rows, progress):
        batches.append(rows)
        return Loss(network.values.sum())

    update = Update("slope", loss, list(network.parameters()), 0.1)
    Toy().fit(network, [update], n_rows=n_rows, batch_size=batch_size, max_iter=200)
    assert {tuple(rows.shape) for rows in batches} == {(size,)}
    assert set(torch.cat(batches).tolist()) == set(range(n_rows))


def test_minibatches_depend_on_the_generator_alone():
    def draw(seed):
        network, batches = Slope(), []

        def loss(rows, progress):
            batches.append(rows)
            return Loss(network.values.sum())

        update = Update("slope", loss, list(network.parameters()), 0.1)
        Toy().fit(network, [update], generator=torch.Generator().manual_seed(seed))
        return torch.stack(batches)

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_updates_take_turns_each_as_often_as_it_repeats_with_a_rate_of_its_own():
    left, right, turns = Slope(), Slope(), []

    def update(name, network, rate, repeats):
        def loss(rows, progress):
            turns.append((name, progress))
            return Loss(network.values.sum())

        return Update(name, loss, list(network.parameters()), rate, repeats)

    training = Toy().fit(
        nn.ModuleList([left, right]),
        [update("left", left, 0.1, 2), update("right", right, 0.01, 1)],
        max_iter=4,
    )
    assert [name for name, _ in turns] == ["left", "left", "right"] * 4
    assert [progress for _, progress in turns[::3]] == [0.0, 0.25, 0.5, 0.75]
    assert set(training.history[0]) == {"stage", "iteration", "learning_rate", "left", "right"}
    total = sum(learning_rates(4))
    assert left.values.tolist() == pytest.approx([-2 * total] * 2, rel=1e-4)
    assert right.values.tolist() == pytest.approx([-total / 10] * 2, rel=1e-4)


def test_long_gradients_are_shortened_to_one():
    network, lengths = Slope(), []
    factors = iter([1e6, 0.1, *[1.0] * 18])

    def loss(rows, progress):
        if network.values.grad is not None:  # of the step before
            lengths.append(network.values.grad.norm().item())
        return Loss(next(factors) * network.values.sum())

    Toy().fit(network, [Update("slope", loss, list(network.parameters()), 0.1)])
    # The gradient of the sum is sqrt(2) long: only the second step is short enough to be left.
    assert lengths[0] == pytest.approx(1.0, rel=1e-4)
    assert lengths[1] == pytest.approx(0.1 * math.sqrt(2), rel=1e-4)
    assert lengths[2:] == pytest.approx([1.0] * 17, rel=1e-4)


# -- averaging ------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.999])
def test_the_average_follows_its_recursion(decay):
    network, steps = Slope(), []
    training = Toy().fit(network, [falling(network, steps=steps)], max_iter=60, ema_decay=decay)
    after = [*steps[1:], network.values.detach()]
    expected = after[0].double()  # the first step forgets the untrained weights
    for n, value in enumerate(after[1:], start=1):
        memory = min(decay, (1 + n) / (10 + n))
        expected = memory * expected + (1 - memory) * value.double()
    torch.testing.assert_close(
        training.network.values.detach().double(), expected, rtol=1e-5, atol=1e-6
    )


def test_without_averaging_the_network_itself_comes_back():
    network = Slope()
    assert Toy().fit(network, [falling(network)]).network is network


def test_a_run_without_iterations_changes_nothing():
    for ema_decay in (0.0, 0.9):
        network = Slope()
        training = Toy().fit(network, [falling(network)], max_iter=0, ema_decay=ema_decay)
        assert training.network.values.tolist() == [0.0, 0.0]
        assert (training.history, training.n_iter, training.interrupted) == ([], 0, False)


def test_the_network_trains_in_training_mode_and_comes_back_in_evaluation_mode():
    network, modes = Slope().eval(), []

    def loss(rows, progress):
        modes.append(network.training)
        return Loss(network.values.sum())

    training = Toy().fit(network, [Update("slope", loss, list(network.parameters()), 0.1)])
    assert set(modes) == {True}
    assert not training.network.training


# -- when it goes wrong ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")]
)
@pytest.mark.parametrize("term", ["slope", "entropy"])
def test_a_loss_that_is_not_finite_is_named_with_its_iteration(term, value, shown):
    network, calls = Slope(), []

    def loss(rows, progress):
        calls.append(len(calls))
        bad = value if calls[-1] == 13 else 0.0
        total, other = (bad, 0.0) if term == "slope" else (0.0, bad)
        return Loss(network.values.sum() * 0 + total, {"entropy": torch.tensor(other)})

    update = Update("slope", loss, list(network.parameters()), 0.1)
    message = (
        f"the loss term '{term}' is {shown} at iteration 13: training diverged. "
        "Lower learning_rate, or look for extreme values in the data."
    )
    with pytest.raises(FloatingPointError, match=f"^{re.escape(message)}$"):
        Toy().fit(network, [update], max_iter=300)
    assert len(calls) == 15  # the end of the report that holds it


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_an_interrupt_leaves_what_was_learnt_and_a_warning(ema_decay):
    network, calls = Slope(), []

    def loss(rows, progress):
        calls.append(len(calls))
        if calls[-1] == 7:
            raise KeyboardInterrupt
        return Loss(network.values.sum())

    update = Update("slope", loss, list(network.parameters()), 0.1)
    message = (
        "Toy: training was interrupted after 7 of 20 iterations; the policy is fitted with what "
        "it has learnt so far."
    )
    with pytest.warns(ConvergenceWarning, match=f"^{re.escape(message)}$"):
        training = Toy().fit(network, [update], ema_decay=ema_decay)
    assert training.interrupted is True
    assert training.n_iter == 7
    assert [row["iteration"] for row in training.history] == [1, 2, 3, 4, 5, 6, 7]
    assert network.values.tolist() == pytest.approx([-sum(learning_rates(20)[:7])] * 2, rel=1e-3)
    assert not training.network.training


def test_an_interrupt_before_the_first_step_leaves_the_network_as_it_was():
    network = Slope()

    def loss(rows, progress):
        raise KeyboardInterrupt

    with pytest.warns(ConvergenceWarning, match=r"after 0 of 20 iterations"):
        training = Toy().fit(
            network, [Update("slope", loss, list(network.parameters()), 0.1)], ema_decay=0.9
        )
    assert training.network.values.tolist() == [0.0, 0.0]
    assert (training.history, training.n_iter, training.interrupted) == ([], 0, True)


# -- callbacks ------------------------------------------------------------------------------


class Recorder:
    """A callback of scikit-learn's protocol that writes down what it is told."""

    def __init__(self, stop_at=None):
        self.events, self.stop_at = [], stop_at

    def setup(self, estimator, context):
        self.events.append(("setup", context.task_name))

    def on_fit_task_begin(self, estimator, context):
        self.events.append(("begin", context.task_name))

    def on_fit_task_end(self, estimator, context):
        self.events.append(("end", context.task_name))
        done = sum(event == ("end", "1 iterations") for event in self.events)
        return self.stop_at is not None and done >= self.stop_at

    def teardown(self, estimator, context):
        self.events.append(("teardown", context.task_name))


class Evaluator(Recorder):
    """One that also asks for the estimator as if fitting had stopped."""

    def __init__(self, look):
        super().__init__()
        self.look, self.seen = look, []

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        if fitted_estimator is not None:
            self.seen.append(self.look(fitted_estimator))


def test_a_callback_sees_the_tasks_in_their_order():
    network, recorder = Slope(), Recorder()
    Toy().set_callbacks(recorder).fit(network, [falling(network)], max_iter=2)
    assert recorder.events == [
        ("setup", "fit"),
        ("begin", "fit"),
        ("begin", "toy"),
        ("begin", "1 iterations"),
        ("end", "1 iterations"),
        ("begin", "1 iterations"),
        ("end", "1 iterations"),
        ("end", "toy"),
        ("end", "fit"),
        ("teardown", "fit"),
    ]


def test_a_callback_can_stop_the_run():
    network, recorder = Slope(), Recorder(stop_at=3)
    training = Toy().set_callbacks(recorder).fit(network, [falling(network)])
    assert training.n_iter == 3
    assert [row["iteration"] for row in training.history] == [1, 2, 3]
    assert training.interrupted is False
    assert recorder.events[-3:] == [("end", "toy"), ("end", "fit"), ("teardown", "fit")]


def test_a_callback_is_torn_down_when_training_diverges():
    network, recorder = Slope(), Recorder()
    update = Update(
        "slope", lambda rows, _: Loss(network.values.sum() * math.nan), [network.values], 0.1
    )
    with pytest.raises(FloatingPointError):
        Toy().set_callbacks(recorder).fit(network, [update])
    assert recorder.events[-1] == ("teardown", "fit")


def test_a_callback_is_given_the_estimator_as_if_fitting_had_stopped():
    network = Slope()
    evaluator = Evaluator(Toy.predict)
    Toy().set_callbacks(evaluator).fit(network, [falling(network)], max_iter=4)
    walked = np.cumsum(learning_rates(4))
    expected = [[-step] * 2 for step in [*walked, walked[-1]]]  # once more at the end of the run
    np.testing.assert_allclose(evaluator.seen, expected, rtol=1e-3)


def test_a_snapshot_does_not_move_with_the_training_that_goes_on():
    network = Slope()
    evaluator = Evaluator(lambda fitted: (fitted, fitted.predict()))
    Toy().set_callbacks(evaluator).fit(network, [falling(network)], max_iter=4, ema_decay=0.5)
    for fitted, then in evaluator.seen:
        assert fitted.predict() == then
        assert not fitted.network_.training


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


# -- seeds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", range(len(make_estimators())), ids=map(label, make_estimators()))
def test_a_seed_decides_every_weight(make, two_ways):
    def fit(seed):
        estimator = make_estimators(window_size=2, max_iter=5, random_state=seed)[make]
        return estimator.fit(*two_ways).network_.state_dict()

    first, again, other = fit(3), fit(3), fit(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("estimator", make_estimators(window_size=2, max_iter=3), ids=label)
def test_fit_and_queries_leave_the_global_generators_alone(estimator, two_ways):
    states, actions = two_ways
    torch_state, numpy_state = torch.get_rng_state(), copy.deepcopy(np.random.get_state())  # noqa: NPY002
    estimator.fit(states, actions)
    estimator.sample(states, random_state=0)
    estimator.act(states, random_state=0)
    estimator.predict(states)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_equal(np.random.get_state(), numpy_state)  # noqa: NPY002


def test_noise_on_the_states_has_the_asked_width():
    states = torch.zeros(20_000, 1, 2)
    noised = add_noise(states, 0.3, torch.Generator().manual_seed(0))
    assert noised.shape == states.shape
    # Five standard errors of 40 000 numbers.
    assert noised.std().item() == pytest.approx(0.3, rel=5 / math.sqrt(80_000))
    assert noised.mean().item() == pytest.approx(0.0, abs=5 * 0.3 / math.sqrt(40_000))


def test_no_noise_returns_the_states_and_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    before, states = generator.get_state(), torch.ones(3, 1, 2)
    assert add_noise(states, 0.0, generator) is states
    assert torch.equal(generator.get_state(), before)
