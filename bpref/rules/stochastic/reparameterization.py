"""reparameterization: a draw from a normal distribution, as a smooth function of its mean and variance.

Forward, with means mu and logarithms of variances L of one shape, and e standard normal numbers drawn from a key:

    D_i = exp(L_i / 2) e_i                                                the deviation
    z_i = mu_i + D_i                                                      z: mu's shape

The draw e depends on neither mu nor L, so that a derivative can pass by it.

Differential: delta D = D delta L / 2, for whatever e. Hence

    dmu_i = dz_i                                                          mu's shape
    dL_i  = 1/2 dz_i D_i                                                  L's shape

Averaged over draws, these are the derivatives of the expectation of J (Kingma and Welling). The key has no cotangent.

Cached: the deviation D, and neither the draw nor the standard deviation, whose product is all that is needed.

Numerical care: the key gives integers, of them uniform numbers u = (2 i + 1) / 2^23 - 1 that float32 holds exactly, and
only of these e = sqrt(2) erf^-1(u) in the dtype computed in: the same draw in each, to erf^-1's own error (1e-5 in
float32's tails), and whatever the compiler does. No |e| is beyond 5.3. Half precision is computed in float32.
exp(L / 2) overflows at twice the L of exp(L). There is no kink.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, PyTree

from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.random_draws import KEY, require_key
from bpref.layer import Layer, Reals
from bpref.rule import Case, Key, Real, Rule


class Normal(NamedTuple):
    mu: Float[Array, "*n"]
    log_var: Float[Array, "*n"]


class ReparameterizationParams(NamedTuple):
    key: PyTree


class ReparameterizationCache(NamedTuple):
    deviation: Float[Array, "..."]


def reparameterization() -> Layer[ReparameterizationParams, tuple[Array, Array], Reals, ReparameterizationCache]:
    """z = mu + exp(log_var / 2) e, with e standard normal.

    Returns:
      A layer with params `ReparameterizationParams(key)`, x `(mu, log_var)` of one shape, and y z, of that shape.
      The key is a PRNG key of either kind, whose cotangent is None; `init` keeps the one that it is given. The same
      key gives the same draw: it is for whoever trains to replace it before every step.

    Raises:
      ValueError: mu and log_var differ in shape.
      TypeError: x is no pair; mu is not floating-point; log_var has another dtype.
    """
    who = "reparameterization"

    def init(key, x):
        return ReparameterizationParams(key)

    def forward(params, x: Normal):
        mu, log_var = x
        require_key(who, params.key)
        log_var_ = widen(log_var)
        D = jnp.exp(0.5 * log_var_) * standard_normal(params.key, mu.shape, log_var_.dtype)
        return cast(widen(mu) + D, mu.dtype), ReparameterizationCache(cast(D, mu.dtype))

    def backward(params, cache, dz):
        dlog_var = cast(0.5 * widen(dz) * widen(cache.deviation), dz.dtype)
        return ReparameterizationParams(None), (dz, dlog_var)

    return Layer(init, forward, backward, who, held=KEY)


def standard_normal(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """The draw e, in float32 or float64."""
    i = (jax.random.bits(key, shape, jnp.uint32) >> 9).astype(jnp.int32)
    return math.sqrt(2) * lax.erf_inv((2 * i + (1 - 2**23)).astype(dtype) / 2**23)


def reference(params: ReparameterizationParams, x: tuple[Array, Array]) -> Array:
    mu, log_var = x
    share = (jax.random.bits(params.key, mu.shape, jnp.uint32) >> 9).astype(wide_dtype(mu.dtype)) * 2.0**-22
    e = (math.sqrt(2) * lax.erf_inv(share + (2.0**-23 - 1))).astype(mu.dtype)
    return mu + jnp.sqrt(jnp.exp(log_var)) * e


RULE = Rule(
    "reparameterization",
    reparameterization,
    reference,
    cases=(
        Case(
            "latent vectors",
            (Real("N d"), Real("N d")),
            params=ReparameterizationParams(Key()),
            timed={"N": 2048, "d": 64},
        ),
    ),
    cite="Kingma and Welling, arXiv:1312.6114, section 2.4",
    covers=("normal_sample", "vae_sample"),
)
