"""top_k_router: which k of E experts a token goes to and with which weights, and the two losses that keep this sane.

Forward, with N tokens x_n, scores z, i_nj the expert with the j-th largest score, and c_e how often e was chosen:

    z_ne = sum_m W_em x_nm                                                z: (N, E), W: (E, d)
    l_n  = log sum_e exp(z_ne),   p_ne = exp(z_ne - l_n)                  p: (N, E)
    w_nj = p_{n i_nj} / sum_j' p_{n i_nj'}      if renormalised           w, i: (N, k)
    w_nj = p_{n i_nj}                           if not
    f_e  = c_e / (N k),   B = E sum_e f_e (1/N sum_n p_ne)                balance: ()
    Z    = 1/N sum_n l_n^2                                                z: ()

The renormalised weights are exp(z_{i_j}) / sum_j' exp(z_{i_j'}), the softmax of the chosen scores alone: to choose
first and then take the softmax is the same function as softmax, choice and renormalisation, and is how it is computed.
B is 1 where all experts are chosen alike; for k = 1 it is the Switch Transformer's. What Z costs grows with the scores.

Differential, with i and so f constant while no two scores are equal (a count has no derivative), and
delta l_n = sum_e p_ne delta z_ne, delta p_ne = p_ne (delta z_ne - delta l_n):

    delta w_nj = w_nj (delta z_{n i_nj} - sum_j' w_nj' delta z_{n i_nj'})            renormalised
    delta B = E/N sum_ne f_e delta p_ne,    delta Z = 2/N sum_n l_n delta l_n

The adjoint, with G_ne what arrives at p_ne, and [i_nj = e] putting a choice back where it was made:

    G_ne  = dB E f_e / N  (+ sum_j [i_nj = e] dw_nj  if not renormalised)             (N, E)
    dz_ne = p_ne (G_ne - sum_e' p_ne' G_ne') + dZ 2 l_n p_ne / N                      (N, E)
            + sum_j [i_nj = e] w_nj (dw_nj - sum_j' w_nj' dw_nj')  if renormalised
    dW    = dz^T x                                                                    (E, d)
    dx    = dz W                                                                      (N, d)

Kinks: where scores are equal, the lower index counts as the larger, as in `lax.top_k`.

Cached: x, the scores z, the choice, in the smallest integers that hold E, and f. p and w are made of them again.

Numerical care: the scores are computed and kept in at least float32 and are not rounded, since rounding decides ties:
in half precision a token may otherwise change its expert. Exponentials are shifted by the largest score. A router that
is sure of its choice has p near 1 there, where G_ne - sum_e' p_ne' G_ne' cancels; a constant taken from all of a
token's G changes nothing, and with G of the best expert taken away its own large term is gone from both. With k = 1
renormalised weights are 1, and scores learn from the two losses alone.
"""

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int, UInt

from bpref.checks.hyperparameters import require_flags, require_size
from bpref.dtypes import cast, widen
from bpref.formulas.affine import lecun_uniform, times, times_transposed, transposed_times
from bpref.formulas.indexing.indices import smallest_integer
from bpref.formulas.mixture.choices import at, at_the_chosen, first_k, one_hot, through_softmax
from bpref.layer import Layer, each_position
from bpref.rule import Case, Real, Rule


class TopKRouterParams(NamedTuple):
    W: Float[Array, "E d"]


class Routing(NamedTuple):
    """Where tokens go: each token's experts, the best first, their weights, and the two auxiliary losses.

    A cotangent has None for the experts.
    """

    experts: Int[Array, "... k"]
    weights: Float[Array, "... k"]
    balance: Float[Array, ""]
    z: Float[Array, ""]


class TopKRouterCache(NamedTuple):
    x: Float[Array, "... d"]
    scores: Float[Array, "... E"]
    experts: UInt[Array, "... k"]
    shares: Float[Array, " E"]


