"""What is checked, in one form: whatever was handed over, as a forward and a pull of cotangents over array leaves."""

import inspect
import os
import re
from collections.abc import Callable, Container, Hashable
from functools import partial
from pathlib import Path
from types import CellType, CodeType, FunctionType, GeneratorType, ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import PyTree

from bpref.layer import Layer
from bpref.programs import Typed, is_typed
from bpref.verify.naming import MACHINERY, argument_names, describe, function_name, names_of_leaves
from bpref.verify.numbers import points
from bpref.verify.oracle import Leaf, Specs, Values, as_cotangent, with_cotangents
from bpref.verify.programs.strip import strip_custom_rules

OWN_PRIMAL = "its own primal, differentiated"
REFERENCE = "the reference, differentiated"
LAYER, BACKWARD, RULE, INSIDE = "a layer", "a function and its backward", "a custom_vjp function", "rules inside"

INSTALLED = re.compile(
    f"{MACHINERY.pattern}|{re.escape(str(Path(__file__).parents[2]) + os.sep)}|.*[\\\\/](?:site|dist)-packages[\\\\/]"
)
"""Files whose functions stay as they are while a program runs."""


class Misfit(NamedTuple):
    """A cotangent that is not where it belongs, in place of its value: what came, and what was expected."""

    detail: str


Entry = Any
"""What a backward returned for an array leaf of the arguments, whatever that is; or a `Misfit`."""

Pull = Callable[[PyTree], list[Entry]]
"""dy -> one entry for each array leaf of the arguments: what the backward returned for it, or a `Misfit`."""

Swept = tuple[PyTree, Pull]
"""An output, and the pull of its cotangent."""


class Subject(NamedTuple):
    """A function with a hand-derived backward, ready to be examined.

    Attributes:
      name: what reports call it.
      names: the name of each array leaf of its arguments.
      leaves: those leaves: arrays, or `jax.ShapeDtypeStruct`s to be filled.
      sweep: `leaves -> (y, pull)`, by hand.
      primal: `leaves -> y`, what the oracle differentiates.
      oracle: what that is, in words.
      plain: `leaves -> y`, the function itself as it is called.
      form: in which form the derivation was handed over: one of the four above.
      identity: what the answer depends on besides the leaves; equal for equal subjects.
    """

    name: str
    names: tuple[str, ...]
    leaves: list[Leaf]
    sweep: Callable[[Values], Swept]
    primal: Callable[[Values], PyTree]
    oracle: str
    plain: Callable[[Values], PyTree]
    form: str
    identity: tuple[Hashable, ...]

    @property
    def specs(self) -> Specs:
        """The shapes and dtypes of the leaves."""
        return [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in self.leaves]


def as_subject(
    fun: Callable | Layer, args: tuple[PyTree, ...], reference: Callable | None = None, backward: Callable | None = None
) -> Subject:
    """The subject that a call of `check` means.

    Args:
      fun: a `Layer` (then `args` are its params and x), a function with a custom rule, or any function.
      args: pytrees of arrays and specifications; what is neither (strings, integers, functions) is held fixed.
      reference: a function of the same arguments for the oracle to differentiate, in place of `fun`'s own primal.
      backward: `(args, dy) -> cotangents of args`, for a `fun` that has no rule of its own.
    """
    is_layer = isinstance(fun, Layer)
    if is_layer and len(args) != 2:
        raise TypeError(
            f"check: {fun.name} is a Layer, which takes 2 arguments, params and x (params = layer.init(key, x)); the "
            f"call has {len(args)}"
        )
    call = _output_of(fun) if isinstance(fun, Layer) else fun
    form = LAYER if is_layer else BACKWARD if backward else RULE if _has_raw_rule(fun) else INSIDE
    given, static = len(args), getattr(fun, "nondiff_argnums", ())
    args = _with_defaults(fun, args) if form == RULE and isinstance(fun, jax.custom_vjp) else args
    roots = ("params", "x") if is_layer else argument_names(fun, len(args))
    leaves, rebuild, names = array_leaves(roots, args, {i for i in range(len(args)) if i >= given or i in static})

    def plain(values):
        return call(*rebuild(values))

    def primal(values):
        return reference(*rebuild(values)[:given]) if reference else strip_custom_rules(plain)(values)

    def sweep(values):
        return SWEEPS[form](fun, backward, rebuild, plain, values)

    return Subject(
        function_name(fun),
        names,
        leaves,
        sweep,
        primal,
        REFERENCE if reference else OWN_PRIMAL,
        plain,
        form,
        (*(_identity(f) for f in (fun, reference, backward)), tuple(map(_held, rebuild.fixed)), rebuild.tree),
    )


def _output_of(layer: Layer) -> Callable:
    return lambda params, x: layer.forward(params, x)[0]


