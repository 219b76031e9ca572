"""What a fitted diffusion policy answers: typical predictions, learned settings, chunks."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from skvdd import DiffusionPolicy, load
from skvdd.diffusion.policy import denoising_loss
from skvdd.encoders import MLPEncoder
from skvdd.nn.samplers import SAMPLERS

NOISE = 0.1  # standard deviation of the toy's actions around each of its two modes
COARSE = 100.0  # tolerance of a log-density that is compared with itself


def refused(message):
    """Expect a ValueError whose whole message is this."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def two_modes(n, seed):
    """Actions at the state or at minus the state, which is about one."""
    rng = np.random.RandomState(seed)
    states = rng.uniform(0.8, 1.2, size=(n, 1))
    side = np.sign(rng.standard_normal((n, 1)))
    return states, side * states + NOISE * rng.standard_normal((n, 1))


def tiny(**parameters):
    settings = {"hidden_size": 8, "n_layers": 1, "max_iter": 5, "n_steps": 4, "random_state": 0}
    return DiffusionPolicy(**{**settings, **parameters})


@pytest.fixture(scope="module", params=["ve", "vp"])
def policy(request):
    """Fitted to two modes; tests must not change it."""
    policy = DiffusionPolicy(
        request.param, hidden_size=32, n_layers=1, max_iter=400, ema_decay=0.98, random_state=0
    )
    return policy.fit(*two_modes(1000, seed=0))


# -- predictions ----------------------------------------------------------------------------


def test_a_prediction_lies_near_a_mode(policy):
    """The mean of the two modes, zero, is an action that nobody has shown."""
    states, _ = two_modes(200, seed=1)
    distance = np.abs(np.abs(policy.predict(states)) - states)
    # A typical draw, of a network trained for a few seconds: within four deviations of a mode.
    assert distance.max() < 4 * NOISE


def test_a_prediction_is_an_action_that_the_policy_draws(policy):
    states, _ = two_modes(50, seed=1)
    draws = policy.sample(states, 8, random_state=[np.random.RandomState(0) for _ in states])
    assert (draws == policy.predict(states)[:, None]).any(axis=1).all()


def test_a_prediction_depends_on_its_row_alone(policy):
    states, _ = two_modes(37, seed=1)
    expected = policy.predict(states)
    np.random.seed(99)  # noqa: NPY002
    order = np.random.RandomState(2).permutation(37)
    np.testing.assert_array_equal(policy.predict(states[order]), expected[order])
    np.testing.assert_array_equal(policy.predict(states[5:6]), expected[5:6])


# -- what was learned, whatever is set later ------------------------------------------------

# Another value of every parameter, all of which decide something before a fit.
OTHERS = {
    "sde": "vp",
    "architecture": "gpt",
    "window_size": 3,
    "goal_dim": 1,
    "encoder": "transformer",
    "hidden_size": 12,
    "n_layers": 3,
    "noise_min": 0.5,
    "noise_max": 50.0,
    "noise_density": "loglogistic",
    "schedule": "linear",
    "sampler": "heun",
    "n_steps": 2,
    "max_iter": 1,
    "batch_size": 3,
    "learning_rate": 0.5,
    "weight_decay": 0.5,
    "ema_decay": 0.5,
    "state_noise": 0.5,
    "random_state": 7,
    "warm_start": True,
}


@pytest.fixture(scope="module")
def fitted():
    """Fitted; tests must not change it."""
    X, y = two_modes(60, seed=0)
    return tiny(encoder=MLPEncoder(8, 1)).fit(X, y)


def answers(policy):
    X, y = two_modes(6, seed=1)
    controller = policy.controller("torch", random_state=0)
    controller.reset()
    return {
        "sample": policy.sample(X, 2, random_state=0),
        "act": policy.act(X, random_state=0),
        "predict": policy.predict(X),
        "log_prob": policy.log_prob(X, y, tolerance=COARSE),
        "denoising_score": policy.denoising_score(X, y),
        "score_function": policy.score_function(X, y, 0.7),
        "controller": controller.act(X[0]),
    }


def assert_same_answers(policy, expected):
    for method, value in answers(policy).items():
        np.testing.assert_array_equal(value, expected[method], err_msg=method)


