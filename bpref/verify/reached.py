"""From where a program can import a function: the module, the name that it has there, the folder of the module."""

import inspect
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple


class Reached(NamedTuple):
    """An object by import: the name of its module, its own within it (`Class.method`), and the folder of the module.

    `folder` is empty where every program finds the module: installed, or in the current directory.
    """

    module: str
    path: str
    folder: str


def reached(f: Any) -> Reached | None:
    """How a new program gets `f` by import, by the most public name; None if it cannot."""
    for module, path in _names_of(f):
        place = sys.modules[module]
        name = _as_imported(module, place)
        if name:
            return Reached(name, path, _folder_of(place, name))
    return None


def _names_of(f: Any) -> Iterator[tuple[str, str]]:
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


def _at(module: str, path: str, f: Any) -> bool:
    """Whether `f` is what stands at this path of a module that is imported."""
    v: Any = sys.modules.get(module)
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
