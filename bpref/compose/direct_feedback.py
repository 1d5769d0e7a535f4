"""direct_feedback: blocks in series, each told of the error by the output itself, through random, fixed weights.

Forward, of blocks f[1] ... f[L]: h[0] = x, h[l] = f[l](h[l-1]). With e = dJ/dh[L] the cotangent of the output, that of
a block's output is, instead of what comes back through the blocks above,

    dh[L] = e,     dh[l] = e B[l]   for l < L,     B[l] random and fixed, (all of e of an example, all of h[l])

and inside of a block all is as ever: dparams[l] = f[l]'s backward of dh[l]. No block waits for another. Of blocks that
are linear, B[l] = W[L] ... W[l+1] gives the gradient.

Source: Nokland, 'Direct feedback alignment provides learning in deep neural networks' (2016), arXiv:1609.01596.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from bpref.compose.parts import Parts, added, as_input, at_the_start, begun, given_state, of_value, parts_of, pull, run
from bpref.compose.serial import in_series
from bpref.dtypes import came, cast, is_array, widen
from bpref.layer import Layer


def direct_feedback(*blocks: Layer, **named: Layer) -> Layer:
    """`serial` of blocks, each with a direct random projection of the output's cotangent as that of its own output.

    Params are `{"feedback": the B, "network": those of serial}`; B has `None` as its cotangent. dx is the first
    block's.

    Args:
      *blocks: such as `serial(linear(64), tanh())`, their outputs arrays that begin with the examples; or by name.

    Example:
      >>> hidden = [bpref.serial(bpref.linear(8), bpref.tanh()) for _ in range(2)]
      >>> network = bpref.direct_feedback(*hidden, bpref.linear(3))
      >>> params = network.init(jax.random.key(0), X)
      >>> params["feedback"][0].shape
      (3, 8)

    Raises:
      ValueError: there is no block; an output is no array of examples.
      TypeError: something is no layer; only some have names.
    """
    parts = parts_of("direct_feedback", blocks, named)
    owner = Layer(_drawn, lambda params, x: (params, ()), lambda B, cache, dy: ((None,) * len(B), None), "feedback")
    return _directly(owner, in_series(parts))


def _drawn(key: Array, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> tuple[Array, ...]:
    """Normal numbers of variance 1/m, m the numbers in an example's e: the B, (m, ...) of each shape (N, ...)."""
    *hidden, e = shapes
    m = math.prod(e.shape[1:])
    keys = jax.random.split(key, len(shapes))
    return tuple(
        jax.random.normal(k, (m, *h.shape[1:]), e.dtype) / jnp.asarray(m**0.5, e.dtype)
        for k, h in zip(keys, hidden, strict=False)
    )


def _directly(owner: Layer, network: Layer) -> Layer:
    who, parts, blocks = (
        "direct_feedback",
        Parts((owner, network), ("feedback", "network")),
        Parts(network.parts, network.names),
    )

    def begin(key, x):
        of_owner, of_network = jax.random.split(key)
        x, beside = at_the_start(x)
        params, states = begun(network, of_network, x, beside)
        each = blocks.apart(who, states, "state") if blocks.is_stateful else ((),) * len(blocks.layers)
        shapes = []
        for block, p, state in zip(blocks.layers, blocks.apart(who, params), each, strict=True):
            x = jax.eval_shape(partial(run, block), p, x, beside._replace(x=None, state=state))[0]
            if not is_array(x) or not x.shape:
                raise ValueError(
                    f"{who}: the output of {block.name} is {came(x)}, expected an array of examples (N, ...)"
                )
            shapes.append(x)
        return parts.together((owner.init(of_owner, tuple(shapes)), params)), parts.together(((), states))

    def forward(params, x):
        _, of_network = parts.apart(who, params)
        x, (_, beside) = parts.given(who, x)
        y, cache, after = run(network, of_network, x, beside)
        return given_state(parts.is_stateful, y, parts.together(((), after))), cache

    def backward(params, caches, dy):
        of_owner, of_network = parts.apart(who, params)
        e, data = of_value(parts.is_stateful, dy)
        Bs, cache = owner.forward(of_owner, ())
        given = (blocks.apart(who, v, what) for v, what in ((of_network, "params"), (caches, "cache")))
        dhs = (*(None if e is None else _projected(e, B) for B in Bs), e)
        dparams, dx, of_data = zip(*map(partial(pull, data), blocks.layers, *given, dhs), strict=True)
        dparams = parts.together((owner.backward(of_owner, cache, e)[0], blocks.together(dparams)))
        return dparams, as_input(parts.is_stateful, dx[0], added(*of_data))

    init, begin_all = parts.stateful(begin)
    return Layer(init, forward, backward, who, parts.layers, _directly, parts.names, begin_all)


def _projected(e: Array, B: Array) -> Array:
    """(N, ...) of e by (m, ...) of B, all of an example's e with all of its h; in at least float32."""
    rows = widen(e).reshape(len(e), len(B))
    return cast((rows @ widen(B).reshape(len(B), -1)).reshape(len(e), *B.shape[1:]), B.dtype)
