"""PyTorch as it is: functions, `autograd.Function`s and modules, called with tensors.

Nothing here is imported unless the caller has imported torch.
"""

import sys
from typing import Any

import jax

from bpref.verify.torch_oracle import is_apply


def is_torch(fun: Any, args: tuple) -> bool:
    """Whether a call is PyTorch's: a module, an `autograd.Function`'s `apply`, or a tensor among the arguments."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    has_tensors = any(isinstance(v, torch.Tensor) for v in jax.tree.leaves(args))
    return has_tensors or isinstance(fun, torch.nn.Module) or is_apply(fun)
