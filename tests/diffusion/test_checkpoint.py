"""A policy read from a published checkpoint: units, samples, what is refused, and its student."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from skvdd import VDDDistiller, load
from skvdd.diffusion import load_beso_checkpoint
from skvdd.diffusion.beso import read_state_dict
from skvdd.diffusion.noise import SCHEDULES
from skvdd.encoders import TransformerEncoder
from skvdd.nn.samplers import SAMPLERS
from skvdd.randomness import row_noise

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CASES = {"d3il_w5_nogoal_lin": (5, 0), "beso_w4_goal_mlp": (4, 4)}  # window_size, goal_dim
GOAL = "beso_w4_goal_mlp"
STATE_MEAN, STATE_SCALE = np.array([1.0, -2.0, 0.5, 0.0]), np.array([2.0, 0.5, 1.0, 3.0])
ACTION_MEAN, ACTION_SCALE = np.array([0.3, -1.0]), np.array([0.5, 4.0])
UNITS = {
    "state_mean": STATE_MEAN,
    "state_scale": STATE_SCALE,
    "action_mean": ACTION_MEAN,
    "action_scale": ACTION_SCALE,
}

COARSE = 100.0  # tolerance of a log-density that is compared with itself, or need only be finite

every_case = pytest.mark.parametrize("name", CASES)


def state_file(name):
    return GOLDEN / f"{name}_state.npz"


def read(path, **arguments):
    """Read a checkpoint as the published values were computed."""
    settings = {"n_heads": 2, "schedule": "linear", "sampler": "euler", "n_steps": 4}
    return load_beso_checkpoint(path, **(settings | {"device": "cpu"} | arguments))


def published(name):
    with np.load(GOLDEN / f"{name}_io.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def make_rows(name, n=20, seed=0):
    """Rows of standard normal numbers, and actions."""
    window_size, goal_dim = CASES[name]
    rng = np.random.RandomState(seed)
    return rng.standard_normal((n, 4 * window_size + goal_dim)), rng.standard_normal((n, 2))


def in_raw_units(name, rows):
    """Return standard rows in the units of UNITS, those of the goal being those of a state."""
    window_size, goal_dim = CASES[name]
    n_frames = window_size + goal_dim // 4
    return rows * np.tile(STATE_SCALE, n_frames) + np.tile(STATE_MEAN, n_frames)


# -- what is read ---------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
def test_the_denoiser_gives_the_published_values_from_every_format(name, suffix, tmp_path):
    path = state_file(name)
    if suffix != ".npz":
        tensors, path = read_state_dict(path), tmp_path / f"model{suffix}"
        (save_file if suffix == ".safetensors" else torch.save)(tensors, path)
    policy, values = read(path), published(name)
    check_is_fitted(policy)
    window_size, goal_dim = CASES[name]
    inputs = ("states", "noisy_actions", "sigmas", *(["goals"] if goal_dim else []))
    states, actions, sigma, *goals = (values[f"t{window_size}_{key}"] for key in inputs)
    with torch.no_grad():
        denoised = policy.network_(states, actions, sigma, *(goal.flatten(1) for goal in goals))
    expected = values[f"t{window_size}_denoised"]
    bound = 1e-5 * max(1.0, expected.abs().max().item())  # single precision, of the magnitude
    torch.testing.assert_close(denoised, expected, rtol=0, atol=bound)


@every_case
def test_sizes_are_parameters_of_the_policy(name):
    policy = read(state_file(name))
    window_size, goal_dim = CASES[name]
    expected = {
        "sde": "ve",
        "architecture": "gpt",
        "window_size": window_size,
        "goal_dim": goal_dim,
        "encoder__hidden_size": 24,
        "encoder__n_layers": 2,
        "encoder__n_heads": 2,
        "noise_min": 0.1,
        "noise_max": 1.0,
        "schedule": "linear",
        "sampler": "euler",
        "n_steps": 4,
    }
    assert expected.items() <= policy.get_params().items()
    assert isinstance(policy.encoder, TransformerEncoder)
    assert policy.n_features_in_ == 4 * window_size + goal_dim
    assert (policy.action_shape_, policy.horizon_) == ((2,), 1)
    assert (policy.n_iter_, policy.history_, policy.interrupted_) == (0, [], False)


@every_case
def test_the_scale_of_the_data_is_that_of_the_published_training(name):
    """No parameter of the policy says it: it belongs to the network."""
    policy = read(state_file(name))
    assert policy.network_.sigma_data == policy.noise_levels_.sigma_data == 0.5
    other = read(state_file(name), sigma_data=0.7)
    assert other.network_.sigma_data == other.noise_levels_.sigma_data == 0.7


@every_case
def test_shapes_are_those_of_the_contract(name):
    policy, (X, y) = read(state_file(name)), make_rows(name, n=3)
    assert policy.predict(X).shape == policy.act(X).shape == policy.sample(X).shape == (3, 2)
    assert policy.sample(X, n_samples=5).shape == (3, 5, 2)
    assert policy.log_prob(X, y, tolerance=COARSE).shape == (3,)
    assert policy.score_function(X, y, 0.5).shape == policy.denoise(X, y, 0.5).shape == (3, 2)


# -- samples --------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("sampler", ["euler", "heun", "euler_ancestral"])
def test_a_sample_is_the_last_action_of_a_window_denoised_together(name, sampler):
    policy, (X, _) = read(state_file(name)), make_rows(name)
    window_size, _ = CASES[name]
    n_noises = 4 if sampler == "euler_ancestral" else 1
    noise = torch.from_numpy(row_noise(3, 20, (1, n_noises, window_size, 2))).float()[:, 0]
    rows = torch.from_numpy(X).float()
    states, goals = rows[:, : 4 * window_size].unflatten(1, (window_size, 4)), None
    if rows.shape[1] > 4 * window_size:
        goals = rows[:, 4 * window_size :]

    def denoise(x, sigma):
        return policy.network_(states, x, x.new_full((len(x),), sigma), goals)

    sigmas = SCHEDULES["linear"](4, 0.1, 1.0).tolist()
    with torch.no_grad():
        start, *fresh = noise.unbind(1)
        expected = SAMPLERS[sampler](denoise, sigmas[0] * start, sigmas, fresh)[:, -1]
    actual = policy.sample(X, random_state=3, sampler=sampler)
    np.testing.assert_allclose(actual, expected, atol=1e-5)  # single precision


@every_case
@pytest.mark.parametrize("n_steps", [1, 4, 8])
def test_samples_are_the_published_ones_where_the_noise_is(name, n_steps, monkeypatch):
    policy, values = read(state_file(name)), published(name)
    rows = values["samp_states"].flatten(1)
    if "samp_goals" in values:
        rows = torch.cat([rows, values["samp_goals"].flatten(1)], dim=1)
    start = values["samp_xT"][:, None, None].double().numpy()  # at noise_max, which is 1
    monkeypatch.setattr("skvdd.diffusion.base.row_noise", lambda *arguments: start)
    expected = values[f"samp_ddim_{n_steps}"][:, -1]
    np.testing.assert_allclose(policy.sample(rows, n_steps=n_steps), expected, atol=1e-5)


@every_case
@pytest.mark.parametrize("method", ["sample", "predict", "log_prob"])
def test_a_row_is_the_same_alone_and_in_a_batch(name, method):
    policy, (X, y) = read(state_file(name)), make_rows(name, n=20)

    def ask(n):
        if method == "log_prob":
            return policy.log_prob(X[:n], y[:n], tolerance=COARSE)
        options = {"random_state": 0} if method == "sample" else {}
        return getattr(policy, method)(X[:n], **options)

    np.testing.assert_array_equal(ask(1), ask(20)[:1])


@every_case
def test_log_densities_are_finite(name):
    policy, (X, y) = read(state_file(name)), make_rows(name, n=4)
    for actions in (y, policy.sample(X, random_state=0)):
        assert np.isfinite(policy.log_prob(X, actions, tolerance=COARSE)).all()


# -- units ----------------------------------------------------------------------------------


@every_case
def test_units_are_applied_on_the_way_in_and_undone_on_the_way_out(name):
    standard, raw = read(state_file(name)), read(state_file(name), **UNITS)
    X, y = make_rows(name)
    raw_X, raw_y = in_raw_units(name, X), y * ACTION_SCALE + ACTION_MEAN

    def close(actual, expected):
        np.testing.assert_allclose(actual, expected, atol=1e-5)  # single precision

    close(raw.predict(raw_X), standard.predict(X) * ACTION_SCALE + ACTION_MEAN)
    denoised = standard.denoise(X, y, 0.5)
    close(raw.denoise(raw_X, raw_y, 0.5), denoised * ACTION_SCALE + ACTION_MEAN)
    close(raw.score_function(raw_X, raw_y, 0.5), standard.score_function(X, y, 0.5) / ACTION_SCALE)


@every_case
def test_units_change_the_density_by_their_jacobian(name):
    standard, raw = read(state_file(name)), read(state_file(name), **UNITS)
    X, y = make_rows(name, n=4)
    raw_X, raw_y = in_raw_units(name, X), y * ACTION_SCALE + ACTION_MEAN
    log_prob = raw.log_prob(raw_X, raw_y, tolerance=COARSE)
    expected = standard.log_prob(X, y, tolerance=COARSE) - np.log(ACTION_SCALE).sum()
    np.testing.assert_allclose(log_prob, expected, atol=1e-3)  # single precision, steps long


def test_denoising_takes_the_held_action_in_standard_units():
    policy = read(state_file(GOAL), **UNITS)
    X, y = make_rows(GOAL)
    rows, actions = torch.from_numpy(X).float(), torch.from_numpy(y).float()
    held, sigma = actions[:, None].expand(-1, 4, -1), torch.full((20,), 0.5)
    with torch.no_grad():
        window = policy.network_(rows[:, :16].unflatten(1, (4, 4)), held, sigma, rows[:, 16:])
    expected = window[:, -1].numpy() * ACTION_SCALE + ACTION_MEAN
    actual = policy.denoise(in_raw_units(GOAL, X), y * ACTION_SCALE + ACTION_MEAN, 0.5)
    np.testing.assert_allclose(actual, expected, atol=1e-5)  # single precision


def test_a_goal_may_have_units_of_its_own():
    standard = read(state_file(GOAL))
    policy = read(state_file(GOAL), goal_mean=[1.0, 2.0, 3.0, 4.0], goal_scale=2.0)
    X, _ = make_rows(GOAL)
    raw = X.copy()
    raw[:, 16:] = 2.0 * X[:, 16:] + [1.0, 2.0, 3.0, 4.0]
    np.testing.assert_allclose(policy.predict(raw), standard.predict(X), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("state_mean", [0.0] * 3, "state_mean must be one finite number or 4 of them"),
        ("state_mean", [0.0, 0.0, 0.0, np.nan], "state_mean must be one finite number"),
        ("state_scale", np.ones((4, 1)), "state_scale must be one finite number or 4 of them"),
        ("state_scale", -1.0, "state_scale must be positive, got -1.0"),
        ("state_scale", [1.0, 1.0, 1.0, 0.0], "state_scale must be positive"),
        ("action_mean", [0.0] * 4, "action_mean must be one finite number or 2 of them"),
        ("action_scale", [1.0] * 3, "action_scale must be one finite number or 2 of them"),
        ("action_scale", [1.0, -2.0], "action_scale must be positive"),
        ("goal_mean", [0.0] * 3, "goal_mean must be one finite number or 4 of them"),
        ("goal_scale", [1.0] * 5, "goal_scale must be one finite number or 4 of them"),
        ("goal_scale", -1.0, "goal_scale must be positive, got -1.0"),
    ],
)
def test_units_that_do_not_fit_are_refused_by_name(name, value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        read(state_file(GOAL), **{name: value})


def test_parameters_are_checked_as_in_a_fit():
    with pytest.raises(ValueError, match="schedule"):
        read(state_file(GOAL), schedule="cosine")
    with pytest.raises(ValueError, match="noise_max must exceed noise_min"):
        read(state_file(GOAL), noise_max=0.05)
    with pytest.raises(ValueError, match="n_heads=5 does not divide"):
        read(state_file(GOAL), n_heads=5)
    with pytest.raises(ValueError, match="device='nowhere' cannot be used"):
        read(state_file(GOAL), device="nowhere")


# -- files that are no checkpoint -----------------------------------------------------------


def test_a_foreign_file_is_refused_with_the_names_that_differ(tmp_path):
    tensors = read_state_dict(state_file(GOAL))
    del tensors["inner_model.sigma_emb.bias"]
    tensors["inner_model.value_head.weight"] = torch.zeros(2)
    save_file(tensors, tmp_path / "model.safetensors")
    message = "missing ['sigma_emb.bias'], unexpected ['value_head.weight']"
    with pytest.raises(ValueError, match=re.escape(message)):
        read(tmp_path / "model.safetensors")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth"):
        read(tmp_path / "nothing.pth")


# -- copies ---------------------------------------------------------------------------------


def same(one, other, name):
    X, y = make_rows(name, n=4)
    X, y = in_raw_units(name, X), y * ACTION_SCALE + ACTION_MEAN
    np.testing.assert_array_equal(one.predict(X), other.predict(X))
    np.testing.assert_array_equal(one.sample(X, random_state=0), other.sample(X, random_state=0))
    ours, theirs = (policy.log_prob(X, y, tolerance=COARSE) for policy in (one, other))
    np.testing.assert_array_equal(ours, theirs)


@every_case
def test_a_pickled_policy_answers_the_same(name):
    policy = read(state_file(name), **UNITS)
    same(pickle.loads(pickle.dumps(policy)), policy, name)


@every_case
def test_a_saved_policy_answers_the_same(name, tmp_path):
    policy = read(state_file(name), **UNITS)
    policy.save(tmp_path / "policy.safetensors")
    again = load(tmp_path / "policy.safetensors")
    same(again, policy, name)
    ours, theirs = (p.get_params() for p in (again, policy))
    assert repr(ours.pop("encoder")) == repr(theirs.pop("encoder"))
    assert ours.pop("device") == "auto"
    del theirs["device"]
    assert ours == theirs


@every_case
def test_a_clone_is_not_fitted(name):
    policy, (X, _) = read(state_file(name)), make_rows(name)
    copy = clone(policy)
    assert repr(copy.get_params()) == repr(policy.get_params())
    with pytest.raises(NotFittedError):
        copy.predict(X)


@every_case
def test_it_can_be_trained_further(name):
    """Without a step it is the policy that was read; then it learns with the published network."""
    X, y = make_rows(name)
    policy = read(state_file(name)).set_params(warm_start=True, random_state=0)
    before = policy.predict(X)
    np.testing.assert_array_equal(policy.set_params(max_iter=0).fit(X, y).predict(X), before)
    policy.set_params(max_iter=3).fit(X, y)
    assert policy.network_.joint
    assert policy.noise_levels_.sigma_data == 0.5
    assert np.abs(policy.predict(X) - before).max() > 0


@every_case
def test_a_clone_can_be_fitted(name):
    X, y = make_rows(name)
    policy = clone(read(state_file(name))).set_params(max_iter=2, random_state=0).fit(X, y)
    assert policy.predict(X).shape == (20, 2)


# -- distilled ------------------------------------------------------------------------------


def distiller(name, **parameters):
    window_size, goal_dim = CASES[name]
    settings = {"hidden_size": 8, "n_layers": 1, "max_iter": 3, "init_iter": 3, "random_state": 0}
    sizes = {"window_size": window_size, "goal_dim": goal_dim}
    return VDDDistiller(n_experts=2, **(sizes | settings | parameters))


@every_case
@pytest.mark.parametrize("with_actions", [True, False])
def test_it_can_be_distilled(name, with_actions):
    teacher, (X, y) = read(state_file(name), **UNITS), make_rows(name)
    X, y = in_raw_units(name, X), y * ACTION_SCALE + ACTION_MEAN
    student = distiller(name).fit(X, y if with_actions else None, teacher=teacher)
    assert student.predict(X).shape == (20, 2)
    assert student.sample(X, n_samples=3, random_state=0).shape == (20, 3, 2)
    assert np.isfinite(student.log_prob(X, y)).all()


@every_case
def test_a_student_has_the_units_of_its_teacher(name):
    teacher, (X, _) = read(state_file(name), **UNITS), make_rows(name)
    student = distiller(name).fit(in_raw_units(name, X), teacher=teacher)
    actions, rows = student.network_.action_normalization, student.network_.row_normalization
    np.testing.assert_array_equal(actions.statistics, (ACTION_MEAN, ACTION_SCALE))
    expected = teacher.network_.row_normalization.statistics
    np.testing.assert_array_equal(rows.statistics, expected)


def test_distilling_leaves_the_teacher_as_it_was():
    teacher, (X, y) = read(state_file(GOAL)), make_rows(GOAL)
    before = teacher.predict(X)
    distiller(GOAL).fit(X, y, teacher=teacher)
    np.testing.assert_array_equal(teacher.predict(X), before)
    assert all(parameter.requires_grad for parameter in teacher.network_.parameters())


@pytest.mark.parametrize(("name", "value"), [("goal_dim", 0), ("window_size", 2)])
def test_a_student_with_rows_of_another_layout_is_refused(name, value):
    teacher, (X, y) = read(state_file(GOAL)), make_rows(GOAL)
    with pytest.raises(ValueError, match=f"the teacher has {name}=4, but"):
        distiller(GOAL, **{name: value}).fit(X, y, teacher=teacher)
