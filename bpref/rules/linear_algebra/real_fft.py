"""real_fft: the discrete Fourier transform of real numbers over one or several axes, and its inverse.

Forward, with n real numbers x_j, m = floor(n / 2) + 1, and w = exp(-2 pi i / n): the first m of the n coefficients,
of which the others are the conjugates; or, with `inverse`, n real numbers from m coefficients:

    y_k = c sum_j x_j w^(jk)                                    x: (..., n) real, y: (..., m) complex
    inverse:  y_j = c Re sum_k a_k x_k w^(-jk)                  x: (..., m) complex, y: (..., n) real

a_k counts how often a coefficient stands among the n: 1 for k = 0 and, if n is even, for k = n / 2; else 2. c is 1,
n^-1/2 or 1/n by `norm`, as in `fft`.

Differential: both are linear. A cotangent of a complex number is here, as in JAX, the factor of its perturbation in
delta J = Re sum_k dy_k delta y_k, without a conjugation. Collect the factors of delta x:

    dx_j = c Re sum_k dy_k w^(jk) = c Re sum_k a_k (conj(dy_k) / a_k) w^(-jk)                dx: (..., n)
    inverse:  dx_k = c a_k sum_j dy_j w^(-jk) = c a_k conj(sum_j dy_j w^(jk))                dx: (..., m)

The adjoint of each is the other one, of conjugates, with the weights a and the same c: which the other one calls the
opposite norm. The imaginary parts of x_0 and, if n is even, of x_(n/2) do not enter y; their cotangents come out as 0.

Of another length than x's, n as it is given: x is cut at its end before, or zeros are added there, up to n real or m
complex numbers; dx is brought to the length of x in the same way, which is the adjoint.

Over several axes, the last of them is transformed as above and the others, before it or by the inverse after, as `fft`
does. The adjoint of `fft` is `fft` itself, and is taken of dy in the opposite order.

Cached: nothing but the shape and the dtype of x.

Numerical care: the transforms are XLA's, with a relative error that grows with log n. Half precision is computed in
float32, and y is complex64 then.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Complex, Float, Shaped

from bpref.checks.hyperparameters import require_flags, require_size
from bpref.dtypes import cast, widen
from bpref.formulas.shape_keeper import shape_keeper
from bpref.layer import Layer, no_params
from bpref.rule import Case, Real, Rule, called_as
from bpref.rules.linear_algebra.fft import Norm, as_axes, fitted, require_axes

OPPOSITE: dict[Norm, Norm] = {"backward": "forward", "ortho": "ortho", "forward": "backward"}
"""The norm by which the other direction has this one's factor c."""


class RealFftCache(NamedTuple):
    of_x: Shaped[Array, "..."]


