"""Data too large to be copied: the same policies from rows that stay where they are."""

import re
import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skvdd.distillation.base
from skvdd import ConsistencyDistiller, DiffusionPolicy, VDDDistiller, streaming
from skvdd.base import digest, fit_state_scaler
from skvdd.distillation.base import encode
from skvdd.streaming import StreamedContexts, StreamedRows, is_streamed, standard_rows
from tests.estimators import SMALL, label, make_estimators, small_teacher

CPU = torch.device("cpu")


@pytest.fixture
def stream_all(monkeypatch):
    """Return a function that makes all data too large, and blocks of them small."""

    def patch():
        monkeypatch.setattr(streaming, "STREAMED_BYTES", 0)
        monkeypatch.setattr(streaming, "BLOCK", 16)
        monkeypatch.setattr(skvdd.distillation.base, "CONTEXT_BYTES", 0)

    return patch


def on_disk(folder, name, values):
    """Write values to a file and return them as a map of it that cannot be written to."""
    np.save(folder / f"{name}.npy", values)
    return np.load(folder / f"{name}.npy", mmap_mode="r")


def assert_alike(one, other, X, y):
    """Assert that two policies are the same up to the rounding of their units."""
    for name, weight in one.network_.state_dict().items():
        # Units summed in another order differ in the last bits of float64; 20 steps of AdamW,
        # which divides gradients by their size, make of that at most a few 1e-5.
        torch.testing.assert_close(other.network_.state_dict()[name], weight, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(other.predict(X), one.predict(X), rtol=1e-3, atol=1e-3)
    assert other.score(X, y) == pytest.approx(one.score(X, y), rel=1e-3, abs=1e-3)


# -- which rows are streamed ------------------------------------------------------------------


def test_the_threshold_counts_a_copy_in_float64(monkeypatch):
    monkeypatch.setattr(streaming, "STREAMED_BYTES", 8 * 12)
    assert not is_streamed(np.zeros((6, 2), dtype=np.float32))
    assert is_streamed(np.zeros((13, 1), dtype=np.float32))
    assert is_streamed(np.zeros((2, 7), dtype=np.int8))
    assert not is_streamed([[0.0] * 100])  # a list has no shape, and is copied as it always was


def test_ten_million_decisions_are_streamed_and_the_tasks_are_not():
    shape = (10_000_000, 22)
    assert is_streamed(np.broadcast_to(np.float32(0), shape))
    assert not is_streamed(np.broadcast_to(0.0, (250_000, 5, 10)))


# -- the rows ---------------------------------------------------------------------------------


@pytest.fixture
def rows_and_scaler():
    values = np.random.RandomState(0).normal(1e6, 1.0, size=(50, 3))
    return values, StandardScaler().fit(values)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int32])
def test_streamed_rows_are_those_of_the_whole(rows_and_scaler, dtype):
    values, scaler = rows_and_scaler
    values = values.astype(dtype)
    whole = standard_rows(scaler, values, CPU)
    rows = StreamedRows(values, scaler, CPU)
    index = torch.tensor([49, 3, 3, 0])
    assert len(rows) == 50
    assert rows.index_select(0, index).dtype == torch.float32
    assert torch.equal(rows.index_select(0, index), whole.index_select(0, index))
    for block, expected in zip(rows.split(16), whole.split(16), strict=True):
        assert torch.equal(block, expected)


def test_only_rows_can_be_chosen(rows_and_scaler):
    message = re.escape("dim must be 0, got 1: only rows can be chosen.")
    with pytest.raises(ValueError, match=f"^{message}$"):
        StreamedRows(*rows_and_scaler, CPU).index_select(1, torch.tensor([0]))


def test_rows_that_fit_into_a_gpu_are_brought_there_in_blocks(rows_and_scaler, monkeypatch):
    values, scaler = rows_and_scaler
    whole = standard_rows(scaler, values, CPU)
    asked = []
    monkeypatch.setattr(streaming, "STREAMED_BYTES", 0)
    monkeypatch.setattr(streaming, "BLOCK", 16)
    assert isinstance(standard_rows(scaler, values, CPU), StreamedRows)
    monkeypatch.setattr(streaming, "fits", lambda n_bytes, device: asked.append(n_bytes) or True)
    rows = standard_rows(scaler, values, CPU)
    assert isinstance(rows, torch.Tensor)
    assert torch.equal(rows, whole)
    assert asked == [50 * 3 * 4]


@pytest.mark.parametrize("goal_dim", [0, 2])
def test_units_by_blocks_are_those_of_the_whole(goal_dim, stream_all):
    rows = np.random.RandomState(0).normal([1e6, 2, 3, 4, 5, 6], 1.0, size=(1000, 6))
    n_states = (6 - goal_dim) // 2
    rows[:, [1, 1 + n_states]] = 7.0  # constant, in both states of a window
    whole = fit_state_scaler(rows, 2, goal_dim)
    stream_all()
    blocks = fit_state_scaler(rows, 2, goal_dim)
    np.testing.assert_allclose(blocks.mean_, whole.mean_, rtol=1e-12)
    # An offset of 1e6 costs a variance twelve of its sixteen digits.
    np.testing.assert_allclose(blocks.scale_, whole.scale_, rtol=1e-8)
    assert blocks.scale_[1] == 1.0


