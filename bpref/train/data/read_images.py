"""read_images: a user's own images, and the class of each, in IDX files as MNIST's or NumPy's .npy."""

from pathlib import Path

import numpy as np

from bpref.train.data import mapped
from bpref.train.data.read_npz import labels_of
from bpref.train.data.rows import Change, Examples, Rows, examples, in_parts
from bpref.train.data.table import count, require_classes


def read_images(path: Path) -> Examples:
    """Images (N, H, W, C) from 0 to 1, float32; of a large file `Rows`, and what is compressed is read at once.

    Args:
      path: IDX, compressed by gzip or not, or .npy: (N, H, W) or (N, H, W, C), bytes or floating-point from 0 to 1.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is not such a file.
    """
    read = _array_in(path)
    if read.ndim not in (3, 4) or min(read.shape) < 1 or len(read) < 2:
        raise ValueError(f"{path}: shape {read.shape}, expected images (N, H, W) or (N, H, W, C), at least two")
    if read.dtype != np.uint8 and not np.issubdtype(read.dtype, np.floating):
        raise ValueError(f"{path}: dtype {read.dtype.name}, expected bytes, uint8, or floating-point from 0 to 1")
    images = examples(read if read.ndim == 4 else read[..., None])
    if images.dtype == np.uint8:
        return _made(images, lambda v: v.astype(np.float32) / 255)
    for first, part in in_parts(images):
        outside = np.argwhere(~((part >= 0) & (part <= 1)))
        if outside.size:
            image = int(outside[0, 0])
            value = part[tuple(outside[0])]
            raise ValueError(f"{path}: image {first + image + 1} has a pixel of {value:g}, expected 0 ... 1")
    return _made(images, lambda v: v.astype(np.float32))


def read_labels(path: Path, N: int) -> tuple[np.ndarray, list[str]]:
    """The labels of N images, (N,) from 0 to C-1, int32, and the names of the C classes.

    Raises:
      OSError: the file cannot be read.
      TypeError, ValueError: it is not of so many labels, or one of them does not occur.
    """
    read = np.asarray(_array_in(path))
    if read.shape != (N,):
        raise ValueError(f"{path}: shape {read.shape}, expected ({N},): a label for each of the {count(N, 'image')}")
    labels, classes = labels_of(read, str(path))
    require_classes(str(path), N, classes)
    if len(classes) < 2:
        raise ValueError(f"{path}: all labels are {read[0]}: there is nothing to tell apart")
    return labels.astype(np.int32), list(classes)


def _made(images: Examples, change: Change) -> Examples:
    return images.through(change) if isinstance(images, Rows) else change(images)


def _array_in(path: Path) -> np.ndarray:
    return mapped.read_npy(path) if path.suffix.lower() == ".npy" else mapped.read_idx(path)
