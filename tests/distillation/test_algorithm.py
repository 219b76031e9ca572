"""The two steps of an iteration: noise levels, the start, and which parameters each step moves."""

import numpy as np
import pytest
import torch

from skvdd import VDDDistiller
from skvdd.distillation import algorithm
from skvdd.distillation.algorithm import noise_levels
from skvdd.distillation.vdd import gating_loss
from skvdd.mixture.em import em_loss
from skvdd.nn import gaussian_mixture as gm
from tests.distillation.toys import OwnTeacher
from tests.estimators import SMALL

# -- noise levels ---------------------------------------------------------------------------------

UNIFORM = torch.linspace(0, 1, 101, dtype=torch.float64)[:-1]
BOUNDS = (0.1, 0.4)


def levels(choice, progress=0.0):
    return noise_levels(choice, UNIFORM, progress, *BOUNDS)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("uniform", 0.1 + 0.3 * UNIFORM), ("loguniform", 0.1 * 4**UNIFORM)],
)
def test_noise_levels_have_the_stated_density_at_any_time(choice, expected):
    for progress in (0.0, 0.5, 1.0):
        torch.testing.assert_close(levels(choice, progress), expected)


def test_annealing_lowers_the_upper_bound_from_one_end_of_the_interval_to_the_other():
    torch.testing.assert_close(levels("anneal", 0.0), levels("loguniform"))
    torch.testing.assert_close(levels("anneal", 0.5), 0.1 * 2**UNIFORM)
    torch.testing.assert_close(levels("anneal", 1.0), torch.full_like(UNIFORM, 0.1))


@pytest.mark.parametrize("choice", ["uniform", "loguniform", "anneal"])
@pytest.mark.parametrize("as_given", [float, torch.tensor], ids=["number", "tensor"])
def test_noise_levels_keep_to_their_bounds_in_single_precision(choice, as_given):
    low, high = BOUNDS
    uniform = torch.rand(10_000, generator=torch.Generator().manual_seed(0))
    for progress in (0.0, 0.3, 1.0):
        sigma = noise_levels(choice, uniform, as_given(progress), *BOUNDS)
        assert sigma.shape == uniform.shape
        assert sigma.dtype == torch.float32
        assert low * (1 - 1e-6) <= sigma.min() <= sigma.max() <= high * (1 + 1e-6)


# -- the start ------------------------------------------------------------------------------------


class Watched(VDDDistiller):
    """A distiller that keeps what does the steps of its fit."""

    def _distillation(self, fit):
        self.steps_ = super()._distillation(fit)
        return self.steps_


def steps_of(X, y, teacher, **parameters):
    """Return the steps of a fit that has just begun."""
    settings = {**SMALL, "n_experts": 3, "init_iter": 5, "max_iter": 0, "window_size": 2}
    student = Watched(**{**settings, **parameters}).fit(X, y, teacher=teacher)
    student.steps_.network.train()
    return student.steps_


def test_random_experts_start_in_the_unit_cube_with_unit_variance(teacher, two_ways):
    X, y = two_ways
    start = {"n_experts": 200, "init": "random", "init_iter": 0, "max_iter": 0}
    student = VDDDistiller(window_size=2, **{**SMALL, **start}).fit(X, y, teacher=teacher)
    means, covariances = student.experts(X)
    mean, scale = teacher.network_.action_normalization.statistics
    standard = (means - mean) / scale
    assert (standard == standard[:1]).all()  # the same in every state
    assert -1 <= standard.min() < -0.95
    assert 0.95 < standard.max() <= 1
    expected = np.broadcast_to(np.diag(scale**2), covariances.shape)
    np.testing.assert_allclose(covariances, expected, rtol=1e-5)


# -- which parameters a step moves ----------------------------------------------------------------


def moved(steps, loss):
    """Return the parts of the network that a loss has a gradient in."""
    steps.network.zero_grad(set_to_none=True)
    loss.total.backward()
    return {
        name.split(".")[0]
        for name, parameter in steps.network.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().max() > 0
    }


