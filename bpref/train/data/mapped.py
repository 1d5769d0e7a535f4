"""Files of numbers, memory-mapped where they are large: NumPy's .npy, members of an .npz, IDX, and bare numbers.

A file's length is held against what its header says before anything is read, and nothing in it is ever run: an array of
Python objects, which only pickle reads, is refused.
"""

import gzip
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jax.typing import DTypeLike

IN_MEMORY = 2**27
"""Bytes: a smaller array is read at once, and lies on the device while it is trained on."""

IN_PARTS = 2**20
"""Bytes that are unzipped together."""

OF_NO_ARRAY = (
    *(ValueError, TypeError, EOFError, KeyError, OverflowError, IndexError, SyntaxError, RecursionError, MemoryError),
    *(struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, NotImplementedError),
)
"""What NumPy, zipfile and gzip raise of a file that is none of theirs."""

OF_IDX = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""The dtype by the third byte of an IDX file (LeCun and Cortes, the MNIST database)."""

KINDS = "biufSU"
"""Of dtypes, as NumPy has them: numbers and texts."""


def read_npy(path: Path) -> np.ndarray:
    """The array of an `.npy` file; `ValueError` where it is not one of numbers or texts."""
    with path.open("rb") as file:
        return _smaller_read(_npy_at(file, path, path.stat().st_size))


def map_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` archive by name, mapped unless they are compressed; `ValueError` where it is none."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged")
            return {i.filename.removesuffix(".npy"): _member(archive, i, file, path) for i in archive.infolist()}
    except OF_NO_ARRAY as error:
        raise ValueError(f"{path}: not a .npz archive of plain arrays, as numpy.savez writes it ({error})") from error


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: BinaryIO, path: Path) -> np.ndarray:
    if info.compress_type != zipfile.ZIP_STORED:
        with archive.open(info) as member:
            return np.lib.format.read_array(member, allow_pickle=False)
    file.seek(info.header_offset + 26)
    file.seek(sum(struct.unpack("<HH", file.read(4))), 1)
    return _npy_at(file, path, file.tell() + info.file_size)


def _npy_at(file: BinaryIO, path: Path, end: int) -> np.ndarray:
    """The array whose header begins here, and whose last byte is the one before `end`, mapped."""
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version[0]}.{version[1]} is of named fields")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        with warnings.catch_warnings(action="ignore"):
            shape, is_fortran, dtype = header(file)
        if dtype.kind not in KINDS or dtype.subdtype:
            raise ValueError(f"dtype {dtype} is none of numbers or texts")
    except OF_NO_ARRAY as error:
        raise ValueError(f"{path}: not an array of numbers as numpy.save writes it ({error})") from error
    return _mapped(path, dtype, file.tell(), shape, end, "F" if is_fortran else "C")


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file, as MNIST's are, also compressed by gzip; `ValueError` where it is none."""
    with path.open("rb") as file:
        if file.read(2) == b"\x1f\x8b":
            return _unzipped_idx(path)
        file.seek(0)
        dtype, shape = _header_of_idx(path, file)
        return _smaller_read(_mapped(path, dtype, file.tell(), shape, path.stat().st_size))


def _unzipped_idx(path: Path) -> np.ndarray:
    try:
        with gzip.open(path) as file:
            dtype, shape = _header_of_idx(path, file)
            expected = math.prod(shape) * dtype.itemsize
            values = bytearray()  # and not as many bytes as the header says, which may be none of an array
            while len(values) <= expected and (part := file.read(IN_PARTS)):
                values += part
    except OF_NO_ARRAY as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: not a whole file of gzip ({error})") from error
    _require_length(path, dtype, shape, expected, len(values))
    return np.frombuffer(values, dtype).reshape(shape)


def _header_of_idx(path: Path, file: BinaryIO | gzip.GzipFile) -> tuple[np.dtype, tuple[int, ...]]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in OF_IDX or not magic[3]:
        raise ValueError(f"{path}: not an IDX file: it begins with {magic.hex(' ')}, expected 00 00, a type, axes")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise ValueError(f"{path}: the file ends inside of its header")
    return np.dtype(OF_IDX[magic[2]]), struct.unpack(f">{magic[3]}I", sizes)


def read_numbers(path: Path, dtype: DTypeLike) -> np.ndarray:
    """A file of bare numbers, one after the other, little-endian."""
    dtype, size = np.dtype(dtype).newbyteorder("<"), path.stat().st_size
    if size % dtype.itemsize:
        raise ValueError(f"{path}: {size:,} bytes are no whole number of {dtype.name}")
    return _smaller_read(_mapped(path, dtype, 0, (size // dtype.itemsize,), size))


def _mapped(path: Path, dtype: np.dtype, start: int, shape: tuple[int, ...], end: int, order: str = "C") -> np.ndarray:
    if any(n < 0 for n in shape):
        raise ValueError(f"{path}: its header says shape {shape}")
    expected = math.prod(shape) * dtype.itemsize
    _require_length(path, dtype, shape, expected, end - start)
    return np.memmap(path, dtype, "r", start, shape, order)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _require_length(path: Path, dtype: np.dtype, shape: tuple[int, ...], expected: int, there: int) -> None:
    if there != expected:
        what = "more than" if there > expected else f"{there:,} of"
        raise ValueError(f"{path}: there are {what} the {expected:,} bytes of {dtype.name}{list(shape)} in its header")
    if not expected:
        raise ValueError(f"{path}: shape {shape}: the data is empty")


def _smaller_read(v: np.ndarray) -> np.ndarray:
    return v if v.nbytes > IN_MEMORY else np.array(v)
