"""Encoders as objects: names, parameters, searches, and a user's own in every kind of policy."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

import skvdd
from skvdd import DiffusionPolicy, GaussianMoEPolicy, VDDDistiller, load
from skvdd.encoders import Encoder, MLPEncoder, TransformerEncoder
from skvdd.nn.encoders import CausalTransformer, ResidualMLP
from skvdd.nn.layout import RowLayout
from tests.estimators import SMALL, ask, label, make_estimators, methods, small_teacher

BY_NAME = {
    "mlp": MLPEncoder(SMALL["hidden_size"], SMALL["n_layers"]),
    "transformer": TransformerEncoder(SMALL["hidden_size"], SMALL["n_layers"], n_heads=4),
}


def of_encoders(**parameters):
    """Return an unfitted instance of every estimator that has an encoder."""
    return [
        e
        for e in make_estimators(window_size=2, **{"max_iter": 5, **parameters})
        if "architecture" not in e.get_params() or e.architecture != "gpt"
    ]


every_estimator = pytest.mark.parametrize("estimator", of_encoders(), ids=label)


def refused(message):
    """Expect a ValueError whose message begins so."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}")


def encoder_of(policy):
    """Return the encoder in a policy's network, that of a generator being inside its denoiser."""
    return getattr(policy.network_, "denoiser", policy.network_).encoder


class Waves(Encoder):
    """An encoder of a user's own: sines of a few directions, in the window alone."""

    def __init__(self, n_features=6, scale=1.0):
        self.n_features = n_features
        self.scale = scale

    def build(self, layout):
        return Sines(layout, self.n_features, self.scale)


class Sines(nn.Module):
    def __init__(self, layout, n_features, scale):
        super().__init__()
        self.layout = layout
        self.linear = nn.Linear(layout.n_window, n_features)
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, rows):
        windows, goals = self.layout.split(rows)
        return torch.cat([(self.scale * self.linear(windows.flatten(1))).sin(), goals], dim=1)


class Composed(Encoder):
    """An encoder around another one."""

    def __init__(self, inner):
        self.inner = inner

    def build(self, layout):
        return nn.Sequential(self.inner.build(layout), nn.Tanh())


class Gives(Encoder):
    """An encoder whose module gives what it should not."""

    def __init__(self, kind="sequence"):
        self.kind = kind

    def build(self, layout):
        return {
            "sequence": nn.Unflatten(1, (1, -1)),
            "nothing": None,
            "narrow": nn.Linear(layout.n_columns - 1, 3),
        }[self.kind]


# -- names and objects ----------------------------------------------------------------------


@every_estimator
@pytest.mark.parametrize("name", BY_NAME)
def test_a_name_and_its_object_give_the_same_network(estimator, name, two_ways):
    X, y = two_ways
    named = clone(estimator).set_params(encoder=name).fit(X, y)
    built = clone(estimator).set_params(encoder=BY_NAME[name]).fit(X, y)
    expected = {"mlp": ResidualMLP, "transformer": CausalTransformer}[name]
    assert type(encoder_of(named)) is type(encoder_of(built)) is expected
    for method in methods(estimator):
        np.testing.assert_array_equal(ask(named, method, X, y), ask(built, method, X, y))


def test_an_object_has_sizes_of_its_own(two_ways):
    policy = GaussianMoEPolicy(2, window_size=2, encoder=MLPEncoder(12, 3), **SMALL)
    network = policy.fit(*two_ways).network_
    assert len(network.encoder.layers) == 2 + 3
    assert network.trunk[0].in_features == 12
    assert network.trunk[0].out_features == SMALL["hidden_size"]


@pytest.mark.parametrize("goal_dim", [0, 2])
def test_the_encoders_of_the_library_build_the_modules_of_their_names(goal_dim):
    layout = RowLayout(3, 4, goal_dim)
    rows = torch.zeros(5, layout.n_columns)
    for encoder in (MLPEncoder(8, 2), TransformerEncoder(8, 2, n_heads=2)):
        assert encoder.build(layout)(rows).shape == (5, 8)


def test_encoders_are_part_of_the_public_names():
    assert skvdd.MLPEncoder is MLPEncoder
    assert skvdd.TransformerEncoder is TransformerEncoder


# -- parameters -----------------------------------------------------------------------------


