"""Queries: blocks of bounded size, work that follows the samples, the same bits in any batch."""

import tracemalloc

import numpy as np
import pytest
import torch

from skvdd import DiffusionPolicy
from skvdd.base.queries import MAX_ACTIONS, ROW_MULTIPLE, QueryMixin


class Asked(QueryMixin):
    """Counts what its network, a few sums, is asked."""

    device = "cpu"

    def __init__(self):
        self.shapes = []

    def double(self, rows):
        self.shapes.append((len(rows), 1))
        return 2 * rows

    def add(self, rows, actions, sigma):
        assert len(rows) == len(actions) == len(sigma)
        self.shapes.append(tuple(actions.shape[:2]))
        return rows[:, None, :1] * sigma[..., None] + actions

    @property
    def n_evaluations(self):
        return sum(rows * samples for rows, samples in self.shapes)


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- blocks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 15, 16, 17, 100, 8193])
def test_rows_are_evaluated_in_multiples_and_joined_in_order(n):
    asked, rows = Asked(), numbers(n, 3)
    assert torch.equal(asked._evaluate(asked.double, rows), 2 * rows)
    assert all(length % ROW_MULTIPLE == 0 and length <= MAX_ACTIONS for length, _ in asked.shapes)
    assert n <= asked.n_evaluations < n + ROW_MULTIPLE


@pytest.mark.parametrize("n", [1, 3, 16, 33])
@pytest.mark.parametrize("n_samples", [1, 2, 3, 7, 16, 100])
def test_samples_are_evaluated_beside_their_rows(n, n_samples, monkeypatch):
    monkeypatch.setattr("skvdd.base.queries.MAX_ACTIONS", 64)
    asked = Asked()
    rows, actions, sigma = numbers(n, 3), numbers(n, n_samples, 2), numbers(n, n_samples, seed=1)
    result = asked._evaluate(asked.add, rows, actions, sigma)
    assert torch.equal(result, rows[:, None, :1] * sigma[..., None] + actions)
    assert all(length % ROW_MULTIPLE == 0 for length, _ in asked.shapes)
    # A row cannot be cut below one sample, nor a block below so many rows.
    assert max(rows * samples for rows, samples in asked.shapes) <= max(64, ROW_MULTIPLE**2)


@pytest.mark.parametrize(("n", "n_samples"), [(1, 100_000), (5, 2000), (40, 500), (1000, 9)])
def test_the_work_is_that_of_the_samples(n, n_samples):
    asked = Asked()
    asked._evaluate(asked.add, numbers(n, 3), numbers(n, n_samples, 2), numbers(n, n_samples))
    assert max(rows * samples for rows, samples in asked.shapes) <= MAX_ACTIONS
    # The samples of a row are padded to a multiple of its parts, the rows to a multiple of 16.
    assert n * n_samples <= asked.n_evaluations <= 1.02 * n * n_samples + ROW_MULTIPLE * n


@pytest.mark.parametrize("n_samples", [1, 2, 3, 5, 15, 17])
def test_few_samples_of_one_row_take_no_more_than_twice_the_least_batch(n_samples):
    asked = Asked()
    asked._evaluate(asked.add, numbers(1, 3), numbers(1, n_samples, 2), numbers(1, n_samples))
    assert asked.n_evaluations <= 2 * ROW_MULTIPLE


def test_no_gradients_are_recorded_and_likelihoods_may_differentiate_inside():
    def slope(rows):
        assert not torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = rows.clone().requires_grad_()
            return torch.autograd.grad(leaf.square().sum(), leaf)[0]

    rows = numbers(5, 3)
    with torch.inference_mode():
        result = Asked()._evaluate(slope, rows)
    assert torch.equal(result, 2 * rows)
    assert not result.requires_grad


# -- a policy that draws many actions -------------------------------------------------------


@pytest.fixture(scope="module", params=["context", "gpt"])
def policy(request):
    """As wide as a default policy, and hardly trained; tests must not change it."""
    rng = np.random.RandomState(0)
    X = rng.uniform(-1, 1, (50, 3))
    policy = DiffusionPolicy(
        architecture=request.param, n_layers=1, max_iter=2, n_steps=2, random_state=0
    )
    return policy.fit(X, X[:, :2] + 0.1 * rng.standard_normal((50, 2)))


