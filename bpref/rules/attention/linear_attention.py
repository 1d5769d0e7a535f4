"""linear_attention: attention whose weights are products of features, so that its past is one matrix.

Forward, for each head, with q, k of shape (T, D), v of shape (T, E), phi(z) = elu(z) + 1 or relu(z) or z element by
element, a = phi(q), b = phi(k), and s over the steps up to t (over all of them when it is not causal):

    o_t = sum_{s<=t} (a_t . b_s) v_s                                      (T, E)
    n_t = sum_{s<=t} a_t . b_s                                            (T,)
    y_t = o_t / n_t            without `normalize`  y_t = o_t             (T, E)

n is the o of values that are all 1. So let w = (v, 1), of E + 1 features, and there is one operator of three sequences:

    O(a, b, w)_t = sum_{s<=t} (a_t . b_s) w_s = a_t^T S_t,     S_t = S_{t-1} + b_t w_t^T      S: (D, E + 1)

S_0 is 0 unless it is given, and adds a_t^T S_0 to O; S_T is given out if it is asked for: what one piece of a sequence
hands on to the next. The last feature of both is the sum of the features of the keys, without `normalize` there is
none. Of packed sequences each begins with a state of 0, and s runs over the steps of its own alone.

Differential, with (o, n) = O(a, b, w) and g the cotangent of (o, n):

    dJ = sum_{s<=t} (delta a_t . b_s) (w_s . g_t) + (a_t . delta b_s) (w_s . g_t) + (a_t . b_s) (delta w_s . g_t)

Each perturbation's factor is the same operator again, of other sequences, where sums over t >= s run backwards in time:

    da_t = sum_{s<=t} (g_t . w_s) b_s = O(g, w, b)_t                      (T, D)
    db_s = sum_{t>=s} (w_s . g_t) a_t = O'(w, g, a)_s                     (T, D)
    dw_s = sum_{t>=s} (b_s . a_t) g_t = O'(b, a, g)_s                     (T, E + 1)
    dS_0 = sum_t a_t g_t^T + dS_T                                         (D, E + 1)

with dS_T the cotangent of the S_T that is given out, or 0. O starts from S_0^T in da; O' of db from dS_T^T, that of dw
from dS_T, and ends with dS_0.

Of the quotient, delta y = (delta o - y delta n) / n; with h = dy / n and the a-cotangent of o alone, c = O(h, v, b)
from S_0^T without its last row,

    do_t = h_t        dn_t = -(h_t . o_t) / n_t = -(a_t . c_t) / n_t          g = (do, dn)
    dq = phi'(q) da     dk = phi'(k) db     dv = dw without its last feature

Where n_t is 0 (relu of features that do not meet, exponentials that vanish), y_t is 0, and no cotangent passes.
phi'(z) of elu(z) + 1 is min(phi(z), 1), there is no kink; relu'(0) = 0. Where N / K heads of q share one of k and v,
they are that many rows at the same step: db and dw sum over them.

The operator works by chunks of L steps: inside, (A * M) w with A = a b^T and M_ts = [s <= t]; the steps before come as
a S, and S grows by b^T w for each chunk. O' is the same from the last chunk to the first, with M transposed. With n_t
the number of sequences that begin up to step t of a chunk, M_ts = 0 where n_t and n_s differ; S is for the a of n_t = 0
alone, is dropped where n_L > 0, and grows by the b of n_s = n_L alone; of O' these are the other way round. What is not
finite stays within its segment, see `bpref/formulas/recurrence/segments_apart.py`.

Cached: q, k and v; and n, one number for each head and step. Neither a state nor y: a . c says what y . dy would.

Numerical care: the state, n and all products are at least float32. elu(z) + 1 is exp(z) below 0, where expm1(z) + 1
would cancel. S grows with T, and late outputs have the round-off of the whole sum, as every order of summation has.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, PyTree

from bpref.checks.hyperparameters import require_choice, require_flags, require_size
from bpref.checks.shapes import require_shape
from bpref.dtypes import widen
from bpref.formulas.attention.heads import Heads
from bpref.formulas.attention.heads_to_try import TIMED_WITH_STATE, TWO_GROUPED
from bpref.formulas.attention.plain_heads import HeadsAndState, require_plain
from bpref.formulas.decoder import decoder, require_no_later
from bpref.formulas.long_sums import times
from bpref.formulas.recurrence.chunks import fitting, from_chunks, into_chunks, no_state_of, sees, transpose
from bpref.formulas.recurrence.decays import per_row
from bpref.formulas.recurrence.segments_apart import (
    bad_state,
    bad_steps,
    made_finite,
    nan_where,
    segment_numbers,
    spoiled,
)
from bpref.formulas.recurrence.states import arrived, from_state, given_out, into_state, require_alone
from bpref.formulas.recurrence.steps import Passed
from bpref.layer import Layer, no_params
from bpref.loops import scan
from bpref.naive.states import added, naive_states
from bpref.rule import Case, Integer, Real, Rule, called_as, specs


class LinearAttentionCache(NamedTuple):
    q: Float[Array, "*b T N D"]
    k: Float[Array, "*b S K D"]
    v: Float[Array, "*b S K E"]
    n: Float[Array, "*b T N 1"] | None
    ids: Int[Array, "*b T"] | None
    state: Float[Array, "*b K D F"] | None


class FeatureMap(NamedTuple):
    """phi, and phi' as a function of phi's value."""

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]


FEATURES = {
    "elu": FeatureMap(lambda z: jnp.where(z > 0, z + 1, jnp.exp(jnp.minimum(z, 0))), lambda a: jnp.minimum(a, 1)),
    "relu": FeatureMap(lambda z: jnp.maximum(z, 0), lambda a: (a > 0).astype(a.dtype)),
    "identity": FeatureMap(lambda z: z, jnp.ones_like),
}


def linear_attention(
    features: str = "elu", normalize: bool = True, causal: bool = True, chunk: int = 64, final: bool = False
) -> Layer[tuple[()], Heads | HeadsAndState, PyTree, LinearAttentionCache]:
    """y_t = sum_s (phi(q_t) . phi(k_s)) v_s / sum_s phi(q_t) . phi(k_s), at the cost of T, not of T^2.

    Args:
      features: phi: "elu" for elu + 1, "relu" or "identity".
      normalize: whether to divide by the sum of the weights; y is 0 where that is 0.
      causal: whether s runs up to t, or over all keys.
      chunk: L, the number of steps that are compared directly; it changes the cost, not the function.
      final: whether the state after all steps is given out beside y.

    Returns:
      A layer with params `()`, x `Heads(q: (*b, T, N, D), k: (*b, S, K, D), v: (*b, S, K, E), q_segments: (*b, T) or
      None)` or `HeadsAndState(heads, state: (*b, K, D, F))`, S = T if it is causal, N a multiple of K, and y
      `(*b, T, N, E)`, or if `final` `Passed(y, state: (*b, K, D, F))`. F is E + 1 if it is normalized, or else E.
      Queries are not scaled.

      A step whose segment is another than that of the step before it begins with a state of 0.

    Raises:
      ValueError: an argument is out of its range; shapes do not fit; x has a mask, bias, kv_segments or key; it has
        segments or a state, or gives one out, and is not causal.
      TypeError: x is no `Heads`; q, k and v are not floating-point numbers of one dtype.
    """
    who = "linear_attention"
    require_flags(who, normalize=normalize, causal=causal, final=final)
    require_choice(who, "features", features, FEATURES)
    chunk = require_size(who, "chunk", chunk)
    if final and not causal:
        raise ValueError(f"{who}: final is True, expected False: it is not causal, so that no step is the last")
    phi, slope = FEATURES[features]
    operator = _swept if causal else _global
    more = int(normalize)

    def chunked(z, K):
        T = z.shape[-3]
        return into_chunks(z, K, fitting(chunk if causal else T, T))

    def mapped(x):
        q, k, v = x[:3]
        K = k.shape[-2]
        return chunked(phi(widen(q)), K), chunked(phi(widen(k)), K), chunked(v, K)

    def counts(ids, K):
        """n, by chunks."""
        return None if ids is None else segment_numbers(ids, K, fitting(chunk, ids.shape[-1]))

    def require(x, state):
        require_plain(who, x, causal)
        if state is None:
            return
        if not causal:
            raise ValueError(f"{who}: x has a state, expected None: it is not causal, so that no step is the first")
        *b, _, K, D = x.k.shape
        E = x.v.shape[-1]
        because = f"by v {x.v.shape}" + ", of whose features there is one more as it is normalized" * normalize
        require_shape(who, "state", state, (*b, K, D, E + more), because)

    def run(x, S):
        """y by chunks, n of the quotient, and the state after all steps."""
        a, b, w = mapped(x)
        n = counts(x.q_segments, x.k.shape[-2])
        S, on = operator(S, a, b, _with_ones(w) if normalize else w, n)
        if not normalize:
            return on, None, S
        return on[..., :-1] * _inverse(on[..., -1:]), on[..., -1:], S

    def forward(params, x: Heads | HeadsAndState):
        heads, state = x if isinstance(x, HeadsAndState) else (x, None)
        require(heads, state)
        q, k, v = heads[:3]
        y, n, S = run(heads, into_state(state, heads, more))
        n = None if n is None else from_chunks(n, k.shape[-2], widen(q))
        return given_out(final, y, S, heads), LinearAttentionCache(q, k, v, n, heads.q_segments, state)

    def backward(params, cache, dy):
        q, k, v, n, ids, state = cache
        x, K = Heads(q, k, v), k.shape[-2]
        dy, dS = arrived(final, dy, x, more)
        a, b, w = mapped(x)
        g, of = chunked(dy, K), counts(ids, K)
        S = transpose(into_state(state, x, more))
        if normalize:
            per_n = _inverse(chunked(n, K))
            h = g * per_n
            c = operator(S[:, :-1], h, w, b, of)[1]
            dn = -jnp.sum(a * c, -1, keepdims=True) * per_n
            da = c + dn * operator(S[:, -1:], _ones(a), _ones(b), b, of)[1]
            g, w = jnp.concatenate((h, dn), -1), _with_ones(w)
        else:
            da = operator(S, g, w, b, of)[1]
        db = operator(transpose(dS), w, g, a, of, reverse=True)[1]
        dS, dw = operator(dS, b, a, g, of, reverse=True)
        dq, dk, dv = slope(a) * da, slope(b) * db, dw[..., : v.shape[-1]]
        dx = Heads(from_chunks(dq, K, q), from_chunks(dk, K, k), from_chunks(dv, K, v))
        return (), dx if state is None else HeadsAndState(dx, from_state(dS, x))

    def decoding(leaf, length):
        require_no_later(who, causal)

        def step(params, x, S):
            heads, state = x if isinstance(x, HeadsAndState) else (x, None)
            require_alone(who, state, heads.q_segments)
            require(heads, None)
            y, _, S = run(heads, S)
            return given_out(final, y, S, heads), S

        def start(params, x):
            heads = x.heads if isinstance(x, HeadsAndState) else x
            return no_state_of(heads.k, heads.v.shape[-1] + more)

        return decoder(leaf, start, step)

    return Layer(no_params, forward, backward, who, decoding=decoding)


def _swept(S: Array, a: Array, b: Array, w: Array, counts: Array | None, reverse: bool = False) -> tuple[Array, Array]:
    """The state after all chunks, S that before the first, and O or O' of (C, G, rows, features), chunk after chunk."""
    seen = sees(a.shape[2], b.shape[2], reverse)

    def step(S, now):
        a, b, w, n = now
        if n is None:
            inside = jnp.where(seen, times(a, transpose(b)), 0)
            return S + times(transpose(b), w), times(inside, w) + times(a, S)
        steps, after = spoiled(bad_steps(n.shape[1], (b, w)), n, bad_state(S), reverse)
        S, b, w = made_finite(S), made_finite(b), made_finite(w)
        inside = jnp.where(seen, times(a, transpose(b)), 0)
        of_a, of_b = (per_row(n, z.shape[1]) for z in (a, b))
        end = n[:, -1:]
        near, far = (end, 0) if reverse else (0, end)
        y = times(jnp.where(of_a == transpose(of_b), inside, 0), w) + jnp.where(of_a == near, times(a, S), 0)
        S = jnp.where(end == 0, S, 0) + times(transpose(jnp.where(of_b == far, b, 0)), w)
        return nan_where(after, S), nan_where(per_row(steps, y.shape[1]), y)

    return scan(step, S, (a, b, w, counts), reverse=reverse)


