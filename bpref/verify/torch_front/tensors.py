"""Tensors as NumPy arrays and back: of the same bits, on the same device, laid out in the same way; or in float64.

PyTorch code runs in float64 whatever dtypes it names: casts down are left out, and new tensors are made wide.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.typing import DTypeLike
from torch.overrides import TorchFunctionMode

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes: what a dtype that NumPy does not know is passed through as."""


def dtype_name(dtype: torch.dtype | DTypeLike) -> str:
    """Of a dtype of PyTorch's, NumPy's or JAX's, the name that all of them use."""
    return str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else jnp.dtype(dtype).name


@cache
def numpy_dtype(dtype: torch.dtype) -> np.dtype:
    return jnp.dtype(dtype_name(dtype))


KNOWN_TO_NUMPY = {
    *(torch.float64, torch.float32, torch.float16, torch.complex128, torch.complex64, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
}


def to_numpy(t: torch.Tensor) -> np.ndarray:
    """The values of a tensor, wherever it is; a copy. A sparse one, as gradients of tables may be, is made dense."""
    t = t.detach().to_dense() if t.layout is not torch.strided else t.detach()
    t = t.resolve_conj().resolve_neg().cpu()
    if t.dtype in KNOWN_TO_NUMPY:
        return np.array(t.numpy(), order="C")
    return np.array(t.contiguous().view(BITS[t.element_size()]).numpy()).view(numpy_dtype(t.dtype))


class Placement(NamedTuple):
    """Where a tensor was, and how: its device, and strides where these are not the usual ones and overlap nowhere."""

    device: torch.device
    strides: tuple[int, ...] | None

    @classmethod
    def of(cls, t: torch.Tensor) -> "Placement":
        device = torch.device("cpu") if t.is_meta else t.device
        overlaps = any(n > 1 and stride == 0 for n, stride in zip(t.shape, t.stride(), strict=True))
        return cls(device, None if overlaps or t.is_contiguous() else t.stride())


def to_tensor(v: np.ndarray, placement: Placement) -> torch.Tensor:
    """A tensor of these values; a copy, so that it may be written into."""
    v = np.array(v, order="C")
    if v.dtype.kind in "biufc":
        made = torch.from_numpy(v)
    else:
        bits = {1: np.uint8, 2: np.int16}[v.dtype.itemsize]
        made = torch.from_numpy(v.view(bits)).view(getattr(torch, v.dtype.name))
    made = made if placement.device.type == "cpu" else made.to(placement.device)
    if placement.strides is None:
        return made
    return torch.empty_strided(made.shape, placement.strides, dtype=made.dtype, device=placement.device).copy_(made)


def specification(t: torch.Tensor) -> jax.ShapeDtypeStruct:
    """A tensor without values, on the meta device, as what is filled."""
    return jax.ShapeDtypeStruct(tuple(t.shape), numpy_dtype(t.dtype))


def is_floating(t: torch.Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


def like_tensors(v: object) -> object:
    """An array as a tensor, a specification as one on the meta device; anything else as it is."""
    if isinstance(v, jax.ShapeDtypeStruct):
        return torch.empty(v.shape, dtype=getattr(torch, dtype_name(v.dtype)), device="meta")
    if isinstance(v, np.ndarray | np.generic | jax.Array):
        return to_tensor(np.asarray(v), Placement(torch.device("cpu"), None))
    return v


NARROW = (torch.float32, torch.bfloat16, torch.float16)
CASTS = {torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16}
STOPS = {torch.Tensor.detach, torch.Tensor.detach_, torch.detach, torch.detach_, torch.Tensor.data.__get__}  # type: ignore


class InFloat64(TorchFunctionMode):
    """Every call of PyTorch with float64 for a narrower real dtype, of its arguments and by name.

    Attributes:
      casts: whether anything was to be cast down.
      changed: whether anything was to be narrower than it is now.
      stops: whether a gradient was stopped.
    """

    casts = changed = stops = False

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        kwargs = kwargs or {}
        self.stops |= func in STOPS or (func is torch._C._set_grad_enabled and not args[0])
        if func in CASTS:
            self.casts = self.changed = True
            return args[0].double()
        # What is written into must stay what it is.
        written = getattr(func, "__name__", "").endswith("_") and not getattr(func, "__name__", "").endswith("__")
        wide = [v if i == 0 and written else self._wide(v) for i, v in enumerate(args)]
        return func(*wide, **{name: v if name == "out" else self._wide(v) for name, v in kwargs.items()})

    def _wide(self, v: object) -> object:
        if isinstance(v, torch.dtype):
            if v not in NARROW:
                return v
            self.casts = self.changed = True
            return torch.float64
        if isinstance(v, torch.Tensor):
            if v.dtype not in NARROW:
                return v
            self.changed = True
            return v.double()
        if isinstance(v, list | tuple) and type(v) in (list, tuple):
            return type(v)(self._wide(item) for item in v)
        return v


class Watch:
    """What was seen of functions that were run in float64.

    Attributes:
      quiet: those whose forward names no narrower dtype: they need no mode, which takes its time.
      casts: those that cast down inside.
      stops: those that stop a gradient inside.
    """

    def __init__(self) -> None:
        self.quiet: set[Callable] = set()
        self.casts: set[Callable] = set()
        self.stops: set[Callable] = set()

    @contextmanager
    def in_float64(self, fun: Callable, forward_alone: bool = False, makes_graph: bool = False) -> Iterator[None]:
        """A context in which PyTorch computes in float64, new tensors too."""
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            if forward_alone and fun in self.quiet:
                yield
                return
            with InFloat64() as mode:
                yield
            if mode.casts:
                self.casts.add(fun)
            if mode.stops and makes_graph:
                self.stops.add(fun)
            if forward_alone and not mode.changed:
                self.quiet.add(fun)
        finally:
            torch.set_default_dtype(default)
