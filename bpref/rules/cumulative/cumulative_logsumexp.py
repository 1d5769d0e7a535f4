"""cumulative_logsumexp: y_t = log(exp x_1 + ... + exp x_t) along one axis.

Forward, t along the axis, all other axes apart, with m_t the largest x so far and s_t the sum relative to it:

    m_t = max(m_{t-1}, x_t),   s_t = s_{t-1} exp(m_{t-1} - m_t) + exp(x_t - m_t)
    y_t = m_t + log s_t                                                   y, x: one shape

`reverse` counts t from the end. m is a shift that cancels. On a CPU these are T steps; elsewhere stretches, pairs of m
and s, are joined two by two in 2 log2 T steps, and so is S below.

Differential: delta y_t = sum_{k <= t} exp(x_k - y_t) delta x_k: the softmax of what came so far. The factor of
delta x_k in sum_t dy_t delta y_t is

    dx_k = sum_{t >= k} dy_t exp(x_k - y_t) = exp(x_k - y_k) S_k          dx: as x
    S_k  = sum_{t >= k} dy_t exp(y_k - y_t) = dy_k + exp(y_k - y_{k+1}) S_{k+1}

a recurrence from the end. Since y never decreases along the axis and x_k <= y_k, every exponential is at most 1.

Cached: x and y, from which every softmax is made again. y is the output.

Numerical care: the textbook form exp(x_k) sum_t dy_t exp(-y_t) overflows for |x| of 89 in float32; above, nothing
does. The forward rounds s, a number from 1 to T, at every step, and y once: to add in logarithms, as in
log(exp y + exp x), would round y itself T times. The rounding of y cancels from S, since the factors telescope.
A long axis is sqrt(T) blocks: their sums are accumulated first, and join the first element of the next block, so that
no sum has more than 2 sqrt(T) terms and no product as many factors. At T = 16,384 dx is as precise as autodiff's, where
T terms in sequence were 3 to 20 times less.
Half precision is computed in float32. x_t = -inf is a term of zero: its gradient is 0, and so it is where nothing but
-inf came so far and y_t = -inf. Beside +inf the softmax is not defined, and NaN.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.caches import InputAndOutputCache
from bpref.formulas.indexing.along_axis import axis_of, join_affine, run_along, scalar_as_line, shifted
from bpref.formulas.long_sums import LONG, apart, in_blocks, joined_blocks, together
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


def cumulative_logsumexp(axis: int = -1, reverse: bool = False) -> Layer[tuple[()], Array, Reals, InputAndOutputCache]:
    """y_t = the logarithm of the sum of exp(x_k) over k up to t.

    Args:
      axis: the axis that is summed along, counted from the last if negative.
      reverse: whether the sum runs from the end: over k from t on.

    Returns:
      A layer with params `()`, x of any shape and y of x's shape and dtype; a scalar is a line of one element. x may be
      -inf, with a gradient of 0.

    Raises:
      ValueError: x has no such axis.
      TypeError: x is not floating-point.
    """
    who = "cumulative_logsumexp"
    require_flags(who, reverse=reverse)

    def add(so_far, x_t):
        m, s = _together(so_far, (x_t, jnp.ones_like(x_t)))
        return (m, s), m + jnp.log(s)

    def add_joined(x, axis, reverse):
        m, s = lax.associative_scan(_together, (x, jnp.ones_like(x)), reverse=reverse, axis=axis)
        return m + jnp.log(s)

    def nothing(like):
        return jnp.full_like(like, -jnp.inf), jnp.zeros_like(like)

    def total(x, axis):
        T = x.shape[axis]
        if T <= LONG:
            return run_along(add, nothing, (x,), axis, reverse, add_joined)
        blocks = in_blocks(x, axis, -jnp.inf, reverse)
        sums = jax.nn.logsumexp(blocks, axis + 1)
        before = lax.expand_dims(shifted(total(sums, axis), axis, reverse, -jnp.inf), (axis + 1,))
        first, others = apart(blocks, axis + 1, reverse)
        m, s = _together((before, jnp.ones_like(before)), (first, jnp.ones_like(first)))
        blocks = together(m + jnp.log(s), others, axis + 1, reverse)
        return joined_blocks(run_along(add, nothing, (blocks,), axis + 1, reverse, add_joined), axis, T, reverse)

    def gather_up(S_later, dy_k, decay):
        S_k = dy_k + decay * S_later
        return S_k, S_k

    def gather_joined(dy, decay, axis, reverse):
        return join_affine(decay, dy, axis, reverse)[1]

    def gathered(dy, y, axis):
        """S, a block's from its own dy and the S of the next one."""
        T = y.shape[axis]
        if T <= LONG:
            decay = _ratio(y, shifted(y, axis, not reverse, jnp.inf))
            return run_along(gather_up, jnp.zeros_like, (dy, decay), axis, not reverse, gather_joined)
        dys, ys = in_blocks(dy, axis, 0.0, reverse), in_blocks(y, axis, -jnp.inf, reverse)
        top = apart(ys, axis + 1, reverse)[0]
        sums = jnp.sum(dys * _ratio(top, ys), axis + 1)
        top = jnp.squeeze(top, axis + 1)
        S = gathered(sums, top, axis)
        S, top = (lax.expand_dims(shifted(v, axis, not reverse, z), (axis + 1,)) for v, z in ((S, 0.0), (top, jnp.inf)))
        last, others = apart(dys, axis + 1, not reverse)
        dys = together(last + _ratio(apart(ys, axis + 1, not reverse)[0], top) * S, others, axis + 1, not reverse)
        decay = _ratio(ys, shifted(ys, axis + 1, not reverse, jnp.inf))
        S = run_along(gather_up, jnp.zeros_like, (dys, decay), axis + 1, not reverse, gather_joined)
        return joined_blocks(S, axis, T, reverse)

    def forward(params, x: Float[Array, "..."]):
        y = cast(total(widen(x), axis_of(who, "x", x, axis)), x.dtype)
        return y, InputAndOutputCache(x, y)

    def backward(params, cache, dy):
        x, y = map(widen, cache)
        return (), cast(_ratio(x, y) * gathered(widen(dy), y, axis % x.ndim), dy.dtype)

    return scalar_as_line(Layer(no_params, forward, backward, who), axis)


def _together(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """The largest element m, and s, the sum of exponentials relative to it, of two stretches as one."""
    (m, s), (m_later, s_later) = first, second
    largest = jnp.maximum(m, m_later)
    shift = jnp.where(jnp.isfinite(largest), largest, 0)
    return largest, s * jnp.exp(m - shift) + s_later * jnp.exp(m_later - shift)


def _ratio(v: Array, w: Array) -> Array:
    """exp(v - w), the share of v in w; 0 where w is the logarithm of nothing."""
    is_nothing = w == -jnp.inf
    return jnp.where(is_nothing, 0, jnp.exp(v - jnp.where(is_nothing, 0, w)))


def reference(params: tuple[()], x: Array, axis: int = -1, reverse: bool = False) -> Array:
    return lax.cumlogsumexp(x, axis % x.ndim, reverse)


RULE = Rule(
    "cumulative_logsumexp",
    cumulative_logsumexp,
    reference,
    cases=(
        Case("last axis", Real("N T", points=(100.0, -100.0, 1e4, -1e4))),
        Case(
            "middle axis, from the end", Real("B T d"), {"axis": 1, "reverse": True}, timed={"B": 64, "T": 512, "d": 32}
        ),
    ),
    cite="Blanchard, Higham and Higham, 'Accurately computing the log-sum-exp and softmax functions' (2021)",
    covers=("logcumsumexp",),
)
