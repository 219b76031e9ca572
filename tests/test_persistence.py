"""Files of policies: everything comes back, nothing is executed, nothing half-written stays."""

import errno
import hashlib
import json
import os
import pickle
import re
import stat
import struct
import subprocess
import sys
import time
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
from skvdd.nn.layout import RowLayout
from skvdd.registry import REGISTRY, TAG, class_name, register
from tests.estimators import judgement, label, make_estimators, small_teacher, type_name
from tests.fixtures import make_policies

IDS = [label(estimator) for estimator in make_estimators()]
ROOT = Path(__file__).parents[1]
FIXTURES = make_policies.FOLDER


def refused(message, error=ValueError):
    """Expect an error whose whole message is this."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def make_data(seed=0):
    return make_policies.make_data(seed=seed)


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
    judge = "denoising_score" if hasattr(policy, "denoising_score") else judgement(policy)
    expected = getattr(policy, judge)(states, actions)
    np.testing.assert_array_equal(getattr(again, judge)(states, actions), expected)
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


def test_names_of_features_and_everything_learned_come_back(policy, tmp_path):
    policy.save(tmp_path / "policy.safetensors")
    again = skvdd.load(tmp_path / "policy.safetensors")
    assert again.feature_names_in_.tolist() == ["position", "speed"]
    assert again.feature_names_in_.dtype == object
    learned = {name for name in vars(policy) if name.endswith("_")} - {"teacher_"}
    assert {name for name in vars(again) if name.endswith("_")} == learned
    for name in learned - {"network_", "feature_names_in_"}:
        assert getattr(again, name) == getattr(policy, name)
        assert type(getattr(again, name)) is type(getattr(policy, name))
    tensors, expected = again.network_.state_dict(), policy.network_.state_dict()
    assert list(tensors) == list(expected)
    for name, value in expected.items():
        assert torch.equal(tensors[name], value)
        assert tensors[name].dtype == value.dtype
    assert repr(again.network_.config) == repr(policy.network_.config)
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
    encoder = skvdd.TransformerEncoder(hidden_size=12, n_layers=2, n_heads=3)
    policy = make_estimators(window_size=3, encoder=encoder, max_iter=2)[which]
    policy.fit(states, actions).save(tmp_path / "policy.safetensors")
    again = skvdd.load(tmp_path / "policy.safetensors")
    assert again.predict(states).shape == (30,)
    assert again.action_shape_ == ()
    np.testing.assert_array_equal(again.predict(states), policy.predict(states))
    assert not hasattr(again, "feature_names_in_")
    assert type(again.encoder) is skvdd.TransformerEncoder
    assert again.encoder.get_params() == encoder.get_params()
    assert again.encoder is not encoder


@pytest.mark.parametrize("which", range(len(IDS)), ids=IDS)
def test_chunks_and_goals_come_back(which, tmp_path):
    rng = np.random.RandomState(0)
    states, chunks = rng.standard_normal((30, 5)), rng.standard_normal((30, 3, 2))
    policy = make_estimators(window_size=2, goal_dim=1, max_iter=2)[which].fit(states, chunks)
    policy.save(tmp_path / "policy.safetensors")
    again = skvdd.load(tmp_path / "policy.safetensors")
    assert again.action_shape_ == (3, 2)
    assert again.horizon_ == 3
    assert again.network_.layout == RowLayout(2, 2, 1)
    drawn = again.sample(states, 2, random_state=0)
    assert drawn.shape == (30, 2, 3, 2)
    np.testing.assert_array_equal(drawn, policy.sample(states, 2, random_state=0))


@pytest.mark.parametrize(
    ("parameter", "value", "plain"),
    [
        ("n_experts", np.int64(2), 2),
        ("hidden_size", np.int32(8), 8),
        ("learning_rate", np.float64(0.5), 0.5),
        ("learning_rate", np.float32(0.5), 0.5),
        ("warm_start", np.bool_(True), True),
        ("device", torch.device("cpu"), "auto"),
        ("device", "cpu", "auto"),
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


def test_a_policy_is_loaded_for_the_device_that_there_is(mixture, tmp_path):
    """Of whatever device it was: parameters may be set after a fit on another machine."""
    for device in ("cuda:7", "mps", "cpu", torch.device("cuda")):
        policy = pickle.loads(pickle.dumps(mixture)).set_params(device=device)
        policy.save(tmp_path / "policy.safetensors")
        assert policy.device == device
        again = skvdd.load(tmp_path / "policy.safetensors")
        assert again.device == "auto"
        assert_same_answers(again, mixture)


@pytest.mark.parametrize("stem", sorted(file.stem for file in FIXTURES.glob("*.safetensors")))
def test_files_of_every_version_can_be_read(stem, tmp_path):
    expected = json.loads(make_policies.ANSWERS.read_text())[stem]
    states = pd.DataFrame(expected["states"], columns=expected["columns"])
    actions = np.array(expected["actions"])
    policy = skvdd.load(FIXTURES / f"{stem}.safetensors")
    found = make_policies.answers(policy, states, actions)
    assert found.keys() == expected.keys()
    for name in ("predict", "sample", "act", "score"):
        # Float32 networks: other processors take other kernels, which round differently.
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4)
    policy.save(tmp_path / "again.safetensors")
    assert unpacked(tmp_path / "again.safetensors")[0]["version"] == persistence.FORMAT_VERSION
    again = skvdd.load(tmp_path / "again.safetensors")
    np.testing.assert_array_equal(again.predict(states), policy.predict(states))


def test_this_version_has_a_file_of_every_kind_of_policy():
    files = {file.stem for file in FIXTURES.glob("*.safetensors")}
    kinds = make_policies.policies()
    assert set(IDS) <= set(kinds)
    assert {f"{name}-v{persistence.FORMAT_VERSION}" for name in kinds} <= files
    for file in FIXTURES.glob("*.safetensors"):
        assert unpacked(file)[0]["version"] == int(file.stem.rpartition("-v")[2])
        assert file.stat().st_size < 2**15  # they are in every clone


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


@pytest.mark.parametrize("version", [1, 2, 4, 0, "3", None, [3]])
def test_another_format_is_refused(version, saved):
    rewrite(saved, version=version)
    with refused(
        f"{str(saved)!r} has format version {version}, but this skvdd reads version 3. Use the "
        "skvdd that wrote it, or fit the policy again."
    ):
        skvdd.load(saved)


@pytest.mark.parametrize("stated", ["0" * 64, "f" * 64, "f" * 63, "", 7, None])
def test_a_file_without_its_checksum_is_refused(stated, saved):
    header, tensors = unpacked(saved)
    pack(saved, {**header, "sha256": stated}, tensors)
    with is_refused(saved, "its checksum is "):
        skvdd.load(saved)
    header.pop("sha256")
    pack(saved, header, tensors)
    with is_refused(saved, "'sha256'"):
        skvdd.load(saved)


MIXTURE = "skvdd:GaussianMoEPolicy"


def is_not_loaded(path):
    """Expect one clear error that names the file."""
    names = f"^{re.escape(repr(str(path)))} (is damaged: |names the unknown class )"
    return pytest.raises(ValueError, match=names)


@pytest.mark.parametrize(
    "changes",
    [
        {"class": "sklearn.pipeline:Pipeline"},
        {"class": "GaussianMoEPolicy"},
        {"class": "skvdd:DensityPolicy"},
        {"class": "skvdd:RowLayout"},
        {"class": "skvdd:MLPEncoder"},
        {"class": "skvdd:"},
        {"class": [MIXTURE]},
        {"class": None},
        {"network": {"class": "Linear", "config": {"in_features": 1, "out_features": 1}}},
        {"network": {"class": "MixtureNetwork", "config": {}}},
        {"network": {"class": ["MixtureNetwork"], "config": {}}},
        {"network": None},
        {"parameters": {"n_components": 2}},
        {"parameters": []},
        {"parameters": {"n_experts": 0}},
        {"parameters": {"window_size": -1}},
        {"parameters": {"device": 3}},
        {"parameters": {"encoder": {TAG: "builtins:eval", "source": "1"}}},
        {"parameters": {"encoder": {TAG: "skvdd:MLPEncoder", "depth": 3}}},
        {"parameters": {"encoder": {TAG: "skvdd:MLPEncoder", "n_layers": -1}}},
        {"parameters": {"encoder": {TAG: "skvdd:Encoder"}}},
        {"parameters": {"encoder": {TAG: ["skvdd:MLPEncoder"]}}},
        {"parameters": {"encoder": {TAG: MIXTURE}}},
        {"attributes": {}},
        {"attributes": None},
        {"attributes": []},
    ],
    ids=str,
)
def test_a_header_that_names_what_is_not_ours_is_refused(changes, saved):
    rewrite(saved, **changes)
    with is_not_loaded(saved):
        skvdd.load(saved)


@pytest.mark.parametrize("missing", ["class", "parameters", "attributes", "network"])
def test_a_header_without_one_of_its_parts_is_refused(missing, saved):
    header, tensors = unpacked(saved)
    del header[missing]
    seal(saved, header, tensors)
    with is_refused(saved, f"'{missing}'"):
        skvdd.load(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_features_in_": "2"},
        {"n_features_in_": 0},
        {"n_features_in_": 3},
        {"n_features_in_": True},
        {"feature_names_in_": ["position"]},
        {"feature_names_in_": [1, 2]},
        {"feature_names_in_": 2},
        {"feature_names_in_": [["position", "speed"]]},
        {"action_shape_": [1]},
        {"action_shape_": []},
        {"action_shape_": [-1, -2]},
        {"action_shape_": [1, 1, 2]},
        {"action_shape_": [True, 2]},
        {"action_shape_": 2},
        {"action_shape_": None},
        {"horizon_": "1"},
        {"horizon_": -1},
        {"n_iter_": -1},
        {"n_iter_": 2.0},
        {"interrupted_": None},
        {"history_": {}},
        {"history_": [1]},
        {"another_": 1},
        {"n_actions_": 2},
    ],
    ids=str,
)
def test_attributes_that_no_fit_leaves_are_refused(changes, saved):
    rewrite(saved, attributes={**unpacked(saved)[0]["attributes"], **changes})
    with is_refused(saved):
        skvdd.load(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler_": "another"},
        {"sampler_": None},
        {"n_steps_": 0},
        {"n_steps_": "4"},
        {"n_steps_": 2.5},
    ],
    ids=str,
)
def test_a_way_of_sampling_that_no_fit_leaves_is_refused(changes, tmp_path):
    path = tmp_path / "policy.safetensors"
    path.write_bytes((FIXTURES / "DiffusionPolicy-v3.safetensors").read_bytes())
    rewrite(path, attributes={**unpacked(path)[0]["attributes"], **changes})
    with is_refused(path):
        skvdd.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_min": 9.0},
        {"noise_min": -1.0},
        {"noise_min": "low"},
        {"noise_max": float("nan")},
        {"sde": "another"},
        {"schedule": "cosine"},
        {"noise_density": "another"},
        {"another": 1},
        {TAG: "skvdd:Another"},
    ],
    ids=str,
)
def test_noise_levels_that_no_policy_has_are_refused(changes, tmp_path):
    path = tmp_path / "policy.safetensors"
    path.write_bytes((FIXTURES / "DiffusionPolicy-v3.safetensors").read_bytes())
    attributes = unpacked(path)[0]["attributes"]
    levels = {**attributes["noise_levels_"], **changes}
    rewrite(path, attributes={**attributes, "noise_levels_": levels})
    with is_not_loaded(path):
        skvdd.load(path)


# -- sizes ----------------------------------------------------------------------------------

HOSTILE = [10**9, 2**40, 10**30, -1, -(2**40), 0, 2.5, "8", None, [8], {}]


@pytest.fixture
def never_built(monkeypatch):
    """Let no network be built whose tensors are not there."""

    def refuse(*arguments):
        raise AssertionError("a network takes memory before its tensors were compared")

    monkeypatch.setattr(persistence, "_materialize", refuse)


def changed(config, place, value):
    """Return a configuration with another value in a place."""
    name, *inner = place
    return {**config, name: changed(config[name], inner, value) if inner else value}


@pytest.mark.parametrize(
    ("stem", "place"),
    [
        ("GaussianMoEPolicy", ("n_experts",)),
        ("GaussianMoEPolicy", ("hidden_size",)),
        ("GaussianMoEPolicy", ("n_layers",)),
        ("GaussianMoEPolicy", ("n_actions",)),
        *(
            ("GaussianMoEPolicy", ("layout", name))
            for name in ("n_states", "window_size", "goal_dim")
        ),
        ("GaussianMoEPolicy", ("encoder", "hidden_size")),
        ("GaussianMoEPolicy", ("encoder", "n_layers")),
        ("transformer", ("layout", "window_size")),
        ("transformer", ("encoder", "hidden_size")),
        ("transformer", ("encoder", "n_layers")),
        ("transformer", ("encoder", "n_heads")),
        ("DiffusionPolicy", ("hidden_size",)),
        ("DiffusionPolicy", ("n_layers",)),
        ("chunks", ("n_actions",)),
        *(
            ("DiffusionPolicy-gpt", (name,))
            for name in ("hidden_size", "n_layers", "n_heads", "head_size", "n_goal_tokens")
        ),
        ("ConsistencyDistiller", ("denoiser", "hidden_size")),
        ("ConsistencyDistiller", ("denoiser", "n_layers")),
        ("ConsistencyDistiller", ("denoiser", "encoder", "n_layers")),
        ("ConsistencyTrajectoryDistiller", ("denoiser", "layout", "n_states")),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_sizes_of_no_network_that_is_there_take_neither_time_nor_memory(
    stem, place, never_built, tmp_path
):
    path = tmp_path / "policy.safetensors"
    content = (FIXTURES / f"{stem}-v3.safetensors").read_bytes()
    path.write_bytes(content)
    network = unpacked(path)[0]["network"]
    own = network["config"]
    for name in place:
        own = own[name]
    harmless = {("n_goal_tokens",): [0, 10**9, 2**40, 10**30, 2.5, {}, [8], "8", None]}
    started = time.perf_counter()
    for value in HOSTILE:
        if value == own or value in harmless.get(place, []):
            continue
        path.write_bytes(content)
        rewrite(path, network={**network, "config": changed(network["config"], place, value)})
        with is_refused(path):
            skvdd.load(path)
    assert time.perf_counter() - started < 10.0  # it takes a tenth of a second


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_experts": 3}, "the tensor 'gating.4.bias' has"),
        ({"n_experts": 10**9}, "the tensor"),
        ({"hidden_size": 2**20}, "the tensor"),
        ({"hidden_size": 2**40}, ""),
        ({"hidden_size": -1}, "its network has hidden_size=-1"),
        ({"n_layers": 10**9}, "its network has n_layers=1000000000, the file "),
        ({"n_layers": 2}, "the tensor 'trunk.2.bias' is "),
        ({"n_layers": 0}, "the tensor"),
        ({"n_actions": 3}, "the tensor 'action_normalization.mean' has"),
        ({"scale_floor": 0.0}, "scale_floor must be positive"),
        ({"another": 1}, ""),
    ],
    ids=str,
)
def test_a_network_that_the_tensors_do_not_fill_is_named(changes, message, saved, never_built):
    network = unpacked(saved)[0]["network"]
    rewrite(saved, network={**network, "config": {**network["config"], **changes}})
    with is_refused(saved, message):
        skvdd.load(saved)


def test_sizes_beside_an_encoder_of_the_user_take_no_memory_either(tmp_path, monkeypatch):
    class Plain(skvdd.MLPEncoder):
        pass

    class Careless(skvdd.MLPEncoder):
        def build(self, layout):
            assert float(torch.zeros(1)) == 0.0  # which needs a tensor with memory
            return super().build(layout)

    path = tmp_path / "policy.safetensors"
    settings = {"n_experts": 2, "hidden_size": 8, "max_iter": 1, "random_state": 0}
    for encoder in (Plain(8, 1), Careless(8, 1)):
        policy = skvdd.GaussianMoEPolicy(encoder=encoder, **settings).fit(*make_data())
        policy.save(path)
        assert_same_answers(skvdd.load(path), policy)
    skvdd.GaussianMoEPolicy(encoder=Plain(8, 1), **settings).fit(*make_data()).save(path)
    network = unpacked(path)[0]["network"]
    monkeypatch.setattr(persistence, "_materialize", None)
    for name in ("n_experts", "hidden_size"):
        rewrite(path, network={**network, "config": {**network["config"], name: 10**9}})
        with is_refused(path, "the tensor"):
            skvdd.load(path)


def test_parts_of_unknown_classes_are_not_built(saved, never_built):
    network = unpacked(saved)[0]["network"]
    for place in (("encoder",), ("layout",)):
        part = {TAG: "elsewhere:Encoder", "hidden_size": 2**40}
        rewrite(saved, network={**network, "config": changed(network["config"], place, part)})
        with refused(
            f"{str(saved)!r} names the unknown class 'elsewhere:Encoder': import elsewhere before "
            "loading it."
        ):
            skvdd.load(saved)
    deep = {"hidden_size": 8}
    for _ in range(900):
        deep = {"encoder": deep}
    rewrite(saved, network={**network, "config": deep})
    with is_refused(saved):
        skvdd.load(saved)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("action_normalization.scale", [1.0, np.nan], "it holds what is not a number"),
        ("action_normalization.scale", [1.0, np.inf], "its normalization is not finite"),
        ("action_normalization.mean", [np.inf, 0.0], "its normalization is not finite"),
        ("row_normalization.scale", [1.0, 0.0], "its normalization has a scale that is not pos"),
        ("row_normalization.scale", [1.0, -2.0], "its normalization has a scale that is not pos"),
        (
            "row_normalization.mean",
            [1.0],
            "the tensor 'row_normalization.mean' has torch.float64 of shape (1,)",
        ),
        (
            "row_normalization.mean",
            [[1.0, 2.0]],
            "the tensor 'row_normalization.mean' has torch.float64 of shape (1, 2)",
        ),
        ("row_normalization.mean", None, "the tensor 'row_normalization.mean' is missing"),
        ("output.bias", None, "the tensor 'output.bias' is missing"),
        ("another", [1.0], "the tensor 'another' is not expected"),
        ("output.bias", [1.0], "the tensor 'output.bias' has torch.float64 of shape (1,)"),
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
    tensors["output.bias"][0] = value
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
    tensors["output.bias"] = tensors["output.bias"].double()
    seal(saved, header, tensors)
    with is_refused(saved, "the tensor 'output.bias' has torch.float64"):
        skvdd.load(saved)


def test_a_flipped_bit_anywhere_is_refused(tmp_path):
    path = tmp_path / "policy.safetensors"
    content = (FIXTURES / "DiffusionPolicy-v3.safetensors").read_bytes()
    messages = f"^{re.escape(repr(str(path)))} (is not a policy saved|is damaged|has format)"
    for position in range(0, len(content), 17):  # and every bit in the fuzzer's runs
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=messages):
            skvdd.load(path)


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
    metadata = {"skvdd": json.dumps({"format": "skvdd-policy", "version": 3})}
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


@pytest.mark.parametrize("parameters", [{"window_size": 0}, {"goal_dim": -1}, {"n_experts": 0}])
def test_a_policy_whose_parameters_break_a_rule_is_not_saved(parameters, saved):
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


def test_saving_through_a_symbolic_link_keeps_the_link(mixture, tmp_path):
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / "policy.safetensors", tmp_path / "latest.safetensors"
    link.symlink_to(target)
    for _ in range(2):  # the target is not there at first
        mixture.save(link)
        assert link.is_symlink()
        assert not target.is_symlink()
        assert_same_answers(skvdd.load(target), mixture)
        assert_same_answers(skvdd.load(link), mixture)
    assert os.listdir(target.parent) == [target.name]
    relative = tmp_path / "relative.safetensors"
    relative.symlink_to(Path("disk") / "policy.safetensors")
    mixture.save(relative)
    assert os.readlink(relative) == str(Path("disk") / "policy.safetensors")


# -- classes --------------------------------------------------------------------------------


class GaussianMoEPolicy(skvdd.GaussianMoEPolicy):
    """A policy of the user's with the name of one of the library."""

    def predict(self, X):
        return 0.0 * super().predict(X)


