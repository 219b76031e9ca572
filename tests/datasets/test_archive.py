"""Archives of arrays: what is written comes back, and claims of size are not believed."""

import io
import zipfile

import numpy as np
import pytest

from skvdd.datasets import archive
from skvdd.datasets.archive import read_archive, write_archive


@pytest.fixture
def path(tmp_path):
    return tmp_path / "arrays.npz"


def npy(shape, content, dtype="<f8"):
    """Return the bytes of an array file that may lie about its shape."""
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + content


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("mapped", [False, True])
def test_arrays_come_back(path, compressed, mapped):
    arrays = {
        "rows": np.arange(12.0).reshape(4, 3),
        "columns": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "line": np.arange(5),
    }
    write_archive(path, arrays, compressed=compressed)
    if compressed and mapped:
        with pytest.raises(io.UnsupportedOperation):
            read_archive(path, tuple(arrays), mapped=True)
        return
    read = read_archive(path, ("rows", "columns"), ("line", "absent"), mapped=mapped)
    assert list(read) == ["rows", "columns", "line"]
    for name, array in read.items():
        np.testing.assert_array_equal(array, arrays[name])
        assert array.dtype == arrays[name].dtype
        assert not array.flags.writeable
        assert isinstance(array, np.memmap) == (mapped and array.ndim == 2)


def test_mapped_arrays_are_found_behind_extra_fields(path):
    """Other writers of zip files pad the headers of members, which moves the bytes."""
    with zipfile.ZipFile(path, "w") as file:
        for name in ("first", "second"):
            info = zipfile.ZipInfo(f"{name}.npy")
            info.extra = b"\x01\x02\x05\x00pads!"
            file.writestr(info, npy((2, 1), np.array([1.0, 2.0]).tobytes()))
    assert read_archive(path, ("second",), mapped=True)["second"].tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize("mapped", [False, True])
def test_an_array_that_claims_more_than_it_has_is_refused(path, mapped):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.npy", npy((10**12, 1), bytes(16)))
    with pytest.raises(ValueError, match=r"^a claims 8000000000000 bytes and has 16$"):
        read_archive(path, ("a",), mapped=mapped)


def test_a_bomb_is_refused_before_it_goes_off(path, monkeypatch):
    monkeypatch.setattr(archive, "ALWAYS_ALLOWED", 1000)
    zeros = bytes(10**6)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", npy((125000, 1), zeros))
    stored = zipfile.ZipFile(path).getinfo("a.npy").compress_size
    assert stored < len(zeros) / archive.MAX_EXPANSION
    with pytest.raises(
        ValueError, match=rf"^a claims 1000000 bytes, but only {stored} are stored$"
    ):
        read_archive(path, ("a",))


def test_monotonous_arrays_are_saved_so_that_they_can_be_read(path, monkeypatch):
    monkeypatch.setattr(archive, "ALWAYS_ALLOWED", 1000)
    zeros = {"a": np.zeros((125000, 1))}
    write_archive(path, zeros)
    np.testing.assert_array_equal(read_archive(path, ("a",))["a"], zeros["a"])


def test_a_changed_byte_is_noticed(path):
    write_archive(path, {"a": np.arange(100.0)}, compressed=False)
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match="CRC"):
        read_archive(path, ("a",))
