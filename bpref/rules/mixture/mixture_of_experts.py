"""mixture_of_experts: every token through k of E small networks, chosen by a router, and their outputs weighted.

Forward, for N tokens x_n of d features, with the router's choice i_nj and weights w_nj (`top_k_router`), and experts of
H hidden units, g the activation (of a gated one, `swiglu` or `geglu`, u has 2 H features and h half as many):

    u_nj = U_{i_nj} x_n                                                   U: (E, H or 2 H, d)
    h_nj = g(u_nj)                                                        (H,)
    o_nj = V_{i_nj} h_nj                                                  V: (E, d, H)
    y_n  = sum_j w_nj o_nj  (+ V' g(U' x_n): shared experts)              (N, d)

With a capacity, an expert takes at most C = ceil(capacity_factor k N / E) tokens. All first choices come before all
second ones, each in the order of the tokens; whoever comes later is dropped, and adds no o_nj to y_n. A token that all
its experts drop has y_n = 0, to be carried on by the residual around the layer. Shared experts, S of them, see every
token; their sum is one network with S H hidden units.

Differential, the choice being constant:

    delta y_n = sum_j (delta w_nj o_nj + w_nj delta o_nj)
    delta o_nj = delta V h_nj + V delta h_nj,   delta h_nj = g'(u_nj) delta u_nj
    delta u_nj = delta U x_n + U delta x_n

The adjoint, with e = i_nj, t_nj = V_e^T dy_n, and the sums over the choices (n, j) that reached expert e:

    dw_nj = dy_n . o_nj = t_nj . h_nj          o is not needed            (N, k)
    dV_e  = sum w_nj dy_n h_nj^T                                          (d, H)
    du_nj = g'(u_nj)^T (w_nj t_nj)             the activation's backward  (H or 2 H,)
    dU_e  = sum du_nj x_n^T                                               (H or 2 H, d)
    dx_n  = sum_j U_e^T du_nj  +  the router's, from dw and its losses    (N, d)

and the shared experts' alike, with w = 1. A dropped choice has dw_nj = 0.

Cached: what the router keeps, x among it; u of each choice; and where the choices lie, a few integers for each. h is
made of u again, and o is never needed. A naive layer that runs all experts on all tokens keeps E / k times as much.

How: choices are sorted by expert and laid out in blocks of tokens of one expert each, so that the experts' matrix
products are a loop over blocks, whatever their number of tokens (`bpref.formulas.mixture.grouped_rows`; with a
capacity, one block of C for each expert). Tokens are gathered into the blocks, and outputs out of them: neither way is
a scatter.

Numerical care: products accumulate in at least float32, as do the sums over choices and blocks; u and o are rounded to
x's dtype. The router's scores are not rounded, so that half precision changes no choice.
"""

import math
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import is_number, plain, require_choice, require_count, require_flags, require_sizes
from bpref.cotangents import with_zeros
from bpref.dtypes import cast, widen
from bpref.formulas.affine import lecun_uniform, times, times_transposed, transposed_times
from bpref.formulas.joined import concatenated
from bpref.formulas.mixture.grouped_rows import (
    Blocks,
    capacity_blocks,
    each_choice,
    over_blocks,
    placed,
    ragged_blocks,
    rows_from_blocks,
    rows_in_blocks,
    token_of,
    total_like,
)
from bpref.layer import Layer, each_position
from bpref.rule import Case, Real, Rule, Size, called_as
from bpref.rules.activation.gelu import gelu
from bpref.rules.activation.glu import glu_layer
from bpref.rules.activation.relu import relu
from bpref.rules.activation.silu import silu
from bpref.rules.mixture.top_k_router import Routing, TopKRouterCache, TopKRouterParams, top_k_router

ACTIVATIONS: dict[str, tuple[int, Callable[[], Layer]]] = {
    "swiglu": (2, lambda: glu_layer("silu", concatenated)),
    "geglu": (2, lambda: glu_layer("gelu", concatenated)),
    "gelu": (1, gelu),
    "relu": (1, relu),
    "silu": (1, silu),
}
"""By name: how many features make one hidden unit, and the activation."""


class MixtureOfExpertsParams(NamedTuple):
    router: TopKRouterParams
    U: Float[Array, "E H d"]
    V: Float[Array, "E d H"]
    shared_U: Float[Array, "H d"] | None
    shared_V: Float[Array, "d H"] | None


class Mixed(NamedTuple):
    """The tokens after their experts, and the router's two auxiliary losses."""

    y: Float[Array, "... d"]
    balance: Float[Array, ""]
    z: Float[Array, ""]


class MixtureOfExpertsCache(NamedTuple):
    router: TopKRouterCache
    weights: Float[Array, "N k"]
    u: Float[Array, "blocks B H"]
    blocks: Blocks
    shared_u: Float[Array, "N H"] | None


