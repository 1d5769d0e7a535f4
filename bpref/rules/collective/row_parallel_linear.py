"""row_parallel_linear: Z = A W^T + b, each device with some of the inputs.

Forward, with P devices, of which device p holds the features A_p of shape (..., T, d) and the columns W_p of W, of
shape (m, d): the rows of W^T. b of shape (m,) is alike on all devices:

    Z = sum_p A_p W_p^T + b            summed over the devices            (..., T, m)

Z is alike on all devices then, or, `sequence_parallel`, split along T.

Differential (n runs over all examples, k over outputs, j over a device's inputs):

    dJ = sum_nk dZ_nk (sum_pj (delta A_pnj) W_pkj + sum_pj A_pnj (delta W_pkj) + delta b_k)

A_p and W_p stand in one device's share, and dZ is the same for all. The factor of each perturbation:

    dW_p = dZ^T A_p                                                       (m, d)
    dA_p = dZ W_p                                                         (..., T, d)
    db   = dZ summed over the examples                                    (m,)

So the forward has the sum of Z, an all-reduce, and with Z alike nothing crosses in the backward: Megatron's g, of which
f in `column_parallel_linear` is the conjugate. With Z split the forward has a reduce-scatter, and its adjoint joins the
blocks of dZ: an all-gather. b is added to each device's block then, and the sum of db is over the devices too.

b is added once, after the sum; on every device before it, Z would have P b, and db, wrong as well, would agree with it.

Cached: A_p alone, which dW_p needs.

Numerical care: products accumulate in at least float32; Z is summed over the devices in that, b added, and then rounded
once.
"""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags, require_size
from bpref.dtypes import cast, widen
from bpref.formulas.affine import bias_cotangent, lecun_uniform, plus, times, times_transposed, transposed_times
from bpref.layer import Layer, Reals
from bpref.naive.blocks import apart, whole
from bpref.naive.dense import naive_affine
from bpref.over_devices import ALIKE, SPLIT, axis_name, joined, laid_out, own_key, require_alike, summed_and_split
from bpref.rule import Case, Real, Rule, Size
from bpref.rules.linear.linear import LinearCache, LinearParams


def row_parallel_linear(
    features: int, axis: str | int, bias: bool = True, sequence_parallel: bool = False
) -> Layer[LinearParams, Array, Reals, LinearCache]:
    """Z = sum_p A_p W_p^T + b: of the inputs each device has its own.

    Args:
      features: the number of outputs m, in whole.
      axis: the name of the axis of the mesh, for `jax.shard_map`; or a number P of blocks, all on one device.
      bias: whether there is a b.
      sequence_parallel: whether Z is split along T, and so summed where it is needed alone.

    Returns:
      A layer with params `LinearParams(W: (m, d), b: (m,) or None)`, W a block of the columns of that of `linear(m)` of
      P d inputs, b alike on all devices; x `(..., T, d)`, a block of the features; y `(..., T, m)`, alike on all
      devices, or of `sequence_parallel` `(..., T / P, m)`, a block of T. With P blocks on one device, W `(P, m, d)`,
      b `(m,)`, x `(P, ..., T, d)`, and y, where it is split, `(P, ..., T / P, m)`.

    Example:
      >>> layer = bpref.row_parallel_linear(4, axis=2)
      >>> both = jnp.stack([X, X])
      >>> y, cache = layer.forward(layer.init(jax.random.key(0), both), both)

    Raises:
      ValueError: `features` is not a positive integer; `axis` is neither a name nor a number; shapes do not fit; T is
        no multiple of P where it is to be split; b varies along the axis by its type.
      TypeError: x is not floating-point, or not of W's dtype; b is not of W's dtype.
    """
    who = "row_parallel_linear"
    require_flags(who, bias=bias, sequence_parallel=sequence_parallel)
    features, name = require_size(who, "features", features), axis_name(who, axis)

    def init(key, x):
        d = x.shape[-1]
        W = lecun_uniform(own_key(key, name), (features, d), d * lax.axis_size(name), x.dtype)
        return LinearParams(W, jnp.zeros((features,), x.dtype) if bias else None)

    def forward(params, A: Float[Array, "... T d>0"]):
        W, b = params
        T, P = A.shape[-2], lax.axis_size(name)
        if sequence_parallel and T % P:
            raise ValueError(f"{who}: x has {T} positions T, expected a multiple of the {P} devices along {name!r}")
        if b is not None:
            require_alike(who, name, b=b)
        Z = times_transposed(A, W)
        Z = summed_and_split(Z, name, -2) if sequence_parallel else lax.psum(Z, name)
        return cast(plus(Z, b), A.dtype), LinearCache(A)

    def backward(params, cache, dZ):
        W, b = params
        db = _over_examples(dZ, b)
        if sequence_parallel:
            dZ = joined(dZ, name, -2)
        dW = cast(transposed_times(dZ, cache.A), W.dtype)
        return LinearParams(dW, db), cast(times(dZ, W), dZ.dtype)

    def _over_examples(dZ, b):
        if b is None:
            return None
        db = bias_cotangent(dZ, widen(b))
        return cast(lax.psum(db, name) if sequence_parallel else db, b.dtype)

    lies, of_y = LinearParams(SPLIT, ALIKE), SPLIT if sequence_parallel else ALIKE
    return laid_out(Layer(init, forward, backward, who), axis, lies, x=SPLIT, cache=SPLIT, y=of_y)


def reference(
    params: LinearParams, x: Array, features: int, axis: str | int, bias: bool = True, sequence_parallel: bool = False
) -> Array:
    Z = naive_affine(whole(params.W, -1), params.b, whole(x, -1))
    return apart(Z, len(x), -2) if sequence_parallel else Z


_NOT_EMPTY = ("P", "d", "m")
_HYPER = {"features": Size("m"), "axis": Size("P")}

RULE = Rule(
    "row_parallel_linear",
    row_parallel_linear,
    reference,
    cases=(
        Case(
            "tensor parallel, no bias",
            Real("P S T d"),
            {**_HYPER, "bias": False},
            _NOT_EMPTY,
            timed={"P": 4, "S": 8, "T": 64, "d": 64, "m": 256},
        ),
        Case(
            "sequence parallel",
            Real("P S T d"),
            {**_HYPER, "sequence_parallel": True},
            _NOT_EMPTY,
            fixed={"P": 2, "T": 4},
        ),
    ),
    cite="Shoeybi et al., 'Megatron-LM', arXiv:1909.08053, section 3; sequence parallel: arXiv:2205.05198, section 4.2",
)