def test_every_parameter_is_among_the_others():
    parameters = DiffusionPolicy().get_params()
    assert OTHERS.keys() == parameters.keys() - {"device"}
    assert not any(OTHERS[name] == value for name, value in parameters.items() if name in OTHERS)


@pytest.mark.parametrize("name", OTHERS)
def test_a_parameter_that_is_set_after_a_fit_changes_no_answer(fitted, name):
    expected = answers(fitted)
    assert_same_answers(copy.deepcopy(fitted).set_params(**{name: OTHERS[name]}), expected)


@pytest.mark.parametrize("name", ["hidden_size", "n_layers"])
def test_a_parameter_of_the_encoder_that_is_set_after_a_fit_changes_no_answer(
    fitted, name, tmp_path
):
    policy, expected = copy.deepcopy(fitted), answers(fitted)
    policy.set_params(**{f"encoder__{name}": 3})
    assert_same_answers(policy, expected)
    policy.save(tmp_path / "policy.safetensors")
    assert_same_answers(load(tmp_path / "policy.safetensors"), expected)


@pytest.mark.parametrize("names", [[name] for name in OTHERS] + [[*OTHERS]], ids=",".join)
def test_a_file_answers_as_what_was_learned(fitted, names, tmp_path):
    policy = copy.deepcopy(fitted).set_params(**{name: OTHERS[name] for name in names})
    policy.save(tmp_path / "policy.safetensors")
    again = load(tmp_path / "policy.safetensors")
    assert {name: again.get_params()[name] for name in names} == {n: OTHERS[n] for n in names}
    X, _ = two_modes(6, seed=1)
    expected = fitted.sample(X, 2, random_state=0)
    np.testing.assert_array_equal(again.sample(X, 2, random_state=0), expected)


def test_files_and_pickles_keep_all_that_was_learned(fitted, tmp_path):
    policy, expected = copy.deepcopy(fitted).set_params(**OTHERS), answers(fitted)
    assert_same_answers(pickle.loads(pickle.dumps(policy)), expected)
    policy.save(tmp_path / "policy.safetensors")
    assert_same_answers(load(tmp_path / "policy.safetensors"), expected)


def test_a_fit_learns_what_the_parameters_say(fitted):
    X, y = two_modes(60, seed=0)
    policy = copy.deepcopy(fitted).set_params(noise_max=2.0, sampler="heun", n_steps=2).fit(X, y)
    assert policy.noise_levels_.noise_max == 2.0
    assert (policy.sampler_, policy.n_steps_) == ("heun", 2)
    assert (fitted.sampler_, fitted.n_steps_) == ("euler_ancestral", 4)


# -- another sampler ------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_copy_with_another_sampler_draws_as_a_call_with_it(fitted, sampler):
    X, _ = two_modes(6, seed=1)
    policy = fitted.with_sampler(sampler, n_steps=3)
    np.testing.assert_array_equal(
        policy.sample(X, 2, random_state=0),
        fitted.sample(X, 2, random_state=0, sampler=sampler, n_steps=3),
    )
    assert (policy.sampler_, policy.n_steps_) == (policy.sampler, policy.n_steps) == (sampler, 3)
    assert (fitted.sampler, fitted.n_steps, fitted.n_steps_) == ("auto", 4, 4)


def test_what_is_not_given_stays(fitted):
    assert fitted.with_sampler(n_steps=7).sampler_ == "euler_ancestral"
    assert fitted.with_sampler("heun").n_steps_ == 4
    assert fitted.with_sampler("auto").sampler_ == "euler_ancestral"


def test_predictions_and_files_follow_the_sampler_of_the_copy(fitted, tmp_path):
    X, _ = two_modes(6, seed=1)
    policy = fitted.with_sampler("heun", n_steps=2)
    assert np.abs(policy.predict(X) - fitted.predict(X)).max() > 1e-3
    policy.save(tmp_path / "policy.safetensors")
    again = load(tmp_path / "policy.safetensors")
    np.testing.assert_array_equal(again.predict(X), policy.predict(X))


def test_a_copy_takes_a_sampler_of_the_list_and_a_fitted_policy(fitted):
    with pytest.raises(NotFittedError):
        tiny().with_sampler("heun")
    with pytest.raises(ValueError, match="sampler must be one of"):
        fitted.with_sampler("rk4")
    with refused("n_steps must be an integer of at least 1, got 0."):
        fitted.with_sampler(n_steps=0)


