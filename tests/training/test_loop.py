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

from skvdd._sklearn import CallbackSupportMixin, with_callbacks
from skvdd.nn.layout import RowLayout
from skvdd.training import Fit, Loss, Stage, Update
from skvdd.training.fit import Data
from skvdd.training.loop import REPORTS, WARM_UP, Run, Settings

CPU = torch.device("cpu")
SETTINGS = {"learning_rate": 0.1, "weight_decay": 0.0, "ema_decay": 0.0, "batch_size": 4}


class Slope(nn.Module):
    """Two numbers; their sum has the gradient (1, 1) everywhere."""

    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(2))


class Toy(CallbackSupportMixin, BaseEstimator):
    """The least that the loop needs of an estimator."""

    @with_callbacks
    def fit(self, network, updates, *, n_rows=10, max_iter=20, counts=True, seed=0, **settings):
        context = self._init_callback_context(max_subtasks=1)
        context.call_on_fit_task_begin(estimator=self)
        rows = np.zeros((n_rows, 1))
        fit = Fit(
            estimator=self,
            data=Data(rows, rows, None, RowLayout(1), ()),
            settings=Settings(**{**SETTINGS, **settings}),
            device=CPU,
            rng=np.random.RandomState(seed),
            context=context,
            fitted=lambda fit, network, history, n_iter: {"network_": network},
        )
        fit.network = network
        fit.train(Stage("toy", updates, max_iter, counts))
        context.call_on_fit_task_end(estimator=self)
        return fit

    def predict(self):
        return self.network_.values.tolist()


def falling(network, steps=None, **options):
    """Walk down the sum of the values: AdamW steps by the learning rate, for ever the same way."""

    def loss(rows, progress):
        if steps is not None:
            steps.append(network.values.detach().clone())
        return Loss(network.values.sum())

    return Update("slope", loss, list(network.parameters()), **options)


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
    fit = Toy().fit(network, [falling(network)], max_iter=max_iter)
    assert [row["iteration"] for row in fit.history] == reported
    assert len(reported) <= REPORTS
    assert fit.n_iter == max_iter
    assert fit.interrupted is False


def test_iterations_of_a_start_do_not_count():
    network = Slope()
    fit = Toy().fit(network, [falling(network)], counts=False)
    assert fit.n_iter == 0
    assert len(fit.history) == 20


def test_a_row_holds_the_mean_of_each_loss_since_the_last_row():
    network, calls = Slope(), []

    def loss(rows, progress):
        calls.append(len(calls))
        return Loss(
            network.values.sum() * 0 + calls[-1], {"square": torch.tensor(calls[-1] ** 2.0)}
        )

    update = Update("count", loss, list(network.parameters()))
    history = Toy().fit(network, [update], max_iter=300).history
    assert list(history[0]) == ["stage", "iteration", "learning_rate", "count", "square"]
    assert history[0]["stage"] == "toy"
    assert history[0]["count"] == 1.0  # of 0, 1 and 2
    assert history[0]["square"] == pytest.approx(5 / 3)
    assert history[-1]["count"] == 298.0
    assert all(type(value) in {str, int, float} for row in history for value in row.values())


def test_what_prepares_an_iteration_is_called_once_before_its_steps_with_its_number():
    network, calls = Slope(), []

    def loss(rows, progress):
        calls.append("step")
        return Loss(network.values.sum())

    update = Update("slope", loss, list(network.parameters()), 2, prepare=calls.append)
    Toy().fit(network, [update], max_iter=3)
    assert calls == [0, "step", "step", 1, "step", "step", 2, "step", "step"]


@pytest.mark.parametrize("max_iter", [1, 2, 20, 100, 250])
def test_a_row_has_the_learning_rate_of_the_last_iteration_done(max_iter):
    network = Slope()
    history = Toy().fit(network, [falling(network)], max_iter=max_iter).history
    rates = learning_rates(max_iter)
    for row in history:
        assert row["learning_rate"] == pytest.approx(rates[row["iteration"] - 1], rel=1e-12)
        assert row["learning_rate"] > 0.0


