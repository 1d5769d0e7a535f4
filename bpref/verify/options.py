"""What the checker's functions are called with besides arrays, refused before anything is computed."""

import inspect
import operator
import secrets
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import PyTree

from bpref.dtypes import described, floating_dtype
from bpref.layer import Layer
from bpref.programs import is_typed
from bpref.verify.naming import describe


def require_callable(caller: str, what: str, f: object, or_layer: bool = False) -> None:
    """Raise `TypeError` unless `f`, the argument `what` of `caller`, can be called."""
    if not callable(f) and not (or_layer and isinstance(f, Layer)):
        raise TypeError(f"{caller}: {what} is {came(f)}, expected a function{' or a Layer' * or_layer}")


def require_functions(caller: str, fun: object, **more: Callable | None) -> None:
    """Raise `TypeError` unless `fun` can be called or is a Layer, and what else is given can be called."""
    require_callable(caller, "fun", fun, or_layer=True)
    for what, f in more.items():
        if f is not None:
            require_callable(caller, what, f)


def misfit(fun: Callable, args: Sequence[PyTree]) -> tuple[inspect.Signature, TypeError] | None:
    """What `fun` takes, and why that is not as many arguments; None where it is, or where nobody can say."""
    try:
        signature = inspect.signature(fun)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*args)
    except TypeError as error:
        return signature, error
    return None


def require_fitting(caller: str, what: str, name: str, fun: Callable, args: Sequence[PyTree]) -> None:
    """Raise `TypeError` unless `fun` can be called with as many arguments as there are `args`, the argument `what`."""
    if found := misfit(fun, args):
        signature, error = found
        raise TypeError(f"{caller}: {what} are {len(args)}, and {name}{signature}: {error}") from error


def require_flags(caller: str, **flags: object) -> None:
    """Raise `TypeError` unless every one of `flags` is True or False: "no" counts as true elsewhere."""
    for what, v in flags.items():
        if not isinstance(v, bool | np.bool_):
            raise TypeError(f"{caller}: {what} is {came(v)}, expected True or False")


def require_seconds(caller: str, seconds: object) -> None:
    """Raise `TypeError` unless it is a number, `ValueError` unless it is 0 or more."""
    if not isinstance(seconds, Real) or isinstance(seconds, bool):
        raise TypeError(f"{caller}: seconds is {came(seconds)}, expected a number of 0 or more")
    if not float(seconds) >= 0:
        raise ValueError(f"{caller}: seconds is {seconds:g}, expected 0 or more")


def require_count(caller: str, what: str, n: object) -> None:
    """Raise `TypeError` unless `n` is a whole number, `ValueError` unless it is 1 or more."""
    if not isinstance(n, Integral) or isinstance(n, bool):
        raise TypeError(f"{caller}: {what} is {came(n)}, expected a whole number of 1 or more")
    if n < 1:
        raise ValueError(f"{caller}: {what} is {n}, expected 1 or more")


def require_points(caller: str, points: object, count: int) -> None:
    """Raise unless `points` is None, or tuples of `count` arguments, at least one.

    Raises:
      TypeError: it is no tuple or list of tuples.
      ValueError: it is empty, or a point has more or fewer arguments.
    """
    if points is None:
        return
    if not isinstance(points, tuple | list):
        raise TypeError(f"{caller}: points is {came(points)}, expected a list of tuples, each like args")
    if not points:
        raise ValueError(f"{caller}: points is empty, expected one tuple like args, or more")
    for i, point in enumerate(points):
        if not isinstance(point, tuple | list):
            raise TypeError(f"{caller}: points[{i}] is {came(point)}, expected a tuple like args")
        if len(point) != count:
            raise ValueError(f"{caller}: points[{i}] has {len(point)} arguments, args has {count}")


def require_cotangents(caller: str, cotangents: object) -> None:
    """Raise `TypeError` unless it is cotangents by name, or a function that gives them."""
    if not isinstance(cotangents, Mapping) and not callable(cotangents):
        raise TypeError(
            f'{caller}: cotangents is {came(cotangents)}, expected {{"NAME": its cotangent, ...}} or a function of '
            "(args, dy) that returns that"
        )


def working_dtypes(caller: str, dtypes: Sequence[DTypeLike] | DTypeLike | None) -> tuple[str, ...] | None:
    """The names of the dtypes to measure the precision in, one or a sequence of them; None for None.

    Raises:
      TypeError: one of them is no dtype of real floating-point numbers.
      ValueError: there is none.
    """
    if dtypes is None:
        return None
    if isinstance(dtypes, Sequence | set | frozenset) and not isinstance(dtypes, str):
        given = [(f"dtypes[{i}]", d) for i, d in enumerate(dtypes)]
    else:
        given = [("dtypes", dtypes)]
    if not given:
        raise ValueError(f"{caller}: dtypes is empty, expected one dtype or more, or None for those of the arguments")
    return tuple(floating_dtype(caller, what, d).name for what, d in given)


def came(v: object) -> str:
    """What came in place of what was expected: an array by dtype and shape, a number itself, else by its type."""
    if is_typed(v):
        return f"{v.dtype}{list(v.shape)}"
    return repr(v) if isinstance(v, bool | int | float) else described(v)


WORDS = (2, 4)
"""How many words of 32 bits JAX's keys have."""


def seed_of(caller: str, key: int | Array | None, argument: str = "key") -> int:
    """The seed that `key` means: itself, a JAX key's words read as one number, so that `jax.random.key(1)` is 1; or,
    where it is None, a new one.

    Args:
      caller: the function that was called, for the message.
      argument: what it was given as.
      key: None, a whole number of 0 or more, a `jax.random.key`, or a `jax.random.PRNGKey`.

    Raises:
      TypeError: it is none of these.
    """
    if key is None:
        return secrets.randbelow(10**6)
    words = _words(key)
    if words is not None:
        return int.from_bytes(words.astype(">u4").tobytes())
    try:
        number = -1 if isinstance(key, bool) else operator.index(key)
    except TypeError:
        number = -1
    if number < 0:
        came = repr(key) if isinstance(key, int | np.integer) else describe(key)
        raise TypeError(
            f"{caller}: {argument} is {came}, expected a whole number of 0 or more, or a jax.random.key: the seed of "
            "every draw"
        )
    return number


def _words(key: object) -> np.ndarray | None:
    """The words of a single concrete JAX key; None for anything else."""
    if isinstance(key, Tracer) or not isinstance(key, jax.Array | np.ndarray):
        return None
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(key)) if key.shape == () else None
    return np.asarray(key) if key.dtype == np.uint32 and key.ndim == 1 and key.size in WORDS else None
