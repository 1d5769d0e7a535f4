"""Trees of arrays beside those that are expected."""

from typing import Any

import jax
import numpy as np

from bpref.verify.naming import path_text
from bpref.verify.numbers.measure import relative_error


def assert_same(came: Any, expected: Any, tolerance: float = 1e-12) -> None:
    """Of one structure, and every leaf of one shape and within a relative error; what is not is named by its path."""
    (came, tree), (expected, expected_tree) = (jax.tree_util.tree_flatten_with_path(v) for v in (came, expected))
    assert tree == expected_tree
    both = [(path_text(path), np.asarray(a), np.asarray(b)) for (path, a), (_, b) in zip(came, expected, strict=True)]
    assert [(path, a.shape) for path, a, _ in both] == [(path, b.shape) for path, _, b in both]
    errors = {path: float(relative_error(a, b)) for path, a, b in both}
    assert max(errors.values(), default=0) <= tolerance, errors
