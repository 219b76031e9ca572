"""A fit that is killed and resumed gives the bits of one that was not; and `partial_fit`."""

import copy
import json
import multiprocessing
import os
import re
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvdd import DiffusionPolicy, GaussianMoEPolicy, ScoreTeacher, VDDDistiller, load
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


def small_mixture():
    return GaussianMoEPolicy(2, window_size=2, **SMALL)


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


# Reports after which each process in turn is killed. Of the distillers the first twenty are the
# teacher's, and ten more the start of VDD: each of their runs is broken off once.
KILLS = {"V": (11, 15, 15), "C": (11, 15)}


@pytest.mark.parametrize("which", range(len(LABELS)), ids=LABELS)
def test_a_killed_fit_resumes_with_the_same_bits(which, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    whole.mkdir()
    fit_in_process(which, whole, None)
    for at in KILLS.get(LABELS[which][0], (11,)):
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
        ({"teacher": True}, "teacher was .*, is .*"),
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


def noise_range(teacher):
    teacher.noise_levels_ = replace(teacher.noise_levels_, noise_max=4.0)


def sampler(teacher):
    teacher.sampler_ = "heun"


def n_steps(teacher):
    teacher.n_steps_ = 5


def weights(teacher):
    with torch.no_grad():
        next(teacher.network_.parameters()).flatten()[0] += 1e-6


def normalization(teacher):
    teacher.network_.action_normalization.mean += 1e-9


@pytest.mark.parametrize("given", ["to fit", "frozen", "in a pipeline"])
@pytest.mark.parametrize("change", [noise_range, sampler, n_steps, weights, normalization])
def test_a_teacher_that_was_changed_is_refused(change, given, tmp_path):
    X, y = (values.reshape(60, -1) for values in make_data())
    policy = small_teacher(window_size=2, max_iter=1)
    teacher = make_pipeline(StandardScaler(), policy) if given == "in a pipeline" else policy
    teacher.fit(X, y)
    frozen, arguments = None, {"teacher": teacher}
    if given == "frozen":
        frozen, arguments = FrozenEstimator(teacher), {}
    student = small_student(frozen, init_iter=3, max_iter=3)
    checkpoint = Checkpoint(tmp_path / "run.ckpt", every=2)
    with pytest.raises(RuntimeError, match="on fire"):
        student.set_callbacks(checkpoint, Ends(2, give_up)).fit(X, y, **arguments)
    before = copy.deepcopy(policy)
    change(policy)
    student.set_callbacks(checkpoint)
    with pytest.raises(ValueError, match=r"run.ckpt' belongs to another fit: teacher was "):
        student.fit(X, y, **arguments)
    vars(policy).update(vars(before))
    assert student.fit(X, y, **arguments).n_iter_ == 3


@pytest.mark.parametrize("change", ["parameter", "learned"])
def test_a_changed_step_before_a_teacher_is_refused(change, tmp_path):
    X, y = (values.reshape(60, -1) for values in make_data())
    teacher = make_pipeline(StandardScaler(), small_teacher(window_size=2, max_iter=1)).fit(X, y)
    student = small_student(init_iter=3, max_iter=3)
    checkpoint = Checkpoint(tmp_path / "run.ckpt", every=2)
    with pytest.raises(RuntimeError, match="on fire"):
        student.set_callbacks(checkpoint, Ends(2, give_up)).fit(X, y, teacher=teacher)
    student.set_callbacks(checkpoint)
    before = copy.deepcopy(vars(teacher[0]))
    if change == "parameter":
        teacher[0].set_params(with_mean=False)
    else:
        teacher[0].fit(2 * X)
    with pytest.raises(ValueError, match=r"run.ckpt' belongs to another fit: teacher was "):
        student.fit(X, y, teacher=teacher)
    vars(teacher[0]).update(before)
    assert student.fit(X, y, teacher=teacher).n_iter_ == 3


@pytest.mark.parametrize(
    "change",
    [{"noise_max": 4.0}, {"noise_min": 0.02}, {"action_scale": [1.0, 2.0]}, {"action_mean": 0.1}],
    ids=str,
)
def test_another_score_teacher_is_refused(change, tmp_path):
    X, y = make_data()

    def teacher(**parameters):
        return ScoreTeacher(
            lambda states, actions, sigma: -actions / (1.0 + sigma[..., None] ** 2),
            **{"n_actions": 2, "noise_min": 0.05, "noise_max": 5.0, **parameters},
        )

    student = small_student(init_iter=3, max_iter=3)
    checkpoint = Checkpoint(tmp_path / "run.ckpt", every=2)
    with pytest.raises(RuntimeError, match="on fire"):
        student.set_callbacks(checkpoint, Ends(2, give_up)).fit(X, y, teacher=teacher())
    student.set_callbacks(checkpoint)
    with pytest.raises(ValueError, match=r"run.ckpt' belongs to another fit: teacher was "):
        student.fit(X, y, teacher=teacher(**change))
    assert student.fit(X, y, teacher=teacher()).n_iter_ == 3


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


def contents(path):
    """Return the header and the tensors of a checkpoint."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["skvdd"]), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118


def put(header, place, value):
    """Replace a part of a header, by its path; None takes it away."""
    *outer, name = place
    for part in outer:
        header = header[part]
    if value is None:
        del header[name]
    else:
        header[name] = value


STAGE = ("stages", "maximum likelihood")


@pytest.fixture(scope="module")
def broken_mixture(tmp_path_factory):
    """Header and tensors of the checkpoint of a mixture's fit that broke off."""
    path = tmp_path_factory.mktemp("broken") / "run.ckpt"
    policy = small_mixture().set_callbacks(Checkpoint(path, every=5), Ends(8, give_up))
    with pytest.raises(RuntimeError, match="on fire"):
        policy.fit(*make_data())
    return contents(path)


def resumed(path, header, tensors):
    """Resume the fit of a mixture from such a file."""
    save_file(tensors, path, metadata={"skvdd": json.dumps(header)})
    return small_mixture().set_callbacks(Checkpoint(path)).fit(*make_data())


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *((("format",), value) for value in (None, "another", 3)),
        *((("version",), value) for value in (None, 1, 3, "2")),
        *((("fingerprint",), value) for value in (None, 3, [], {})),
        *((("fingerprint", "parameters"), value) for value in (None, 3, [])),
        *((("fingerprint", "X"), value) for value in (None, 3)),
        *((("rng",), value) for value in (None, 3, [], ["MT19937"], {})),
        *((("rng", 0), value) for value in ("PCG64", 3)),
        *((("rng", 1), value) for value in ([], "key", [1, 2], [-1] * 624, [None] * 624)),
        *((("rng", 2), value) for value in ("x", 10**30)),
        *((("stages",), value) for value in (None, 3, [])),
        *((STAGE, value) for value in (3, [], {}, {"iteration": 8})),
        *(((*STAGE, "iteration"), value) for value in (None, "8", -1, 10**9, 2.5, [])),
        *(((*STAGE, "stopped"), value) for value in (None, "no", 3)),
        *(((*STAGE, "history"), value) for value in (None, 3, [3], {}, [None] * 30)),
        *(((*STAGE, "notes"), value) for value in (None, 3, [], {"a": 3})),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_damaged_header_is_one_clear_error(place, value, broken_mixture, tmp_path):
    header, tensors = copy.deepcopy(broken_mixture)
    put(header, place, value)
    with pytest.raises(ValueError, match=r"run\.ckpt'"):
        resumed(tmp_path / "run.ckpt", header, tensors)
    assert contents(tmp_path / "run.ckpt")[0] == header  # the file stays


@pytest.mark.parametrize(
    "part", ["generator", "network/output.bias", "ema/output.bias", "optimizers/0/0/exp_avg"]
)
def test_damaged_tensors_are_one_clear_error(part, broken_mixture, tmp_path):
    header, tensors = broken_mixture
    name = f"maximum likelihood/{part}"
    missing = {other: tensor for other, tensor in tensors.items() if other != name}
    shorter = {**tensors, name: tensors[name].flatten()[:1].clone()}
    damaged = [missing] if part == "generator" else [missing, shorter]  # a shorter state is a GPU's
    for values in damaged:
        with pytest.raises(ValueError, match=r"run\.ckpt' is damaged: "):
            resumed(tmp_path / "run.ckpt", header, values)
    assert resumed(tmp_path / "run.ckpt", header, tensors).n_iter_ == 20


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '"text"', "[" * 100_000])
def test_a_header_that_is_no_header_is_one_clear_error(text, tmp_path):
    path = tmp_path / "run.ckpt"
    save_file({"weight": torch.zeros(2)}, path, metadata={"skvdd": text})
    policy = GaussianMoEPolicy(2, window_size=2, **SMALL).set_callbacks(Checkpoint(path))
    with pytest.raises(ValueError, match=r"run\.ckpt' is no checkpoint of skvdd"):
        policy.fit(*make_data())


