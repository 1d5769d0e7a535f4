"""What a command line names: `MODULE:FUNCTION`, `path/to/file.py:FUNCTION`, `MODULE:Class.method`; and arguments."""

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from bpref.cli.errors import UsageError
from bpref.layer import Layer
from bpref.nearest import require_known
from bpref.verify.naming import MACHINERY
from bpref.verify.options import misfit

OWN = os.path.dirname(os.path.dirname(__file__)) + os.sep
"""Where bpref's own files lie."""


SOURCES = "src"
"""Where many projects keep their packages."""


class Named(NamedTuple):
    """What was named on the command line: its module's name as it was written, and itself."""

    module: str
    value: Any


def named(text: str, option: str = "", home: str = "") -> Named:
    """What `[MODULE:]NAME` names; without a module, it is looked for in `home`.

    Args:
      text: `package.module:function`, `folder/file.py:function`, `module:Class.method`.
      option: where it was given, such as `--backward`, for messages; empty for the command's own argument.
      home: the module of a name that comes without one.

    Raises:
      UsageError: the text names nothing; the message says which part of it, and why.
    """
    module, _, path = text.rpartition(":")
    module = module or home
    before = f"{option}: " if option else ""
    if not module or not path:
        raise UsageError(f"{before}{text!r} names no function; expected MODULE:FUNCTION or FILE.py:FUNCTION")
    value: Any = _imported(module, before)
    reached = module
    for name in path.split("."):
        if not hasattr(value, name):
            public = [n for n in dir(value) if not n.startswith("_")]
            with _prefixed(f"{before}{reached}: "):
                require_known("name", name, public)
        value, reached = getattr(value, name), f"{reached}{'.' if reached != module else ':'}{name}"
    return Named(module, value)


def function(text: str, option: str = "", home: str = "") -> Named:
    """`named`, where it can be called."""
    found = named(text, option, home)
    if not callable(found.value):
        before = f"{option}: " if option else ""
        raise UsageError(f"{before}{text} is of type {type(found.value).__name__} and cannot be called")
    return found


def made_arguments(text: str, home: str) -> tuple:
    """The arguments that the function named `[MODULE:]NAME` returns, a tuple."""
    made = function(text, "--args", home).value
    with blaming(text, "--args"):
        args = made()
    if not isinstance(args, tuple | list) or hasattr(args, "_fields"):
        raise UsageError(f"--args: {text} returned a {type(args).__name__}, expected the tuple of the arguments")
    return tuple(args)


def require_fitting(text: str, fun: Callable | Layer, args: tuple) -> None:
    """Raise `UsageError` unless `fun` can be called with so many arguments; `text` is what it was named."""
    given = f"--args gives {len(args)}"
    if isinstance(fun, Layer):
        if len(args) != 2:
            raise UsageError(f"{text} is a Layer, which takes 2 arguments (params, x); {given}")
        return
    if found := misfit(fun, args):
        signature, error = found
        shown = ", ".join(str(p).split(":")[0].split("=")[0].strip() for p in signature.parameters.values())
        raise UsageError(f"{text} takes ({shown}); {given}: {error}") from error


@contextmanager
def blaming(text: str, option: str = "") -> Iterator[None]:
    """Turn what the function named `text` raises, and what bpref refuses, into a `UsageError` of one line.

    What goes wrong in bpref itself keeps its traceback.
    """
    before = f"{option}: " if option else ""
    try:
        yield
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        if any(note.startswith("bpref:") for note in getattr(error, "__notes__", ())):
            raise
        place = _users_line(error)
        if place:
            raise UsageError(f"{before}{text} raised {_in_one_line(error)} ({place})") from error
        if not isinstance(error, ValueError | TypeError | ImportError | NotImplementedError):
            raise
        if not _is_of_ours(error):
            raise UsageError(f"{before}{text} raised {_in_one_line(error)}") from error
        what = f"{before}{text}: " if option else ""
        raise UsageError(f"{what}{_first_line(error)}") from error


def _imported(module: str, before: str) -> ModuleType:
    """A module by its name, from the current directory and its `src` too; or by its file."""
    is_file = module.endswith(".py")
    if not is_file and not all(part.isidentifier() for part in module.split(".")):
        raise UsageError(f"{before}{module!r} is no module's name; a file is named as FILE.py:FUNCTION")
    root, name = _root_and_name(Path(module), before) if is_file else (Path.cwd(), module)
    for place in (Path.cwd() / SOURCES, root):
        if place.is_dir() and str(place) not in sys.path:
            sys.path.insert(0, str(place))
    try:
        found = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            sources = f", in {SOURCES}/" * Path(SOURCES).is_dir()
            where = f"in the current directory{sources} and among the installed packages"
            raise UsageError(f"{before}there is no module {error.name!r} {where}") from error
        place = _users_line(error)
        after = f" ({place})" if place else ""
        raise UsageError(f"{before}importing {module} raised {_in_one_line(error)}{after}") from error
    if is_file and Path(found.__file__ or "").resolve() != Path(module).resolve():
        raise UsageError(f"{before}{module} cannot be imported: another module is called {name}; rename the file")
    return found


def _root_and_name(file: Path, before: str) -> tuple[Path, str]:
    """The directory from which a file is imported, and its dotted name: that of the package which it is in, if any."""
    if not file.is_file():
        raise UsageError(f"{before}there is no file {file}")
    root, names = file.resolve().parent, [file.stem]
    while (root / "__init__.py").is_file():
        root, names = root.parent, [root.name, *names]
    return root, ".".join(names)


@contextmanager
def _prefixed(before: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{before}{error}") from None


def _users_line(error: BaseException) -> str:
    """The innermost line of the traceback that is neither bpref's, nor JAX's, nor the standard library's."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if not MACHINERY.match(f.filename) and not f.filename.startswith(OWN)]
    if not outside:
        return ""
    file = outside[-1].filename
    return f"{os.path.relpath(file) if file.startswith(os.getcwd() + os.sep) else file} line {outside[-1].lineno}"


def _is_of_ours(error: BaseException) -> bool:
    """Whether bpref itself has raised it; JAX or a library otherwise, for what it was called with."""
    by_jax = any("JAX has removed its internal frames" in note for note in getattr(error, "__notes__", ()))
    return not by_jax and traceback.extract_tb(error.__traceback__)[-1].filename.startswith(OWN)


def _in_one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "without a message"
