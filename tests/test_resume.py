"""A fit that is killed and resumed gives the bits of one that was not; and `partial_fit`."""

import json
import multiprocessing
import os
import re
import signal

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvdd import DiffusionPolicy, GaussianMoEPolicy, VDDDistiller, load
from skvdd.callbacks import Checkpoint, CSVLogger, EarlyStopping
from tests.estimators import SMALL, label, make_estimators, small_teacher

LABELS = [label(estimator) for estimator in make_estimators()]


def make_data(n=60):
    rng = np.random.RandomState(0)
    states = rng.uniform(-1, 1, size=(n, 2, 3))
    side = np.sign(rng.standard_normal(n))
    actions = np.stack([side * (1 + states[:, -1, 0]), states[:, -1, 1]], axis=1)
    return states, actions + 0.1 * rng.standard_normal(actions.shape)


def small_student(teacher=None, **parameters):
    settings = {**SMALL, "n_experts": 2, "init_iter": 10, "window_size": 2, **parameters}
    return VDDDistiller(teacher, **settings)


class Ends:
    """A callback that ends the training in one way or another at the n-th report of a fit."""

    def __init__(self, at, how):
        self.at, self.how, self.n = at, how, 0

    def setup(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        if context.parent is None or context.parent.task_name == "fit":
            return  # only reports
        self.n += 1
        if self.n == self.at:
            self.how()

    def teardown(self, estimator, context):
        pass


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt():
    raise KeyboardInterrupt


def give_up():
    raise RuntimeError("the machine is on fire")


def same_policy(first, second):
    states = [policy.network_.state_dict() for policy in (first, second)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    assert first.history_ == second.history_
    assert first.n_iter_ == second.n_iter_


# -- killed ---------------------------------------------------------------------------------

# Processes are forked from a clean one that has imported everything once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["skvdd.distillation", "skvdd.callbacks", "pytest", "sklearn.cluster", "torch._dynamo"]
)


def fit_in_process(which, folder, at):
    """Fit an estimator under a checkpoint; kill the process at a report of it or its teacher."""
    torch.set_num_threads(1)
    estimator = make_estimators(window_size=2)[which]
    X, y = make_data()
    checkpoint = Checkpoint(folder / "run.ckpt", every=3)
    stopping = EarlyStopping(X[:9], y[:9], every=5, metric=count_states)
    callbacks = [checkpoint, stopping, CSVLogger(folder / "log.csv")]
    if at is not None:
        killer = Ends(at, kill)
        callbacks.append(killer)
        if hasattr(estimator, "teacher"):
            estimator.teacher.set_callbacks(killer)
    estimator.set_callbacks(*callbacks).fit(X, y).save(folder / "policy.safetensors")


def count_states(policy, X, y):
    """A cheap score that is best in the middle of a run."""
    return -abs(policy.n_iter_ - 12)


def run_process(*arguments):
    process = PROCESSES.Process(target=fit_in_process, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


# Of the distillers the first twenty reports are the teacher's, and ten more the start of VDD.
@pytest.mark.parametrize(
    ("which", "at"),
    [
        (which, at)
        for which, name in enumerate(LABELS)
        for at in {"V": (11, 26, 35), "C": (11, 26)}.get(name[0], (11,))
    ],
)
def test_a_killed_fit_resumes_with_the_same_bits(which, at, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    whole.mkdir()
    fit_in_process(which, whole, None)
    assert run_process(which, killed, at) == -signal.SIGKILL
    assert (killed / "run.ckpt").exists()
    assert not (killed / "policy.safetensors").exists()
    assert run_process(which, killed, None) == 0
    same_policy(*(load(folder / "policy.safetensors") for folder in (killed, whole)))
    for folder in (killed, whole):
        assert sorted(path.name for path in folder.iterdir()) == ["log.csv", "policy.safetensors"]
    assert (killed / "log.csv").read_bytes() == (whole / "log.csv").read_bytes()


def test_the_resumed_fit_has_not_begun_anew(tmp_path):
    X, y = make_data()
    policy = GaussianMoEPolicy(2, window_size=2, **SMALL)
    checkpoint = Checkpoint(tmp_path / "run.ckpt", every=4)
    with pytest.raises(RuntimeError, match="on fire"):
        policy.set_callbacks(checkpoint, Ends(11, give_up)).fit(X, y)
    counter = Ends(None, None)
    policy.set_callbacks(checkpoint, counter).fit(X, y)
    assert counter.n == 20 - 8  # what was written last were eight iterations
    assert len(policy.history_) == 20


# -- otherwise ended ------------------------------------------------------------------------


@pytest.mark.parametrize("random_state", [0, None, "instance"])
def test_any_random_state_resumes(random_state, tmp_path):
    """The seeds are in the file, whatever they came from."""
    X, y = make_data()

    def student():
        seed = np.random.RandomState(5) if random_state == "instance" else random_state
        teacher = small_teacher(window_size=2, random_state=None)
        return small_student(teacher, random_state=seed)

    np.random.seed(3)  # noqa: NPY002  what None draws from
    expected = student().set_callbacks().fit(X, y)
    np.random.seed(3)  # noqa: NPY002
    checkpoint = Checkpoint(tmp_path / "run.ckpt", every=3)
    with pytest.raises(RuntimeError, match="on fire"):
        student().set_callbacks(checkpoint, Ends(7, give_up)).fit(X, y)
    np.random.seed(4)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    resumed = student().set_callbacks(checkpoint).fit(X, y)
    same_policy(resumed, expected)
    np.testing.assert_array_equal(resumed.teacher_.predict(X), expected.teacher_.predict(X))
    if random_state is not None:
        np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_an_interrupted_fit_is_fitted_and_resumes(tmp_path):
    X, y = make_data()
    policy = DiffusionPolicy(window_size=2, **SMALL)
    expected = clone(policy).fit(X, y)
    checkpoint = Checkpoint(tmp_path / "run.ckpt", every=5)
    policy.set_callbacks(checkpoint, Ends(12, interrupt))
    with pytest.warns(ConvergenceWarning, match="interrupted after 12 of 20"):
        policy.fit(X, y)
    assert policy.interrupted_
    assert policy.set_callbacks(checkpoint).fit(X, y).interrupted_ is False
    same_policy(policy, expected)


def test_an_interrupted_teacher_resumes(tmp_path):
    X, y = make_data()
    student = small_student(small_teacher(window_size=2))
    expected = clone(student).fit(X, y)
    checkpoint = Checkpoint(tmp_path / "run.ckpt", every=5)
    student.teacher.set_callbacks(Ends(12, interrupt))
    with pytest.warns(ConvergenceWarning, match="interrupted after 12 of 20"):
        student.set_callbacks(checkpoint).fit(X, y)
    student.teacher.set_callbacks()
    same_policy(student.fit(X, y), expected)
    assert student.teacher_.n_iter_ == 20


def test_a_teacher_in_a_pipeline_resumes_and_gets_its_callbacks_back(tmp_path):
    X, y = (values.reshape(60, -1) for values in make_data())
    own = Ends(None, None)
    policy = small_teacher(window_size=2).set_callbacks(own)
    student = small_student(make_pipeline(StandardScaler(), policy))
    expected = clone(student).fit(X, y)
    checkpoint = Checkpoint(tmp_path / "run.ckpt", every=5)
    student.set_callbacks(checkpoint, Ends(4, give_up))
    with pytest.raises(RuntimeError, match="on fire"):
        student.fit(X, y)
    n_reports = own.n
    same_policy(student.set_callbacks(checkpoint).fit(X, y), expected)
    assert own.n == n_reports  # the teacher was complete: not an iteration was done again
    assert student.teacher_[-1]._skl_callbacks == [own]
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_stage_stays_stopped(tmp_path):
    X, y = make_data()

    def student():
        return small_student(small_teacher(window_size=2))

    def stopping():
        return EarlyStopping(X[:9], y[:9], metric=lambda *_: 1.0, patience=3)

    teacher = small_teacher(window_size=2).fit(X, y)
    expected = student().set_callbacks(stopping()).fit(X, y, teacher=teacher)
    checkpoint = Checkpoint(tmp_path / "run.ckpt", every=100)
    broken = student().set_callbacks(checkpoint, stopping(), Ends(6, give_up))
    with pytest.raises(RuntimeError, match="on fire"):
        broken.fit(X, y, teacher=teacher)
    resumed = student().set_callbacks(stopping(), checkpoint).fit(X, y, teacher=teacher)
    same_policy(resumed, expected)
    assert [row["iteration"] for row in resumed.history_] == [1, 2, 3, 4, 1, 2, 3, 4]


def test_each_fit_of_a_search_has_its_own_checkpoint(tmp_path):
    X, y = make_data()
    X = X.reshape(60, -1)
    policy = GaussianMoEPolicy(2, window_size=2, **SMALL)
    seen = []
    policy.set_callbacks(
        Checkpoint(tmp_path / "run.ckpt", every=4),
        Ends(5, lambda: seen.append([path.name for path in tmp_path.iterdir()])),
    )
    grid = {"n_experts": [1, 2]}
    plain = GridSearchCV(clone(policy).set_callbacks(), grid, cv=2).fit(X, y)
    search = GridSearchCV(policy, grid, cv=2).fit(X, y)
    np.testing.assert_array_equal(
        search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"]
    )
    assert len(seen[0]) == 1
    assert re.fullmatch(r"run(-\d+)+\.ckpt", seen[0][0])
    assert list(tmp_path.iterdir()) == []


# -- another fit is refused -----------------------------------------------------------------


@pytest.fixture
def broken_off(tmp_path):
    """A distiller, what it was given, and the checkpoint of a fit that broke off."""
    X, y = make_data()
    teacher = small_teacher(window_size=2).fit(X, y)
    student = small_student()
    checkpoint = Checkpoint(tmp_path / "run.ckpt", every=5)
    with pytest.raises(RuntimeError, match="on fire"):
        student.set_callbacks(checkpoint, Ends(8, give_up)).fit(X, y, teacher=teacher)
    return student.set_callbacks(checkpoint), X, y, teacher


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"parameter": {"learning_rate": 0.5}}, "learning_rate was 0.001, is 0.5"),
        ({"parameter": {"random_state": 7}}, "random_state was 0, is 7"),
        ({"rows": 59}, r"X was '60 x 6, sha256 \w+', is '59 x 6, sha256 \w+'; y was"),
        ({"value": True}, r"X was '60 x 6, sha256 \w+', is '60 x 6, sha256 \w+'"),
        ({"teacher": True}, "teacher was '.*', is '.*'"),
    ],
)
def test_another_fit_is_refused_by_name(change, named, broken_off):
    student, X, y, teacher = broken_off
    student = clone(student).set_params(**change.get("parameter", {}))
    n = change.get("rows", 60)
    X = X.copy()
    X[0, 0, 0] += 1e-12 * change.get("value", False)
    if "teacher" in change:
        teacher = clone(teacher).set_params(random_state=1).fit(X, y)
    path = student._skl_callbacks[0].path
    message = (
        rf"^the checkpoint '{re.escape(str(path))}' belongs to another fit: {named}.*\. Give what "
        r"that fit was given to resume it, or delete the file to start anew\.$"
    )
    content = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        student.fit(X[:n], y[:n], teacher=teacher)
    assert path.read_bytes() == content


