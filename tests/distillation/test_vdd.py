"""The distillation objectives: against published values, autograd, quadrature and closed forms."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

from skvdd.distillation.vdd import (
    expert_loss,
    gating_loss,
    likelihood_loss,
    smoothed_expert_loss,
)
from skvdd.nn import gaussian_mixture as gm
from skvdd.nn.gaussian_mixture import GaussianMixture

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "vi_loss_f64.npz"
PUBLISHED_EPSILON = 1e-8  # what the published code adds inside its logarithms


def published_reference(gating, mean, chol, noise, scores, epsilon):
    """Eq. 16 in torch's own words: value, and gradients of mean and lower triangle of chol.

    Rows n, experts K: gating (n, K), mean (n, K, d), chol (n, K, d, d), noise (n, K, v, d).
    """
    mean, chol = mean.clone().requires_grad_(), chol.clone().requires_grad_()
    samples = mean[:, :, None] + torch.einsum("nkij,nkvj->nkvi", chol, noise)
    n_experts = mean.shape[1]
    density = []
    for z in range(n_experts):
        frozen = MultivariateNormal(mean[:, z].detach(), scale_tril=chol[:, z].detach())
        points = samples.permute(2, 1, 0, 3)  # v, K, n, d
        density.append(gating[:, z] * frozen.log_prob(points).exp())
    density = torch.stack(density)  # z, v, K, n
    own = torch.stack([density[z, :, z] for z in range(n_experts)])  # K, v, n
    marginal = density.sum(0).transpose(0, 1) + epsilon
    log_responsibility = (own / marginal).log().permute(2, 0, 1)
    entropy = MultivariateNormal(mean, scale_tril=chol).entropy()
    inner = ((scores * samples).sum(-1) + log_responsibility).mean(2) + entropy
    total = -(gating * inner).mean()
    grad_mean, grad_chol = torch.autograd.grad(total, (mean, chol))
    return total.detach(), grad_mean, grad_chol.tril()


def ours(gating, mean, chol, noise, scores, **options):
    mean, chol = mean.clone().requires_grad_(), chol.clone().requires_grad_()
    mixture = GaussianMixture(gating.log(), mean, chol)
    total = expert_loss(mixture, gm.rsample_experts(mixture, noise), scores, **options).total
    grad_mean, grad_chol = torch.autograd.grad(total, (mean, chol))
    return total.detach(), grad_mean, grad_chol.tril()


def random_arguments(seed, n=5, n_experts=3, n_samples=4, d_a=2):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    chol = 0.3 * normal(n, n_experts, d_a, d_a).tril(-1)
    chol = chol + torch.diag_embed(0.5 + normal(n, n_experts, d_a).abs())
    noise = normal(n, n_experts, n_samples, d_a)
    return {
        "gating": torch.softmax(normal(n, n_experts), dim=1),
        "mean": normal(n, n_experts, d_a),
        "chol": chol,
        "noise": noise,
        "scores": normal(*noise.shape),
    }


def random_mixture(seed, **shape):
    arguments = random_arguments(seed, **shape)
    return GaussianMixture(arguments["gating"].log(), arguments["mean"], arguments["chol"])


def assert_all_close(actual, expected, atol):
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=atol, rtol=0)


# -- the published values -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    """The published values, batch and time flattened to rows."""
    with np.load(GOLDEN) as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


def rows(values):
    """Batch, expert, time, ... to (batch, time), expert, ..."""
    return values.transpose(1, 2).flatten(0, 1)


def golden_arguments(golden):
    return {
        "gating": rows(golden["gating"]),
        "mean": rows(golden["means"]),
        "chol": rows(golden["chols"]),
        "noise": golden["eps_vbcta"].permute(1, 3, 2, 0, 4).flatten(0, 1),
        "scores": golden["scores_bcvta"].permute(0, 3, 1, 2, 4).flatten(0, 1),
    }


def test_every_term_is_the_published_one(golden):
    arguments = golden_arguments(golden)
    mixture = GaussianMixture(arguments["gating"].log(), arguments["mean"], arguments["chol"])
    samples = gm.rsample_experts(mixture, arguments["noise"])
    loss = expert_loss(mixture, samples, arguments["scores"])
    published_samples = golden["samples_vbcta"].permute(1, 3, 2, 0, 4).flatten(0, 1)
    assert_all_close(
        (samples, loss.score, loss.entropy),
        (published_samples, golden["term_score_dot_action_btcv"], golden["term_entropy_btc"]),
        atol=1e-12,
    )
    assert_all_close((loss.log_responsibility,), (golden["log_resp_stable_btcv"],), atol=1e-9)


def test_the_reference_is_the_published_code_once_it_adds_its_epsilon(golden):
    reference = published_reference(**golden_arguments(golden), epsilon=PUBLISHED_EPSILON)
    published = golden["vi_loss"], rows(golden["grad_means"]), rows(golden["grad_chols"]).tril()
    assert_all_close(reference, published, atol=1e-9)


def test_our_objective_is_the_published_one_without_its_epsilon(golden):
    arguments = golden_arguments(golden)
    total, *gradients = ours(**arguments)
    reference, *reference_gradients = published_reference(**arguments, epsilon=0.0)
    assert_all_close((total,), (reference,), atol=1e-10)
    assert_all_close(gradients, reference_gradients, atol=1e-9)
    # What is left between ours and the published value is that term and nothing else.
    assert 1e-8 < abs(total - golden["vi_loss"]) < 1e-6


def test_the_gating_loss_is_the_published_one(golden):
    targets = golden["gate_targets_btc"]
    loss = gating_loss(rows(golden["gating"]).log(), targets.log())
    assert_all_close((loss,), (golden["gating_loss"],), atol=1e-9)
    logits = golden["gating_logits"].clone().requires_grad_()
    gating = torch.softmax(rows(logits), dim=1) + PUBLISHED_EPSILON
    (gradient,) = torch.autograd.grad(gating_loss(gating.log(), targets.log()), logits)
    assert_all_close((gradient,), (golden["grad_gating_logits"],), atol=1e-9)


# -- the published form, without the file ---------------------------------------------------------


@pytest.mark.parametrize("shape", [{}, {"n_experts": 1}, {"d_a": 1}, {"n_samples": 1, "d_a": 4}])
def test_the_expert_loss_equals_an_independent_reference(shape):
    arguments = random_arguments(0, **shape)
    reference = published_reference(**arguments, epsilon=0.0)
    assert_all_close(ours(**arguments), reference, atol=1e-10)


def test_no_gradient_flows_through_scores_or_gating():
    arguments = random_arguments(1)
    log_gate = arguments["gating"].log().requires_grad_()
    scores = arguments["scores"].requires_grad_()
    mean = arguments["mean"].requires_grad_()
    mixture = GaussianMixture(log_gate, mean, arguments["chol"])
    samples = gm.rsample_experts(mixture, arguments["noise"])
    sigma = torch.full((len(mean),), 0.3, dtype=torch.float64)
    for loss in (
        expert_loss(mixture, samples, scores),
        smoothed_expert_loss(mixture, samples, scores, sigma),
    ):
        gradients = torch.autograd.grad(
            loss.total, (log_gate, scores, mean), allow_unused=True, retain_graph=True
        )
        assert gradients[0] is None
        assert gradients[1] is None
        assert gradients[2].abs().max() > 0


def test_parameters_reach_the_responsibilities_through_the_samples_alone():
    mixture, noise = random_mixture(2), random_arguments(2)["noise"]
    mean, chol = mixture.mean.requires_grad_(), mixture.scale_tril.requires_grad_()
    cut = gm.rsample_experts(mixture, noise).detach()
    fixed = expert_loss(mixture, cut, torch.zeros_like(cut))
    assert not fixed.log_responsibility.requires_grad
    # With neither samples nor scores only the entropy is left: it knows no mean.
    grad_mean, grad_chol = torch.autograd.grad(fixed.total, (mean, chol), allow_unused=True)
    assert grad_mean is None
    weight = mixture.log_gate.exp() / mixture.log_gate.numel()
    expected = -weight[..., None] / chol.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(grad_chol, torch.diag_embed(expected))


def test_the_weightings_agree_where_the_gating_is_uniform():
    arguments = random_arguments(3)
    arguments["gating"] = torch.full_like(arguments["gating"], 1 / 3)
    assert_all_close(
        ours(**arguments, weighting="uniform"), ours(**arguments, weighting="gating"), atol=1e-12
    )


def test_uniform_weighting_counts_every_expert_alike():
    arguments = random_arguments(4)
    mixture = GaussianMixture(arguments["gating"].log(), arguments["mean"], arguments["chol"])
    samples = gm.rsample_experts(mixture, arguments["noise"])
    loss = expert_loss(mixture, samples, arguments["scores"], weighting="uniform")
    inner = (loss.score + loss.log_responsibility).mean(dim=2) + loss.entropy
    torch.testing.assert_close(loss.total, -inner.mean() / 3)


def test_one_expert_is_responsible_for_everything():
    mixture, arguments = random_mixture(5, n_experts=1), random_arguments(5, n_experts=1)
    samples = gm.rsample_experts(mixture, arguments["noise"])
    loss = expert_loss(mixture, samples, arguments["scores"])
    assert (loss.log_responsibility == 0).all()


def test_the_gating_loss_is_the_entropy_where_gating_and_responsibilities_agree():
    log_gate = random_mixture(6).log_gate
    probability = log_gate.exp()
    entropy = Categorical(probs=probability).entropy().mean()
    torch.testing.assert_close(gating_loss(log_gate, log_gate), entropy / 3)
    logits = log_gate.clone().requires_grad_()
    loss = gating_loss(torch.log_softmax(logits, dim=1), log_gate)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-15, rtol=0)


def test_the_gating_learns_from_responsibilities_but_never_moves_them():
    log_gate = random_mixture(7).log_gate.requires_grad_()
    targets = random_mixture(8).log_gate.requires_grad_()
    grad_gate, grad_targets = torch.autograd.grad(
        gating_loss(log_gate, targets), (log_gate, targets), allow_unused=True
    )
    assert grad_targets is None
    torch.testing.assert_close(grad_gate, -targets.exp().detach() / targets.numel())


# -- the smoothed form ----------------------------------------------------------------------------


def line_mixture(gating, mean, scale):
    """A mixture over one action dimension in one state."""
    values = [torch.as_tensor(v, dtype=torch.float64) for v in (gating, mean, scale)]
    return GaussianMixture(
        values[0].log()[None], values[1][None, :, None], values[2][None, :, None, None]
    )


def hermite(n_nodes):
    """Nodes and weights of expectations under a standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n_nodes)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def noised_draws(mixture, sigma, nodes):
    """Draws ``mu + L eps + sigma eps'`` at all pairs of nodes, shape (1, K, v, 1)."""
    eps, noise = (
        grid.flatten()[None, None, :, None] for grid in torch.meshgrid(nodes, nodes, indexing="ij")
    )
    n_experts = mixture.mean.shape[1]
    return gm.rsample_experts(mixture, eps.expand(1, n_experts, -1, 1)) + sigma * noise


