"""PyTorch code in float64, whatever dtypes it names: casts down are left out, and new tensors are made wide."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

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

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        self.stops |= func in STOPS or (func is torch._C._set_grad_enabled and not args[0])
        if func in CASTS:
            self.casts = self.changed = True
            return args[0].double()
        # What is written into must stay what it is.
        written = getattr(func, "__name__", "").endswith("_") and not getattr(func, "__name__", "").endswith("__")
        wide = [v if i == 0 and written else self._wide(v) for i, v in enumerate(args)]
        return func(*wide, **{name: v if name == "out" else self._wide(v) for name, v in kwargs.items()})

    def _wide(self, v: Any) -> Any:
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
        if type(v) in (list, tuple):
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
        self.quiet: set[Any] = set()
        self.casts: set[Any] = set()
        self.stops: set[Any] = set()

    @contextmanager
    def in_float64(self, fun: Any, forward_alone: bool = False, makes_graph: bool = False) -> Iterator[None]:
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
