"""column_parallel_linear: Z = A W^T + b, each device with some of the outputs.

Forward, with P devices, of which device p holds W_p of shape (m, d) and b_p of shape (m,), rows of W and b: the columns
of W^T. A of shape (..., T, d) is alike on all devices, or, `sequence_parallel`, split along T:

    A    = A, or the blocks of T joined (all-gather)                      A: (..., T, d)
    Z_p  = A W_p^T + b_p                                                  Z_p: (..., T, m), in whole (..., T, P m)

Differential (n runs over all examples, k over a device's outputs, j over inputs):

    dJ = sum_p sum_nk dZ_pnk (sum_j (delta A_nj) W_pkj + sum_j A_nj (delta W_pkj) + delta b_pk)

A stands in the share of every device, W_p and b_p in that of one. The factor of each perturbation:

    dW_p = dZ_p^T A                                                       (m, d)
    db_p = dZ_p summed over the examples                                  (m,)
    dA   = sum_p dZ_p W_p        summed over the devices                  (..., T, d)

So with A alike nothing crosses in the forward, and the sum of dA, an all-reduce, in the backward: Megatron's f. With A
split the forward has an all-gather; its adjoint, on top of the sum, leaves each device its block of T: a
reduce-scatter. An all-reduce is one of these after the other, so that both send equally much.

Cached: A as it came. Where it is split it is joined once more in the backward, for dW: a second all-gather, and 1 / P
of the memory.

Numerical care: products accumulate in at least float32; dA is summed over the devices in that, and rounded once.
"""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags, require_size
from bpref.dtypes import cast
from bpref.formulas.affine import bias_cotangent, lecun_uniform, plus, times, times_transposed, transposed_times
from bpref.layer import Layer, Reals
from bpref.naive.blocks import apart, whole
from bpref.naive.dense import naive_affine
from bpref.over_devices import ALIKE, SPLIT, axis_name, joined, laid_out, own_key, require_alike, summed_and_split
from bpref.rule import Case, Real, Rule, Size
from bpref.rules.linear.linear import LinearCache, LinearParams


def column_parallel_linear(
    features: int, axis: str | int, bias: bool = True, sequence_parallel: bool = False
) -> Layer[LinearParams, Array, Reals, LinearCache]:
    """Z_p = A W_p^T + b_p: of the outputs each device has its own.

    Args:
      features: how many outputs m one device has, P m in whole.
      axis: the name of the axis of the mesh, for `jax.shard_map`; or a number P of blocks, all on one device.
      bias: whether there is a b.
      sequence_parallel: whether A is split along T, and joined first.

    Returns:
      A layer with params `LinearParams(W: (m, d), b: (m,) or None)`, blocks of rows of those of `linear(P * m)`; x
      `(..., T, d)`, alike on all devices, or of `sequence_parallel` a block of T; y `(..., T, m)`, a block of the
      outputs. With P blocks on one device, W `(P, m, d)`, b `(P, m)`, y `(P, ..., T, m)`, and x, where it is split,
      `(P, ..., T, d)`.

    Example:
      >>> layer = bpref.column_parallel_linear(4, axis=2)
      >>> params = layer.init(jax.random.key(0), X)
      >>> y, dparams, dX = bpref.backpropagate(layer, params, X, jnp.ones((2, len(X), 4)))

    Raises:
      ValueError: `features` is not a positive integer; `axis` is neither a name nor a number; shapes do not fit; x,
        which is to be alike, varies along the axis by its type.
      TypeError: x is not floating-point, or not of W's dtype; b is not of W's dtype.
    """
    who = "column_parallel_linear"
    require_flags(who, bias=bias, sequence_parallel=sequence_parallel)
    features, name = require_size(who, "features", features), axis_name(who, axis)

    def init(key, x):
        d = x.shape[-1]
        W = lecun_uniform(own_key(key, name), (features, d), d, x.dtype)
        return LinearParams(W, jnp.zeros((features,), x.dtype) if bias else None)

    def forward(params, A: Float[Array, "... T d>0"]):
        W, b = params
        if not sequence_parallel:
            require_alike(who, name, x=A)
        Z = plus(times_transposed(_whole(A), W), b)
        return cast(Z, A.dtype), LinearCache(A)

    def backward(params, cache, dZ):
        W, b = params
        dW = cast(transposed_times(dZ, _whole(cache.A)), W.dtype)
        db = bias_cotangent(dZ, b)
        dA = times(dZ, W)
        dA = summed_and_split(dA, name, -2) if sequence_parallel else lax.psum(dA, name)
        return LinearParams(dW, db), cast(dA, dZ.dtype)

    def _whole(A):
        return joined(A, name, -2) if sequence_parallel else A

    of_x = SPLIT if sequence_parallel else ALIKE
    return laid_out(Layer(init, forward, backward, who), axis, SPLIT, x=of_x, cache=of_x, y=SPLIT)


def reference(
    params: LinearParams, x: Array, features: int, axis: str | int, bias: bool = True, sequence_parallel: bool = False
) -> Array:
    A = whole(x, -2) if sequence_parallel else x
    Z = naive_affine(whole(params.W, 0), None if params.b is None else whole(params.b, 0), A)
    return apart(Z, len(params.W), -1)


_NOT_EMPTY = ("P", "d", "m")
_HYPER = {"features": Size("m"), "axis": Size("P")}

RULE = Rule(
    "column_parallel_linear",
    column_parallel_linear,
    reference,
    cases=(
        Case("tensor parallel", Real("S T d"), _HYPER, _NOT_EMPTY, timed={"S": 8, "T": 64, "d": 256, "m": 64, "P": 4}),
        Case(
            "sequence parallel, no bias",
            Real("P S T d"),
            {**_HYPER, "bias": False, "sequence_parallel": True},
            _NOT_EMPTY,
        ),
    ),
    cite="Shoeybi et al., 'Megatron-LM', arXiv:1909.08053, section 3; sequence parallel: arXiv:2205.05198, section 4.2",
    covers=("tensor parallel",),
)
