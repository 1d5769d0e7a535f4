"""Files of arrays: what is read of them, mapped where they are large, and what is none, in a line."""

import gzip
import struct
import zipfile

import numpy as np
import pytest

from bpref.train.data import mapped
from bpref.train.data.mapped import map_npz, read_idx, read_npy
from bpref.train.data.read_images import read_images, read_labels
from bpref.train.data.rows import Rows

V = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def idx(v):
    """As the MNIST database describes it."""
    code = next(code for code, dtype in mapped.OF_IDX.items() if np.dtype(dtype) == v.dtype.newbyteorder(">"))
    return bytes([0, 0, code, v.ndim]) + struct.pack(f">{v.ndim}I", *v.shape) + v.astype(mapped.OF_IDX[code]).tobytes()


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(mapped, "IN_MEMORY", 0)


@pytest.mark.parametrize("dtype", mapped.OF_IDX.values())
@pytest.mark.usefixtures("large")
def test_idx_of_every_type_plain_and_compressed(dtype, tmp_path):
    plain, zipped = tmp_path / "v-idx3", tmp_path / "v-idx3.gz"
    plain.write_bytes(idx(V.astype(dtype)))
    zipped.write_bytes(gzip.compress(idx(V.astype(dtype))))
    assert isinstance(read_idx(plain), np.memmap)
    for path in (plain, zipped):
        np.testing.assert_array_equal(read_idx(path), V)


@pytest.mark.usefixtures("large")
def test_npy_and_npz_are_mapped_in_the_order_that_they_have(tmp_path):
    np.save(tmp_path / "v.npy", np.asfortranarray(V))
    read = read_npy(tmp_path / "v.npy")
    assert (isinstance(read, np.memmap), read.flags.f_contiguous) == (True, True)
    np.testing.assert_array_equal(read, V)
    np.savez(tmp_path / "v.npz", X=V, y=np.array(["a", "b"]))
    arrays = map_npz(tmp_path / "v.npz")
    assert all(isinstance(v, np.memmap) for v in arrays.values())
    np.testing.assert_array_equal(arrays["X"], V)
    assert arrays["y"].tolist() == ["a", "b"]
    np.savez_compressed(tmp_path / "v.npz", X=V)
    arrays = map_npz(tmp_path / "v.npz")
    assert type(arrays["X"]) is np.ndarray
    np.testing.assert_array_equal(arrays["X"], V)


def test_what_is_small_is_read_at_once(tmp_path):
    np.save(tmp_path / "v.npy", V)
    assert type(read_npy(tmp_path / "v.npy")) is np.ndarray


WHOLE = idx(np.zeros((2, 3), np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file: it begins with , expected 00 00, a type, axes"),
        (b"\0\0\x07\1", "not an IDX file: it begins with 00 00 07 01, expected 00 00, a type, axes"),
        (WHOLE[:9], "the file ends inside of its header"),
        (WHOLE[:-1], "there are 5 of the 6 bytes of uint8[2, 3] in its header"),
        (WHOLE + b"\0", "there are more than the 6 bytes of uint8[2, 3] in its header"),
        (b"\0\0\x0e\2" + b"\xff" * 8, "there are 0 of the 147,573,952,520,956,936,200 bytes of float64["),
        (b"\0\0\x08\1\0\0\0\0", "shape (0,): the data is empty"),
    ],
)
def test_no_idx(content, message, tmp_path):
    for path, written in ((tmp_path / "v", content), (tmp_path / "v.gz", gzip.compress(content))):
        path.write_bytes(written)
        with pytest.raises(ValueError) as error:
            read_idx(path)
        assert str(error.value).startswith(f"{path}: {message}")
    path.write_bytes(gzip.compress(WHOLE)[:-4])
    with pytest.raises(ValueError) as error:
        read_idx(path)
    assert str(error.value).startswith(f"{path}: not a whole file of gzip (")


class Evil:
    """What would be called by whoever unpickles it."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was run",)


def test_no_npy_and_never_a_pickle(tmp_path):
    path = tmp_path / "v.npy"
    np.save(path, np.array([Evil()], object), allow_pickle=True)
    with pytest.raises(ValueError) as error:
        read_npy(path)
    assert str(error.value) == (
        f"{path}: not an array of numbers as numpy.save writes it (dtype object is none of numbers or texts)"
    )
    np.save(path, V)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError) as error:
        read_npy(path)
    assert str(error.value) == f"{path}: there are 95 of the 96 bytes of float32[2, 3, 4] in its header"


@pytest.mark.usefixtures("large")
def test_a_damaged_member_is_named(tmp_path):
    path = tmp_path / "v.npz"
    np.savez(path, X=V)
    with zipfile.ZipFile(path) as archive:
        at = archive.infolist()[0].header_offset + 200
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        map_npz(path)
    why = "X.npy is damaged"
    assert str(error.value) == f"{path}: not a .npz archive of plain arrays, as numpy.savez writes it ({why})"


@pytest.fixture
def file(tmp_path):
    def write(v, name="images"):
        (tmp_path / name).write_bytes(idx(np.asarray(v)))
        return tmp_path / name

    return write


def test_images_are_from_0_to_1_and_have_channels(file, tmp_path):
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_allclose(read_images(file(pixels)), pixels[..., None] / np.float32(255))
    np.save(tmp_path / "v.npy", pixels[..., None].repeat(3, -1) / 255)
    read = read_images(tmp_path / "v.npy")
    assert (read.shape, read.dtype) == ((2, 3, 4, 3), np.float32)
    np.testing.assert_allclose(read[..., 1], pixels / 255, rtol=1e-6)


@pytest.mark.usefixtures("large")
def test_of_a_large_file_images_are_rows(file):
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    for v in (pixels, pixels / 255):
        images = read_images(file(v))
        assert isinstance(images, Rows)
        np.testing.assert_allclose(images[np.array([1])], pixels[1:, ..., None] / 255, rtol=1e-6)


def test_no_images_and_no_labels(file):
    for v, message in (
        (np.zeros(3, np.uint8), "shape (3,), expected images (N, H, W) or (N, H, W, C), at least two"),
        (np.zeros((2, 2, 2), np.int32), "dtype int32, expected bytes, uint8, or floating-point from 0 to 1"),
        (np.full((2, 2, 2), 2.0), "image 1 has a pixel of 2, expected 0 ... 1"),
        (np.full((2, 2, 2), np.nan), "image 1 has a pixel of nan, expected 0 ... 1"),
    ):
        with pytest.raises(ValueError) as error:
            read_images(path := file(v))
        assert str(error.value) == f"{path}: {message}"
    for labels, message in (
        ([0, 1, 0], "{}: shape (3,), expected (4,): a label for each of the 4 images"),
        ([0, 0, 0, 0], "{}: all labels are 0: there is nothing to tell apart"),
        ([0, 2, 0, 2], "row 2, {}: label 2 is out of range, expected 0 ... 1 for 2 distinct labels"),
    ):
        with pytest.raises(ValueError) as error:
            read_labels(path := file(np.array(labels, np.uint8), "labels"), 4)
        assert str(error.value) == message.format(path)
    assert read_labels(file(np.array([1, 0, 2, 0], np.uint8)), 4)[1] == ["0", "1", "2"]
