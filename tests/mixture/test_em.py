"""Maximum likelihood: its objective against autograd, and what it learns."""

import numpy as np
import pytest
import torch

from skvdd import GaussianMoEPolicy
from skvdd.mixture.em import em_loss
from skvdd.nn import gaussian_mixture as gm
from skvdd.nn.gaussian_mixture import GaussianMixture
from tests.estimators import SMALL
from tests.mixture.toys import SHARE, SLOPE, WIDTH, random_parameters, true_log_density, two_lines

# -- the objective --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [{}, {"n_experts": 1}, {"d_a": 1}])
def test_the_em_loss_has_the_gradient_of_the_negative_log_likelihood(shape):
    leaves, actions = random_parameters(0, **shape)
    logits, mean, chol = leaves
    mixture = GaussianMixture(torch.log_softmax(logits, dim=1), mean, chol)
    likelihood = -gm.log_prob(mixture, actions[:, None]).mean()
    expected = torch.autograd.grad(likelihood, leaves, retain_graph=True)
    for gradient, value in zip(
        torch.autograd.grad(em_loss(mixture, actions).total, leaves), expected, strict=True
    ):
        torch.testing.assert_close(gradient, value, atol=1e-13, rtol=1e-10)


def test_the_em_loss_exceeds_the_negative_log_likelihood_by_the_entropy_of_responsibilities():
    (logits, mean, chol), actions = random_parameters(1)
    mixture = GaussianMixture(torch.log_softmax(logits, dim=1), mean, chol)
    log_responsibility = gm.log_responsibilities(mixture, actions[:, None])[:, 0]
    entropy = -(log_responsibility.exp() * log_responsibility).sum(dim=1).mean()
    likelihood = -gm.log_prob(mixture, actions[:, None]).mean()
    torch.testing.assert_close(em_loss(mixture, actions).total, likelihood + entropy)


def test_the_two_halves_of_the_em_loss_teach_experts_and_gating_apart():
    (logits, mean, chol), actions = random_parameters(2)
    mixture = GaussianMixture(torch.log_softmax(logits, dim=1), mean, chol)
    loss = em_loss(mixture, actions)
    assert torch.autograd.grad(loss.experts, logits, retain_graph=True, allow_unused=True) == (
        None,
    )
    assert torch.autograd.grad(loss.gating, (mean, chol), allow_unused=True) == (None, None)


@pytest.mark.parametrize("encoder", ["mlp", "transformer"])
def test_the_gradient_in_every_weight_is_that_of_the_negative_log_likelihood(encoder):
    """Through the encoder too, into which experts and gating both send theirs."""
    rng = np.random.RandomState(0)
    X, y = rng.standard_normal((20, 2, 3)), rng.standard_normal((20, 2))
    settings = {**SMALL, "max_iter": 30, "hidden_size": 16}
    policy = GaussianMoEPolicy(3, window_size=2, encoder=encoder, **settings).fit(X, y)
    network = policy.network_.double()
    rows, actions = torch.tensor(X).flatten(1), torch.tensor(y)
    weights = dict(network.named_parameters())
    loss = em_loss(network(rows), actions).total
    likelihood = -gm.log_prob(network(rows), actions[:, None]).mean()
    found, expected = (torch.autograd.grad(part, weights.values()) for part in (loss, likelihood))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
    gating = em_loss(network(rows), actions).gating
    alone = torch.autograd.grad(gating, network.encoder.parameters())
    assert max(gradient.abs().max() for gradient in alone) > 1e-4


def test_an_integer_weight_counts_a_row_so_many_times():
    """Sums over rows are equal, and so are their gradients; the losses are means."""
    leaves, actions = random_parameters(3, n=5)
    repeats = torch.tensor([2, 0, 1, 3, 1])

    def loss(rows, weight=None):
        logits, mean, chol = (leaf[rows] for leaf in leaves)
        mixture = GaussianMixture(torch.log_softmax(logits, dim=1), mean, chol)
        return em_loss(mixture, actions[rows], weight)

    found = loss(torch.arange(5), repeats.double())
    expected = loss(torch.arange(5).repeat_interleave(repeats))
    for name in ("experts", "gating", "total"):
        one, other = 5 * getattr(found, name), repeats.sum() * getattr(expected, name)
        torch.testing.assert_close(one, other)
        gradients, wanted = (
            torch.autograd.grad(
                part, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for part in (one, other)
        )
        torch.testing.assert_close(gradients, wanted)
        assert max(gradient.abs().max() for gradient in gradients) > 1e-3
    torch.testing.assert_close(
        loss(torch.arange(5), torch.ones(5).double()).total, loss(torch.arange(5)).total
    )


# -- what is learned -------------------------------------------------------------------------------


def test_maximum_likelihood_recovers_a_mixture_of_two_lines(on_lines):
    X, y = two_lines(1, 4000)
    divergence = np.mean(true_log_density(X, y) - on_lines.log_prob(X, y))
    assert -0.01 < divergence < 0.05  # nats; an upper line alone would miss by more than one


def test_the_experts_are_the_lines_in_raw_units(on_lines):
    X = np.linspace(-0.9, 0.9, 20)[:, None]
    means, covariances = on_lines.experts(X)
    order = np.argsort(means[:, :, 0], axis=1)
    lines = np.stack([SLOPE * X[:, 0] - 1, SLOPE * X[:, 0] + 1], axis=1)
    np.testing.assert_allclose(np.take_along_axis(means[:, :, 0], order, 1), lines, atol=0.06)
    np.testing.assert_allclose(np.sqrt(covariances[:, :, 0, 0]), WIDTH, atol=0.03)
    gating = np.take_along_axis(on_lines.gating(X), order, axis=1)
    np.testing.assert_allclose(gating[:, 1], SHARE, atol=0.08)


def test_the_history_names_both_halves_of_the_objective(on_lines):
    first, last = on_lines.history_[0], on_lines.history_[-1]
    assert {"complete_nll", "experts", "gating"} < set(last)
    assert last["complete_nll"] == pytest.approx(last["experts"] + last["gating"], abs=1e-4)
    assert last["complete_nll"] < first["complete_nll"]
