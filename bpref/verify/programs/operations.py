"""What JAX's primitives compute, said in NumPy: for small programs in float64.

An operation takes and returns arrays of the dtypes that JAX's has. A gather or a scatter reads or writes windows of an
array, where an array of indices says.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import lax
from jaxtyping import PyTree

Operation = Callable[..., PyTree]
"""`(*arrays) -> array`, or a list of arrays for a primitive with several results."""

Equation = Any
"""JAX's `JaxprEqn`, whose values are typed without their shapes."""


class Windows:
    """Where the windows lie that a gather reads or a scatter writes, by JAX's dimension numbers."""

    def __init__(
        self,
        shape: tuple[int, ...],
        sizes: Sequence[int],
        index_map: Sequence[int],
        dropped: Sequence[int],
        batching: Sequence[int],
        indices_batching: Sequence[int],
        mode: object,
        windows: Sequence[int],
    ):
        self.shape, self.sizes, self.index_map = shape, sizes, index_map
        self.batching = dict(zip(batching, indices_batching, strict=True))
        self.window = [d for d in range(len(shape)) if d not in dropped and d not in batching]
        self.clips = mode == lax.GatherScatterMode.CLIP
        self.windows = windows

    def places(self, indices: np.ndarray) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """An index for each axis, (*indices, *window), and which windows lie inside, (*indices,)."""
        of = indices.shape[:-1]
        inside, index = np.ones(of, bool), []
        for d, (n, size) in enumerate(zip(self.shape, self.sizes, strict=True)):
            start = np.zeros(of, np.int64)
            if d in self.index_map:
                start = indices[..., self.index_map.index(d)].astype(np.int64)
            elif d in self.batching:
                along = [-1 if i == self.batching[d] else 1 for i in range(len(of))]
                start = start + np.arange(n).reshape(along)
            inside &= (start >= 0) & (start <= n - size)
            start = np.reshape(np.clip(start, 0, n - size), (*of, *[1] * len(self.window)))
            along = [-1 if w == d else 1 for w in self.window]
            index.append(start + np.arange(size).reshape(along) if d in self.window else start)
        return tuple(np.broadcast_arrays(*index)), inside | self.clips

    def apart(self, ndim: int) -> list[int]:
        """The axes of the windows' array: those of the indices first, and then those inside a window."""
        return [i for i in range(ndim) if i not in self.windows] + list(self.windows)


def gather(equation: Equation) -> Callable[..., np.ndarray]:
    p, operand = equation.params, equation.invars[0].aval
    numbers, mode = p["dimension_numbers"], p["mode"]
    inside_is_promised = mode == lax.GatherScatterMode.PROMISE_IN_BOUNDS
    windows = Windows(
        operand.shape, p["slice_sizes"], numbers.start_index_map, numbers.collapsed_slice_dims,
        numbers.operand_batching_dims, numbers.start_indices_batching_dims, mode, numbers.offset_dims,
    )  # fmt: skip
    fill = _filler(operand.dtype) if p["fill_value"] is None else p["fill_value"]

    def gathered(x: np.ndarray, indices: np.ndarray) -> np.ndarray:
        places, inside = windows.places(indices)
        found = x[places]
        if not inside_is_promised and not inside.all():
            found = np.where(
                np.reshape(inside, (*inside.shape, *[1] * (found.ndim - inside.ndim))), found, x.dtype.type(fill)
            )
        return np.transpose(found, np.argsort(windows.apart(found.ndim)))

    return gathered


def _filler(dtype: np.dtype) -> float:
    """What JAX has outside of an array."""
    if dtype.kind in "fc":
        return np.nan
    return True if dtype.kind == "b" else np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max