def smoothed_divergence(gating, mean, scale, teacher, sigma):
    """KL of the noised student to the noised teacher on a fine grid, by torch's distributions."""
    gate, teacher_mean, teacher_scale = (
        t.flatten() for t in (teacher.log_gate, teacher.mean, teacher.scale_tril)
    )
    grid = torch.linspace(-12, 12, 8001, dtype=torch.float64)
    student = MixtureSameFamily(
        Categorical(probs=gating), Normal(mean, (scale**2 + sigma**2).sqrt())
    )
    target = MixtureSameFamily(
        Categorical(logits=gate), Normal(teacher_mean, (teacher_scale**2 + sigma**2).sqrt())
    )
    log_q = student.log_prob(grid)
    return torch.trapezoid(log_q.exp() * (log_q - target.log_prob(grid)), grid)


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_the_smoothed_loss_descends_the_divergence_of_the_noised_densities(sigma):
    teacher = line_mixture([0.5, 0.3, 0.2], [-1.5, 0.2, 1.6], [0.5, 0.7, 0.4])
    gating = torch.tensor([0.35, 0.65], dtype=torch.float64)
    mean = torch.tensor([-0.9, 1.1], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.8, 0.6], dtype=torch.float64, requires_grad=True)
    student = GaussianMixture(gating.log()[None], mean[None, :, None], scale[None, :, None, None])
    level = torch.tensor([sigma], dtype=torch.float64)
    nodes, weights = hermite(64)
    samples = noised_draws(student, sigma, nodes)
    scores = gm.action_score(gm.smooth(teacher, level), samples.detach().flatten(1, 2))
    loss = smoothed_expert_loss(student, samples, scores.view_as(samples), level)
    assert not loss.gap.requires_grad

    inner = (loss.gap * samples).sum(dim=-1)
    drawn = (sigma * gating * inner.mean(dim=2)).mean()
    torch.testing.assert_close(loss.total, drawn)
    # The same sum, with each draw weighted by its probability: an exact expectation.
    expected = (
        sigma * gating * (inner * torch.outer(weights, weights).flatten()).sum(dim=2)
    ).mean()
    gradients = torch.autograd.grad(expected, (mean, scale), retain_graph=True)
    divergence = smoothed_divergence(gating, mean, scale, teacher, sigma) * sigma / 2
    assert_all_close(gradients, torch.autograd.grad(divergence, (mean, scale)), atol=1e-7)
    assert min(gradient.abs().max() for gradient in gradients) > 1e-2