def test_the_learning_rate_rises_for_a_twentieth_of_the_run_and_falls_as_a_cosine():
    network = Slope()
    history = Toy().fit(network, [falling(network)], max_iter=100, learning_rate=0.5).history
    rate = {row["iteration"] - 1: row["learning_rate"] for row in history}  # of the iteration done
    assert WARM_UP == 0.05
    assert rate[0] == pytest.approx(0.5 * 1 / 6)
    assert rate[4] == pytest.approx(0.5 * 5 / 6)
    assert rate[5] == pytest.approx(0.5)  # the end of the warm-up
    assert rate[24] == pytest.approx(0.25 * (1 + math.cos(math.pi / 5)))
    assert rate[99] == pytest.approx(0.25 * (1 + math.cos(math.pi * 94 / 95)))
    assert max(rate.values()) == rate[5]


@pytest.mark.parametrize("max_iter", [1, 7, 40, 100])
def test_every_step_is_as_long_as_the_schedule_says(max_iter):
    network, steps = Slope(), []
    Toy().fit(network, [falling(network, steps)], max_iter=max_iter)
    walked = -torch.stack([*steps, network.values.detach()]).diff(dim=0)
    expected = torch.tensor(learning_rates(max_iter))[:, None].expand(-1, 2)
    # AdamW adds 1e-8 to the size of a gradient; positions are float32 numbers of up to five.
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

    update = Update("slope", loss, list(network.parameters()))
    Toy().fit(network, [update], n_rows=n_rows, batch_size=batch_size, max_iter=200)
    assert {tuple(rows.shape) for rows in batches} == {(size,)}
    assert set(torch.cat(batches).tolist()) == set(range(n_rows))


def test_minibatches_depend_on_the_seed_alone():
    def draw(seed):
        network, batches = Slope(), []

        def loss(rows, progress):
            batches.append(rows)
            return Loss(network.values.sum())

        Toy().fit(network, [Update("slope", loss, list(network.parameters()))], seed=seed)
        return torch.stack(batches)

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_updates_take_turns_each_as_often_as_it_repeats():
    left, right, turns = Slope(), Slope(), []

    def update(name, network, repeats):
        def loss(rows, progress):
            turns.append((name, progress))
            return Loss(network.values.sum())

        return Update(name, loss, list(network.parameters()), repeats)

    fit = Toy().fit(
        nn.ModuleList([left, right]),
        [update("left", left, 2), update("right", right, 1)],
        max_iter=4,
    )
    assert [name for name, _ in turns] == ["left", "left", "right"] * 4
    assert [progress for _, progress in turns[::3]] == [0.0, 0.25, 0.5, 0.75]
    assert set(fit.history[0]) == {"stage", "iteration", "learning_rate", "left", "right"}
    total = sum(learning_rates(4))
    assert left.values.tolist() == pytest.approx([-2 * total] * 2, rel=1e-4)
    assert right.values.tolist() == pytest.approx([-total] * 2, rel=1e-4)


def test_an_update_changes_no_parameters_but_its_own():
    network = nn.ModuleList([Slope(), Slope()])

    def loss(rows, progress):
        return Loss(network[0].values.sum() + network[1].values.sum())

    Toy().fit(network, [Update("slope", loss, [network[0].values])], max_iter=3)
    assert network[0].values.detach().max() < 0.0
    assert network[1].values.tolist() == [0.0, 0.0]


def test_long_gradients_are_clipped_to_one():
    network, lengths = Slope(), []
    factors = iter([1e6, 0.1, *[1.0] * 18])

    def loss(rows, progress):
        lengths.append(None)
        return Loss(next(factors) * network.values.sum())

    update = Update("slope", loss, list(network.parameters()))
    step = torch.optim.AdamW.step

    def spy(optimizer, *arguments, **options):
        lengths[-1] = network.values.grad.norm().item()
        return step(optimizer, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spy)
        Toy().fit(network, [update])
    # The gradient of the sum is sqrt(2) long: only the second step is short enough to be left.
    assert lengths[0] == pytest.approx(1.0, rel=1e-4)
    assert lengths[1] == pytest.approx(0.1 * math.sqrt(2), rel=1e-4)
    assert lengths[2:] == pytest.approx([1.0] * 18, rel=1e-4)


