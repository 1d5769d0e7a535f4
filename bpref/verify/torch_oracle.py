"""The second oracle: the only other file that differentiates, with PyTorch's autograd. It calls the hand's as well.

PyTorch knows one way to a backward, its own or somebody's: through the graph that the forward has left.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from types import MethodType
from typing import TYPE_CHECKING, TypeGuard, TypeVar, cast

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

Tensors = Sequence["torch.Tensor"]


def with_graph(call: Callable[[], T]) -> T:
    """What `call` returns, with its graph, whatever mode the caller is in."""
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        return call()


def cotangents(outputs: Tensors, inputs: Tensors, dys: Tensors, keep: bool = False) -> list["torch.Tensor | None"]:
    """The cotangents of `inputs`, leaves of the graph, for those of `outputs`; `None` for what no output depends on.

    Only outputs that have a graph take part; `keep` it, to be called once more. Through a reentrant checkpoint PyTorch
    gives none but what is added to `.grad`.
    """
    import torch

    live = [(y, dy) for y, dy in zip(outputs, dys, strict=True) if y.requires_grad]
    ys, of_ys = zip(*live, strict=True)
    for y, dy in live:
        if y.shape != dy.shape:
            raise ValueError(f"a cotangent has shape {list(dy.shape)}, its output {list(y.shape)}")
    # What `autograd.grad` calls; that itself would take the backward out of the mode that it is called in.
    run = torch.autograd.graph._engine_run_backward
    if not any(node.name() == "CheckpointFunctionBackward" for node in _nodes(ys)):
        return list(run(ys, of_ys, keep, False, tuple(inputs), allow_unreachable=True, accumulate_grad=False))
    before = [v.grad for v in inputs]
    try:
        for v in inputs:
            v.grad = None
        run(ys, of_ys, keep, False, (), allow_unreachable=True, accumulate_grad=True)
        return [v.grad for v in inputs]
    finally:
        for v, grad in zip(inputs, before, strict=True):
            v.grad = grad


def _nodes(outputs: Tensors) -> Iterator:
    """Every node of these outputs' graph, once."""
    seen, waiting = set(), [y.grad_fn for y in outputs if y.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions if following is not None]


def has_own_backward(outputs: Tensors) -> bool:
    """Whether a node of these outputs' graph is somebody's: an `autograd.Function` or a custom operator."""
    import torch

    of_python = torch.autograd.function.BackwardCFunction
    return any(isinstance(node, of_python) or "CppNode" in node.name() for node in _nodes(outputs))


def is_apply(fun: object) -> TypeGuard[MethodType]:
    """Whether it is the `apply` of an `autograd.Function`."""
    torch = sys.modules.get("torch")
    owner = getattr(fun, "__self__", None)
    return torch is not None and isinstance(owner, type) and issubclass(owner, torch.autograd.Function)


def parameters_of_apply(fun: MethodType) -> list[inspect.Parameter]:
    """What the `apply` of an `autograd.Function` takes: its forward's parameters, without the old form's context."""
    import torch

    owner = cast("type[torch.autograd.Function]", fun.__self__)
    parameters = list(inspect.signature(owner.forward).parameters.values())
    takes_context = owner.setup_context is torch.autograd.Function.setup_context
    return parameters[1:] if takes_context else parameters
