"""The information-maximizing curriculum: its weights by hand, its limits, and what it learns."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import logsumexp, softmax

from skvdd import GaussianMoEPolicy, IMCPolicy
from skvdd.mixture import imc
from skvdd.mixture.imc import Curriculum, imc_loss, next_curriculum
from skvdd.nn import gaussian_mixture as gm
from skvdd.nn.gaussian_mixture import GaussianMixture
from tests.estimators import SMALL
from tests.mixture.toys import random_parameters, true_log_density, two_lines

log_densities = arrays(np.float64, (5, 3), elements=st.floats(-50, 5))


# -- the curriculum -------------------------------------------------------------------------------


@given(log_densities, st.floats(0.1, 10))
def test_weights_and_responsibilities_are_those_of_the_definition(component, eta):
    before = softmax(np.arange(15.0).reshape(5, 3) / 7, axis=1)
    found = next_curriculum(torch.tensor(component), torch.tensor(before).log(), eta)
    log_weight = component / eta + np.log(before)
    expected = log_weight - logsumexp(log_weight, axis=1, keepdims=True)
    np.testing.assert_allclose(found.log_responsibility, expected, atol=1e-9)
    expected = log_weight - log_weight.max(axis=1, keepdims=True)
    np.testing.assert_allclose(found.log_weight, expected, atol=1e-9)


def test_a_large_eta_keeps_the_responsibilities_and_a_small_one_makes_the_best_expert_win():
    component = torch.tensor([[0.0, -1.0, -2.0]], dtype=torch.float64)
    before = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64).log()
    kept = next_curriculum(component, before, 1e9).log_responsibility
    torch.testing.assert_close(kept, before, atol=1e-8, rtol=0)
    won = next_curriculum(component, before, 1e-2).log_responsibility.exp()
    torch.testing.assert_close(won, torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64))


def test_rounds_of_equal_experts_build_up_to_a_choice():
    """p(z|n) after r rounds is the softmax of r times the log-density over eta."""
    component = torch.tensor([[0.0, -0.5]], dtype=torch.float64)
    curriculum = Curriculum(*(torch.full((1, 2), 0.5, dtype=torch.float64).log(),) * 2)
    for _ in range(4):
        curriculum = next_curriculum(component, curriculum.log_responsibility, 2.0)
    expected = torch.log_softmax(4 * component / 2.0, dim=1)
    torch.testing.assert_close(curriculum.log_responsibility, expected)


# -- the objective --------------------------------------------------------------------------------


def test_the_loss_is_weighted_likelihood_and_cross_entropy():
    (logits, mean, chol), actions = random_parameters(0)
    mixture = GaussianMixture(torch.log_softmax(logits, dim=1), mean, chol)
    component = gm.component_log_prob(mixture, actions[:, None])[:, 0].detach()
    curriculum = next_curriculum(component, torch.log_softmax(logits.detach(), dim=1), 1.5)
    loss = imc_loss(mixture, actions, curriculum)
    weight, share = curriculum.log_weight.exp(), curriculum.log_responsibility.exp()
    torch.testing.assert_close(loss.experts.detach(), -(weight * component).sum() / len(actions))
    gate = torch.log_softmax(logits, dim=1)
    torch.testing.assert_close(loss.gating, -(share * gate).sum() / len(actions))
    assert loss.total == loss.experts + loss.gating
    assert torch.autograd.grad(loss.experts, logits, retain_graph=True, allow_unused=True) == (
        None,
    )
    assert torch.autograd.grad(loss.gating, (mean, chol), allow_unused=True) == (None, None)


def test_with_the_responsibilities_as_weights_it_is_the_em_loss():
    """At eta = 1 and p(z|n) = xi_z(s_n), a round's shares are those of an E-step."""
    (logits, mean, chol), actions = random_parameters(1)
    mixture = GaussianMixture(torch.log_softmax(logits, dim=1), mean, chol)
    component = gm.component_log_prob(mixture, actions[:, None])[:, 0].detach()
    found = next_curriculum(component, mixture.log_gate.detach(), 1.0)
    expected = gm.log_responsibilities(mixture, actions[:, None])[:, 0]
    torch.testing.assert_close(found.log_responsibility, expected.detach())


