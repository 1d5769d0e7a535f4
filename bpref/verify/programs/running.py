"""How a traced program is run: a small one in float64 equation by equation in NumPy, any other compiled by XLA.

Either as it is, or with every operation rounded at random (Monte Carlo arithmetic): each result is multiplied by
1 + e, with e random and as large as rounding errors are. How far the outputs move says how many of their digits are
sound, whatever the conditioning and wherever digits cancel (Vignes, Math. Comput. Simul. 35, 1993; Parker, UCLA
CSD-970002, 1997). Kernels run interpreted where there is no device for them.
"""

import gc
import logging
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial, wraps
from itertools import count
from types import NotImplementedType
from typing import Any, TypeVar
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.extend.core import JaxprEqn, jaxpr_as_fun
from jax.stages import Compiled, Traced
from jax.typing import ArrayLike
from jaxtyping import PyTree

from bpref.programs import all_equations
from bpref.verify.programs.interpret import CannotInterpret, Interpreted, OnResult
from bpref.verify.programs.quick import compilation_of
from bpref.verify.programs.rewrite import CONTROL_FLOW, Recurse, as_it_is, evaluate, traced
from bpref.verify.programs.strip import OPAQUE, RULES_OF_JAX

Run = Callable[..., PyTree]
"""`(*inputs) -> outputs`, trees of NumPy arrays, as the program was traced."""

OFTEN = 300_000
"""How long a program is run by NumPy, in microseconds of `Interpreted.cost`, before it is compiled as well."""


def when_run(traced: Traced, part: Callable[[PyTree], PyTree]) -> tuple[Run, Run, Run]:
    """A program compiled when it is first run, in the mode of JAX that it was traced in, as the caller sees to.

    In the place of three, as `in_float64`: itself, itself, and a `part` of its outputs.
    """
    executable = cache(lambda: _compiled(traced))

    def run(*inputs):
        return jax.device_get(executable()(*inputs))

    return run, run, lambda *inputs: part(run(*inputs))


def in_float64(traced: Traced, part: Callable[[PyTree], PyTree] = lambda outputs: outputs) -> tuple[Run, Run, Run]:
    """A float64 program as it is, with every operation rounded at random, and a `part` of its outputs alone."""
    tree = jax.tree.structure(traced.out_info)
    compiled, _, part_compiled = when_run(traced, part)
    try:
        steps = Interpreted(traced.jaxpr)
    except CannotInterpret:
        at_random = cache(lambda: _compiled(_jittered(traced)))
        return (
            compiled,
            lambda *inputs: jax.tree.unflatten(tree, jax.device_get(at_random()(*jax.tree.leaves(inputs)))),
            part_compiled,
        )
    places, part_tree = jax.tree.flatten(part(jax.tree.unflatten(tree, range(tree.num_leaves))))
    often = int(OFTEN / max(steps.cost, 1)) + 1
    return (
        _at_first(often, _interpreted(steps, tree), compiled),
        _interpreted(steps, tree, rounded_in_numpy),
        _at_first(often, _interpreted(steps.only(places), part_tree), part_compiled),
    )


def _at_first(often: int, first: Run, later: Run) -> Run:
    """`first` so many times, and `later` from then on: counted, and not timed, so that a run is as it was before."""
    runs = count()
    return lambda *inputs: (first if next(runs) < often else later)(*inputs)


def _interpreted(steps: Interpreted, tree: Hashable, on_result: OnResult | None = None) -> Run:
    def run(*inputs):
        flat = jax.tree.leaves(inputs)
        if on_result is not None:
            flat = [on_result(v, i, "") for i, v in enumerate(flat)]
        with np.errstate(all="ignore"):
            return jax.tree.unflatten(tree, steps.run(flat, on_result))

    return run


def _compiled(traced: Traced) -> Compiled:
    return traced.lower().compile(compiler_options=compilation_of(all_equations(traced.jaxpr)))


def _jittered(traced: Traced) -> Traced:
    inputs = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in traced.jaxpr.in_avals]
    return jax.jit(jittered(jaxpr_as_fun(traced.jaxpr))).trace(*inputs)


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


