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
from skvdd import ConsistencyDistiller, DiffusionPolicy, VDDDistiller
from skvdd.nn import normalization
from skvdd.nn.layout import RowLayout
from skvdd.nn.normalization import Normalization, action_statistics, row_statistics
from skvdd.training import rows as training_rows
from skvdd.training.rows import StreamedRows, is_resident, is_streamed, standard_rows
from tests.estimators import SMALL, label, make_estimators, small_teacher

CPU = torch.device("cpu")
LABELS = [label(estimator) for estimator in make_estimators()]
TEACHES = [i for i, estimator in enumerate(make_estimators()) if hasattr(estimator, "teacher")]


@pytest.fixture
def stream_all(monkeypatch):
    """Return a function that makes all data too large, and blocks of them small."""

    def patch():
        monkeypatch.setattr(training_rows, "STREAMED_BYTES", 0)
        monkeypatch.setattr(training_rows, "BLOCK", 16)
        monkeypatch.setattr(normalization, "BLOCK", 16)
        monkeypatch.setattr(skvdd.distillation.base, "CONTEXT_BYTES", 0)

    return patch


def on_disk(folder, name, values):
    """Write values to a file and return them as a map of it that cannot be written to."""
    np.save(folder / f"{name}.npy", values)
    return np.load(folder / f"{name}.npy", mmap_mode="r")


def assert_alike(one, other, X):
    """Assert that two policies are the same up to the rounding of their statistics."""
    for name, weight in one.network_.state_dict().items():
        # Statistics summed in another order differ in the last bits of float64; 20 steps of AdamW,
        # which divides gradients by their size, make of that at most a few 1e-5.
        torch.testing.assert_close(other.network_.state_dict()[name], weight, rtol=1e-4, atol=1e-4)
    rows = one.sample(X, random_state=0), other.sample(X, random_state=0)
    np.testing.assert_allclose(*rows, rtol=1e-3, atol=1e-3)


# -- which rows are streamed ------------------------------------------------------------------


def test_the_threshold_counts_a_copy_in_float64(monkeypatch):
    monkeypatch.setattr(training_rows, "STREAMED_BYTES", 8 * 12)
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
def values_and_units():
    values = np.random.RandomState(0).normal(1e6, 1.0, size=(50, 3))
    return values, Normalization(3).set(values.mean(axis=0), values.std(axis=0))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int32])
def test_streamed_rows_are_those_of_the_whole(values_and_units, dtype):
    values, units = values_and_units
    values = values.astype(dtype)
    whole = standard_rows(units, values, CPU)
    rows = StreamedRows(values, units, CPU)
    index = torch.tensor([49, 3, 3, 0])
    assert len(rows) == 50
    assert rows.index_select(0, index).dtype == torch.float32
    assert torch.equal(rows.index_select(0, index), whole.index_select(0, index))
    for block, expected in zip(rows.split(16), whole.split(16), strict=True):
        assert torch.equal(block, expected)


def test_rows_far_from_zero_keep_their_digits(values_and_units):
    values, units = values_and_units
    expected = (values - values.mean(axis=0)) / values.std(axis=0)
    for rows in (standard_rows(units, values, CPU), StreamedRows(values, units, CPU)):
        found = rows.index_select(0, torch.arange(50)).double().numpy()
        # Float32 near one; in float32 from the start, 1e6 would have left two digits.
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_only_rows_can_be_chosen(values_and_units):
    message = re.escape("dim must be 0, got 1: only rows can be chosen.")
    with pytest.raises(ValueError, match=f"^{message}$"):
        StreamedRows(*values_and_units, CPU).index_select(1, torch.tensor([0]))


def test_rows_are_resident_unless_one_of_them_is_streamed(values_and_units):
    values, units = values_and_units
    whole, streamed = standard_rows(units, values, CPU), StreamedRows(values, units, CPU)
    assert is_resident(whole, None, whole)
    assert not is_resident(whole, streamed)


def test_rows_that_fit_into_a_gpu_are_brought_there_in_blocks(values_and_units, monkeypatch):
    values, units = values_and_units
    whole = standard_rows(units, values, CPU)
    asked = []
    monkeypatch.setattr(training_rows, "STREAMED_BYTES", 0)
    monkeypatch.setattr(training_rows, "BLOCK", 16)
    assert isinstance(standard_rows(units, values, CPU), StreamedRows)
    monkeypatch.setattr(
        training_rows, "_fits", lambda n_bytes, device: asked.append(n_bytes) or True
    )
    rows = standard_rows(units, values, CPU)
    assert isinstance(rows, torch.Tensor)
    assert torch.equal(rows, whole)
    assert asked == [50 * 3 * 4]


