"""hyper_connection: n residual streams mixed by a doubly stochastic matrix, and what a layer reads of them.

Forward, for the n streams x_i of each position, x of shape (..., n, C), and X the n C numbers of all of them:

    r = 1 / sqrt(mean X^2 + eps)        s = r W X                         (...)    (..., n (n + 2))
    Z = alpha s + bias                                                    one alpha for each of the three parts of Z
    p = sigmoid(Z_p)        q = 2 sigmoid(Z_q)                            (..., n)
    M = exp(Z_M), each column and then each row divided by its sum, `steps` times    (..., n, n)

    h = sum_j p_j x_j        m_i = sum_j M_ij x_j                         (..., C)    (..., n, C)

What a layer f makes of h is added to stream i q_i times, m_i + q_i f(h): that is `hyper_merge`. The rows of M sum to 1
and, as steps go on, its columns: M only averages, its norm is 1, and so is that of the product of any number of them,
however many layers there are. A single stream has M = 1, the residual connection.

Differential and adjoint. h and m read x by themselves,

    dp_j = sum_c dh_c x_jc        dM_ij = sum_c dm_ic x_jc
    dx_j  = p_j dh + sum_i M_ij dm_i                                      (..., n, C), so far

Z reads it too. With the steps taken back as in `sinkhorn`, unrolled, whose rows are the columns here,

    dZ_p = dp p (1 - p)        dZ_q = dq q (1 - q / 2)        dZ_M = dM through the steps
    dbias = sum dZ        dalpha = sum s dZ, over a part        ds = alpha dZ
    dW = sum (r ds) X^T                                                   the sums over all positions

and of s = r W X, delta s = r W delta X - s r^2 mean X delta X, so that what it adds to dx is made of few numbers:

    dX += W^T (r ds) - X r^2 (ds s) / (n C)                               ds s: summed over the parts

Cached: x, 1 / r, s, and the sums of rows and columns of every step, 2 n numbers each. h, m and the n n matrices of the
steps are made again; autodiff keeps two of these for each step, and X r.

Numerical care: the norm, Z, and the mixing in float32 at least; the steps in logarithms. X is not divided by its norm
before the product but s after it: n (n + 2) divisions instead of n C.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_positive, require_size
from bpref.cotangents import with_zeros
from bpref.dtypes import cast, widen
from bpref.formulas.affine import lecun_uniform, plus, times, times_transposed, transposed_times
from bpref.formulas.norm.standardize import root_mean_square
from bpref.formulas.sinkhorn import scaled, steps_back, steps_taken
from bpref.layer import Layer, Reals
from bpref.naive.dense import naive_affine, naive_norm
from bpref.rule import Case, Interval, Real, Rule, called_as, specs


class HyperConnectionParams(NamedTuple):
    W: Float[Array, "m D"]
    alpha: Float[Array, "3"]
    bias: Float[Array, " m"]


Read = tuple[Reals, Reals, Reals]
"""What a layer reads, what it is added to, and how often to each."""


class HyperConnectionCache(NamedTuple):
    x: Float[Array, "*b n C"]
    rms: Float[Array, "*b 1"]
    s: Float[Array, "*b m"]
    f: Float[Array, "steps *b n"]
    g: Float[Array, "steps *b n"]


def hyper_connection(
    steps: int = 20, eps: float = 1e-6
) -> Layer[HyperConnectionParams, Array, Read, HyperConnectionCache]:
    """What a layer reads of n residual streams, the streams mixed, and how much of the layer's output each is to get.

    `serial(hyper_connection(), parallel(f, identity(), identity()), hyper_merge())` is f with its connections, in the
    place of `residual(f)`.

    Args:
      steps: how often columns and rows are divided by their sums.
      eps: what is added to the mean square of all streams, in units of x squared.

    Returns:
      A layer with params `HyperConnectionParams(W: (n (n + 2), n C), alpha: (3,), bias: (n (n + 2),))`, their parts in
      the order of p, q and M, x `(*b, n, C)`, and y the three of h `(*b, C)`, m `(*b, n, C)` and q `(*b, n)`.
      At first W is drawn uniformly with variance 1 / (n C), alpha is 0.01 and bias such that M is nearly the identity:
      0, but -8 for M off its diagonal.

    Raises:
      ValueError: an argument is out of its range; x has no stream or no features, or others than W.
      TypeError: x is not floating-point, or a parameter not of its dtype.
    """
    who = "hyper_connection"
    steps, eps = require_size(who, "steps", steps), require_positive(who, "eps", eps)

    def init(key, x):
        n, C = x.shape[-2:]
        W = lecun_uniform(key, (n * (n + 2), n * C), n * C, x.dtype)
        off_diagonal = -8 * (1 - jnp.eye(n, dtype=x.dtype))
        bias = jnp.concatenate([jnp.zeros(2 * n, x.dtype), off_diagonal.reshape(-1)])
        return HyperConnectionParams(W, jnp.full(3, 0.01, x.dtype), bias)

    def forward(params, x: Float[Array, "*b n>0 C>0"]):
        X = flat(x)
        rms = root_mean_square(widen(X), (X.ndim - 1,), eps)
        s = times_transposed(X, params.W) / rms
        p, q, K = maps(params, s, x.shape[-2])
        one = jnp.ones_like(p)
        f, g = steps_taken(K, one, one, steps)
        M = mixing(K, f, g)
        read = jnp.sum(p[..., None] * widen(x), -2)
        y = tuple(cast(v, x.dtype) for v in (read, mixed(M, x), q))
        return y, HyperConnectionCache(x, rms, s, f, g)

    def backward(params, cache, dy):
        x, rms, s, f, g = cache
        n, wide = x.shape[-2], widen(x)
        dread, dmixed, dgates = (widen(d) for d in with_zeros(dy, (x[..., 0, :], x, x[..., 0])))
        p, q, K = maps(params, s, n)
        one, M = jnp.ones_like(p), mixing(K, f, g)
        dp = jnp.sum(dread[..., None, :] * wide, -1)
        dK = jnp.swapaxes(M * products(dmixed, wide), -1, -2)
        dK = dK + steps_back(K, one, one, f, g, jnp.sum(dK, -1), jnp.sum(dK, -2))[0]
        dZ = jnp.concatenate([dp * p * (1 - p), dgates * q * (1 - q / 2), flat(jnp.swapaxes(dK, -1, -2))], -1)
        ds = each_part(params.alpha, dZ, n) * dZ
        t = ds / rms
        of_norm = jnp.sum(ds * s, -1, keepdims=True) / (rms**2 * (n * x.shape[-1]))
        dX = times(t, widen(params.W)) - of_norm * flat(wide)
        dx = p[..., None] * dread[..., None, :] + mixed(jnp.swapaxes(M, -1, -2), dmixed) + dX.reshape(x.shape)
        examples = tuple(range(dZ.ndim - 1))
        dalpha = jnp.stack([jnp.sum(part) for part in in_parts(jnp.sum(s * dZ, examples), n)])
        dparams = transposed_times(t, flat(wide)), dalpha, jnp.sum(dZ, examples)
        return HyperConnectionParams(*(cast(d, x.dtype) for d in dparams)), cast(dx, x.dtype)

    return Layer(init, forward, backward, who)


def maps(params: HyperConnectionParams, s: Array, n: int) -> tuple[Array, Array, Array]:
    """p, q, and Z_M transposed, since the steps begin with rows."""
    Z = plus(each_part(params.alpha, s, n) * s, params.bias)
    of_p, of_q, of_M = in_parts(Z, n)
    return jax.nn.sigmoid(of_p), 2 * jax.nn.sigmoid(of_q), jnp.swapaxes(of_M.reshape(*Z.shape[:-1], n, n), -1, -2)


def mixing(K: Array, f: Array, g: Array) -> Array:
    """M, after the last step."""
    return jnp.swapaxes(scaled(K, f[-1], g[-1]), -1, -2)


def mixed(M: Array, x: Array) -> Array:
    """sum_j M_ij x_j."""
    return jnp.einsum("...ij,...jc->...ic", M, widen(x), precision=lax.Precision.HIGHEST)


def products(dm: Array, x: Array) -> Array:
    """sum_c dm_ic x_jc."""
    return jnp.einsum("...ic,...jc->...ij", dm, x, precision=lax.Precision.HIGHEST)


def each_part(alpha: Array, like: Array, n: int) -> Array:
    """The alpha of each element of Z, of `like`'s shape."""
    parts = [jnp.broadcast_to(widen(alpha[k]), size) for k, size in enumerate((n, n, n * n))]
    return jnp.broadcast_to(jnp.concatenate(parts), like.shape)


