"""What an argument is, in a few letters: `f32[N,d]`, `i32[N]<V`, `f32|bf16[16,32]`; and constants: `0.1`, `true`."""

import ast
import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpref.nearest import require_known

DTYPES = {
    **{"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64"},
    **{"c64": "complex64", "c128": "complex128", "bool": "bool"},
    **{f"{short}{bits}": f"{long}{bits}" for short, long in (("i", "int"), ("u", "uint")) for bits in (8, 16, 32, 64)},
}
"""The short name of each dtype; the long one may be written too."""

_SPEC = re.compile(r"(?P<dtypes>[\w|]+)\s*(?:\[(?P<axes>[^\[\]]*)\])?\s*(?:<\s*(?P<below>\w+))?")
_AXIS = re.compile(r"(?:(?P<times>\d+)\s*\*\s*)?(?P<name>[A-Za-z_]\w*)\s*(?P<plus>[+-]\s*\d+)?(?P<one>\s*\|\s*1)?")

CONSTANT = re.compile(r"[-+.\d'\"(]|(?:true|false|none)$", re.IGNORECASE)
"""How a constant begins, and no specification does."""

WIDE = ("float64", "complex128", "int64", "uint64")
"""The dtypes that JAX has only where x64 is switched on."""


class Axis(NamedTuple):
    """The size of an axis: `times * name + plus`; of a fixed one, `plus` alone, and no name.

    `may_be_one`: it is broadcast, so that 1 is as good.
    """

    name: str
    times: int = 1
    plus: int = 0
    may_be_one: bool = False

    def size(self, sizes: Mapping[str, int]) -> int:
        return self.plus + (self.times * sizes[self.name] if self.name else 0)


class ArraySpec(NamedTuple):
    """An array to be drawn.

    Attributes:
      text: as it was written.
      dtypes: long names, of which one is chosen.
      axes: its axes.
      below: what its integers are less than, where that is said.
    """

    text: str
    dtypes: tuple[str, ...]
    axes: tuple[Axis, ...]
    below: Axis | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The axes that have names, in order."""
        axes = self.axes if self.below is None else (*self.axes, self.below)
        return tuple(dict.fromkeys(axis.name for axis in axes if axis.name))

    def shape(self, sizes: Mapping[str, int], ones: Collection[int] = ()) -> tuple[int, ...]:
        """The sizes of its axes; `ones`: the axes that are 1."""
        return tuple(1 if i in ones else axis.size(sizes) for i, axis in enumerate(self.axes))


def parse_spec(text: str) -> ArraySpec:
    """One specification: `f32[N,d]`, `f32|bf16[16,2*d]`, `i32[N]<V`, `f32` for a scalar.

    A name is a size, the same wherever it occurs; `2*d`, `N+1` and `N-1` are sizes too, and `N|1` is N or 1. `<V` and
    `<10` bound integers, so that they index an axis of that size.

    Raises:
      ValueError: the text is no specification; the message says what is wrong with it.
    """
    found = _SPEC.fullmatch(text.strip())
    if not found:
        commas = "; arguments stand apart by spaces" * ("," in re.sub(r"\[[^\]]*\]", "", text))
        raise ValueError(
            f"{text!r} is no array specification; expected a dtype and a shape, such as f32[16,32]{commas}"
        )
    dtypes = tuple(_dtype(name, text) for name in found["dtypes"].split("|"))
    axes = (found["axes"] or "").strip()
    shape = tuple(_axis(axis, text) for axis in axes.split(",")) if axes else ()
    below = found["below"]
    if below is not None and not all(jnp.issubdtype(d, jnp.integer) for d in dtypes):
        raise ValueError(f"{text!r}: a bound (<{below}) is for integers, such as i32[N]<{below}")
    return ArraySpec(text.strip(), dtypes, shape, None if below is None else _axis(below, text))


def parse_templates(text: str) -> tuple[object, ...]:
    """Specifications and constants apart by spaces, axes with names allowed: `f32[N,d] i32[N]<V 0.1`.

    A constant is a number, `true`, `false`, `none`, a text in quotes, or a tuple of these in parentheses.

    Raises:
      ValueError: a part is neither, or there is none.
    """
    return tuple(_constant(part) if CONSTANT.match(part) else parse_spec(part) for part in _apart(text))


def parse_specs(text: str, rng: np.random.Generator) -> tuple[object, ...]:
    """As `parse_templates`, every size a number: `f32[16,32] i32[8]<100 0.1`.

    Returns:
      A `jax.ShapeDtypeStruct` for an array, random integers where they have a bound, and the constants.

    Raises:
      ValueError: a part cannot be read, leaves a size or a dtype open, or there is none.
    """
    return tuple(_fixed(part, rng) if isinstance(part, ArraySpec) else part for part in parse_templates(text))


def _constant(part: str) -> object:
    words = {"true": True, "false": False, "none": None}
    if part.lower() in words:
        return words[part.lower()]
    try:
        value = ast.literal_eval(part)
        if not isinstance(value, tuple) or part.startswith("("):
            return value
    except (ValueError, SyntaxError):
        pass
    raise ValueError(
        f"{part!r} is no constant; expected a number, true, false, none, 'text' or a tuple (2, 2); an array is such as "
        "f32[16,32]"
    )


def _fixed(spec: ArraySpec, rng: np.random.Generator) -> np.ndarray | jax.ShapeDtypeStruct:
    if len(spec.dtypes) > 1:
        raise ValueError(f"{spec.text!r}: {len(spec.dtypes)} dtypes; one is expected here, several are for a search")
    name = next(iter(spec.names), None)
    if name is not None:
        raise ValueError(f"{spec.text!r}: axis {name!r} has no size; write a number here, names for a search")
    shape, dtype = spec.shape({}), jnp.dtype("".join(spec.dtypes))
    if spec.below is None:
        return jax.ShapeDtypeStruct(shape, dtype)
    below, most = spec.below.size({}), int(jnp.iinfo(dtype).max) + 1
    if not 1 <= below <= most:
        raise ValueError(f"{spec.text!r}: the bound is {below}, expected 1 to {most} for {dtype}")
    return rng.integers(0, below, shape, dtype)


def _apart(text: str) -> list[str]:
    """The parts between spaces, where these are not in brackets or quotes."""
    if text.count("[") != text.count("]"):
        raise ValueError(f"{text!r}: a bracket is not closed, or not opened; expected such as f32[16,32] f32[32]")
    parts = re.findall(r"""(?:\[[^\]]*\]|\([^)]*\)|'[^']*'|"[^"]*"|\S)+""", text)
    if not parts:
        raise ValueError("no array is specified; expected one for each argument, such as f32[16,32] f32[32]")
    return parts


def _dtype(name: str, text: str) -> str:
    if name in DTYPES.values():
        return name
    try:
        require_known("dtype", name, DTYPES)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    return DTYPES[name]


def _axis(axis: str, text: str) -> Axis:
    axis = axis.strip()
    if axis.isdigit():
        return Axis("", 0, int(axis))
    found = _AXIS.fullmatch(axis)
    if not found:
        raise ValueError(f"{text!r}: {axis!r} is no size; expected a number, a name, or one such as 2*d or N+1")
    plus = int((found["plus"] or "0").replace(" ", ""))
    return Axis(found["name"], int(found["times"] or 1), plus, found["one"] is not None)