def scatter(combine: np.ufunc | None) -> Callable[[Equation], Callable[..., np.ndarray]]:
    def of(equation: Equation) -> Callable[..., np.ndarray]:
        p, operand, updates = equation.params, equation.invars[0].aval, equation.invars[2].aval
        numbers = p["dimension_numbers"]
        dropped = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
        in_window = iter(numbers.update_window_dims)
        sizes = [1 if d in dropped else updates.shape[next(in_window)] for d in range(len(operand.shape))]
        windows = Windows(
            operand.shape, sizes, numbers.scatter_dims_to_operand_dims, numbers.inserted_window_dims,
            numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, p["mode"], numbers.update_window_dims,
        )  # fmt: skip

        def scattered(x: np.ndarray, indices: np.ndarray, new: np.ndarray) -> np.ndarray:
            places, inside = windows.places(indices)
            new = np.transpose(new, windows.apart(new.ndim))
            out, places = np.array(x), tuple(i[inside] for i in places)
            if combine is None:
                out[places] = new[inside]
            else:
                combine.at(out, places, new[inside])
            return out

        return scattered

    return of


def _complex(real: np.ndarray, imaginary: np.ndarray) -> np.ndarray:
    both = np.empty(np.broadcast_shapes(np.shape(real), np.shape(imaginary)), np.complex128)
    both.real, both.imag = real, imaginary
    return both


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# fmt: off
ELEMENTWISE: dict[str, Operation] = {
    "abs": np.abs, "acos": np.arccos, "acosh": np.arccosh, "add": np.add, "add_any": np.add, "and": np.bitwise_and,
    "asin": np.arcsin, "asinh": np.arcsinh, "atan": np.arctan, "atan2": np.arctan2, "atanh": np.arctanh,
    "ceil": np.ceil, "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high), "complex": _complex,
    "conj": np.conj, "copy": lambda x: x, "copy_p": lambda x: x, "cos": np.cos, "cosh": np.cosh, "div": np.divide,
    "eq": np.equal, "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "floor": np.floor, "ge": np.greater_equal,
    "gt": np.greater, "imag": np.imag, "is_finite": np.isfinite, "le": np.less_equal, "log": np.log, "log1p": np.log1p,
    "logistic": _logistic, "lt": np.less, "max": np.maximum, "min": np.minimum, "mul": np.multiply, "name": lambda x: x,
    "ne": np.not_equal, "neg": np.negative, "not": np.invert, "or": np.bitwise_or, "pow": np.power, "real": np.real,
    "rem": np.fmod, "rsqrt": lambda x: 1 / np.sqrt(x), "sign": np.sign, "sin": np.sin, "sinh": np.sinh,
    "sqrt": np.sqrt, "square": np.square, "stop_gradient": lambda x: x, "sub": np.subtract, "tan": np.tan,
    "tanh": np.tanh, "xor": np.bitwise_xor,
}
# fmt: on
"""By a primitive's name, for floating-point numbers, and for integers where it means the same."""


def _broadcast_in_dim(equation: Equation) -> Operation | None:
    shape, places = equation.params["shape"], equation.params["broadcast_dimensions"]
    if len(equation.invars) > 1:
        return None
    aligned = [1] * len(shape)
    for n, axis in zip(equation.invars[0].aval.shape, places, strict=True):
        aligned[axis] = n
    return lambda x: np.broadcast_to(np.reshape(x, aligned), shape)


def _reduction(f: Callable[..., np.ndarray]) -> Callable[[Equation], Operation]:
    def of(equation: Equation) -> Operation:
        axes, dtype = tuple(equation.params["axes"]), equation.outvars[0].aval.dtype
        return lambda x: f(x, axis=axes).astype(dtype)

    return of


def _extremum(f: Callable[..., np.ndarray]) -> Callable[[Equation], Operation | None]:
    """The largest or smallest element of real numbers; NumPy has none of no elements."""

    def of(equation: Equation) -> Operation | None:
        axes = tuple(equation.params["axes"])
        is_complex = equation.invars[0].aval.dtype.kind == "c"
        return None if is_complex or 0 in equation.invars[0].aval.shape else lambda x: f(x, axis=axes)

    return of


