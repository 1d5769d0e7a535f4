"""A filter in the frequency domain: y = irfft(H rfft(signal)), H = real + i imaginary.

y_t = 1/n sum_f c_f Re(H_f X_f e^(2 pi i f t / n)), where c_f = 2 for all frequencies but the first and, n being even,
the last, which have no conjugate twin. With D = rfft(dy): dsignal = irfft(conj(H) D), dreal = sum over the batch of
c Re(conj(X) D) / n, dimaginary = sum of c Im(conj(X) D) / n.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Backward, Derivation, Wrong
from bpref.corpus.spoil import with_cotangent


def forward(signal: Array, real: Array, imaginary: Array) -> Array:
    """`(B, n), (n // 2 + 1,), (n // 2 + 1,) -> (B, n)`. float32 and float64 only, as is `jnp.fft`."""
    if len(real) != signal.shape[1] // 2 + 1:
        raise ValueError(
            f"spectral_filter: real has {len(real)} frequencies, expected n // 2 + 1, n: {signal.shape[1]}"
        )
    return jnp.fft.irfft(jnp.fft.rfft(signal) * jax.lax.complex(real, imaginary)[None], signal.shape[1])


def backward(args: tuple, dy: Array) -> tuple:
    _, real, imaginary = args
    ends = np.zeros(real.shape, bool)
    ends[[0, -1] if dy.shape[1] % 2 == 0 else 0] = True
    return _of_weights(args, dy, -imaginary, jnp.where(ends, 1, 2).astype(dy.dtype))


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    """Long enough for the two frequencies at the ends to be few."""
    return tuple(rng.normal(size=shape).astype(dtype) for shape in [(3, 24), (13,), (13,)])


def _of_weights(args: tuple, dy: Array, conjugate: Array, weights: Array) -> tuple:
    """The derivation, given the imaginary part of conj(H), and c."""
    signal, real, _ = args
    n = signal.shape[1]
    d = jnp.fft.rfft(dy)
    products = jnp.sum(jnp.conj(jnp.fft.rfft(signal)) * d, axis=0)
    dsignal = jnp.fft.irfft(jax.lax.complex(real, conjugate)[None] * d, n)
    return dsignal, weights * jnp.real(products) / n, weights * jnp.imag(products) / n


def _forget_the_conjugate(args: tuple, dy: Array) -> tuple:
    return _of_weights(args, dy, args[2], jnp.ones_like(args[1]))[0], *backward(args, dy)[1:]


def _weigh_equally(weight: int) -> Backward:
    def spoiled(args: tuple, dy: Array) -> tuple:
        right = backward(args, dy)
        return right[0], _of_weights(args, dy, -args[2], weight * jnp.ones_like(args[1]))[1], right[2]

    return spoiled


def _forget_one_over_n(args: tuple, dy: Array) -> tuple:
    dsignal, *dfilter = backward(args, dy)
    return dsignal, *(d * dy.shape[1] for d in dfilter)


def _average_over_the_batch(args: tuple, dy: Array) -> tuple:
    dsignal, *dfilter = backward(args, dy)
    return dsignal, *(d / dy.shape[0] for d in dfilter)


DERIVATION = Derivation(
    "spectral_filter",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "the filter is not conjugated",
            _forget_the_conjugate,
            ("signal",),
            "unexplained",
            "HazyResearch/flash-fft-conv#24: the formula that is given there has no conjugate",
        ),
        Wrong(
            "1/n is forgotten",
            _forget_one_over_n,
            ("real", "imaginary"),
            "factor",
            "HazyResearch/flash-fft-conv#24: 'may be missing a factor of 1/n in a couple places'",
        ),
        Wrong(
            "the first and the last frequency are doubled too",
            _weigh_equally(2),
            ("real",),
            "sparse",
            "a habit; locuslab/pytorch_fft#38 asks why some frequencies count half",
        ),
        Wrong(
            "no frequency is doubled",
            _weigh_equally(1),
            ("real",),
            "unexplained",
            "a habit: half of the spectrum is not stored, and forgotten",
        ),
        Wrong(
            "a mean over the batch instead of a sum",
            _average_over_the_batch,
            ("real", "imaginary"),
            "mean_for_sum",
            "a habit: the loss may be a mean over the batch, and its 1/N is then already in dy",
        ),
        Wrong(
            "the imaginary part is conjugated",
            with_cotangent(backward, 2, jnp.negative),
            ("imaginary",),
            "sign",
            "EnzymeAD/Enzyme-JAX#2071: 'the imaginary components are complex conjugated'",
        ),
    ),
)