class MLPEncoder(skvdd.MLPEncoder):
    """An encoder of the user's, likewise."""


def test_a_class_with_the_name_of_one_of_the_library_does_not_replace_it(mixture, tmp_path):
    settings = {"n_experts": 2, "hidden_size": 8, "max_iter": 1, "random_state": 0}
    own = GaussianMoEPolicy(encoder=MLPEncoder(8, 1), **settings).fit(*make_data())
    mixture.save(tmp_path / "of-the-library.safetensors")
    own.save(tmp_path / "of-the-user.safetensors")
    first = skvdd.load(tmp_path / "of-the-library.safetensors")
    second = skvdd.load(tmp_path / "of-the-user.safetensors")
    assert type(first) is skvdd.GaussianMoEPolicy
    assert type(second) is GaussianMoEPolicy
    assert type(second.encoder) is type(second.network_.config["encoder"]) is MLPEncoder
    assert_same_answers(first, mixture)
    assert not second.predict(make_data()[0]).any()


@pytest.mark.parametrize(
    "cls",
    [skvdd.GaussianMoEPolicy, skvdd.VDDDistiller, skvdd.MLPEncoder, RowLayout],
    ids=lambda cls: cls.__name__,
)
def test_a_class_of_the_library_is_registered_once(cls):
    name = class_name(cls)
    assert REGISTRY[name] is cls
    with pytest.raises(TypeError, match=rf"^{re.escape(name)} is a class of skvdd already\.$"):
        register(cls)
    if issubclass(cls, skvdd.GaussianMoEPolicy | skvdd.MLPEncoder):
        with pytest.raises(TypeError, match="is a class of skvdd already"):
            type(cls.__name__, (cls,), {"__module__": cls.__module__})
    assert REGISTRY[name] is cls