def test_many_samples_of_one_state_cost_their_own_work_and_memory():
    X = np.random.RandomState(0).uniform(-1, 1, (50, 3))
    policy = DiffusionPolicy(hidden_size=8, n_layers=1, max_iter=1, n_steps=2, random_state=0)
    policy.fit(X, X[:, :2])
    encoded, asked = [], []
    network = policy.network_
    hooks = [
        network.encoder.register_forward_hook(lambda m, args, out: encoded.append(len(args[0]))),
        network.input.register_forward_hook(lambda m, args, out: asked.append(out.numel() // 8)),
    ]
    n_samples = 100_000
    tracemalloc.start()
    try:
        samples = policy.sample(X[:1], n_samples, random_state=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        for hook in hooks:
            hook.remove()
    assert samples.shape == (1, n_samples, 2)
    assert max(asked) <= MAX_ACTIONS
    assert 2 * n_samples <= sum(asked) <= 1.01 * 2 * n_samples  # two steps
    assert sum(encoded) <= ROW_MULTIPLE * (1 + n_samples // MAX_ACTIONS)
    # NumPy's arrays: the noise of two steps, and the actions before and after their units.
    assert peak < 6 * samples.nbytes


@pytest.mark.parametrize("n_samples", [None, 1, 2, 3, 16, 33, 100])
def test_the_samples_of_a_row_are_the_same_alone_and_in_a_batch(policy, n_samples):
    X = np.random.RandomState(1).uniform(-1, 1, (40, 3))
    together = policy.sample(X, n_samples, random_state=0)
    for n in (1, 2, 15, 16, 17):
        alone = policy.sample(X[:n], n_samples, random_state=0)
        np.testing.assert_array_equal(alone, together[:n])


@pytest.mark.parametrize("n_samples", [None, 5, 100])
def test_a_row_is_the_same_in_any_place_of_a_batch(policy, n_samples):
    X = np.random.RandomState(1).uniform(-1, 1, (23, 3))

    def draw(rows):
        streams = [np.random.RandomState(row) for row in rows]
        return policy.sample(X[rows], n_samples, random_state=streams)

    together = draw(np.arange(23))
    for rows in ([22], [7, 3], [*range(22, -1, -1)]):
        np.testing.assert_array_equal(draw(rows), together[rows])


@pytest.mark.parametrize("max_actions", [16, 100, 1000])
def test_blocks_of_any_size_give_the_same_bits(policy, max_actions, monkeypatch):
    X = np.random.RandomState(1).uniform(-1, 1, (20, 3))
    expected = [policy.sample(X, n, random_state=0) for n in (None, 3, 150)]
    monkeypatch.setattr("skvdd.base.queries.MAX_ACTIONS", max_actions)
    for n, together in zip((None, 3, 150), expected, strict=True):
        np.testing.assert_array_equal(policy.sample(X, n, random_state=0), together)


# -- units ----------------------------------------------------------------------------------


def test_actions_come_back_from_standard_units_as_they_went_in(policy):
    actions = 1e6 + np.random.RandomState(0).standard_normal((10, 2))
    far = DiffusionPolicy(hidden_size=8, max_iter=0, random_state=0).fit(actions, actions)
    # Standardized in single precision, which is 1e-7 of a spread of one, and no digit of 1e6.
    again = far._raw_actions(far._standard_actions(actions))
    np.testing.assert_allclose(again - 1e6, actions - 1e6, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (2,), (3, 2)])
def test_flat_actions_get_the_shape_of_those_of_the_fit(shape):
    asked = Asked()
    asked.action_shape_ = shape
    n_actions = int(np.prod(shape))
    assert asked._shaped(np.zeros((5, n_actions))).shape == (5, *shape)
    assert asked._shaped(np.zeros((5, 4, n_actions))).shape == (5, 4, *shape)