def test_parameters_of_an_encoder_are_parameters_of_the_policy():
    policy = GaussianMoEPolicy(encoder=MLPEncoder(12, 3))
    assert policy.get_params()["encoder__hidden_size"] == 12
    policy.set_params(encoder__hidden_size=20)
    assert policy.encoder.hidden_size == 20
    assert repr(policy) == "GaussianMoEPolicy(encoder=MLPEncoder(hidden_size=20, n_layers=3))"


@pytest.mark.parametrize("encoder", [MLPEncoder(12, 3), TransformerEncoder(12, 3, 2), Waves(4)])
def test_an_encoder_is_cloned_with_its_policy(encoder):
    policy = GaussianMoEPolicy(encoder=encoder)
    copied = clone(policy)
    assert copied.encoder is not encoder
    assert copied.encoder.get_params() == encoder.get_params()
    copied.set_params(**{f"encoder__{name}": 1 for name in encoder.get_params()})
    assert policy.encoder.get_params() == clone(encoder).get_params()


@pytest.mark.parametrize(
    "encoder", [MLPEncoder(8, 1), TransformerEncoder(8, 1, 2), Waves(4)], ids=str
)
def test_a_grid_search_varies_the_sizes_of_an_encoder(encoder, two_ways):
    name = "n_features" if isinstance(encoder, Waves) else "hidden_size"
    policy = GaussianMoEPolicy(2, window_size=2, encoder=encoder, **SMALL)
    search = GridSearchCV(policy, {f"encoder__{name}": [4, 12]}, cv=2).fit(*two_ways)
    assert len(set(search.cv_results_["mean_test_score"])) == 2
    best = search.best_params_[f"encoder__{name}"]
    assert search.best_estimator_.network_.trunk[0].in_features == best
    assert encoder.get_params()[name] != 12


def test_a_grid_search_chooses_among_encoders(two_ways):
    policy = GaussianMoEPolicy(2, window_size=2, **SMALL)
    encoders = ["mlp", TransformerEncoder(8, 1, 2), Waves(4)]
    search = GridSearchCV(policy, {"encoder": encoders}, cv=2).fit(*two_ways)
    assert len(set(search.cv_results_["mean_test_score"])) == 3


@pytest.mark.parametrize(
    "encoder", [MLPEncoder(8, 1), Waves(4), Composed(MLPEncoder(8, 1))], ids=str
)
def test_a_fit_keeps_the_encoder_that_it_had_whatever_is_set_later(encoder, two_ways, tmp_path):
    X, y = two_ways
    policy = GaussianMoEPolicy(2, window_size=2, encoder=clone(encoder), **SMALL).fit(X, y)
    expected = policy.predict(X)
    name = [n for n in policy.get_params() if n.startswith("encoder__") and n.endswith("s")][-1]
    policy.set_params(**{name: 3})
    np.testing.assert_array_equal(policy.predict(X), expected)
    policy.save(tmp_path / "policy.safetensors")
    np.testing.assert_array_equal(load(tmp_path / "policy.safetensors").predict(X), expected)


# -- what is refused, before any work -------------------------------------------------------


@every_estimator
@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (MLPEncoder(0), "The 'hidden_size' parameter of MLPEncoder must be an int in the range"),
        (MLPEncoder(8, -1), "The 'n_layers' parameter of MLPEncoder must be an int in the range"),
        (MLPEncoder(8.0), "The 'hidden_size' parameter of MLPEncoder must be an int in the range"),
        (
            TransformerEncoder(8, 1, 0),
            "The 'n_heads' parameter of TransformerEncoder must be an int in the range",
        ),
        (
            TransformerEncoder(10, 1, 4),
            "hidden_size must be a multiple of n_heads for the transformer, got hidden_size=10 "
            "and n_heads=4.",
        ),
    ],
    ids=["width", "layers", "float", "heads", "share"],
)
def test_parameters_of_an_encoder_are_checked_before_any_work(estimator, encoder, message):
    """Also before the data are looked at, and before a teacher is trained."""
    policy = clone(estimator).set_params(encoder=encoder)
    with refused(message):
        policy.fit("no data", None)
    assert not hasattr(policy, "network_")


@pytest.mark.parametrize("estimator", of_encoders(hidden_size=10), ids=label)
def test_a_transformer_by_name_needs_a_width_for_four_heads(estimator, two_ways):
    policy = clone(estimator).set_params(encoder="transformer")
    with refused("hidden_size must be a multiple of n_heads for the transformer, got hidden_size"):
        policy.fit(*two_ways)


