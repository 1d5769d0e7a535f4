"""triangle_multiplication: pairs updated by the products of the two other edges of all their triangles, unadded.

Forward, with x of shape (*b, N, N, c), a feature vector for each ordered pair of N nodes, h hidden channels, sigma the
sigmoid, and m the mask, 1 where there is none; every equation but that of t is of one pair ij:

    n = gamma xhat + beta,   xhat = (x - mu) r                            (*b, N, N, c)      layer norm
    (p, q, u, v) = W_in n + b_in                                          (*b, N, N, 4 h)
    a = m sigma(p) u,   b = m sigma(q) v                                  (*b, N, N, h)
    t_ij = sum_k a_ik b_jk                                                outgoing: i -> k and j -> k
    t_ij = sum_k a_ki b_kj                                                incoming: k -> i and k -> j
    s = gamma' that + beta',   that = (t - mu') r'                        (*b, N, N, h)
    w = W_out s + b_out,   f = W_gate n + b_gate                          (*b, N, N, c)
    y = sigma(f) w

Differential, of each pair but for t's; the norms as in `layer_norm`, products as ever:

    delta y = sigma(f) delta w + w sigma'(f) delta f
    delta t_ij = sum_k delta a_ik b_jk + a_ik delta b_jk                  incoming: of ki and kj
    delta a = m (sigma(p) delta u + u sigma'(p) delta p)                  delta b likewise

The factors, read from the last equation to the first, sigma' = sigma (1 - sigma):

    dw = sigma(f) dy,   df = w sigma'(f) dy                               (*b, N, N, c)
    dW_out = sum dw s^T,   ds = W_out^T dw,   dt by the norm's adjoint    (c, h), (*b, N, N, h)
    da_ik = sum_j dt_ij b_jk,   db_jk = sum_i dt_ij a_ik                  incoming: da_ki, of b_kj; db_kj, of a_ki
    du = m sigma(p) da,   dp = m u sigma'(p) da                           dv, dq likewise of db
    dW_in = sum (dp, dq, du, dv) n^T,   dW_gate = sum df n^T              (4 h, c), (c, c)
    dn = W_in^T (dp, dq, du, dv) + W_gate^T df,   dx by the norm's adjoint

and sums over all pairs for the b.

Cached: x and the mask, two numbers for each row of x and of t, (p, q, u, v), t, w and f: the least from which no
product of matrices is made a second time. a, b, n and s are a few operations an element.

Numerical care: norms and sigmoids in float32 at least; products of half precision are summed in it, and t, w and what
W_in makes rounded to x's dtype.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_choice, require_positive, require_size
from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.affine import closed, lecun_uniform, plus, times, times_transposed, total, unmade
from bpref.formulas.norm.pre_norm import NormParams, Statistics, init_norm, normalize, pull_normalize, statistics
from bpref.formulas.pairs_of_nodes import PairsOfNodes, as_pairs, like_pairs, mirrored
from bpref.formulas.recurrence.gates import blocks, sigmoid_slope
from bpref.layer import Layer, Reals
from bpref.naive.dense import naive_affine, naive_norm
from bpref.rule import Boolean, Case, Interval, Real, Rule, Size, called_as, specs

EDGES = ("outgoing", "incoming")


class TriangleMultiplicationParams(NamedTuple):
    norm: NormParams
    W_in: Float[Array, "4*h c"]
    b_in: Float[Array, " 4*h"]
    norm_out: NormParams
    W_out: Float[Array, "c h"]
    b_out: Float[Array, " c"]
    W_gate: Float[Array, "c c"]
    b_gate: Float[Array, " c"]


class TriangleMultiplicationCache(NamedTuple):
    x: Float[Array, "*b N N c"] | PairsOfNodes
    of_x: Statistics
    projected: Float[Array, "*b N N 4*h"]
    t: Float[Array, "*b N N h"]
    of_t: Statistics
    w: Float[Array, "*b N N c"]
    f: Float[Array, "*b N N c"]


def triangle_multiplication(
    hidden: int, edges: str = "outgoing", eps: float = 1e-5
) -> Layer[TriangleMultiplicationParams, Array | PairsOfNodes, Reals, TriangleMultiplicationCache]:
    """The multiplicative update of pairs by triangles (AlphaFold 2); `residual` of it is a step of the pair stack.

    Args:
      hidden: h, the channels of the products.
      edges: "outgoing" (algorithm 11) or "incoming" (algorithm 12).
      eps: what is added to the variances, in units of x squared.

    Returns:
      A layer with params `TriangleMultiplicationParams(norm: (scale, shift), W_in: (4 h, c), b_in, norm_out, W_out:
      (c, h), b_out, W_gate: (c, c), b_gate)`, x `(*b, N, N, c)`, or `PairsOfNodes(z, mask)`, and y `(*b, N, N, c)`. The
      W are drawn uniformly with variance 1 over the number of their inputs; scales are ones, and shifts and b zeros.

    Raises:
      ValueError: an argument is out of its range; x has no pairs, or as many of the first nodes as of the second.
      TypeError: x is not floating-point, or it or a parameter is not of W_in's dtype.
    """
    who = "triangle_multiplication"
    h = require_size(who, "hidden", hidden)
    is_incoming = require_choice(who, "edges", edges, EDGES) == "incoming"
    eps = require_positive(who, "eps", eps)

    def init(key, x):
        z = as_pairs(x).z
        c, dtype = z.shape[-1], z.dtype
        keys = jax.random.split(key, 3)
        return TriangleMultiplicationParams(
            init_norm("layer", c, dtype),
            lecun_uniform(keys[0], (4 * h, c), c, dtype),
            jnp.zeros(4 * h, dtype),
            init_norm("layer", h, dtype),
            lecun_uniform(keys[1], (c, h), h, dtype),
            jnp.zeros(c, dtype),
            lecun_uniform(keys[2], (c, c), c, dtype),
            jnp.zeros(c, dtype),
        )

    def forward(params, x: Float[Array, "*b N>0 N c>0"] | PairsOfNodes):
        z, mask = as_pairs(x)
        of_x = statistics("layer", z, eps)
        n = normalize(params.norm, z, of_x)
        projected = cast(plus(times_transposed(n, params.W_in), params.b_in), z.dtype)
        a, b = edges_of(projected, mask)
        t = cast(products("ikc,jkc->ijc", a, b), z.dtype)
        of_t = statistics("layer", t, eps)
        s = normalize(params.norm_out, t, of_t)
        w = cast(plus(times_transposed(s, params.W_out), params.b_out), z.dtype)
        f = cast(plus(times_transposed(n, params.W_gate), params.b_gate), z.dtype)
        y = cast(jax.nn.sigmoid(widen(f)) * widen(w), z.dtype)
        return y, TriangleMultiplicationCache(x, of_x, projected, t, of_t, w, f)

    def opened(params: TriangleMultiplicationParams, cache: TriangleMultiplicationCache, dy: Array):
        x, of_x, projected, t, of_t, w, f = cache
        z, mask = as_pairs(x)
        gate, wide = jax.nn.sigmoid(widen(f)), widen(dy)
        dw, df = (cast(d, z.dtype) for d in (gate * wide, widen(w) * sigmoid_slope(gate) * wide))
        dnorm_out, dt = pull_normalize(params.norm_out, t, of_t, times(dw, params.W_out))
        dt, (a, b) = cast(dt, z.dtype), edges_of(projected, mask)
        da, db = products("ijc,jkc->ikc", dt, b), products("ijc,ikc->jkc", dt, a)
        dprojected = cast(pull_edges(projected, mask, da, db), z.dtype)
        n = normalize(params.norm, z, of_x)
        dnorm, dz = pull_normalize(params.norm, z, of_x, times(dprojected, params.W_in) + times(df, params.W_gate))
        s = normalize(params.norm_out, t, of_t)
        dparams = TriangleMultiplicationParams(
            dnorm,
            unmade(dprojected, n),
            total(dprojected, params.b_in),
            dnorm_out,
            unmade(dw, s),
            total(dw, params.b_out),
            unmade(df, n),
            total(df, params.b_gate),
        )
        return dparams, like_pairs(cast(dz, z.dtype), x)

    def edges_of(projected, mask):
        """a and b; of incoming edges mirrored."""
        p, q, u, v = blocks(widen(projected), 4)
        both = (seen(jax.nn.sigmoid(gate) * value, mask) for gate, value in ((p, u), (q, v)))
        return tuple(cast(mirrored(e) if is_incoming else e, projected.dtype) for e in both)

    def pull_edges(projected, mask, da, db):
        p, q, u, v = blocks(widen(projected), 4)
        da, db = (seen(mirrored(d) if is_incoming else d, mask) for d in (da, db))
        of_p, of_q = jax.nn.sigmoid(p), jax.nn.sigmoid(q)
        parts = da * u * sigmoid_slope(of_p), db * v * sigmoid_slope(of_q), da * of_p, db * of_q
        return jnp.concatenate(parts, -1)

    return Layer(init, forward, closed(opened), who, opened=opened)


def products(letters: str, a: Array, b: Array) -> Array:
    """The sums of products along the nodes, for each channel, in at least float32."""
    first, second = (f"...{part}" for part in letters.split("->")[0].split(","))
    third = letters.split("->")[1]
    return jnp.einsum(f"{first},{second}->...{third}", a, b, preferred_element_type=wide_dtype(a.dtype))


def seen(v: Array, mask: Array | None) -> Array:
    """v, 0 where there is no such pair."""
    return v if mask is None else jnp.where(mask[..., None], v, 0)


@called_as(triangle_multiplication)
def reference(params: TriangleMultiplicationParams, x: Array | PairsOfNodes, edges, eps, **_) -> Array:
    z, mask = x if isinstance(x, tuple) else (x, None)
    n = naive_norm(z, *params.norm, eps, "layer")
    p, q, u, v = jnp.split(naive_affine(params.W_in, params.b_in, n), 4, -1)
    a, b = jax.nn.sigmoid(p) * u, jax.nn.sigmoid(q) * v
    if mask is not None:
        a, b = (e * mask[..., None].astype(e.dtype) for e in (a, b))
    letters = "...ikc,...jkc->...ijc" if edges == "outgoing" else "...kic,...kjc->...ijc"
    t = naive_norm(jnp.einsum(letters, a, b), *params.norm_out, eps, "layer")
    gate = jax.nn.sigmoid(naive_affine(params.W_gate, params.b_gate, n))
    return gate * naive_affine(params.W_out, params.b_out, t)


_EPS = Interval(1e-3, 0.1, 1e-2)

RULE = Rule(
    "triangle_multiplication",
    triangle_multiplication,
    reference,
    cases=(
        Case(
            "outgoing",
            Real("B N N c", -2.0, 2.0),
            {"hidden": Size("h"), "eps": _EPS},
            never_empty=("N", "c", "h"),
            fixed={"B": 2, "N": 4},
            timed={"B": 1, "N": 64, "c": 32, "h": 32},
        ),
        Case(
            "incoming, a mask",
            specs(PairsOfNodes, Real("B N N c", -2.0, 2.0), Boolean("B N N")),
            {"hidden": 3, "edges": "incoming", "eps": _EPS},
            never_empty=("c",),
            fixed={"B": 2, "N": 3},
        ),
    ),
    cite="Jumper et al., 'Highly accurate protein structure prediction with AlphaFold' (2021), supplement, algorithms "
    "11 and 12",
    covers=("triangle multiplicative update",),
)