def jittered(fun: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The function with every rounding in float64 replaced by a random one.

    The same operation on the same values is rounded in the same way wherever it stands, so that what is computed
    twice is equal still.
    """

    def with_jitter(*args):
        program, inputs, to_tree = traced(fun, args, {})
        names = _Names()

        def on_equation(equation: JaxprEqn, inputs: Sequence[Array], recurse: Recurse) -> list | NotImplementedType:
            primitive = equation.primitive.name
            if primitive in RULES_OF_JAX or (primitive in CONTROL_FLOW and primitive != "custom_linear_solve"):
                return NotImplemented
            outputs = as_it_is(equation, inputs)
            of_all = names.of_equation(equation, inputs)
            places = [crc32(f"{of_all} {i}".encode()) for i in range(len(outputs))]
            if primitive not in EXACT and primitive not in OPAQUE and all(map(_is_array, outputs)):
                counts = primitive in ARITHMETIC
                outputs = [_rounded_at_random(v, place, counts) for v, place in zip(outputs, places, strict=True)]
            return [names.keep(v, place) for v, place in zip(outputs, places, strict=True)]

        rounded = [names.keep(_rounded_at_random(v, i), i) for i, v in enumerate(inputs, 1)]
        return to_tree(evaluate(program, rounded, on_equation))

    return with_jitter


class _Names:
    """A number for every value, equal for values that are computed in the same way from equal ones."""

    def __init__(self) -> None:
        self.numbers: dict[int, tuple[Array, int]] = {}

    def keep(self, v: Array, number: int) -> Array:
        self.numbers[id(v)] = (v, number)
        return v

    def of_equation(self, equation: JaxprEqn, inputs: Sequence[Array]) -> str:
        return f"{equation.primitive.name} {equation.params} {[self._of(v) for v in inputs]}"

    def _of(self, v: Array) -> int:
        if not isinstance(v, Tracer):
            return crc32(np.asarray(v).tobytes())
        if id(v) not in self.numbers:  # what a loop's body begins with
            self.keep(v, crc32(f"input {len(self.numbers)}".encode()))
        return self.numbers[id(v)][1]


def _is_array(v: Array) -> bool:
    """Whether it is an array and not a reference to one, which a program writes into."""
    return not hasattr(jax.typeof(v), "inner_aval")


def _rounded_at_random(v: Array, place: int, keeps_whole: bool = False) -> Array:
    if v.dtype == jnp.complex128:
        return jax.lax.complex(*(_round(part, np.uint64(place), keeps_whole) for part in (v.real, v.imag)))
    return _round(v, np.uint64(place), keeps_whole) if v.dtype == jnp.float64 else v


@partial(jax.jit, static_argnames="keeps_whole")
def _round(v: Array, place: ArrayLike, keeps_whole: bool) -> Array:
    """Under jit, so that it is traced and lowered once for each shape and not for each operation."""
    index = jax.lax.iota(np.uint64, v.size).reshape(v.shape)
    noise = jax.lax.bitcast_convert_type(_noise(jax.lax.bitcast_convert_type(v, np.uint64), index + place), np.float64)
    noise = 1 + EPS * noise
    if keeps_whole:
        noise = jnp.where(v == jnp.round(v), 1, noise)
    # Divided and not multiplied: XLA copies no division into whatever uses it. Of a product it makes as many copies as
    # there are paths from it to the outputs, and compiling them was most of a check.
    return v / noise


def _noise(bits: Any, place: ArrayLike) -> Any:
    """The bits of numbers from -1 to 1, by those of NumPy's or JAX's values that are rounded, and where these stand.

    Another value is another draw, so that trials at nudged points do not all miss the same cancellation.
    """
    bits = (bits + place * STEP) * MIX
    bits = (bits ^ (bits >> np.uint64(32))) * MIX
    # A sign and 52 digits. Half a unit at least: less would be rounded away, and look like a sound digit.
    return (bits & SIGN_AND_DIGITS) | ONE_HALF


def rounded_in_numpy(v: np.ndarray, place: int, primitive: str = "") -> np.ndarray:
    """The result of an operation, or an input, rounded at random by NumPy; `place` is its number in the program."""
    if primitive in EXACT or v.dtype not in (np.float64, np.complex128):
        return v
    parts = np.ascontiguousarray(v).reshape(-1).view(np.float64)
    index = np.arange(parts.size, dtype=np.uint64) + np.uint64(crc32(place.to_bytes(4)))
    noise = 1 + EPS * _noise(parts.view(np.uint64), index).view(np.float64)
    if primitive in ARITHMETIC:
        noise = np.where(parts == np.rint(parts), 1, noise)
    return (parts / noise).view(v.dtype).reshape(v.shape)


def collect_rarely() -> None:
    """Let Python's collector run seldom: what tracing makes lives on in JAX's caches, and is looked through in vain.

    Of a long run of checks that is a tenth of the time or more.
    """
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


@contextmanager
def collecting_nothing() -> Iterator[None]:
    """Pauses the collector, for as long as a check takes; a seventh of which it took."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


F = TypeVar("F", bound=Callable)

OF_CALLBACKS = logging.getLogger("jax._src.callback")
"""Where JAX prints the traceback of a callback that fails, besides raising its error."""


def kernels_interpreted() -> AbstractContextManager:
    """A context in which Pallas kernels are traced with `interpret=True`, on a CPU, which cannot run them otherwise."""
    if "jax.experimental.pallas" not in sys.modules or jax.default_backend() != "cpu":
        return nullcontext()
    from jax.experimental.pallas import tpu

    # It is for kernels of any device; True stands for the interpreter that JAX can batch and compile.
    return tpu.force_tpu_interpret_mode(True)  # type: ignore[arg-type]


def ran_interpreted(f: Callable[..., PyTree], *specs: PyTree) -> tuple[str, ...]:
    """A note for a report if a Pallas kernel is in `f(*specs)` and there is no device that it could be compiled for."""
    if isinstance(kernels_interpreted(), nullcontext):
        return ()
    try:
        program = jax.make_jaxpr(f)(*specs)
    except Exception:  # what JAX cannot trace holds no kernel of Pallas
        return ()
    return (INTERPRETED,) if any(e.primitive.name == "pallas_call" for e in all_equations(program)) else ()


INTERPRETED = "a Pallas kernel in it ran interpreted, on a CPU: what a device's compiler makes of it was not seen"


@contextmanager
def callbacks_quiet() -> Iterator[None]:
    """A context in which a callback may be tried in a dtype that it refuses, and nothing is printed."""
    before, OF_CALLBACKS.disabled = OF_CALLBACKS.disabled, True
    try:
        yield
    finally:
        OF_CALLBACKS.disabled = before


def as_if_at_home(f: F) -> F:
    """`f`, run with kernels interpreted and callbacks quiet."""

    @wraps(f)
    def run(*args, **kwargs):
        with kernels_interpreted(), callbacks_quiet():
            return f(*args, **kwargs)

    return run  # type: ignore[return-value]