# -- the denoising score --------------------------------------------------------------------


def test_the_denoising_score_of_an_untrained_policy_is_minus_one():
    """The target has unit variance at every level, and the head of the network is zero."""
    X, y = np.random.RandomState(0).standard_normal((2, 2000, 2))
    score = tiny(max_iter=0).fit(X, y).denoising_score(X, y)
    # The mean of 16 000 squares; those of the four levels of a row share its action.
    assert type(score) is float
    assert score == pytest.approx(-1.0, abs=0.05)


def test_the_denoising_score_is_minus_the_training_loss(policy):
    X, y = two_modes(500, seed=1)
    rows, actions = policy._standard_rows(X), policy._standard_actions(y)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((500, 100, 1), generator=generator)
    sigma = policy.noise_levels_.of_training(torch.rand((500, 100), generator=generator))
    network, clean = policy.network_, actions[:, None].expand(-1, 100, -1)
    with torch.no_grad():
        loss = denoising_loss(network, network.context(rows), clean, noise, sigma)
    # 2000 squares here; their deviation is about as large as their mean.
    assert policy.denoising_score(X, y) == pytest.approx(-loss.item(), rel=0.2)


def test_the_denoising_score_grows_with_training_and_falls_with_wrong_actions(policy):
    X, y = two_modes(500, seed=1)
    untrained = DiffusionPolicy(policy.sde, max_iter=0, random_state=0).fit(X, y)
    assert policy.denoising_score(X, y) > untrained.denoising_score(X, y) + 0.05
    assert policy.denoising_score(X, y) > policy.denoising_score(X, 3 * y) + 0.05


def test_the_denoising_score_is_the_same_at_every_call(policy):
    X, y = two_modes(40, seed=1)
    first = policy.denoising_score(X, y)
    np.random.seed(99)  # noqa: NPY002
    torch.manual_seed(99)
    assert policy.denoising_score(X, y) == first


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan")])
def test_a_tolerance_of_log_densities_is_positive(fitted, tolerance):
    X, y = two_modes(3, seed=1)
    with refused(f"tolerance must be positive, got {tolerance!r}."):
        fitted.log_prob(X, y, tolerance=tolerance)


def test_above_some_dimensions_the_density_is_an_estimate_that_repeats_with_the_seed(monkeypatch):
    X, y = np.random.RandomState(0).standard_normal((2, 20, 3))
    policy = tiny(max_iter=50).fit(X, y)
    exact = policy.log_prob(X[:4], y[:4], tolerance=1.0)
    monkeypatch.setattr("skvdd.diffusion.likelihood.EXACT_DIMENSIONS", 2)
    monkeypatch.setattr("skvdd.diffusion.likelihood.PROBES", 3)

    def estimate(**options):
        return policy.log_prob(X[:4], y[:4], tolerance=1.0, **options)

    first = estimate()
    np.testing.assert_array_equal(estimate(random_state=0), first)
    other = estimate(random_state=1)
    assert np.abs(other - first).max() > 1e-3
    # Three directions of three dimensions: some tenths of a nat, of either sign.
    np.testing.assert_allclose(np.mean([first, other], axis=0), exact, atol=0.5)


# -- chunks of actions ----------------------------------------------------------------------

HORIZON = 3


def make_chunks(n=40, seed=0):
    """States of three numbers, and chunks of three actions of two numbers in unlike units."""
    rng = np.random.RandomState(seed)
    X = rng.uniform(-1, 1, (n, 3))
    steps = np.arange(HORIZON)[:, None]
    chunks = (X[:, None, :2] + 0.1 * steps) * [1.0, 100.0]
    return X, chunks + rng.standard_normal(chunks.shape) * [0.1, 10.0]


KINDS = [{}, {"sde": "vp"}, {"architecture": "gpt"}, {"window_size": 3}]


@pytest.fixture(scope="module", params=KINDS, ids=str)
def chunked(request):
    """Fitted to chunks; tests must not change it."""
    return tiny(hidden_size=16, **request.param).fit(*make_chunks())


