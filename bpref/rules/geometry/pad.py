"""pad: borders around an array, of a constant or of its own elements: reflected, repeated or from the other end.

Forward, one axis after the other, with n elements, l before and r after, o from -l to n + r - 1 along y:

    y_o = x_{f(o)}                                                        y: l + n + r along the axis
    constant:  f(o) = o within x, and y_o = `value` outside
    reflect:   f(o) = -o before, 2 (n - 1) - o after: the end itself is not repeated
    edge:      f(o) = 0 before, n - 1 after
    circular:  f(o) = o + n before, o - n after

Corners follow: what is padded last sees the borders that were made before.

Differential: delta y_o = delta x_{f(o)}, and 0 where y is a constant. The adjoint adds up, for each element of x, the
places that show it; the last axis that was padded comes first:

    dx_k = dy_k + sum over o < 0 with f(o) = k of dy_o + sum over o >= n with f(o) = k of dy_o      dx: as x

the middle of dy, on which both borders are folded back: turned round for reflect, summed to one element for edge,
shifted for circular, and not at all for a constant.

Cached: nothing. The shape of dy and the widths tell that of x.

Numerical care: half precision is summed in float32, all axes before the one rounding.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import is_integer, is_number, plain, require_choice
from bpref.dtypes import cast, widen
from bpref.formulas.caches import NoCache
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule

MODES = {"constant": "constant", "reflect": "reflect", "edge": "edge", "circular": "wrap"}
"""What padding is called here, and in NumPy."""

SEVERAL = (tuple, list, np.ndarray)


def pad(
    widths: Sequence[tuple[int, int]], mode: str = "constant", value: float = 0.0
) -> Layer[tuple[()], Array, Reals, NoCache]:
    """x with borders.

    Args:
      widths: for each axis of x, how many elements come before and after.
      mode: "constant", "reflect", "edge" or "circular".
      value: the constant.

    Returns:
      A layer with params `()`, x with as many axes as there are widths, and y in x's dtype, each axis longer by its
      two widths.

    Raises:
      ValueError: widths are not pairs of non-negative integers; there is no such mode; value is no number; x has
        another number of axes, or fewer elements along one than its border shows: n for circular, n - 1 for reflect, 1
        for edge.
      TypeError: x is not floating-point.
    """
    who = "pad"
    if not isinstance(widths, SEVERAL) or not all(map(_is_width, widths)):
        raise ValueError(f"{who}: widths is {widths!r}, expected a pair of non-negative integers for each axis")
    require_choice(who, "mode", mode, MODES)
    if not is_number(value):
        raise ValueError(f"{who}: value is {value!r}, expected a number")
    value = plain(value)

    def forward(params, x: Float[Array, "..."]):
        if x.ndim != len(widths):
            raise ValueError(f"{who}: x has shape {x.shape}, expected one axis for each of the {len(widths)} widths")
        for axis, width in enumerate(widths):
            least = {"reflect": max(width) + 1, "circular": max(width), "edge": 1}.get(mode, 0)
            if any(width) and x.shape[axis] < least:
                raise ValueError(
                    f"{who}: x has {x.shape[axis]} elements in axis {axis}, {mode} expects at least {least} "
                    f"for a border of {max(width)}"
                )
        filling = {"constant_values": jnp.asarray(value, x.dtype)} if mode == "constant" else {}
        return jnp.pad(x, tuple(widths), MODES[mode], **filling), NoCache()

    def backward(params, cache, dy):
        dx = widen(dy)
        for axis in reversed(range(dy.ndim)):
            if any(widths[axis]):
                dx = _folded(dx, axis, *widths[axis], mode)
        return (), cast(dx, dy.dtype)

    return Layer(no_params, forward, backward, who)


def _is_width(w: object) -> bool:
    return isinstance(w, SEVERAL) and len(w) == 2 and all(is_integer(n) and n >= 0 for n in w)


def _folded(dy: Array, axis: int, before: int, after: int, mode: str) -> Array:
    """The adjoint along one axis: the middle of dy, and on it the borders where they were taken from."""
    n = dy.shape[axis] - before - after
    first, dx, last = (
        lax.slice_in_dim(dy, *ends, axis=axis) for ends in ((0, before), (before, before + n), (before + n, None))
    )
    if mode == "reflect":
        places = [(jnp.flip(first, axis), 1), (jnp.flip(last, axis), n - 1 - after)]
    elif mode == "edge":
        places = [(jnp.sum(v, axis, keepdims=True), at) for v, at in ((first, 0), (last, n - 1))]
    elif mode == "circular":
        places = [(first, n - before), (last, 0)]
    else:
        places = []
    for border, at in places:
        config = [(0, 0, 0)] * dy.ndim
        config[axis] = (at, n - at - border.shape[axis], 0)
        dx = dx + lax.pad(border, jnp.zeros((), dy.dtype), config)
    return dx


def reference(
    params: tuple[()], x: Array, widths: Sequence[tuple[int, int]], mode: str = "constant", value: float = 0.0
) -> Array:
    for axis, (before, after) in enumerate(widths):
        n = x.shape[axis]
        if mode == "constant":
            borders = [jnp.full((*x.shape[:axis], k, *x.shape[axis + 1 :]), value, x.dtype) for k in (before, after)]
            x = jnp.concatenate([borders[0], x, borders[1]], axis)
        elif before or after:
            o = jnp.arange(-before, n + after)
            shown = {"reflect": n - 1 - jnp.abs(n - 1 - jnp.abs(o)), "edge": jnp.clip(o, 0, n - 1), "circular": o % n}
            x = jnp.take(x, shown[mode], axis=axis)
    return x


_X = Real("N H W C")

RULE = Rule(
    "pad",
    pad,
    reference,
    cases=(
        Case("constant", _X, {"widths": ((0, 0), (1, 2), (3, 0), (0, 1)), "value": 1.5}),
        Case(
            "reflect",
            _X,
            {"widths": ((0, 0), (2, 1), (2, 2), (0, 0)), "mode": "reflect"},
            least={"H": 3, "W": 3},
            timed={"N": 8, "H": 64, "W": 64, "C": 32},
        ),
        Case("edge", _X, {"widths": ((0, 0), (3, 1), (0, 4), (0, 0)), "mode": "edge"}, never_empty=("H", "W")),
        Case(
            "circular",
            _X,
            {"widths": ((0, 0), (2, 1), (0, 2), (1, 0)), "mode": "circular"},
            least={"H": 2, "W": 2, "C": 1},
        ),
    ),
    cite="Griewank and Walther, 'Evaluating Derivatives' (2008), section 3.2: the adjoint of an assignment adds",
    covers=("reflection_pad", "replication_pad", "circular_pad", "zero_pad"),
)
