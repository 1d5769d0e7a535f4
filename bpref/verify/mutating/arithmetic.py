"""What a step that works element by element may be changed into, and what a step and a mutation are.

A mutation is a label and a function `(*operands) -> results`, the step's own with one thing changed. Whether it is
legal, that is, gives results of the same shapes and dtypes, is for the caller to find out.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike


class Step(NamedTuple):
    """One equation of a program.

    Attributes:
      name: its primitive's.
      bind: `(operands, **changed parameters) -> results`, the primitive applied.
      params: the primitive's parameters.
      operands: shape and dtype of each operand.
      constants: the operands that are constants of a single element, by position.
    """

    name: str
    bind: Callable[..., Sequence[Array]]
    params: dict
    operands: tuple[jax.ShapeDtypeStruct, ...]
    constants: dict[int, ArrayLike]


class Mutation(NamedTuple):
    """A changed step.

    Attributes:
      label: what is changed, in words that hold in every dtype, to be followed by the step's name.
      apply: `(*operands) -> results`.
      detail: more words, to follow it.
      changes: False where the constant that was to be changed stays what it is.
    """

    label: str
    apply: Callable[..., Sequence[ArrayLike]]
    detail: str = ""
    changes: bool = True


MOST_ALTERNATIVES = 3
"""Of all other axes, permutations or orders that a step could have, so many are tried: the first ones."""


def single(label: str, f: Callable[..., ArrayLike]) -> Mutation:
    """A change that gives one result."""
    return Mutation(label, lambda *operands: [f(*operands)])


def with_params(label: str, step: Step, **changed: object) -> Mutation:
    return Mutation(label, lambda *operands: step.bind(operands, **changed))


def becomes(label: str, f: Callable[..., ArrayLike]) -> Callable[[Step], Iterator[Mutation]]:
    """The step is replaced by another function of the same operands."""
    return lambda step: iter([single(f"{label} for", f)])


def of_result(label: str, f: Callable[[Array], ArrayLike]) -> Callable[[Step], Iterator[Mutation]]:
    """The step is left as it is, and `f` is applied to its first result."""

    def changed(step: Step) -> Iterator[Mutation]:
        def apply(*operands):
            first, *others = step.bind(operands)
            return [f(first), *others]

        yield Mutation(label, apply)

    return changed


def drop(*positions: int) -> Callable[[Step], Iterator[Mutation]]:
    """Only one of the operands is left, at each of the positions in turn."""
    names = {0: "keep only the left operand of", 1: "keep only the right operand of", 2: "keep only the updates of"}

    def changed(step: Step) -> Iterator[Mutation]:
        for i in positions:
            yield single("drop" if len(positions) == 1 else names[i], lambda *operands, i=i: operands[i])

    return changed


def swap(i: int, j: int) -> Callable[[Step], Iterator[Mutation]]:
    def changed(step: Step) -> Iterator[Mutation]:
        def apply(*operands):
            swapped = list(operands)
            swapped[i], swapped[j] = swapped[j], swapped[i]
            return step.bind(swapped)

        yield Mutation("swap the operands of", apply)

    return changed


def toggled(label: str, parameter: str) -> Callable[[Step], Iterator[Mutation]]:
    return lambda step: iter([with_params(label, step, **{parameter: not step.params[parameter]})])


def constants(step: Step) -> Iterator[Mutation]:
    """A float c becomes 2c, c + 1 and, where it divides nothing, 0; an integer is off by one."""
    for i, value in step.constants.items():
        c = np.asarray(value)
        if jnp.issubdtype(c.dtype, jnp.inexact):
            others = {"double": 2 * c, "add 1 to": c + 1, "zero": np.zeros_like(c)}
        elif jnp.issubdtype(c.dtype, jnp.integer):
            others = {"add 1 to": c + 1}
        else:
            continue
        if step.name == "div" and i == 1:
            others.pop("zero", None)
        for verb, wide in others.items():
            other = wide.astype(c.dtype)
            changes = bool(np.isfinite(c).all() and np.isfinite(other).all() and np.any(other != c))
            which = f" {i}" if len(step.operands) > 1 else ""

            def apply(*operands, i=i, other=other):
                return step.bind((*operands[:i], other, *operands[i + 1 :]))

            yield Mutation(f"{verb} the constant operand{which} of", apply, f", which is {c.item():.4g}", changes)


def _comparisons(step: Step) -> Iterator[Mutation]:
    strict = {"lt": lax.le, "le": lax.lt, "gt": lax.ge, "ge": lax.gt}
    opposite = {"lt": lax.gt, "gt": lax.lt, "le": lax.ge, "ge": lax.le, "eq": lax.ne, "ne": lax.eq}
    for table in (strict, opposite):
        if step.name in table:
            yield single(f"{table[step.name].__name__} for", table[step.name])


def differs_at_ties_only(name: str, label: str) -> bool:
    """Whether a comparison was only made strict, or not strict: it differs where the operands are equal."""
    return (name, label) in {("lt", "le for"), ("le", "lt for"), ("gt", "ge for"), ("ge", "gt for")}


def _branches(step: Step) -> Iterator[Mutation]:
    if len(step.operands) == 3:
        yield single("swap the branches of", lambda which, no, yes: lax.select_n(which, yes, no))
        yield single("take the false branch of", lambda which, no, yes: no)
        yield single("take the true branch of", lambda which, no, yes: yes)


def _exponents(step: Step) -> Iterator[Mutation]:
    for change in (1, -1):
        yield with_params(f"exponent {step.params['y'] + change} in", step, y=step.params["y"] + change)


negate = of_result("negate", lax.neg)
_sum = (becomes("subtract", lambda a, b: lax.sub(a, b)), drop(0, 1), negate)
_compare = (_comparisons,)

ARITHMETIC: dict[str, tuple[Callable[[Step], Iterator[Mutation]], ...]] = {
    **dict.fromkeys(("add", "add_any"), _sum),
    "sub": (becomes("add", lambda a, b: lax.add(a, b)), drop(0, 1), swap(0, 1)),
    "mul": (negate, drop(0, 1)),
    "div": (becomes("multiply", lambda a, b: lax.mul(a, b)), drop(0, 1), swap(0, 1), negate),
    "pow": (drop(0), swap(0, 1), negate),
    "integer_pow": (_exponents, drop(0), negate),
    "atan2": (swap(0, 1), negate),
    **dict.fromkeys(("neg", "not", "conj"), (drop(0),)),
    "max": (becomes("min", lambda a, b: lax.min(a, b)), drop(0, 1)),
    "min": (becomes("max", lambda a, b: lax.max(a, b)), drop(0, 1)),
    "clamp": (drop(1),),
    "select_n": (_branches,),
    **dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne"), _compare),
    "and": (becomes("or", lambda a, b: lax.bitwise_or(a, b)), drop(0, 1)),
    "or": (becomes("and", lambda a, b: lax.bitwise_and(a, b)), drop(0, 1)),
    "real": (becomes("imag", lambda z: lax.imag(z)),),
    "imag": (becomes("real", lambda z: lax.real(z)),),
    "complex": (swap(0, 1),),
    "sin": (becomes("cos", lax.cos), negate),
    "cos": (becomes("sin", lax.sin), negate),
    "exp": (becomes("expm1", lax.expm1), drop(0), negate),
    "expm1": (becomes("exp", lax.exp), drop(0), negate),
    "log": (becomes("log1p", lax.log1p), drop(0), negate),
    "log1p": (becomes("log", lax.log), drop(0), negate),
    "rsqrt": (becomes("sqrt", lax.sqrt), drop(0), negate),
    "sqrt": (becomes("rsqrt", lax.rsqrt), drop(0), negate),
    "tanh": (becomes("logistic", lax.logistic), drop(0), negate),
    "logistic": (becomes("tanh", lax.tanh), drop(0), negate),
    "abs": (drop(0), becomes("sign", lax.sign)),
    "sign": (drop(0), becomes("abs", lax.abs)),
    **dict.fromkeys(("tan", "atan", "sinh", "cosh", "asinh", "erf", "erfc", "lgamma", "square"), (drop(0), negate)),
}
"""By a primitive's name, what is done to the values: of those that work element by element."""
