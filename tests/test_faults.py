"""What goes wrong outside: processes killed, disks full, simulators that fail. No file is lost."""

import errno
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

import skvdd
from benchmarks import runs, training
from fuzz.harness import Target, run
from fuzz.targets import TARGETS
from skvdd.datasets import Demonstrations, Episode, load_demonstrations
from skvdd.datasets.experts import recording
from skvdd.encoders import MLPEncoder
from skvdd.evaluation import evaluate_policy
from skvdd.nn.blocks import CausalAttentionBlock
from skvdd.nn.layout import RowLayout
from skvdd.nn.mixture_network import MixtureNetwork
from skvdd.persistence import write_whole

posix = pytest.mark.skipif(os.name != "posix", reason="kills and limits processes as POSIX does")
SMALL = {"hidden_size": 8, "n_layers": 0, "max_iter": 1, "batch_size": 8}


def make_policy(seed):
    states, actions = np.random.RandomState(0).standard_normal((2, 30, 2))
    return skvdd.GaussianMoEPolicy(2, random_state=seed, **SMALL).fit(states, actions)


def make_demonstrations(length):
    rows = np.arange(2.0 * length).reshape(length, 2)
    return Demonstrations([Episode(rows, rows[:, :1])], "line", {"version": 1})


# -- kill -9 ---------------------------------------------------------------------------------------


def killed(work, seconds):
    """Do some work in a process of its own and kill it after a while, as kill -9 does."""
    with warnings.catch_warnings():
        # Later Pythons warn that threads do not survive a fork; the child needs none.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:  # nothing of the test run may go on here, whatever happens
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def leftovers(folder):
    return [path for path in folder.iterdir() if path.name.startswith(".")]


@posix
def test_a_policy_file_survives_a_kill_at_any_time(tmp_path):
    path = tmp_path / "policy.safetensors"
    policies = make_policy(0), make_policy(1)
    policies[0].save(path)
    states = np.zeros((3, 2))
    answers = [policy.predict(states).tolist() for policy in policies]

    def save_forever():
        while True:
            for policy in policies:
                policy.save(path)

    rng = np.random.RandomState(0)
    for _ in range(30):
        killed(save_forever, rng.uniform(0.0, 0.05))
        assert skvdd.load(path).predict(states).tolist() in answers
    assert not {file.suffix for file in leftovers(tmp_path)} & {".safetensors"}


@posix
def test_a_large_file_is_old_or_new_whenever_its_writer_is_killed(tmp_path):
    path = tmp_path / "large"
    contents = [bytes([value]) * 2**23 for value in (1, 2)]
    write_whole(path, contents[0])

    def write_forever():
        while True:
            for content in contents:
                write_whole(path, content)

    rng = np.random.RandomState(1)
    for _ in range(30):
        killed(write_forever, rng.uniform(0.0, 0.05))
        assert path.read_bytes() in contents
    # Most of the time goes into writing, so kills hit it; what they leave has another name.
    assert leftovers(tmp_path)


@posix
def test_demonstrations_survive_a_kill_at_any_time(tmp_path):
    path = tmp_path / "line.npz"
    sets = make_demonstrations(2000), make_demonstrations(3000)
    sets[0].save(path)

    def save_forever():
        while True:
            for demonstrations in sets:
                demonstrations.save(path)

    rng = np.random.RandomState(2)
    for _ in range(30):
        killed(save_forever, rng.uniform(0.0, 0.05))
        assert Demonstrations.load(path).n_rows in {2000, 3000}