def _with_defaults(rule: jax.custom_vjp, args: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
    """The positional arguments with defaults filled in, as `jax.custom_vjp` hands them to the rule."""
    try:
        bound = inspect.signature((lambda *args: None) if isinstance(rule.fun, partial) else rule.fun).bind(*args)
    except (TypeError, ValueError):  # the call itself will say what is wrong with it
        return args
    bound.apply_defaults()
    return bound.args


class _Rebuild(NamedTuple):
    """How to put array leaves back among the fixed ones; callable."""

    tree: Hashable
    where: tuple[int, ...]
    fixed: tuple[object, ...]

    def __call__(self, values: Values) -> tuple[PyTree, ...]:
        filled = list(self.fixed)
        for i, v in zip(self.where, values, strict=True):
            filled[i] = v
        return jax.tree.unflatten(self.tree, filled)

    def of_moving(self, entries: list[Entry]) -> list[Entry]:
        """Of one entry for each array, those of the arrays that are not fixed."""
        arrays = [i for i, v in enumerate(self.fixed) if i in self.where or is_typed(v)]
        return [entry for i, entry in zip(arrays, entries, strict=True) if i in self.where]


def array_leaves(
    roots: tuple[str, ...], args: tuple[PyTree, ...], static: Container[int] = ()
) -> tuple[list[Leaf], _Rebuild, tuple[str, ...]]:
    """The leaves of `args` that are data, how to put them back among those that are held fixed, and their names.

    Data are arrays and specifications of them; a Python number is held fixed, and so are the arguments whose numbers
    are in `static` as a whole.
    """
    leaves, tree = jax.tree.flatten(args)
    owners = [i for i, arg in enumerate(args) for _ in jax.tree.leaves(arg)]
    names = names_of_leaves(roots, args)
    where = tuple(i for i, v in enumerate(leaves) if is_typed(v) and owners[i] not in static)
    arrays = [as_jax_sees_it(leaves[i]) for i in where]
    fixed = [None if i in where else v for i, v in enumerate(leaves)]
    smallest, rng = points.smallest_axis(arrays), points.generator(0)
    drawn = tuple(points.fill(v, rng, 0, smallest) if points.is_specification(v) else v for v in fixed)
    return arrays, _Rebuild(tree, where, drawn), tuple(names[i] for i in where)


def as_jax_sees_it(v: object) -> Leaf:
    """An array as NumPy's, in the dtype that JAX gives it: float32 for float64, unless x64 is switched on."""
    if not isinstance(v, np.ndarray | np.generic | jax.Array | jax.ShapeDtypeStruct):
        raise TypeError(
            f"check: an argument holds a {type(v).__module__}.{type(v).__name__}, expected NumPy or JAX arrays; "
            "convert to other arrays inside the function and inside its backward"
        )
    if isinstance(v, jax.Array | jax.ShapeDtypeStruct) and points.is_key(v):
        return v  # type: ignore[return-value]  # the one array that NumPy has not, see `Arrays`
    dtype = jax.dtypes.canonicalize_dtype(np.dtype(v.dtype).newbyteorder("="))
    if dtype in (np.longdouble, np.clongdouble) and np.dtype(np.longdouble).itemsize > 8:
        raise TypeError(f"check: an argument has dtype {dtype}, which JAX has not; expected one such as float64")
    return jax.ShapeDtypeStruct(v.shape, dtype) if isinstance(v, jax.ShapeDtypeStruct) else np.asarray(v).astype(dtype)


def _of_layer(layer: Layer, _: object, rebuild: _Rebuild, plain: Callable, values: Values) -> Swept:
    args = rebuild(values)
    y, cache = layer.forward(*args)
    return y, lambda dy: aligned(layer.backward(args[0], cache, dy), args)


def _of_backward(fun: Callable, backward: Callable, rebuild: _Rebuild, plain: Callable, values: Values) -> Swept:
    args = rebuild(values)
    # A host function may write into what it is given.
    copied = jax.tree.map(lambda v: v.copy() if isinstance(v, np.ndarray) else v, args)
    return fun(*copied), lambda dy: rebuild.of_moving(aligned(backward(args, dy), args))


def _of_rule(fun: jax.custom_vjp, _: object, rebuild: _Rebuild, plain: Callable, values: Values) -> Swept:
    """The forward and backward of a `custom_vjp` function, called as they are, before JAX looks at what they give."""
    assert fun.fwd is not None
    assert fun.bwd is not None
    backward, args, static = fun.bwd, rebuild(values), fun.nondiff_argnums
    y, residuals = fun.fwd(*args)

    def pull(dy):
        cotangents = backward(*(args[i] for i in static), residuals, dy)
        within = iter(aligned(cotangents, tuple(a for i, a in enumerate(args) if i not in static)))
        owners = [i for i, a in enumerate(args) for _ in _arrays(a)]
        return rebuild.of_moving([None if i in static else next(within) for i in owners])

    return y, pull


def _of_autodiff(fun: Callable, _: object, rebuild: _Rebuild, plain: Callable, values: Values) -> Swept:
    """Whatever rules are inside, as JAX itself applies them."""
    y, cotangents = with_cotangents(plain, values)
    return y, lambda dy: cotangents(as_cotangent(dy, y))[0]


SWEEPS = {LAYER: _of_layer, BACKWARD: _of_backward, RULE: _of_rule, INSIDE: _of_autodiff}


def _has_raw_rule(fun: object) -> bool:
    return isinstance(fun, jax.custom_vjp) and fun.fwd is not None and not fun.symbolic_zeros


def _arrays(arg: PyTree) -> list[Typed]:
    return [v for v in jax.tree.leaves(arg) if is_typed(v)]


def aligned(cotangents: object, args: tuple[PyTree, ...]) -> list[Entry]:
    """What a backward returned, one entry for each array leaf of `args`; a `None` stands for all below it."""
    came: tuple = ()
    if isinstance(cotangents, GeneratorType):
        what = "a generator"
    elif not isinstance(cotangents, tuple | list):
        what = f"{describe(cotangents)}, not a tuple"
    else:
        what, came = f"{len(cotangents)} cotangent{'s' * (len(cotangents) != 1)}", tuple(cotangents)
    entries = [entry for c, arg in zip(came, args, strict=False) for entry in _below(c, arg)]
    if len(came) == len(args):
        return entries
    expected = f"a tuple of {len(args)}, one for each argument" if len(args) != 1 else "a tuple of 1"
    misfit = Misfit(f"the backward returned {what}; expected {expected}")
    return (
        [*entries, *[misfit] * (len(_arrays(args)) - len(entries))]
        if len(came) < len(args)
        else [misfit] * len(_arrays(args))
    )


def _below(cotangent: PyTree, arg: PyTree) -> list[Entry]:
    """The entries for the array leaves of one argument; one above several leaves stands for each, as in JAX."""
    kept = [is_typed(v) for v in jax.tree.leaves(arg)]
    entries: list[Entry] = []

    def spread(c, below):
        leaves = jax.tree.leaves(below)
        if c is not None and any(np.shape(c) != np.shape(v) for v in leaves if len(leaves) > 1):
            raise ValueError("not the cotangent of each")
        entries.extend([None if isinstance(c, SymbolicZero) else c] * len(leaves))

    try:
        jax.tree.map(spread, cotangent, arg, is_leaf=lambda v: v is None)
    except (ValueError, TypeError):
        came, expected = (str(jax.tree.structure(tree)).removeprefix("PyTreeDef") for tree in (cotangent, arg))
        return [Misfit(f"its cotangent is the tree {came}, expected {expected}")] * sum(kept)
    return [entry for entry, keep in zip(entries, kept, strict=True) if keep]


def _identity(f: object) -> Hashable:
    """A function, and what it rests on: another array in its closure, or another helper in its module, makes another.

    Of functions outside of installed packages, whose source may be edited, the globals are looked at too.
    """
    if isinstance(f, Layer):
        return (_Same(f), *(_identity(g) for g in (f.forward, f.backward)))
    found: dict[int, Hashable] = {}

    def visit(v: object) -> None:
        if id(v) in found or isinstance(v, ModuleType):
            return
        found[id(v)] = _held(v) if isinstance(v, np.ndarray) else _Same(v)
        for part in _parts(v):
            visit(part)
        for cell in getattr(v, "__closure__", None) or ():
            visit(_contents(cell))
        if isinstance(v, FunctionType) and not INSTALLED.match(v.__code__.co_filename):
            for name in _names(v.__code__):
                visit(v.__globals__.get(name))

    visit(f)
    return tuple(found.values())


def _parts(f: object) -> tuple[object, ...]:
    """The functions that a function is made of."""
    if isinstance(f, jax.custom_vjp | jax.custom_jvp):
        return tuple(vars(f).values())
    if isinstance(f, partial):
        return f.func, *f.args, *f.keywords.values()
    wrapped = getattr(f, "__dict__", {}).get("__wrapped__")
    return () if wrapped is None else (wrapped,)


def _names(code: CodeType) -> set[str]:
    """The globals that a function may read, functions inside it included."""
    inside = (_names(c) for c in code.co_consts if isinstance(c, CodeType))
    return set(code.co_names).union(*inside)


def _held(v: object) -> Hashable:
    """A fixed argument: a NumPy array by its values, which may be written over; what has no hash by itself."""
    if isinstance(v, np.ndarray):
        return describe(v), v.tobytes()
    return (type(v), v) if isinstance(v, Hashable) and not isinstance(v, jax.Array) else _Same(v)


def _contents(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return None


class _Same:
    """Equal only to the same object; holds it, so that its place in memory is not given to another."""

    def __init__(self, held: object):
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.held is other.held

    def __hash__(self) -> int:
        return id(self.held)