def test_a_class_of_a_notebook_may_be_defined_again(tmp_path):
    def define(value):
        class Own(skvdd.GaussianMoEPolicy):
            def predict(self, X):
                return np.full(len(X), value)

        return Own

    path = tmp_path / "policy.safetensors"
    define(1.0)(2, hidden_size=8, max_iter=1).fit(*make_data()).save(path)
    define(2.0)
    assert set(skvdd.load(path).predict(make_data()[0])) == {2.0}


MODULE = """
from torch import nn

from skvdd import GaussianMoEPolicy
from skvdd.encoders import Encoder


class Wide(Encoder):
    def __init__(self, widths=(8, 12)):
        self.widths = widths

    def build(self, layout):
        first, second = self.widths
        return nn.Sequential(nn.Linear(layout.n_columns, first), nn.Linear(first, second))


class Careful(GaussianMoEPolicy):
    def __init__(self, n_experts=2, *, caution=0.5, encoder="mlp", max_iter=1, random_state=0):
        super().__init__(
            n_experts, encoder=encoder, hidden_size=8, max_iter=max_iter, random_state=random_state
        )
        self.caution = caution

    def predict(self, X):
        return self.caution * super().predict(X)
"""

ELSEWHERE = """
import sys

import numpy as np

import skvdd

for name in ("policy", "encoder"):
    try:
        skvdd.load(f"{name}.safetensors")
    except ValueError as error:
        print(error)
import robots

for name in ("policy", "encoder"):
    policy = skvdd.load(f"{name}.safetensors")
    print(type(policy).__module__, policy.encoder, policy.predict(np.zeros((1, 2))).tolist())
"""


