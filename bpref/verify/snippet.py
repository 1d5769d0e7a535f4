"""A program of a few lines that calls `bpref.check` once more with the very arguments that failed."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

INDENT = "    np.array("

Imports = dict[tuple[str, str], None]
"""The names that a program needs, each as its module and itself."""


def snippet(fun: Any, args: tuple, reference: Any, backward: Any, key: int) -> str:
    """A self-contained program: imports, the arguments as literals, the call.

    A function that no import reaches (a lambda, one defined inside another) is left to be filled in, with the place
    where it is defined.
    """
    imports: Imports = {}
    missing: dict[str, str] = {}
    call = [_function(fun, "fun", imports, missing), *(_text(arg, imports, missing) for arg in args)]
    for name, f in (("reference", reference), ("backward", backward)):
        if f is not None:
            call.append(f"{name}={_function(f, name, imports, missing)}")
    call.append(f"key={key}")
    wide = ['jax.config.update("jax_enable_x64", True)'] if jax.numpy.result_type(float) == np.float64 else []
    filled_in = [f"{name} = ...  # {where}" for name, where in missing.items()]
    body = ",\n".join(f"    {part}" for part in call)
    used = "\n".join([*filled_in, body])
    modules = ["import jax"] * bool(wide) + ["import jax.numpy as jnp"] * ("jnp." in used)
    modules += ["import numpy as np"] * ("np." in used.replace("jnp.", ""))
    parts = [*modules, "", "import bpref", *_grouped(imports), "", *wide, *filled_in]
    return "\n".join([*parts, f"report = bpref.check(\n{body},\n)", "print(report)", ""]).replace("\n\n\n", "\n\n")


def _grouped(imports: Imports) -> list[str]:
    modules = sorted({module for module, _ in imports})
    return [f"from {module} import {', '.join(sorted(n for m, n in imports if m == module))}" for module in modules]


def _function(f: Any, name: str, imports: Imports, missing: dict[str, str]) -> str:
    """An expression for a function, by import where there is one."""
    if isinstance(f, partial):
        keywords = [f"{k}={_text(v, imports, missing)}" for k, v in f.keywords.items()]
        inner = [_function(f.func, name, imports, missing), *(_text(v, imports, missing) for v in f.args), *keywords]
        imports["functools", "partial"] = None
        return f"partial({', '.join(inner)})"
    module: str = getattr(f, "__module__", None) or ""
    qualname: str = getattr(f, "__qualname__", None) or getattr(f, "__name__", "")
    place = sys.modules.get(module)
    if place is not None and qualname.isidentifier() and getattr(place, qualname, None) is f:
        path = getattr(place, "__file__", None)
        module = Path(path).stem if module == "__main__" and path else module
        if module != "__main__":
            imports[module, qualname] = None
            return qualname
    missing[name] = f"{_where(f)}; fill in"
    return name


def _where(f: Callable[..., Any]) -> str:
    code = getattr(getattr(f, "fun", f), "__code__", None)
    name = getattr(f, "__qualname__", None) or type(f).__name__
    return f"{name}, {Path(code.co_filename).name} line {code.co_firstlineno}" if code else name


def _text(v: Any, imports: Imports, missing: dict[str, str]) -> str:
    """A value as Python writes it; arrays with every digit."""
    if hasattr(v, "dtype") and hasattr(v, "shape"):
        return _array(np.asarray(v))
    if isinstance(v, tuple | list | dict):
        if type(v) is dict:
            return "{" + ", ".join(f"{k!r}: {_text(x, imports, missing)}" for k, x in v.items()) + "}"
        items = [_text(x, imports, missing) for x in v]
        if hasattr(v, "_fields"):
            return f"{_function(type(v), type(v).__name__, imports, missing)}({', '.join(items)})"
        return f"[{', '.join(items)}]" if isinstance(v, list) else f"({', '.join(items)}{',' * (len(items) == 1)})"
    return _function(v, f"f{len(missing)}", imports, missing) if callable(v) else repr(v)


def _array(v: np.ndarray) -> str:
    name = "bool_" if v.dtype == np.bool_ else v.dtype.name
    dtype = f"np.{name}" if hasattr(np, name) else f"jnp.{name}"
    if v.size == 0:
        return f"np.zeros({v.shape}, {dtype})"
    first = v.reshape(-1)[:1]
    if v.size > 1 and v.tobytes() == first.tobytes() * v.size:
        return f"np.full({v.shape}, {_numbers(first)[1:-1].strip()}, {dtype})"
    return f"np.array({_numbers(v)}, {dtype})"


def _numbers(v: np.ndarray) -> str:
    if v.ndim == 0:
        return _numbers(v[None])[1:-1].strip()
    text = np.array2string(
        v, separator=", ", threshold=sys.maxsize, floatmode="unique", max_line_width=100, prefix=INDENT
    )
    for word in ("nan", "inf"):
        text = text.replace(word, f"np.{word}")
    return text
