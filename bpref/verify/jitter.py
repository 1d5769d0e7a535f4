"""Monte Carlo arithmetic: what round-off does to a program, found by rounding every operation at random.

Each operation's result is multiplied by 1 + e, with e random and as large as rounding errors are: how far the outputs
move says how many of their digits are sound, whatever the conditioning and wherever digits cancel (Vignes, Math.
Comput. Simul. 35, 1993; Parker, UCLA CSD-970002, 1997).
"""

from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
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
    "scatter", "scatter-max", "scatter-min", "select_n", "sign", "slice", "sort", "split", "squeeze", "stack",
    "stop_gradient", "tile", "top_k", "transpose", "unstack",
})
# fmt: on
"""Operations that round nothing."""

ARITHMETIC = frozenset(
    {"add", "add_any", "cumprod", "cumsum", "div", "dot_general", "integer_pow", "mul", "reduce_prod", "reduce_sum"}
    | {"scatter-add", "square", "sub"}
)
"""Operations that round nothing where their result is a whole number, as when something is counted."""

EPS = float(np.finfo(np.float64).eps)


def jittered(fun: Callable[..., Any]) -> Callable[..., Any]:
    """The function with every rounding in float64 replaced by a random one.

    The same operation on the same values is rounded in the same way wherever it stands, so that what is computed
    twice is equal still.
    """

    def with_jitter(*args):
        program, inputs, to_tree = traced(fun, args, {})
        names = _Names()

        def on_equation(equation: JaxprEqn, inputs: Sequence[Any], recurse: Recurse) -> Any:
            primitive = equation.primitive.name
            if primitive in RULES_OF_JAX or (primitive in CONTROL_FLOW and primitive != "custom_linear_solve"):
                return NotImplemented
            outputs = as_it_is(equation, inputs)
            of_all = names.of_equation(equation, inputs)
            places = [crc32(f"{of_all} {i}".encode()) for i in range(len(outputs))]
            if primitive not in EXACT and primitive not in OPAQUE:
                counts = primitive in ARITHMETIC
                outputs = [_rounded_at_random(v, place, counts) for v, place in zip(outputs, places, strict=True)]
            return [names.keep(v, place) for v, place in zip(outputs, places, strict=True)]

        rounded = [names.keep(_rounded_at_random(v, i), i) for i, v in enumerate(inputs, 1)]
        return to_tree(evaluate(program, rounded, on_equation))

    return with_jitter


class _Names:
    """A number for every value, equal for values that are computed in the same way from equal ones."""

    def __init__(self) -> None:
        self.numbers: dict[int, tuple[Any, int]] = {}

    def keep(self, v: Any, number: int) -> Any:
        self.numbers[id(v)] = (v, number)
        return v

    def of_equation(self, equation: JaxprEqn, inputs: Sequence[Any]) -> str:
        return f"{equation.primitive.name} {equation.params} {[self._of(v) for v in inputs]}"

    def _of(self, v: Any) -> int:
        if id(v) in self.numbers:
            return self.numbers[id(v)][1]
        is_constant = not isinstance(v, Tracer)
        return crc32(np.asarray(v).tobytes()) if is_constant else id(v)


def _rounded_at_random(v: Any, place: int, keeps_whole: bool = False) -> Any:
    if v.dtype not in (jnp.float64, jnp.complex128):
        return v
    index = jax.lax.iota(np.float64, v.size).reshape(v.shape)
    # Another last digit is another draw, so that trials at nudged points do not all miss the same cancellation.
    digits = (jax.lax.bitcast_convert_type(v.real, np.int64) & 0xFFFF).astype(np.float64)
    wild = jnp.sin(index * 12.9898 + place % 65536 * 78.233 + digits * 0.7548777) * 43758.5453
    shift = 2 * (wild - jnp.floor(wild)) - 1
    # Half a unit at least: less would be rounded away, and look like a sound digit.
    noise = 1 + EPS * (shift + jnp.sign(shift)) / 2
    # An infinite value keeps its sign, and one that overflows by the noise alone is no news.
    exact = ~jnp.isfinite(v) | (keeps_whole & (v == jnp.round(v)))
    return jnp.where(exact, v, v * noise.astype(v.dtype))
