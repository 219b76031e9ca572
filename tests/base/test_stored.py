"""A policy that was stored, in a file or a pickle, is the policy that was not, whatever is asked.

Fits of the same seed give the same bits, so each law compares a policy that was stored with one
that never was, over everything that can be done with either.
"""

import copy
import io
import pickle

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skvdd
from skvdd import DiffusionPolicy, GaussianMoEPolicy, ScoreTeacher, VDDDistiller
from skvdd.base.stored import check_learned
from tests.estimators import SMALL, ask, label, make_estimators, methods, small_teacher

TINY = {**SMALL, "max_iter": 4, "hidden_size": 12}  # a multiple of four heads


def through_a_file(policy, folder):
    policy.save(folder / "policy.safetensors")
    return skvdd.load(folder / "policy.safetensors")


def through_pickle(policy, folder):
    return pickle.loads(pickle.dumps(policy))


def through_joblib(policy, folder):
    buffer = io.BytesIO()
    joblib.dump(policy, buffer)
    buffer.seek(0)
    return joblib.load(buffer)


WAYS = [through_a_file, through_pickle]


def make_data(n=40, seed=0):
    """Return rows of two states and a goal, and actions that go left or right."""
    rng = np.random.RandomState(seed)
    states = rng.uniform(-1, 1, size=(n, 5))
    side = np.sign(rng.standard_normal(n))
    actions = np.stack([side * (1 + states[:, 0]), 30 * states[:, 1]], axis=1)
    return states, actions + 0.1 * rng.standard_normal(actions.shape)


def kinds():
    """Return by name every estimator, and those of which something else is stored."""
    found = {label(estimator): estimator for estimator in make_estimators(**TINY)}
    assert type(found["VDDDistiller"]) is VDDDistiller
    found["own-encoder"] = VDDDistiller(n_experts=2, init_iter=3, encoder="mlp", **TINY)
    found["transformer"] = GaussianMoEPolicy(
        2, encoder=skvdd.TransformerEncoder(12, 1, n_heads=2), covariance="diag", **TINY
    )
    for estimator in found.values():
        estimator.set_params(window_size=2, goal_dim=1)
        if hasattr(estimator, "teacher"):
            estimator.teacher = None  # it is given to each fit
    return found


KINDS = list(kinds())


def shaped(actions, kind):
    """Return actions as given, or as chunks for the kinds whose class is there twice."""
    return np.stack([actions, actions / 2], axis=1) if kind == "transformer" else actions


@pytest.fixture(scope="module")
def teacher():
    return small_teacher(**{**TINY, "window_size": 2, "goal_dim": 1}).fit(*make_data())


def fitted(kind, teacher):
    """Return a fitted estimator, and what its fits need beside rows and actions."""
    estimator = kinds()[kind]
    arguments = {"teacher": teacher} if hasattr(estimator, "teacher") else {}
    X, y = make_data()
    return estimator.fit(X, shaped(y, kind), **arguments), arguments


def assert_same(again, policy, kind, folder, *, whole=True):
    """Assert that two policies answer alike: methods, control, and what is exported."""
    X, y = make_data(9, seed=1)
    y = shaped(y, kind)
    for method in methods(policy) if whole else ["sample", "predict"]:
        expected = ask(policy, method, X, y)
        np.testing.assert_array_equal(ask(again, method, X, y), expected, method)
    score = "denoising_score" if hasattr(policy, "denoising_score") else "score"
    assert getattr(again, score)(X, y) == getattr(policy, score)(X, y)
    assert again.history_ == policy.history_
    assert again.n_iter_ == policy.n_iter_
    assert_same_control(again, policy)


def assert_same_control(again, policy):
    """Compare controllers, and the graphs that are written to ONNX files."""
    X, _ = make_data(5, seed=2)
    actions = []
    for one in (again, policy):
        controller = one.controller("torch", random_state=0)
        controller.reset(goal=X[0, 4:])
        actions.append([controller.act(state).copy() for state in X[:, :2]])
    np.testing.assert_array_equal(*actions)
    first, second = again._deployment(), policy._deployment()
    assert first.sizes.noise_shape == second.sizes.noise_shape
    assert repr(first.sampling) == repr(second.sampling)
    rows = torch.from_numpy(X)
    inputs = [rows]
    if first.sizes.noise_shape is not None:
        generator = torch.Generator().manual_seed(0)
        shape = (len(X), *first.sizes.noise_shape)
        inputs.append(torch.randn(shape, generator=generator, dtype=torch.float64))
    with torch.no_grad():
        for one, other in zip(first.graph(*inputs), second.graph(*inputs), strict=True):
            assert torch.equal(one, other)


