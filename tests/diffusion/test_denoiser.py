"""The denoiser: Karras' preconditioning, and the three calls that a distiller needs."""

import pytest
import torch

from skvdd.diffusion.denoiser import ContextDenoiser, precondition
from skvdd.encoders import MLPEncoder, TransformerEncoder
from skvdd.nn.layout import RowLayout

LAYOUT = RowLayout(n_states=3, window_size=2)
ENCODERS = {"mlp": MLPEncoder(12, 1), "transformer": TransformerEncoder(12, 1, n_heads=2)}
SIGMA_DATA = 0.5


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def make_denoiser(n_actions=2, **arguments):
    network = ContextDenoiser(LAYOUT, n_actions, ENCODERS["mlp"], 8, 2, SIGMA_DATA, **arguments)
    return network.double()


def perturb(network):
    """Move every parameter, as training would."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64)


def levels(*shape):
    """Noise levels between 0.01 and 10."""
    return 10 ** (3 * torch.rand(shape, dtype=torch.float64) - 2)


# -- preconditioning ------------------------------------------------------------------------


def test_a_fresh_denoiser_shrinks_by_c_skip():
    """The head starts at zero, so D = c_skip a, c_skip = sigma_d^2 / (sigma^2 + sigma_d^2)."""
    network, actions, sigma = make_denoiser(), normal(4, 5, 2), levels(4, 5)
    c_skip = 0.25 / (sigma[..., None] ** 2 + 0.25)
    torch.testing.assert_close(network.denoise(normal(4, 12), actions, sigma), c_skip * actions)


def test_the_head_counts_with_c_out():
    """c_out = sigma sigma_d / sqrt(sigma^2 + sigma_d^2), seen through a head that is constant."""
    network, sigma = make_denoiser(), levels(4, 5)
    head = torch.tensor([2.0, -3.0], dtype=torch.float64)
    with torch.no_grad():
        network.output.bias.copy_(head)
    c_out = (sigma * 0.5 / (sigma**2 + 0.25).sqrt())[..., None]
    denoised = network.denoise(normal(4, 12), torch.zeros(4, 5, 2, dtype=torch.float64), sigma)
    torch.testing.assert_close(denoised, c_out * head)


def test_the_head_reads_actions_times_c_in():
    """c_in = 1 / sqrt(sigma^2 + sigma_d^2), seen at the entrance of the head."""
    network, actions, sigma = make_denoiser(), normal(4, 5, 2), levels(4, 5)
    seen = []
    network.input.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    network.denoise(normal(4, 12), actions, sigma)
    torch.testing.assert_close(seen[0], actions / (sigma[..., None] ** 2 + 0.25).sqrt())


def test_without_noise_the_denoiser_is_the_identity():
    network, actions = perturb(make_denoiser()), normal(4, 5, 2)
    sigma = torch.full((4, 1), 1e-9, dtype=torch.float64)
    torch.testing.assert_close(
        network.denoise(normal(4, 12), actions, sigma), actions, rtol=0, atol=1e-7
    )


def test_the_head_depends_on_state_and_noise_level():
    network = perturb(make_denoiser())
    context, actions, sigma = normal(4, 12), normal(4, 5, 2), levels(4, 1)
    clean, noise = normal(4, 5, 2), torch.zeros(4, 5, 2, dtype=torch.float64)
    denoised = network.denoise(context, actions, sigma)
    assert (network.denoise(context + 1.0, actions, sigma) - denoised).abs().min() > 1e-6
    # Without noise and for clean actions, what is left of the residual is the head's own answer.
    residuals = [
        network.residual(context, clean, noise, torch.full((4, 5), level, dtype=torch.float64))
        for level in (0.5, 0.6)
    ]
    assert (residuals[0] - residuals[1]).abs().min() > 1e-6


# -- score and loss -------------------------------------------------------------------------


def test_the_score_is_tweedies_formula():
    network = perturb(make_denoiser())
    context, actions, sigma = normal(4, 12), normal(4, 5, 2), levels(4, 5)
    gap = network.denoise(context, actions, sigma) - actions
    torch.testing.assert_close(network.score(context, actions, sigma), gap / sigma[..., None] ** 2)


def test_the_residual_is_the_weighted_denoising_error():
    """||residual||^2 = lambda ||D - a||^2, lambda = (sigma^2 + sigma_d^2) / (sigma sigma_d)^2."""
    network = perturb(make_denoiser())
    context, clean, noise, sigma = normal(4, 12), normal(4, 5, 2), normal(4, 5, 2), levels(4, 5)
    noisy = clean + sigma[..., None] * noise
    error = (network.denoise(context, noisy, sigma) - clean).square().sum(dim=-1)
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    residual = network.residual(context, clean, noise, sigma)
    torch.testing.assert_close(residual.square().sum(dim=-1), weight * error)


def test_a_fresh_denoiser_has_a_target_of_unit_variance_at_every_level():
    """Data of deviation sigma_d: E ||residual||^2 is one per dimension, whatever the noise is."""
    network = make_denoiser(n_actions=1)
    # Four points with exactly the first two moments of (a, eps).
    clean = SIGMA_DATA * torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    noise = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    for level in (0.01, 0.3, 1.0, 50.0):
        sigma = torch.full((1, 4), level, dtype=torch.float64)
        residual = network.residual(
            normal(1, 12), clean[None, :, None], noise[None, :, None], sigma
        )
        assert residual.square().mean().item() == pytest.approx(1.0)


# -- shapes and rows ------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["denoise", "score"])
def test_one_level_for_a_state_is_that_level_for_each_of_its_actions(call):
    function = getattr(perturb(make_denoiser()), call)
    context, actions, sigma = normal(4, 12), normal(4, 5, 2), levels(4, 1)
    torch.testing.assert_close(
        function(context, actions, sigma), function(context, actions, sigma.repeat(1, 5))
    )


@pytest.mark.parametrize("call", ["denoise", "score"])
def test_actions_do_not_see_each_other(call):
    function = getattr(perturb(make_denoiser()), call)
    context, actions, sigma = normal(4, 12), normal(4, 5, 2), levels(4, 5)
    whole = function(context, actions, sigma)
    alone = function(context[2:3], actions[2:3, 1:2], sigma[2:3, 1:2])
    torch.testing.assert_close(alone, whole[2:3, 1:2])


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_the_configuration_rebuilds_the_same_network(encoder):
    network = perturb(ContextDenoiser(LAYOUT, 2, encoder, 8, 2, SIGMA_DATA))
    again = ContextDenoiser(**network.config)
    again.load_state_dict(network.state_dict())
    rows, actions, sigma = torch.randn(4, 6), torch.randn(4, 5, 2), torch.rand(4, 1)
    context = network.context(rows)
    assert torch.equal(again.context(rows), context)
    assert torch.equal(
        again.denoise(context, actions, sigma), network.denoise(context, actions, sigma)
    )


# -- consistency models ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["edm", "noise"])
def test_at_the_boundary_the_denoiser_is_the_identity_to_the_last_bit(kind):
    network = perturb(make_denoiser(preconditioning=kind, boundary=0.03))
    context, actions = normal(4, 12), normal(4, 5, 2)
    sigma = torch.full((4, 5), 0.03, dtype=torch.float64)
    assert torch.equal(network.denoise(context, actions, sigma), actions)
    assert not torch.allclose(network.denoise(context, actions, 2 * sigma), actions, atol=1e-3)


def test_preconditioning_with_a_boundary_is_that_of_song():
    sigma = levels(20) + 0.1
    above = sigma - 0.1
    c_skip, c_out, c_in = precondition("edm", sigma, 0.5, 0.1)
    torch.testing.assert_close(c_skip, 0.25 / (above**2 + 0.25))
    torch.testing.assert_close(c_out, 0.5 * above / (sigma**2 + 0.25).sqrt())
    torch.testing.assert_close(c_in, 1 / (sigma**2 + 0.25).sqrt())
    c_skip, c_out, c_in = precondition("noise", sigma, 0.5, 0.1)
    torch.testing.assert_close(c_skip, torch.ones_like(sigma))
    torch.testing.assert_close(c_out, -above)
    torch.testing.assert_close(c_in, 1 / (sigma**2 + 1).sqrt())


@pytest.mark.parametrize("kind", ["edm", "noise"])
def test_without_a_boundary_nothing_changes_to_the_last_bit(kind):
    sigma = levels(20)
    variance = sigma.square() + 0.25
    expected = {
        "edm": (0.25 / variance, sigma * 0.5 * variance.rsqrt(), variance.rsqrt()),
        "noise": (torch.ones_like(sigma), -sigma, (1 + sigma.square()).rsqrt()),
    }[kind]
    for actual, before in zip(precondition(kind, sigma, 0.5), expected, strict=True):
        assert torch.equal(actual, before)


def test_the_end_of_a_jump_says_nothing_at_first():
    plain, jumping = perturb(make_denoiser()), make_denoiser(target_min=0.1)
    jumping.load_state_dict({**jumping.state_dict(), **plain.state_dict()})
    context, actions, sigma = normal(4, 12), normal(4, 5, 2), levels(4, 5)
    answer = jumping.denoise(context, actions, sigma, 0.5 * sigma)
    torch.testing.assert_close(answer, plain.denoise(context, actions, sigma), atol=0, rtol=0)
    perturb(jumping.target_embedding)
    other = jumping.denoise(context, actions, sigma, 0.5 * sigma)
    assert ((other - answer).abs().amax(dim=-1) > 1e-6).all()
    ends = torch.stack([jumping.target_embedding(end) for end in torch.tensor([0.0, 0.1, 5.0])])
    assert torch.pdist(ends).min() > 0.1


def test_a_jump_may_end_at_level_zero():
    network = perturb(make_denoiser(target_min=0.1))
    actions = normal(4, 5, 2).requires_grad_()
    answer = network.denoise(normal(4, 12), actions, levels(4, 5), torch.zeros(4, 5).double())
    answer.sum().backward()
    assert answer.isfinite().all()
    assert actions.grad.isfinite().all()
    head = dict(network.named_parameters())
    assert head["target_embedding.linear.weight"].grad.abs().max() > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


# -- the range of the data ------------------------------------------------------------------


def test_the_range_of_actions_is_unbounded_at_first_and_part_of_the_weights():
    network = make_denoiser()
    assert network.action_range.tolist() == [[-float("inf")] * 2, [float("inf")] * 2]
    network.action_range.copy_(torch.tensor([[-1.0, -2.0], [3.0, 4.0]]))
    again = make_denoiser()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.action_range, network.action_range)
