"""The life of an estimator: a fit is a transaction, and depends on nothing but what it is given."""

import copy
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from numbers import Integral
from threading import Event
from unittest.mock import MagicMock, Mock, patch

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

import skvdd
from skvdd._sklearn import Interval, StrOptions
from skvdd.training import threads
from tests.estimators import ask, label, make_estimators, methods

# Three reports a run, so that one of them is in the middle.
TINY = {"window_size": 2, "hidden_size": 8, "max_iter": 3, "batch_size": 16}
ESTIMATORS = [
    estimator.set_params(init_iter=3) if hasattr(estimator, "init_iter") else estimator
    for estimator in make_estimators(**TINY)
]
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=label)
every_distiller = pytest.mark.parametrize(
    "estimator", [e for e in ESTIMATORS if hasattr(e, "teacher")], ids=label
)


def make_data(n=24):
    rng = np.random.RandomState(0)
    X = rng.uniform(-1, 1, size=(n, 6))
    y = np.stack([np.sign(rng.standard_normal(n)) * (1 + X[:, 3]), X[:, 4]], axis=1)
    return X, y + 0.1 * rng.standard_normal(y.shape)


X, Y = make_data()
X.flags.writeable = Y.flags.writeable = False


def contents(value):
    """Return what an object holds, down to the bits, as what == compares."""
    if isinstance(value, torch.nn.Module):
        tensors = {n: (t.dtype, t.numpy().tobytes()) for n, t in value.state_dict().items()}
        return tensors, [p.requires_grad for p in value.parameters()], value.training
    if isinstance(value, BaseEstimator):
        return type(value), contents(vars(value))
    if isinstance(value, np.random.RandomState):
        return [contents(part) for part in value.get_state()]
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype, value.tobytes()
    if isinstance(value, dict):
        return {name: contents(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [contents(inner) for inner in value]
    return value


# -- a fit is a transaction -----------------------------------------------------------------------

MODES = ["first fit", "fit again", "partial_fit", "warm start"]
CONTINUING = {"partial_fit", "warm start"}
FITTED = {}


def policy_before(estimator, mode, fit_options):
    """Return the policy that a mode starts from, with a generator as ``random_state``."""
    policy = clone(estimator).set_params(random_state=np.random.RandomState(3))
    if mode == "first fit":
        return policy
    key = label(estimator), *fit_options
    if key not in FITTED:
        FITTED[key] = policy.fit(X, Y, **fit_options)
    return copy.deepcopy(FITTED[key]).set_params(warm_start=mode == "warm start")


def call(policy, mode, X, y, **fit_options):
    return (policy.partial_fit if mode == "partial_fit" else policy.fit)(X, y, **fit_options)


class Events:
    """A callback that counts the events of a fit, and raises an error at one of them."""

    max_propagation_depth = None

    def __init__(self, at=None, error=None):
        self.at, self.error, self.n = at, error, 0

    def _next(self):
        self.n += 1
        if self.n == self.at:
            raise self.error

    def setup(self, estimator, context):
        self._next()

    def on_fit_task_begin(self, estimator, context):
        self._next()

    def on_fit_task_end(self, estimator, context):
        self._next()

    def teardown(self, estimator, context):
        pass


N_EVENTS = {}


def n_events(policy, mode):
    """Return how many events a fit has that does not fail."""
    key = label(policy), mode
    if key not in N_EVENTS:
        events = Events()
        call(copy.deepcopy(policy).set_callbacks(events), mode, X, Y)
        N_EVENTS[key] = events.n
    return N_EVENTS[key]


def spoiled(values, row, what):
    values = values.copy()
    values[row, 0] = what
    return values


def at_event(moment):
    """Return a failure: an error in a callback, at the first, a middle or the last event."""

    def prepare(policy, mode):
        n = n_events(policy, mode)
        at = {"first": 1, "middle": n // 2, "last": n}[moment]
        policy.set_callbacks(Events(at, RuntimeError("of a callback")))

    return prepare, X, Y, RuntimeError


def diverging(policy, mode):
    policy.set_params(learning_rate=1e30, ema_decay=0.0)


def interrupting(policy, mode):
    policy.set_callbacks(Events(2, KeyboardInterrupt()))  # after `setup`, before any stage


def nothing(policy, mode):
    """Prepare nothing: the data fail."""


# What is done to the policy first, the data of the call, and the error that comes.
FAILURES = {
    "y of another length": (nothing, X, Y[:7], ValueError),
    "X with NaN": (nothing, spoiled(X, 3, np.nan), Y, ValueError),
    "y with NaN": (nothing, X, spoiled(Y, 3, np.nan), ValueError),
    "X of another width": (nothing, X[:, :4], Y, ValueError),
    "y of another width": (nothing, X, Y[:, :1], ValueError),
    "y of another shape": (nothing, X, Y[:, None], ValueError),
    "X of another unit": (nothing, spoiled(X, 3, 1e30), Y, ValueError),
    "y of another unit": (nothing, X, spoiled(Y, 3, -1e30), ValueError),
    "a loss that is not finite": (diverging, X, Y, FloatingPointError),
    "a callback at first": at_event("first"),
    "a callback in the middle": at_event("middle"),
    "a callback at last": at_event("last"),
    "Ctrl-C before the first stage": (interrupting, X, Y, KeyboardInterrupt),
}
ONLY_CONTINUING = {name for name in FAILURES if "another" in name} - {"y of another length"}


@every_estimator
@pytest.mark.parametrize("failure", FAILURES)
def test_a_fit_that_fails_changes_nothing(estimator, failure):
    prepare, rows, actions, error = FAILURES[failure]
    for mode in MODES:
        if failure in ONLY_CONTINUING and mode not in CONTINUING:
            continue
        policy = policy_before(estimator, mode, {})
        prepare(policy, mode)
        before, network = contents(policy), getattr(policy, "network_", None)
        with pytest.raises(error):
            call(policy, mode, rows, actions)
        assert contents(policy) == before, mode
        assert getattr(policy, "network_", None) is network, mode
        if mode == "first fit":
            with pytest.raises(NotFittedError):
                check_is_fitted(policy)


@every_estimator
@pytest.mark.parametrize("mode", MODES)
def test_a_fit_after_one_that_failed_is_as_if_it_had_not(estimator, mode):
    expected = policy_before(estimator, mode, {})
    rate, decay = expected.learning_rate, expected.ema_decay
    policy = copy.deepcopy(expected)
    call(expected, mode, X, Y)
    for failure in ("a loss that is not finite", "a callback at last"):
        prepare, rows, actions, error = FAILURES[failure]
        prepare(policy, mode)
        with pytest.raises(error):
            call(policy, mode, rows, actions)
        policy.set_callbacks().set_params(learning_rate=rate, ema_decay=decay)
    call(policy, mode, X, Y)
    assert contents(policy) == contents(expected)


class FailingScore:
    """A score function that raises an error at one of its calls."""

    def __init__(self):
        self.at, self.n = None, 0

    def __call__(self, states, actions, sigma):
        self.n += 1
        if self.n == self.at:
            raise RuntimeError("of a teacher")
        return -actions / (1.0 + sigma[..., None] ** 2)


@every_distiller
@pytest.mark.parametrize("moment", ["first", "middle", "last"])
def test_a_teacher_that_fails_changes_nothing(estimator, moment):
    score = FailingScore()
    teacher = skvdd.ScoreTeacher(score, n_actions=2, noise_min=0.02, noise_max=5.0)
    for mode in MODES:
        policy = policy_before(estimator, mode, {"teacher": teacher})
        score.at, score.n = None, 0
        call(copy.deepcopy(policy), mode, X, Y, teacher=teacher)
        score.at = {"first": 1, "middle": score.n // 2, "last": score.n}[moment]
        score.n, before = 0, contents(policy)
        with pytest.raises(RuntimeError, match="of a teacher"):
            call(policy, mode, X, Y, teacher=teacher)
        assert contents(policy) == before, mode
        score.at = None
        call(policy, mode, X, Y, teacher=teacher)  # it is the call that failed


# -- interrupts -----------------------------------------------------------------------------------


class Interrupting:
    """A callback that presses Ctrl-C once, at the first report of the first fit that it sees."""

    def __init__(self):
        self.n_fits, self.pressed = 0, False

    def setup(self, estimator, context):
        self.n_fits += 1

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        if context.max_subtasks == 0 and not self.pressed:
            self.pressed = True
            raise KeyboardInterrupt

    def teardown(self, estimator, context):
        pass


SEARCHES = {
    "GridSearchCV": lambda policy: GridSearchCV(policy, {"learning_rate": [0.1, 0.2]}, cv=2).fit(
        X, Y
    ),
    "cross_val_score": lambda policy: cross_val_score(policy, X, Y, cv=2),
    "a pipeline in cross_val_score": lambda policy: cross_val_score(
        make_pipeline(StandardScaler(), policy), X, Y, cv=2
    ),
}


@every_estimator
@pytest.mark.parametrize("search", SEARCHES)
def test_an_interrupt_ends_a_search(estimator, search):
    interrupting = Interrupting()
    policy = clone(estimator).set_callbacks(interrupting)
    with pytest.warns(ConvergenceWarning, match="interrupted"), pytest.raises(KeyboardInterrupt):
        SEARCHES[search](policy)
    assert interrupting.n_fits == 1


@every_distiller
def test_an_interrupt_while_the_teacher_is_trained_leaves_a_fitted_student(estimator):
    policy = clone(estimator)
    policy.teacher.set_callbacks(Interrupting())
    with pytest.warns(ConvergenceWarning, match="^DiffusionPolicy: training was interrupted"):
        policy.fit(X, Y)
    assert policy.interrupted_
    assert policy.teacher_.interrupted_
    assert policy.n_iter_ == 0
    assert np.isfinite(policy.predict(X)).all()


@every_estimator
def test_an_interrupt_in_a_pipeline_leaves_it_fitted(estimator):
    pipeline = make_pipeline(StandardScaler(), clone(estimator).set_callbacks(Interrupting()))
    with pytest.warns(ConvergenceWarning, match="interrupted"):
        pipeline.fit(X, Y)
    assert pipeline[-1].interrupted_
    assert np.isfinite(pipeline.predict(X)).all()


# -- what a fitted policy does is what it has learned ----------------------------------------------


def another(estimator, name):
    """Return a legal value of a parameter that is not the one that it has."""
    value = getattr(estimator, name)
    if name in {"device", "random_state", "teacher"}:
        return {"device": "cpu", "random_state": 5, "teacher": None}[name]
    constraint = estimator._parameter_constraints[name][0]
    if constraint == "boolean":
        return not value
    if isinstance(constraint, StrOptions):
        return max(constraint.options - {value})
    assert isinstance(constraint, Interval)
    return value + 1 if constraint.type is Integral else 0.5 * value + 0.1


def answers(policy):
    """Return what a policy says to all questions, the same at every call."""
    rows, actions = X[:8], Y[:8]
    said = [ask(policy, method, rows, actions) for method in methods(policy)]
    said.append(policy.sample(rows, n_samples=3, random_state=1))
    if hasattr(policy, "denoising_score"):
        said.append(policy.denoising_score(rows, actions))
        said.append(policy.score_function(rows, actions, 0.5))
    return contents([np.asarray(values) for values in said])


@every_estimator
def test_parameters_that_are_set_after_fit_change_no_answer(estimator, tmp_path):
    policy = clone(estimator).fit(X, Y)
    before = answers(policy)
    names = sorted(policy.get_params(deep=False))
    changed = {name: another(policy, name) for name in names}
    assert all(repr(changed[name]) != repr(getattr(policy, name)) for name in names)
    policy.set_params(**changed)
    assert answers(policy) == before
    controller = policy.controller("torch", random_state=0)
    controller.reset()
    np.testing.assert_allclose(
        controller.act(X[0, :3]),
        policy.act(np.tile(X[:1, :3], 2), random_state=0)[0],
        rtol=1e-5,  # other kernels for one row
        atol=1e-6,
    )
    policy.save(tmp_path / "policy.safetensors")
    assert answers(skvdd.load(tmp_path / "policy.safetensors")) == before


# -- settings and generators of others ------------------------------------------------------------


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SETTINGS = {
    "default dtype": lambda: default_dtype(torch.float64),
    "default device": lambda: torch.device("meta"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


def acts_of_a_controller(policy):
    controller = policy.controller("torch", random_state=0)
    controller.reset()
    return [contents(controller.act(state)) for state in X[:3, :3]]


LIVES = {}


def undisturbed_life(estimator, path):
    """Return what `life` does with nobody's settings changed, the same at every call."""
    if label(estimator) not in LIVES:
        LIVES[label(estimator)] = life(estimator, path)
    return LIVES[label(estimator)]


def life(estimator, path):
    """Return all that comes of an estimator's life: fits, answers, a file, what is loaded."""
    policy = clone(estimator).fit(X, Y)
    said = [*answers(policy), *acts_of_a_controller(policy)]
    policy.save(path)
    loaded = skvdd.load(path)
    said += answers(loaded)
    learned = [contents(policy.network_)]
    policy.partial_fit(X, Y)
    loaded.set_params(warm_start=True)
    if not hasattr(loaded, "teacher"):  # whose teacher no file has
        learned.append(contents(loaded.fit(X, Y).network_))
    return [said, *learned, contents(policy.network_), policy.history_, path.read_bytes()]


@every_estimator
@pytest.mark.parametrize("setting", SETTINGS)
def test_global_settings_of_torch_do_not_matter(estimator, setting, tmp_path):
    expected = undisturbed_life(estimator, tmp_path / "a.safetensors")
    with SETTINGS[setting]():
        found = life(estimator, tmp_path / "b.safetensors")
    assert found == expected


def test_global_settings_of_torch_do_not_matter_to_onnx(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    (estimator,) = [e for e in ESTIMATORS if label(e) == "DiffusionPolicy-gpt"]
    policy = clone(estimator).set_params(n_steps=1).fit(X, Y)
    with ExitStack() as stack:
        for setting in SETTINGS.values():
            stack.enter_context(setting())
        policy.export_onnx(tmp_path / "policy.onnx")  # which compares it with torch


def generators():
    return contents([np.random.get_state(), torch.get_rng_state().numpy()]), random.getstate()  # noqa: NPY002


@every_estimator
def test_nobody_s_generator_is_touched(estimator, tmp_path):
    torch.manual_seed(7)
    before = generators()
    life(estimator, tmp_path / "policy.safetensors")
    assert generators() == before


@every_estimator
def test_fitting_is_repeatable_from_the_global_generator_where_nothing_is_given(estimator):
    networks = []
    for _ in range(2):
        np.random.seed(4)  # noqa: NPY002
        policy = clone(estimator).set_params(random_state=None)
        networks.append(contents(policy.fit(X, Y).network_))
    assert networks[0] == networks[1]


# -- threads --------------------------------------------------------------------------------------


class Threads:
    """A callback that notes how many threads torch has during training."""

    def __init__(self):
        self.seen = set()

    def setup(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        if context.max_subtasks == 0:
            self.seen.add(torch.get_num_threads())

    def teardown(self, estimator, context):
        pass


def threads_of_a_fit(estimator, fails=False):
    """Return the numbers of threads before, during and after a fit."""
    noted, before = Threads(), torch.get_num_threads()
    policy = clone(estimator).set_callbacks(noted)
    if fails:
        policy.set_params(learning_rate=1e30, ema_decay=0.0)
    with pytest.raises(FloatingPointError) if fails else nullcontext():
        policy.fit(X, Y)
    return before, noted.seen, torch.get_num_threads()


@pytest.fixture
def cores(monkeypatch):
    """Let the machine have six cores, and nobody have chosen a number of threads."""
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(6), raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    yield
    torch.set_num_threads(before)


@every_estimator
def test_a_small_network_is_trained_on_one_thread(estimator, cores):
    assert threads_of_a_fit(estimator) == (6, {1}, 6)
    before, _, after = threads_of_a_fit(estimator, fails=True)
    assert before == after == 6


@pytest.mark.parametrize("kind", ["GaussianMoEPolicy", "VDDDistiller"])  # without, with a teacher
def test_the_number_of_threads_that_somebody_chose_is_kept(kind, cores, monkeypatch):
    (estimator,) = [e for e in ESTIMATORS if label(e) == kind]
    torch.set_num_threads(2)
    assert threads_of_a_fit(estimator) == (2, {2}, 2)
    torch.set_num_threads(6)
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert threads_of_a_fit(estimator) == (6, {6}, 6)


def test_fits_that_overlap_leave_the_threads_of_later_ones_alone(cores, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(2), raising=False)
    torch.set_num_threads(2)
    begun, ended = Event(), Event()

    def longer():
        begun.wait(60)
        with threads.fit_settings(torch.device("cpu"), work=1.0):
            begun.clear()
            ended.wait(60)

    def shorter():
        with threads.fit_settings(torch.device("cpu"), work=1.0):
            begun.set()
            while begun.is_set():  # until the longer one has begun, too
                time.sleep(0.001)
        ended.set()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(longer), pool.submit(shorter)]:
            done.result(60)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == torch.get_num_threads() == 2


@pytest.mark.parametrize("n_threads", [1, 4])
def test_blas_is_put_back_by_the_fit_that_limited_it(n_threads, cores):
    """A fit that finds one thread may have found another fit's limit: it is not its to keep."""
    blas, libraries = Mock(), Mock()
    blas.info.return_value = [{"num_threads": n_threads}]
    blas.limit.return_value = nullcontext()
    libraries.select.side_effect = lambda user_api: blas if user_api == "blas" else MagicMock()
    with patch("skvdd.training.threads.ThreadpoolController", lambda: libraries):
        with threads.fit_settings(torch.device("cpu"), work=1.0):
            assert blas.limit.call_count == (n_threads > 1)


def test_threads_are_those_of_the_machine_before_and_after_a_fit():
    program = """
import torch
from skvdd import GaussianMoEPolicy
from skvdd.encoders import Encoder

class Count(torch.nn.Module):
    seen = set()

    def forward(self, rows):
        if self.training:
            self.seen.add(torch.get_num_threads())
        return rows

class CountEncoder(Encoder):
    def build(self, layout):
        return Count()

n = torch.get_num_threads()
X = torch.zeros(20, 2)
GaussianMoEPolicy(2, encoder=CountEncoder(), max_iter=3, random_state=0).fit(X, X)
assert (Count.seen, torch.get_num_threads()) == ({1}, n), (Count.seen, n)
"""
    environment = {name: v for name, v in os.environ.items() if name not in threads.VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
