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

Differential: each line's own, from the last to the first. In the order of the adjoint, with dout the cotangent of out,

    do     = dout W_out,           dW_out = sum dout^T o
    dy     = do silu(z),           dz     = do y silu'(z)
    du', ddelta, dB, dC            the adjoint of `selective_scan`
    dR     = ddelta W_delta,       dW_delta = sum ddelta^T R
    du     = du' + [dR dB dC] W_x, dW_x   = sum [dR dB dC]^T u
    dc     = du silu'(c),          dv, dw, db the adjoint of `causal_convolution`
    dxhat  = [dv dz] W_in,         dW_in  = sum [dv dz]^T xhat
    dx     = dout + the adjoint of `rms_norm` at dxhat

u is read twice, by the scan and by W_x, and x twice: their cotangents add up.

Cached: x and its rms, the products [v z], [R B C] and delta, the scan's output y and the states between its chunks. No
matrix product and no recurrence outside a chunk is run again; xhat, c, u, the gate and o, a few operations for each
element, are.

Numerical care: that of its parts. Between them values are rounded to x's dtype, as each part alone would.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_positive, require_sizes
from bpref.dtypes import cast
from bpref.formulas.affine import lecun_uniform, times, times_transposed, transposed_times
from bpref.formulas.decoder import decoder
from bpref.layer import Layer, Reals
from bpref.rule import Case, Real, Rule, Size, called_as, specs
from bpref.rules.activation.silu import SiluCache, silu
from bpref.rules.convolution.causal_convolution import causal_convolution
from bpref.rules.convolution.convolution import ConvolutionCache, ConvolutionParams
from bpref.rules.norm.rms_norm import RmsNormCache, RmsNormParams, rms_norm
from bpref.rules.state_space import selective_scan as scans
from bpref.rules.state_space.selective_scan import Selective, SelectiveScanCache, SelectiveScanParams, selective_scan


class MambaBlockParams(NamedTuple):
    norm: RmsNormParams
    W_in: Float[Array, "2e d"]
    conv: ConvolutionParams
    W_x: Float[Array, "r+2n e"]
    W_delta: Float[Array, "e r"]
    scan: SelectiveScanParams
    W_out: Float[Array, "d e"]