def mixture_of_experts(
    experts: int,
    hidden: int,
    k: int = 2,
    activation: str = "swiglu",
    shared: int = 0,
    renormalize: bool = True,
    capacity_factor: float | None = None,
    block: int = 128,
) -> Layer[MixtureOfExpertsParams, Array, Mixed, MixtureOfExpertsCache]:
    """y_n = sum of w_nj V g(U x_n) over the k experts that token n is routed to, and over the shared ones.

    Args:
      experts: their number E.
      hidden: the hidden units H of one expert.
      k: how many experts a token goes to, from 1 to E.
      activation: g: "swiglu", "geglu", "gelu" (tanh form), "relu" or "silu".
      shared: how many experts see every token besides.
      renormalize: whether a token's weights add up to 1 before anything is dropped, see `top_k_router`.
      capacity_factor: an expert takes ceil(capacity_factor k N / E) tokens, the rest is dropped; None drops none.
      block: how many tokens of one expert are multiplied at a time, where none is dropped.

    Returns:
      A layer with params `MixtureOfExpertsParams(router, U: (E, H, d), V: (E, d, H), shared_U: (S H, d),
      shared_V: (d, S H))`, the middle axis of U twice as long for a gated activation and the last two None without
      shared experts; x `(..., d)`; y `Mixed(y: (..., d), balance: (), z: ())`, the losses to be weighted by whoever
      adds them to the objective. Capacity is counted over all tokens of x.

    Raises:
      ValueError: a number is out of its range; there is no such activation; shapes do not fit.
      TypeError: x is not floating-point, or not of the parameters' dtype.
    """
    who = "mixture_of_experts"
    require_flags(who, renormalize=renormalize)
    experts, hidden, k, block = require_sizes(who, experts=experts, hidden=hidden, k=k, block=block)
    if k > experts:
        raise ValueError(f"{who}: k is {k}, expected at most the number of experts E = {experts}")
    require_choice(who, "activation", activation, sorted(ACTIVATIONS))
    shared = require_count(who, "shared", shared)
    if capacity_factor is not None and not (is_number(capacity_factor) and 0 <= capacity_factor < math.inf):
        raise ValueError(f"{who}: capacity_factor is {capacity_factor!r}, expected None or a number of at least 0")
    capacity_factor = plain(capacity_factor)
    width, make = ACTIVATIONS[activation]
    g = make()
    router = top_k_router(experts, k, renormalize)

    def init(key, x):
        d = x.shape[-1]
        keys = jax.random.split(key, 5)
        H, S = hidden, shared * hidden
        return MixtureOfExpertsParams(
            router.init(keys[0], x),
            lecun_uniform(keys[1], (experts, width * H, d), d, x.dtype),
            lecun_uniform(keys[2], (experts, d, H), H, x.dtype),
            lecun_uniform(keys[3], (width * S, d), d, x.dtype) if shared else None,
            lecun_uniform(keys[4], (d, S), S, x.dtype) if shared else None,
        )

    def forward(params, x: Float[Array, "... d>0"]):
        _, U, V, shared_U, shared_V = jax.tree.map(jnp.asarray, params)
        routing, of_router = router.forward(params.router, x)
        tokens, weights = x.reshape(-1, x.shape[-1]), routing.weights.reshape(-1, k)
        blocks = placed(routing.experts.reshape(-1, k), experts, _blocks_of)

        def step(e, x):
            u = cast(times_transposed(x, U[e]), x.dtype)
            return (), (u, cast(times_transposed(g.forward((), u)[0], V[e]), x.dtype))

        u, o = over_blocks(step, (), blocks.group, rows_in_blocks(tokens, token_of(blocks.row, tokens.shape[0], k)))[1]
        w = widen(weights)
        y = reduce(jnp.add, (w[:, j, None] * o_j for j, o_j in enumerate(_each_choice(o, blocks))))
        shared_u = None
        if shared:
            shared_u = cast(times_transposed(tokens, shared_U), x.dtype)
            y += times_transposed(g.forward((), shared_u)[0], shared_V)
        mixed = Mixed(cast(y, x.dtype).reshape(x.shape), routing.balance, routing.z)
        return mixed, MixtureOfExpertsCache(of_router, weights, u, blocks, shared_u)

    def backward(params, cache, dy):
        _, U, V, shared_U, shared_V = jax.tree.map(jnp.asarray, params)
        of_router, weights, u, blocks, shared_u = cache
        x = of_router.x
        tokens, dtokens = (v.reshape(-1, v.shape[-1]) for v in (x, with_zeros(dy.y, x)))
        of = token_of(blocks.row, tokens.shape[0], k)
        w = rows_in_blocks(weights.T.reshape(-1, 1), blocks.row)

        def step(e, block):
            x, u, dy, w = block
            h, of_g = g.forward((), u)
            t = times(dy, V[e])
            w = widen(w)
            du = g.backward((), of_g, cast(w * t, u.dtype))[1]
            dV = transposed_times(cast(w * widen(dy), dy.dtype), h)
            return (transposed_times(du, x), dV), (cast(times(du, U[e]), x.dtype), jnp.sum(t * widen(h), -1))

        per_block = (rows_in_blocks(tokens, of), u, rows_in_blocks(dtokens, of), w)
        (dU, dV), (dx, dw) = over_blocks(step, (total_like(U), total_like(V)), blocks.group, per_block)
        dw = rows_from_blocks(dw[..., None], blocks.slot)[:, 0].reshape(k, -1).T
        dx = reduce(jnp.add, _each_choice(dx, blocks))
        dshared = None, None
        if shared:
            h, of_g = g.forward((), shared_u)
            du = g.backward((), of_g, cast(times(dtokens, shared_V), shared_u.dtype))[1]
            dshared = transposed_times(du, tokens), transposed_times(dtokens, h)
            dshared = tuple(cast(d, x.dtype) for d in dshared)
            dx += times(du, shared_U)
        dw = cast(dw, weights.dtype).reshape(*x.shape[:-1], k)
        drouter, dx_of_router = router.backward(params.router, of_router, Routing._make((None, dw, dy.balance, dy.z)))
        dx = cast(dx.reshape(x.shape) + widen(dx_of_router), x.dtype)
        return MixtureOfExpertsParams(drouter, cast(dU, U.dtype), cast(dV, V.dtype), *dshared), dx

    def _each_choice(rows, blocks):
        return each_choice(rows.reshape(-1, rows.shape[-1]), blocks.slot.reshape(k, -1))

    def _blocks_of(sizes, rows):
        if capacity_factor is None:
            return ragged_blocks(sizes, rows, block)
        return capacity_blocks(sizes, rows, min(math.ceil(capacity_factor * rows / experts), rows))

    return Layer(
        init,
        forward,
        backward,
        who,
        couples="the load of the experts",
        decoding=each_position if capacity_factor is None else None,
    )


