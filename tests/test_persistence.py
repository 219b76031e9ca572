"""Files of policies: everything comes back, nothing is executed, nothing half-written stays."""

import errno
import hashlib
import io
import json
import os
import pickle
import re
import stat
import struct
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.exceptions import NotFittedError

import skvdd
from skvdd import persistence
from tests.estimators import ask, judgement, label, make_estimators, small_teacher, type_name

IDS = [label(estimator) for estimator in make_estimators()]

# Policies of hidden_size=8 after two iterations, as each version of the format has them, and what
# they answered when they were made. New versions add files; none is ever made anew.
FIXTURES = Path(__file__).parent / "fixtures" / "policies"


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


def unpacked(path):
    """Return the header and the tensors of a file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["skvdd"]), load_file(path)


def pack(path, header, tensors):
    """Write a file of these as they are."""
    save_file(tensors, path, metadata={"skvdd": json.dumps(header)})


def seal(path, header, tensors):
    """Write a file of these with its checksum, so that only the content may be wrong.

    The checksum is computed here as the documentation has it, not by the code under test.
    """
    pack(path, {**header, "sha256": "0" * 64}, tensors)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    path.write_bytes(content.replace(b"0" * 64, digest.encode(), 1))


def rewrite(path, **changes):
    """Replace entries of the header, as another version might have written them."""
    header, tensors = unpacked(path)
    seal(path, {**header, **changes}, tensors)


def is_refused(path, message=""):
    """Expect that loading a file says that it is damaged, and why."""
    return pytest.raises(
        ValueError, match=f"^{re.escape(repr(str(path)))} is damaged: {re.escape(message)}"
    )


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


@pytest.mark.parametrize("file", sorted(FIXTURES.glob("*.safetensors")), ids=lambda f: f.stem)
def test_files_of_every_version_can_be_read(file, tmp_path):
    table = json.loads((FIXTURES / "answers.json").read_text())
    states = pd.DataFrame(table["states"], columns=["position", "speed"])
    policy = skvdd.load(file)
    expected = table["answers"][file.stem.rpartition("-v")[0]]
    # Float32 networks: other processors take other kernels, which round differently.
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(policy.predict(states), expected["predict"], **close)
    drawn = policy.sample(states, 2, random_state=0)
    np.testing.assert_allclose(drawn, expected["sample"], **close)
    np.testing.assert_allclose(policy.score(states, table["actions"]), expected["score"], **close)
    policy.save(tmp_path / "again.safetensors")
    assert unpacked(tmp_path / "again.safetensors")[0]["version"] == persistence.FORMAT_VERSION
    again = skvdd.load(tmp_path / "again.safetensors")
    np.testing.assert_array_equal(again.predict(states), policy.predict(states))


def test_every_version_and_every_estimator_has_a_file():
    files = {file.stem for file in FIXTURES.glob("*.safetensors")}
    assert {f"{name}-v{persistence.FORMAT_VERSION}" for name in IDS} <= files
    versions = {unpacked(file)[0]["version"] for file in FIXTURES.glob("*.safetensors")}
    assert versions == set(persistence.READ_VERSIONS)


def test_the_same_policy_gives_the_same_file(mixture, tmp_path):
    mixture.save(tmp_path / "first.safetensors")
    mixture.save(tmp_path / "second.safetensors")
    skvdd.load(tmp_path / "first.safetensors").save(tmp_path / "third.safetensors")
    contents = {path.read_bytes() for path in tmp_path.iterdir()}
    assert len(contents) == 1


def test_a_loaded_policy_no_longer_needs_its_file(saved, mixture):
    again = skvdd.load(saved)
    with open(saved, "r+b") as file:  # in place, as `cp` writes
        file.write(bytes(saved.stat().st_size))
        file.truncate(10)
    assert_same_answers(again, mixture)


def test_loading_leaves_the_generator_of_the_user_alone(saved):
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    skvdd.load(saved)
    assert torch.equal(torch.randn(2), expected)


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


@pytest.mark.parametrize("version", [3, 0, "2", None, [2]])
def test_another_format_is_refused(version, saved):
    rewrite(saved, version=version)
    with refused(
        f"{str(saved)!r} has format version {version}, but this skvdd reads versions 1 to 2. "
        "Update skvdd."
    ):
        skvdd.load(saved)


@pytest.mark.parametrize("stated", ["0" * 64, "f" * 64, "f" * 63, "", 7, None])
def test_a_file_without_its_checksum_is_refused(stated, saved):
    header, tensors = unpacked(saved)
    for version in (1, 2):  # a first version that has one did not have it from us
        pack(saved, {**header, "version": version, "sha256": stated}, tensors)
        with is_refused(saved, "its checksum is "):
            skvdd.load(saved)
    header.pop("sha256")
    pack(saved, header, tensors)
    with is_refused(saved, "'sha256'"):
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
        {"class": "DensityPolicy"},
        {"class": ["VDDDistiller"]},
        {"parameters": {"n_experts": 0}},
        {"parameters": {"window_size": 2}},
        {"parameters": {"goal_dim": 2}},
        {"feature_names_in_": ["position"]},
        {"feature_names_in_": [1, 2]},
        {"feature_names_in_": 2},
    ],
    ids=str,
)
def test_a_header_that_names_what_is_not_ours_is_refused(changes, saved):
    rewrite(saved, **changes)
    with pytest.raises(ValueError, match=f"^{re.escape(repr(str(saved)))} is damaged: "):
        skvdd.load(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_features_in_": "2"},
        {"n_features_in_": 0},
        {"n_features_in_": 3},
        {"n_actions_": True},
        {"n_actions_": 1},
        {"n_actions_": -1},
        {"_single_output": True},
        {"_single_output": 0},
        {"n_iter_": -1},
        {"interrupted_": None},
        {"history_": {}},
        {"history_": [1]},
    ],
    ids=str,
)
def test_attributes_that_no_fit_leaves_are_refused(changes, saved):
    rewrite(saved, attributes={**unpacked(saved)[0]["attributes"], **changes})
    with is_refused(saved):
        skvdd.load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_experts": 3}, "the tensor 'gating.4.bias' has"),
        ({"n_experts": 10**9}, "the tensor"),
        ({"hidden_size": 10**9}, "the tensor"),
        ({"hidden_size": 10**30}, ""),
        ({"hidden_size": -1}, "its network has hidden_size=-1"),
        ({"hidden_size": 0}, "its network has hidden_size=0"),
        ({"n_experts": 0}, "its network has n_experts=0"),
        ({"n_layers": 10**9}, "its network has 1000000000 layers, but the file 2"),
        ({"n_layers": 2}, "the tensor 'trunk.2.bias' is too much"),
        ({"n_layers": 0}, "the tensor"),
        ({"n_layers": "1"}, ""),
        ({"n_actions": 3}, "its network has n_actions=3, the policy 2"),
        ({"another": 1}, ""),
    ],
    ids=str,
)
def test_a_network_that_the_tensors_do_not_fill_is_never_built(changes, message, saved):
    rewrite(saved, network={**unpacked(saved)[0]["network"], **changes})
    with is_refused(saved, message):
        skvdd.load(saved)


def test_an_encoder_of_other_sizes_is_refused(saved):
    config = unpacked(saved)[0]["network"]
    for name, value in [("n_states", 1), ("window_size", 2), ("n_goals", 1), ("n_layers", 10**9)]:
        rewrite(saved, network={**config, "encoder": {**config["encoder"], name: value}})
        with is_refused(saved, "its network has "):
            skvdd.load(saved)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("action_scaler_.scale", [1.0, np.nan], "action_scaler_ is not finite"),
        ("action_scaler_.mean", [np.inf, 0.0], "action_scaler_ is not finite"),
        ("state_scaler_.scale", [1.0, 0.0], "the scale of state_scaler_ is not positive"),
        ("state_scaler_.scale", [1.0, -2.0], "the scale of state_scaler_ is not positive"),
        ("state_scaler_.mean", [1.0], "state_scaler_ has torch.float64 of shape (1,)"),
        ("state_scaler_.mean", [[1.0, 2.0]], "state_scaler_ has torch.float64 of shape (1, 2)"),
        ("state_scaler_.mean", None, "'state_scaler_.mean'"),
        ("network.output.bias", None, "the tensor 'output.bias' is missing"),
        ("network.another", [1.0], "the tensor 'another' is too much"),
        ("network.output.bias", [1.0], "the tensor 'output.bias' has torch.float64 of shape (1,)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(name, value, message, saved):
    header, tensors = unpacked(saved)
    tensors.pop(name, None)
    if value is not None:
        tensors[name] = torch.tensor(value, dtype=torch.float64)
    seal(saved, header, tensors)
    with is_refused(saved, message):
        skvdd.load(saved)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_neither_loaded_nor_saved(value, saved):
    policy = skvdd.load(saved)
    header, tensors = unpacked(saved)
    tensors["network.output.bias"][0] = value
    seal(saved, header, tensors)
    with is_refused(saved, "its weights are not finite"):
        skvdd.load(saved)
    policy.network_.output.bias.data[0] = value
    with refused(
        "this GaussianMoEPolicy cannot be saved, since no file of it could be loaded: its weights "
        "are not finite"
    ):
        policy.save(saved)


def test_other_types_of_numbers_are_refused(saved):
    header, tensors = unpacked(saved)
    tensors["network.output.bias"] = tensors["network.output.bias"].double()
    seal(saved, header, tensors)
    with is_refused(saved, "the tensor 'output.bias' has torch.float64"):
        skvdd.load(saved)


def test_a_flipped_bit_anywhere_is_refused(tmp_path):
    path = tmp_path / "policy.safetensors"
    content = (FIXTURES / "DiffusionPolicy-v2.safetensors").read_bytes()
    messages = f"^{re.escape(repr(str(path)))} (is not a policy saved|is damaged|has format)"
    for position in range(0, len(content), 11):  # and every bit in the fuzzer's runs
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=messages):
            skvdd.load(path)


def test_a_flipped_bit_in_the_header_of_a_first_version_is_one_clear_error_or_harmless(tmp_path):
    path = tmp_path / "policy.safetensors"
    content = (FIXTURES / "GaussianMoEPolicy-v1.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    messages = f"^{re.escape(repr(str(path)))} (is not a policy saved|is damaged|has format)"
    n_refused = 0
    for position in range(0, 8 + length, 13):
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position // 13) % 7
        path.write_bytes(flipped)
        try:
            skvdd.load(path)  # digits and names in the header may change unseen
        except ValueError as error:
            assert re.match(messages, str(error))  # noqa: PT017
            n_refused += 1
    assert n_refused > 100


def test_what_follows_a_policy_is_refused(saved):
    size = saved.stat().st_size
    with open(saved, "ab") as file:
        file.write(b"\0")
    with refused(
        f"{str(saved)!r} is not a policy saved by skvdd: it has {size + 1} bytes where its header "
        f"says {size}"
    ):
        skvdd.load(saved)


def test_a_file_larger_than_any_policy_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "policy.safetensors"
    size = persistence.MAX_SIZE
    metadata = {"skvdd": json.dumps({"format": "skvdd-policy", "version": 2})}
    tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    layout = json.dumps({"__metadata__": metadata, "weights": tensor}).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(layout)) + layout)
        file.truncate(8 + len(layout) + size)  # a hole, which takes no place on the disk
    with refused(
        f"{str(path)!r} has {8 + len(layout) + size} bytes, but a policy has at most {size}."
    ):
        skvdd.load(path)


@pytest.mark.parametrize(
    "layout",
    [
        b"[" * 100_000,
        b"{}",
        b"[]",
        b'{"__metadata__": 1}',
        b'{"__metadata__": {"skvdd": 1}}',
        b'{"weights": {}}',
        b'{"weights": {"data_offsets": "ab"}}',
        b'{"weights": {"data_offsets": [0, 1e999]}}',
        b'{"weights": {"data_offsets": [0, ' + b"9" * 5000 + b"]}}",
        b"\xff\xfe",
        json.dumps({"__metadata__": {"skvdd": "[" * 100_000}}).encode(),
    ],
    ids=lambda layout: layout[:40].decode(errors="replace"),
)
def test_a_hostile_header_is_one_clear_error(layout, tmp_path):
    path = tmp_path / "policy.safetensors"
    path.write_bytes(struct.pack("<Q", len(layout)) + layout)
    with pytest.raises(
        ValueError, match=f"^{re.escape(repr(str(path)))} is not a policy saved by skvdd"
    ):
        skvdd.load(path)


def test_loading_executes_nothing(tmp_path):
    sprung = tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(sprung),)

    (tmp_path / "pickle").write_bytes(pickle.dumps(Trap()))
    torch.save({"weights": Trap()}, tmp_path / "torch")
    joblib.dump(Trap(), tmp_path / "joblib")
    for name in ("pickle", "torch", "joblib"):
        with pytest.raises(ValueError, match="is not a policy saved by skvdd: it does not begin"):
            skvdd.load(tmp_path / name)
    assert not sprung.exists()


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


def test_a_failing_removal_does_not_hide_why_saving_failed(mixture, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "no space left")

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match="no space left"):
        mixture.save(tmp_path / "policy.safetensors")


def test_a_folder_that_cannot_be_synced_is_no_reason_to_fail(saved, mixture, monkeypatch):
    sync = os.fsync

    def files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not supported by this file system")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    mixture.save(saved)
    assert_same_answers(skvdd.load(saved), mixture)


@pytest.mark.parametrize("parameters", [{"window_size": 3}, {"goal_dim": 1}, {"n_experts": 0}])
def test_a_policy_whose_parameters_no_longer_fit_is_not_saved(parameters, saved):
    before = saved.read_bytes()
    policy = skvdd.load(saved).set_params(**parameters)
    with pytest.raises(
        ValueError,
        match=r"^this GaussianMoEPolicy cannot be saved, since no file of it could be loaded: ",
    ):
        policy.save(saved)
    assert saved.read_bytes() == before


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