@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0])
def test_nothing_is_left_of_the_gap_where_student_equals_teacher(sigma):
    mixture, noise = random_mixture(9), random_arguments(9)["noise"]
    mean, chol = mixture.mean.requires_grad_(), mixture.scale_tril.requires_grad_()
    level = torch.full((len(mean),), sigma, dtype=torch.float64)
    samples = gm.rsample_experts(mixture, noise) + sigma * random_arguments(10)["noise"]
    noised = gm.smooth(mixture.detach(), level)
    scores = gm.action_score(noised, samples.detach().flatten(1, 2)).view_as(samples)
    loss = smoothed_expert_loss(mixture, samples, scores, level)
    assert (loss.gap == 0).all()
    for gradient in torch.autograd.grad(loss.total, (mean, chol)):
        assert (gradient == 0).all()


@pytest.mark.parametrize(
    ("objective", "width"),
    [("published", lambda s, t: math.hypot(s, t)), ("smoothed", lambda s, t: s)],
)
@pytest.mark.parametrize("sigma", [0.2, 0.5])
def test_the_published_optimum_is_wider_by_the_noise_and_the_smoothed_one_is_the_teacher(
    objective, width, sigma
):
    teacher = line_mixture([1.0], [0.4], [0.3])
    level = torch.tensor([sigma], dtype=torch.float64)
    nodes = torch.tensor([-1.0, 1.0], dtype=torch.float64)  # mean 0 and variance 1 are enough here

    def gradients(mean, scale):
        student = line_mixture([1.0], [mean], [scale])
        location, chol = student.mean.requires_grad_(), student.scale_tril.requires_grad_()
        samples = noised_draws(student, sigma if objective == "smoothed" else 0.0, nodes)
        scores = gm.action_score(gm.smooth(teacher, level), samples.detach().flatten(1, 2))
        scores = scores.view_as(samples)
        if objective == "published":
            total = expert_loss(student, samples, scores).total
        else:
            total = smoothed_expert_loss(student, samples, scores, level).total
        return [gradient.item() for gradient in torch.autograd.grad(total, (location, chol))]

    optimum = width(0.3, sigma)
    assert gradients(0.4, optimum) == pytest.approx([0.0, 0.0], abs=1e-12)
    assert gradients(0.4, 1.1 * optimum)[1] > 0.01 > -0.01 > gradients(0.4, 0.9 * optimum)[1]
    assert gradients(0.5, optimum)[0] > 0.01 > -0.01 > gradients(0.3, optimum)[0]