def real_fft(
    inverse: bool = False, length: int | None = None, norm: Norm = "backward", axes: Sequence[int] = (-1,)
) -> Layer[tuple[()], Array, Array, RealFftCache]:
    """The discrete Fourier transform of n real numbers as m = n // 2 + 1 complex ones.

    Args:
      inverse: whether it takes the m complex numbers to the n real ones.
      length: n, to which, or the inverse to whose m, x is cut or filled up with zeros; if it is not given as many as x
        has, and of the inverse 2 (m - 1).
      norm: where the factor 1/n stands, as for `fft`.
      axes: which axes are transformed; the last named of them is the one with n and m elements.

    Returns:
      A layer with params `()`, x `(..., n)` real and y `(..., m)` complex, if axes are not given otherwise; of the
      inverse, the other way round.

    Raises:
      ValueError: norm is none of the three; length is not a positive integer, or is not given and would be 0; an axis
        is named twice, is not one of x's, or is empty; no axis is named.
      TypeError: x is complex, or for the inverse real.
    """
    who = "real_fft"
    require_flags(who, inverse=inverse)
    if norm not in tuple(OPPOSITE):
        raise ValueError(f"{who}: norm is {norm!r}, expected 'backward', 'ortho' or 'forward'")
    length = None if length is None else require_size(who, "length", length)
    axes = as_axes(who, axes)
    if not axes:
        raise ValueError(f"{who}: axes is (), expected at least one axis")
    *others, axis = axes
    transform = jnp.fft.ifftn if inverse else jnp.fft.fftn

    def over_others(z):
        return transform(z, axes=others, norm=norm) if others else z

    def forward(params, x: Float[Array, "..."] | Complex[Array, "..."]):
        if jnp.iscomplexobj(x) != inverse:
            kind = "the inverse expects complex" if inverse else "expected real"
            raise TypeError(f"{who}: x has dtype {x.dtype}, {kind} numbers")
        require_axes(who, x, axes)
        n = _length(x.shape)
        if n == 0:
            raise ValueError(f"{who}: x has shape {x.shape}, of which 2 (m - 1) = 0 numbers would be made")
        if inverse:
            of_n = over_others(fitted(x, (axis,), (n // 2 + 1,)))
            return jnp.fft.irfft(of_n, n, axis, norm), RealFftCache(shape_keeper(x))
        of_n = fitted(widen(x), (axis,), (n,))
        return over_others(jnp.fft.rfft(of_n, axis=axis, norm=norm)), RealFftCache(shape_keeper(x))

    def backward(params, cache, dy):
        before = cache.of_x.shape[1:]
        n = _length(before)
        if inverse:
            transformed = jnp.conj(jnp.fft.rfft(dy, axis=axis, norm=OPPOSITE[norm]))
            dx = over_others(transformed * _count(n, transformed, axis))
        else:
            dx = jnp.fft.irfft(jnp.conj(over_others(dy)) / _count(n, dy, axis), n, axis, OPPOSITE[norm])
        return (), cast(fitted(dx, (axis,), (before[axis],)), cache.of_x.dtype)

    def _length(shape):
        """n, for x of this shape."""
        if length is not None:
            return length
        return 2 * (shape[axis] - 1) if inverse else shape[axis]

    return Layer(no_params, forward, backward, who)


def _count(n: int, like: Array, axis: int) -> Array:
    """a, of the shape and the dtype of `like`: how often each coefficient along an axis stands among the n."""
    k = lax.broadcasted_iota(jnp.int32, like.shape, axis % like.ndim)
    return jnp.where((k == 0) | (2 * k == n), 1, 2).astype(like.dtype)


@called_as(real_fft)
def reference(params: tuple[()], x: Array, inverse, length, norm, axes) -> Array:
    n = 2 * (x.shape[axes[-1]] - 1) if inverse else x.shape[axes[-1]]
    sizes = [x.shape[axis] for axis in axes[:-1]] + [length or n]
    return jnp.fft.irfftn(x, sizes, axes, norm) if inverse else jnp.fft.rfftn(widen(x), sizes, axes, norm)


RULE = Rule(
    "real_fft",
    real_fft,
    reference,
    cases=(
        Case("forward", Real("B n"), never_empty=("n",), timed={"B": 64, "n": 4096}),
        Case("forward, of another length", Real("B n"), {"length": 6}, never_empty=("n",)),
        Case("two axes, odd, ortho", Real("n B m"), {"norm": "ortho", "axes": (2, 0)}, ("m",), fixed={"n": 7}),
        Case("inverse, even", Real("B m", is_complex=True), {"inverse": True}, fixed={"m": 5}),
        Case(
            "inverse, two axes, of an odd length",
            Real("B k m", is_complex=True),
            {"inverse": True, "length": 9, "norm": "forward", "axes": (1, 2)},
            never_empty=("k", "m"),
        ),
    ),
    cite="Sorensen, Jones, Heideman and Burrus, 'Real-valued fast Fourier transform algorithms' (1987), IEEE "
    "Transactions on Acoustics, Speech and Signal Processing 35",
    covers=("rfft", "irfft", "rfftn", "irfftn"),
)
