"""Encoders: one context per window, and what of the window is in it."""

import pytest
import torch

from skvdd.nn.encoder import MLPEncoder, TransformerEncoder, build_encoder

KINDS = {"mlp": MLPEncoder, "transformer": TransformerEncoder}
SHAPE = {"n_states": 3, "window_size": 4, "hidden_size": 8, "n_layers": 2, "n_heads": 2}


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(params=KINDS)
def encoder(request):
    """An encoder whose every parameter is away from its special initial value."""
    module = build_encoder(request.param, **SHAPE).double()
    assert type(module) is KINDS[request.param]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def make_windows(n=5):
    return torch.randn(n, SHAPE["window_size"], SHAPE["n_states"], dtype=torch.float64)


def test_a_window_becomes_one_vector(encoder):
    assert encoder(make_windows()).shape == (5, 8)


def test_the_context_sees_every_state_of_the_window(encoder):
    windows = make_windows().requires_grad_()
    weights = torch.randn(8, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((encoder(windows) @ weights).sum(), windows)
    assert (gradient.abs().sum(dim=2) > 1e-6).all()


def test_the_order_of_the_states_matters(encoder):
    windows = make_windows()
    swapped = windows[:, [1, 0, 2, 3]]
    assert (encoder(windows) - encoder(swapped)).abs().amax(dim=1).min() > 1e-3


def test_a_row_alone_is_the_row_in_a_batch(encoder):
    windows = make_windows()
    torch.testing.assert_close(encoder(windows[3:4]), encoder(windows)[3:4])


def test_without_layers_an_encoder_still_encodes():
    for kind in KINDS:
        assert build_encoder(kind, **{**SHAPE, "n_layers": 0})(torch.randn(2, 4, 3)).shape == (2, 8)


def test_a_fresh_perceptron_of_any_depth_is_its_first_layer():
    shallow, deep = MLPEncoder(12, 8, n_layers=0), MLPEncoder(12, 8, n_layers=3)
    deep.layers[0].load_state_dict(shallow.layers[0].state_dict())
    windows = torch.randn(5, 4, 3)
    assert torch.equal(deep(windows), shallow(windows))


@pytest.mark.parametrize("position", range(4))
def test_earlier_tokens_of_the_transformer_do_not_see_later_states(position):
    encoder = TransformerEncoder(3, 4, hidden_size=8, n_layers=3, n_heads=2)
    tokens = []
    encoder.blocks[1].register_forward_hook(lambda module, args, output: tokens.append(output))
    windows = torch.randn(5, 4, 3)
    changed = windows.clone()
    changed[:, position] += 1.0
    encoder(windows)
    encoder(changed)
    moved = (tokens[1] - tokens[0]).abs().amax(dim=(0, 2))
    assert moved[:position].tolist() == [0.0] * position
    assert (moved[position:] > 1e-4).all()


def test_the_transformer_reads_its_last_token():
    encoder = TransformerEncoder(3, 4, hidden_size=8, n_layers=2, n_heads=2)
    windows = torch.randn(5, 4, 3)
    tokens = encoder.embedding(windows) + encoder.position
    for block in encoder.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(encoder(windows), encoder.norm(tokens[:, -1]))
