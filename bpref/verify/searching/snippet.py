"""A program of a few lines that calls `bpref.check` once more with the very arguments that failed."""

import inspect
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, cast

import jax
import numpy as np

from bpref.layer import Layer
from bpref.programs import is_typed
from bpref.verify.numbers.points import is_key

INDENT = "    np.array("

if TYPE_CHECKING:
    import torch

TAKEN = ("bpref", "jax", "jnp", "np", "report", "sys")
"""Names that the program uses itself."""


class _Names:
    """The names that a program needs: those it imports, and those that are left to be filled in, with the place."""

    def __init__(self) -> None:
        self.imports: dict[tuple[str, str], str] = {}
        self.folders: dict[str, None] = {}
        self.missing: dict[str, str] = {}

    def imported(self, module: str, name: str, folder: str = "") -> str:
        """What `name` of a module is called in the program."""
        if (module, name) not in self.imports:
            taken = (*TAKEN, *self.imports.values(), *self.missing)
            numbered = (f"{name}_{n}" for n in range(2, len(taken) + 3))
            self.imports[module, name] = name if name not in taken else next(n for n in numbered if n not in taken)
            if folder:
                self.folders[folder] = None
        return self.imports[module, name]

    def lines(self) -> list[str]:
        """The imports, one line a module."""
        named = {m: [] for m in sorted({m for m, _ in self.imports})}
        for (module, name), local in sorted(self.imports.items()):
            named[module].append(name if name == local else f"{name} as {local}")
        return [f"from {module} import {', '.join(of_module)}" for module, of_module in named.items()]


def snippet(fun: Callable | Layer, args: tuple, reference: Callable | None, backward: Callable | None, key: int) -> str:
    """A self-contained program: imports, the arguments as literals, the call.

    A function is imported from where it can be: a module, a file, a class, under whatever name it stands there. One
    that no import reaches (a lambda, one defined inside another) is left to be filled in, with the place where it is
    defined.
    """
    names = _Names()
    call = [_function(fun, "fun", names), *(_text(arg, names) for arg in args)]
    for name, f in (("reference", reference), ("backward", backward)):
        if f is not None:
            call.append(f"{name}={_function(f, name, names)}")
    call.append(f"key={key}")
    wide = ['jax.config.update("jax_enable_x64", True)'] if jax.numpy.result_type(float) == np.float64 else []
    filled_in = [f"{name} = ...  # {where}" for name, where in names.missing.items()]
    body = ",\n".join(f"    {part}" for part in call)
    used = "\n".join([*wide, *filled_in, body])
    modules = ["import jax"] * bool(re.search(r"\bjax\.", used))
    modules += ["import torch"] * ("torch." in used)
    modules += ["import jax.numpy as jnp"] * ("jnp." in used) + ["import numpy as np"] * bool(
        re.search(r"\bnp\.", used)
    )
    folders = [f"sys.path.insert(0, {folder!r})" for folder in names.folders]
    parts = [*["import sys", ""] * bool(folders), *modules, "", *folders, "", "import bpref", *names.lines(), ""]
    text = "\n".join([*parts, *wide, *filled_in, f"report = bpref.check(\n{body},\n)", "print(report)", ""])
    return re.sub(r"\n{3,}", "\n\n", text).lstrip("\n")


def _function(f: object, name: str, names: _Names) -> str:
    """An expression for a function, by import where there is one."""
    if isinstance(f, partial):
        keywords = [f"{k}={_text(v, names)}" for k, v in f.keywords.items()]
        inner = [_function(f.func, name, names), *(_text(v, names) for v in f.args), *keywords]
        return f"{names.imported('functools', 'partial')}({', '.join(inner)})"
    found = reached(f)
    if found:
        first, dot, rest = found.path.partition(".")
        return names.imported(found.module, first, found.folder) + dot + rest
    if inspect.ismethod(f) and reached(f.__self__):
        return f"{_function(f.__self__, name, names)}.{f.__name__}"
    while name in names.imports.values():
        name += "_"
    names.missing[name] = f"{_where(f)}; fill in"
    return name


def _where(f: object) -> str:
    code = getattr(getattr(f, "fun", f), "__code__", None)
    name = getattr(f, "__qualname__", None) or type(f).__name__
    return f"{name}, {Path(code.co_filename).name} line {code.co_firstlineno}" if code else name


