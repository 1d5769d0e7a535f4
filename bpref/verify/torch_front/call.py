"""A call of PyTorch code in the checker's form: named leaves, functions over lists of NumPy arrays."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, TypeGuard, TypeVar, cast

import jax
import numpy as np
import torch

from bpref.verify import torch_oracle
from bpref.verify.examining.refusals import CannotCheck
from bpref.verify.examining.subject import Entry, Misfit, aligned
from bpref.verify.host.called import Pull
from bpref.verify.naming import argument_names, function_name, in_short, names_of_leaves
from bpref.verify.oracle import Arrays, Leaf
from bpref.verify.torch_front.tensors import Placement, Watch, is_floating, specification, to_numpy, to_tensor

Tensors = list[torch.Tensor]


class TorchCall(NamedTuple):
    """A function or module and what it is called with.

    Attributes:
      fun: a function, an `autograd.Function`'s `apply`, or a module.
      names: of the tensors among its arguments, and of a module's parameters.
      leaves: those as NumPy arrays, or specifications.
      differentiable: which of them have a cotangent.
      placements: where each tensor was.
      parameters: for each leaf the name inside the module; None for an argument.
      rebuild: `tensors -> args`.
      watch: what was seen of it in float64.
    """

    fun: Callable
    names: tuple[str, ...]
    leaves: list[Leaf]
    differentiable: tuple[bool, ...]
    placements: tuple[Placement, ...]
    parameters: tuple[str | None, ...]
    rebuild: Callable[[list], tuple]
    watch: Watch

    @property
    def name(self) -> str:
        return name_of(self.fun)

    def tensors(self, values: Arrays, differentiable: Sequence[bool] | None = None) -> Tensors:
        """The leaves as fresh tensors, those that have a cotangent asking for one."""
        made = [to_tensor(v, placement) for v, placement in zip(values, self.placements, strict=True)]
        return [
            t.requires_grad_() if keep else t
            for t, keep in zip(made, self.differentiable if differentiable is None else differentiable, strict=True)
        ]

    def outputs(self, fun: Callable, tensors: Tensors) -> Tensors:
        """What `fun`, the function or its reference, gives for these tensors: a flat list."""
        arguments = [t for t, p in zip(tensors, self.parameters, strict=True) if p is None]
        with self.with_parameters(fun, tensors):
            y = torch_oracle.with_graph(lambda: fun(*self.rebuild(arguments)))
        return flat(y, function_name(fun))

    @contextmanager
    def with_parameters(self, fun: Callable, tensors: Tensors) -> Iterator[None]:
        """The module's parameters replaced by these, and a reference's that has the same; buffers by copies."""
        values = {p: t for t, p in zip(tensors, self.parameters, strict=True) if p is not None}
        modules = [m for m in dict.fromkeys((self.fun, fun)) if isinstance(m, torch.nn.Module)]
        kept = []
        try:
            for module in modules:
                for owner, key, name in _slots(module):
                    table = owner._parameters if key in owner._parameters else owner._buffers
                    old = table[key]
                    kept.append((table, key, old))
                    if table is owner._buffers:
                        table[key] = old.clone()
                    elif name in values:
                        table[key] = values[name]
            yield
        finally:
            for table, key, old in reversed(kept):
                table[key] = old


def _slots(module: torch.nn.Module) -> list[tuple[Any, str, str]]:
    """Where the parameters and buffers are: their owner, the key there, and the whole name."""
    found = []
    first: dict[int, str] = {}
    for prefix, owner in module.named_modules():
        for key, v in [*owner._parameters.items(), *owner._buffers.items()]:
            if v is not None:
                # A parameter that two modules share has the first one's name.
                name = first.setdefault(id(v), f"{prefix}.{key}" if prefix else key)
                found.append((owner, key, name))
    return found


def torch_call(fun: Callable, args: tuple) -> TorchCall:
    """A call as `check` has it: tensors are data; what else is among the arguments is held fixed.

    Raises:
      CannotCheck: no tensor has a gradient.
    """
    leaves, tree = jax.tree.flatten(args)
    roots = argument_names(with_signature(fun), len(args))
    names = names_of_leaves(roots, args)
    where = [i for i, v in enumerate(leaves) if _is_data(v)]
    tensors = [leaves[i] for i in where]
    asked = any(isinstance(t, torch.Tensor) and t.requires_grad for t in tensors)
    wanted = [_floats(t) and (not asked or (isinstance(t, torch.Tensor) and t.requires_grad)) for t in tensors]
    parameters: list[str | None] = [None] * len(tensors)
    named = [names[i] for i in where]
    if isinstance(fun, torch.nn.Module):
        for name, p in fun.named_parameters():
            parameters.append(name)
            named.append(name if name not in named else f"self.{name}")
            tensors.append(p)
            wanted.append(p.requires_grad)

    for name, t in zip(named, tensors, strict=True):
        if isinstance(t, torch.Tensor) and (t.layout is not torch.strided or t.is_nested or t.is_quantized):
            kind = "quantized" if t.is_quantized else "nested" if t.is_nested else str(t.layout).removeprefix("torch.")
            raise CannotCheck(f"{name_of(fun)}: {name} is a {kind} tensor; only dense ones of plain numbers are drawn")

    def rebuild(values: Tensors) -> tuple:
        filled = list(leaves)
        for i, v in zip(where, values, strict=True):
            filled[i] = v
        return jax.tree.unflatten(tree, filled)

    if not any(wanted):
        came = ", ".join(f"{name}: {v.dtype}{list(v.shape)}" for name, v in zip(named, tensors, strict=True))
        raise CannotCheck(
            f"{name_of(fun)}: no argument is a tensor that has a gradient; the call has {came or 'no tensors'}"
        )
    return TorchCall(
        fun,
        tuple(named),
        [_values(t) for t in tensors],
        tuple(wanted),
        tuple(
            Placement.of(t) if isinstance(t, torch.Tensor) else Placement(torch.device("cpu"), None) for t in tensors
        ),
        tuple(parameters),
        rebuild,
        Watch(),
    )


def swept(c: TorchCall, fun: Callable, values: Arrays, backward: Callable | None = None) -> tuple[Arrays, Pull]:
    """`(y, pull)` of the function, or of its reference, as NumPy arrays; in float64 where all values are.

    PyTorch's cotangent of a complex number is the conjugate of `jax.vjp`'s.
    """
    with _mode_for(c, fun, values, makes_graph=True):
        tensors = c.tensors(values)
        outputs = _called(c, fun, tensors)

    def pull(dys: Arrays) -> list[Entry]:
        # A backward may read the module again, as one does that recomputes its forward.
        with _mode_for(c, fun, values), c.with_parameters(fun, tensors):
            of_outputs = [
                to_tensor(_conjugate(dy), Placement(y.device, None)) for dy, y in zip(dys, outputs, strict=True)
            ]
            return [_conjugate(v) for v in pulled(c, tensors, outputs, of_outputs, backward)]

    return [to_numpy(y) for y in outputs], pull


E = TypeVar("E")


def _conjugate(v: E) -> E:
    return np.conj(v) if isinstance(v, np.ndarray) and np.iscomplexobj(v) else v


def pulled(
    c: TorchCall, tensors: Tensors, outputs: Tensors, dys: Tensors, backward: Callable | None = None, keep: bool = False
) -> list[Entry]:
    """What comes for each leaf: an array, None, or a `Misfit` that says why. The graph is kept to `keep`."""
    chosen = [i for i, t in enumerate(tensors) if t.requires_grad]
    entries: list[Entry] = [None] * len(tensors)
    if backward is not None:
        args = c.rebuild([t.detach() for t in tensors])
        dy = dys[0] if len(dys) == 1 else tuple(dys)
        try:
            came = aligned(backward(args, dy), args)
        except Exception as error:
            raise CannotCheck(f"the backward of {c.name} raised {in_short(error)}") from error
        return [v if v is None or isinstance(v, Misfit) else to_numpy(v) for v in came]
    if not any(y.requires_grad for y in outputs):
        misfit = Misfit("its output carries no gradient: no output has a grad_fn")
        return [misfit if i in chosen else None for i in range(len(tensors))]
    try:
        with c.with_parameters(c.fun, tensors):
            found = torch_oracle.cotangents(outputs, [tensors[i] for i in chosen], dys, keep)
    except Exception as error:  # whatever it is, no gradient came
        misfit = Misfit(f"the backward raised {in_short(error)}")
        return [misfit if i in chosen else None for i in range(len(tensors))]
    for i, v in zip(chosen, found, strict=True):
        entries[i] = None if v is None else to_numpy(v)
    return entries


def plain(c: TorchCall, fun: Callable, values: Arrays) -> Arrays:
    """The outputs alone."""
    with _mode_for(c, fun, values, forward_alone=True), torch.no_grad():
        return [to_numpy(y) for y in c.outputs(fun, c.tensors(values, [False] * len(values)))]


def flat(y: object, name: str) -> Tensors:
    """The tensors of an output: of tuples, lists, dictionaries and what is like them; a None is left out."""
    if isinstance(y, torch.Tensor):
        return [y]
    if isinstance(y, Mapping):
        return [t for v in y.values() for t in flat(v, name)]
    if isinstance(y, tuple | list):
        return [t for v in y for t in flat(v, name)]
    if y is None:
        return []
    raise CannotCheck(f"{name} returned a {type(y).__name__}, expected a tensor, or a tuple or dictionary of tensors")


def _called(c: TorchCall, fun: Callable, tensors: Tensors) -> Tensors:
    try:
        return c.outputs(fun, tensors)
    except RuntimeError as error:
        if "leaf Variable that requires grad" not in str(error):
            raise
    # It writes into its arguments, which PyTorch allows of what was computed alone.
    return c.outputs(fun, [torch_oracle.with_graph(t.clone) if t.requires_grad else t for t in tensors])


def _mode_for(c: TorchCall, fun: Callable, values: Arrays, **part: bool) -> AbstractContextManager:
    wide = all(v.dtype in (np.float64, np.complex128) for v, d in zip(values, c.differentiable, strict=True) if d)
    return c.watch.in_float64(fun, **part) if wide else nullcontext()


def name_of(fun: Callable) -> str:
    if torch_oracle.is_apply(fun):
        return cast(type, fun.__self__).__name__
    return getattr(fun, "_qualname", None) or function_name(fun)


def _is_data(v: object) -> TypeGuard[torch.Tensor | jax.ShapeDtypeStruct]:
    return isinstance(v, torch.Tensor | jax.ShapeDtypeStruct)


def _floats(t: torch.Tensor | jax.ShapeDtypeStruct) -> bool:
    return is_floating(t) if isinstance(t, torch.Tensor) else jax.numpy.issubdtype(t.dtype, jax.numpy.inexact)


def _values(t: torch.Tensor | jax.ShapeDtypeStruct) -> Leaf:
    if isinstance(t, jax.ShapeDtypeStruct):
        return t
    return specification(t) if t.is_meta else to_numpy(t)


def with_signature(fun: Callable) -> Callable:
    """What has the parameters' names: the forward of a module or `autograd.Function`, a custom operator's own."""
    if isinstance(fun, torch.nn.Module):
        return fun.forward
    if not torch_oracle.is_apply(fun):
        return getattr(fun, "_init_fn", fun)

    def named(*args: object) -> None: ...

    named.__signature__ = inspect.Signature(torch_oracle.parameters_of_apply(fun))  # type: ignore[attr-defined]
    return named