def _global(S: Array, a: Array, b: Array, w: Array, counts: Array | None, reverse: bool = False) -> tuple[Array, Array]:
    """The operator where every step sees all, which is its own reverse; without states."""
    return S, times(a, times(transpose(b), w))


def _with_ones(v: Array) -> Array:
    return jnp.concatenate((v, _ones(v)), -1)


def _ones(v: Array) -> Array:
    """One feature, 1 at every step."""
    return jnp.ones((*v.shape[:-1], 1), v.dtype)


def _inverse(n: Array) -> Array:
    """1 / n, and 0 where n is 0."""
    return jnp.where(n == 0, 0, 1 / jnp.where(n == 0, 1, n))


@called_as(linear_attention)
def reference(params: tuple[()], x: Heads | HeadsAndState, features, normalize, causal, final, **_) -> Array | Passed:
    phi = {"elu": lambda z: jax.nn.elu(z) + 1, "relu": jax.nn.relu, "identity": lambda z: z}[features]
    x, state = x if isinstance(x, HeadsAndState) else (x, None)
    v = jnp.concatenate([x.v, jnp.ones((*x.v.shape[:-1], 1), x.v.dtype)], -1) if normalize else x.v

    if causal:
        y, S = naive_states(added, x._replace(q=phi(x.q), k=phi(x.k), v=v), state=state, final=True)
    else:
        b, v = (jnp.repeat(z, x.q.shape[-2] // x.k.shape[-2], -2) for z in (phi(x.k), v))
        y, S = jnp.einsum("...tnd,...snd,...sne->...tne", phi(x.q), b, v), None
    y = y[..., :-1] / jnp.where(y[..., -1:] == 0, jnp.inf, y[..., -1:]) if normalize else y
    return Passed(y, S) if final else y


def _heads(v: str, **more: Integer) -> Heads:
    q, k, v_of = (Real(axes, -2.0, 2.0) for axes in ("B T N D", f"B {v} K D", f"B {v} K E"))
    return specs(Heads, q, k, v_of, **more)


def _from_state(features: str) -> HeadsAndState:
    state = Real(f"B K D {features}", 0.125, 1.0)
    return specs(HeadsAndState, _heads("T", q_segments=Integer("B T", 0, 2)), state)


RULE = Rule(
    "linear_attention",
    linear_attention,
    reference,
    cases=(
        Case("elu", _heads("T"), {"chunk": 5}, fixed=TWO_GROUPED),
        Case(
            "identity",
            _heads("T"),
            {"features": "identity", "normalize": False},
            fixed=TWO_GROUPED,
            timed=TIMED_WITH_STATE,
        ),
        Case(
            "from state to state, packed",
            _from_state("F"),
            {"chunk": 3, "final": True},
            fixed=TWO_GROUPED | {"E": 2, "F": 3},
        ),
        Case(
            "without quotient, from state to state, packed",
            _from_state("E"),
            {"features": "identity", "normalize": False, "chunk": 4, "final": True},
            fixed=TWO_GROUPED,
        ),
        Case("relu, not causal", _heads("S"), {"features": "relu", "causal": False}, fixed=TWO_GROUPED | {"S": 24}),
    ),
    cite="Katharopoulos et al., 'Transformers are RNNs' (2020), arXiv:2006.16236, equations 8 to 15",
    covers=("linear transformer", "kernelized attention"),
)
