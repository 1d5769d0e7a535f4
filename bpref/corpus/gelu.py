"""Exact GELU: `y = x Phi(x)`, `dx = dy (Phi(x) + x phi(x))`, Phi and phi the normal distribution and its density."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent


def distribution(x: Array) -> Array:
    return 0.5 * (1 + jax.lax.erf(x / math.sqrt(2)))


def forward(x):
    return x * distribution(x)


def backward(args: tuple, dy: Array, density: float = 1 / math.sqrt(2 * math.pi)) -> tuple:
    """`density`: the normal density at 0."""
    (x,) = args
    return (dy * (distribution(x) + x * density * jnp.exp(-(x**2) / 2)),)


def of_the_tanh_approximation(args: tuple, dy: Array) -> tuple:
    (x,) = args
    a = math.sqrt(2 / math.pi)
    t = jnp.tanh(a * (x + 0.044715 * x**3))
    return (dy * (0.5 * (1 + t) + 0.5 * x * (1 - t**2) * a * (1 + 3 * 0.044715 * x**2)),)


def without_the_density(args: tuple, dy: Array) -> tuple:
    return backward(args, dy, density=0)


def unnormalised(args: tuple, dy: Array) -> tuple:
    return backward(args, dy, density=1)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return (rng.standard_normal((3, 7)).astype(dtype),)


DERIVATION = Derivation(
    name="gelu",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "the derivative of the tanh approximation",
            of_the_tanh_approximation,
            ("x",),
            "unexplained",
            "harvard-edge/cs249r_book#1399: one approximation in the forward, another's derivative in the backward",
        ),
        Wrong(
            "x phi(x) forgotten",
            without_the_density,
            ("x",),
            "missing_term",
            "habit: Phi(x) is taken for a gate that does not depend on x",
        ),
        Wrong(
            "the density without its 1 / sqrt(2 pi)",
            unnormalised,
            ("x",),
            "factor",
            "habit: d erf / dx remembered as exp(-x^2)",
        ),
        Wrong(
            "the cotangent clipped to [-1/2, 1/2]",
            with_cotangent(backward, 0, lambda dx: jnp.clip(dx, -0.5, 0.5)),
            ("x",),
            "clipped",
            "habit: a clip put in against an explosion and left there",
        ),
        Wrong(
            "the last elements not written",
            with_cotangent(backward, 0, lambda dx: dx.reshape(-1).at[-2:].set(0).reshape(dx.shape)),
            ("x",),
            "sparse",
            "habit: a kernel launched with size // block blocks, and no block for the rest",
        ),
    ),
)