def test_a_checkpoint_resumes_on_another_kind_of_device(broken_mixture, tmp_path):
    """The state of its generator, smaller on a GPU, becomes a seed."""
    header, tensors = broken_mixture
    weights = []
    for state in (torch.arange(16, dtype=torch.uint8), torch.zeros(16, dtype=torch.uint8)):
        for _ in range(2):
            saved = {**tensors, "maximum likelihood/generator": state}
            policy = resumed(tmp_path / "run.ckpt", header, saved)
            assert policy.n_iter_ == len(policy.history_) == 20
            weights.append(policy.network_.output.weight)
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[2], weights[3])
    assert not torch.equal(weights[0], weights[2])


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


def units_of(policy):
    """Return the mean of the rows and the scale of the actions."""
    network = policy.network_
    return [
        *network.row_normalization.statistics[0],
        *network.action_normalization.statistics[1],
    ]


@pytest.mark.parametrize("which", range(len(LABELS)), ids=LABELS)
def test_partial_fit_begins_as_fit_and_continues(which):
    X, y = make_data()
    fitted, partly = (make_estimators(window_size=2)[which] for _ in range(2))
    same_policy(partly.partial_fit(X, y), fitted.fit(X, y))
    units = copy.deepcopy(units_of(partly))
    first = list(partly.history_)
    before = [p.detach().clone() for p in partly.network_.parameters()]
    partly.set_params(max_iter=0).partial_fit(2 * X + 1, 3 * y)
    assert all(map(torch.equal, partly.network_.parameters(), before))
    partly.set_params(max_iter=20).partial_fit(2 * X + 1, 3 * y)
    assert not all(map(torch.equal, partly.network_.parameters(), before))
    np.testing.assert_array_equal(units_of(partly), units)
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
        "skvdd.training.fit.batch_generator",
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
        "partial_fit continues from a fit with states of 3 and actions of 2 dimensions, got 3 and "
        "3. Call fit to start anew"
    )
    with pytest.raises(ValueError, match=message):
        estimator.partial_fit(X, y[:, [0, 1, 1]])


