"""crf: how unlikely the tags are under a linear chain, which weighs each tag and each pair of neighbours.

With emissions x of shape (B, T, K), transitions A_ij from tag i to j, weights s of the first and h of the last tag, and
an example's own length L (its frames beyond L do not count):

    score(y) = s(y_1) + sum_t x_t(y_t) + sum_t A(y_t-1, y_t) + h(y_L)
    J = log Z - score(tags),   Z = sum over all y of exp(score(y))                                           J: (B,)

Forward: r_1 = s; a_t = r_t + x_t is the log-weight of all beginnings that end in each tag,

    r_t(j) = log sum_i exp(a_t-1(i) + A_ij)                                                              (B, T, K)

and log Z = log sum_j exp(a_L(j) + h_j).

Differential: that of log Z is the expectation of the score's. With the marginals g_t(j) = P(y_t = j) and
n_t(i, j) = P(y_t-1 = i, y_t = j), and [.] for the tags as they are (observed), everything is expected minus observed:

    dx_t = dJ (g_t - [y_t])               0 beyond L                                                      (B, T, K)
    dA   = sum over the examples and t of dJ (n_t - [y_t-1] [y_t]^T)                                        (K, K)
    ds   = sum of dJ (g_1 - [y_1])        dh = sum of dJ (g_L - [y_L])                                        (K,)

No endings have to be summed up in a second recursion. Of all beginnings that go on to j, the part that comes from i is
exp(a_t-1(i) + A_ij - r_t(j)), whatever follows j; so, from g_L = softmax(a_L + h) down,

    n_t(i, j) = exp(a_t-1(i) + A_ij - r_t(j)) g_t(j)          g_t-1(i) = sum_j n_t(i, j)

Every g_t and every n_t sums to 1.

L = 0: Z = 1, J = 0, no gradient. A tag that is none of the K has probability 0: J = +inf, and a gradient of 0. A length
beyond T is T, a negative one is 0. A weight of -inf forbids what it weighs; its own derivative is 0.

Cached: the emissions, the tags and r, all of the emissions' size; a is r + x. Autodiff of the same sum keeps a matrix
(K, K) of every frame of every example: n needs but one more exponential of it.

Numerical care: log Z - score(tags) cancels where the tags are likely. Neither is formed: from every weight that of the
tags themselves, at that frame or pair, is subtracted before it is used, so that the tags have the score 0, every other
path its distance from them, and J is the log Z of these, at least 0. g and n are the same, since each has its own sum
for a divisor, and g is divided by its sum again at every frame: it would drift from 1 by the rounding of each. Where a
tag is all but certain g - 1 cancels: its dx is minus the sum of all others'. Each frame's largest a is subtracted and
added up apart; what is kept lies near 0. Weights that are apart by more than exp can tell (-10000 for what must not be)
are right, since A is not exponentiated by itself. -inf is -1e30. A NaN within an example's length makes its J and
gradient NaN, and is harmless beyond it. Half precision is computed in float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from bpref.checks.shapes import Call
from bpref.dtypes import as_array, cast, require_type, widen, widen_integers
from bpref.formulas.lengths import used, within
from bpref.formulas.log_space import LOG_ZERO, balanced, is_possible, known, log_sum, nats
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals
from bpref.loops import scan
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Integer, Real, Rule


class CRFParams(NamedTuple):
    A: Float[Array, "K K"]
    s: Float[Array, " K"]
    h: Float[Array, " K"]


class Tagged(NamedTuple):
    emissions: Float[Array, "B T K>0"]
    tags: Int[Array, "B T"]
    lengths: Int[Array, " B"]


class CRFCache(NamedTuple):
    x: Float[Array, "B T K"]
    tags: Int[Array, "B T"]
    lengths: Int[Array, " B"]
    r: Float[Array, "T B K"]


class _Own(NamedTuple):
    """What is subtracted: of emissions, of s and then A, of h. 0 beyond an example's length."""

    emitted: Float[Array, "B T"]
    entered: Float[Array, "B T"]
    left: Float[Array, " B"]