def test_an_integer_weight_counts_a_row_so_many_times():
    """Sums over rows are equal, and so are their gradients; the losses are means."""
    leaves, actions = random_parameters(2, n=5)
    repeats = torch.tensor([2, 0, 1, 3, 1])
    component, before = (leaves[0].detach() * factor for factor in (2.0, -1.0))
    curriculum = next_curriculum(component, before, 1.5)

    def loss(rows, weight=None):
        logits, mean, chol = (leaf[rows] for leaf in leaves)
        mixture = GaussianMixture(torch.log_softmax(logits, dim=1), mean, chol)
        chosen = Curriculum(*(part[rows] for part in vars(curriculum).values()))
        return imc_loss(mixture, actions[rows], chosen, weight).total

    found = 5 * loss(torch.arange(5), repeats.double())
    expected = repeats.sum() * loss(torch.arange(5).repeat_interleave(repeats))
    torch.testing.assert_close(found, expected)
    gradients, wanted = (torch.autograd.grad(part, leaves) for part in (found, expected))
    torch.testing.assert_close(gradients, wanted)
    torch.testing.assert_close(loss(torch.arange(5), torch.ones(5).double()), loss(torch.arange(5)))


# -- what is learned -------------------------------------------------------------------------------


def test_one_expert_learns_by_maximum_likelihood(two_ways):
    X, y = two_ways
    own = IMCPolicy(1, window_size=2, **SMALL).fit(X, y)
    likelihood = GaussianMoEPolicy(1, window_size=2, **SMALL).fit(X, y)
    np.testing.assert_array_equal(own.log_prob(X, y), likelihood.log_prob(X, y))


def test_two_experts_find_both_lines():
    X, y = two_lines(0, 2000)
    policy = IMCPolicy(
        2,
        hidden_size=16,
        n_layers=1,
        max_iter=600,
        round_iter=50,
        learning_rate=5e-3,
        state_noise=0.0,
        random_state=0,
    ).fit(X, y)
    X, y = two_lines(1, 2000)
    # The best possible is 0; an expert astride both lines would lose more than a nat.
    assert np.mean(true_log_density(X, y) - policy.log_prob(X, y)) < 0.02


def test_a_round_looks_at_all_rows_once_in_so_many_iterations(two_ways, monkeypatch):
    X, y = two_ways
    rounds = []

    def counted(component, log_responsibility, eta):
        rounds.append(len(component))
        return next_curriculum(component, log_responsibility, eta)

    monkeypatch.setattr(imc, "next_curriculum", counted)
    IMCPolicy(2, window_size=2, round_iter=7, **SMALL).fit(X, y)
    assert rounds == [len(X)] * 3  # at iterations 0, 7 and 14 of 20


def test_a_smaller_eta_makes_the_experts_specialize_more():
    """The gating of broad, overlapping ways is harder where rows were assigned harder."""
    rng = np.random.RandomState(0)
    X = rng.uniform(-1, 1, size=(1000, 1))
    y = X + 0.5 * rng.choice([-1, 1], size=(1000, 1)) + 0.5 * rng.standard_normal((1000, 1))
    settings = {**SMALL, "max_iter": 200, "round_iter": 20, "learning_rate": 5e-3}
    widths = []
    for eta in (0.3, 100.0):
        policy = IMCPolicy(2, eta=eta, **settings).fit(X, y)
        _, covariances = policy.experts(X)
        widths.append(covariances.mean())
    assert widths[0] < 0.6 * widths[1]


@pytest.mark.parametrize(
    ("parameter", "value"), [("eta", 0.0), ("eta", -1), ("round_iter", 0), ("round_iter", 1.5)]
)
def test_parameters_are_checked(two_ways, parameter, value):
    X, y = two_ways
    with pytest.raises(ValueError, match=parameter):
        IMCPolicy(2, window_size=2, **{**SMALL, parameter: value}).fit(X, y)
