"""What one step of a program may be changed into: for each primitive, the slips that a hand derivation makes.

A mutation is a label and a function `(*operands) -> results`, the step's own with one thing changed. Whether it is
legal, that is, gives results of the same shapes and dtypes, is for the caller to find out.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


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
    bind: Callable[..., Sequence[Any]]
    params: dict[str, Any]
    operands: tuple[jax.ShapeDtypeStruct, ...]
    constants: dict[int, Any]


class Mutation(NamedTuple):
    """A changed step.

    Attributes:
      label: what is changed, in words that hold in every dtype, to be followed by the step's name.
      apply: `(*operands) -> results`.
      detail: more words, to follow it.
      changes: False where the constant that was to be changed stays what it is.
    """

    label: str
    apply: Callable[..., Sequence[Any]]
    detail: str = ""
    changes: bool = True


MOST_ALTERNATIVES = 3
"""Of all other axes, permutations or orders that a step could have, so many are tried: the first ones."""


def mutations(step: Step) -> Iterator[Mutation]:
    """Every change of a step, legal or not; labels may repeat."""
    for of_kind in BY_PRIMITIVE.get(step.name, ()):
        yield from of_kind(step)
    yield from _constants(step)


def _single(label: str, f: Callable[..., Any]) -> Mutation:
    """A change that gives one result."""
    return Mutation(label, lambda *operands: [f(*operands)])


def _becomes(label: str, f: Callable[..., Any]) -> Callable[[Step], Iterator[Mutation]]:
    """The step is replaced by another function of the same operands."""
    return lambda step: iter([_single(f"{label} for", f)])


def _of_result(label: str, f: Callable[[Any], Any]) -> Callable[[Step], Iterator[Mutation]]:
    """The step is left as it is, and `f` is applied to its first result."""

    def changed(step: Step) -> Iterator[Mutation]:
        def apply(*operands):
            first, *others = step.bind(operands)
            return [f(first), *others]

        yield Mutation(label, apply)

    return changed


def _with_params(label: str, step: Step, **changed: Any) -> Mutation:
    return Mutation(label, lambda *operands: step.bind(operands, **changed))


def _drop(*positions: int) -> Callable[[Step], Iterator[Mutation]]:
    """Only one of the operands is left, at each of the positions in turn."""
    names = {0: "keep only the left operand of", 1: "keep only the right operand of", 2: "keep only the updates of"}

    def changed(step: Step) -> Iterator[Mutation]:
        for i in positions:
            yield _single("drop" if len(positions) == 1 else names[i], lambda *operands, i=i: operands[i])

    return changed


def _swap(i: int, j: int) -> Callable[[Step], Iterator[Mutation]]:
    def changed(step: Step) -> Iterator[Mutation]:
        def apply(*operands):
            swapped = list(operands)
            swapped[i], swapped[j] = swapped[j], swapped[i]
            return step.bind(swapped)

        yield Mutation("swap the operands of", apply)

    return changed


def _constants(step: Step) -> Iterator[Mutation]:
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


def _axes(step: Step) -> Iterator[Mutation]:
    """A reduction goes over other axes."""
    axes, rank = tuple(step.params["axes"]), step.operands[0].ndim
    others = (a for a in itertools.combinations(range(rank), len(axes)) if a != tuple(sorted(axes)))
    for other in itertools.islice(others, MOST_ALTERNATIVES):
        yield _with_params(f"reduce axes {list(other)} in", step, axes=other)


def _reduced_by(label: str, reduce: Callable[..., Any]) -> Callable[[Step], Iterator[Mutation]]:
    def changed(step: Step) -> Iterator[Mutation]:
        yield _single(f"{label} for", lambda x: reduce(x, axis=tuple(step.params["axes"])).astype(x.dtype))

    return changed


def _along(parameter: str) -> Callable[[Step], Iterator[Mutation]]:
    """Another axis, where the step works along a single one."""

    def changed(step: Step) -> Iterator[Mutation]:
        rank = step.operands[0].ndim if step.operands else len(step.params["shape"])
        others = (a for a in range(rank) if a != step.params[parameter])
        for other in itertools.islice(others, MOST_ALTERNATIVES):
            yield _with_params(f"take axis {other} in", step, **{parameter: other})

    return changed


def _toggled(label: str, parameter: str) -> Callable[[Step], Iterator[Mutation]]:
    return lambda step: iter([_with_params(label, step, **{parameter: not step.params[parameter]})])


def _transpositions(step: Step) -> Iterator[Mutation]:
    """No transposition at all, or another one."""
    own = tuple(step.params["permutation"])
    identity = tuple(range(len(own)))
    yield _single("drop", lambda x: x)
    others = (p for p in itertools.permutations(identity) if p not in (own, identity))
    for other in itertools.islice((p for p in others if _permuted(step, p) == _permuted(step, own)), MOST_ALTERNATIVES):
        yield _with_params(f"permute by {list(other)} in", step, permutation=other)


def _permuted(step: Step, permutation: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(step.operands[0].shape[i] for i in permutation)


def _broadcasts(step: Step) -> Iterator[Mutation]:
    """The operand lies along other axes of the result."""
    own, shape = tuple(step.params["broadcast_dimensions"]), step.params["shape"]
    others = (d for d in itertools.combinations(range(len(shape)), len(own)) if d != own)
    for other in itertools.islice(others, MOST_ALTERNATIVES):
        yield _with_params(f"broadcast along {list(other)} in", step, broadcast_dimensions=other)


def _orders(step: Step) -> Iterator[Mutation]:
    """Concatenated in another order."""
    orders = list(itertools.permutations(range(len(step.operands))))[1:]
    for order in orders[-1:] + orders[:-1][: MOST_ALTERNATIVES - 1]:

        def apply(*operands, order=order):
            return step.bind([operands[i] for i in order])

        yield Mutation(f"order {list(order)} in", apply)


def _contractions(step: Step) -> Iterator[Mutation]:
    """One operand of a matrix product is transposed: another of its axes is contracted."""
    (left, right), batch = step.params["dimension_numbers"]
    for side, own in enumerate((left, right)):
        free = [d for d in range(step.operands[side].ndim) if d not in own and d not in batch[side]]
        for at, other in itertools.islice(itertools.product(range(len(own)), free), MOST_ALTERNATIVES):
            changed = tuple(other if i == at else d for i, d in enumerate(own))
            numbers = ((changed, right) if side == 0 else (left, changed), batch)
            name = ("left", "right")[side]
            yield _with_params(f"contract axes {list(changed)} on the {name} of", step, dimension_numbers=numbers)


def _comparisons(step: Step) -> Iterator[Mutation]:
    strict = {"lt": lax.le, "le": lax.lt, "gt": lax.ge, "ge": lax.gt}
    opposite = {"lt": lax.gt, "gt": lax.lt, "le": lax.ge, "ge": lax.le, "eq": lax.ne, "ne": lax.eq}
    for table in (strict, opposite):
        if step.name in table:
            yield _single(f"{table[step.name].__name__} for", table[step.name])


def differs_at_ties_only(name: str, label: str) -> bool:
    """Whether a comparison was only made strict, or not strict: it differs where the operands are equal."""
    return (name, label) in {("lt", "le for"), ("le", "lt for"), ("gt", "ge for"), ("ge", "gt for")}


def _branches(step: Step) -> Iterator[Mutation]:
    if len(step.operands) == 3:
        yield _single("swap the branches of", lambda which, no, yes: lax.select_n(which, yes, no))
        yield _single("take the false branch of", lambda which, no, yes: no)
        yield _single("take the true branch of", lambda which, no, yes: yes)


def _exponents(step: Step) -> Iterator[Mutation]:
    for change in (1, -1):
        yield _with_params(f"exponent {step.params['y'] + change} in", step, y=step.params["y"] + change)


def _off_by_one(first: int) -> Callable[[Step], Iterator[Mutation]]:
    """Integer operands from the given one on are one larger: indices, starts."""

    def changed(step: Step) -> Iterator[Mutation]:
        for i in range(first, len(step.operands)):
            if jnp.issubdtype(step.operands[i].dtype, jnp.integer) and i not in step.constants:

                def apply(*operands, i=i):
                    more = lax.add(operands[i], lax.full_like(operands[i], 1))
                    return step.bind((*operands[:i], more, *operands[i + 1 :]))

                yield Mutation(f"shift index {i} by one in", apply)

    return changed


def _slices(step: Step) -> Iterator[Mutation]:
    start, limit = step.params["start_indices"], step.params["limit_indices"]
    for axis, (size, low, high) in enumerate(zip(step.operands[0].shape, start, limit, strict=True)):
        for shift in (1, -1):
            if low + shift >= 0 and high + shift <= size:
                starts, limits = (tuple(v + shift * (i == axis) for i, v in enumerate(at)) for at in (start, limit))
                yield _with_params(f"shift axis {axis} by {shift} in", step, start_indices=starts, limit_indices=limits)


def _paddings(step: Step) -> Iterator[Mutation]:
    """What is padded in front and behind is off by one, the size staying as it is."""
    parameter = "padding_config" if step.name == "pad" else "padding"
    own = step.params[parameter]
    if isinstance(own, str):
        return
    for axis, shift in itertools.product(range(len(own)), (1, -1)):
        low, high, *inner = own[axis]
        shifted = tuple((low + shift, high - shift, *inner) if i == axis else p for i, p in enumerate(own))
        if (low, high) != (0, 0):
            yield _with_params(f"shift axis {axis} by {shift} in", step, **{parameter: shifted})


def _kernels(step: Step) -> Iterator[Mutation]:
    """The kernel of a convolution is flipped, or its channels are exchanged."""
    numbers = step.params["dimension_numbers"]
    spatial = tuple(numbers.rhs_spec[2:])
    yield Mutation("flip the kernel of", lambda x, w: step.bind((x, lax.rev(w, spatial))))
    out, into = numbers.rhs_spec[:2]
    order = list(range(len(numbers.rhs_spec)))
    order[out], order[into] = into, out
    yield Mutation("exchange the kernel's channels in", lambda x, w: step.bind((x, lax.transpose(w, order))))


def _scatters(step: Step) -> Iterator[Mutation]:
    """Updates overwrite instead of being added, or are added instead of overwriting, or are left out."""
    other = {"scatter": lax.scatter_add, "scatter_add": lax.scatter, "scatter-add": lax.scatter}.get(step.name)
    if other is not None:
        kept = {k: step.params[k] for k in ("indices_are_sorted", "unique_indices", "mode")}
        numbers = step.params["dimension_numbers"]
        yield _single(f"{other.__name__} for", lambda x, i, u: other(x, i, u, numbers, **kept))


def _transforms(step: Step) -> Iterator[Mutation]:
    """A Fourier transform in the other direction."""
    kinds = {"FFT": "IFFT", "IFFT": "FFT"}
    kind, lengths = step.params["fft_type"], step.params["fft_lengths"]
    if kind.name in kinds:
        yield _single(f"{kinds[kind.name]} for", lambda x: lax.fft(x, kinds[kind.name], lengths))


def _extremes(step: Step) -> Iterator[Mutation]:
    name, other = {"argmax": ("argmin", lax.argmin), "argmin": ("argmax", lax.argmax)}[step.name]
    (axis,), dtype = step.params["axes"], step.params["index_dtype"]
    yield _single(f"{name} for", lambda x: other(x, axis, dtype))


def _flipped_order(step: Step) -> Iterator[Mutation]:
    dimensions = tuple(step.params["dimensions"])
    others = (d for d in range(step.operands[0].ndim) if (d,) != dimensions)
    for d in itertools.islice(others, MOST_ALTERNATIVES):
        yield _with_params(f"reverse axis {d} in", step, dimensions=(d,))


def _windows(step: Step) -> Iterator[Mutation]:
    other = {"reduce_window_sum": (lax.max, -jnp.inf), "reduce_window_max": (lax.add, 0.0)}[step.name]
    shape, strides = step.params["window_dimensions"], step.params["window_strides"]
    label = {"reduce_window_sum": "max for", "reduce_window_max": "sum for"}[step.name]
    rest = {"base_dilation": step.params["base_dilation"], "window_dilation": step.params["window_dilation"]}

    def apply(x):
        unit = np.asarray(other[1], x.dtype)
        return [lax.reduce_window(x, unit, other[0], shape, strides, step.params["padding"], **rest)]

    yield Mutation(label, apply)


_negate = _of_result("negate", lax.neg)
_sum = (_becomes("subtract", lambda a, b: lax.sub(a, b)), _drop(0, 1), _negate)
_compare = (_comparisons,)
_cumulative = (_drop(0), _toggled("reverse the direction of", "reverse"), _along("axis"))
_scatter = (_scatters, _off_by_one(1), _drop(0, 2))

BY_PRIMITIVE: dict[str, tuple[Callable[[Step], Iterator[Mutation]], ...]] = {
    **dict.fromkeys(("add", "add_any"), _sum),
    "sub": (_becomes("add", lambda a, b: lax.add(a, b)), _drop(0, 1), _swap(0, 1)),
    "mul": (_negate, _drop(0, 1)),
    "div": (_becomes("multiply", lambda a, b: lax.mul(a, b)), _drop(0, 1), _swap(0, 1), _negate),
    "pow": (_drop(0), _swap(0, 1), _negate),
    "integer_pow": (_exponents, _drop(0), _negate),
    "atan2": (_swap(0, 1), _negate),
    **dict.fromkeys(("neg", "not", "conj"), (_drop(0),)),
    "max": (_becomes("min", lambda a, b: lax.min(a, b)), _drop(0, 1)),
    "min": (_becomes("max", lambda a, b: lax.max(a, b)), _drop(0, 1)),
    "clamp": (_drop(1),),
    "dot_general": (_negate, _swap(0, 1), _contractions, _drop(0, 1)),
    "conv_general_dilated": (_negate, _paddings, _kernels),
    "transpose": (_transpositions,),
    "broadcast_in_dim": (_broadcasts,),
    "iota": (_along("dimension"),),
    "concatenate": (_orders, _along("dimension")),
    "rev": (_drop(0), _flipped_order),
    "sort": (lambda step: iter([Mutation("drop", lambda *operands: operands)]),),
    "select_n": (_branches,),
    **dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne"), _compare),
    "and": (_becomes("or", lambda a, b: lax.bitwise_or(a, b)), _drop(0, 1)),
    "or": (_becomes("and", lambda a, b: lax.bitwise_and(a, b)), _drop(0, 1)),
    "reduce_sum": (_reduced_by("max", jnp.max), _reduced_by("mean", jnp.mean), _axes),
    "reduce_max": (_reduced_by("min", jnp.min), _reduced_by("sum", jnp.sum), _axes),
    "reduce_min": (_reduced_by("max", jnp.max), _reduced_by("sum", jnp.sum), _axes),
    "reduce_prod": (_reduced_by("sum", jnp.sum), _axes),
    "reduce_or": (_reduced_by("all", jnp.all), _axes),
    "reduce_and": (_reduced_by("any", jnp.any), _axes),
    "argmax": (_extremes,),
    "argmin": (_extremes,),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _cumulative),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max"), (_windows, _paddings)),
    "select_and_scatter_add": (_negate, _paddings),
    "slice": (_slices,),
    "dynamic_slice": (_off_by_one(1),),
    "dynamic_update_slice": (_off_by_one(2), _drop(0)),
    "gather": (_off_by_one(1),),
    **dict.fromkeys(("scatter", "scatter_add", "scatter-add"), _scatter),
    "pad": (_paddings,),
    "fft": (_transforms, _of_result("conjugate", lambda x: lax.conj(x))),
    "real": (_becomes("imag", lambda z: lax.imag(z)),),
    "imag": (_becomes("real", lambda z: lax.real(z)),),
    "complex": (_swap(0, 1),),
    "triangular_solve": (
        _negate,
        _toggled("transpose the matrix in", "transpose_a"),
        _toggled("take the other triangle in", "lower"),
        _toggled("solve from the other side in", "left_side"),
    ),
    "cholesky": (_of_result("transpose", lambda x: jnp.swapaxes(x, -1, -2)),),
    "sin": (_becomes("cos", lax.cos), _negate),
    "cos": (_becomes("sin", lax.sin), _negate),
    "exp": (_becomes("expm1", lax.expm1), _drop(0), _negate),
    "expm1": (_becomes("exp", lax.exp), _drop(0), _negate),
    "log": (_becomes("log1p", lax.log1p), _drop(0), _negate),
    "log1p": (_becomes("log", lax.log), _drop(0), _negate),
    "rsqrt": (_becomes("sqrt", lax.sqrt), _drop(0), _negate),
    "sqrt": (_becomes("rsqrt", lax.rsqrt), _drop(0), _negate),
    "tanh": (_becomes("logistic", lax.logistic), _drop(0), _negate),
    "logistic": (_becomes("tanh", lax.tanh), _drop(0), _negate),
    "abs": (_drop(0), _becomes("sign", lax.sign)),
    "sign": (_drop(0), _becomes("abs", lax.abs)),
    **dict.fromkeys(("tan", "atan", "sinh", "cosh", "asinh", "erf", "erfc", "lgamma", "square"), (_drop(0), _negate)),
}
