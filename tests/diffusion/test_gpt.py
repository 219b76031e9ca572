"""The interleaved transformer: the published values, and what a distiller and a sampler ask."""

from pathlib import Path

import numpy as np
import pytest
import torch

from skvdd.diffusion import gpt
from skvdd.diffusion.beso import gpt_from_state_dict, read_state_dict
from skvdd.diffusion.denoiser import precondition
from skvdd.diffusion.gpt import GPTDenoiser
from skvdd.diffusion.noise import SCHEDULES
from skvdd.nn.blocks import CausalAttentionBlock
from skvdd.nn.layout import RowLayout
from skvdd.nn.samplers import SAMPLERS, draw_actions

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CASES = {"d3il_w5_nogoal_lin": (5, 3, 1), "beso_w4_goal_mlp": (4, 3, 1)}
WINDOWS = [(name, length) for name, lengths in CASES.items() for length in lengths]


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def published(name):
    """Return a published network and the values it was seen to give."""
    state_dict = read_state_dict(GOLDEN / f"{name}_state.npz")
    with np.load(GOLDEN / f"{name}_io.npz") as file:
        values = {key: torch.from_numpy(file[key]) for key in file.files}
    return gpt_from_state_dict(state_dict, n_heads=2, sigma_data=0.5), values


def window(values, length):
    """Return states, noisy actions, noise levels, and goals or None."""
    states, actions, sigma = (
        values[f"t{length}_{key}"] for key in ("states", "noisy_actions", "sigmas")
    )
    goals = values.get(f"t{length}_goals")
    return states, actions, sigma, None if goals is None else goals.flatten(1)


def close(actual, expected):
    """Agree to 1e-5, of the magnitude where that is large."""
    bound = 1e-5 * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual, expected, rtol=0, atol=bound)


def make_denoiser(goal_dim=0, **arguments):
    sizes = {
        "layout": RowLayout(n_states=3, window_size=4, goal_dim=goal_dim),
        "n_actions": 2,
        "hidden_size": 12,
        "n_layers": 2,
        "n_heads": 2,
        "sigma_data": 0.5,
    }
    return perturb(GPTDenoiser(**(sizes | arguments)).double())


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


# -- the published values -------------------------------------------------------------------


@pytest.mark.parametrize(("name", "length"), WINDOWS)
def test_denoised_actions_are_the_published_ones(name, length):
    model, values = published(name)
    close(model(*window(values, length)), values[f"t{length}_denoised"])


@pytest.mark.parametrize("length", [4, 3, 1])
def test_without_goals_the_goals_are_zeros(length):
    model, values = published("beso_w4_goal_mlp")
    *inputs, goals = window(values, length)
    expected = values[f"t{length}_denoised_uncond"]
    close(model(*inputs), expected)
    close(model(*inputs, torch.zeros_like(goals)), expected)
    assert (model(*inputs, goals) - expected).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "length"), WINDOWS)
def test_the_network_inside_answers_as_the_published_one(name, length):
    model, values = published(name)
    states, actions, sigma, goals = window(values, length)
    seen = []
    model.output.register_forward_hook(lambda module, args, output: seen.append(output))
    model(states, actions, sigma, goals)
    close(seen[0], values[f"t{length}_inner_output"])


@pytest.mark.parametrize(("name", "length"), WINDOWS)
def test_scores_are_the_published_ones(name, length):
    model, values = published(name)
    states, actions, sigma, goals = window(values, length)
    score = (model(states, actions, sigma, goals) - actions) / sigma[:, None, None] ** 2
    close(score, values[f"t{length}_score"])


@pytest.mark.parametrize(("name", "length"), WINDOWS)
def test_the_loss_is_the_mean_square_of_the_residual(name, length):
    model, values = published(name)
    states, _, sigma, goals = window(values, length)
    clean, noise = values[f"t{length}_clean_actions"], values[f"t{length}_noise"]
    level = sigma[:, None, None]
    noisy = clean + level * noise
    _, c_out, _ = precondition("edm", level, 0.5)
    residual = (model(states, noisy, sigma, goals) - clean) / c_out
    close(residual.square().mean(), values[f"t{length}_loss"])