def test_classes_of_the_user_are_loaded_once_their_module_is_imported(tmp_path, monkeypatch):
    (tmp_path / "robots.py").write_text(MODULE)
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    monkeypatch.syspath_prepend(tmp_path)
    robots = __import__("robots")
    states, actions = make_data()[0].to_numpy(), make_data()[1]
    policies = {
        "policy": robots.Careful(caution=0.25).fit(states, actions),
        "encoder": skvdd.GaussianMoEPolicy(
            2, encoder=robots.Wide([6, 4]), hidden_size=8, max_iter=1, random_state=0
        ).fit(states, actions),
    }
    for name, policy in policies.items():
        policy.save(tmp_path / f"{name}.safetensors")
    done = subprocess.run(
        [sys.executable, "elsewhere.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for name, line in zip(("Careful", "Wide"), lines[:2], strict=True):
        assert re.fullmatch(
            rf"'\w+\.safetensors' names the unknown class 'robots:{name}': import robots before "
            r"loading it\.",
            line,
        )
    zero = np.zeros((1, 2))
    assert lines[2] == f"robots mlp {policies['policy'].predict(zero).tolist()}"
    answer = policies["encoder"].predict(zero).tolist()
    assert lines[3] == f"skvdd.mixture.em Wide(widths=[6, 4]) {answer}"
