"""sigmoid_router: the router of DeepSeek-V3: each expert's own sigmoid, a bias that chooses and does not weigh, groups.

Forward, with N tokens x_n, scores z, E experts in G groups of neighbours, of which M are kept, and a bias b that is no
weight:

    z_ne = sum_m W_em x_nm,      s_ne = 1 / (1 + exp(-z_ne))              z, s: (*b, T, E), W: (E, d)
    a_ne = s_ne + b_e                                                     what is chosen by
    g    = the M groups of the largest sums of their two largest a_ne     (G groups; all of them, if M = G)
    i_nj = the expert of the j-th largest a_ne in these groups            j = 1 ... k
    w_nj = c s_{n i_nj} / sum_j' s_{n i_nj'}      if renormalised         w, i: (*b, T, k)
    w_nj = c s_{n i_nj}                           if not

and of each sequence of T tokens, which its own load is held against (V3's complementary loss, less its factor alpha):

    f_e = E / (k T) sum_t [e among i_t],    P_e = 1/T sum_t s_te / sum_e' s_te',    B = the mean of sum_e f_e P_e

The bias is state: between steps it goes up by a rate where an expert had less than the mean load, and down where it had
more (`update_selection_bias`). It evens out the load without a gradient that would compete with the loss's.

Differential, i, g and so f being constant while nothing is tied, with delta s = s (1 - s) delta z, hence
delta log s = (1 - s) delta z. Both quotients are softmaxes of log s, over the chosen and over all; with p_te that of P:

    delta w_nj = w_nj ((1 - s_nj) delta z_nj - sum_j' (w_nj' / c) (1 - s_nj') delta z_nj')        renormalised
    delta w_nj = w_nj (1 - s_nj) delta z_nj                                                       not
    delta p_te = p_te ((1 - s_te) delta z_te - sum_e' p_te' (1 - s_te') delta z_te')

The adjoint, with [i_nj = e] putting a choice back where it was made and S the number of sequences:

    G_te  = dB f_e / (S T)                                                            (*b, T, E)
    h_ne  = p_ne (G_ne - sum_e' p_ne' G_ne')
            + sum_j [i_nj = e] w_nj (dw_nj - sum_j' (w_nj' / c) dw_nj'), or w_nj dw_nj if not renormalised
    dz_ne = (1 - s_ne) h_ne                                                           (*b, T, E)
    dW    = dz^T x                     dx_n = W^T dz_n                                (E, d), (*b, T, d)

The bias has the cotangent None. A token learns of the experts that it was sent to alone, but for B.

Kinks: of what is tied the lower number counts as the larger, of groups too, as in `lax.top_k`.

Cached: x, the scores z, the choice in the smallest integers that hold E, and f. All else is made of them again.

Numerical care: scores are computed, kept and compared in at least float32. log s is what is subtracted and then taken
the exponential of: a token that no expert is for, all of whose s underflow, still has weights that add up to c, where
the published code adds 1e-20 to the sum. 1 - s is s(-z), which does not cancel where s is near 1. A group that is left
out has a = -inf and not 0, which would be more than what a bias has made negative.
"""

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Inexact, Int, UInt

from bpref.checks.hyperparameters import require_flags, require_non_negative, require_positive, require_sizes
from bpref.dtypes import cast, require_type, wide_dtype, widen
from bpref.formulas.affine import lecun_uniform, times, times_transposed, transposed_times
from bpref.formulas.indexing.indices import smallest_integer
from bpref.formulas.logistic import log1p_exp, logistic
from bpref.formulas.mixture.choices import at, at_the_chosen, first_k, one_hot, through_softmax
from bpref.layer import Held, Layer, each_position
from bpref.rule import Case, Interval, Real, Rule, called_as


class SigmoidRouterParams(NamedTuple):
    W: Float[Array, "E d"]
    bias: Inexact[Array, " E"]


class SigmoidRouting(NamedTuple):
    """Where tokens go: each token's experts, the best first, their weights, and the loss of the sequences' loads.

    A cotangent has None for the experts.
    """

    experts: Int[Array, "*b T k"]
    weights: Float[Array, "*b T k"]
    balance: Float[Array, ""]


class SigmoidRouterCache(NamedTuple):
    x: Float[Array, "*b T d"]
    scores: Float[Array, "*b T E"]
    experts: UInt[Array, "*b T k"]
    shares: Float[Array, "*b E"]


