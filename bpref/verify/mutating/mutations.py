"""What one step of a program may be changed into: for each primitive, the slips that a hand derivation makes."""

import itertools
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from bpref.verify.mutating.arithmetic import (
    ARITHMETIC,
    MOST_ALTERNATIVES,
    Mutation,
    Step,
    constants,
    drop,
    negate,
    of_result,
    single,
    swap,
    toggled,
    with_params,
)


def mutations(step: Step) -> Iterator[Mutation]:
    """Every change of a step, legal or not; labels may repeat."""
    for of_kind in BY_PRIMITIVE.get(step.name, ()):
        yield from of_kind(step)
    yield from constants(step)


def _axes(step: Step) -> Iterator[Mutation]:
    """A reduction goes over other axes."""
    axes, rank = tuple(step.params["axes"]), step.operands[0].ndim
    others = (a for a in itertools.combinations(range(rank), len(axes)) if a != tuple(sorted(axes)))
    for other in itertools.islice(others, MOST_ALTERNATIVES):
        yield with_params(f"reduce axes {list(other)} in", step, axes=other)


def _reduced_by(label: str, reduce: Callable[..., Array]) -> Callable[[Step], Iterator[Mutation]]:
    def changed(step: Step) -> Iterator[Mutation]:
        yield single(f"{label} for", lambda x: reduce(x, axis=tuple(step.params["axes"])).astype(x.dtype))

    return changed


def _along(parameter: str) -> Callable[[Step], Iterator[Mutation]]:
    """Another axis, where the step works along a single one."""

    def changed(step: Step) -> Iterator[Mutation]:
        rank = step.operands[0].ndim if step.operands else len(step.params["shape"])
        others = (a for a in range(rank) if a != step.params[parameter])
        for other in itertools.islice(others, MOST_ALTERNATIVES):
            yield with_params(f"take axis {other} in", step, **{parameter: other})

    return changed


def _transpositions(step: Step) -> Iterator[Mutation]:
    """No transposition at all, or another one."""
    own = tuple(step.params["permutation"])
    identity = tuple(range(len(own)))
    yield single("drop", lambda x: x)
    others = (p for p in itertools.permutations(identity) if p not in (own, identity))
    for other in itertools.islice((p for p in others if _permuted(step, p) == _permuted(step, own)), MOST_ALTERNATIVES):
        yield with_params(f"permute by {list(other)} in", step, permutation=other)


def _permuted(step: Step, permutation: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(step.operands[0].shape[i] for i in permutation)


def _broadcasts(step: Step) -> Iterator[Mutation]:
    """The operand lies along other axes of the result."""
    own, shape = tuple(step.params["broadcast_dimensions"]), step.params["shape"]
    others = (d for d in itertools.combinations(range(len(shape)), len(own)) if d != own)
    for other in itertools.islice(others, MOST_ALTERNATIVES):
        yield with_params(f"broadcast along {list(other)} in", step, broadcast_dimensions=other)


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
            yield with_params(f"contract axes {list(changed)} on the {name} of", step, dimension_numbers=numbers)


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
                yield with_params(f"shift axis {axis} by {shift} in", step, start_indices=starts, limit_indices=limits)


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
            yield with_params(f"shift axis {axis} by {shift} in", step, **{parameter: shifted})


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
        yield single(f"{other.__name__} for", lambda x, i, u: other(x, i, u, numbers, **kept))


def _transforms(step: Step) -> Iterator[Mutation]:
    """A Fourier transform in the other direction."""
    kinds = {"FFT": "IFFT", "IFFT": "FFT"}
    kind, lengths = step.params["fft_type"], step.params["fft_lengths"]
    if kind.name in kinds:
        yield single(f"{kinds[kind.name]} for", lambda x: lax.fft(x, kinds[kind.name], lengths))


def _extremes(step: Step) -> Iterator[Mutation]:
    name, other = {"argmax": ("argmin", lax.argmin), "argmin": ("argmax", lax.argmax)}[step.name]
    (axis,), dtype = step.params["axes"], step.params["index_dtype"]
    yield single(f"{name} for", lambda x: other(x, axis, dtype))


def _flipped_order(step: Step) -> Iterator[Mutation]:
    dimensions = tuple(step.params["dimensions"])
    others = (d for d in range(step.operands[0].ndim) if (d,) != dimensions)
    for d in itertools.islice(others, MOST_ALTERNATIVES):
        yield with_params(f"reverse axis {d} in", step, dimensions=(d,))


def _windows(step: Step) -> Iterator[Mutation]:
    other = {"reduce_window_sum": (lax.max, -jnp.inf), "reduce_window_max": (lax.add, 0.0)}[step.name]
    shape, strides = step.params["window_dimensions"], step.params["window_strides"]
    label = {"reduce_window_sum": "max for", "reduce_window_max": "sum for"}[step.name]
    rest = {"base_dilation": step.params["base_dilation"], "window_dilation": step.params["window_dilation"]}

    def apply(x):
        unit = np.asarray(other[1], x.dtype)
        return [lax.reduce_window(x, unit, other[0], shape, strides, step.params["padding"], **rest)]

    yield Mutation(label, apply)


_cumulative = (drop(0), toggled("reverse the direction of", "reverse"), _along("axis"))
_scatter = (_scatters, _off_by_one(1), drop(0, 2))

BY_PRIMITIVE: dict[str, tuple[Callable[[Step], Iterator[Mutation]], ...]] = {
    **ARITHMETIC,
    "dot_general": (negate, swap(0, 1), _contractions, drop(0, 1)),
    "conv_general_dilated": (negate, _paddings, _kernels),
    "transpose": (_transpositions,),
    "broadcast_in_dim": (_broadcasts,),
    "iota": (_along("dimension"),),
    "concatenate": (_orders, _along("dimension")),
    "rev": (drop(0), _flipped_order),
    "sort": (lambda step: iter([Mutation("drop", lambda *operands: operands)]),),
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
    "select_and_scatter_add": (negate, _paddings),
    "slice": (_slices,),
    "dynamic_slice": (_off_by_one(1),),
    "dynamic_update_slice": (_off_by_one(2), drop(0)),
    "gather": (_off_by_one(1),),
    **dict.fromkeys(("scatter", "scatter_add", "scatter-add"), _scatter),
    "pad": (_paddings,),
    "fft": (_transforms, of_result("conjugate", lambda x: lax.conj(x))),
    "triangular_solve": (
        negate,
        toggled("transpose the matrix in", "transpose_a"),
        toggled("take the other triangle in", "lower"),
        toggled("solve from the other side in", "left_side"),
    ),
    "cholesky": (of_result("transpose", lambda x: jnp.swapaxes(x, -1, -2)),),
}
"""By a primitive's name; those that work element by element, and those that work along axes."""