def _text(v: object, names: _Names) -> str:
    """A value as Python writes it; arrays with every digit."""
    if is_typed(v) and not isinstance(v, type):
        if type(v).__module__ == "torch":
            return _tensor(cast("torch.Tensor", v))
        if isinstance(v, jax.Array) and is_key(v):
            return f"jax.random.wrap_key_data({_array(np.asarray(jax.random.key_data(v)))})"
        return _array(np.asarray(v))
    if isinstance(v, tuple | list | dict):
        if type(v) is dict:
            return "{" + ", ".join(f"{k!r}: {_text(x, names)}" for k, x in v.items()) + "}"
        items = [_text(x, names) for x in v]
        if hasattr(v, "_fields"):
            return f"{_function(type(v), type(v).__name__, names)}({', '.join(items)})"
        return f"[{', '.join(items)}]" if isinstance(v, list) else f"({', '.join(items)}{',' * (len(items) == 1)})"
    if isinstance(v, np.dtype):
        return f"np.dtype({v.name!r})"
    if isinstance(v, float) and not np.isfinite(v):
        return f"float({str(v)!r})"
    return _function(v, f"f{len(names.missing)}", names) if callable(v) else repr(v)


def _tensor(v: "torch.Tensor") -> str:
    if not v.numel():
        return f"torch.zeros({tuple(v.shape)}, dtype={v.dtype})"
    wide = v.detach().cpu().double() if v.is_floating_point() and v.element_size() < 4 else v.detach().cpu()
    return f"torch.tensor({_numbers(wide.numpy())}, dtype={v.dtype})"


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


class Reached(NamedTuple):
    """An object by import: the name of its module, its own within it (`Class.method`), and the folder of the module.

    `folder` is empty where every program finds the module: installed, or in the current directory.
    """

    module: str
    path: str
    folder: str


def reached(f: object) -> Reached | None:
    """How a new program gets `f` by import, by the most public name; None if it cannot."""
    for module, path in _names_of(f):
        place = sys.modules[module]
        name = _as_imported(module, place)
        if name:
            return Reached(name, path, _folder_of(place, name))
    return None


def _names_of(f: object) -> Iterator[tuple[str, str]]:
    """The modules and the names in them under which `f` stands now, the best first."""
    module, path = getattr(f, "__module__", None) or "", getattr(f, "__qualname__", None) or ""
    own = [(module, path)] if _at(module, path, f) else []
    if own and not _is_private(module):
        yield from own
    top = module.split(".")[0]
    beside = sorted((n for n in list(sys.modules) if n.split(".")[0] == top and not _is_private(n)), key=len)
    yield from ((name, path) for name in beside if path and _at(name, path, f))
    yield from own
    for name in [
        module,
        *sorted(set(sys.modules) - {module}, key=lambda n: (n.split(".")[0] != top, _is_private(n), n)),
    ]:
        place = sys.modules.get(name)
        known = object.__getattribute__(place, "__dict__") if isinstance(place, ModuleType) else {}  # loads no lazy one
        yield from ((name, other) for other, v in list(known.items()) if v is f and other.isidentifier())


def _at(module: str, path: str, f: object) -> bool:
    """Whether `f` is what stands at this path of a module that is imported."""
    v: object = sys.modules.get(module)
    if v is None or not path or "<" in path:
        return False
    for name in path.split("."):
        v = inspect.getattr_static(v, name, None) if isinstance(v, ModuleType) else getattr(v, name, None)
    return v is f or (inspect.ismethod(f) and v == f)


def _is_private(module: str) -> bool:
    return any(part.startswith("_") for part in module.split(".")) and module != "__main__"


def _as_imported(name: str, module: ModuleType) -> str:
    """What a module is called by who imports it: the program that runs now by its own name; empty for a session."""
    if name != "__main__":
        return name
    spec, file = getattr(module, "__spec__", None), getattr(module, "__file__", None)
    return spec.name if spec else Path(file).stem if file else ""


def _folder_of(module: ModuleType, name: str) -> str:
    """The folder to import it from, if that has to be said."""
    top = module if module.__name__ == "__main__" else sys.modules.get(name.split(".")[0], module)
    places = [getattr(top, "__file__", None), *list(getattr(top, "__path__", []))]
    place = next((Path(p).absolute() for p in places if p), None)
    if place is None or name.split(".")[0] == __name__.split(".")[0]:
        return ""
    folder = place.parent.parent if place.stem == "__init__" else place.parent
    if module.__name__ == "__main__" and getattr(module, "__spec__", None) is None:
        folder = place.parent
    installed = [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    found = [Path.cwd(), *(Path(p).absolute() for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p)]
    is_found = folder in found or any(folder.is_relative_to(p) for p in installed)
    return "" if is_found else str(folder)
