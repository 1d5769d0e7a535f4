"""vae: the negative evidence lower bound of an autoencoder, what it costs to code each example and to decode it.

Forward, for N examples n, with the decoder's output x and the target t of one shape (N, ...), k their other axes, and
the encoder's means mu and logarithms of variances L, both (N, ...), j their other axes; B is the hyperparameter `beta`:

    R_n = sum_k (-t_nk log s(x_nk) - (1 - t_nk) log s(-x_nk))    "bernoulli": x are logits, s(x) = 1 / (1 + exp(-x))
    R_n = sum_k 1/2 (x_nk - t_nk)^2                              "gaussian": x are means, of variance 1
    K_n = 1/2 sum_j (mu_nj^2 + exp(L_nj) - 1 - L_nj)             from N(mu, exp(L)) to N(0, 1), in nats
    J   = 1/N sum_n (R_n + B K_n)                                         J: ()

Gaussian R leaves out the constant log(2 pi) / 2 a number. z, at which the decoder gives x, is a draw: the layer
`reparameterization` makes it of mu and L, and carries the decoder's share of their derivatives.

Differential:

    delta R_n = sum_k ((1 - t) s(x) - t s(-x)) delta x - x delta t     or  sum_k (x - t) (delta x - delta t)
    delta K_n = sum_j (mu delta mu + 1/2 (exp(L) - 1) delta L)

The sweep starts with dJ, a scalar. The factor of each perturbation:

    dx_nk  = dJ ((1 - t_nk) s(x_nk) - t_nk s(-x_nk)) / N     or  dJ (x_nk - t_nk) / N         (N, ...)
    dt_nk  = -dJ x_nk / N                                    or  -dJ (x_nk - t_nk) / N        (N, ...)
    dmu_nj = dJ B mu_nj / N                                                                   (N, ...)
    dL_nj  = dJ B (exp(L_nj) - 1) / (2 N)                                                     (N, ...)

Cached: x and t, or the error x - t alone for the Gaussian; mu, and exp(L) - 1, which the forward has made.

Numerical care: -log s(x) = max(-x, 0) + log(1 + exp(-|x|)), with log1p, and s(-x) is not 1 - s(x): no logit overflows.
exp(L) - 1 is expm1(L): near L = 0, where a collapsed posterior sits, its derivative keeps its relative precision and K
that of L. Half precision is computed and summed in float32. There is no kink.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_non_negative
from bpref.dtypes import cast, widen
from bpref.formulas.logistic import binary_cross_entropy, logistic_pair
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Interval, Real, Rule


class Autoencoded(NamedTuple):
    output: Float[Array, " N>0 *n"]
    target: Float[Array, " N *n"]
    mu: Float[Array, " N *k"]
    log_var: Float[Array, " N *k"]


class BernoulliCache(NamedTuple):
    logits: Float[Array, "N ..."]
    target: Float[Array, "N ..."]


class GaussianCache(NamedTuple):
    error: Float[Array, "N ..."]


class VaeCache(NamedTuple):
    reconstruction: BernoulliCache | GaussianCache
    mu: Float[Array, "N ..."]
    expm1_log_var: Float[Array, "N ..."]


def vae(
    beta: float = 1.0, likelihood: str = "bernoulli"
) -> Layer[tuple[()], tuple[Array, Array, Array, Array], Reals, VaeCache]:
    """J = mean over the examples of -log p(target | output) + beta KL(N(mu, exp(log_var)) || N(0, 1)).

    Args:
      beta: the weight of the divergence; beyond 1 it is a beta-VAE's.
      likelihood: "bernoulli", the decoder's output being logits, or "gaussian", its being means of variance 1.

    Returns:
      A layer with params `()`, x `(output, target, mu, log_var)`, the first two of one shape `(N, ...)` and so the last
      two, and y the scalar J in at least float32. Bernoulli targets are probabilities; values outside [0, 1] are not
      looked for.

    Raises:
      ValueError: beta is negative; the likelihood is neither; the shapes do not fit; N is 0.
      TypeError: x is no such tuple; the output is not floating-point; the dtypes differ.
    """
    who = "vae"
    beta = require_non_negative(who, "beta", beta)
    if likelihood not in ("bernoulli", "gaussian"):
        raise ValueError(f"{who}: likelihood is {likelihood!r}, expected 'bernoulli' or 'gaussian'")

    def forward(params, x: Autoencoded):
        output, target, mu, log_var = x
        reconstruct = _bernoulli if likelihood == "bernoulli" else _gaussian
        R, cache = reconstruct(output, target)
        m, L = widen(mu), widen(log_var)
        grown = jnp.expm1(L)
        K = 0.5 * jnp.sum(m * m + (grown - L))
        J = (R + beta * K) / len(output)
        return J, VaeCache(cache, mu, cast(grown, mu.dtype))

    def backward(params, cache, dJ):
        g = widen(dJ) / len(cache.mu)
        adjoint = _from_bernoulli if likelihood == "bernoulli" else _from_gaussian
        doutput, dtarget = adjoint(cache.reconstruction, g)
        dmu, dlog_var = g * beta * widen(cache.mu), g * (0.5 * beta) * widen(cache.expm1_log_var)
        return (), tuple(cast(d, cache.mu.dtype) for d in (doutput, dtarget, dmu, dlog_var))

    return Layer(no_params, forward, backward, who)


def _bernoulli(logits: Array, target: Array) -> tuple[Array, BernoulliCache]:
    x, t = widen(logits), widen(target)
    return jnp.sum(binary_cross_entropy(x, t)), BernoulliCache(logits, target)


def _from_bernoulli(cache: BernoulliCache, g: Array) -> tuple[Array, Array]:
    x, t = widen(cache.logits), widen(cache.target)
    s, s_minus = logistic_pair(x)
    return g * ((1 - t) * s - t * s_minus), -g * x


def _gaussian(mean: Array, target: Array) -> tuple[Array, GaussianCache]:
    error = widen(mean) - widen(target)
    return 0.5 * jnp.sum(error * error), GaussianCache(cast(error, mean.dtype))


def _from_gaussian(cache: GaussianCache, g: Array) -> tuple[Array, Array]:
    doutput = g * widen(cache.error)
    return doutput, -doutput


def reference(
    params: tuple[()], x: tuple[Array, Array, Array, Array], beta: float = 1.0, likelihood: str = "bernoulli"
) -> Array:
    import optax

    output, target, mu, log_var = x
    if likelihood == "bernoulli":
        terms = optax.sigmoid_binary_cross_entropy(output, target)
    else:
        terms = optax.l2_loss(output, target)
    divergence = -0.5 * jnp.sum(1 + log_var - mu**2 - jnp.exp(log_var))
    return (jnp.sum(terms) + beta * divergence) / output.shape[0]


_BETA = Interval(0.0, 4.0, 1.0)

RULE = Rule(
    "vae",
    vae,
    reference,
    cases=(
        Case(
            "bernoulli",
            (Real("N d", points=(100.0, -100.0)), Real("N d", 0.0, 1.0), Real("N z"), Real("N z")),
            {"beta": _BETA},
            ("N",),
            timed={"N": 1024, "d": 784, "z": 32},
        ),
        Case(
            "gaussian",
            (Real("N d"), Real("N d"), Real("N z"), Real("N z")),
            {"beta": _BETA, "likelihood": "gaussian"},
            ("N",),
        ),
    ),
    cite="Kingma and Welling, arXiv:1312.6114, equation 10 and appendix B; beta: Higgins et al. (2017)",
    covers=("elbo", "beta_vae", "gaussian_kl_to_standard_normal"),
)