@pytest.mark.parametrize(("name", "length"), [("d3il_w5_nogoal_lin", 5), ("beso_w4_goal_mlp", 4)])
def test_the_teachers_calls_on_whole_windows_give_the_published_values(name, length):
    model, values = published(name)
    states, actions, sigma, goals = window(values, length)
    rows = states.flatten(1) if goals is None else torch.cat([states.flatten(1), goals], dim=1)
    context, sigma, actions = model.context(rows), sigma[:, None], actions[:, None]
    close(model.denoise(context, actions, sigma)[:, 0], values[f"t{length}_denoised"])
    close(model.score(context, actions, sigma)[:, 0], values[f"t{length}_score"])
    clean, noise = values[f"t{length}_clean_actions"], values[f"t{length}_noise"]
    residual = model.residual(context, clean[:, None], noise[:, None], sigma)
    close(residual.square().mean(), values[f"t{length}_loss"])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("schedule", ["linear", "exponential", "karras"])
@pytest.mark.parametrize("n_steps", [1, 4, 8])
def test_schedules_are_the_published_ones(name, schedule, n_steps):
    _, values = published(name)
    options = {"rho": 5.0} if schedule == "karras" else {}
    sigmas = SCHEDULES[schedule](n_steps, 0.1, 1.0, **options)
    close(sigmas.float(), values[f"sigmas_{schedule}_{n_steps}"])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sampler", ["ddim", "euler", "heun", "euler_ancestral"])
@pytest.mark.parametrize("n_steps", [1, 4, 8])
def test_samples_are_the_published_ones(name, sampler, n_steps):
    """What is published as DDIM is Euler's method here."""
    model, values = published(name)
    states, goals = values["samp_states"], values.get("samp_goals")
    goals = None if goals is None else goals.flatten(1)

    def denoise(x, sigma):
        return model(states, x, x.new_full((len(x),), sigma), goals)

    # The published values were drawn along the linear schedule.
    sigmas = SCHEDULES["linear"](n_steps, 0.1, 1.0).tolist()
    noise = values.get(f"samp_{sampler}_{n_steps}_noise", [])
    ours = "euler" if sampler == "ddim" else sampler
    with torch.no_grad():
        actions = SAMPLERS[ours](denoise, values["samp_xT"], sigmas, noise)
    close(actions, values[f"samp_{sampler}_{n_steps}"])


# -- queries of single actions --------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, {"goal_dim": 4, "n_goal_tokens": 2}, {"n_layers": 1}])
@pytest.mark.parametrize("head_size", [None, 7])
def test_a_single_action_is_held_over_the_window_and_answered_at_its_end(arguments, head_size):
    model = make_denoiser(**arguments, head_size=head_size)
    states, goals, actions, sigma = normal(5, 4, 3), normal(5, 4), normal(5, 3, 2), levels(5, 3)
    goals = goals if model.layout.goal_dim else None
    rows = states.flatten(1) if goals is None else torch.cat([states.flatten(1), goals], dim=1)
    denoised = model.denoise(rows, actions, sigma)
    for i in range(3):
        held = actions[:, i, None].expand(-1, 4, -1)
        whole = model(states, held, sigma[:, i], goals)
        torch.testing.assert_close(denoised[:, i], whole[:, -1])


@pytest.mark.parametrize("shape", [(2,), (4, 2)])
@pytest.mark.parametrize("chunk_size", [1, 4, 1000])
def test_chunks_change_nothing(monkeypatch, shape, chunk_size):
    model, rows = make_denoiser(goal_dim=2), normal(5, 14)
    actions, sigma = normal(5, 3, *shape), levels(5, 1)
    at_once = model.denoise(rows, actions, sigma)  # with gradients, hence not in chunks
    monkeypatch.setattr(gpt, "CHUNK_SIZE", chunk_size)
    with torch.no_grad():
        in_chunks = model.denoise(rows, actions, sigma)
    assert not in_chunks.requires_grad
    torch.testing.assert_close(in_chunks, at_once.detach())


