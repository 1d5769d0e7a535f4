"""triangle_attention: edges from one node attend to each other, each pair weighed by the third edge of their triangle.

Forward, with x of shape (*b, N, N, c), a feature vector for each ordered pair of nodes, H heads of D features, sigma
the sigmoid; around the starting node (i of ij) it is, every equation but that of o of one pair ij:

    n = gamma xhat + beta,   xhat = (x - mu) r                            (*b, N, N, c)      layer norm
    (q, k, v) = W_qkv n,   e = W_bias n                                   (*b, N, N, 3 H D), (*b, N, N, H)
    o_ij = sum_k p_ijk v_ik,   p_ijk = softmax_k(q_ij . k_ik / sqrt(D) + e_jk)       of each head; over k of the mask
    f = W_gate n + b_gate                                                 (*b, N, N, H D)
    y = W_out (sigma(f) o) + b_out                                        (*b, N, N, c)

and around the ending node all of it with ji in the place of ij: edges into one node.

Differential: that of the norm as in `layer_norm`, of attention as in `dot_product_attention`, all else products:

    delta y = W_out (sigma(f) delta o + o sigma'(f) delta f) + (delta W_out) (sigma(f) o) + delta b_out

The factors, read from the last equation to the first, sigma' = sigma (1 - sigma):

    dW_out = sum dy (sigma(f) o)^T,   dg = W_out^T dy                     (c, H D), (*b, N, N, H D)
    do = sigma(f) dg,   df = o sigma'(f) dg                               (*b, N, N, H D)
    dq, dk, dv by attention's adjoint, and de_jk = sum_i p_ijk (do_ij . v_ik - do_ij . o_ij)
    dW_qkv = sum (dq, dk, dv) n^T,   dW_bias = sum de n^T,   dW_gate = sum df n^T
    dn = W_qkv^T (dq, dk, dv) + W_bias^T de + W_gate^T df                 (*b, N, N, c),   dx by the norm's adjoint

and sums over all pairs for the b. e is the same for all i: its cotangent is summed over them.

Cached: x and the mask, two numbers for each row of x and for each query of a head, (q, k, v), e, f and o: the least
from which no product of matrices is made a second time. No array has N^3 elements where `block` is less than N.

Numerical care: the norm, logits and sigmoids in float32 at least, block by block with a running maximum; products of
half precision are summed in it. A query whose edges are all masked has o = 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_choice, require_positive, require_size
from bpref.dtypes import cast, widen
from bpref.formulas.affine import closed, lecun_uniform, plus, times, times_transposed, total, unmade
from bpref.formulas.attention.attend import Kept, attend, pull_attend
from bpref.formulas.attention.attention_grid import Extras, Pattern
from bpref.formulas.attention.heads import Heads, by_head, by_position, features_of_head
from bpref.formulas.norm.pre_norm import NormParams, Statistics, init_norm, normalize, pull_normalize, statistics
from bpref.formulas.pairs_of_nodes import PairsOfNodes, as_pairs, like_pairs, mirrored
from bpref.formulas.recurrence.gates import blocks, sigmoid_slope
from bpref.layer import Layer, Reals
from bpref.naive.dense import naive_affine, naive_norm
from bpref.rule import Boolean, Case, Interval, Real, Rule, Size, called_as, specs

NODES = ("starting", "ending")


class TriangleAttentionParams(NamedTuple):
    norm: NormParams
    W_qkv: Float[Array, "3*H*D c"]
    W_bias: Float[Array, "H c"]
    W_gate: Float[Array, "H*D c"]
    b_gate: Float[Array, " H*D"]
    W_out: Float[Array, "c H*D"]
    b_out: Float[Array, " c"]


class TriangleAttentionCache(NamedTuple):
    x: Float[Array, "*b N N c"] | PairsOfNodes
    of_x: Statistics
    q: Float[Array, "*b N N H D"]
    k: Float[Array, "*b N N H D"]
    v: Float[Array, "*b N N H D"]
    e: Float[Array, "*b N N H"]
    f: Float[Array, "*b N N H*D"]
    o: Float[Array, "*b N N H D"]
    m: Float[Array, "*b N N H"]
    S: Float[Array, "*b N N H"]


def triangle_attention(
    heads: int, node: str = "starting", head_dim: int | None = None, eps: float = 1e-5, block: int = 128
) -> Layer[TriangleAttentionParams, Array | PairsOfNodes, Reals, TriangleAttentionCache]:
    """Gated self-attention of edges that share a node (AlphaFold 2); `residual` of it is a step of the pair stack.

    Args:
      heads: H.
      node: which node they share, "starting" (algorithm 13) or "ending" (algorithm 14).
      head_dim: the features D of a head; c / H where left out.
      eps: what is added to the variances, in units of x squared.
      block: how many edges are worked on at once.

    Returns:
      A layer with params `TriangleAttentionParams(norm: (scale, shift), W_qkv: (3 H D, c), W_bias: (H, c),
      W_gate: (H D, c), b_gate, W_out: (c, H D), b_out)`, x `(*b, N, N, c)`, or `PairsOfNodes(z, mask)`, and y
      `(*b, N, N, c)`. The W are drawn uniformly with variance 1 over the number of their inputs; the scale is ones,
      shift and b zeros.

    Raises:
      ValueError: an argument is out of its range; x has no pairs, or as many of the first nodes as of the second; heads
        do not divide the features.
      TypeError: x is not floating-point, or it or a parameter is not of W_qkv's dtype.
    """
    who = "triangle_attention"
    H, block = require_size(who, "heads", heads), require_size(who, "block", block)
    is_ending = require_choice(who, "node", node, NODES) == "ending"
    head_dim = None if head_dim is None else require_size(who, "head_dim", head_dim)
    eps = require_positive(who, "eps", eps)

    def init(key, x):
        z = as_pairs(x).z
        c, dtype = z.shape[-1], z.dtype
        D = features_of_head(who, z, H, head_dim)
        of_qkv, of_bias, of_gate, of_out = jax.random.split(key, 4)
        return TriangleAttentionParams(
            init_norm("layer", c, dtype),
            lecun_uniform(of_qkv, (3 * H * D, c), c, dtype),
            lecun_uniform(of_bias, (H, c), c, dtype),
            lecun_uniform(of_gate, (H * D, c), c, dtype),
            jnp.zeros(H * D, dtype),
            lecun_uniform(of_out, (c, H * D), H * D, dtype),
            jnp.zeros(c, dtype),
        )

    def forward(params, x: Float[Array, "*b N>0 N c>0"] | PairsOfNodes):
        z = turned(as_pairs(x).z)
        of_x = statistics("layer", z, eps)
        n = normalize(params.norm, z, of_x)
        q, k, v = (by_head(u, H) for u in blocks(cast(times_transposed(n, params.W_qkv), z.dtype), 3))
        e = cast(times_transposed(n, params.W_bias), z.dtype)
        f = cast(plus(times_transposed(n, params.W_gate), params.b_gate), z.dtype)
        o, m, S = attend(pattern(q), edges_of(x, q, k, v, e), Extras())
        y = cast(plus(times_transposed(gated(f, o), params.W_out), params.b_out), z.dtype)
        return turned(y), TriangleAttentionCache(x, of_x, q, k, v, e, f, o, m, S)

    def opened(params: TriangleAttentionParams, cache: TriangleAttentionCache, dy: Array):
        x, of_x, q, k, v, e, f, o, m, S = cache
        z, dy = turned(as_pairs(x).z), turned(dy)
        gate, dg = jax.nn.sigmoid(widen(f)), times(dy, params.W_out)
        do = by_head(cast(gate * dg, z.dtype), H)
        df = cast(widen(by_position(o)) * sigmoid_slope(gate) * dg, z.dtype)
        d = pull_attend(pattern(q), edges_of(x, q, k, v, e), Extras(), do, Kept(o, m, S))
        assert d.dbias is not None
        de = jnp.moveaxis(jnp.squeeze(d.dbias, -4), -3, -1)
        dqkv = jnp.concatenate([by_position(u) for u in (d.dq, d.dk, d.dv)], -1)
        dn = times(dqkv, params.W_qkv) + times(de, params.W_bias) + times(df, params.W_gate)
        dnorm, dz = pull_normalize(params.norm, z, of_x, dn)
        n = normalize(params.norm, z, of_x)
        of_n = unmade(dqkv, n), unmade(de, n), unmade(df, n), total(df, params.b_gate)
        dparams = TriangleAttentionParams(dnorm, *of_n, unmade(dy, gated(f, o)), total(dy, params.b_out))
        return dparams, like_pairs(turned(cast(dz, z.dtype)), x)

    def turned(v):
        return mirrored(v) if is_ending else v

    def pattern(q):
        return Pattern(q.shape[-1] ** -0.5, query_block=block, key_block=block)

    def edges_of(x, q, k, v, e):
        """What meets: the edges of each node, a batch axis, with the bias of all."""
        mask = as_pairs(x).mask
        if mask is not None:
            mask = jnp.swapaxes(mask, -2, -1) if is_ending else mask
            mask = mask[..., :, None, None, :]
        return Heads(q, k, v, mask=mask, bias=jnp.expand_dims(jnp.moveaxis(e, -1, -3), -4))

    def gated(f, o):
        return cast(jax.nn.sigmoid(widen(f)) * widen(by_position(o)), o.dtype)

    return Layer(init, forward, closed(opened), who, opened=opened)


@called_as(triangle_attention)
def reference(params: TriangleAttentionParams, x: Array | PairsOfNodes, heads, node, eps, **_) -> Array:
    z, mask = x if isinstance(x, tuple) else (x, None)
    mask = jnp.ones(z.shape[:-1], bool) if mask is None else mask
    n = naive_norm(z, *params.norm, eps, "layer")

    def split(v):
        return v.reshape(*v.shape[:-1], heads, -1)

    q, k, v = (split(u) for u in jnp.split(naive_affine(params.W_qkv, None, n), 3, -1))
    e = naive_affine(params.W_bias, None, n)
    if node == "starting":
        logits = jnp.einsum("...ijhd,...ikhd->...hijk", q, k)
        of_third, seen = jnp.moveaxis(e, -1, -3)[..., None, :, :], mask[..., None, :, None, :]
    else:
        logits = jnp.einsum("...ijhd,...kjhd->...hijk", q, k)
        of_third = jnp.einsum("...kih->...hik", e)[..., :, None, :]
        seen = jnp.swapaxes(mask, -1, -2)[..., None, None, :, :]
    logits = logits / q.shape[-1] ** 0.5 + of_third
    seen = jnp.broadcast_to(seen, logits.shape)
    p = jnp.where(seen, jax.nn.softmax(jnp.where(seen, logits, -1e30)), 0)
    o = jnp.einsum("...hijk,...ikhd->...ijhd" if node == "starting" else "...hijk,...kjhd->...ijhd", p, v)
    gate = jax.nn.sigmoid(naive_affine(params.W_gate, params.b_gate, n))
    return naive_affine(params.W_out, params.b_out, gate * o.reshape(gate.shape))


_EPS = Interval(1e-3, 0.1, 1e-2)

RULE = Rule(
    "triangle_attention",
    triangle_attention,
    reference,
    cases=(
        Case(
            "starting node",
            Real("B N N c", -2.0, 2.0),
            {"heads": 2, "eps": _EPS, "block": Size("K")},
            never_empty=("K",),
            fixed={"B": 2, "N": 4, "c": 4, "K": 3},
            timed={"B": 1, "N": 48, "c": 32, "K": 128},
        ),
        Case(
            "ending node, a mask",
            specs(PairsOfNodes, Real("B N N c", -2.0, 2.0), Boolean("B N N")),
            {"heads": 2, "node": "ending", "head_dim": 3, "eps": _EPS},
            never_empty=("c",),
            fixed={"B": 2, "N": 3},
        ),
    ),
    cite="Jumper et al., 'Highly accurate protein structure prediction with AlphaFold' (2021), supplement, algorithms "
    "13 and 14",
    covers=("triangle self-attention",),
)
