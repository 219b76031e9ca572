"""Files of policies: everything comes back, nothing is executed, nothing half-written stays."""

import io
import json
import os
import pickle
import re
import stat
import struct

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from sklearn.exceptions import NotFittedError

import skvdd
from tests.estimators import ask, judgement, label, make_estimators, small_teacher, type_name

IDS = [label(estimator) for estimator in make_estimators()]


def refused(message, error=ValueError):
    """Expect an error whose whole message is this."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def make_data(seed=0):
    rng = np.random.RandomState(seed)
    states = pd.DataFrame(rng.uniform(-1, 1, size=(40, 2)), columns=["position", "speed"])
    side = np.sign(rng.standard_normal(40))
    actions = np.stack([side * (1 + states["position"]), 30 * states["speed"]], axis=1)
    return states, actions + 0.1 * rng.standard_normal(actions.shape)


@pytest.fixture(scope="module", params=range(len(IDS)), ids=IDS)
def policy(request):
    """Every estimator, fitted; tests must not change it."""
    return make_estimators()[request.param].fit(*make_data())


@pytest.fixture(scope="module")
def mixture():
    """One fitted policy where any will do; tests must not change it."""
    return skvdd.GaussianMoEPolicy(2, hidden_size=8, n_layers=1, max_iter=2, random_state=0).fit(
        *make_data()
    )


@pytest.fixture
def saved(mixture, tmp_path):
    path = tmp_path / "policy.safetensors"
    mixture.save(path)
    return path


def assert_same_answers(again, policy):
    states, actions = make_data(seed=1)
    np.testing.assert_array_equal(again.predict(states), policy.predict(states))
    expected = ask(policy, judgement(policy), states, actions)
    np.testing.assert_array_equal(ask(again, judgement(policy), states, actions), expected)
    np.testing.assert_array_equal(
        again.sample(states, n_samples=3, random_state=0),
        policy.sample(states, n_samples=3, random_state=0),
    )
    np.testing.assert_array_equal(
        again.act(states, random_state=0), policy.act(states, random_state=0)
    )


def rewrite(path, **changes):
    """Replace entries of the header, as another version might have written them."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    layout = json.loads(content[8 : 8 + length])
    header = {**json.loads(layout["__metadata__"]["skvdd"]), **changes}
    layout["__metadata__"]["skvdd"] = json.dumps(header)
    encoded = json.dumps(layout).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])


# -- what comes back ------------------------------------------------------------------------


def test_a_saved_policy_answers_as_before_to_the_last_bit(policy, tmp_path):
    policy.save(tmp_path / "policy.safetensors")
    again = skvdd.load(tmp_path / "policy.safetensors")
    assert type(again) is type(policy)
    assert_same_answers(again, policy)


def test_names_of_features_and_everything_learnt_come_back(policy, tmp_path):
    policy.save(tmp_path / "policy.safetensors")
    again = skvdd.load(tmp_path / "policy.safetensors")
    assert again.feature_names_in_.tolist() == ["position", "speed"]
    assert again.feature_names_in_.dtype == object
    for name in ("n_features_in_", "n_actions_", "n_iter_", "history_", "interrupted_"):
        assert getattr(again, name) == getattr(policy, name)
        assert type(getattr(again, name)) is type(getattr(policy, name))
    for scaler in ("state_scaler_", "action_scaler_"):
        for part in ("mean_", "scale_"):
            expected = getattr(getattr(policy, scaler), part)
            np.testing.assert_array_equal(getattr(getattr(again, scaler), part), expected)
    with pytest.raises(ValueError, match="feature names should match"):
        again.predict(make_data()[0].rename(columns={"speed": "velocity"}))


def test_parameters_come_back(policy, tmp_path):
    policy.save(tmp_path / "policy.safetensors")
    again = skvdd.load(tmp_path / "policy.safetensors").get_params(deep=False)
    expected = policy.get_params(deep=False)
    assert again.pop("teacher", None) is None  # a student does not need it
    expected.pop("teacher", None)
    assert again == expected