def test_there_may_be_no_query():
    model = make_denoiser()
    with torch.no_grad():
        assert model.denoise(normal(5, 12), normal(5, 0, 2), levels(5, 1)).shape == (5, 0, 2)
        assert model.denoise(normal(0, 12), normal(0, 3, 2), levels(0, 1)).shape == (0, 3, 2)


@pytest.mark.parametrize("n_tokens", [1, 6])
def test_the_last_token_of_a_block_alone_is_that_of_the_whole(n_tokens):
    block, tokens = perturb(CausalAttentionBlock(12, n_heads=3)).double(), normal(4, n_tokens, 12)
    last = block(tokens, last_only=True)
    assert last.shape == (4, 1, 12)
    torch.testing.assert_close(last, block(tokens)[:, -1:])


@pytest.mark.parametrize("shape", [(2,), (4, 2)])
def test_queries_do_not_see_each_other(shape):
    model = make_denoiser()
    rows, actions, sigma = normal(4, 12), normal(4, 5, *shape), levels(4, 5)
    alone = model.denoise(rows[2:3], actions[2:3, 1:2], sigma[2:3, 1:2])
    torch.testing.assert_close(alone, model.denoise(rows, actions, sigma)[2:3, 1:2])


def test_a_time_step_sees_nothing_after_it():
    model, states, actions, sigma = make_denoiser(), normal(4, 4, 3), normal(4, 4, 2), levels(4)
    whole = model(states, actions, sigma)
    torch.testing.assert_close(model(states[:, :2], actions[:, :2], sigma), whole[:, :2])


@pytest.mark.parametrize("shape", [(2,), (4, 2)])
def test_the_score_is_tweedies_formula(shape):
    model, rows, actions, sigma = make_denoiser(), normal(4, 12), normal(4, 5, *shape), levels(4, 5)
    gap = model.denoise(rows, actions, sigma) - actions
    level = sigma.view(4, 5, *(1 for _ in shape))
    torch.testing.assert_close(model.score(rows, actions, sigma), gap / level**2)


@pytest.mark.parametrize("kind", ["edm", "noise"])
def test_the_residual_is_the_error_of_the_denoised_action_over_c_out(kind):
    model = make_denoiser(preconditioning=kind)
    rows, clean, noise, sigma = normal(4, 12), normal(4, 5, 2), normal(4, 5, 2), levels(4, 5)
    level = sigma[..., None]
    error = model.denoise(rows, clean + level * noise, sigma) - clean
    c_out = -level if kind == "noise" else level * 0.5 / (level**2 + 0.25).sqrt()
    torch.testing.assert_close(model.residual(rows, clean, noise, sigma), error / c_out)


# -- preconditioning ------------------------------------------------------------------------


def test_edm_is_that_of_karras():
    sigma = levels(20)
    c_skip, c_out, c_in = precondition("edm", sigma, 0.5)
    torch.testing.assert_close(c_skip, 0.25 / (sigma**2 + 0.25))
    torch.testing.assert_close(c_out, sigma * 0.5 / (sigma**2 + 0.25).sqrt())
    torch.testing.assert_close(c_in, 1 / (sigma**2 + 0.25).sqrt())


def test_noise_takes_the_predicted_noise_away_from_the_action():
    sigma = levels(20)
    c_skip, c_out, c_in = precondition("noise", sigma, 0.5)
    torch.testing.assert_close(c_skip, torch.ones_like(sigma))
    torch.testing.assert_close(c_out, -sigma)
    torch.testing.assert_close(c_in, 1 / (1 + sigma**2).sqrt())


def test_an_unknown_preconditioning_is_refused():
    with pytest.raises(ValueError, match="'edm' or 'noise', got 'none'"):
        precondition("none", levels(1), 0.5)


# -- gradients, samples, configuration ------------------------------------------------------


