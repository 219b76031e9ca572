"""Random numbers: each row has its own, seeds decide alone, and nobody's generator is touched."""

import pickle
import random
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from skvdd import VDDDistiller
from skvdd.randomness import (
    as_random_state,
    draw_seed,
    restored_on_error,
    row_noise,
    seeded_network,
)
from tests.estimators import SMALL, small_teacher


def refused(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def interrupted(work):
    raise KeyboardInterrupt


def same_state(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# -- noise by rows --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (2,), (3, 4, 2)])
def test_the_noise_of_a_row_does_not_depend_on_how_many_follow(shape):
    many, few = row_noise(0, 10, shape), row_noise(0, 3, shape)
    assert many.shape == (10, *shape)
    assert many.dtype == np.float64
    np.testing.assert_array_equal(many[:3], few)


def test_noise_is_standard_normal():
    noise = row_noise(0, 100, (100,))
    # Five standard errors of 10 000 numbers.
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1.0) < 0.05


def test_a_stream_for_each_row_makes_it_independent_of_the_others():
    streams = [np.random.RandomState(seed) for seed in (5, 6, 7)]
    noise = row_noise(streams, 3, (4,))
    alone = row_noise([np.random.RandomState(7)], 1, (4,))
    np.testing.assert_array_equal(noise[2:], alone)
    np.testing.assert_array_equal(noise[0], np.random.RandomState(5).standard_normal(4))


def test_streams_go_on_from_call_to_call():
    stream, streams = np.random.RandomState(0), [np.random.RandomState(0)]
    expected = np.random.RandomState(0).standard_normal(8)
    for source in (stream, streams):
        drawn = [row_noise(source, 1, (4,)) for _ in range(2)]
        np.testing.assert_array_equal(np.ravel(drawn), expected)


@pytest.mark.parametrize(
    ("streams", "found"),
    [
        ([], "0 for 2 rows"),
        ([np.random.RandomState(0)], "1 for 2 rows"),
        ([0, 1], "0"),
        ((np.random.RandomState(0), None), "None"),
        ("ab", "'a'"),
    ],
    ids=["none", "few", "integers", "tuple", "text"],
)
def test_a_sequence_must_hold_a_stream_for_each_row(streams, found):
    with refused(
        "random_state, given as a sequence, must hold one RandomState for each row of X: got "
        f"{found}."
    ):
        row_noise(streams, 2, (3,))


# -- sources --------------------------------------------------------------------------------


def test_a_random_state_is_what_scikit_learn_takes():
    stream = np.random.RandomState(0)
    assert as_random_state(stream) is stream
    assert as_random_state(None) is np.random.mtrand._rand
    assert as_random_state(np.int64(3)).randint(1000) == np.random.RandomState(3).randint(1000)


@pytest.mark.parametrize("source", [np.random.default_rng(0), "seed", 1.5], ids=str)
def test_anything_else_is_refused_with_the_way_out(source):
    with refused(
        "random_state must be an integer, a numpy.random.RandomState or None, got "
        f"{source!r}. Of a numpy.random.Generator give an integer that it draws: "
        "random_state=int(generator.integers(2**31))."
    ):
        as_random_state(source)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_an_integer_that_is_no_seed_is_refused_by_name(seed):
    with pytest.raises(ValueError, match=rf"random_state .* got {seed}"):
        as_random_state(seed)


def test_the_way_out_works():
    generator = np.random.default_rng(0)
    assert as_random_state(int(generator.integers(2**31))).rand() < 1.0


def test_seeds_are_drawn_in_order_from_the_source():
    rng = np.random.RandomState(0)
    seeds = [draw_seed(rng) for _ in range(100)]
    assert seeds == [draw_seed(r) for r in [np.random.RandomState(0)] for _ in range(100)]
    assert len(set(seeds)) == 100
    assert all(type(seed) is int and 0 <= seed < 2**31 for seed in seeds)


def test_a_random_state_goes_back_where_it_was_if_the_work_fails():
    rng = np.random.RandomState(0)
    before = rng.get_state()
    with pytest.raises(KeyboardInterrupt), restored_on_error(rng):
        interrupted(rng.rand(10))
    assert same_state(rng.get_state(), before)
    with restored_on_error(rng):
        rng.rand(10)
    assert not same_state(rng.get_state(), before)


@pytest.mark.parametrize("source", [None, 0, np.int64(1)])
def test_a_seed_has_no_state_to_go_back_to(source):
    np.random.seed(0)  # noqa: NPY002
    expected = np.random.RandomState(0).rand(2)
    with pytest.raises(KeyboardInterrupt), restored_on_error(source):
        interrupted(np.random.rand())  # noqa: NPY002
    assert np.random.rand() == expected[1]  # noqa: NPY002


# -- networks -------------------------------------------------------------------------------


def build():
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def weights(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_weights_depend_on_the_seed_alone():
    expected = weights(seeded_network(build, 3))
    torch.manual_seed(99)
    assert torch.equal(weights(seeded_network(build, 3)), expected)
    assert not torch.equal(weights(seeded_network(build, 4)), expected)


SETTINGS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "default_device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_surrounds_the_call_does_not_matter(setting):
    expected = weights(seeded_network(build, 3))
    with SETTINGS[setting]():
        network = seeded_network(build, 3)
    assert torch.equal(weights(network), expected)
    assert all(p.requires_grad and p.device.type == "cpu" for p in network.parameters())
    weights(network).sum()
    network(torch.ones(1, 3)).sum().backward()  # inference tensors could not


def test_the_default_type_does_not_matter_and_is_put_back():
    expected = weights(seeded_network(build, 3))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        network = seeded_network(build, 3)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(before)
    assert weights(network).dtype == torch.float32
    assert torch.equal(weights(network), expected)


@pytest.fixture
def seedings(monkeypatch):
    """Calls of what seeds the generators of all devices; none of them seeds anything."""
    called = []
    names = ["manual_seed", "manual_seed_all", "seed", "seed_all"]
    names += ["set_rng_state", "set_rng_state_all"]
    for module, name in [
        *((torch.cuda, n) for n in names),
        (torch, "manual_seed"),
        (torch, "seed"),
    ]:
        monkeypatch.setattr(module, name, lambda *arguments, name=name: called.append(name))
    return called


def states_of_generators():
    """Of torch, Python and NumPy, as one value."""
    states = [torch.get_rng_state().numpy(), random.getstate(), np.random.get_state()]  # noqa: NPY002
    return pickle.dumps(states)


@pytest.mark.parametrize("fails", [False, True])
def test_the_generators_of_others_are_left_alone(fails, seedings):
    before = states_of_generators()

    def built():
        network = build()
        if fails:
            raise ZeroDivisionError
        return network

    if fails:
        with pytest.raises(ZeroDivisionError):
            seeded_network(built, 3)
    else:
        seeded_network(built, 3)
    assert seedings == []
    assert states_of_generators() == before
    assert torch.get_default_dtype() == torch.float32


def test_a_whole_fit_leaves_the_generators_of_others_alone(seedings, two_ways):
    before = states_of_generators()
    teacher = small_teacher(window_size=2, max_iter=2)
    student = VDDDistiller(teacher, n_experts=2, window_size=2, init_iter=2, **SMALL)
    student.set_params(max_iter=2).fit(*two_ways)
    student.teacher_.log_prob(*two_ways, tolerance=100.0)
    assert seedings == []
    assert states_of_generators() == before


def test_threads_do_not_mix_their_numbers():
    expected = [weights(seeded_network(build, seed)) for seed in range(20)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda seed: weights(seeded_network(build, seed)), range(20)))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