def test_another_start_and_another_class_are_refused(broken_off):
    student, X, y, teacher = broken_off
    fitted = clone(student).set_callbacks().fit(X, y, teacher=teacher)
    checkpoint = student._skl_callbacks[0]
    with pytest.raises(ValueError, match=r"start was None, is '.*warm_start was False, is True"):
        fitted.set_params(warm_start=True).set_callbacks(checkpoint).fit(X, y, teacher=teacher)
    with pytest.raises(ValueError, match="class was 'VDDDistiller', is 'GaussianMoEPolicy'"):
        GaussianMoEPolicy(2, window_size=2, **SMALL).set_callbacks(checkpoint).fit(X, y)


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_file_that_is_no_checkpoint_is_refused_and_stays(content, tmp_path):
    path = tmp_path / "run.ckpt"
    path.write_bytes(content)
    policy = GaussianMoEPolicy(2, window_size=2, **SMALL).set_callbacks(Checkpoint(path))
    with pytest.raises(ValueError, match=r"run.ckpt' is no checkpoint of skvdd"):
        policy.fit(*make_data())
    assert path.read_bytes() == content


def test_a_policy_file_is_no_checkpoint_and_a_checkpoint_no_policy(broken_off, tmp_path):
    _, X, y, teacher = broken_off
    teacher.save(tmp_path / "policy.safetensors")
    policy = GaussianMoEPolicy(2, window_size=2, **SMALL)
    policy.set_callbacks(Checkpoint(tmp_path / "policy.safetensors"))
    with pytest.raises(ValueError, match="is no checkpoint of skvdd"):
        policy.fit(X, y)
    with pytest.raises(ValueError, match="is not a policy saved by skvdd"):
        load(tmp_path / "run.ckpt")