class Marginals(NamedTuple):
    """The probabilities of tags, 0 beyond an example's length, and of pairs of neighbours, summed over the frames."""

    tags: Float[Array, "B T K"]
    pairs: Float[Array, "K K"]


def crf(reduction: str = "none") -> Layer[CRFParams, tuple[Array, Array, Array], Reals, CRFCache]:
    """J = log Z - score(tags): the negative log-likelihood of a linear-chain conditional random field.

    Args:
      reduction: "none" for one number for each example, their "mean" or "sum", or "batch_mean", which is the mean.

    Returns:
      A layer with params `CRFParams(A: (K, K), s: (K,), h: (K,))`, zero at first, x `(emissions, tags, lengths)`:
      `(B, T, K)`, integers `(B, T)` and `(B,)`; y is J `(B,)`, or `()`, in at least float32. A tag outside
      `[0, K)` before an example's end has J = +inf and a gradient of 0.

    Raises:
      ValueError: shapes do not fit, or not those of the params; K is 0; a mean, and B is 0.
      TypeError: x is no such tuple; emissions are not floating-point, or not of A's dtype; tags or lengths are not
        integers.
    """
    who = "crf"
    J_of = require_reduction(who, reduction)

    def init(key, x):
        K, dtype = x[0].shape[-1], x[0].dtype
        return CRFParams(jnp.zeros((K, K), dtype), jnp.zeros(K, dtype), jnp.zeros(K, dtype))

    def forward(params, x: Tagged):
        z, tags, lengths = x.emissions, widen_integers(x.tags), within(x.lengths, x.tags.shape[1])
        J_of.divisor((len(z),))
        own, possible = _of_tags(params, z, tags, lengths)
        log_Z, r = _beginnings(params, z, lengths, own)
        J = jnp.where(possible, nats(-log_Z), jnp.inf)
        return J_of.of(J), CRFCache(z, tags, lengths, r)

    def backward(params, cache, dJ):
        x, tags, lengths, r = cache
        B, T, K = x.shape
        own, possible = _of_tags(params, x, tags, lengths)
        weight = jnp.where(possible, jnp.broadcast_to(J_of.at_terms(dJ, (B,)), (B,)), 0)
        g, n, last = _expected(params, x, lengths, own, r, weight)
        counted = used(lengths, T)[:, :, None] & jax.nn.one_hot(tags, K, dtype=bool)
        observed = jnp.where(counted, weight[:, None, None], 0)
        dx = balanced(g - observed, _is_likely(g, weight[:, None, None]))
        highest = lax.Precision.HIGHEST
        left = jnp.where(used(lengths - 1, T)[:, :-1, None], observed[:, :-1], 0)
        dA = n - jnp.einsum("bti,btj->ij", left, counted[:, 1:].astype(r.dtype), precision=highest)
        at_end = jax.nn.one_hot(lengths - 1, T, dtype=r.dtype)
        of_last = last - jnp.einsum("bt,btj->bj", at_end, observed, precision=highest)
        dh = jnp.sum(balanced(of_last, _is_likely(last, weight[:, None])), 0)
        ds = jnp.sum(dx[:, :1], (0, 1))
        return CRFParams(*(cast(d, x.dtype) for d in (dA, ds, dh))), (cast(dx, x.dtype), None, None)

    return Layer(init, forward, backward, who)


