"""The mixture network: where experts start, and what each head may change."""

import pytest
import torch

from skvdd.nn.mixture_network import MixtureNetwork

ENCODER = {
    "kind": "mlp",
    "n_states": 3,
    "window_size": 2,
    "hidden_size": 12,
    "n_layers": 1,
    "n_heads": 2,
}


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def make_network(
    covariance="full", learn_gating=True, n_experts=3, n_actions=2, scale_floor=1e-3, **encoder
):
    return MixtureNetwork(
        {**ENCODER, **encoder}, n_experts, n_actions, 8, 1, covariance, learn_gating, scale_floor
    )


def perturb(network):
    """Move every parameter, as training would."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return network


def make_states(n=6):
    return torch.randn(n, 2, 3)


@pytest.mark.parametrize("n_actions", [1, 2, 5])
def test_a_state_becomes_a_mixture(n_actions):
    mixture = perturb(make_network(n_actions=n_actions))(make_states())
    assert mixture.log_gate.shape == (6, 3)
    assert mixture.mean.shape == (6, 3, n_actions)
    assert mixture.scale_tril.shape == (6, 3, n_actions, n_actions)
    torch.testing.assert_close(mixture.log_gate.exp().sum(dim=1), torch.ones(6))


@pytest.mark.parametrize("floor", [1e-3, 0.05])
def test_factors_are_lower_triangular_with_a_floor_under_the_diagonal(floor):
    network = perturb(make_network(n_actions=4, scale_floor=floor))
    with torch.no_grad():
        network.output.bias[4:8] = -100.0  # as narrow as the first expert can be
    scale_tril = network(make_states()).scale_tril
    assert torch.equal(scale_tril, scale_tril.tril())
    assert (scale_tril.tril(-1) != 0).sum() == 6 * 3 * 6
    diagonal = scale_tril.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(diagonal[:, 0], torch.full((6, 4), floor))
    assert (diagonal >= floor).all()


@pytest.mark.parametrize("floor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_floor_must_be_positive_and_finite(floor):
    with pytest.raises(ValueError, match="scale_floor must be positive and finite"):
        make_network(scale_floor=floor)


def test_a_diagonal_covariance_has_nothing_beside_the_diagonal():
    scale_tril = perturb(make_network("diag", n_actions=4))(make_states()).scale_tril
    assert torch.equal(scale_tril, torch.diag_embed(scale_tril.diagonal(dim1=-2, dim2=-1)))


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_experts_start_where_they_are_placed_in_every_state(covariance):
    network = make_network(covariance)
    means = torch.tensor([[-2.0, 0.0], [0.5, 1.0], [3.0, -4.0]])
    scales = torch.tensor([0.05, 1.0, 7.0])
    network.place_experts(means, scales)
    mixture = network(100.0 * make_states())
    torch.testing.assert_close(mixture.mean, means.expand(6, 3, 2))
    expected = scales[:, None, None] * torch.eye(2)
    torch.testing.assert_close(mixture.scale_tril, expected.expand(6, 3, 2, 2))


def test_a_fresh_gating_is_undecided_in_every_state():
    log_gate = make_network()(100.0 * make_states()).log_gate
    torch.testing.assert_close(log_gate.exp(), torch.full((6, 3), 1.0 / 3.0))


def test_without_learning_every_expert_has_its_equal_share():
    network = perturb(make_network(learn_gating=False, n_experts=4))
    assert network(make_states()).log_gate.exp().tolist() == [[0.25] * 4] * 6


def test_the_gating_sends_no_gradient_into_the_encoder():
    network = perturb(make_network())
    (network(make_states()).log_gate * torch.randn(6, 3)).sum().backward()
    assert all(p.grad is None for p in network.encoder.parameters())
    assert all(p.grad is None for p in network.expert_parameters())
    assert all(p.grad.abs().sum() > 0 for p in network.gating.parameters())


def test_the_experts_send_gradients_into_all_that_they_are_made_of_and_into_no_gating():
    network = perturb(make_network())
    mixture = network(make_states())
    (mixture.mean.square().sum() + mixture.scale_tril.square().sum()).backward()
    assert all(p.grad.abs().sum() > 0 for p in network.expert_parameters())
    assert all(p.grad is None for p in network.gating.parameters())


def test_parameters_belong_to_the_experts_or_to_the_gating():
    network = make_network()
    experts, gating = set(network.expert_parameters()), set(network.gating.parameters())
    assert experts | gating == set(network.parameters())
    assert not experts & gating


def test_a_frozen_encoder_is_no_parameter_of_the_experts():
    network = make_network()
    network.encoder.requires_grad_(False)
    heads = {*network.trunk.parameters(), *network.output.parameters()}
    assert set(network.expert_parameters()) == heads


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_the_configuration_rebuilds_the_same_network(covariance, kind):
    network = perturb(make_network(covariance, kind=kind))
    again = MixtureNetwork(**network.config)
    again.load_state_dict(network.state_dict())
    states = make_states()
    expected, result = network(states), again(states)
    assert torch.equal(result.log_gate, expected.log_gate)
    assert torch.equal(result.mean, expected.mean)
    assert torch.equal(result.scale_tril, expected.scale_tril)


def test_an_encoded_state_gives_the_same_mixture():
    network, states = perturb(make_network()), make_states()
    mixture = network.mixture(network.encoder(states))
    assert torch.equal(mixture.mean, network(states).mean)
    assert torch.equal(mixture.log_gate, network(states).log_gate)
