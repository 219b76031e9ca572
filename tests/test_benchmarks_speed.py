"""The report of speed: work is counted rightly, rates are real, every section has its table."""

import numpy as np
import pytest
import torch

from benchmarks import bench, limits, speed, speed_of_control, speed_of_training, stopwatch
from benchmarks.bench import Bench, Section, milliseconds
from benchmarks.limits import Machine, count_flops, flops_per_iteration, weight_bytes
from skvdd import GaussianMoEPolicy
from tests.estimators import SMALL, small_teacher

MACHINE = Machine(1, {(1, 1, 1): 1e9, (2, 2, 2): 4e9}, cached=1e9, memory=1e9)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(limits, "REPEATS", 1)
    monkeypatch.setattr(limits, "PRODUCTS", ((512, 512, 512),))
    monkeypatch.setattr(limits, "CACHED_SIZES", (8,))
    monkeypatch.setattr(limits, "MEMORY_BYTES", 2**16)


def rows(n=50):
    rng = np.random.RandomState(0)
    return rng.standard_normal((n, 10)), rng.standard_normal((n, 2))


def test_the_operations_of_a_product_are_two_for_each_pair_of_numbers():
    layer = torch.nn.Linear(3, 5)
    assert count_flops(layer, torch.ones(7, 3)) == 2 * 7 * 3 * 5


def test_the_operations_backward_are_counted_too():
    layer, states = torch.nn.Linear(3, 5), torch.ones(7, 3, requires_grad=True)
    # Gradients of weights and of inputs are a product each.
    assert count_flops(lambda: layer(states).sum().backward()) == 3 * (2 * 7 * 3 * 5)


class Multiplier:
    """An estimator that prepares with two products, and does one in each iteration."""

    def set_params(self, max_iter):
        self.max_iter = max_iter
        return self

    def fit(self, matrix):
        for _ in range(2 + self.max_iter):
            matrix @ matrix
        return self


def test_an_iteration_is_what_a_second_one_adds():
    assert flops_per_iteration(Multiplier(), torch.ones(3, 3)) == 2 * 3**3


def test_the_operations_of_a_student_are_those_of_its_layers():
    policy = GaussianMoEPolicy(2, window_size=5, **SMALL | {"n_layers": 0}).fit(*rows())
    # Encoder, trunk, experts (two means, two scales, one entry below them, twice) and gating.
    layers = np.array([10 * 16, 16 * 16, 16 * 10, 16 * 64, 64 * 64, 64 * 2])
    assert count_flops(policy.network_, torch.ones(1, 10)) == 2 * layers.sum()


def test_the_work_of_a_teacher_is_a_context_and_its_steps():
    states, actions = rows()
    network = small_teacher(window_size=5).fit(states, actions).network_
    row = torch.ones(1, 10)
    one = speed_of_control.teacher_work(network, row, 1)
    three = speed_of_control.teacher_work(network, row, 3)
    assert one == (count_flops(lambda: _denoised_once(network, row)), weight_bytes(network))
    context = count_flops(network.context, row), weight_bytes(network.encoder)
    assert three == tuple(3 * whole - 2 * part for whole, part in zip(one, context, strict=True))


def _denoised_once(network, row):
    return network.denoise(network.context(row), torch.ones(1, 1, 2), torch.ones(1, 1))


@pytest.mark.parametrize(("n_flops", "n_bytes", "seconds"), [(8e9, 1e9, 2.0), (4e9, 3e9, 3.0)])
def test_a_limit_is_what_takes_longer(n_flops, n_bytes, seconds):
    assert MACHINE.seconds(n_flops, n_bytes) == seconds


def test_measured_rates_are_positive(quick):
    machine = Machine.measure(1)
    assert min(machine.product, machine.cached, machine.memory) > 0
    assert machine.products.keys() == {(512, 512, 512)}


def test_a_bench_measures_a_machine_once(quick):
    here = Bench()
    assert here.machine() is here.machine(1)
    assert here.machine(2).n_threads == 2


def test_all_threads_come_back_even_after_an_error():
    before = torch.get_num_threads()
    seen = []

    def fail():
        with stopwatch.threads(before + 1):
            seen.append(torch.get_num_threads())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [*seen, torch.get_num_threads()] == [before + 1, before]