def crf_marginals(params: CRFParams, emissions: Array, lengths: Array) -> Marginals:
    """What `crf` believes of the tags: P(y_t = j), and the expected number of each pair of neighbours in the batch.

    Args:
      params: `CRFParams(A: (K, K), s: (K,), h: (K,))`.
      emissions: `(B, T, K)`.
      lengths: integers `(B,)`.

    Returns:
      `Marginals(tags: (B, T, K), pairs: (K, K))`, in at least float32.

    Example:
      >>> p = bpref.CRFParams(jnp.zeros((3, 3)), jnp.zeros(3), jnp.zeros(3))
      >>> tags, _ = bpref.crf_marginals(p, jnp.zeros((1, 4, 3)), jnp.array([4]))
      >>> tags[0, 0]
      Array([0.33333334, 0.33333334, 0.33333334], dtype=float32)

    Raises:
      ValueError, TypeError: as `crf`.
    """
    call = Call("crf_marginals")
    require_type(call.who, "params", params, CRFParams)
    call.require("params", params, CRFParams)
    x, lengths = as_array(call.who, "emissions", emissions), as_array(call.who, "lengths", lengths)
    call.require("emissions", x, Tagged.__annotations__["emissions"])
    call.require("lengths", lengths, Tagged.__annotations__["lengths"])
    lengths = within(lengths, x.shape[1])
    nothing = jnp.zeros(x.shape[:2], widen(x).dtype)
    own = _Own(nothing, nothing, jnp.zeros(x.shape[:1], nothing.dtype))
    r = _beginnings(params, x, lengths, own)[1]
    return Marginals(*_expected(params, x, lengths, own, r, jnp.ones(x.shape[0], r.dtype))[:2])


def _beginnings(params: CRFParams, x: Array, lengths: Array, own: _Own) -> tuple[Array, Array]:
    """log Z: (B,), and r: (T, B, K), of weights less the tags' own."""
    A, s, h = (known(widen(p)) for p in params)
    B, T, K = x.shape

    def step(before, frame):
        r, total = before
        x_t, entered, live, goes_on = frame
        a = r + x_t
        peak = jnp.max(a, 1, keepdims=True)
        following = log_sum((a - peak)[:, :, None] + (A[None] - entered[:, None, None]), 1)
        ending = jnp.broadcast_to(log_sum(a - peak + (h[None] - own.left[:, None]), 1)[:, None], r.shape)
        after = jnp.where(goes_on, following, ending), total + peak
        return tuple(jnp.where(live, new, old) for new, old in zip(after, before, strict=True)), r

    entered_next = jnp.pad(own.entered[:, 1:], ((0, 0), (0, min(T, 1)))).T
    live, goes_on = used(lengths, T, 0)[..., None], used(lengths - 1, T, 0)[..., None]
    frames = _emissions(x, own), entered_next, live, goes_on
    first = jnp.sum(own.entered[:, :1], 1, keepdims=True)
    start = jnp.broadcast_to(s[None], (B, K)) - first, jnp.zeros((B, 1), s.dtype)
    (ended, total), r = scan(step, start, frames)
    return jnp.where(lengths > 0, ended[:, 0] + total[:, 0], 0), r


def _expected(
    params: CRFParams, x: Array, lengths: Array, own: _Own, r: Array, weight: Array
) -> tuple[Array, Array, Array]:
    """The examples' `weight` times g: (B, T, K) and g_L: (B, K); and times n, summed over all: (K, K)."""
    A, _, h = (known(widen(p)) for p in params)
    B, T, K = x.shape
    a = r + _emissions(x, own)
    a = a - jnp.max(a, 2, keepdims=True)
    at_end = jnp.clip(lengths - 1, 0, max(T - 1, 0))
    final = jnp.take_along_axis(a, at_end[None, :, None], 0)[0] if T else jnp.zeros((B, K), r.dtype)
    last = jax.nn.softmax(final + h[None], 1)

    def step(after, frame):
        g, n = after
        a_before, r_t, entered, live = frame
        part = jnp.exp(a_before[:, :, None] + (A[None] - entered[:, None, None]) - r_t[:, None, :]) * g[:, None, :]
        before = jnp.sum(part, 2)
        all_of_it = jnp.sum(before, 1, keepdims=True)
        pairs = jnp.where(live[:, :, None], part * (weight[:, None] / all_of_it)[:, :, None], 0)
        return (jnp.where(live, before / all_of_it, g), n + jnp.sum(pairs, 0)), g

    live = used(lengths, T, 0)[:, :, None]
    (first, n), g = scan(
        step, (last, jnp.zeros((K, K), r.dtype)), (a[:-1], r[1:], own.entered.T[1:], live[1:]), reverse=True
    )
    g = jnp.where(live, (jnp.concatenate([first[None], g]) if T else a) * weight[None, :, None], 0)
    return g.transpose(1, 0, 2), n, jnp.where((lengths > 0)[:, None], last * weight[:, None], 0)


