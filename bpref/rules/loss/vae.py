"""vae: the negative evidence lower bound of an autoencoder, what it costs to code each example and to decode it.

The mean is that of all terms, one for each example: what `reduction="none"` gives.

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

The sweep starts with dJ. The factor of each perturbation, with g_n = dJ / N, or another `reduction`'s
(`bpref.formulas.loss.terms`):

    dx_nk  = g_n ((1 - t_nk) s(x_nk) - t_nk s(-x_nk))        or  g_n (x_nk - t_nk)            (N, ...)
    dt_nk  = -g_n x_nk                                       or  -g_n (x_nk - t_nk)           (N, ...)
    dmu_nj = g_n B mu_nj                                                                      (N, ...)
    dL_nj  = g_n B (exp(L_nj) - 1) / 2                                                        (N, ...)

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
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Interval, Real, Rule, called_as


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
    beta: float = 1.0, likelihood: str = "bernoulli", reduction: str = "mean"
) -> Layer[tuple[()], tuple[Array, Array, Array, Array], Reals, VaeCache]:
    """J = mean over the examples of -log p(target | output) + beta KL(N(mu, exp(log_var)) || N(0, 1)).

    Args:
      beta: the weight of the divergence; beyond 1 it is a beta-VAE's.
      likelihood: "bernoulli", the decoder's output being logits, or "gaussian", its being means of variance 1.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(output, target, mu, log_var)`, the first two of one shape `(N, ...)` and so the last
      two, and y the scalar J, or the terms (N,), in at least float32. Bernoulli targets are probabilities; values
      outside [0, 1] are not looked for.

    Raises:
      ValueError: beta is negative; the likelihood or the reduction is none of these; the shapes do not fit; N is 0.
      TypeError: x is no such tuple; the output is not floating-point; the dtypes differ.
    """
    who = "vae"
    beta = require_non_negative(who, "beta", beta)
    J_of = require_reduction(who, reduction)
    if likelihood not in ("bernoulli", "gaussian"):
        raise ValueError(f"{who}: likelihood is {likelihood!r}, expected 'bernoulli' or 'gaussian'")

    def forward(params, x: Autoencoded):
        output, target, mu, log_var = x
        reconstruct = _bernoulli if likelihood == "bernoulli" else _gaussian
        R, cache = reconstruct(output, target)
        m, L = widen(mu), widen(log_var)
        grown = jnp.expm1(L)
        K = 0.5 * _total(m * m + (grown - L))
        return J_of.of(R + beta * K), VaeCache(cache, mu, cast(grown, mu.dtype))

    def backward(params, cache, dJ):
        mu = cache.mu

        def g(like):
            return J_of.at_terms(dJ, (len(mu),), below=like.ndim - 1)

        adjoint = _from_bernoulli if likelihood == "bernoulli" else _from_gaussian
        doutput, dtarget = adjoint(cache.reconstruction, g(cache.reconstruction[0]))
        dmu, dlog_var = g(mu) * beta * widen(mu), g(mu) * (0.5 * beta) * widen(cache.expm1_log_var)
        return (), tuple(cast(d, mu.dtype) for d in (doutput, dtarget, dmu, dlog_var))

    return Layer(no_params, forward, backward, who)


def _total(terms: Array) -> Array:
    """The sum of each example's: (N,)."""
    return jnp.sum(terms, tuple(range(1, terms.ndim)))


def _bernoulli(logits: Array, target: Array) -> tuple[Array, BernoulliCache]:
    x, t = widen(logits), widen(target)
    return _total(binary_cross_entropy(x, t)), BernoulliCache(logits, target)


def _from_bernoulli(cache: BernoulliCache, g: Array) -> tuple[Array, Array]:
    x, t = widen(cache.logits), widen(cache.target)
    s, s_minus = logistic_pair(x)
    return g * ((1 - t) * s - t * s_minus), -g * x


def _gaussian(mean: Array, target: Array) -> tuple[Array, GaussianCache]:
    error = widen(mean) - widen(target)
    return 0.5 * _total(error * error), GaussianCache(cast(error, mean.dtype))


def _from_gaussian(cache: GaussianCache, g: Array) -> tuple[Array, Array]:
    doutput = g * widen(cache.error)
    return doutput, -doutput


@called_as(vae)
def reference(params: tuple[()], x: tuple[Array, Array, Array, Array], beta, likelihood, reduction) -> Array:
    import optax

    output, target, mu, log_var = x
    if likelihood == "bernoulli":
        terms = optax.sigmoid_binary_cross_entropy(output, target)
    else:
        terms = optax.l2_loss(output, target)
    divergence = -0.5 * jnp.sum(1 + log_var - mu**2 - jnp.exp(log_var), axis=tuple(range(1, mu.ndim)))
    return naive_reduction(jnp.sum(terms, axis=tuple(range(1, terms.ndim))) + beta * divergence, reduction)


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
            {"beta": _BETA, "likelihood": "gaussian", "reduction": "none"},
            ("N",),
        ),
    ),
    cite="Kingma and Welling, arXiv:1312.6114, equation 10 and appendix B; beta: Higgins et al., 'beta-VAE: learning "
    "basic visual concepts with a constrained variational framework' (2017)",
    covers=("elbo", "beta_vae", "gaussian_kl_to_standard_normal"),
)