def test_calls_take_their_arguments_in_turn():
    calls = []
    stopwatch.time_calls(calls.append, [1, 2, 3], n_calls=20)
    assert calls == ([1, 2, 3] * 8)[:22]  # two of them to warm up


def test_slow_functions_are_called_a_few_times(monkeypatch):
    monkeypatch.setattr(stopwatch, "LONGEST", 0.0)
    calls = []
    stopwatch.time_calls(calls.append, [None], n_calls=1000)
    assert len(calls) == 2 * stopwatch.FEWEST


def test_times_are_median_and_99th_percentile():
    times = stopwatch.Times.of([float(i) for i in range(101)])
    assert (times.median, times.high) == (50.0, 99.0)


def test_each_argument_is_timed_once():
    calls = []
    assert len(stopwatch.time_each(calls.append, "abc")) == 3
    assert calls == ["a", "b", "c"]


def test_an_iteration_is_timed_by_the_reports_of_a_fit(monkeypatch):
    ticks = iter([0.0, 1.0, 3.0, 6.0, 10.0])
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(ticks))
    policy = GaussianMoEPolicy(2, **SMALL | {"window_size": 5})
    assert stopwatch.seconds_per_iteration(policy, 5, *rows()) == 2.5


def test_a_fit_from_files_tells_time_and_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(speed_of_training, "ROW_ITERATIONS", 3)
    assert speed_of_training.write_rows(tmp_path, 70) == 70 * 22 * 4
    states = np.fromfile(tmp_path / "states.f32", np.float32).reshape(70, 20)
    actions = np.fromfile(tmp_path / "actions.f32", np.float32).reshape(70, 2)
    teacher = small_teacher(window_size=5).fit(states, actions)
    start, iteration, own, resident = speed_of_training.fit_from_files(teacher, tmp_path, 70)
    assert min(start, iteration) > 0
    assert 0 <= own < resident


def test_own_memory_is_watched():
    with speed_of_training.peak_of_own_memory() as peak:
        held = np.ones(2**23)
        stopwatch.time.sleep(0.2)
    assert peak[0] >= 0.9 * held.nbytes


def test_a_section_prints_its_rows_as_they_come(capsys):
    Section("Title", ("a", "b"), lambda bench: iter([("x", None), ("y", 3)])).show(Bench())
    lines = ["", "**Title**", "", "| a | b |", "| --- | --- |", "| x |  |", "| y | 3 |"]
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize(("seconds", "text"), [(2.14, "2140 ms"), (6.43e-5, "0.0643 ms")])
def test_times_are_printed_with_three_digits(seconds, text):
    assert milliseconds(seconds) == text
    assert milliseconds(None) is None


def test_the_command_names_its_sections():
    assert list(speed.SECTIONS) == [
        "machine",
        "actions",
        "batches",
        "environments",
        "episodes",
        "training",
        "experts",
        "minibatches",
        "rows",
    ]


def test_the_command_shows_the_sections_that_it_is_given(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(Section, "show", lambda self, bench: shown.append(self))
    speed.main(["rows", "machine"])
    assert shown == [speed.SECTIONS["rows"], speed.SECTIONS["machine"]]
    speed.main([])
    assert shown[2:] == list(speed.SECTIONS.values())
    with pytest.raises(SystemExit):
        speed.main(["actions", "color"])
    assert "got color" in capsys.readouterr().err


def test_every_row_of_the_machine_has_a_cell_for_every_column(quick):
    section = speed.SECTIONS["machine"]
    table = list(section.rows(Bench()))
    assert len(table) == 3
    assert {len(row) for row in table} == {len(section.columns)}


def test_rows_of_training_have_a_cell_for_every_column(monkeypatch):
    monkeypatch.setattr(speed_of_training, "EXPERTS", (1, 2))
    here = Bench()
    here._machines[1] = MACHINE
    here.data = rows(20)[0].reshape(20, 5, 2), rows(20)[1]
    here.teacher = small_teacher(window_size=5).fit(*here.data)
    section = speed.SECTIONS["experts"]
    assert [len(row) for row in section.rows(here)] == 2 * [len(section.columns)]
    assert bench.student(n_experts=3).n_experts == 3