def _is_likely(g: Array, weight: Array) -> Array:
    """Where a tag's probability, of which g is `weight` times, is beyond 1/2."""
    return jnp.abs(g) > jnp.abs(weight) / 2


def _emissions(x: Array, own: _Own) -> Array:
    """(T, B, K), less the tags' own."""
    return (known(widen(x)) - own.emitted[:, :, None]).transpose(1, 0, 2)


def _of_tags(params: CRFParams, x: Array, tags: Array, lengths: Array) -> tuple[_Own, Array]:
    """The tags' own weights, and which examples' tags have a probability that is not 0: (B,)."""
    A, s, h = (known(widen(p)) for p in params)
    B, T, K = x.shape
    live = used(lengths, T)
    y = jnp.clip(tags, 0, K - 1)
    emitted = jnp.take_along_axis(known(widen(x)), y[:, :, None], 2)[:, :, 0]
    emitted = jnp.where((tags >= 0) & (tags < K), emitted, LOG_ZERO)
    entered = jnp.concatenate([s[y[:, :1]], A[y[:, :-1], y[:, 1:]]], 1)
    at_end = lax.broadcasted_iota(jnp.int32, (B, T), 1) == lengths[:, None] - 1
    of_frames = [jnp.where(live, emitted, 0), jnp.where(live, entered, 0), jnp.where(at_end, h[y], 0)]
    possible = [is_possible(v) for v in of_frames]
    emitted, entered, left = (jnp.where(has, v, 0) for has, v in zip(possible, of_frames, strict=True))
    return _Own(emitted, entered, jnp.sum(left, 1)), jnp.all(possible[0] & possible[1] & possible[2], 1)


def reference(params: CRFParams, x: tuple[Array, ...], reduction: str = "none") -> Array:
    """The usual form: one scan over the frames, an example at a time."""
    A, s, h = params

    def one(x, tags, L):
        K = s.size

        def step(before, frame):
            a, score, previous = before
            t, x_t, y = frame
            is_tag = (y >= 0) & (y < K)
            gained = jnp.where(t == 0, s[y], A[previous, y]) + jnp.where(is_tag, x_t[y], -jnp.inf)
            new = x_t + jnp.where(t == 0, s, jax.nn.logsumexp(a[:, None] + A, axis=0))
            return tuple(jnp.where(t < L, v, old) for v, old in zip((new, score + gained, y), before, strict=True)), ()

        start = jnp.zeros_like(s), jnp.zeros_like(s[0]), jnp.zeros((), tags.dtype)
        (a, score, y), _ = lax.scan(step, start, (jnp.arange(len(x), dtype=L.dtype), x, tags))
        return jnp.where((L > 0) & (len(x) > 0), jax.nn.logsumexp(a + h) - score - h[y], jnp.zeros_like(score))

    J = jax.vmap(one)(*x)
    return naive_reduction(J, reduction)


# One tag alone is certain: J and its gradient are 0, and only their rounding could be compared.
_X = Real("B T K"), Integer("B T", 0, "K"), Integer("B", 0, "T", points=(99, 1))

RULE = Rule(
    "crf",
    crf,
    reference,
    cases=(
        Case("", _X, least={"K": 2}, timed={"B": 16, "T": 64, "K": 24}),
        Case("mean", _X, {"reduction": "mean"}, ("B",), fixed={"T": 6}, least={"K": 2}),
    ),
    cite="Lafferty, McCallum, Pereira, 'Conditional random fields' (ICML 2001), section 3",
    covers=("linear_chain_crf", "conditional_random_field"),
)
