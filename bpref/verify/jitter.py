"""Monte Carlo arithmetic: what round-off does to a program, found by rounding every operation at random.

Each operation's result is multiplied by 1 + e, with e random and as large as rounding errors are: how far the outputs
move says how many of their digits are sound, whatever the conditioning and wherever digits cancel (Vignes, Math.
Comput. Simul. 35, 1993; Parker, UCLA CSD-970002, 1997).
"""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from bpref.verify.loops import CONTROL_FLOW
from bpref.verify.rewrite import Recurse, as_it_is, evaluate, traced
from bpref.verify.strip import OPAQUE, RULES_OF_JAX

# fmt: off
EXACT = frozenset({
    "abs", "argmax", "argmin", "bitcast_convert_type", "broadcast_in_dim", "ceil", "clamp", "concatenate", "conj",
    "convert_element_type", "copy", "copy_p", "cummax", "cummin", "device_put", "dynamic_slice",
    "dynamic_update_slice", "expand_dims", "floor", "gather", "imag", "iota", "max", "min", "name", "neg", "pad",
    "real", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_precision", "reshape", "rev", "round",
    "scatter", "select_n", "sign", "slice", "sort", "split", "squeeze", "stop_gradient", "top_k", "transpose",
})
# fmt: on
"""Operations that round nothing."""

EPS = float(np.finfo(np.float64).eps)


def jittered(fun: Callable[..., Any]) -> Callable[..., Any]:
    """The function with every rounding in float64 replaced by a random one, always the same one in the same place."""

    def with_jitter(*args):
        program, inputs, to_tree = traced(fun, args, {})
        place = count(1)

        def on_equation(equation: JaxprEqn, inputs: Sequence[Any], recurse: Recurse) -> Any:
            name = equation.primitive.name
            if name in CONTROL_FLOW or name in RULES_OF_JAX or name in OPAQUE or name in EXACT:
                return NotImplemented
            return [_rounded_at_random(v, next(place)) for v in as_it_is(equation, inputs)]

        return to_tree(evaluate(program, [_rounded_at_random(v, next(place)) for v in inputs], on_equation))

    return with_jitter


def _rounded_at_random(v: Any, place: int) -> Any:
    if v.dtype not in (jnp.float64, jnp.complex128):
        return v
    index = jax.lax.iota(np.float64, v.size).reshape(v.shape)
    wild = jnp.sin(index * 12.9898 + place * 78.233) * 43758.5453
    noise = 1 + EPS * (2 * (wild - jnp.floor(wild)) - 1)
    # An infinite value keeps its sign, and one that overflows by the noise alone is no news.
    return jnp.where(jnp.isfinite(v), v * noise.astype(v.dtype), v)