def test_arguments_of_a_checkpoint_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"^every must be an integer of at least 1, got 0\.$"):
        Checkpoint(tmp_path / "run.ckpt", every=0)
    with pytest.raises(FileNotFoundError, match=r"path='.*' lies in a folder that does not exist"):
        Checkpoint(tmp_path / "nowhere" / "run.ckpt")


# -- partial_fit ----------------------------------------------------------------------------


@pytest.mark.parametrize("which", range(len(LABELS)), ids=LABELS)
def test_partial_fit_begins_as_fit_and_goes_on(which):
    X, y = make_data()
    fitted, partly = (make_estimators(window_size=2)[which] for _ in range(2))
    same_policy(partly.partial_fit(X, y), fitted.fit(X, y))
    units = partly.state_scaler_.mean_.copy(), partly.action_scaler_.scale_.copy()
    before, first = partly.predict(X), list(partly.history_)
    partly.set_params(max_iter=0).partial_fit(2 * X + 1, 3 * y)
    np.testing.assert_array_equal(partly.predict(X), before)
    partly.set_params(max_iter=20).partial_fit(2 * X + 1, 3 * y)
    assert np.abs(partly.predict(X) - before).max() > 0
    np.testing.assert_array_equal(partly.state_scaler_.mean_, units[0])
    np.testing.assert_array_equal(partly.action_scaler_.scale_, units[1])
    assert partly.n_iter_ == 40
    assert partly.history_[: len(first)] == first
    assert [row["iteration"] for row in partly.history_[len(first) :]] == [*range(1, 21)]


