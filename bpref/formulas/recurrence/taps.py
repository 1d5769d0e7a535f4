"""A depthwise causal convolution of packed sequences, whose first row has all that its window reaches before it.

    c_tf = sum_o v_t+o,f W_fo [n_t+o = n_t+k-1] + b_f        v: (N, k - 1 + T, F), of which row t + k - 1 is the present

with n the number of the sequence that a row is of. Differential, with the same rows shut out:

    dv_t+o,f = sum_o dc_tf W_fo      dW_fo = sum_nt dc_tf v_t+o,f      db_f = sum_nt dc_tf
"""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from bpref.dtypes import cast, widen
from bpref.formulas.long_sums import sum_over

Rows = Float[Array, "N k-1+T F"]
Numbers = Int[Array, "N k-1+T"] | None


def taps(W: Float[Array, "F k 1"], b: Float[Array, " F"] | None, v: Rows, n: Numbers) -> Float[Array, "N T F"]:
    """c, in the dtype of v."""
    wide = widen(W)
    c = _sum([seen * wide[None, None, :, o, 0] for o, seen in enumerate(_windows(widen(v), n, W.shape[1]))])
    return cast(c if b is None else c + widen(b)[None, None], v.dtype)


def pull_taps(
    W: Float[Array, "F k 1"], b: Float[Array, " F"] | None, v: Rows, n: Numbers, dc: Float[Array, "N T F"]
) -> tuple[Array, Array | None, Array]:
    """dW, db and dv."""
    k, wide = W.shape[1], widen(dc)
    windows = _windows(widen(v), n, k)
    dW = jnp.stack([sum_over(wide * seen, (0, 1)) for seen in windows], 1)[..., None]
    parts = []
    for o, same in enumerate(_same(n, k)):
        part = wide * widen(W)[None, None, :, o, 0]
        part = part if same is None else jnp.where(same, part, 0)
        parts.append(lax.pad(part, jnp.zeros((), part.dtype), [(0, 0, 0), (o, k - 1 - o, 0), (0, 0, 0)]))
    db = None if b is None else cast(sum_over(wide, (0, 1)), b.dtype)
    return cast(dW, W.dtype), db, cast(_sum(parts), v.dtype)


def _windows(v: Array, n: Numbers, k: int) -> list[Array]:
    """For each offset the rows that the T windows have there, 0 where they are of another sequence."""
    T = v.shape[1] - k + 1
    rows = [v[:, o : o + T] for o in range(k)]
    return [row if same is None else jnp.where(same, row, 0) for row, same in zip(rows, _same(n, k), strict=True)]


def _same(n: Numbers, k: int) -> list[Array | None]:
    """For each offset whether the row there is of the window's own sequence, (N, T, 1)."""
    if n is None:
        return [None] * k
    T = n.shape[1] - k + 1
    return [(n[:, o : o + T] == n[:, k - 1 :])[..., None] for o in range(k)]


def _sum(parts: list[Array]) -> Array:
    return sum(parts[1:], parts[0])
