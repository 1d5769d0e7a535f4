"""real_fft: the discrete Fourier transform of real numbers over the last axis, and its inverse.

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

Cached: nothing but the shape and the dtype of x.

Numerical care: the transforms are XLA's, with a relative error that grows with log n. Half precision is computed in
float32, and y is complex64 then.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Shaped

from bpref.dtypes import cast, require_floating, widen
from bpref.formulas.shape_keeper import shape_keeper
from bpref.layer import Layer, no_params
from bpref.rule import Case, Real, Rule
from bpref.rules.linear_algebra.fft import Norm

OPPOSITE: dict[Norm, Norm] = {"backward": "forward", "ortho": "ortho", "forward": "backward"}
"""The norm by which the other direction has this one's factor c."""


class RealFftCache(NamedTuple):
    of_x: Shaped[Array, "..."]


def real_fft(inverse: bool = False, length: int | None = None, norm: Norm = "backward") -> Layer:
    """The discrete Fourier transform of n real numbers as m = n // 2 + 1 complex ones, over the last axis.

    Args:
      inverse: whether it takes the m complex numbers to the n real ones.
      length: n, for the inverse alone; 2 (m - 1) if it is not given.
      norm: where the factor 1/n stands, as for `fft`.

    Returns:
      A layer with params `()`, x `(..., n)` real and y `(..., m)` complex; of the inverse, the other way round.

    Raises:
      ValueError: norm is none of the three; a length is given for no inverse, or does not belong to x; x is empty.
      TypeError: x is complex, or for the inverse real.
    """
    who = "real_fft"
    if norm not in OPPOSITE:
        raise ValueError(f"{who}: norm is {norm!r}, expected 'backward', 'ortho' or 'forward'")
    if length is not None and not inverse:
        raise ValueError(f"{who}: length is {length}, which only the inverse has; n is the size of x's last axis")

    def forward(params, x):
        if inverse and not jnp.issubdtype(x.dtype, jnp.complexfloating):
            raise TypeError(f"{who}: x has dtype {x.dtype}, the inverse expects complex64 or complex128")
        if not inverse:
            require_floating(who, "x", x)
        if x.ndim == 0 or x.shape[-1] == 0:
            raise ValueError(f"{who}: x has shape {x.shape}, expected at least one element in its last axis")
        if not inverse:
            return jnp.fft.rfft(widen(x), norm=norm), RealFftCache(shape_keeper(x))
        n = 2 * (x.shape[-1] - 1) if length is None else length
        if n < 1 or n // 2 + 1 != x.shape[-1]:
            fitting = f"{2 * x.shape[-1] - 2} or {2 * x.shape[-1] - 1}"
            raise ValueError(f"{who}: length is {n}, expected {fitting} (x: {x.shape})")
        return jnp.fft.irfft(x, n, norm=norm), RealFftCache(shape_keeper(x))

    def backward(params, cache, dy):
        if inverse:
            transformed = jnp.conj(jnp.fft.rfft(dy, norm=OPPOSITE[norm]))
            return (), transformed * _count(dy.shape[-1], transformed)
        n = cache.of_x.shape[-1]
        dx = jnp.fft.irfft(jnp.conj(dy) / _count(n, dy), n, norm=OPPOSITE[norm])
        return (), cast(dx, cache.of_x.dtype)

    return Layer(no_params, forward, backward, who)


def _count(n: int, like: Array) -> Array:
    """a, of the shape (..., m) and the dtype of `like`: how often each coefficient stands among the n."""
    k = lax.broadcasted_iota(jnp.int32, like.shape, like.ndim - 1)
    return jnp.where((k == 0) | (2 * k == n), 1, 2).astype(like.dtype)


def reference(
    params: tuple[()], x: Array, inverse: bool = False, length: int | None = None, norm: Norm = "backward"
) -> Array:
    return jnp.fft.irfft(x, length, norm=norm) if inverse else jnp.fft.rfft(widen(x), norm=norm)


RULE = Rule(
    "real_fft",
    real_fft,
    reference,
    cases=(
        Case("forward", Real("B n"), never_empty=("n",), timed={"B": 64, "n": 4096}),
        Case("forward, odd, ortho", Real("B n"), {"norm": "ortho"}, fixed={"n": 7}),
        Case("inverse, even", Real("B m", is_complex=True), {"inverse": True}, fixed={"m": 5}),
        Case(
            "inverse, odd",
            Real("B m", is_complex=True),
            {"inverse": True, "length": 9, "norm": "forward"},
            fixed={"m": 5},
        ),
    ),
    cite="Sorensen, Jones, Heideman and Burrus, 'Real-valued fast Fourier transform algorithms' (1987), IEEE "
    "Transactions on Acoustics, Speech and Signal Processing 35",
    covers=("rfft", "irfft"),
)
