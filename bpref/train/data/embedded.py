"""The data sets that come with scikit-learn, as `Table`s; nothing is downloaded."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bpref.train.data.table import Table


def diabetes() -> Table:
    """442 patients, 10 measurements; how far the disease went in a year, 25 to 346 (Efron et al., 2004)."""
    from sklearn.datasets import load_diabetes

    data: Any = load_diabetes(scaled=False)
    return Table(data["data"], data["target"], tuple(data["feature_names"]), "progression")


def digits() -> Table:
    """1797 handwritten digits of 8 x 8 pixels, 0 to 16; the 3 pixels that are blank in all of them are left out."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    X, names = data["data"], data["feature_names"]
    varying = X.min(axis=0) < X.max(axis=0)
    features = tuple(name for name, keep in zip(names, varying, strict=True) if keep)
    return Table(X[:, varying], data["target"], features, "digit", tuple(str(c) for c in data["target_names"]))


def digits_as_images() -> tuple[np.ndarray, np.ndarray]:
    """The same digits as images (N, 8, 8, 1) from 0 to 1, and their labels (N,)."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    return (data["images"][..., None] / 16).astype(np.float32), data["target"].astype(np.int32)


EMBEDDED: dict[str, Callable[[], Table]] = {"diabetes": diabetes, "digits": digits}
"""Every embedded data set, by name."""