# -- averaging ------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.999])
def test_the_average_follows_its_recursion(decay):
    network, steps = Slope(), []
    Toy().fit(network, [falling(network, steps)], max_iter=60, ema_decay=decay)
    walked = -torch.tensor(learning_rates(60)).cumsum(0)  # after each step
    expected = walked[0].double()  # the first step forgets the untrained weights
    for n, value in enumerate(walked[1:], start=1):
        memory = min(decay, (1 + n) / (10 + n))
        expected = memory * expected + (1 - memory) * value.double()
    assert network.values.tolist() == pytest.approx([expected.item()] * 2, rel=1e-4)


class Frozen(Slope):
    """One that has a frozen part too, and counts its steps in a buffer."""

    def __init__(self):
        super().__init__()
        self.fixed = nn.Parameter(torch.tensor([0.1, 0.7]), requires_grad=False)
        self.register_buffer("steps", torch.zeros(()))


def test_the_average_is_of_trained_parameters_alone_and_buffers_are_those_of_the_last_step():
    network, averaged = Frozen(), []
    lerp = torch._foreach_lerp_

    def loss(rows, progress):
        network.steps += 1
        return Loss(network.values.sum())

    def spy(averages, *arguments):
        averaged.append(len(averages))
        return lerp(averages, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "_foreach_lerp_", spy)
        Toy().fit(network, [Update("slope", loss, [network.values])], max_iter=9, ema_decay=0.9)
    assert averaged == [1] * 9
    assert network.steps.item() == 9.0
    assert torch.equal(network.fixed, torch.tensor([0.1, 0.7]))
    assert network.values.detach().min() > -sum(learning_rates(9))  # behind the last weights


def test_without_averaging_the_last_weights_stay():
    network = Slope()
    Toy().fit(network, [falling(network)], ema_decay=0.0)
    assert network.values.tolist() == pytest.approx([-sum(learning_rates(20))] * 2, rel=1e-4)


def test_a_run_without_iterations_changes_nothing():
    for ema_decay in (0.0, 0.9):
        network = Slope()
        fit = Toy().fit(network, [falling(network)], max_iter=0, ema_decay=ema_decay)
        assert network.values.tolist() == [0.0, 0.0]
        assert (fit.history, fit.n_iter, fit.interrupted) == ([], 0, False)


def test_the_network_trains_in_training_mode_and_comes_back_in_evaluation_mode():
    network, modes = Slope().eval(), []

    def loss(rows, progress):
        modes.append(network.training)
        return Loss(network.values.sum())

    Toy().fit(network, [Update("slope", loss, list(network.parameters()))])
    assert set(modes) == {True}
    assert not network.training


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

    update = Update("slope", loss, list(network.parameters()))
    message = (
        f"the loss term '{term}' is {shown} at iteration 13: training diverged. "
        "Lower learning_rate, or look for extreme values in the data."
    )
    with pytest.raises(FloatingPointError, match=f"^{re.escape(message)}$"):
        Toy().fit(network, [update], max_iter=300)
    assert len(calls) == 15  # the end of the report that holds it


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_an_interrupt_leaves_what_was_learned_and_a_warning(ema_decay):
    network, calls = Slope(), []

    def loss(rows, progress):
        calls.append(len(calls))
        if calls[-1] == 7:
            raise KeyboardInterrupt
        return Loss(network.values.sum())

    update = Update("slope", loss, list(network.parameters()))
    message = (
        "Toy: training was interrupted after 7 of 20 iterations; the policy is fitted with what "
        "it has learned so far."
    )
    with pytest.warns(ConvergenceWarning, match=f"^{re.escape(message)}$"):
        fit = Toy().fit(network, [update], ema_decay=ema_decay)
    assert fit.interrupted is True
    assert fit.n_iter == 7
    assert [row["iteration"] for row in fit.history] == [1, 2, 3, 4, 5, 6, 7]
    last = -sum(learning_rates(20)[:7])
    if ema_decay:
        assert last < network.values.detach().max() < 0.0
    else:
        assert network.values.tolist() == pytest.approx([last] * 2, rel=1e-3)
    assert not network.training