@posix
def test_a_kill_during_recording_leaves_a_whole_set_that_grows_on(tmp_path, monkeypatch):
    episodes = load_demonstrations("sorting6").episodes

    def recorded(task, set_name, numbers, *, n_jobs):
        for number in numbers:
            time.sleep(0.005)  # of a simulator
            yield episodes[number % len(episodes)]

    monkeypatch.setenv("SKVDD_CACHE", str(tmp_path))
    monkeypatch.setattr(recording, "recorded_episodes", recorded)

    def record_forever():
        for n_episodes in itertools.count(len(episodes) + 1):
            load_demonstrations("sorting6", n_episodes)

    rng = np.random.RandomState(3)
    lengths = [0]
    for _ in range(8):
        killed(record_forever, rng.uniform(0.1, 0.4))
        lengths += [len(Demonstrations.load(path)) for path in tmp_path.glob("sorting6-*.npz")]
    assert lengths == sorted(lengths)  # nobody records again what is there
    assert lengths[-1] > len(episodes)


def make_training(seed=0):
    policy = skvdd.GaussianMoEPolicy(2, window_size=1, random_state=seed, **SMALL)
    return training.Training(policy, "avoiding", 1)


@posix
def test_benchmarks_continue_where_they_were_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CACHE", tmp_path / "cache")

    def train_forever():
        for seed in range(1000):
            _, cost = make_training(seed).policy()
            training.write(tmp_path / f"{seed}.json", json.dumps(cost))

    rng = np.random.RandomState(4)
    make_training().policy()  # what takes long at first is then there in every child
    n_finished = 0
    for _ in range(6):
        killed(train_forever, rng.uniform(0.2, 0.8))
        finished = {int(f.stem): json.loads(f.read_text()) for f in tmp_path.glob("*.json")}
        assert len(finished) >= n_finished  # what was done stays done
        n_finished = len(finished)
        for seed, cost in finished.items():
            assert list(make_training(seed).policy()[1]) == cost
    assert n_finished > 0


# -- disks -----------------------------------------------------------------------------------------