def test_the_smoothed_weights_are_sigma_times_the_experts_weights():
    arguments = random_arguments(11)
    mixture = GaussianMixture(arguments["gating"].log(), arguments["mean"], arguments["chol"])
    samples = gm.rsample_experts(mixture, arguments["noise"])
    sigma = torch.linspace(0.1, 0.5, len(samples), dtype=torch.float64)
    for weighting, weight in (("gating", arguments["gating"]), ("uniform", 1 / 3)):
        loss = smoothed_expert_loss(
            mixture, samples, arguments["scores"], sigma, weighting=weighting
        )
        inner = (loss.gap * samples).sum(dim=-1).mean(dim=2)
        torch.testing.assert_close(loss.total, (sigma[:, None] * weight * inner).mean())


# -- the forward half -----------------------------------------------------------------------------


def test_the_forward_half_has_the_gradient_of_the_weighted_likelihood_over_k():
    arguments = random_arguments(3)
    mean, chol = (arguments[name].clone().requires_grad_() for name in ("mean", "chol"))
    gate = arguments["gating"]
    actions = arguments["noise"][:, 0, 0]
    weight = torch.linspace(0.1, 0.5, len(actions), dtype=torch.float64)
    experts = MultivariateNormal(mean, scale_tril=chol)
    log_q = MixtureSameFamily(Categorical(probs=gate), experts).log_prob(actions)
    expected = torch.autograd.grad(-(weight * log_q).mean() / gate.shape[1], (mean, chol))
    loss = likelihood_loss(GaussianMixture(gate.log(), mean, chol), actions, weight)
    actual = torch.autograd.grad(loss, (mean, chol))
    torch.testing.assert_close(actual[0], expected[0])
    torch.testing.assert_close(actual[1].tril(), expected[1].tril())


