"""A constant sparse matrix applied along one axis: a few shifted copies, weighted and added, in one pass."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

MANY = 16
"""Non-zero elements in a row from which on they are gathered at once if all are 1, else the matrix is a dense one."""


def multiply_along(matrix: np.ndarray, x: Array, axis: int) -> Array:
    """`y_o = sum_i matrix_oi x_i` along an axis, which has the matrix's columns in x and its rows in y.

    Each non-zero element of a row is a slice that is gathered, and XLA makes one loop of them and their sum: so is the
    transposed matrix, and no scatter is needed.
    """
    counts = np.count_nonzero(matrix, axis=1)
    most = int(counts.max(initial=1))
    columns = np.argsort(matrix == 0, axis=1, kind="stable")[:, :most]
    weights = np.take_along_axis(matrix, columns, 1)
    nowhere = x.shape[axis]
    if most > MANY and np.all(weights == (weights != 0)):
        columns = np.where(weights == 0, nowhere, columns)
        return jnp.sum(jnp.take(x, columns, axis=axis, mode="fill", fill_value=0), axis + 1)
    if most > MANY:
        y = lax.dot_general(x, jnp.asarray(matrix, x.dtype), (((axis,), (1,)), ((), ())))
        return jnp.moveaxis(y, -1, axis)
    # A weight of 0 is of an element that the row has anyway, or of none: 0 times a NaN elsewhere would be NaN.
    columns = np.where(weights == 0, np.where(counts, columns[:, 0], nowhere)[:, None], columns)
    mode = "clip" if counts.all() else "fill"
    taken = [jnp.take(x, column, axis=axis, mode=mode, fill_value=0) for column in columns.T]
    if most == 1 and np.all(weights == (counts > 0)[:, None]):
        return taken[0]
    shape = taken[0].shape
    terms = [
        v * lax.broadcast_in_dim(jnp.asarray(w, x.dtype), shape, (axis,)) for v, w in zip(taken, weights.T, strict=True)
    ]
    return sum(terms[1:], terms[0])
