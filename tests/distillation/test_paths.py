"""Parts of the consistency models: steps of the ODE, distances, levels, the network."""

import numpy as np
import pytest
import torch

from skvdd.diffusion.noise import karras
from skvdd.distillation.paths import GeneratorNetwork, draw_jumps, heun_step, jump_levels, measure
from skvdd.encoders import MLPEncoder
from skvdd.nn.layout import RowLayout
from tests.distillation.toys import Stub, gaussian, normal


def test_heuns_method_has_an_error_of_third_order_in_a_step():
    path, actions, t = gaussian(), normal(5, 1, 2), torch.full((5, 1), 1.0).double()
    errors = []
    for size in (0.2, 0.1, 0.05):
        exact = path.move(actions, t, t - size)
        errors.append((heun_step(path.denoise, actions, t, t - size) - exact).abs().max())
    assert 6 < errors[0] / errors[1] < 10
    assert 6 < errors[1] / errors[2] < 10


def test_a_step_to_zero_is_eulers_and_one_from_zero_stays():
    path, actions = gaussian(), normal(1, 3, 2)
    t, s = torch.tensor([[1.0, 0.0, 2.0]]).double(), torch.tensor([[0.0, 0.0, 2.0]]).double()

    def denoise(actions, sigma):
        assert (sigma > 0).all()
        return path.denoise(actions, sigma)

    moved = heun_step(denoise, actions, t, s)
    torch.testing.assert_close(moved[:, 0], path.denoise(actions, t)[:, 0])
    assert torch.equal(moved[:, 1:], actions[:, 1:])


def test_jumps_run_down_the_grid():
    levels = karras(18, 0.03, 5.0, 7.0).flip(0)
    uniform = torch.rand(2, 5000, 1, generator=torch.Generator().manual_seed(0))
    path, s = draw_jumps(uniform, levels, 3)
    t, u = path[0], path[-1]
    assert path.shape == (4, 5000, 1)
    assert (path.diff(dim=0) <= 0).all()
    assert ((t > u) & (u >= s) & (t > 0)).all()
    place = torch.searchsorted(levels, torch.stack([t, u, s]))
    assert torch.equal(place[0].unique(), torch.arange(1, 19))
    assert torch.equal(place[2].unique(), torch.arange(18))
    assert torch.equal(place[1], torch.maximum(place[0] - 3, place[2]))


def test_distances_are_the_published_ones():
    difference = normal(4, 3, 2)
    squared = (difference**2).sum(dim=-1)
    torch.testing.assert_close(measure(1 + difference, torch.ones(()), "l2"), squared)
    robust = measure(1 + difference, torch.ones(()), "pseudo_huber")
    torch.testing.assert_close(robust, (squared + 0.03**2).sqrt() - 0.03)


@pytest.mark.parametrize("n_steps", [1, 2, 5])
def test_a_sampler_starts_at_the_highest_level_and_jumps_from_none_that_has_nothing_left(n_steps):
    levels = jump_levels(Stub(None, noise_min=0.1, noise_max=4.0), n_steps)
    assert levels == pytest.approx(karras(n_steps + 1, 0.1, 4.0, 7.0)[:n_steps].tolist())
    assert levels[0] == pytest.approx(4.0)
    assert len(levels) == n_steps
    assert min(levels) > 0.1
    np.testing.assert_array_equal(levels, sorted(levels, reverse=True))


def test_a_network_is_built_again_from_its_configuration_alone():
    denoiser = {
        "layout": RowLayout(3, 2, 1),
        "n_actions": 2,
        "encoder": MLPEncoder(8, 1),
        "hidden_size": 12,
        "n_layers": 1,
        "target_min": 0.05,
    }
    network = GeneratorNetwork(denoiser, noise_min=0.05, noise_max=4.0, start_scale=4.0)
    again = GeneratorNetwork(**network.config)
    shapes, expected = (
        {name: values.shape for name, values in n.state_dict().items()} for n in (again, network)
    )
    assert shapes == expected
    assert (again.layout, again.n_actions) == (network.layout, 2)
    # The normalization is the denoiser's: there is one of each.
    assert [name for name in expected if name.endswith("action_normalization.mean")] == [
        "denoiser.action_normalization.mean"
    ]