def top_k_router(
    experts: int, k: int = 2, renormalize: bool = True
) -> Layer[TopKRouterParams, Array, Routing, TopKRouterCache]:
    """Each token's k experts, their weights, the load-balancing loss and the router's z-loss.

    Args:
      experts: their number E.
      k: how many a token goes to, from 1 to E.
      renormalize: whether a token's weights add up to 1: the softmax over its chosen experts, and not over all.

    Returns:
      A layer with params `TopKRouterParams(W: (E, d))`, x `(..., d)` and y
      `Routing(experts: int32 (..., k), weights: (..., k), balance: (), z: ())`. The losses are means over all tokens,
      to be weighted by whoever adds them to the objective (usually 1e-2 and 1e-3). Of no tokens both are 0.

    Raises:
      ValueError: `experts` is not a positive integer; k is not from 1 to E; x does not have d
        features in its last axis.
      TypeError: x is not floating-point, or not of W's dtype.
    """
    who = "top_k_router"
    require_flags(who, renormalize=renormalize)
    experts = require_size(who, "experts", experts)
    k = require_size(who, "k", k)
    if k > experts:
        raise ValueError(f"{who}: k is {k}, expected at most the number of experts E = {experts}")

    def init(key, x):
        d = x.shape[-1]
        return TopKRouterParams(lecun_uniform(key, (experts, d), d, x.dtype))

    def forward(params, x: Float[Array, "... d>0"]):
        z = times_transposed(x, params.W)
        chosen = first_k(z, k)
        p, l = _softmax(z)
        N = max(l.size, 1)
        f = _shares(chosen, z)
        balance = jnp.sum(f * _mean_per_expert(p, N)) * experts
        z_loss = jnp.sum(jnp.square(l.reshape(-1))) / N
        w = _weights(z, p, chosen)
        y = Routing(chosen, *(cast(v, x.dtype) for v in (w, balance, z_loss)))
        return y, TopKRouterCache(x, z, chosen.astype(smallest_integer(experts)), f)

    def backward(params, cache, dy):
        x, z, chosen, f = cache
        p, l = _softmax(z)
        N = max(l.size, 1)
        dw, dB, dZ = (None if v is None else widen(v) for v in dy[1:])
        of_p, of_z = [], []
        if dB is not None:
            of_p.append(jnp.broadcast_to(dB * (experts / N) * f, z.shape))
        if dw is not None and renormalize:
            dchosen = through_softmax(_weights(z, p, chosen), dw - dw[..., :1])
            of_z.append(at_the_chosen(dchosen, chosen, z))
        elif dw is not None:
            of_p.append(at_the_chosen(dw, chosen, z))
        if of_p:
            G = reduce(jnp.add, of_p)
            of_z.append(through_softmax(p, G - at(G, chosen[..., :1])))
        if dZ is not None:
            of_z.append(dZ * (2 / N) * l * p)
        dz = cast(reduce(jnp.add, of_z), x.dtype)
        dW = cast(transposed_times(dz, x), params.W.dtype)
        return TopKRouterParams(dW), cast(times(dz, params.W), x.dtype)

    def _weights(z, p, chosen):
        return jax.nn.softmax(at(z, chosen), -1) if renormalize else at(p, chosen)

    return Layer(init, forward, backward, who, couples="the load of the experts", decoding=each_position)


def _softmax(z: Array) -> tuple[Array, Array]:
    """p, and l with an axis of size 1 for the experts."""
    m = lax.stop_gradient(jnp.max(z, -1, keepdims=True))
    e = jnp.exp(z - m)
    S = jnp.sum(e, -1, keepdims=True)
    return e / S, m + jnp.log(S)


def _shares(chosen: Array, z: Array) -> Array:
    """f_e."""
    return jnp.sum(one_hot(chosen, z), range(chosen.ndim)) / max(chosen.size, 1)


def _mean_per_expert(p: Array, N: int) -> Array:
    return jnp.sum(p, range(p.ndim - 1)) / N


def reference(params: TopKRouterParams, x: Array, experts: int, k: int = 2, renormalize: bool = True) -> Routing:
    z = jnp.einsum("...d,ed->...e", x, params.W)
    p = jax.nn.softmax(z, -1)
    weights, chosen = lax.top_k(p, k)
    if renormalize:
        weights = weights / jnp.sum(weights, -1, keepdims=True)
    every = tuple(range(x.ndim - 1))
    N = max(z.size // experts, 1)
    fraction = jnp.sum(jax.nn.one_hot(chosen, experts, dtype=x.dtype), (*every, x.ndim - 1)) / (N * k)
    balance = experts * jnp.sum(fraction * (jnp.sum(p, every) / N))
    return Routing(chosen, weights, balance, jnp.sum(jax.nn.logsumexp(z, -1) ** 2) / N)


_X = Real("N d", -2.0, 2.0)

RULE = Rule(
    "top_k_router",
    top_k_router,
    reference,
    cases=(
        Case("renormalized", _X, {"experts": 4}, ("d",)),
        Case(
            "softmax over all",
            Real("B T d", -2.0, 2.0),
            {"experts": 5, "k": 3, "renormalize": False},
            ("d",),
            timed={"B": 8, "T": 256, "d": 256},
        ),
        Case("switch", _X, {"experts": 3, "k": 1, "renormalize": False}, ("d",)),
    ),
    cite="Switch Transformers, arXiv:2101.03961, equations 4 to 6; z-loss: ST-MoE, arXiv:2202.08906, equation 5",
    covers=("load_balancing_loss", "router_z_loss", "moe_router"),
)