@pytest.mark.parametrize("goal_dim", [0, 2])
def test_statistics_by_blocks_are_those_of_the_whole(goal_dim, stream_all):
    rows = np.random.RandomState(0).normal([1e6, 2, 3, 4, 5, 6], 1.0, size=(1000, 6))
    layout = RowLayout((6 - goal_dim) // 2, 2, goal_dim)
    rows[:, [1, 1 + layout.n_states]] = 7.0  # constant, in both states of a window
    whole = row_statistics(rows, layout), action_statistics(rows, 2)
    stream_all()
    blocks = row_statistics(rows, layout), action_statistics(rows, 2)
    for (mean, scale), (expected_mean, expected_scale) in zip(blocks, whole, strict=True):
        np.testing.assert_allclose(mean, expected_mean, rtol=1e-12)
        # An offset of 1e6 costs a variance twelve of its sixteen digits.
        np.testing.assert_allclose(scale, expected_scale, rtol=1e-8)
    assert blocks[0][1][1] == 1.0


# -- fits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "state_noise"),
    # Without noise a teacher encodes every state but once.
    [(i, noise) for i in range(len(LABELS)) for noise in (0.035, *([0.0] if i in TEACHES else []))],
    ids=lambda value: LABELS[value] if isinstance(value, int) else str(value),
)
def test_a_policy_is_the_same_from_streamed_rows(make, state_noise, two_ways, stream_all):
    estimator = make_estimators(window_size=2, max_iter=8, state_noise=state_noise)[make]
    whole = clone(estimator).fit(*two_ways)
    stream_all()
    assert_alike(whole, clone(estimator).fit(*two_ways), two_ways[0])


@pytest.mark.parametrize("make", range(len(LABELS)), ids=LABELS)
def test_a_policy_learns_from_files_that_it_may_only_read(make, two_ways, stream_all, tmp_path):
    X, y = (values.astype(np.float32) for values in two_ways)
    estimator = make_estimators(window_size=2, max_iter=8)[make]
    whole = clone(estimator).fit(X, y)
    files = on_disk(tmp_path, "X", X), on_disk(tmp_path, "y", y)
    before = [(tmp_path / f"{name}.npy").read_bytes() for name in "Xy"]
    stream_all()
    assert_alike(whole, clone(estimator).fit(*files), X)
    assert [(tmp_path / f"{name}.npy").read_bytes() for name in "Xy"] == before


def test_chunks_are_streamed_too(two_ways, stream_all):
    X, y = two_ways
    chunks = np.stack([y, 2 * y, 3 * y], axis=1)
    whole = small_teacher(window_size=2).fit(X, chunks)
    stream_all()
    streamed = small_teacher(window_size=2).fit(X, chunks)
    assert_alike(whole, streamed, X)
    assert streamed.action_shape_ == (3, 2)


@pytest.mark.parametrize(
    ("encoder", "behind_pipeline"), [("teacher", False), ("mlp", False), ("mlp", True)]
)
def test_a_student_without_actions_is_the_same_from_streamed_rows(
    encoder, behind_pipeline, two_ways, stream_all
):
    X = two_ways[0].reshape(60, 6)
    teacher = small_teacher(window_size=2, max_iter=8)
    teacher = make_pipeline(StandardScaler(), teacher) if behind_pipeline else teacher
    teacher.fit(X, two_ways[1])
    settings = {**SMALL, "max_iter": 8, "window_size": 2}
    student = VDDDistiller(n_experts=2, init_iter=5, encoder=encoder, **settings)
    whole = clone(student).fit(X, teacher=teacher)
    stream_all()
    assert_alike(whole, clone(student).fit(X, teacher=teacher), X)


def test_streamed_fits_continue(two_ways, stream_all):
    X, y = two_ways
    whole = small_teacher(window_size=2).fit(X, y).partial_fit(X[:30], 3 * y[:30])
    stream_all()
    streamed = small_teacher(window_size=2).fit(X, y).partial_fit(X[:30], 3 * y[:30])
    assert_alike(whole, streamed, X)
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


@pytest.mark.parametrize("state_noise", [0.0, 0.1])
def test_contexts_are_encoded_once_if_they_are_few_and_without_noise(
    state_noise, two_ways, monkeypatch
):
    X, y = two_ways
    teacher = small_teacher(window_size=2).fit(X, y)
    student = ConsistencyDistiller(
        n_levels=5, window_size=2, state_noise=state_noise, **{**SMALL, "max_iter": 2}
    )
    kept = []
    original = skvdd.distillation.base.TeacherContexts.__init__

    def spy(contexts, fit):
        original(contexts, fit)
        kept.append(contexts.kept)

    monkeypatch.setattr(skvdd.distillation.base.TeacherContexts, "__init__", spy)
    for n_bytes in (60 * 16 * 4, 60 * 16 * 4 - 1):
        monkeypatch.setattr(skvdd.distillation.base, "CONTEXT_BYTES", n_bytes)
        clone(student).fit(X, y, teacher=teacher)
    if state_noise:  # each iteration sees other states
        assert kept == [None, None]
    else:
        assert kept[0].shape == (60, 16)
        assert not kept[0].requires_grad
        assert kept[1] is None


# -- memory -----------------------------------------------------------------------------------


def test_no_copy_is_made_of_streamed_rows(monkeypatch, tmp_path):
    rng = np.random.RandomState(0)
    X = on_disk(tmp_path, "X", rng.standard_normal((200_000, 20)).astype(np.float32))
    y = on_disk(tmp_path, "y", rng.standard_normal((200_000, 8)).astype(np.float32))
    monkeypatch.setattr(training_rows, "STREAMED_BYTES", 8 * y.size - 1)
    monkeypatch.setattr(training_rows, "BLOCK", 2**12)
    monkeypatch.setattr(normalization, "BLOCK", 2**12)
    policy = DiffusionPolicy(window_size=5, max_iter=3, hidden_size=16, random_state=0)
    tracemalloc.start()  # which sees what NumPy allocates
    try:
        policy.fit(X, y)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < y.nbytes  # 6.4 MB; X has 16 MB, and 32 MB as float64