class MambaBlockCache(NamedTuple):
    x: Float[Array, "N T d"]
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
) -> Layer[MambaBlockParams, Array, Reals, MambaBlockCache]:
    """out = x + W_out (scan(silu(conv(v))) silu(z)) with v and z projected from the normed x.

    Args:
      states: n, the number of states of each channel.
      expand: how many channels there are inside for each feature of x: e = expand d.
      rank: r, of the projection that makes the step sizes; Mamba takes d / 16.
      window: how many steps of time the convolution sees.
      eps: what `rms_norm` adds to the mean square.
      chunk: how many steps of time share one kept state.

    Returns:
      A layer with params `MambaBlockParams(norm, W_in: (2e, d), conv, W_x: (r + 2n, e), W_delta: (e, r), scan,
      W_out: (d, e))`, x `(N, T, d)` and y `(N, T, d)`. The parts' parameters are drawn as theirs are, weights uniformly
      with variance 1 over the number of their inputs (LeCun).

    Raises:
      ValueError: a size is not a positive integer; eps is not positive; x is not (N, T, d) with at least one T and
        one d, or has another d than W_in.
      TypeError: x is not floating-point, or not of W_in's dtype.
    """
    who = "mamba_block"
    states, expand, rank, window, chunk = require_sizes(
        who, states=states, expand=expand, rank=rank, window=window, chunk=chunk
    )
    eps = require_positive(who, "eps", eps)
    norm, act, scan = rms_norm(eps), silu(), selective_scan(states, chunk=chunk)
    passing = selective_scan(states, chunk=chunk, final=True)

    def widened(x):
        e = expand * x.shape[2]
        return e, causal_convolution(e, window, groups=e)

    def init(key, x):
        e, conv = widened(x)
        N, T, d = x.shape
        keys = jax.random.split(key, 6)
        inner, of_states = (jax.ShapeDtypeStruct((N, T, n), x.dtype) for n in (e, states))
        return MambaBlockParams(
            norm.init(key, x),
            lecun_uniform(keys[0], (2 * e, d), d, x.dtype),
            conv.init(keys[1], inner),
            lecun_uniform(keys[2], (rank + 2 * states, e), e, x.dtype),
            lecun_uniform(keys[3], (e, rank), rank, x.dtype),
            scan.init(keys[4], specs(Selective, inner, inner, of_states, of_states)),
            lecun_uniform(keys[5], (d, e), e, x.dtype),
        )

    def forward(params, x: Float[Array, "N T>0 d>0"]):
        return run(params, x, None)[:2]

    def run(params, x, before):
        """y, the cache, and what is remembered: the last inputs of the convolution, and the state of the scan."""
        e, conv = widened(x)
        xhat, of_norm = norm.forward(params.norm, x)
        vz = cast(times_transposed(xhat, params.W_in), x.dtype)
        v = vz[..., :e]
        if before is not None:
            v = jnp.concatenate((before[0], v), 1)
        u = act.forward((), conv.forward(params.conv, v)[0][:, v.shape[1] - x.shape[1] :])[0]
        RBC = cast(times_transposed(u, params.W_x), x.dtype)
        delta = cast(times_transposed(RBC[..., :rank], params.W_delta), x.dtype)
        if before is None:
            y, of_scan = scan.forward(params.scan, scanned(u, delta, RBC))
            after = None
        else:
            (y, h), of_scan = passing.forward(params.scan, scanned(u, delta, RBC)._replace(state=before[1]))
            after = v[:, v.shape[1] - window + 1 :], h
        o = y * act.forward((), vz[..., e:])[0]
        out = x + cast(times_transposed(o, params.W_out), x.dtype)
        return out, MambaBlockCache(x, of_norm.rms, vz, RBC, delta, y, of_scan.starts), after

    def scanned(u, delta, RBC):
        return Selective(u, delta, RBC[..., rank : rank + states], RBC[..., rank + states :])

    def backward(params, cache, dout):
        x, rms, vz, RBC, delta, y, starts = cache
        e, conv = widened(x)
        dtype = x.dtype
        v, z = vz[..., :e], vz[..., e:]
        xhat = norm.forward(params.norm, x)[0]
        c = conv.forward(params.conv, v)[0]
        u, gate = act.forward((), c)[0], act.forward((), z)[0]

        do = cast(times(dout, params.W_out), dtype)
        dW_out = cast(transposed_times(dout, y * gate), dtype)
        dz = act.backward((), SiluCache(z), do * y)[1]

        of_scan = SelectiveScanCache(scanned(u, delta, RBC), starts)
        dscan, (du, ddelta, dB, dC, _) = scan.backward(params.scan, of_scan, do * gate)
        dW_delta = cast(transposed_times(ddelta, RBC[..., :rank]), dtype)
        dRBC = jnp.concatenate((cast(times(ddelta, params.W_delta), dtype), dB, dC), -1)
        dW_x = cast(transposed_times(dRBC, u), dtype)
        du = du + cast(times(dRBC, params.W_x), dtype)

        dc = act.backward((), SiluCache(c), du)[1]
        dconv, dv = conv.backward(params.conv, ConvolutionCache(v), dc)
        dvz = jnp.concatenate((dv, dz), -1)
        dW_in = cast(transposed_times(dvz, xhat), dtype)
        dxhat = cast(times(dvz, params.W_in), dtype)
        dnorm, dx = norm.backward(params.norm, RmsNormCache(x, rms), dxhat)
        return MambaBlockParams(dnorm, dW_in, dconv, dW_x, dW_delta, dscan, dW_out), dout + dx

    def decoding(leaf, length):
        def start(params, x):
            e = params.W_out.shape[1]
            return jnp.zeros((x.shape[0], window - 1, e), x.dtype), jnp.zeros((x.shape[0], e, states), x.dtype)

        def step(params, x, before):
            out, _, after = run(params, x, before)
            return out, after

        return decoder(leaf, start, step)

    return Layer(init, forward, backward, who, decoding=decoding)


@called_as(mamba_block)
def reference(params: MambaBlockParams, x: Array, states, rank, window, eps, **_) -> Array:
    norm, W_in, conv, W_x, W_delta, scan, W_out = params
    assert norm.scale is not None
    assert conv.b is not None
    xhat = x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + eps) * jnp.broadcast_to(norm.scale, x.shape)
    v, z = jnp.split(xhat @ W_in.T, 2, -1)
    past = jnp.pad(v, ((0, 0), (window - 1, 0), (0, 0)))
    c = sum(past[:, i : i + x.shape[1]] * jnp.broadcast_to(conv.W[:, i, 0], v.shape) for i in range(window))
    u = jax.nn.silu(c + jnp.broadcast_to(conv.b, v.shape))
    R, B, C = jnp.split(u @ W_x.T, (rank, rank + states), -1)
    y = scans.reference(scan, Selective(u, R @ W_delta.T, B, C))
    return x + (y * jax.nn.silu(z)) @ W_out.T


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
    ),
    cite="Gu and Dao, 'Mamba: linear-time sequence modeling with selective state spaces' (2023), arXiv:2312.00752, "
    "figure 3",
    covers=("mamba layer",),
)
