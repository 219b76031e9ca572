"""Two processes that train together learn what one learns alone; a lost one ends the other."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sklearn.callback import ProgressBar

from skvdd import GaussianMoEPolicy, load
from skvdd.callbacks import Checkpoint, CSVLogger, EarlyStopping
from skvdd.training import processes
from tests.estimators import SMALL, label, make_estimators

ROOT = Path(__file__).parents[2]
LABELS = [label(estimator) for estimator in make_estimators()]
SETTINGS = {"window_size": 2, "batch_size": 31, "max_iter": 8}  # halves of unequal size


def make_data():
    rng = np.random.RandomState(0)
    states = rng.uniform(-1, 1, size=(60, 2, 3))
    side = np.sign(rng.standard_normal(60))
    actions = np.stack([side * (1 + states[:, -1, 0]), states[:, -1, 1]], axis=1)
    return states, actions + 0.1 * rng.standard_normal(actions.shape)


class Ends:
    """A callback that ends training at a report, in some of the processes."""

    def __init__(self, at, how):
        self.at, self.how, self.n = at, how, 0

    def setup(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        if context.max_subtasks == 0:
            self.n += 1
            return self.n == self.at and self.how()

    def teardown(self, estimator, context):
        pass


def give_up():
    raise RuntimeError("the machine is on fire")


# -- what each of two processes does --------------------------------------------------------


def main(folder):
    """Fit everything together with the other process and write what came out."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {"fits": [fit_one(which, folder) for which in range(len(LABELS))]}
    found["unseeded"] = describe(mixture(random_state=None).fit(*make_data()))
    found["whole"], found["resumed"] = fit_and_resume(folder)
    found["stopped"] = stop_in_one_process()
    found["refusal"] = refuse()
    (folder / f"found-{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def mixture(**parameters):
    return GaussianMoEPolicy(2, **{**SMALL, **SETTINGS, **parameters})


def describe(policy):
    weights = {k: v.numpy().tobytes().hex() for k, v in policy.network_.state_dict().items()}
    return {"history": policy.history_, "weights": weights}


def rank_minus_iterations(policy, X, y):
    return dist.get_rank() - policy.n_iter_


def fit_one(which, folder):
    X, y = make_data()
    policy = make_estimators(**SETTINGS)[which]
    mine = folder / f"of-{dist.get_rank()}"
    mine.mkdir(exist_ok=True)
    policy.set_callbacks(
        CSVLogger(mine / f"{which}.csv"),
        Checkpoint(mine / f"{which}.ckpt", every=4),
        EarlyStopping(X, y, metric=rank_minus_iterations, every=5, keep_best=False),
        ProgressBar(),
    )
    n_bars = sum(isinstance(callback, ProgressBar) for callback in policy._skl_callbacks)
    policy.fit(X, y).save(mine / f"{which}.safetensors")
    return {**describe(policy), "n_bars": n_bars}


def fit_and_resume(folder):
    """Return what a fit gives, and what it gives if it is broken off and resumed."""
    X, y = make_data()
    checkpoint = Checkpoint(folder / "run.ckpt", every=4)
    with pytest.raises(RuntimeError, match="on fire"):
        mixture().set_callbacks(checkpoint, Ends(7, give_up)).fit(X, y)
    dist.barrier()
    assert (folder / "run.ckpt").exists()
    return describe(mixture().fit(X, y)), describe(mixture().set_callbacks(checkpoint).fit(X, y))


def stop_in_one_process():
    stops = Ends(5, lambda: dist.get_rank() == 0)
    return mixture().set_callbacks(stops).fit(*make_data()).n_iter_


def refuse():
    try:
        mixture(batch_size=1).fit(*make_data())
    except ValueError as error:
        return str(error)


# -- together -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes found, and the folder that they wrote to."""
    folder = tmp_path_factory.mktemp("together")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*torchrun, __file__, str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in (0, 1)], folder


@pytest.mark.parametrize("which", range(len(LABELS)), ids=LABELS)
def test_two_processes_learn_what_one_learns_alone(which, together):
    found, folder = together
    alone = make_estimators(**SETTINGS)[which].fit(*make_data())
    history = found[0]["fits"][which]["history"]
    assert len(history) == len(alone.history_)
    for row, expected in zip(history, alone.history_, strict=True):
        row = {name: value for name, value in row.items() if name != "held_out_score"}
        assert row.keys() == expected.keys()
        assert row["stage"] == expected["stage"]
        numbers = [[r[name] for name in r if name != "stage"] for r in (row, expected)]
        # Sums of float32 in another order, through the steps of AdamW.
        np.testing.assert_allclose(*numbers, rtol=1e-4, atol=1e-5)
    loaded = load(folder / "of-0" / f"{which}.safetensors")
    for name, value in alone.network_.state_dict().items():
        # A fiftieth of a step of AdamW, which is as long as the learning rate.
        torch.testing.assert_close(loaded.network_.state_dict()[name], value, rtol=0, atol=2e-5)