@every_estimator
@pytest.mark.parametrize("encoder", ["cnn", 3, None, nn.Linear(6, 3), MLPEncoder], ids=str)
def test_what_is_no_encoder_is_refused_by_the_parameters_name(estimator, encoder, two_ways):
    policy = clone(estimator).set_params(encoder=encoder)
    with pytest.raises(ValueError, match=rf"The 'encoder' parameter of {type(policy).__name__}"):
        policy.fit(*two_ways)


@every_estimator
@pytest.mark.parametrize(
    ("kind", "end"),
    [
        ("sequence", "two rows gave (2, 1, 6)."),
        ("nothing", "its build returned NoneType."),
        ("narrow", "two rows raised mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_a_module_of_another_output_is_refused(estimator, kind, end, two_ways):
    policy = clone(estimator).set_params(encoder=Gives(kind))
    start = "encoder Gives must build a module that maps rows (n, 6) to features (n, h): "
    with refused(start + end):
        policy.fit(*two_ways)
    assert not hasattr(policy, "network_")


def test_an_encoder_without_a_build_cannot_be_made():
    class Nothing(Encoder):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Nothing()


def test_an_encoder_by_name_of_the_transformer_architecture_gives_its_sizes(two_ways):
    X, y = two_ways
    encoder = TransformerEncoder(12, 2, n_heads=3)
    policy = small_teacher(architecture="gpt", window_size=2, encoder=encoder).fit(X, y)
    config = policy.network_.config
    assert [config[n] for n in ("hidden_size", "n_layers", "n_heads")] == [12, 2, 3]
    plain = small_teacher(architecture="gpt", window_size=2).fit(X, y).network_.config
    assert [plain[n] for n in ("hidden_size", "n_layers", "n_heads")] == [16, 1, 4]
    with refused(
        "hidden_size must be a multiple of n_heads for architecture='gpt', got hidden_size=10 and "
        "n_heads=4."
    ):
        DiffusionPolicy(architecture="gpt", hidden_size=10).fit(X, y)
    with refused("n_layers must be at least 1 for architecture='gpt', got 0."):
        DiffusionPolicy(architecture="gpt", encoder=TransformerEncoder(8, 0)).fit(X, y)


# -- an encoder of one's own ----------------------------------------------------------------


@every_estimator
def test_an_encoder_of_ones_own_serves_every_policy(estimator, two_ways, tmp_path):
    X, y = two_ways
    policy = clone(estimator).set_params(encoder=Waves(7, scale=2.0)).fit(X, y)
    assert type(encoder_of(policy)) is Sines
    path = tmp_path / "policy.safetensors"
    policy.save(path)
    copies = [load(path), pickle.loads(pickle.dumps(policy)), copy.deepcopy(policy)]
    for again in copies:
        assert type(again.encoder) is Waves
        assert again.encoder.get_params() == {"n_features": 7, "scale": 2.0}
        for method in methods(policy):
            np.testing.assert_array_equal(ask(again, method, X, y), ask(policy, method, X, y))


@every_estimator
def test_an_encoder_of_ones_own_is_trained(estimator, two_ways):
    untrained = clone(estimator).set_params(encoder=Waves(7), max_iter=0).fit(*two_ways)
    trained = clone(untrained).set_params(max_iter=5).fit(*two_ways)
    before, after = encoder_of(untrained), encoder_of(trained)
    assert (after.linear.weight - before.linear.weight).abs().max() > 1e-5
    assert torch.equal(after.scale, before.scale)  # which is no parameter


def test_a_module_that_an_encoder_holds_is_not_trained_in_place(two_ways):
    class Ready(Encoder):
        def __init__(self, module):
            self.module = module

        def build(self, layout):
            return self.module

    module = nn.Linear(6, 5)
    before = copy.deepcopy(module.weight)
    policy = GaussianMoEPolicy(2, window_size=2, encoder=Ready(module), **SMALL).fit(*two_ways)
    assert torch.equal(module.weight, before)
    assert (policy.network_.encoder.weight - before).abs().max() > 1e-5


def test_an_encoder_of_ones_own_sees_window_and_goal():
    X = np.random.RandomState(0).standard_normal((40, 7))
    policy = GaussianMoEPolicy(2, window_size=2, goal_dim=1, encoder=Waves(5), **SMALL)
    network = policy.fit(X, X[:, :2]).network_
    assert network.encoder.layout == RowLayout(n_states=3, window_size=2, goal_dim=1)
    assert network.trunk[0].in_features == 6  # five waves, and the goal


def test_a_student_shares_the_encoder_of_its_teacher_or_has_its_own(two_ways):
    X, y = two_ways
    teacher = small_teacher(window_size=2, encoder=Waves(7)).fit(X, y)
    settings = {"n_experts": 2, "window_size": 2, "init_iter": 5, **SMALL}
    shared = VDDDistiller(**settings).fit(X, y, teacher=teacher)
    ours, its = shared.network_.encoder.linear, teacher.network_.encoder.linear
    assert torch.equal(ours.weight, its.weight)
    assert not ours.weight.requires_grad
    own = VDDDistiller(encoder=MLPEncoder(8, 1), **settings).fit(X, y, teacher=teacher)
    assert type(own.network_.encoder) is ResidualMLP


@pytest.mark.parametrize("estimator", of_encoders()[:3:2], ids=label)  # a sampler and a mixture
def test_an_encoder_of_ones_own_is_exported(estimator, two_ways, tmp_path):
    X, y = two_ways
    policy = clone(estimator).set_params(encoder=Waves(7)).fit(X, y)
    if isinstance(policy, DiffusionPolicy):
        policy = policy.with_sampler(n_steps=1)  # each step is a copy of the network in the file
    policy.export_onnx(tmp_path / "policy.onnx")
    session = pytest.importorskip("onnxruntime").InferenceSession(tmp_path / "policy.onnx")
    rows = X[:5].reshape(5, 6)
    inputs = {"states": rows}
    if len(session.get_inputs()) == 1:
        gates = session.run(["gates"], inputs)[0]
        np.testing.assert_allclose(gates, policy.gating(rows), atol=1e-5)
        return
    shape = session.get_inputs()[1].shape[1:]
    streams = [np.random.RandomState(i) for i in range(5)]
    inputs["noise"] = np.stack([rng.standard_normal(shape) for rng in streams])
    expected = policy.act(rows, random_state=[np.random.RandomState(i) for i in range(5)])
    np.testing.assert_allclose(session.run(None, inputs)[0], expected, atol=1e-4)


def test_an_encoder_of_ones_own_serves_control(two_ways):
    X, y = two_ways
    policy = GaussianMoEPolicy(2, window_size=2, encoder=Waves(7), **SMALL).fit(X, y)
    controller = policy.controller("torch", random_state=0)
    controller.reset()
    actions = [controller.act(state) for state in X[0]]
    rng = np.random.RandomState(0)
    windows = [np.stack([X[0, 0], X[0, 0]]), X[0]]  # an episode begins with its first state twice
    expected = [policy.act(window[None], random_state=rng)[0] for window in windows]
    np.testing.assert_allclose(actions, expected, atol=1e-5)


def test_to_continue_needs_the_same_encoder(two_ways):
    X, y = two_ways
    policy = GaussianMoEPolicy(2, window_size=2, encoder=Waves(7), warm_start=True, **SMALL)
    policy.fit(X, y)
    policy.set_params(max_iter=0).fit(X, y)
    policy.set_params(encoder__n_features=8)
    with refused(
        "warm_start=True continues from a network with encoder=Waves(n_features=7), got "
        "encoder=Waves(n_features=8). Set warm_start=False."
    ):
        policy.fit(X, y)


class Tuned(Encoder):
    """An encoder whose parameters are none that a file of the library has."""

    def __init__(self, act=("relu",), axis=-1, n_layers=90):
        self.act = act
        self.axis = axis
        self.n_layers = n_layers

    def build(self, layout):
        act = nn.Tanh() if self.act == ("tanh",) else nn.ReLU()
        return nn.Sequential(nn.Linear(layout.n_columns, 8), act)


def test_parameters_of_an_own_encoder_come_back_from_a_file_as_they_were(tmp_path):
    X, y = np.random.RandomState(0).standard_normal((2, 40, 2))
    policy = GaussianMoEPolicy(2, encoder=Tuned(("tanh",)), max_iter=2, random_state=0).fit(X, y)
    policy.save(tmp_path / "policy.safetensors")
    again = skvdd.load(tmp_path / "policy.safetensors")
    assert again.encoder.get_params() == policy.encoder.get_params()
    np.testing.assert_array_equal(again.predict(X), policy.predict(X))


@pytest.mark.parametrize("act", [{1: "tanh"}, {"tanh"}])
def test_a_parameter_that_would_not_come_back_is_refused(act, tmp_path):
    X, y = np.random.RandomState(0).standard_normal((2, 40, 2))
    policy = GaussianMoEPolicy(2, encoder=Tuned(act), max_iter=2, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match=r"a policy file cannot hold a (dict|set)"):
        policy.save(tmp_path / "policy.safetensors")