@contextmanager
def disk_of(n_bytes):
    """Let no file grow beyond a size: writing fails half-way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_policy(path, variant):
    make_policy(variant).save(path)


def save_demonstrations(path, variant):
    rows = np.random.RandomState(variant).standard_normal((2000, 2))  # which no zip makes smaller
    Demonstrations([Episode(rows, rows)]).save(path)


def write_report(path, variant):
    training.write(path, f"{variant}" * 10_000)


@posix
@pytest.mark.parametrize("write", [save_policy, save_demonstrations, write_report])
def test_a_full_disk_is_an_error_and_the_old_file_stays(write, tmp_path):
    path = tmp_path / "file.npz"
    write(path, 0)
    before = path.read_bytes()
    with disk_of(4096), pytest.raises(OSError, match="File too large") as caught:
        write(path, 1)
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["file.npz"]


@contextmanager
def as_nobody():
    """Give up root's right to do everything, for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def open_folder():
    """A folder that everybody may enter, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        Path(name).chmod(0o755)


@posix
@pytest.mark.parametrize("write", [save_policy, save_demonstrations, write_report])
def test_a_read_only_folder_is_an_error_and_the_old_file_stays(write, open_folder):
    path = open_folder / "file.npz"
    path.write_bytes(b"old")
    open_folder.chmod(0o555)
    with as_nobody(), pytest.raises(PermissionError):
        write(path, 0)
    assert path.read_bytes() == b"old"
    assert len(list(open_folder.iterdir())) == 1


@posix
def test_a_file_that_may_not_be_read_is_not_called_damaged(open_folder):
    path = open_folder / "policy.safetensors"
    make_policy(0).save(path)
    path.chmod(0o000)
    with as_nobody(), pytest.raises(PermissionError):
        skvdd.load(path)


# -- simulators and policies -----------------------------------------------------------------------


class Frail(gymnasium.Env):
    """A line to walk along; the episode of one seed fails at its third step, in a chosen way."""

    fault = "none"
    ill_fated = None

    def __init__(self):
        self.observation_space = Box(-np.inf, np.inf, (1,), np.float64)
        self.action_space = Box(-np.inf, np.inf, (1,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.fated = 0, seed == Frail.ill_fated
        self.position = self.np_random.uniform(-0.1, 0.1)
        return np.array([self.position]), {"success": False, "behavior": None}

    def step(self, action):
        self.steps += 1
        self.position += float(action[0])
        if self.fated and self.steps == 3:
            if Frail.fault == "raises":
                raise RuntimeError("the simulation is unstable")
            if Frail.fault == "nan":
                self.position = np.nan
        over = self.steps == 5
        info = {"success": over, "behavior": "right"}
        return np.array([self.position]), 0.0, over, False, info


gymnasium.register("skvddfault/Frail-v0", entry_point=Frail)


class Walker:
    """Walks to the right; answers wrongly from the third step on, if told how."""

    window_size = 1

    def __init__(self, wrong=None):
        self.wrong, self.calls = wrong, 0

    def act(self, X, *, random_state=None):
        self.calls += 1
        actions = np.where(np.isfinite(X[:, -1]), 0.1, np.nan)
        return actions if self.wrong is None or self.calls < 3 else self.wrong(actions)


def first_seed():
    return int(np.random.RandomState(0).randint(np.iinfo(np.int32).max, size=(6, 2))[0, 0])


def outcome(policy):
    """Return the successes of six episodes, or the error that says what went wrong."""
    try:
        return evaluate_policy(
            policy, "skvddfault/Frail-v0", 6, random_state=0, n_envs=6, progress=False
        ).successes.tolist()
    except (RuntimeError, ValueError) as error:
        return str(error)


@pytest.mark.parametrize("fault", ["raises", "nan"])
def test_a_failing_simulator_is_a_clear_error_or_one_failed_episode(fault, monkeypatch):
    assert outcome(Walker()) == [True] * 6
    monkeypatch.setattr(Frail, "ill_fated", first_seed())
    monkeypatch.setattr(Frail, "fault", fault)
    found = outcome(Walker())
    if isinstance(found, list):
        assert found == [False] + [True] * 5
    else:
        assert "skvddfault/Frail-v0" in found
        words = ("unstable", "step") if fault == "raises" else ("finite", "episode 0", "step 3")
        assert all(word in found for word in words)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda a: a[:-1], ["shape (64, 1)", "got shape (63, 1)"]),
        (lambda a: np.hstack([a, a]), ["shape (64, 1)", "got shape (64, 2)"]),
        (lambda a: None, ["shape (64, 1)"]),
        (lambda a: a * np.nan, ["finite", "nan", "episode 0", "step 2"]),
        (lambda a: a * np.inf, ["finite", "inf", "episode 0", "step 2"]),
    ],
    ids=["fewer rows", "more columns", "nothing", "nan", "inf"],
)
def test_a_wrong_policy_is_a_clear_error_or_failed_episodes(wrong, words):
    found = outcome(Walker(wrong))
    if isinstance(found, list):
        assert found == [False] * 6
    else:
        assert "policy.act must return" in found
        assert all(word in found for word in words)


# -- workers ---------------------------------------------------------------------------------------


def run_or_die(work, fatal):
    if fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"seed {work.estimator.random_state} is done"


@posix
@pytest.mark.slow
def test_a_worker_that_dies_is_reported_and_the_other_runs_go_on(capsys):
    calls = [(run_or_die, f"{seed}", (make_training(seed), seed == 1)) for seed in range(4)]
    failed = runs._each(2, calls)
    assert list(failed) == ["1"]
    assert failed["1"].startswith("FAILED GaussianMoEPolicy, seed 1: ")
    printed = capsys.readouterr().out
    assert all(f"seed {seed} is done" in printed for seed in (0, 2, 3))


# -- what fuzzing found ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["load-damaged", "load-forged", "demonstrations", "readers", "containers", "measures"]
)
def test_a_short_run_of_the_fuzzer_finds_nothing(name):
    (target,) = [target for target in TARGETS if target.name == name]
    report = run(target, range(100), seed=1)
    assert report.n_cases == 100
    # Of time and memory nothing can be said here: the machine may be busy with other tests.
    assert not [what for what in report.findings if "took longer" not in what], report


def test_the_fuzzer_tells_refusals_from_findings():
    def case(rng):
        choice = rng.randint(3)
        if choice:
            raise (ValueError("a refusal") if choice == 1 else KeyError("a crash"))

    report = run(Target("toy", 1, case), range(60), seed=0)
    assert report.n_cases == 60
    (what,) = report.findings
    assert what.startswith("KeyError in case")
    first, count = report.findings[what]
    assert 10 < count < 30
    assert 10 < report.n_refused < 30
    again = run(Target("toy", 1, case), range(first, first + 1), seed=0)
    assert len(again.findings) == 1  # a number decides everything about its case


@pytest.mark.parametrize("streams", [[0, 0], ["a", "b"], [None, np.random.RandomState(0)]])
def test_a_sequence_of_anything_but_random_states_is_refused(streams):
    with pytest.raises(ValueError, match="random_state, given as a sequence, must hold"):
        make_policy(0).sample(np.zeros((2, 2)), random_state=streams)


@pytest.mark.parametrize("goal", [np.nan, np.inf])
def test_a_controller_refuses_a_goal_that_is_not_finite(goal):
    rows, actions = np.random.RandomState(0).standard_normal((2, 30, 3))
    policy = skvdd.GaussianMoEPolicy(2, goal_dim=1, random_state=0, **SMALL).fit(rows, actions)
    controller = policy.controller("torch")
    with pytest.raises(ValueError, match="goal must"):
        controller.reset([goal])


def test_diagonal_covariances_take_no_memory_for_pairs_of_actions():
    # A file of a megabyte could claim so many actions that all pairs of them fill the memory.
    network = MixtureNetwork(RowLayout(1), 1000, MLPEncoder(1, 0), 1, 1, 0, "diag", 1e-3, False)
    n_bytes = network.tril_rows.untyped_storage().nbytes()
    assert n_bytes == 0


def test_attention_refuses_heads_that_do_not_share_its_width():
    with pytest.raises(ValueError, match="n_heads"):
        CausalAttentionBlock(8, 3)


def test_a_training_that_diverges_within_a_step_says_so():
    rows, actions = np.random.RandomState(0).standard_normal((2, 5, 2))
    teacher = skvdd.DiffusionPolicy(n_steps=2, random_state=0, **SMALL).fit(rows, actions)
    settings = {**SMALL, "max_iter": 5}
    student = skvdd.VDDDistiller(
        n_experts=2, init_iter=2, likelihood_weight=1e300, random_state=0, **settings
    )
    with pytest.raises(FloatingPointError, match="training diverged"):
        student.fit(rows, actions, teacher=teacher)


@posix
def test_a_damaged_chunk_of_a_zarr_store_crashes_nothing(tmp_path):
    zarr = pytest.importorskip("zarr")
    rows = np.random.RandomState(0).standard_normal((6, 60))
    group = zarr.open_group(str(tmp_path / "set.zarr"), mode="w", zarr_format=2)
    group.create_array("data/obs", data=rows[:, :16])  # by Blosc, as published stores are
    group.create_array("data/action", data=rows[:, :2])
    group.create_array("meta/episode_ends", data=np.array([2, 6]))
    chunk = tmp_path / "set.zarr" / "data" / "obs" / "0.0"
    content = chunk.read_bytes()
    damage = bytes.fromhex("3c59775b1f74e60e7c7353e775ea")
    chunk.write_bytes(content[:7] + damage + content[7:])
    program = (
        "import sys\n"
        "from skvdd.datasets.readers import read_zarr\n"
        "try: read_zarr(sys.argv[1])\n"
        "except ValueError: sys.exit(3)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "set.zarr")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 3