@pytest.mark.parametrize("shape", [(2,), (4, 2)])
def test_gradients_reach_every_parameter_and_the_actions(shape):
    model = make_denoiser(goal_dim=2, head_size=7)
    actions = normal(5, 3, *shape).requires_grad_()
    residual = model.residual(normal(5, 14), actions, normal(5, 3, *shape), levels(5, 3))
    residual.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert actions.grad.abs().min() > 0


def test_the_gradient_of_an_answer_is_its_derivative():
    model, rows, sigma = make_denoiser(n_layers=1), normal(2, 12), levels(2, 1)
    actions = normal(2, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: model.denoise(rows, a, sigma), actions)


@pytest.mark.parametrize("joint", [False, True])
def test_samplers_draw_what_the_network_was_trained_on(joint):
    model = make_denoiser(joint=joint)
    assert model.action_shape == ((4, 2) if joint else (2,))
    noise = normal(5, 3, 1, *model.action_shape)
    with torch.no_grad():
        actions = draw_actions(model, normal(5, 12), noise, [1.0, 0.5, 0.0], "euler")
    assert actions.shape == (5, 3, 2)


def test_a_fresh_network_answers_zero():
    model = GPTDenoiser(RowLayout(3, 4), 2, 12, 2, 2, sigma_data=0.5)
    actions, sigma = torch.randn(4, 5, 2), torch.rand(4, 5) + 0.1
    c_skip = 0.25 / (sigma[..., None] ** 2 + 0.25)
    torch.testing.assert_close(model.denoise(torch.randn(4, 12), actions, sigma), c_skip * actions)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"goal_dim": 4, "n_goal_tokens": 2, "head_size": 7, "preconditioning": "noise"}],
)
def test_the_configuration_rebuilds_the_same_network(arguments):
    model = make_denoiser(**arguments, joint=True)
    again = GPTDenoiser(**model.config).double()
    again.load_state_dict(model.state_dict())
    rows, actions, sigma = normal(4, model.layout.n_columns), normal(4, 5, 2), levels(4, 1)
    assert again.action_shape == model.action_shape
    assert torch.equal(again.denoise(rows, actions, sigma), model.denoise(rows, actions, sigma))


def test_goals_that_cannot_be_cut_into_tokens_are_refused():
    with pytest.raises(ValueError, match="goal_dim=3 cannot be cut into 2 tokens"):
        make_denoiser(goal_dim=3, n_goal_tokens=2)


# -- consistency models ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["edm", "noise"])
def test_at_the_boundary_the_denoiser_is_the_identity_to_the_last_bit(kind):
    network = make_denoiser(preconditioning=kind, boundary=0.03)
    rows, actions = normal(5, 12), normal(5, 3, 2)
    sigma = torch.full((5, 3), 0.03, dtype=torch.float64)
    assert torch.equal(network.denoise(rows, actions, sigma), actions)
    assert not torch.allclose(network.denoise(rows, actions, 2 * sigma), actions, atol=1e-3)


def test_the_end_of_a_jump_says_nothing_at_first_and_may_be_level_zero():
    plain = make_denoiser()
    jumping = GPTDenoiser(**(plain.config | {"target_min": 0.1})).double()
    jumping.load_state_dict({**jumping.state_dict(), **plain.state_dict()})
    rows, actions, sigma = normal(5, 12), normal(5, 3, 2), levels(5, 3)
    end = torch.zeros(5, 3, dtype=torch.float64)
    answer = jumping.denoise(rows, actions, sigma, end)
    torch.testing.assert_close(answer, plain.denoise(rows, actions, sigma), atol=0, rtol=0)
    perturb(jumping.target_embedding)
    other = jumping.denoise(rows, actions, sigma, end)
    assert ((other - answer).abs().amax(dim=-1) > 1e-6).all()
    assert not torch.equal(other, jumping.denoise(rows, actions, sigma, end + 0.1))
    one_end = jumping.denoise(rows, actions, sigma[:, :1], end[:, :1])
    expected = jumping.denoise(rows, actions, sigma[:, :1].expand(5, 3), end)
    torch.testing.assert_close(one_end, expected)