@called_as(mixture_of_experts)
def reference(
    params: MixtureOfExpertsParams, x: Array, experts, k, activation, renormalize, capacity_factor, **_
) -> Mixed:
    """Every expert on every token, and a matrix of weights (N, E) that is 0 where a token was not routed."""
    d = x.shape[-1]
    tokens = x.reshape(-1, d)
    N = tokens.shape[0]
    z = jnp.einsum("nd,ed->ne", tokens, params.router.W)
    p = jax.nn.softmax(z, -1)
    weights, chosen = lax.top_k(p, k)
    if renormalize:
        weights = weights / jnp.sum(weights, -1, keepdims=True)
    sent = jax.nn.one_hot(chosen, experts, dtype=x.dtype)
    balance = experts * jnp.sum(jnp.sum(sent, (0, 1)) / (max(N, 1) * k) * (jnp.sum(p, 0) / max(N, 1)))
    z_loss = jnp.sum(jax.nn.logsumexp(z, -1) ** 2) / max(N, 1)
    if capacity_factor is not None:
        capacity = math.ceil(capacity_factor * N * k / experts)
        in_order = jnp.swapaxes(jax.nn.one_hot(chosen, experts, dtype=jnp.int32), 0, 1).reshape(k * N, experts)
        before = jnp.swapaxes((jnp.cumsum(in_order, 0) - in_order).reshape(k, N, experts), 0, 1)
        sent = jnp.where(before < capacity, sent, 0)
    weight_of_expert = jnp.sum(weights[..., None] * sent, 1)

    def hidden_units(u):
        if not activation.endswith("glu"):
            return getattr(jax.nn, activation)(u)
        a, b = jnp.split(u, 2, -1)
        return a * (jax.nn.silu(b) if activation == "swiglu" else jax.nn.gelu(b))

    o = jnp.einsum("neh,edh->ned", hidden_units(jnp.einsum("nd,ehd->neh", tokens, params.U)), params.V)
    y = jnp.einsum("ne,ned->nd", weight_of_expert, o)
    if params.shared_U is not None and params.shared_V is not None:
        y = y + hidden_units(tokens @ params.shared_U.T) @ params.shared_V.T
    return Mixed(y.reshape(x.shape), balance, z_loss)


_X = Real("N d", -2.0, 2.0)
_NOT_EMPTY = ("d", "H")

RULE = Rule(
    "mixture_of_experts",
    mixture_of_experts,
    reference,
    cases=(
        Case("none dropped", _X, {"experts": 4, "hidden": Size("H"), "activation": "relu", "block": 5}, _NOT_EMPTY),
        Case(
            "capacity",
            _X,
            {"experts": 5, "hidden": Size("H"), "activation": "gelu", "renormalize": False, "capacity_factor": 0.75},
            _NOT_EMPTY,
        ),
        Case(
            "shared experts",
            Real("B T d", -2.0, 2.0),
            {"experts": 8, "hidden": Size("H"), "shared": 2},
            _NOT_EMPTY,
            timed={"B": 2, "T": 512, "d": 128, "H": 128},
        ),
    ),
    cite="Shazeer et al., arXiv:1701.06538, equations 1 to 5; DeepSeekMoE, arXiv:2401.06066, equations 9 to 14",
    covers=("moe", "expert_mlp", "switch_transformer", "deepseek_moe"),
)