def _cumulative(f: Callable[..., np.ndarray]) -> Callable[[Equation], Operation]:
    def of(equation: Equation) -> Operation:
        axis, dtype = equation.params["axis"], equation.outvars[0].aval.dtype
        if equation.params["reverse"]:
            return lambda x: np.flip(f(np.flip(x, axis), axis=axis), axis).astype(dtype)
        return lambda x: f(x, axis=axis).astype(dtype)

    return of


def _arg_extremum(f: Callable[..., np.ndarray]) -> Callable[[Equation], Operation | None]:
    def of(equation: Equation) -> Operation | None:
        axes, dtype = equation.params["axes"], equation.params["index_dtype"]
        return (lambda x: f(x, axis=axes[0]).astype(dtype)) if len(axes) == 1 else None

    return of


def _dot_general(equation: Equation) -> Operation:
    (of_left, of_right), (left_batch, right_batch) = equation.params["dimension_numbers"]
    dtype = equation.outvars[0].aval.dtype

    def split(shape: Sequence[int], contracted: Sequence[int], batch: Sequence[int]) -> tuple[list[int], list[int]]:
        free = [i for i in range(len(shape)) if i not in (*contracted, *batch)]
        return free, [shape[i] for i in free]

    left, right = (v.aval.shape for v in equation.invars)
    left_free, left_sizes = split(left, of_left, left_batch)
    right_free, right_sizes = split(right, of_right, right_batch)
    batch = [left[i] for i in left_batch]
    inner = int(np.prod([left[i] for i in of_left], dtype=int))
    rows, columns = int(np.prod(left_sizes, dtype=int)), int(np.prod(right_sizes, dtype=int))

    def product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x = np.transpose(x, (*left_batch, *left_free, *of_left)).reshape(*batch, rows, inner)
        y = np.transpose(y, (*right_batch, *of_right, *right_free)).reshape(*batch, inner, columns)
        return np.matmul(x.astype(dtype), y.astype(dtype)).reshape((*batch, *left_sizes, *right_sizes))

    return product


def _integer_pow(equation: Equation) -> Operation:
    y = equation.params["y"]
    return (lambda x: np.power(x, y)) if y >= 0 else (lambda x: 1 / np.power(x, -y))


def _pad(equation: Equation) -> Operation:
    config, shape = equation.params["padding_config"], equation.outvars[0].aval.shape

    def padded(x: np.ndarray, value: np.ndarray) -> np.ndarray:
        out = np.full(shape, value, x.dtype)
        into, come = [], []
        for n, (low, _, between), m in zip(x.shape, config, shape, strict=True):
            places = low + (1 + between) * np.arange(n)
            kept = (places >= 0) & (places < m)
            into.append(places[kept])
            come.append(np.flatnonzero(kept))
        out[np.ix_(*into)] = x[np.ix_(*come)]
        return out

    return padded


def _convert(equation: Equation) -> Operation | None:
    """A cast; JAX has its own of floating-point numbers to integers, which is bounded."""
    (source,), dtype = equation.invars, np.dtype(equation.params["new_dtype"])
    bounded = source.aval.dtype.kind in "fc" and dtype.kind in "iu"
    return None if bounded or (source.aval.dtype.kind == "c" and dtype.kind != "c") else lambda x: np.asarray(x, dtype)


def _select_n(equation: Equation) -> Operation | None:
    if equation.invars[0].aval.dtype != bool or len(equation.invars) != 3:
        return None
    return lambda which, of_false, of_true: np.where(which, of_true, of_false)


def _slice(equation: Equation) -> Operation:
    p = equation.params
    strides = p["strides"] or (1,) * len(p["start_indices"])
    where = tuple(map(slice, p["start_indices"], p["limit_indices"], strides))
    return lambda x: x[where]