def test_calls_of_partial_fit_learn():
    """On the rows of the call; the old ones are forgotten unless they are given as well."""
    X, y = make_data(300)
    settings = {**SMALL, "max_iter": 150, "learning_rate": 1e-2}
    policy = GaussianMoEPolicy(2, window_size=2, **settings).fit(X, y)
    moved = np.add(y, [0.0, 1.0])
    before = policy.score(X, moved)
    assert policy.partial_fit(X, moved).score(X, moved) > before + 1.0


def test_calls_of_partial_fit_have_random_numbers_of_their_own(monkeypatch, tmp_path):
    X, y = make_data()
    drawn = []
    monkeypatch.setattr(
        "skvdd.mixture.imitation.batch_generator",
        lambda device, seed: drawn.append(seed) or torch.Generator().manual_seed(seed),
    )

    def calls(n, between=lambda policy: policy):
        policy = GaussianMoEPolicy(2, window_size=2, **SMALL)
        for _ in range(n):
            policy = between(policy.partial_fit(X, y))
        return policy

    def through_a_file(policy):
        policy.save(tmp_path / "policy.safetensors")
        return load(tmp_path / "policy.safetensors")

    first = calls(3)
    assert len(set(drawn)) == 3
    same_policy(calls(3), first)
    same_policy(calls(3, through_a_file), first)
    assert drawn[:3] == drawn[3:6] == drawn[6:]


