"""Gathers and scatters in NumPy: windows of an array, read or written where an array of indices says."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import lax

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
        mode: Any,
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


def _filler(dtype: np.dtype) -> Any:
    """What JAX has outside of an array."""
    if dtype.kind in "fc":
        return np.nan
    return True if dtype.kind == "b" else np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max


def scatter(combine: Any) -> Callable[[Equation], Callable[..., np.ndarray]]:
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
