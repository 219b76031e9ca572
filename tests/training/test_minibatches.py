"""Minibatches and the random numbers of their rows."""

import math

import pytest
import torch

from skvdd.training.minibatches import Batch, add_noise, batch_generator, draw

CPU = torch.device("cpu")


def generator(seed=0):
    return batch_generator(CPU, seed)


def of_process(monkeypatch, rank, n, n_rows, size):
    """Return what one of several processes takes of each minibatch."""
    monkeypatch.setattr("skvdd.training.minibatches.n_processes", lambda: n)
    monkeypatch.setattr("skvdd.training.minibatches.process_rank", lambda: rank)
    return Batch.of(n_rows, size)


@pytest.mark.parametrize(("size", "n"), [(31, 2), (8, 8), (1000, 7)])
def test_the_parts_of_all_processes_make_up_the_minibatch(size, n, monkeypatch):
    rows = []
    for rank in range(n):
        batch = of_process(monkeypatch, rank, n, 5000, size)
        assert size // n <= batch.length <= size // n + 1
        assert batch.is_shared
        rows += batch.draw(generator()).tolist()
    alone = of_process(monkeypatch, 0, 1, 5000, size)
    assert not alone.is_shared
    assert rows == alone.draw(generator()).tolist()


def test_fewer_rows_than_processes_are_refused(monkeypatch):
    message = "batch_size must be at least the number of processes, 3, got minibatches of 2 rows"
    with pytest.raises(ValueError, match=message):
        of_process(monkeypatch, 0, 3, 5000, 2)


@pytest.mark.parametrize("dim", [0, 1])
def test_a_row_has_the_same_random_numbers_in_whichever_process_it_is(dim, monkeypatch):
    parts = []
    for rank in range(3):
        shared = generator()
        shared.batch = of_process(monkeypatch, rank, 3, 5000, 7)
        shape = [4, 5]
        shape[dim] = shared.batch.length
        parts.append(draw(torch.randn, shape, shared, dim=dim))
    shape[dim] = 7
    assert torch.equal(torch.cat(parts, dim=dim), draw(torch.randn, shape, generator(), dim=dim))


@pytest.mark.parametrize("sampler", [torch.rand, torch.randn])
def test_random_numbers_do_not_depend_on_the_types_and_devices_of_the_user(sampler):
    expected = draw(sampler, (3, 2), generator())
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = draw(sampler, (3, 2), generator())
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_the_mean_over_processes_counts_each_as_often_as_it_has_rows(monkeypatch):
    def sum_over_processes(values):
        values += 20.0 * 4 / 7  # what the other process, of four rows, adds

    monkeypatch.setattr("skvdd.training.minibatches.sum_over_processes", sum_over_processes)
    batch = of_process(monkeypatch, 0, 2, 5000, 7)
    assert batch.length == 3
    mean = batch.average(torch.tensor([6.0]))
    assert mean.item() == pytest.approx((3 * 6.0 + 4 * 20.0) / 7)


# -- noise on the states --------------------------------------------------------------------


def test_noise_on_the_states_has_the_asked_width():
    states = torch.zeros(20_000, 2)
    noised = add_noise(states, 0.3, generator())
    assert noised.shape == states.shape
    # Five standard errors of 40 000 numbers.
    assert noised.std().item() == pytest.approx(0.3, rel=5 / math.sqrt(80_000))
    assert noised.mean().item() == pytest.approx(0.0, abs=5 * 0.3 / math.sqrt(40_000))


def test_no_noise_returns_the_states_and_draws_nothing():
    source = generator()
    before, states = source.get_state(), torch.ones(3, 2)
    assert add_noise(states, 0.0, source, n_columns=1) is states
    assert torch.equal(source.get_state(), before)


def test_goals_get_no_noise():
    rows = torch.arange(20.0).reshape(4, 5)
    noised = add_noise(rows, 0.3, generator(), n_columns=3)
    assert torch.equal(noised[:, 3:], rows[:, 3:])
    assert (noised[:, :3] != rows[:, :3]).all()
    assert torch.equal(rows, torch.arange(20.0).reshape(4, 5))  # what was given is left alone
    states = add_noise(rows[:, :3], 0.3, generator())
    assert torch.equal(noised[:, :3], states)  # a goal costs no random numbers


def test_noise_of_all_columns_is_that_of_rows_without_a_goal():
    rows = torch.arange(20.0).reshape(4, 5)
    assert torch.equal(
        add_noise(rows, 0.3, generator(), n_columns=5), add_noise(rows, 0.3, generator())
    )
