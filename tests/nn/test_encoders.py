"""Encoder modules: one vector of features per row, and what of the row is in it."""

import pytest
import torch

from skvdd.nn.encoders import CausalTransformer, ResidualMLP
from skvdd.nn.layout import RowLayout

LAYOUT = RowLayout(n_states=3, window_size=4)
WITH_GOAL = RowLayout(n_states=3, window_size=4, goal_dim=2)
KINDS = {
    "mlp": lambda layout, n_layers: ResidualMLP(layout.n_columns, 8, n_layers),
    "transformer": lambda layout, n_layers: CausalTransformer(layout, 8, n_layers, 2),
}


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(params=[LAYOUT, WITH_GOAL], ids=["states", "goal"])
def layout(request):
    return request.param


@pytest.fixture(params=KINDS)
def encoder(request, layout):
    """An encoder whose every parameter is away from its special initial value."""
    module = KINDS[request.param](layout, 2).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def make_rows(layout, n=5, dtype=torch.float64):
    return torch.randn(n, layout.n_columns, dtype=dtype)


def test_a_row_becomes_one_vector(encoder, layout):
    assert encoder(make_rows(layout)).shape == (5, 8)


def test_the_features_see_every_column_of_the_row(encoder, layout):
    rows = make_rows(layout).requires_grad_()
    weights = torch.randn(8, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((encoder(rows) @ weights).sum(), rows)
    assert (gradient.abs().sum(dim=0) > 1e-6).all()


def test_the_order_of_the_states_matters(encoder, layout):
    rows = make_rows(layout)
    swapped = torch.cat([rows[:, 3:6], rows[:, :3], rows[:, 6:]], dim=1)
    assert (encoder(rows) - encoder(swapped)).abs().amax(dim=1).min() > 1e-3


def test_a_row_alone_is_the_row_in_a_batch(encoder, layout):
    rows = make_rows(layout)
    torch.testing.assert_close(encoder(rows[3:4]), encoder(rows)[3:4])


@pytest.mark.parametrize("kind", KINDS)
def test_without_layers_an_encoder_still_encodes(kind, layout):
    assert KINDS[kind](layout, 0)(make_rows(layout, 2, torch.float32)).shape == (2, 8)


def test_a_fresh_perceptron_of_any_depth_is_its_first_layer():
    shallow, deep = ResidualMLP(12, 8, n_layers=0), ResidualMLP(12, 8, n_layers=3)
    deep.layers[0].load_state_dict(shallow.layers[0].state_dict())
    rows = torch.randn(5, 12)
    assert torch.equal(deep(rows), shallow(rows))


@pytest.mark.parametrize("position", range(4))
def test_earlier_tokens_of_the_transformer_do_not_see_later_states(position):
    encoder = CausalTransformer(LAYOUT, hidden_size=8, n_layers=3, n_heads=2)
    tokens = []
    encoder.blocks[1].register_forward_hook(lambda module, args, output: tokens.append(output))
    rows = torch.randn(5, 12)
    changed = rows.clone()
    changed[:, 3 * position : 3 * position + 3] += 1.0
    encoder(rows)
    encoder(changed)
    moved = (tokens[1] - tokens[0]).abs().amax(dim=(0, 2))
    assert moved[:position].tolist() == [0.0] * position
    assert (moved[position:] > 1e-4).all()


def test_the_goal_is_the_first_token_and_all_others_see_it():
    encoder = CausalTransformer(WITH_GOAL, hidden_size=8, n_layers=2, n_heads=2)
    tokens = []
    encoder.blocks[0].register_forward_hook(lambda module, args, output: tokens.append(output))
    rows = torch.randn(5, 14)
    changed = rows.clone()
    changed[:, 12:] += 1.0
    encoder(rows)
    encoder(changed)
    assert tokens[0].shape == (5, 5, 8)
    assert ((tokens[1] - tokens[0]).abs().amax(dim=(0, 2)) > 1e-4).all()


def test_the_transformer_reads_its_last_token():
    encoder = CausalTransformer(LAYOUT, hidden_size=8, n_layers=2, n_heads=2)
    rows = torch.randn(5, 12)
    tokens = encoder.embedding(rows.view(5, 4, 3)) + encoder.position
    for block in encoder.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(encoder(rows), encoder.norm(tokens[:, -1]))