def test_a_loaded_policy_can_be_saved_and_fitted_again(policy, tmp_path):
    policy.save(tmp_path / "first.safetensors")
    skvdd.load(tmp_path / "first.safetensors").save(tmp_path / "second.safetensors")
    again = skvdd.load(tmp_path / "second.safetensors")
    assert_same_answers(again, policy)
    if "teacher" in again.get_params():
        again.set_params(teacher=small_teacher())
    again.set_params(max_iter=1).fit(*make_data())
    assert again.n_iter_ == 1


@pytest.mark.parametrize("which", range(len(IDS)), ids=IDS)
def test_transformers_windows_and_single_actions_come_back(which, tmp_path):
    rng = np.random.RandomState(0)
    states, actions = rng.standard_normal((30, 3, 2)), rng.standard_normal(30)
    policy = make_estimators(window_size=3, encoder="transformer", n_heads=2, max_iter=2)[which]
    policy.fit(states, actions).save(tmp_path / "policy.safetensors")
    again = skvdd.load(tmp_path / "policy.safetensors")
    assert again.predict(states).shape == (30,)
    np.testing.assert_array_equal(again.predict(states), policy.predict(states))
    expected = ask(policy, judgement(policy), states, actions)
    np.testing.assert_array_equal(ask(again, judgement(policy), states, actions), expected)
    assert not hasattr(again, "feature_names_in_")


@pytest.mark.parametrize(
    ("parameter", "value", "plain"),
    [
        ("n_experts", np.int64(2), 2),
        ("hidden_size", np.int32(8), 8),
        ("learning_rate", np.float64(0.5), 0.5),
        ("learning_rate", np.float32(0.5), 0.5),
        ("warm_start", np.bool_(True), True),
        ("device", torch.device("cpu"), "cpu"),
        ("random_state", np.random.RandomState(0), None),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_parameter_that_json_does_not_know_is_written_in_its_plain_form(
    parameter, value, plain, tmp_path
):
    settings = {"n_experts": 2, "hidden_size": 8, "max_iter": 1, parameter: value}
    policy = skvdd.GaussianMoEPolicy(**settings).fit(*make_data())
    policy.save(tmp_path / "policy.safetensors")
    again = skvdd.load(tmp_path / "policy.safetensors")
    assert getattr(again, parameter) == plain
    assert type(getattr(again, parameter)) is type(plain)
    assert_same_answers(again, policy)


def test_pickle_round_trip(policy):
    assert_same_answers(pickle.loads(pickle.dumps(policy)), policy)


def test_joblib_round_trip(policy):
    buffer = io.BytesIO()
    joblib.dump(policy, buffer)
    buffer.seek(0)
    assert_same_answers(joblib.load(buffer), policy)


def test_an_unfitted_policy_pickles():
    for estimator in make_estimators():
        again = pickle.loads(pickle.dumps(estimator))
        assert type(again) is type(estimator)
        assert not hasattr(again, "network_")


def test_paths_may_be_strings(mixture, tmp_path):
    path = str(tmp_path / "policy.safetensors")
    mixture.save(path)
    assert_same_answers(skvdd.load(path), mixture)


# -- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", make_estimators(), ids=label)
def test_an_unfitted_policy_is_not_saved(estimator, tmp_path):
    with refused(
        f"This {type_name(estimator)} instance is not fitted yet. Call 'fit' with appropriate "
        "arguments before using this estimator.",
        NotFittedError,
    ):
        estimator.save(tmp_path / "policy.safetensors")
    assert os.listdir(tmp_path) == []


def test_a_missing_file_and_a_folder_are_no_policy_files(tmp_path):
    for path in (tmp_path / "absent.safetensors", tmp_path):
        with refused(f"there is no policy file at {str(path)!r}.", FileNotFoundError):
            skvdd.load(path)


@pytest.mark.parametrize("content", [b"", b"\x00", b"PK\x03\x04 a zip file, perhaps", b"{}" * 50])
def test_what_is_no_safetensors_file_is_refused(content, tmp_path):
    path = tmp_path / "policy.safetensors"
    path.write_bytes(content)
    # What follows are safetensors' own words.
    with pytest.raises(
        ValueError, match=f"^{re.escape(repr(str(path)))} is not a policy saved by skvdd: "
    ):
        skvdd.load(path)


@pytest.mark.parametrize("kept", [4, 8, 100, 0.5, 0.9, -1])
def test_a_truncated_file_is_refused(kept, saved):
    content = saved.read_bytes()
    kept = int(kept * len(content)) if isinstance(kept, float) else kept
    saved.write_bytes(content[:kept])
    with pytest.raises(
        ValueError, match=f"^{re.escape(repr(str(saved)))} is not a policy saved by skvdd: "
    ):
        skvdd.load(saved)


def test_safetensors_of_others_are_refused(tmp_path):
    path = tmp_path / "others.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(2)}, path, metadata=metadata)
        with refused(f"{str(path)!r} is not a policy saved by skvdd."):
            skvdd.load(path)


@pytest.mark.parametrize("header", ["[]", "3", '{"format": "another", "version": 1}'])
def test_headers_of_others_are_refused(header, tmp_path):
    path = tmp_path / "others.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata={"skvdd": header})
    with refused(f"{str(path)!r} is not a policy saved by skvdd."):
        skvdd.load(path)


def test_a_newer_format_is_refused(saved):
    rewrite(saved, version=2)
    with refused(
        f"{str(saved)!r} has format version 2, but this skvdd reads version 1. Update skvdd."
    ):
        skvdd.load(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"class": "Pipeline"},
        {"network": {"class": "Linear", "config": {"in_features": 1, "out_features": 1}}},
        {"network": None},
        {"parameters": {"n_components": 2}},
        {"parameters": []},
        {"attributes": {}},
        {"attributes": None},
    ],
    ids=str,
)
def test_a_header_that_names_what_is_not_ours_is_refused(changes, saved):
    rewrite(saved, **changes)
    with pytest.raises(ValueError, match=f"^{re.escape(repr(str(saved)))} is damaged: "):
        skvdd.load(saved)