# -- the law --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_a_policy_that_was_stored_answers_and_continues_as_one_that_was_not(
    way, kind, teacher, tmp_path
):
    """Twice in a row: stored, asked, fitted on, stored again, asked, fitted on."""
    (stored, arguments), (never, _) = (fitted(kind, teacher) for _ in range(2))
    for seed in (3, 4):
        stored = way(way(stored, tmp_path), tmp_path)
        assert type(stored) is type(never)
        assert_same(stored, never, kind, tmp_path, whole=seed == 3)
        X, y = make_data(seed=seed)
        for policy in (stored, never):
            policy.partial_fit(X, shaped(y, kind), **arguments)
        for name, value in never.network_.state_dict().items():
            assert torch.equal(stored.network_.state_dict()[name], value), name
    assert_same(stored, never, kind, tmp_path, whole=False)
    check_learned(stored)


def test_a_stored_policy_is_exported_as_the_one_that_was_not_stored(teacher, tmp_path):
    """Of one policy, since it takes seconds; the graphs of all are compared above."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    never, _ = fitted("VDDDistiller", teacher)
    stored = through_pickle(through_a_file(never, tmp_path), tmp_path)
    stored.export_onnx(tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    X, _ = make_data(5, seed=2)
    gates, means, _ = session.run(None, {"states": X})
    # Float32 kernels of another library; actions are of the order of ten.
    np.testing.assert_allclose(gates, never.gating(X), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(means, never.experts(X)[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_a_student_on_a_frozen_encoder_stays_on_it(way, teacher, tmp_path):
    student, arguments = fitted("VDDDistiller", teacher)
    for _ in range(2):
        student = way(student, tmp_path)
        assert student.network_.encoder_frozen
        assert not any(p.requires_grad for p in student.network_.encoder.parameters())
        assert all(p.requires_grad for p in student.network_.trunk.parameters())
        before = copy.deepcopy(student.network_.state_dict())
        student.partial_fit(*make_data(seed=3), **arguments)
        after = student.network_.state_dict()
        for name, value in teacher.network_.encoder.state_dict().items():
            assert torch.equal(after[f"encoder.{name}"], value)
        assert not torch.equal(after["output.weight"], before["output.weight"])
    other = clone(teacher).set_params(random_state=1).fit(*make_data())
    with pytest.raises(ValueError, match="this teacher has another encoder"):
        student.partial_fit(*make_data(), teacher=other)


@pytest.mark.parametrize("way", WAYS)
def test_an_encoder_that_was_trained_is_trained_further(way, teacher, tmp_path):
    student, arguments = fitted("own-encoder", teacher)
    student = way(student, tmp_path)
    assert not student.network_.encoder_frozen
    before = copy.deepcopy(student.network_.encoder.state_dict())
    student.partial_fit(*make_data(seed=3), **arguments)
    after = student.network_.encoder.state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["pipeline", "frozen", "scores"])
def test_a_stored_student_continues_with_a_teacher_of_any_kind(way, kind, tmp_path):
    X, y = make_data()
    X = X[:, :4]
    teacher = small_teacher(**{**TINY, "window_size": 2})
    if kind == "pipeline":
        teacher = make_pipeline(StandardScaler(), teacher)
    if kind == "scores":
        teacher = ScoreTeacher(
            lambda states, actions, sigma: -actions / (1.0 + sigma[..., None] ** 2),
            n_actions=2,
            noise_min=0.05,
            noise_max=5.0,
            action_scale=[1.0, 20.0],
        )
    else:
        teacher.fit(X, y)
    teacher = FrozenEstimator(teacher) if kind == "frozen" else teacher
    settings = {**TINY, "n_experts": 2, "init_iter": 3, "window_size": 2}
    never, stored = (VDDDistiller(**settings).fit(X, y, teacher=teacher) for _ in range(2))
    stored = way(stored, tmp_path)
    for policy in (never, stored):
        policy.partial_fit(X[:20], y[:20], teacher=teacher)
    np.testing.assert_array_equal(stored.predict(X), never.predict(X))


def test_a_pickle_has_the_teacher_that_was_trained_for_the_student_and_a_file_has_none(tmp_path):
    X, y = make_data()
    settings = {**TINY, "n_experts": 2, "init_iter": 3, "window_size": 2, "goal_dim": 1}
    its = small_teacher(**{**TINY, "window_size": 2, "goal_dim": 1})
    never, stored = (VDDDistiller(clone(its), **settings).fit(X, y) for _ in range(2))
    file = through_a_file(stored, tmp_path)
    stored = through_pickle(stored, tmp_path)
    for policy in (never, stored):
        policy.partial_fit(X[:20], y[:20])
    np.testing.assert_array_equal(stored.predict(X), never.predict(X))
    np.testing.assert_array_equal(stored.teacher_.predict(X), never.teacher_.predict(X))
    assert not hasattr(file, "teacher_")
    assert file.teacher is None
    with pytest.raises(ValueError, match="teacher must be given to partial_fit"):
        file.partial_fit(X, y)
    file.partial_fit(X[:20], y[:20], teacher=never.teacher_)
    np.testing.assert_array_equal(file.predict(X), never.predict(X))


@pytest.mark.parametrize("way", WAYS)
def test_a_stored_policy_samples_as_it_was_taught_whatever_is_set_afterwards(
    way, teacher, tmp_path
):
    X, _ = make_data()
    expected = teacher.sample(X, random_state=0)
    for changes in ({"n_steps": 2}, {"sampler": "heun"}, {"noise_max": 3.0, "noise_min": 0.1}):
        policy = through_pickle(teacher, tmp_path).set_params(**changes)
        again = way(policy, tmp_path)
        np.testing.assert_array_equal(again.sample(X, random_state=0), expected)
        assert again.get_params() | {"device": 0} == policy.get_params() | {"device": 0}
    other = teacher.with_sampler("heun", n_steps=2)
    again = way(other, tmp_path)
    np.testing.assert_array_equal(again.sample(X, random_state=0), other.sample(X, random_state=0))
    assert not np.array_equal(again.sample(X, random_state=0), expected)


# -- pickles --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["DiffusionPolicy", "VDDDistiller"])
def test_joblib_gives_the_policy_back(kind, teacher, tmp_path):
    policy, _ = fitted(kind, teacher)
    assert_same(through_joblib(policy, tmp_path), policy, kind, tmp_path, whole=False)


@pytest.mark.parametrize(
    ("device", "kind"), [*(("cuda:7", kind) for kind in KINDS), (torch.device("mps"), KINDS[0])]
)
def test_a_pickle_of_a_device_that_this_machine_lacks_loads_and_predicts(device, kind, teacher):
    policy, _ = fitted(kind, teacher)
    X, y = make_data()
    expected = policy.predict(X)
    again = pickle.loads(pickle.dumps(policy.set_params(device=device)))
    assert again.device == "auto"
    np.testing.assert_array_equal(again.predict(X), expected)
    if hasattr(again, "teacher"):
        again.partial_fit(X, y, teacher=through_pickle(teacher, None))


def test_a_pickle_keeps_a_device_that_there_is(teacher):
    policy = pickle.loads(pickle.dumps(teacher)).set_params(device="cpu")
    assert pickle.loads(pickle.dumps(policy)).device == "cpu"


def test_a_teacher_inside_a_pickle_moves_too():
    """Trained for the student, or frozen in its constructor, on a device that is not here."""
    X, y = make_data()
    sizes = {"window_size": 2, "goal_dim": 1}
    policy = small_teacher(**{**TINY, **sizes}).fit(X, y).set_params(device="cuda:7")
    student = VDDDistiller(n_experts=2, init_iter=3, **{**TINY, **sizes})
    student.fit(X, y, teacher=pickle.loads(pickle.dumps(policy)))
    student.set_params(teacher=FrozenEstimator(policy))
    student.teacher_ = policy
    again = pickle.loads(pickle.dumps(student))
    assert again.teacher.estimator.device == again.teacher_.device == "auto"
    assert again.partial_fit(X, y).n_iter_ == 8


def test_an_unfitted_policy_pickles_with_its_parameters():
    for estimator in make_estimators(device="cuda:7"):
        again = pickle.loads(pickle.dumps(estimator))
        assert type(again) is type(estimator)
        assert not hasattr(again, "network_")
        assert again.device == "cuda:7"  # which `fit` refuses by name


class OnGPU:
    """The least of a network on a GPU: it can be copied, and moved."""

    device = torch.device("cuda")

    def parameters(self):
        return [self]

    def __deepcopy__(self, memo):
        return OnGPU()

    def cpu(self):
        self.device = torch.device("cpu")
        return self


def test_a_pickle_leaves_the_network_where_it_is(teacher):
    assert teacher.__getstate__()["network_"] is teacher.network_  # on a CPU nothing is copied
    policy = copy.copy(teacher)
    policy.network_ = OnGPU()
    assert policy.__getstate__()["network_"].device.type == "cpu"
    assert policy.network_.device.type == "cuda"


def test_copies_of_a_policy_are_whole(teacher):
    X, _ = make_data()
    for again in (copy.copy(teacher), copy.deepcopy(teacher)):
        np.testing.assert_array_equal(again.predict(X), teacher.predict(X))
    deep = copy.deepcopy(teacher)
    with torch.no_grad():
        next(deep.network_.parameters()).add_(1.0)
    assert not torch.equal(next(deep.network_.parameters()), next(teacher.network_.parameters()))
    assert isinstance(clone(deep), DiffusionPolicy)
    assert not hasattr(clone(deep), "network_")
