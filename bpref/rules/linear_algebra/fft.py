"""fft: the discrete Fourier transform over one or several axes, and its inverse.

Forward, over one axis of length n (over several, one after the other):

    y_k = c sum_j x_j w^(jk)              x, y: complex, one shape
    w = exp(-2 pi i / n), or with `inverse` exp(+2 pi i / n)

with c by `norm` and direction:       "backward"     "ortho"       "forward"
    forward transform                  1              1 / sqrt n    1 / n
    inverse                            1 / n          1 / sqrt n    1

Of another length than x's, n as it is given: x is cut at its end before, or zeros are added there, x'_j = x_j for
j < n and 0 beyond x.

Differential: the transform is linear, delta y_k = c sum_j w^(jk) delta x_j. A cotangent of a complex number is here,
as in JAX, the factor of its perturbation in delta J = Re sum_k dy_k delta y_k, without a conjugation: for y = a x,
dx = a dy, and dy is the conjugate of the steepest ascent. Therefore

    dx_j = c sum_k w^(jk) dy_k            dx: the shape of x

The matrix w^(jk) is symmetric: the adjoint is the transform itself, forward or inverse as it was, of the same norm. The
textbook's adjoint, the conjugate transpose, is the one of the other convention, dx* = F^H dy* with conjugates. Of
another length it gives dx', and dx_j = dx'_j, 0 where x_j was cut off: dx' is brought to the length of x as x was to n.

Cached: nothing but the shape of x.

Numerical care: the transforms are XLA's, with a relative error that grows with log n. There is no complex type of half
precision.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Complex, Shaped

from bpref.checks.hyperparameters import is_integer, require_flags, require_size
from bpref.formulas.shape_keeper import shape_keeper
from bpref.layer import Layer, no_params
from bpref.rule import Case, Real, Rule, called_as

Norm = Literal["backward", "ortho", "forward"]


class FftCache(NamedTuple):
    of_x: Shaped[Array, "..."]


def fft(
    axes: Sequence[int] = (-1,),
    inverse: bool = False,
    norm: Norm = "backward",
    lengths: Sequence[int] | None = None,
) -> Layer[tuple[()], Array, Array, FftCache]:
    """The discrete Fourier transform of complex x over `axes`.

    Args:
      axes: which axes are transformed.
      inverse: whether the sign of the exponent is + and not -.
      norm: where the factor 1/n stands: at the inverse ("backward"), at the forward transform ("forward"), or its root
        at both ("ortho").
      lengths: n for each of the axes, to which x is cut or filled up with zeros; that of x if it is not given.

    Returns:
      A layer with params `()`, complex x of any shape that has these axes, and y of the same dtype and, but for lengths
      that are given, the same shape.

    Raises:
      ValueError: axes is no tuple of integers; an axis is named twice, is not one of x's, or is empty; norm is none of
        the three; there is not one length, a positive integer, for each axis.
      TypeError: x is not complex; real x must be cast.
    """
    who = "fft"
    require_flags(who, inverse=inverse)
    if norm not in ("backward", "ortho", "forward"):
        raise ValueError(f"{who}: norm is {norm!r}, expected 'backward', 'ortho' or 'forward'")
    axes = as_axes(who, axes)
    if lengths is not None:
        if not isinstance(lengths, (tuple, list)) or len(lengths) != len(axes):
            raise ValueError(f"{who}: lengths is {lengths!r}, expected one for each of axes {axes}")
        lengths = tuple(require_size(who, "a length", n) for n in lengths)
    transform = jnp.fft.ifftn if inverse else jnp.fft.fftn

    def forward(params, x: Complex[Array, "..."]):
        require_axes(who, x, axes)
        of_n = x if lengths is None else fitted(x, axes, lengths)
        return transform(of_n, axes=axes, norm=norm), FftCache(shape_keeper(x))

    def backward(params, cache, dy):
        before = cache.of_x.shape[1:]
        return (), fitted(transform(dy, axes=axes, norm=norm), axes, [before[axis] for axis in axes])

    return Layer(no_params, forward, backward, who)


def as_axes(who: str, axes: Sequence[int]) -> tuple[int, ...]:
    """The axes of a transform as a tuple; raises `ValueError` unless it is one of integers, or a list."""
    if not isinstance(axes, (tuple, list)) or not all(map(is_integer, axes)):
        raise ValueError(f"{who}: axes is {axes!r}, expected a tuple of integers such as (-1,)")
    return tuple(axes)


def fitted(x: Array, axes: Sequence[int], lengths: Sequence[int]) -> Array:
    """x of these lengths along the axes: cut at its end, or filled up with zeros."""
    more = [0] * x.ndim
    for axis, n in zip(axes, lengths, strict=True):
        more[axis] = n - x.shape[axis]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, m, 0) for m in more]) if any(more) else x


def require_axes(who: str, x: Array, axes: tuple[int, ...]) -> None:
    """Raise `ValueError` unless these are different axes of x, with at least one element along each."""
    if not all(-x.ndim <= axis < x.ndim for axis in axes) or len({axis % x.ndim for axis in axes}) < len(axes):
        raise ValueError(f"{who}: axes is {axes}, expected different axes of x (x: {x.shape})")
    if 0 in (x.shape[axis] for axis in axes):
        raise ValueError(f"{who}: x has shape {x.shape}, expected at least one element along each of axes {axes}")


@called_as(fft)
def reference(params: tuple[()], x: Array, axes, inverse, norm, lengths) -> Array:
    return (jnp.fft.ifftn if inverse else jnp.fft.fftn)(x, lengths, axes, norm)


RULE = Rule(
    "fft",
    fft,
    reference,
    cases=(
        Case("last axis", Real("B n", is_complex=True), never_empty=("n",), timed={"B": 64, "n": 4096}),
        Case(
            "two axes, inverse, of other lengths",
            Real("B m n", is_complex=True),
            {"axes": (1, 2), "inverse": True, "lengths": (2, 40)},
            never_empty=("m", "n"),
            fixed={"B": 4},
        ),
        Case("first axis, ortho", Real("n B", is_complex=True), {"axes": (0,), "norm": "ortho"}, never_empty=("n",)),
    ),
    cite="Cooley and Tukey, 'An algorithm for the machine calculation of complex Fourier series' (1965), Mathematics "
    "of Computation 19",
    covers=("ifft", "fftn", "ifftn", "fft2", "ifft2", "discrete Fourier transform"),
)