def test_chunks_come_back_as_chunks(chunked):
    X, y = make_chunks(5, seed=1)
    assert (chunked.action_shape_, chunked.horizon_) == ((3, 2), 3)
    for method in (chunked.predict, chunked.act, chunked.sample):
        assert method(X).shape == (5, 3, 2)
    assert chunked.sample(X, n_samples=4).shape == (5, 4, 3, 2)
    assert chunked.log_prob(X, y, tolerance=COARSE).shape == (5,)
    assert chunked.denoise(X, y, 0.5).shape == (5, 3, 2)
    assert chunked.score_function(X, y, 0.5).shape == (5, 3, 2)
    assert type(chunked.denoising_score(X, y)) is float


def test_the_steps_of_a_chunk_share_their_normalization(chunked):
    _, y = make_chunks()
    mean, scale = chunked.network_.action_normalization.statistics
    np.testing.assert_allclose(mean.reshape(3, 2), [y.mean(axis=(0, 1))] * 3, rtol=1e-12)
    np.testing.assert_allclose(scale.reshape(3, 2), [y.std(axis=(0, 1))] * 3, rtol=1e-12)


def test_a_chunk_has_the_density_of_its_flat_action(chunked):
    X, y = make_chunks(5, seed=1)
    flat = y.reshape(5, 6)
    for method in ("log_prob", "denoise", "score_function"):
        options = {"tolerance": COARSE} if method == "log_prob" else {"noise_level": 0.5}
        ask = getattr(chunked, method)
        np.testing.assert_array_equal(ask(X, y, **options), ask(X, flat, **options))
    assert chunked.denoising_score(X, y) == chunked.denoising_score(X, flat)


def test_the_density_of_a_chunk_has_the_jacobian_of_its_units():
    """Powers of two scale floating point exactly, so training takes the very same course."""
    X, y = make_chunks()
    plain, scaled = tiny().fit(X, y), tiny().fit(X, y * [4.0, 0.5])
    ours = scaled.log_prob(X, y * [4.0, 0.5], tolerance=COARSE)
    theirs = plain.log_prob(X, y, tolerance=COARSE)
    np.testing.assert_allclose(ours, theirs - 3 * np.log(4.0 * 0.5), rtol=1e-9)


def test_a_chunk_is_the_same_alone_and_in_a_batch(chunked):
    X, y = make_chunks(9, seed=1)
    together = chunked.sample(X, 3, random_state=0)
    np.testing.assert_array_equal(chunked.sample(X[:1], 3, random_state=0), together[:1])
    np.testing.assert_array_equal(chunked.predict(X[4:5]), chunked.predict(X)[4:5])
    np.testing.assert_array_equal(
        chunked.log_prob(X[:1], y[:1], tolerance=COARSE),
        chunked.log_prob(X, y, tolerance=COARSE)[:1],
    )


def test_chunks_of_one_action_are_no_special_case():
    X, y = make_chunks()
    chunk, single = tiny().fit(X, y[:, :1]), tiny().fit(X, y[:, 0])
    assert (chunk.action_shape_, chunk.horizon_) == ((1, 2), 1)
    assert (single.action_shape_, single.horizon_) == ((2,), 1)
    np.testing.assert_array_equal(
        chunk.sample(X, 2, random_state=0)[:, :, 0], single.sample(X, 2, random_state=0)
    )


def test_a_saved_policy_of_chunks_gives_chunks(chunked, tmp_path):
    X, _ = make_chunks(5, seed=1)
    chunked.save(tmp_path / "policy.safetensors")
    again = load(tmp_path / "policy.safetensors")
    assert (again.action_shape_, again.horizon_) == ((3, 2), 3)
    np.testing.assert_array_equal(again.predict(X), chunked.predict(X))


def test_chunks_of_another_shape_are_refused(chunked):
    X, y = make_chunks(5, seed=1)
    with refused(
        "y has shape (5, 2, 3), but DiffusionPolicy was fitted with actions of shape (n, 3, 2)."
    ):
        chunked.log_prob(X, y.transpose(0, 2, 1))
    with pytest.raises(ValueError, match="was fitted with actions of shape"):
        chunked.log_prob(X, y[:, :2])


@pytest.mark.parametrize("method", ["score_function", "denoise", "denoising_score", "with_sampler"])
def test_an_unfitted_policy_says_so_whatever_it_is_asked(method):
    X = np.zeros((3, 2))
    arguments = {"denoising_score": (X, X), "with_sampler": ()}.get(method, (X, X, 1.0))
    with pytest.raises(NotFittedError):
        getattr(DiffusionPolicy(), method)(*arguments)