def test_a_digest_does_not_depend_on_the_layout_in_memory():
    values = np.arange(12.0).reshape(3, 4)
    assert digest([np.asfortranarray(values)]) == digest([values])
    assert digest([values.astype(np.float32)]) != digest([values])
    assert digest([np.zeros(0)]) != digest([np.zeros(1)])


# -- fits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("state_noise", [0.0, 0.035])
@pytest.mark.parametrize("make", range(len(make_estimators())), ids=map(label, make_estimators()))
def test_a_policy_is_the_same_from_streamed_rows(make, state_noise, two_ways, stream_all):
    estimator = make_estimators(window_size=2, state_noise=state_noise)[make]
    whole = clone(estimator).fit(*two_ways)
    stream_all()
    assert_alike(whole, clone(estimator).fit(*two_ways), *two_ways)


@pytest.mark.parametrize("make", range(len(make_estimators())), ids=map(label, make_estimators()))
def test_a_policy_learns_from_files_that_it_may_only_read(make, two_ways, stream_all, tmp_path):
    X, y = (values.astype(np.float32) for values in two_ways)
    estimator = make_estimators(window_size=2)[make]
    whole = clone(estimator).fit(X, y)
    files = on_disk(tmp_path, "X", X), on_disk(tmp_path, "y", y)
    before = [(tmp_path / f"{name}.npy").read_bytes() for name in "Xy"]
    stream_all()
    assert_alike(whole, clone(estimator).fit(*files), X, y)
    assert [(tmp_path / f"{name}.npy").read_bytes() for name in "Xy"] == before


@pytest.mark.parametrize("encoder", ["teacher", "mlp"])
@pytest.mark.parametrize("behind_pipeline", [False, True])
def test_a_student_without_actions_is_the_same_from_streamed_rows(
    encoder, behind_pipeline, two_ways, stream_all
):
    if encoder == "teacher" and behind_pipeline:
        pytest.skip("such a teacher has no encoder of the same states")
    X = two_ways[0].reshape(60, 6)
    teacher = small_teacher(window_size=2)
    teacher = make_pipeline(StandardScaler(), teacher) if behind_pipeline else teacher
    teacher.fit(X, two_ways[1])
    student = VDDDistiller(n_experts=2, init_iter=5, window_size=2, encoder=encoder, **SMALL)
    whole = clone(student).fit(X, teacher=teacher)
    stream_all()
    assert_alike(whole, clone(student).fit(X, teacher=teacher), X, two_ways[1])


def test_streamed_fits_go_on(two_ways, stream_all):
    X, y = two_ways
    whole = small_teacher(window_size=2).fit(X, y).partial_fit(X[:30], 3 * y[:30])
    stream_all()
    streamed = small_teacher(window_size=2).fit(X, y).partial_fit(X[:30], 3 * y[:30])
    assert_alike(whole, streamed, X, y)
    action_range = whole.network_.action_range
    torch.testing.assert_close(streamed.network_.action_range, action_range)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("argument", ["X", "y"])
def test_what_is_not_finite_is_refused_in_streamed_rows_too(bad, argument, two_ways, stream_all):
    data = dict(zip("Xy", (values.astype(np.float32) for values in two_ways), strict=True))
    data[argument][37, 1] = bad
    stream_all()
    with pytest.raises(ValueError, match=f"Input {argument} contains"):
        small_teacher(window_size=2).fit(**data)


# -- contexts ---------------------------------------------------------------------------------


def test_contexts_are_encoded_once_if_they_are_few_and_when_needed_if_not(two_ways, monkeypatch):
    X, y = two_ways
    teacher = small_teacher(window_size=2).fit(X, y)
    student = ConsistencyDistiller(window_size=2, state_noise=0.0)
    view = student._view_teacher(teacher, X, X.reshape(60, 6))
    index = torch.tensor([5, 59, 5])
    monkeypatch.setattr(skvdd.distillation.base, "CONTEXT_BYTES", 60 * 16 * 4)
    kept = encode(view)
    monkeypatch.setattr(skvdd.distillation.base, "CONTEXT_BYTES", 60 * 16 * 4 - 1)
    encoded = encode(view)
    assert isinstance(kept, torch.Tensor)
    assert isinstance(encoded, StreamedContexts)
    # Matrix products of fewer rows round differently.
    torch.testing.assert_close(
        encoded.index_select(0, index), kept.index_select(0, index), rtol=1e-5, atol=1e-6
    )
    assert not encoded.index_select(0, index).requires_grad


# -- memory -----------------------------------------------------------------------------------


def test_no_copy_is_made_of_streamed_rows(monkeypatch, tmp_path):
    rng = np.random.RandomState(0)
    X = on_disk(tmp_path, "X", rng.standard_normal((200_000, 20)).astype(np.float32))
    y = on_disk(tmp_path, "y", rng.standard_normal((200_000, 8)).astype(np.float32))
    monkeypatch.setattr(streaming, "STREAMED_BYTES", 8 * y.size - 1)
    monkeypatch.setattr(streaming, "BLOCK", 2**12)
    policy = DiffusionPolicy(window_size=5, max_iter=3, hidden_size=16, random_state=0)
    tracemalloc.start()  # which sees what NumPy allocates
    try:
        policy.fit(X, y)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < y.nbytes  # 6.4 MB; X has 16 MB, and 32 MB as float64