def test_an_interrupt_before_the_first_step_leaves_the_network_as_it_was():
    network = Slope()

    def loss(rows, progress):
        raise KeyboardInterrupt

    with pytest.warns(ConvergenceWarning, match=r"after 0 of 20 iterations"):
        fit = Toy().fit(network, [Update("slope", loss, list(network.parameters()))], ema_decay=0.9)
    assert network.values.tolist() == [0.0, 0.0]
    assert (fit.history, fit.n_iter, fit.interrupted) == ([], 0, True)


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
    fit = Toy().set_callbacks(recorder).fit(network, [falling(network)])
    assert fit.n_iter == 3
    assert [row["iteration"] for row in fit.history] == [1, 2, 3]
    assert fit.interrupted is False
    assert recorder.events[-3:] == [("end", "toy"), ("end", "fit"), ("teardown", "fit")]


def test_a_callback_is_torn_down_when_training_diverges():
    network, recorder = Slope(), Recorder()
    update = Update(
        "slope", lambda rows, _: Loss(network.values.sum() * math.nan), [network.values]
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


def test_a_snapshot_does_not_move_with_the_training_that_continues():
    network = Slope()
    evaluator = Evaluator(lambda fitted: (fitted, fitted.predict()))
    Toy().set_callbacks(evaluator).fit(network, [falling(network)], max_iter=4, ema_decay=0.5)
    for fitted, then in evaluator.seen:
        assert fitted.predict() == then
        assert not fitted.network_.training


# -- the state of a run ---------------------------------------------------------------------


def make_run(seed=0, generator=None):
    """Return a run whose loss remembers and whose steps depend on the minibatch."""
    torch.manual_seed(seed)
    network, memory = Frozen(), {"calls": torch.zeros(())}

    def loss(rows, progress):
        memory["calls"] += 1
        network.steps += 1
        return Loss((network.values * rows[:2]).sum() + memory["calls"] * network.values.prod())

    generator = generator or torch.Generator().manual_seed(seed)
    return Run(
        network,
        [Update("product", loss, [network.values], memory=memory)],
        10,
        Settings(**{**SETTINGS, "ema_decay": 0.9}),
        stage="toy",
        max_iter=20,
        generator=generator,
    )


def step(run, n):
    for _ in range(n):
        run.step()
        run.report()


def test_a_run_that_is_loaded_takes_the_steps_of_the_one_that_was_saved():
    whole, other = make_run(), make_run(seed=5)
    step(whole, 8)
    state = whole.state()
    kept = copy.deepcopy(state)
    step(whole, 12)
    for tensors, values in (state, kept):  # a state is a copy, which training does not change
        other = make_run(seed=5)
        other.load(tensors, values)
        assert other.iteration == 8
        step(other, 12)
        assert other.history == whole.history
        for name, value in whole.averaged().state_dict().items():
            assert torch.equal(other.averaged().state_dict()[name], value)
        assert torch.equal(other.network.values, whole.network.values)


class AsOnGPU:
    """A generator of the CPU, whose state is as large as a GPU's."""

    def __init__(self, seed):
        self.inner = torch.Generator().manual_seed(seed)
        self.device, self.seeds = self.inner.device, []

    def get_state(self):
        return torch.arange(16, dtype=torch.uint8)

    def set_state(self, state):
        raise AssertionError("this state is another device's")

    def manual_seed(self, seed):
        self.seeds.append(seed)
        self.inner.manual_seed(seed)


def test_a_run_resumes_on_another_kind_of_device_with_a_seed_made_of_the_state():
    saved = make_run()
    step(saved, 3)
    tensors, values = saved.state()
    seeds = []
    for _ in range(2):
        generator = AsOnGPU(7)
        make_run(generator=generator).load(tensors, values)
        seeds += generator.seeds
    assert len(seeds) == 2
    assert seeds[0] == seeds[1]
    step(saved, 1)
    later = AsOnGPU(7)
    make_run(generator=later).load(*saved.state())
    assert later.seeds != seeds[:1]
    # And back: the state of a GPU, read by a CPU.
    back = make_run()
    back.load({**tensors, "generator": AsOnGPU(7).get_state()}, values)
    step(back, 2)
    assert back.iteration == 5
