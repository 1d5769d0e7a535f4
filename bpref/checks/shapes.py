"""The one declaration of shapes: what a rule's forward says of x in its own annotation, and the refusal of all else.

    def forward(params, x: Float[Array, "*n d>0"]): ...

In jaxtyping's notation: `d` is an axis of any size, the same wherever it stands in the call; `d>0` has at least one
entry; `T+1` is one longer than T, `2*m` twice as long as m, and `k*m` what the layer alone knows; `#d` has the size of
d, or 1; `3` is three. `*n` are any number of axes, the same wherever they stand, of `some=*n` none empty, and `...` any
that are compared with nothing. `Float` holds real numbers and `Complex` complex ones, all those of one call of one
dtype; `Inexact` those of a dtype of its own, such as running statistics; `Int`, `Bool` and `Key` hold what they say; a
plain `Array` may be anything. A named tuple of arrays says so of each of its fields. `A | None` may be left out,
`A | B` is either: of named tuples the one that has as many fields as there are entries. A plain tuple stands for a
named one, unless that has the attribute `by_name`.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from types import NoneType, UnionType
from typing import Any, NamedTuple, TypeGuard, Union, get_args, get_origin

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import AbstractArray, PyTree

from bpref.dtypes import as_array, came, is_array, require_array, require_floating, require_integer


class Axis(NamedTuple):
    """One token of a declared shape.

    Attributes:
      text: as messages show it.
      name: the symbol; empty for an axis of a fixed size, for `...`, and for a size that only the layer knows.
      size: that fixed size; of a symbol, what is added to it.
      times: what the symbol is multiplied by.
      least: the least size.
      many: whether it stands for any number of axes.
      or_one: whether its size may be 1 instead.
    """

    text: str
    name: str = ""
    size: int = 0
    times: int = 1
    least: int = 0
    many: bool = False
    or_one: bool = False


Size = Any
"""Of an axis its size, and of `*n` its sizes."""


class Bound(NamedTuple):
    """What a symbol stands for in one call, and the array that says so."""

    size: Size
    by: str


_TOKEN = re.compile(r"(some=)?(\*?)(#?)(?:(\d+)\*)?([A-Za-z_]\w*)(?:\+(\d+))?(?:>(\d+))?")


@cache
def axes_of(dims: str) -> tuple[Axis, ...]:
    """The axes that a declaration such as `"*n d>0"` names."""
    return tuple(map(_axis, dims.split()))


def _axis(token: str) -> Axis:
    if token == "...":
        return Axis(token, many=True)
    if token.isdigit():
        return Axis(token, size=int(token), least=int(token))
    found = _TOKEN.fullmatch(token.replace("#*", "*#"))
    if found is None:  # such as k*m, with k one of the layer's own numbers
        return Axis(token)
    some, many, or_one, times, name, more, above = found.groups()
    least = int(above) + 1 if above else int(more or bool(some))
    text = token.partition(">")[0].removeprefix("some=").replace("*#", "*").lstrip("#")
    return Axis(text, name, int(more or 0), int(times or 1), least, bool(many), bool(or_one))


def shown(axes: Iterable[Axis]) -> str:
    """A shape in symbols, as messages and `bpref explain` have it: `(*n, d)`, and `(m,)` of one axis."""
    return _tuple([axis.text for axis in axes])


def _tuple(sizes: list[str]) -> str:
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 and sizes[0][0] not in '.*' else ''})"


def above_zero(axes: Iterable[Axis]) -> str:
    """What a shape asks of sizes besides: ` with d > 0`, or nothing."""
    least = [f"{axis.text} > {axis.least - 1}" for axis in axes if axis.name and axis.least > axis.size]
    return f" with {' and '.join(least)}" if least else ""


class Call:
    """One call of a layer while its arrays are looked at: the symbols that are bound, and the dtype of its numbers."""

    def __init__(self, who: str) -> None:
        self.who = who
        self.bound: dict[str, Bound] = {}
        self.dtype: Bound | None = None

    def require(self, name: str, v: PyTree, declared: object) -> None:
        """Raise unless `v`, an argument of that name, is what is declared of it."""
        alternatives = _alternatives(declared)
        if v is None and NoneType in alternatives:
            return
        alternatives = [a for a in alternatives if a is not NoneType]
        one = next((a for a in alternatives if _is_meant(v, a)), alternatives[0])
        fields = fields_of(one)
        if fields is not None:
            self._require_fields(name, v, one, fields)
        elif is_declared_array(one):
            self._require_array(name, v, [a for a in alternatives if is_declared_array(a)])
        elif one is Array:
            require_array(self.who, name, v)

    def _require_fields(self, name: str, v: PyTree, declared: object, fields: dict[str, object]) -> None:
        if not _is_as_long(v, declared):
            raise TypeError(f"{self.who}: {name} is {came(v)}, expected a tuple ({_listed(declared)})")
        for (field, form), part in zip(fields.items(), v, strict=False):
            self.require(field if name in ("x", "params") else f"{name}.{field}", part, form)

    def _require_array(self, name: str, v: PyTree, forms: list[type[AbstractArray]]) -> None:
        require_array(self.who, name, v)
        meant = [f for f in forms if _holds(v.dtype, f)]
        if len(forms) > 1 and not meant:
            kinds = " or ".join(dict.fromkeys(kind_in_words(f) for f in forms))
            raise TypeError(f"{self.who}: {name} has dtype {v.dtype}, expected {kinds}")
        self._require_dtype(name, v, (meant or forms)[0])
        shapes = [axes_of(f.dim_str) for f in meant]
        axes = next((axes for axes in shapes if self._fits(v.shape, axes)), None)
        if axes is None:
            expected = " or ".join(map(self._expected, shapes))
            raise ValueError(f"{self.who}: {name} has shape {v.shape}, expected {expected}")
        self._bind(name, v, axes)

    def _require_dtype(self, name: str, v: Array, form: type[AbstractArray]) -> None:
        kind = form.dtype.__name__
        if kind == "Float":
            require_floating(self.who, name, v)
        elif kind in ("Int", "Integer"):
            require_integer(self.who, name, v)
        elif not _holds(v.dtype, form):
            raise TypeError(f"{self.who}: {name} has dtype {v.dtype}, expected {kind.lower()}")
        if kind in ("Float", "Complex"):
            self.require_one_dtype(name, v)

    def require_one_dtype(self, name: str, v: Array) -> None:
        """Raise `TypeError` unless `v` has the dtype of the first floating-point numbers of this call."""
        if self.dtype is None:
            self.dtype = Bound(v.dtype, name)
        if v.dtype != self.dtype.size:
            known = f"{self.dtype.by} has {self.dtype.size}"
            raise TypeError(f"{self.who}: {name} has dtype {v.dtype}, {known}; cast one to the other's")

    def require_one_size(self, name: str, v: Array, axes: tuple[Axis, ...]) -> None:
        """Raise `ValueError` unless x has the sizes that a parameter, which fits the layer, has."""
        for axis, size in self._matched(v.shape, axes) or ():
            if not self._agrees(size, axis):
                known = self.bound[axis.name]
                raise ValueError(
                    f"{self.who}: {known.by} has {axis.name} = {known.size}, {name} {v.shape} has {axis.text} = {size}"
                )

    def _fits(self, shape: tuple[int, ...], axes: tuple[Axis, ...]) -> bool:
        matched = self._matched(shape, axes)
        own: dict[str, Size] = {}
        return matched is not None and all(
            self._agrees(size, axis) and (axis.or_one or own.setdefault(axis.text, size) == size)
            for axis, size in matched
        )

    def _matched(self, shape: tuple[int, ...], axes: tuple[Axis, ...]) -> list[tuple[Axis, Size]] | None:
        """Each axis of the declaration with its size, or sizes; `None` where there are not as many."""
        more = len(shape) - len(axes)
        many = next((i for i, axis in enumerate(axes) if axis.many), None)
        if more < (0 if many is None else -1) or (many is None and more):
            return None
        if many is None:
            return list(zip(axes, shape, strict=True))
        end = many + more + 1
        sizes = [*shape[:many], tuple(shape[many:end]), *shape[end:]]
        return list(zip(axes, sizes, strict=True))

    def _agrees(self, size: Size, axis: Axis) -> bool:
        known = self.bound.get(axis.name) if axis.name else None
        if axis.many:
            return all(n >= axis.least for n in size) and (
                known is None or size == known.size or (axis.or_one and _broadcasts(size, known.size))
            )
        if not axis.name:
            return not axis.text.isdigit() or size == axis.size
        if size < axis.least or (size - axis.size) % axis.times:
            return False
        return known is None or size == known.size * axis.times + axis.size or (axis.or_one and size == 1)

    def _bind(self, name: str, v: Array, axes: tuple[Axis, ...]) -> None:
        for axis, size in self._matched(v.shape, axes) or ():
            if axis.name and axis.name not in self.bound and not axis.or_one:
                size = size if axis.many else (size - axis.size) // axis.times
                self.bound[axis.name] = Bound(size, f"{name} {v.shape}")

    def _expected(self, axes: tuple[Axis, ...]) -> str:
        """`(N, C)`, and with the numbers that are known: `(N, C) = (4, 3) by logits (4, 3)`."""
        known = {axis.name: self.bound[axis.name] for axis in axes if axis.name in self.bound}
        if not known:
            return shown(axes) + above_zero(axes)
        sizes: list[str] = []
        for axis in axes:
            size = known[axis.name].size if axis.name in known else None
            if axis.many and size is not None:
                sizes += map(str, size)
            else:
                sizes.append(axis.text if size is None else str(size * axis.times + axis.size))
        numbers = _tuple(sizes) if sizes else "()"
        equal = "" if numbers == shown(axes) else f" = {numbers}"
        or_one = ", or 1 in place of any" if any(axis.or_one for axis in axes) else ""
        return f"{shown(axes)}{equal} by {' and '.join(dict.fromkeys(b.by for b in known.values()))}{or_one}"


def normalized(who: str, x: PyTree, declared: object, name: str = "x") -> PyTree:
    """`x`, where a named tuple of arrays is declared and another tuple of as many comes, as that named tuple.

    Numbers, lists of them and NumPy's arrays that stand for its arrays become arrays.

    Raises:
      TypeError: x is no tuple where one is declared, has too few or too many entries, or one that is no array.
    """
    kinds, alone = _named_tuples_of(declared)
    if not kinds or (is_array(x) and not alone):
        return x
    kind = next((k for k in kinds if _is_as_long(x, k)), kinds[0])
    by_name = getattr(kind, "by_name", False)
    if not (isinstance(x, kind) if by_name else _is_as_long(x, kind)):
        wanted = ("" if alone else "an array or ") + (kind.__name__ if by_name else "a tuple ")
        raise TypeError(f"{who}: {name} is {came(x)}, expected {wanted}({_listed(kind)})")
    fields = fields_of(kind) or {}
    return kind(*(_as_declared(who, field, v, fields[field]) for field, v in zip(fields, x, strict=False)))


@cache
def _named_tuples_of(declared: object) -> tuple[list[type], bool]:
    """The alternatives that are named tuples, and whether all are; looked for once, since every call asks."""
    alternatives = _alternatives(declared)
    kinds = [a for a in alternatives if isinstance(a, type) and fields_of(a) is not None]
    return kinds, len(kinds) == len(alternatives)


def _is_as_long(v: object, kind: object) -> bool:
    return isinstance(v, tuple | list) and fewest(kind) <= len(v) <= len(fields_of(kind) or ())


def _as_declared(who: str, name: str, v: PyTree, declared: object) -> PyTree:
    if isinstance(declared, type) and fields_of(declared) is not None:
        return normalized(who, v, declared, name)
    alternatives = _alternatives(declared)
    if (v is None and NoneType in alternatives) or not any(map(is_declared_array, alternatives)):
        return v
    return v if is_array(v) and not isinstance(v, np.ndarray | np.generic) else as_array(who, name, v)


def _alternatives(declared: object) -> tuple[object, ...]:
    return get_args(declared) if get_origin(declared) in (Union, UnionType) else (declared,)


def _listed(declared: object) -> str:
    """The fields of a declared tuple, those that may be left out in brackets."""
    names, least = list(fields_of(declared) or ()), fewest(declared)
    return ", ".join([*names[:least], *(f"[{name}]" for name in names[least:])])


def fewest(declared: object) -> int:
    """How many fields a declared tuple has at least: those at its end that have a default may be left out."""
    return len(fields_of(declared) or ()) - len(getattr(declared, "_field_defaults", ()))


@cache
def fields_of(declared: object) -> dict[str, object] | None:
    """What a named tuple, or a tuple of so many, declares of each field; `None` for anything else."""
    if get_origin(declared) is tuple:
        return {f"x[{i}]": form for i, form in enumerate(get_args(declared))}
    names = getattr(declared, "_fields", None) if isinstance(declared, type) and issubclass(declared, tuple) else None
    return None if names is None else {name: declared.__annotations__[name] for name in names}


def require_shape(who: str, name: str, v: Array, expected: tuple[int, ...], because: str) -> None:
    """Raise `ValueError` unless `v` has the shape that hyperparameters ask for."""
    if v.shape != expected:
        raise ValueError(f"{who}: {name} has shape {v.shape}, expected {expected}, {because}")


def is_declared_array(form: object) -> TypeGuard[type[AbstractArray]]:
    return isinstance(form, type) and issubclass(form, AbstractArray)


def _is_meant(v: object, form: object) -> bool:
    """Whether an alternative is the one that a value is to be held to, whatever its shape."""
    if is_declared_array(form):
        return is_array(v) and _holds(v.dtype, form)
    return fields_of(form) is not None and _is_as_long(v, form)


def _holds(dtype: np.dtype, form: type[AbstractArray]) -> bool:
    kind = form.dtype.__name__
    if kind in ("Int", "Integer"):
        return jnp.issubdtype(dtype, jnp.integer)
    if kind == "Float":
        return jnp.issubdtype(dtype, jnp.floating)
    return kind == "Shaped" or str(dtype) in form.dtypes


def has_its_own_dtype(form: object) -> bool:
    """Whether an array may be wider, or narrower, than the others of its call: it is declared as `Inexact`."""
    return is_declared_array(form) and form.dtype.__name__ == "Inexact"


def _broadcasts(sizes: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(sizes) == len(to) and all(s in (1, t) for s, t in zip(sizes, to, strict=True))


_IN_WORDS = {"Float": "real", "Inexact": "real, of any precision", "Int": "integers", "Bool": "booleans"}


def in_words(form: type[AbstractArray]) -> str:
    """A declared array as `bpref explain` has it: `real (..., d) with d > 0`."""
    axes = axes_of(form.dim_str)
    return f"{kind_in_words(form)} {shown(axes)}{above_zero(axes)}"


def kind_in_words(form: type[AbstractArray]) -> str:
    """What a declared array holds."""
    kind: str = form.dtype.__name__
    return _IN_WORDS.get(kind, kind.lower())


def declared_forms(declared: object, name: str = "x") -> Iterator[tuple[str, type[AbstractArray]]]:
    """Each array that a declaration names, and its form: what `bpref explain` prints."""
    for one in _alternatives(declared):
        fields = fields_of(one)
        if fields is not None:
            for field, form in fields.items():
                yield from declared_forms(form, field)
        elif is_declared_array(one):
            yield name, one