def test_the_forward_half_leaves_the_gating_alone():
    arguments = random_arguments(4)
    log_gate = arguments["gating"].log().requires_grad_()
    mean = arguments["mean"].clone().requires_grad_()
    loss = likelihood_loss(
        GaussianMixture(log_gate, mean, arguments["chol"]),
        arguments["noise"][:, 0, 0],
        torch.ones(len(mean), dtype=torch.float64),
    )
    assert torch.autograd.grad(loss, log_gate, allow_unused=True) == (None,)


def test_the_forward_half_is_at_rest_where_the_student_is_the_teacher():
    """Noised actions under the noised student, integrated over a fine grid of actions."""
    gate = torch.tensor([[0.3, 0.7]], dtype=torch.float64)
    mean = torch.tensor([[[-1.0], [0.8]]], dtype=torch.float64).requires_grad_()
    chol = torch.tensor([[[[0.3]], [[0.5]]]], dtype=torch.float64).requires_grad_()
    sigma = torch.tensor([0.4], dtype=torch.float64)
    noised = gm.smooth(GaussianMixture(gate.log(), mean, chol), sigma)
    grid = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    density = gm.log_prob(noised.detach(), grid[None, :, None]).exp()[0]
    rows = GaussianMixture(
        *(
            part.expand(len(grid), *part.shape[1:])
            for part in (noised.log_gate, noised.mean, noised.scale_tril)
        )
    )
    loss = likelihood_loss(rows, grid[:, None], len(grid) * density * (grid[1] - grid[0]))
    for gradient in torch.autograd.grad(loss, (mean, chol)):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-8, rtol=0)


# -- weights of states ----------------------------------------------------------------------------

REPEATS = torch.tensor([2, 0, 1, 3, 1])


def weighted_loss(objective, arguments, weight):
    """One of the objectives, of states with weights."""
    mixture = GaussianMixture(arguments["gating"].log(), arguments["mean"], arguments["chol"])
    samples = gm.rsample_experts(mixture, arguments["noise"])
    actions = arguments["noise"][:, 0, 0]
    if objective == "expert":
        return expert_loss(mixture, samples, arguments["scores"], weight=weight).total
    if objective == "smoothed":
        sigma = 0.1 + actions[:, 0].square()
        return smoothed_expert_loss(
            mixture, samples, arguments["scores"], sigma, weight=weight
        ).total
    if objective == "likelihood":
        return likelihood_loss(mixture, actions, weight)
    targets = gm.log_responsibilities(mixture, actions[:, None])[:, 0]
    return gating_loss(mixture.log_gate, targets, weight)


@pytest.mark.parametrize("objective", ["expert", "smoothed", "likelihood", "gating"])
def test_an_integer_weight_counts_a_state_so_many_times(objective):
    """Sums over states are equal, and so are their gradients; the losses are means."""
    arguments = random_arguments(12)
    leaves = [arguments[name].requires_grad_() for name in ("gating", "mean", "chol")]
    repeated = {name: part.repeat_interleave(REPEATS, dim=0) for name, part in arguments.items()}
    ones = torch.ones(int(REPEATS.sum()), dtype=torch.float64)
    found = weighted_loss(objective, arguments, REPEATS.double()) * len(REPEATS)
    expected = weighted_loss(objective, repeated, ones) * len(ones)
    torch.testing.assert_close(found, expected)
    gradients, wanted = (
        torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        for total in (found, expected)
    )
    torch.testing.assert_close(gradients, wanted)
    assert max(gradient.abs().max() for gradient in gradients) > 1e-3


@pytest.mark.parametrize("objective", ["expert", "smoothed", "gating"])
def test_no_weight_is_a_weight_of_one(objective):
    arguments = random_arguments(13)
    ones = torch.ones(len(arguments["mean"]), dtype=torch.float64)
    torch.testing.assert_close(
        weighted_loss(objective, arguments, None), weighted_loss(objective, arguments, ones)
    )
