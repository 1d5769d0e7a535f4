"""PyTorch as it is: functions, `autograd.Function`s and modules, called with tensors.

Nothing here is imported unless the caller has imported torch.
"""

import sys
from collections.abc import Callable

import jax
import numpy as np

from bpref.verify.torch_oracle import is_apply


def is_torch(fun: object, args: tuple) -> bool:
    """Whether a call is PyTorch's: a tensor among the arguments, or a function written in it and specifications."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    leaves = jax.tree.leaves(args)
    if any(isinstance(v, torch.Tensor) for v in leaves):
        return True
    return is_written_in_torch(fun) and not any(isinstance(v, np.ndarray | jax.Array) for v in leaves)


def is_written_in_torch(fun: object) -> bool:
    """Whether it is a module, an `autograd.Function`'s `apply`, or of a file that imports torch and not JAX."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    if isinstance(fun, torch.nn.Module) or is_apply(fun):
        return True
    plain = getattr(fun, "_init_fn", getattr(fun, "func", fun))
    imported = {getattr(v, "__name__", "") for v in getattr(plain, "__globals__", {}).values()}
    return "torch" in imported and not imported & {"jax", "jax.numpy"}


def named(fun: Callable) -> tuple[str, Callable]:
    """What reports call a function of PyTorch, and what has the names of its parameters."""
    from bpref.verify.torch_front.call import name_of, with_signature

    return name_of(fun), with_signature(fun)


def as_tensors(args: tuple) -> tuple:
    """Arguments with tensors for arrays; for specifications tensors without values, on the meta device."""
    from bpref.verify.torch_front.tensors import like_tensors

    return jax.tree.map(like_tensors, args)
