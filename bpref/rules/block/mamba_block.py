"""mamba_block: x plus what a gated selective scan makes of it, the layer of which Mamba is stacked.

Forward, with x (N, T, d), e = expand d channels inside, n states of a channel and r the rank of the step sizes:

    xhat  = gamma x / rms(x)                    `rms_norm`                (N, T, d)
    [v z] = xhat W_in^T                                                   (N, T, 2e)
    c     = v * w + b                           `causal_convolution`, depthwise
    u     = silu(c)                                                       (N, T, e)
    [R B C] = u W_x^T                                                     (N, T, r + 2n)
    delta = R W_delta^T                                                   (N, T, e)
    y     = scan(u, delta, B, C)                `selective_scan`          (N, T, e)
    o     = y silu(z)                                                     (N, T, e)
    out   = x + o W_out^T                                                 (N, T, d)

What one piece of a sequence hands on to the next are the last rows of v, as many as the convolution reads before the
first step, and the scan's state; both are 0 unless they are given. Of packed sequences none reads what is another's.

Differential: each line's own, from the last to the first. In the order of the adjoint, with dout the cotangent of out,

    do     = dout W_out,           dW_out = sum dout^T o
    dy     = do silu(z),           dz     = do y silu'(z)
    du', ddelta, dB, dC            the adjoint of `selective_scan`
    dR     = ddelta W_delta,       dW_delta = sum ddelta^T R
    du     = du' + [dR dB dC] W_x, dW_x   = sum [dR dB dC]^T u
    dc     = du silu'(c),          dv, dw, db the adjoint of `causal_convolution`
    dxhat  = [dv dz] W_in,         dW_in  = sum [dv dz]^T xhat
    dx     = dout + the adjoint of `rms_norm` at dxhat

u is read twice, by the scan and by W_x, and x twice: their cotangents add up. Of what is handed on, the cotangents are
those of the last rows of v, to which they are added, and of the last state.

Cached: x and its rms, the products [v z], [R B C] and delta, the scan's output y and the states between its chunks. No
matrix product and no recurrence outside a chunk is run again; xhat, c, u, the gate and o, a few operations for each
element, are.

Numerical care: that of its parts. Between them values are rounded to x's dtype, as each part alone would.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, PyTree

from bpref.checks.hyperparameters import require_flags, require_positive, require_sizes
from bpref.checks.shapes import require_shape
from bpref.cotangents import with_zeros
from bpref.dtypes import cast
from bpref.formulas.affine import lecun_uniform, times, times_transposed, transposed_times
from bpref.formulas.caches import InputCache
from bpref.formulas.decoder import decoder
from bpref.formulas.recurrence.states import begins, require_alone
from bpref.formulas.recurrence.steps import Passed
from bpref.formulas.recurrence.taps import pull_taps, taps
from bpref.layer import Layer
from bpref.naive.dense import naive_norm
from bpref.rule import Case, Integer, Real, Rule, Size, called_as, specs
from bpref.rules.activation.silu import silu
from bpref.rules.convolution.causal_convolution import causal_convolution
from bpref.rules.convolution.convolution import ConvolutionParams
from bpref.rules.norm.rms_norm import RmsNormCache, RmsNormParams, rms_norm
from bpref.rules.state_space import selective_scan as scans
from bpref.rules.state_space.selective_scan import Selective, SelectiveScanCache, SelectiveScanParams, selective_scan


class MambaState(NamedTuple):
    """What a piece of a sequence leaves to the next.

    Attributes:
      v: the last inputs of the convolution, w - 1 of them.
      h: the state of the scan.
    """

    v: Float[Array, "N p e"]
    h: Float[Array, "N e n"]


class MambaSteps(NamedTuple):
    """The input of a Mamba block that is more than the plain array x.

    Attributes:
      x: the inputs of all steps.
      state: what is left of earlier ones; zeros where it is left out. Its cotangent is given back.
      segments: ids of packed sequences: a step whose id is another than that of the step before it begins anew.
    """

    x: Float[Array, "N T>0 d>0"]
    state: MambaState | None = None
    segments: Int[Array, "N T"] | None = None

    by_name = True


class MambaBlockParams(NamedTuple):
    norm: RmsNormParams
    W_in: Float[Array, "2e d"]
    conv: ConvolutionParams
    W_x: Float[Array, "r+2n e"]
    W_delta: Float[Array, "e r"]
    scan: SelectiveScanParams
    W_out: Float[Array, "d e"]


class MambaBlockCache(NamedTuple):
    x: Float[Array, "N T d"] | MambaSteps
    rms: Float[Array, "N T 1"]
    vz: Float[Array, "N T 2e"]
    RBC: Float[Array, "N T r+2n"]
    delta: Float[Array, "N T e"]
    y: Float[Array, "N T e"]
    starts: Float[Array, "chunks N n e"]


def mamba_block(
    states: int = 16,
    expand: int = 2,
    rank: int = 8,
    window: int = 4,
    eps: float = 1e-5,
    chunk: int = 64,
    final: bool = False,
) -> Layer[MambaBlockParams, Array | MambaSteps, PyTree, MambaBlockCache]:
    """out = x + W_out (scan(silu(conv(v))) silu(z)) with v and z projected from the normed x.

    Args:
      states: n, the number of states of each channel.
      expand: how many channels there are inside for each feature of x: e = expand d.
      rank: r, of the projection that makes the step sizes; Mamba takes d / 16.
      window: how many steps of time the convolution sees.
      eps: what `rms_norm` adds to the mean square.
      chunk: how many steps of time share one kept state.
      final: whether what the next piece of a sequence has need of is given out beside y.

    Returns:
      A layer with params `MambaBlockParams(norm, W_in: (2e, d), conv, W_x: (r + 2n, e), W_delta: (e, r), scan,
      W_out: (d, e))`, x `(N, T, d)` or `MambaSteps(x, state: MambaState(v: (N, window - 1, e), h: (N, e, n)) or None,
      segments: (N, T) or None)`, and y `(N, T, d)`, or if `final` `Passed(y, state: MambaState)`. The parts' parameters
      are drawn as theirs are, weights uniformly with variance 1 over the number of their inputs (LeCun).

    Raises:
      ValueError: a size is not a positive integer; eps is not positive; x is not (N, T, d) with at least one T and
        one d, or has another d than W_in; the state does not fit.
      TypeError: x is not floating-point, or not of W_in's dtype.
    """
    who = "mamba_block"
    states, expand, rank, window, chunk = require_sizes(
        who, states=states, expand=expand, rank=rank, window=window, chunk=chunk
    )
    eps = require_positive(who, "eps", eps)
    require_flags(who, final=final)
    norm, act, past = rms_norm(eps), silu(), window - 1
    scan = selective_scan(states, chunk=chunk, final=True)

    def as_steps(x):
        return x if isinstance(x, MambaSteps) else MambaSteps(x)

    def begun(x):
        """What the convolution reads before the first step, and where the scan starts."""
        e = expand * x.x.shape[2]
        of_v, of_h = (x.x.shape[0], past, e), (x.x.shape[0], e, states)
        if x.state is None:
            return MambaState(jnp.zeros(of_v, x.x.dtype), jnp.zeros(of_h, x.x.dtype))
        require_shape(who, "state.v", x.state.v, of_v, f"by x {x.x.shape}")
        require_shape(who, "state.h", x.state.h, of_h, f"by x {x.x.shape}")
        return x.state

    def numbers(ids):
        """How many sequences have begun, at the rows before and at every step."""
        if ids is None:
            return None
        return jnp.pad(jnp.cumsum(begins(ids), 1, jnp.int32), ((0, 0), (past, 0)))

    def rest(rows, n):
        """The last of these rows, zeros for those of another sequence than the last row is of."""
        of_end = rows[:, rows.shape[1] - past :]
        return of_end if n is None else jnp.where((n[:, n.shape[1] - past :] == n[:, -1:])[..., None], of_end, 0)

    def init(key, x):
        x = as_steps(x).x
        N, T, d = x.shape
        e = expand * d
        keys = jax.random.split(key, 6)
        inner, of_states = (jax.ShapeDtypeStruct((N, T, n), x.dtype) for n in (e, states))
        return MambaBlockParams(
            norm.init(key, x),
            lecun_uniform(keys[0], (2 * e, d), d, x.dtype),
            causal_convolution(e, window, groups=e).init(keys[1], inner),
            lecun_uniform(keys[2], (rank + 2 * states, e), e, x.dtype),
            lecun_uniform(keys[3], (e, rank), rank, x.dtype),
            scan.init(keys[4], specs(Selective, inner, inner, of_states, of_states)),
            lecun_uniform(keys[5], (d, e), e, x.dtype),
        )

    def forward(params, x: Float[Array, "N T>0 d>0"] | MambaSteps):
        y, cache = run(params, as_steps(x))
        return y, cache._replace(x=x)

    def run(params, given):
        x, e = given.x, params.W_out.shape[1]
        before, n = begun(given), numbers(given.segments)
        xhat, of_norm = norm.forward(params.norm, x)
        vz = cast(times_transposed(xhat, params.W_in), x.dtype)
        v = jnp.concatenate((before.v, vz[..., :e]), 1)
        u = act.forward((), taps(params.conv.W, params.conv.b, v, n))[0]
        RBC = cast(times_transposed(u, params.W_x), x.dtype)
        delta = cast(times_transposed(RBC[..., :rank], params.W_delta), x.dtype)
        (y, h), of_scan = scan.forward(params.scan, scanned(u, delta, RBC, given, before))
        o = y * act.forward((), vz[..., e:])[0]
        out = x + cast(times_transposed(o, params.W_out), x.dtype)
        out = Passed(out, MambaState(rest(v, n), h)) if final else out
        return out, MambaBlockCache(x, of_norm.rms, vz, RBC, delta, y, of_scan.starts)

    def scanned(u, delta, RBC, given, before):
        B, C = RBC[..., rank : rank + states], RBC[..., rank + states :]
        return Selective(u, delta, B, C, before.h, given.segments)

    def backward(params, cache, dout):
        x, rms, vz, RBC, delta, y, starts = cache
        given = as_steps(x)
        x, e, dtype = given.x, params.W_out.shape[1], given.x.dtype
        before, n = begun(given), numbers(given.segments)
        dout, dafter = dout if final else (dout, None)
        dout, dafter = with_zeros(dout, x), None if dafter is None else with_zeros(dafter, before)
        W, b = params.conv
        v, z = jnp.concatenate((before.v, vz[..., :e]), 1), vz[..., e:]
        xhat = norm.forward(params.norm, x)[0]
        c = taps(W, b, v, n)
        u, gate = act.forward((), c)[0], act.forward((), z)[0]

        do = cast(times(dout, params.W_out), dtype)
        dW_out = cast(transposed_times(dout, y * gate), dtype)
        dz = act.backward((), InputCache(z), do * y)[1]

        of_scan = SelectiveScanCache(scanned(u, delta, RBC, given, before), starts)
        dscan, (du, ddelta, dB, dC, dh, _) = scan.backward(params.scan, of_scan, Passed(do * gate, dafter and dafter.h))
        dW_delta = cast(transposed_times(ddelta, RBC[..., :rank]), dtype)
        dRBC = jnp.concatenate((cast(times(ddelta, params.W_delta), dtype), dB, dC), -1)
        dW_x = cast(transposed_times(dRBC, u), dtype)
        du = du + cast(times(dRBC, params.W_x), dtype)

        dW, db, dv = pull_taps(W, b, v, n, act.backward((), InputCache(c), du)[1])
        if dafter is not None:
            dv = dv.at[:, v.shape[1] - past :].add(rest(dafter.v, n))
        dvz = jnp.concatenate((dv[:, past:], dz), -1)
        dW_in = cast(transposed_times(dvz, xhat), dtype)
        dxhat = cast(times(dvz, params.W_in), dtype)
        dnorm, dx = norm.backward(params.norm, RmsNormCache(x, rms), dxhat)
        dconv, dx = ConvolutionParams(dW, db), dout + dx
        if isinstance(cache.x, MambaSteps):
            dx = MambaSteps(dx, None if given.state is None else MambaState(dv[:, :past], dh))
        return MambaBlockParams(dnorm, dW_in, dconv, dW_x, dW_delta, dscan, dW_out), dx

    def decoding(leaf, length):
        going_on = mamba_block(states, expand, rank, window, eps, chunk, final=True)

        def start(params, x):
            x = as_steps(x)
            require_alone(who, x.state and x.state.h, x.segments, "segments")
            return begun(x)

        def step(params, x, before):
            y = going_on.forward(params, MambaSteps(as_steps(x).x, before))[0]
            return (y if final else y.y), y.state

        return decoder(leaf, start, step)

    return Layer(init, forward, backward, who, decoding=decoding)


@called_as(mamba_block)
def reference(params: MambaBlockParams, x: Array | MambaSteps, states, expand, rank, window, eps, final, **_) -> PyTree:
    norm, W_in, conv, W_x, W_delta, scan, W_out = params
    assert norm.scale is not None
    assert conv.b is not None
    x, state, ids = x if isinstance(x, MambaSteps) else MambaSteps(x)
    N, T, d = x.shape
    ids = jnp.zeros((N, T), int) if ids is None else ids
    if state is None:
        state = MambaState(*(jnp.zeros((N, *of), x.dtype) for of in ((window - 1, expand * d), (expand * d, states))))
    number = jnp.cumsum(ids != jnp.concatenate((ids[:, :1], ids[:, :-1]), 1), 1)
    number = jnp.concatenate((jnp.zeros((N, window - 1), number.dtype), number), 1)
    v, z = jnp.split(naive_norm(x, norm.scale, None, eps) @ W_in.T, 2, -1)
    past = jnp.concatenate((state.v, v), 1)
    reach = (jnp.arange(window - 1 + T)[None] - jnp.arange(T)[:, None])[None, ..., None]
    same = (number[:, None] == number[:, window - 1 :, None])[..., None]
    W = sum(jnp.where((reach == i) & same, conv.W[:, i, 0][None, None, None], 0) for i in range(window))
    u = jax.nn.silu(jnp.einsum("ntse,nse->nte", W, past) + jnp.broadcast_to(conv.b, v.shape))
    R, B, C = jnp.split(u @ W_x.T, (rank, rank + states), -1)
    y = scans.reference(scan, Selective(u, R @ W_delta.T, B, C, state.h, ids), final=True)
    out = x + (y.y * jax.nn.silu(z)) @ W_out.T
    left = jnp.where(number[:, T:, None] == number[:, -1:, None], past[:, T:], 0)
    return Passed(out, MambaState(left, y.state)) if final else out


_PARAMS = MambaBlockParams._make(
    (
        RmsNormParams._make([Real("d", 0.5, 2.0)]),
        Real("p d", -0.8, 0.8),
        ConvolutionParams._make((Real("e k one", -0.8, 0.8), Real("e", -0.5, 0.5))),
        Real("q e", -0.5, 0.5),
        Real("e r", -0.8, 0.8),
        SelectiveScanParams._make((Real("e n", -2.0, 1.0), Real("e"), Real("e", -3.0, 1.0))),
        Real("d e", -0.5, 0.5),
    )
)

RULE = Rule(
    "mamba_block",
    mamba_block,
    reference,
    cases=(
        Case(
            "",
            Real("N T d"),
            {"states": Size("n"), "rank": Size("r"), "window": Size("k"), "chunk": Size("c")},
            params=_PARAMS,
            never_empty=("T",),
            fixed={"d": 4, "p": 16, "e": 8, "k": 3, "one": 1, "n": 3, "r": 2, "q": 8, "c": 5},
            timed={"N": 1, "T": 1024, "d": 64, "p": 256, "e": 128, "k": 4, "one": 1, "n": 16, "r": 4, "q": 36, "c": 64},
        ),
        Case(
            "from state to state, packed",
            specs(
                MambaSteps,
                Real("N T d"),
                specs(MambaState, Real("N past e", -1.0, 1.0), Real("N e n", -1.0, 1.0)),
                Integer("N T", 0, 2),
            ),
            {"states": Size("n"), "rank": Size("r"), "window": Size("k"), "chunk": Size("c"), "final": True},
            params=_PARAMS,
            never_empty=("T",),
            fixed={"d": 4, "p": 16, "e": 8, "k": 3, "past": 2, "one": 1, "n": 3, "r": 2, "q": 8, "c": 2},
        ),
    ),
    cite="Gu and Dao, 'Mamba: linear-time sequence modeling with selective state spaces' (2023), arXiv:2312.00752, "
    "figure 3",
    covers=("mamba layer",),
)
