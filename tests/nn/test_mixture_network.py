"""The mixture network: where experts start, and what each head may change."""

import math

import pytest
import torch

from skvdd.encoders import MLPEncoder, TransformerEncoder
from skvdd.nn.gaussian_mixture import log_prob
from skvdd.nn.layout import RowLayout
from skvdd.nn.mixture_network import LEAST_ABOVE_FLOOR, MixtureNetwork

LAYOUT = RowLayout(n_states=3, window_size=2)
ENCODERS = {"mlp": MLPEncoder(12, 1), "transformer": TransformerEncoder(12, 1, n_heads=2)}


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def make_network(covariance="full", n_actions=2, encoder="mlp", **arguments):
    settings = {
        "n_experts": 3,
        "hidden_size": 8,
        "n_layers": 1,
        "scale_floor": 1e-3,
        "detach_gating": True,
    }
    return MixtureNetwork(
        LAYOUT, n_actions, ENCODERS[encoder], covariance=covariance, **(settings | arguments)
    )


def perturb(network):
    """Move every parameter, as training would."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return network


def make_rows(n=6):
    return torch.randn(n, LAYOUT.n_columns)


@pytest.mark.parametrize("n_actions", [1, 2, 5])
def test_a_row_becomes_a_mixture(n_actions):
    mixture = perturb(make_network(n_actions=n_actions))(make_rows())
    assert mixture.log_gate.shape == (6, 3)
    assert mixture.mean.shape == (6, 3, n_actions)
    assert mixture.scale_tril.shape == (6, 3, n_actions, n_actions)
    torch.testing.assert_close(mixture.log_gate.exp().sum(dim=1), torch.ones(6))


@pytest.mark.parametrize("floor", [1e-3, 0.05])
def test_factors_are_lower_triangular_with_a_floor_under_the_diagonal(floor):
    network = perturb(make_network(n_actions=4, scale_floor=floor))
    with torch.no_grad():
        network.output.bias[4:8] = -100.0  # as narrow as the first expert can be
    scale_tril = network(make_rows()).scale_tril
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
    scale_tril = perturb(make_network("diag", n_actions=4))(make_rows()).scale_tril
    assert torch.equal(scale_tril, torch.diag_embed(scale_tril.diagonal(dim1=-2, dim2=-1)))


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_experts_start_where_they_are_placed_in_every_state(covariance):
    network = make_network(covariance)
    means = torch.tensor([[-2.0, 0.0], [0.5, 1.0], [3.0, -4.0]])
    scales = torch.tensor([0.06, 1.0, 7.0])
    network.place_experts(means, scales)
    mixture = network(100.0 * make_rows())
    torch.testing.assert_close(mixture.mean, means.expand(6, 3, 2))
    expected = scales[:, None, None] * torch.eye(2)
    torch.testing.assert_close(mixture.scale_tril, expected.expand(6, 3, 2, 2))


@pytest.mark.parametrize("floor", [1e-3, 0.1, 0.5])
def test_an_expert_placed_at_the_floor_can_still_grow_and_shrink(floor):
    """Where the softplus is flat, its bias gets no gradient."""
    network = make_network(scale_floor=floor)
    network.place_experts(torch.zeros(3, 2), torch.tensor([1e-6, floor, floor + 1e-4]))
    diagonal = network(make_rows()).scale_tril.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(diagonal, torch.full((6, 3, 2), floor + LEAST_ABOVE_FLOOR))
    diagonal.mean(dim=0).sum().backward()
    slope = network.output.bias.grad.view(3, -1)[:, 2:4]
    # The slope of softplus, where it has the value v, is 1 - exp(-v).
    torch.testing.assert_close(slope, torch.full((3, 2), 1 - math.exp(-LEAST_ABOVE_FLOOR)))


def test_a_fresh_gating_is_undecided_in_every_state():
    log_gate = make_network()(100.0 * make_rows()).log_gate
    torch.testing.assert_close(log_gate.exp(), torch.full((6, 3), 1.0 / 3.0))


def test_the_gating_sends_no_gradient_into_the_encoder():
    network = perturb(make_network())
    (network(make_rows()).log_gate * torch.randn(6, 3)).sum().backward()
    assert all(p.grad is None for p in network.encoder.parameters())
    assert all(p.grad is None for p in network.expert_parameters())
    assert all(p.grad.abs().sum() > 0 for p in network.gating.parameters())


def test_the_gating_shapes_the_encoder_where_it_is_not_detached():
    network = perturb(make_network(detach_gating=False))
    (network(make_rows()).log_gate * torch.randn(6, 3)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.encoder.parameters())
    assert all(p.grad.abs().sum() > 0 for p in network.gating.parameters())


def test_detaching_changes_no_answer():
    network = perturb(make_network())
    other = make_network(detach_gating=False)
    other.load_state_dict(network.state_dict())
    rows = make_rows()
    assert torch.equal(other(rows).log_gate, network(rows).log_gate)


def test_the_experts_send_gradients_into_all_that_they_are_made_of_and_into_no_gating():
    network = perturb(make_network())
    mixture = network(make_rows())
    (mixture.mean.square().sum() + mixture.scale_tril.square().sum()).backward()
    assert all(p.grad.abs().sum() > 0 for p in network.expert_parameters())
    assert all(p.grad is None for p in network.gating.parameters())


def test_parameters_belong_to_the_experts_or_to_the_gating():
    network = make_network()
    experts, gating = set(network.expert_parameters()), set(network.gating.parameters())
    assert experts | gating == set(network.parameters())
    assert not experts & gating


def test_a_frozen_encoder_is_no_parameter_of_the_experts():
    network = make_network(encoder_frozen=True)
    heads = {*network.trunk.parameters(), *network.output.parameters()}
    assert set(network.expert_parameters()) == heads
    assert not any(p.requires_grad for p in network.encoder.parameters())


def test_a_frozen_encoder_stays_frozen_when_the_network_is_built_again():
    network = MixtureNetwork(**make_network(encoder_frozen=True).config)
    assert network.encoder_frozen
    assert not any(p.requires_grad for p in network.encoder.parameters())


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_is_never_in_training_mode(frozen):
    network = make_network(encoder_frozen=frozen)
    assert network.train() is network
    assert all(module.training is not frozen for module in network.encoder.modules())
    assert network.trunk.training
    assert not any(module.training for module in network.eval().modules())


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_the_configuration_rebuilds_the_same_network(covariance, encoder):
    network = perturb(make_network(covariance, encoder=encoder))
    again = MixtureNetwork(**network.config)
    again.load_state_dict(network.state_dict())
    rows = make_rows()
    expected, result = network(rows), again(rows)
    assert torch.equal(result.log_gate, expected.log_gate)
    assert torch.equal(result.mean, expected.mean)
    assert torch.equal(result.scale_tril, expected.scale_tril)


def test_an_encoded_row_gives_the_same_mixture():
    network, rows = perturb(make_network()), make_rows()
    mixture = network.mixture(network.encoder(rows))
    assert torch.equal(mixture.mean, network(rows).mean)
    assert torch.equal(mixture.log_gate, network(rows).log_gate)


# -- raw units ------------------------------------------------------------------------------


@pytest.fixture
def in_raw_units():
    network = perturb(make_network())
    network.row_normalization.set([3.0, -1e3, 0.0] * 2, [0.5, 20.0, 1.0] * 2)
    network.action_normalization.set([100.0, -5.0], [0.25, 8.0])
    return network


def test_the_mixture_in_raw_units_has_the_density_in_those_units(in_raw_units):
    """The density differs by the Jacobian alone, at actions that are the same."""
    network, rows = in_raw_units, make_rows()
    standard, actions = network(rows).to(torch.float64), torch.randn(6, 4, 2, dtype=torch.float64)
    raw = network.raw_mixture(network.row_normalization.inverse(rows))
    assert {raw.log_gate.dtype, raw.mean.dtype, raw.scale_tril.dtype} == {torch.float64}
    moved = network.action_normalization.inverse(actions)
    log_jacobian = network.action_normalization.scale.log().sum()
    # Rows are standardized in float32, as the others were; 1e-4 is the spacing at an offset of 1e3.
    torch.testing.assert_close(
        log_prob(raw, moved) + log_jacobian, log_prob(standard, actions), rtol=1e-4, atol=1e-4
    )


def test_the_gates_sum_to_one_in_double_precision(in_raw_units):
    log_gate = in_raw_units.raw_mixture(torch.randn(50, 6, dtype=torch.float64)).log_gate
    ones = torch.ones(50, dtype=torch.float64)
    torch.testing.assert_close(log_gate.exp().sum(dim=1), ones, rtol=0, atol=1e-14)


def test_the_mixture_can_be_differentiated_by_raw_rows(in_raw_units):
    rows = torch.tensor([[3.0, -1e3, 0.0] * 2], dtype=torch.float64, requires_grad=True)
    mean = in_raw_units.raw_mixture(rows).mean[0, 0, 1]
    (gradient,) = torch.autograd.grad(mean, rows)
    step = torch.zeros_like(rows)
    step[0, 0] = 0.01
    with torch.no_grad():
        high, low = (in_raw_units.raw_mixture(rows + s).mean[0, 0, 1] for s in (step, -step))
    slope = (high - low) / 0.02
    # Central differences of float32 arithmetic.
    torch.testing.assert_close(gradient[0, 0], slope, rtol=0.05, atol=1e-3)
