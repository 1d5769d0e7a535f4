"""Monte Carlo arithmetic: what round-off does to a program, found by rounding every operation at random.

Each operation's result is multiplied by 1 + e, with e random and as large as rounding errors are: how far the outputs
move says how many of their digits are sound, whatever the conditioning and wherever digits cancel (Vignes, Math.
Comput. Simul. 35, 1993; Parker, UCLA CSD-970002, 1997).
"""

from collections.abc import Callable, Sequence
from functools import partial
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

STEP, MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
"""Odd numbers without a pattern, of which a hash of 64 bits is made."""

SIGN_AND_DIGITS, ONE_HALF = np.uint64(0x800FFFFFFFFFFFFF), np.uint64(0x3FE0000000000000)
"""Which bits of a float64 are no exponent, and the exponent of what is from 1/2 to 1."""


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
        if not isinstance(v, Tracer):
            return crc32(np.asarray(v).tobytes())
        if id(v) not in self.numbers:  # what a loop's body begins with
            self.keep(v, crc32(f"input {len(self.numbers)}".encode()))
        return self.numbers[id(v)][1]


def _rounded_at_random(v: Any, place: int, keeps_whole: bool = False) -> Any:
    if v.dtype == jnp.complex128:
        return jax.lax.complex(*(_round(part, np.uint64(place), keeps_whole) for part in (v.real, v.imag)))
    return _round(v, np.uint64(place), keeps_whole) if v.dtype == jnp.float64 else v


@partial(jax.jit, static_argnames="keeps_whole")
def _round(v: Any, place: Any, keeps_whole: bool) -> Any:
    """Under jit, so that it is traced and lowered once for each shape and not for each operation."""
    index = jax.lax.iota(np.uint64, v.size).reshape(v.shape)
    noise = jax.lax.bitcast_convert_type(_noise(jax.lax.bitcast_convert_type(v, np.uint64), index + place), np.float64)
    noise = 1 + EPS * noise
    if keeps_whole:
        noise = jnp.where(v == jnp.round(v), 1, noise)
    # Divided and not multiplied: XLA copies no division into whatever uses it. Of a product it makes as many copies as
    # there are paths from it to the outputs, and compiling them was most of a check.
    return v / noise


def _noise(bits: Any, place: Any) -> Any:
    """The bits of numbers from -1 to 1, by those of the values that are rounded, and by where they stand.

    Another value is another draw, so that trials at nudged points do not all miss the same cancellation.
    """
    bits = (bits + place * STEP) * MIX
    bits = (bits ^ (bits >> np.uint64(32))) * MIX
    # A sign and 52 digits. Half a unit at least: less would be rounded away, and look like a sound digit.
    return (bits & SIGN_AND_DIGITS) | ONE_HALF


def rounded_in_numpy(v: Any, place: int, primitive: str = "") -> Any:
    """The result of an operation, or an input, rounded at random by NumPy; `place` is its number in the program."""
    if primitive in EXACT or v.dtype not in (np.float64, np.complex128):
        return v
    parts = np.ascontiguousarray(v).reshape(-1).view(np.float64)
    index = np.arange(parts.size, dtype=np.uint64) + np.uint64(crc32(place.to_bytes(4)))
    noise = 1 + EPS * _noise(parts.view(np.uint64), index).view(np.float64)
    if primitive in ARITHMETIC:
        noise = np.where(parts == np.rint(parts), 1, noise)
    return (parts / noise).view(v.dtype).reshape(v.shape)