@pytest.mark.parametrize("which", range(len(LABELS)), ids=LABELS)
def test_partial_fit_refuses_other_columns(which):
    X, y = make_data()
    estimator = make_estimators(window_size=2, max_iter=1)[which].partial_fit(X, y)
    with pytest.raises(ValueError, match=r"X has 4 features, but .* is expecting 6 features"):
        estimator.partial_fit(X[:, :, :2], y)
    message = (
        "(y has 3 action dimensions, but the teacher has 2|partial_fit goes on from a fit with "
    )
    message += "states of 3 and actions of 2 dimensions, got 3 and 3. Call fit to start anew)"
    with pytest.raises(ValueError, match=message):
        estimator.partial_fit(X, y[:, [0, 1, 1]])


def test_a_distiller_goes_on_with_the_teacher_that_it_fitted():
    X, y = make_data()
    student = small_student(small_teacher(window_size=2))
    teacher = student.partial_fit(X, y).teacher_
    weights = {name: value.clone() for name, value in teacher.network_.state_dict().items()}
    student.partial_fit(X[:30])  # y is not needed: the teacher is there
    assert student.teacher_ is teacher
    assert all(torch.equal(v, weights[k]) for k, v in teacher.network_.state_dict().items())
    with pytest.raises(ValueError, match=r"^partial_fit goes on with the teacher .* Call fit to"):
        student.partial_fit(X, teacher=small_teacher(window_size=2).fit(2 * X, y))


def test_student_and_teacher_learn_in_turns():
    X, y = make_data()
    teacher = small_teacher(window_size=2)
    student = small_student(encoder="mlp")
    for n in (30, 60):
        teacher.partial_fit(X[:n], y[:n])
        student.partial_fit(X[:n], y[:n], teacher=teacher)
    assert student.n_iter_ == teacher.n_iter_ == 40
    assert np.isfinite(student.score(X, y))


def test_a_distiller_without_its_teacher_is_told_before_any_work(tmp_path):
    X, y = make_data()
    teacher = small_teacher(window_size=2).fit(X, y)
    student = small_student().fit(X, y, teacher=teacher)
    student.save(tmp_path / "student.safetensors")
    for policy in (student, load(tmp_path / "student.safetensors")):
        with pytest.raises(ValueError, match=r"^teacher must be given to partial_fit"):
            policy.partial_fit(X, y)
    again = student.set_params(teacher=FrozenEstimator(teacher)).partial_fit(X, y)
    assert again.n_iter_ == 40


def test_a_checkpoint_of_partial_fit_knows_its_start(tmp_path):
    X, y = make_data()
    policy = GaussianMoEPolicy(2, window_size=2, **SMALL).partial_fit(X, y)
    policy.save(tmp_path / "policy.safetensors")
    start, expected = (load(tmp_path / "policy.safetensors") for _ in range(2))
    expected.partial_fit(X[:40], y[:40])
    checkpoint = Checkpoint(tmp_path / "run.ckpt", every=3)
    with pytest.raises(RuntimeError, match="on fire"):
        policy.set_callbacks(checkpoint, Ends(8, give_up)).partial_fit(X[:40], y[:40])
    with pytest.raises(ValueError, match="start was '"):
        GaussianMoEPolicy(2, window_size=2, **SMALL).set_callbacks(checkpoint).fit(X[:40], y[:40])
    same_policy(start.set_callbacks(checkpoint).partial_fit(X[:40], y[:40]), expected)


def test_a_history_is_a_data_frame():
    pandas = pytest.importorskip("pandas")
    X, y = make_data()
    policy = small_student(small_teacher(window_size=2))
    frame = pandas.DataFrame(policy.fit(X, y).history_)
    assert len(frame) == len(policy.history_)
    assert list(frame.columns[:3]) == ["stage", "iteration", "learning_rate"]
    assert frame["iteration"].dtype == int
    assert frame.groupby("stage", sort=False).size().index.tolist() == [
        "maximum likelihood",
        "distillation",
    ]
    assert json.loads(frame.to_json(orient="records"))[0]["iteration"] == 1