@pytest.mark.parametrize("which", range(len(LABELS)), ids=LABELS)
def test_both_processes_end_with_the_same_bits(which, together):
    (first, second), _ = together
    for name in ("weights", "history"):
        assert first["fits"][which][name] == second["fits"][which][name]


def test_without_a_seed_both_processes_train_the_same_policy(together):
    (first, second), _ = together
    assert first["unseeded"] == second["unseeded"]
    assert first["unseeded"] != first["whole"]


def test_a_fit_that_was_broken_off_resumes_with_the_same_bits(together):
    for found in together[0]:
        assert found["resumed"] == found["whole"]


def test_the_first_process_decides_when_to_stop(together):
    assert [found["stopped"] for found in together[0]] == [5, 5]


def test_the_first_process_writes_measures_and_shows_bars(together):
    (first, second), folder = together
    names = {f"{which}.{kind}" for which in range(len(LABELS)) for kind in ("csv", "safetensors")}
    assert {path.name for path in (folder / "of-0").iterdir()} == names
    assert list((folder / "of-1").iterdir()) == []
    assert not (folder / "run.ckpt").exists()
    assert [found["fits"][0]["n_bars"] for found in (first, second)] == [1, 0]
    row = second["fits"][0]["history"][-1]
    assert row["held_out_score"] == -row["iteration"]  # the first process's number, in both


def test_fewer_rows_than_processes_are_refused(together):
    message = "batch_size must be at least the number of processes, 2, got minibatches of 1 rows."
    assert [found["refusal"] for found in together[0]] == [message] * 2


# -- a lost process -------------------------------------------------------------------------

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["skvdd.distillation", "skvdd.callbacks", "pytest", "sklearn.cluster", "torch._dynamo"]
)


def lose_the_second(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    policy = mixture()
    if rank == 1:
        policy.set_callbacks(Ends(3, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    try:
        policy.fit(*make_data())
    except RuntimeError as error:
        (folder / "error.txt").write_text(str(error))
        os._exit(3)  # the group is broken: nothing of it can be taken down


def test_a_lost_process_ends_the_others_with_an_error_that_says_so(tmp_path):
    both = [PROCESSES.Process(target=lose_the_second, args=(rank, tmp_path)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [3, -signal.SIGKILL]
    message = (
        "process 0 of 2 has lost another one in training: it has ended with an error of its own, "
        "was killed, or cannot be reached. Its output says more; a Checkpoint lets the fit be "
        "resumed."
    )
    assert re.fullmatch(re.escape(message), (tmp_path / "error.txt").read_text())


# -- errors ---------------------------------------------------------------------------------


@pytest.fixture
def second_of_two(monkeypatch):
    """Let this process think that it is the second of two."""
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)


@pytest.mark.parametrize(
    "message",
    [
        "Connection closed by peer [127.0.0.1]:4711",
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection reset by peer",
        "Timed out waiting 1800000ms for recv operation to complete",
        "NCCL communicator was aborted on rank 1.",
        "writev [127.0.0.1]:4711: Broken pipe",
    ],
)
def test_an_error_about_a_lost_process_says_so_and_keeps_its_cause(message, second_of_two):
    with pytest.raises(RuntimeError, match=r"^process 1 of 2 has lost another one") as caught:
        fail_together(RuntimeError(message))
    assert str(caught.value.__cause__) == message


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory"),
        RuntimeError("No backend type associated with device type cpu"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (2)"),
        FloatingPointError("the loss term 'experts' is nan at iteration 3"),
    ],
    ids=lambda error: str(error)[:20],
)
def test_another_error_keeps_its_text(error, second_of_two):
    with pytest.raises(type(error)) as caught:
        fail_together(error)
    assert caught.value is error


def fail_together(error):
    with processes.together():
        raise error


def test_alone_nothing_is_sent_to_anybody(monkeypatch):
    monkeypatch.setattr(dist, "broadcast_object_list", fail_together)
    assert processes.n_processes() == 1
    assert processes.is_first_process()
    assert processes.from_first(lambda: "mine") == "mine"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