def in_parts(Z: Array, n: int) -> list[Array]:
    return jnp.split(Z, (n, 2 * n), -1)


def flat(v: Array) -> Array:
    """The last two axes as one."""
    return v.reshape(*v.shape[:-2], v.shape[-2] * v.shape[-1])


@called_as(hyper_connection)
def reference(params: HyperConnectionParams, x: Array, steps, eps) -> tuple[Array, Array, Array]:
    """As equations 7 to 9 have it."""
    n, C = x.shape[-2:]
    X = naive_norm(x.reshape(*x.shape[:-2], n * C), None, None, eps)
    alpha = jnp.repeat(params.alpha, jnp.array([n, n, n * n], jnp.int32), total_repeat_length=n * (n + 2))
    Z = naive_affine(params.W, None, X)
    Z = Z * jnp.broadcast_to(alpha, Z.shape) + jnp.broadcast_to(params.bias, Z.shape)
    M = jnp.exp(Z[..., 2 * n :].reshape(*x.shape[:-2], n, n))
    for _ in range(steps):
        M = M / jnp.sum(M, -2, keepdims=True)
        M = M / jnp.sum(M, -1, keepdims=True)
    read = jnp.einsum("...j,...jc->...c", jax.nn.sigmoid(Z[..., :n]), x)
    return read, jnp.einsum("...ij,...jc->...ic", M, x), 2 * jax.nn.sigmoid(Z[..., n : 2 * n])


_EPS = Interval(1e-6, 0.1, 1e-6)
_PARAMS = specs(HyperConnectionParams, Real("m D", -0.4, 0.4), Real("three", -1.0, 1.0), Real("m", -1.0, 1.0))

RULE = Rule(
    "hyper_connection",
    hyper_connection,
    reference,
    cases=(
        Case(
            "three streams, twenty steps",
            Real("T n C"),
            {"eps": _EPS},
            params=_PARAMS,
            fixed={"n": 3, "C": 5, "m": 15, "D": 15, "three": 3},
            timed={"T": 512, "n": 4, "C": 128, "m": 24, "D": 512, "three": 3},
        ),
        Case(
            "four streams, few steps",
            Real("T n C"),
            {"eps": _EPS, "steps": 2},
            params=_PARAMS,
            fixed={"n": 4, "C": 2, "m": 24, "D": 8, "three": 3},
        ),
    ),
    cite="Xie et al., 'mHC: manifold-constrained hyper-connections' (2025), arXiv:2512.24880, equations 7 to 9",
    covers=("mhc", "manifold constrained hyper connections"),
)