def test_a_distiller_continues_with_the_teacher_that_it_fitted():
    X, y = make_data()
    student = small_student(small_teacher(window_size=2))
    teacher = student.partial_fit(X, y).teacher_
    weights = {name: value.clone() for name, value in teacher.network_.state_dict().items()}
    student.partial_fit(X[:30])  # y is not needed: the teacher is there
    assert student.teacher_ is teacher
    assert all(torch.equal(v, weights[k]) for k, v in teacher.network_.state_dict().items())
    with pytest.raises(ValueError, match=r"^partial_fit continues with the teacher .* Call fit to"):
        student.partial_fit(X, teacher=small_teacher(window_size=2, random_state=1).fit(X, y))


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


def test_a_call_that_broke_off_resumes_on_the_same_policy(tmp_path):
    """It has changed nothing: the next call starts where that one did."""
    X, y = make_data()
    policy, expected = (GaussianMoEPolicy(2, window_size=2, **SMALL).fit(X, y) for _ in range(2))
    expected.partial_fit(X[:40], y[:40])
    policy.set_callbacks(Checkpoint(tmp_path / "run.ckpt", every=3), Ends(8, give_up))
    with pytest.raises(RuntimeError, match="on fire"):
        policy.partial_fit(X[:40], y[:40])
    assert policy.n_iter_ == len(policy.history_) == 20
    same_policy(policy.partial_fit(X[:40], y[:40]), expected)
    assert list(tmp_path.iterdir()) == []


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