def sigmoid_router(
    experts: int,
    k: int = 8,
    groups: int = 1,
    groups_kept: int = 1,
    renormalize: bool = True,
    scale: float = 1.0,
    rate: float = 1e-3,
) -> Layer[SigmoidRouterParams, Array, SigmoidRouting, SigmoidRouterCache]:
    """Each token's k experts and their weights, by sigmoids, a bias that is state, and groups.

    Args:
      experts: their number E.
      k: how many a token goes to.
      groups, groups_kept: G, which divides E, and M of them, whose experts are k at least.
      renormalize: whether a token's sigmoids are divided by their sum over its chosen experts.
      scale: c, what weights are multiplied by (DeepSeek-V3: 2.5).
      rate: how far the bias of a stateful router goes at each step.

    Returns:
      A layer with params `SigmoidRouterParams(W: (E, d), bias: (E,))`, x `(*b, T, d)` and y
      `SigmoidRouting(experts: int32 (*b, T, k), weights: (*b, T, k), balance: ())`. The bias, zeros at first, in
      float32 at least, has the cotangent None; `update_selection_bias` gives its next value. The balance is to be
      weighted by whoever adds it to the objective (V3: 1e-4). Of no tokens it is 0.

    Raises:
      ValueError: a number is out of its range; groups do not divide the experts, or those kept have fewer than k; x has
        no features, or others than W.
      TypeError: x is not floating-point, or not of W's dtype.
    """
    who = "sigmoid_router"
    require_flags(who, renormalize=renormalize)
    experts, k, G, M = require_sizes(who, experts=experts, k=k, groups=groups, groups_kept=groups_kept)
    scale, rate = require_positive(who, "scale", scale), require_non_negative(who, "rate", rate)
    if experts % G:
        raise ValueError(f"{who}: groups is {G}, expected a divisor of the number of experts E = {experts}")
    if not (M <= G and k <= M * (experts // G)):
        raise ValueError(
            f"{who}: k is {k} and groups_kept {M}, expected at most {G} groups, with at least k experts in those kept, "
            f"{experts // G} in each"
        )

    def init(key, x):
        d = x.shape[-1]
        W = lecun_uniform(key, (experts, d), d, x.dtype)
        return SigmoidRouterParams(W, jnp.zeros(experts, wide_dtype(x.dtype)))

    def chosen_of(a):
        if M == G:
            return first_k(a, k)
        by_group = a.reshape(*a.shape[:-1], G, experts // G)
        best = jnp.sum(lax.top_k(by_group, min(2, experts // G))[0], -1)
        is_kept = jnp.sum(one_hot(first_k(best, M), best), -2) > 0
        return first_k(jnp.where(is_kept[..., None], by_group, -jnp.inf).reshape(a.shape), k)

    def weights_of(z, chosen):
        if renormalize:
            return scale * jax.nn.softmax(-log1p_exp(-at(z, chosen)), -1)
        return scale * logistic(at(z, chosen))

    def mean_over(z):
        """What a sum over the tokens of all sequences is divided by."""
        return max(z.size // experts, 1)

    def forward(params, x: Float[Array, "*b T d>0"]):
        z = times_transposed(x, params.W)
        bias = lax.stop_gradient(cast(params.bias, z.dtype))
        chosen = chosen_of(logistic(z) + lax.expand_dims(bias, range(z.ndim - 1)))
        f = jnp.sum(one_hot(chosen, z), (-3, -2)) * (experts / max(k * z.shape[-2], 1))
        P = jax.nn.softmax(-log1p_exp(-z), -1)
        balance = jnp.sum(f[..., None, :] * P) / mean_over(z)
        y = SigmoidRouting(chosen, *(cast(v, x.dtype) for v in (weights_of(z, chosen), balance)))
        return y, SigmoidRouterCache(x, z, chosen.astype(smallest_integer(experts)), f)

    def backward(params, cache, dy):
        x, z, chosen, f = cache
        dw, dB = (None if v is None else widen(v) for v in dy[1:])
        terms = []
        if dB is not None:
            G_of = jnp.broadcast_to(dB / mean_over(z) * f[..., None, :], z.shape)
            terms.append(through_softmax(jax.nn.softmax(-log1p_exp(-z), -1), G_of))
        if dw is not None:
            w = weights_of(z, chosen)
            of_w = scale * through_softmax(w / scale, dw - dw[..., :1]) if renormalize else w * dw
            terms.append(at_the_chosen(of_w, chosen, z))
        dz = cast(reduce(jnp.add, terms) * logistic(-z), x.dtype)
        dW = cast(transposed_times(dz, x), params.W.dtype)
        # the bias, an array in params, has the cotangent None
        return SigmoidRouterParams(dW, None), cast(times(dz, params.W), x.dtype)  # type: ignore[arg-type]

    def after(held, params, cache):
        return {"bias": update_selection_bias(params, cache, rate).bias}

    held, evaluating = Held(("bias",), after=after), Layer(init, forward, backward, who, held=Held(("bias",)))
    own = {"couples": "the load of the experts", "decoding": each_position}
    return Layer(init, forward, backward, who, held=held, evaluating=evaluating, **own)


def update_selection_bias(
    params: SigmoidRouterParams, cache: SigmoidRouterCache, rate: float = 1e-3
) -> SigmoidRouterParams:
    """The parameters of `sigmoid_router` with the loads in `cache` taken into the bias (arXiv:2408.15664, algorithm 1).

    b_e becomes b_e + rate sign(mean_e' c_e' - c_e), with c_e how many of all tokens were sent to expert e.

    Args:
      params: the router's parameters; W is returned as it is.
      cache: what its forward has kept.
      rate: how far the bias goes, at least 0.

    Example:
      >>> layer = bpref.sigmoid_router(4, 2)
      >>> p = layer.init(jax.random.key(0), X)
      >>> bpref.update_selection_bias(p, layer.forward(p, X)[1]).bias.shape
      (4,)

    Raises:
      TypeError: params or the cache are not those of `sigmoid_router`.
      ValueError: the rate is out of its range.
    """
    who = "update_selection_bias"
    require_type(who, "params", params, SigmoidRouterParams)
    require_type(who, "cache", cache, SigmoidRouterCache)
    rate = require_non_negative(who, "rate", rate)
    E = params.bias.shape[0]
    loads = jnp.sum(one_hot(cache.experts, cache.scores).reshape(-1, E), 0)
    # E c and their sum are whole numbers, of which equal ones are equal.
    step = jnp.sign(jnp.sum(loads) - E * loads)
    return params._replace(bias=params.bias + rate * cast(step, params.bias.dtype))


@called_as(sigmoid_router)
def reference(
    params: SigmoidRouterParams, x: Array, experts, k, groups, groups_kept, renormalize, scale, **_
) -> SigmoidRouting:
    z = jnp.einsum("...d,ed->...e", x, params.W)
    s = jax.nn.sigmoid(z)
    a = s + jnp.broadcast_to(params.bias, s.shape).astype(s.dtype)
    by_group = a.reshape(*a.shape[:-1], groups, experts // groups)
    best = jnp.sum(jnp.sort(by_group, -1)[..., -2:], -1)
    of_groups = jnp.argsort(-best, -1, stable=True)[..., :groups_kept]
    is_kept = jnp.any(of_groups[..., None, :] == jnp.arange(groups).reshape((1,) * (best.ndim - 1) + (-1, 1)), -1)
    a = jnp.where(is_kept[..., None], by_group, -jnp.inf).reshape(s.shape)
    chosen = jnp.argsort(-a, -1, stable=True)[..., :k].astype(jnp.int32)
    w = jnp.take_along_axis(s, chosen, -1)
    if renormalize:
        w = w / jnp.sum(w, -1, keepdims=True)
    load = jnp.sum(jax.nn.one_hot(chosen, experts, dtype=x.dtype), (-3, -2)) * experts / max(k * x.shape[-2], 1)
    share = jnp.sum(s / jnp.sum(s, -1, keepdims=True), -2) / max(x.shape[-2], 1)
    of_sequences = jnp.sum(load * share, -1)
    return SigmoidRouting(chosen, scale * w, jnp.sum(of_sequences) / max(of_sequences.size, 1))


_X = Real("B T d", -2.0, 2.0)

RULE = Rule(
    "sigmoid_router",
    sigmoid_router,
    reference,
    cases=(
        Case(
            "groups",
            _X,
            {"experts": 8, "k": 3, "groups": 4, "groups_kept": 2, "scale": Interval(1.0, 3.0, 2.5)},
            ("d",),
            timed={"B": 8, "T": 256, "d": 256},
        ),
        Case("all experts, no sum", Real("N d", -2.0, 2.0), {"experts": 5, "k": 2, "renormalize": False}, ("d",)),
    ),
    cite="arXiv:2412.19437, equations 12 to 20; the bias: arXiv:2408.15664, algorithm 1; groups: their code",
    covers=("deepseek router", "noaux_tc", "loss-free balancing", "group-limited routing"),
)