def test_tensors_that_do_not_fit_the_network_are_refused(saved, mixture):
    rewrite(
        saved,
        network={"class": "MixtureNetwork", "config": {**mixture.network_.config, "n_experts": 3}},
    )
    with pytest.raises(ValueError, match=f"^{re.escape(repr(str(saved)))} is damaged: "):
        skvdd.load(saved)


def test_a_flipped_bit_in_the_header_is_one_clear_error_or_harmless(saved):
    content = saved.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    messages = f"^{re.escape(repr(str(saved)))} (is not a policy saved|is damaged|has format)"
    n_refused = 0
    for position in range(0, 8 + length, 13):
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position // 13) % 7
        saved.write_bytes(flipped)
        try:
            skvdd.load(saved)  # digits and names in the header may change unseen
        except ValueError as error:
            assert re.match(messages, str(error))  # noqa: PT017
            n_refused += 1
    assert n_refused > 100


# -- writing --------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_an_older_file_survives_a_failing_save(call, saved, policy, monkeypatch):
    def fail(*args):
        raise OSError("the disk is full")

    before = saved.read_bytes()
    monkeypatch.setattr(os, call, fail)
    with refused("the disk is full", OSError):
        policy.save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_a_failing_save_leaves_nothing_behind(mixture, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mixture.save(tmp_path / "policy.safetensors")
    assert os.listdir(tmp_path) == []


def test_saving_replaces_an_older_file(saved, policy):
    policy.save(saved)
    assert type(skvdd.load(saved)) is type(policy)
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_a_saved_file_may_be_read_by_whoever_may_read_a_new_file(saved):
    (saved.parent / "plain").touch()
    expected = stat.S_IMODE((saved.parent / "plain").stat().st_mode)
    assert stat.S_IMODE(saved.stat().st_mode) == expected


def test_saving_leaves_the_policy_as_it_was(policy, tmp_path):
    before = policy.predict(make_data()[0])
    policy.save(tmp_path / "policy.safetensors")
    np.testing.assert_array_equal(policy.predict(make_data()[0]), before)