@pytest.mark.parametrize("objective", ["smoothed", "published"])
@pytest.mark.parametrize("encoder", ["teacher", "mlp"])
def test_experts_move_the_encoder_and_the_gating_does_not(objective, encoder, teacher, two_ways):
    steps = steps_of(*two_ways, teacher, objective=objective, encoder=encoder)
    index = torch.arange(60)
    own = {"encoder"} if encoder == "mlp" else set()
    assert moved(steps, steps.expert_step(index, 0.0)) == {"trunk", "output"} | own
    assert moved(steps, steps.gating_step(index, 0.0)) == {"gating"}
    # What each step may change, by its optimizer, is what it has a gradient in.
    chosen = {id(p): name.split(".")[0] for name, p in steps.network.named_parameters()}
    experts, gating = ({chosen[id(p)] for p in u.parameters} for u in steps.updates(2))
    assert experts == {"trunk", "output"} | own
    assert gating == {"gating"}


def test_the_gating_does_not_shape_the_features_before_distillation_either(teacher, two_ways):
    network = steps_of(*two_ways, teacher, encoder="mlp").network
    X, y = two_ways
    rows = network.row_normalization(torch.tensor(X).flatten(1))
    actions = network.action_normalization(torch.tensor(y))
    halves = em_loss(network(rows), actions)
    for half, reaches in ((halves.experts, True), (halves.gating, False)):
        gradients = torch.autograd.grad(
            half, network.encoder.parameters(), retain_graph=True, allow_unused=True
        )
        assert any(gradient is not None for gradient in gradients) == reaches


@pytest.mark.parametrize("objective", ["smoothed", "published"])
def test_the_teacher_is_asked_where_the_objective_needs_its_score(objective, two_ways):
    """At draws of the experts, with noise of the level where the objective is smoothed."""
    asked = []

    class Recording(OwnTeacher):
        def score(self, context, actions, sigma):
            asked.append((actions, sigma))
            return super().score(context, actions, sigma)

    settings = {"objective": objective, "n_samples": 50, "n_experts": 1, "init_iter": 0}
    steps = steps_of(
        *two_ways, Recording(), state_noise=0.0, noise_min=0.5, noise_max=0.8, **settings
    )
    asked.clear()
    steps.expert_step(torch.arange(60), 0.0)
    actions, sigma = (torch.cat(parts) for parts in zip(*asked, strict=True))
    with torch.no_grad():
        expert = steps.network(steps.fit.rows)
    level = sigma if objective == "smoothed" else torch.zeros_like(sigma)
    factor = gm.smooth(expert, level[:, 0]).scale_tril[:, 0]
    white = torch.linalg.solve_triangular(
        factor, (actions - expert.mean).transpose(1, 2), upper=False
    )
    # Six thousand standard normal numbers: five standard errors.
    assert white.mean().abs() < 5 / 6000**0.5
    assert (white.var() - 1).abs() < 5 * (2 / 6000) ** 0.5
    assert (level > 0.49).all() == (objective == "smoothed")


def test_the_gating_learns_the_responsibilities_of_the_experts_as_they_are(teacher, two_ways):
    steps = steps_of(*two_ways, teacher, state_noise=0.0)
    index = torch.arange(60)
    with torch.no_grad():
        mixture = steps.network(steps.fit.rows)
        targets = gm.log_responsibilities(mixture, steps.fit.actions[:, None])[:, 0]
        expected = gating_loss(mixture.log_gate, targets)
    torch.testing.assert_close(steps.gating_step(index, 0.0).total.detach(), expected)


def test_scores_asked_in_blocks_are_those_asked_at_once(teacher, two_ways, monkeypatch):
    steps = steps_of(*two_ways, teacher)
    context = steps.contexts.of(torch.arange(60), steps.fit.rows)
    samples = torch.randn(60, 3, 4, 2, generator=torch.Generator().manual_seed(0))
    sigma = torch.linspace(0.1, 0.5, 60)
    once = steps._score(context, samples, sigma)
    monkeypatch.setattr(algorithm, "CACHED_ACTIONS", 7 * 12)
    # Matrix products of few rows round in another order: float32.
    torch.testing.assert_close(steps._score(context, samples, sigma), once, rtol=1e-5, atol=1e-5)


def test_each_iteration_has_so_many_steps_of_the_experts_and_one_of_the_gating(teacher, two_ways):
    updates = steps_of(*two_ways, teacher).updates(5)
    assert [(update.name, update.repeats) for update in updates] == [("experts", 5), ("gating", 1)]


def test_a_gating_of_which_nothing_is_trained_takes_no_steps(teacher, two_ways):
    steps = steps_of(*two_ways, teacher)
    steps.network.gating.requires_grad_(False)
    assert [update.name for update in steps.updates(2)] == ["experts"]