def _corner(starts: Sequence[np.ndarray], shape: Sequence[int], sizes: Sequence[int]) -> tuple[slice, ...]:
    """The block of these sizes from `starts` on, moved inside where it would stick out."""
    first = [int(np.clip(s, 0, n - size)) for s, n, size in zip(starts, shape, sizes, strict=True)]
    return tuple(slice(i, i + size) for i, size in zip(first, sizes, strict=True))


def _dynamic_slice(equation: Equation) -> Operation:
    sizes = equation.params["slice_sizes"]
    return lambda x, *starts: x[_corner(starts, x.shape, sizes)]


def _dynamic_update_slice(equation: Equation) -> Operation:
    def updated(x: np.ndarray, new: np.ndarray, *starts: np.ndarray) -> np.ndarray:
        out = np.array(x)
        out[_corner(starts, x.shape, new.shape)] = new
        return out

    return updated


def _split(equation: Equation) -> Operation:
    ends, axis = np.cumsum(equation.params["sizes"])[:-1], equation.params["axis"]
    return lambda x: np.split(x, ends, axis)


def _sort(equation: Equation) -> Operation | None:
    axis = equation.params["dimension"]
    if equation.params["num_keys"] != 1 or equation.invars[0].aval.dtype.kind == "c":
        return None

    def ordered(*arrays: np.ndarray) -> list[np.ndarray]:
        order = np.argsort(arrays[0], axis=axis, kind="stable")
        return [np.take_along_axis(x, order, axis) for x in arrays]

    return ordered


def _iota(equation: Equation) -> Operation | None:
    shape, axis = equation.params["shape"], equation.params["dimension"]
    aligned = [-1 if i == axis else 1 for i in range(len(shape))]
    counted = np.broadcast_to(np.arange(shape[axis]).astype(equation.params["dtype"]).reshape(aligned), shape)
    return None if equation.invars else lambda: counted


WITH_PARAMETERS: dict[str, Callable[[Equation], Operation | None]] = {
    "argmax": _arg_extremum(np.argmax),
    "argmin": _arg_extremum(np.argmin),
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": lambda e: lambda *xs: np.concatenate(xs, e.params["dimension"]),
    "convert_element_type": _convert,
    "cummax": _cumulative(np.maximum.accumulate),
    "cummin": _cumulative(np.minimum.accumulate),
    "cumprod": _cumulative(np.cumprod),
    "cumsum": _cumulative(np.cumsum),
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "expand_dims": lambda e: lambda x: np.reshape(x, e.outvars[0].aval.shape),
    "gather": gather,
    "integer_pow": _integer_pow,
    "iota": _iota,
    "pad": _pad,
    "reduce_and": _reduction(np.all),
    "reduce_max": _extremum(np.max),
    "reduce_min": _extremum(np.min),
    "reduce_or": _reduction(np.any),
    "reduce_prod": _reduction(np.prod),
    "reduce_sum": _reduction(np.sum),
    "reshape": lambda e: None if e.params["dimensions"] else lambda x: np.reshape(x, e.params["new_sizes"]),
    "rev": lambda e: lambda x: np.flip(x, e.params["dimensions"]),
    "scatter": scatter(None),
    "scatter-add": scatter(np.add),
    "scatter-max": scatter(np.maximum),
    "scatter-min": scatter(np.minimum),
    "scatter-mul": scatter(np.multiply),
    "select_n": _select_n,
    "slice": _slice,
    "sort": _sort,
    "split": _split,
    "stack": lambda e: lambda *xs: np.stack(xs, e.params["axis"]),
    "tile": lambda e: lambda x: np.tile(x, e.params["reps"]),
    "unstack": lambda e: lambda x: list(np.moveaxis(x, e.params["axis"], 0)),
    "squeeze": lambda e: lambda x: np.reshape(x, e.outvars[0].aval.shape),
    "transpose": lambda e: lambda x: np.transpose(x, e.params["permutation"]),
}
"""By a primitive's name: the operation of an equation, or None where it is not one of those that NumPy has."""
