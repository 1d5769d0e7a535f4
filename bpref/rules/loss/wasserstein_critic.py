"""wasserstein_critic: a critic tells real from generated data, and pays where its slope is not 1 (WGAN-GP).

The mean is that of all terms, one for each pair of one real and one fake; they are not given apart, since one key draws
for all.

The critic is a network whose weights are this layer's params, with `widths` hidden units and activation f:

    z_l = a_(l-1) W_l^T + b_l,    a_l = f(z_l)     for l = 1 to L - 1,    a_0 its input       (N, n_l)
    D   = a_(L-1) . w                              an offset of D would cancel in J           (N,)

J asks for D at real and fake data, and for its slope G = dD/dx at mixtures x^ of them. G is a backward sweep:

    x^  = e real + (1 - e) fake                    e: uniform in [0, 1), drawn from a key     (N, d)
    p_(L-1) = w,    q_l = p_l f'(z_l),    p_(l-1) = q_l W_l,    G = p_0       with x^'s z_l   (N, n_l)
    J   = 1/N sum_n (D(fake_n) - D(real_n)) + C/N sum_n (|G_n| - 1)^2                         J: ()

C is the hyperparameter `penalty`. The forward holds a backward sweep; what follows is the adjoint of both.

Differential: of the penalty 2 C/N sum_n (|G_n| - 1) G_n / |G_n| . delta G_n, and of the sweep that makes G

    delta q_l = delta p_l f'(z_l) + p_l f''(z_l) delta z_l,    delta p_(l-1) = delta q_l W_l + q_l delta W_l

which is read from its end to its beginning, from the first layer to the last. The sweep starts with dJ; g_n is dJ / N,
or another `reduction`'s (`bpref.formulas.loss.terms`):

    dp_0  = g 2 C (|G| - 1) G / |G|                                                           (N, d)
    dq_l  = dp_(l-1) W_l^T                                                      l = 1 to L-1  (N, n_l)
    dW_l += q_l^T dp_(l-1)
    h_l   = dq_l p_l f''(z_l)                      what G asks of z_l                         (N, n_l)
    dp_l  = dq_l f'(z_l)
    dw   += sum_n dp_(L-1)                         p_(L-1) is w for every example

Then the adjoint of the forward, downwards, of real, fake and x^ as three batches b. Here h is 0 but for x^, and s is
-1 for real, 1 for fake and 0 for x^, where D itself does not count:

    da_(L-1) = s g w,    dw += sum s g a_(L-1)                                                 (3, N, n_(L-1))
    dz_l  = da_l f'(z_l) + h_l                                                  l = L-1 to 1  (3, N, n_l)
    dW_l += sum_b dz_l^T a_(l-1),    db_l = sum dz_l,    da_(l-1) = dz_l W_l
    dreal = da_0[real] + e da_0[x^],    dfake = da_0[fake] + (1 - e) da_0[x^]                 (N, d)

Kinks: |G| at G = 0 has its derivative taken as 0. f' of the leaky relu is 1 at 0, as in `jax.nn`; its
f'' is 0, so that a piecewise linear critic has h = 0: nothing reaches the data through the penalty, and the adjoint of
the forward is that of two batches.

Cached: real and fake; z_l of the three batches, of which f, f' and f'' are made again, one pass over memory and no
product; and p_0 to p_(L-2). The key gives e again.

Numerical care: half precision is computed, and z and p are cached, in float32: they are summed over, once more.
|G| - 1 cancels where the critic is as it should be; so do its derivatives then. Each batch is summed by itself.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PyTree

from bpref.checks.hyperparameters import require_choice, require_non_negative
from bpref.dtypes import cast, widen
from bpref.formulas.loss.terms import require_reduction
from bpref.formulas.norm.unit_vectors import length, unit
from bpref.formulas.random_draws import KEY, require_key
from bpref.layer import Layer, Reals
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Interval, Key, Real, Rule, called_as, specs
from bpref.rules.linear.linear import LinearParams, linear


class WassersteinCriticParams(NamedTuple):
    key: PyTree
    hidden: tuple[LinearParams, ...]
    w: Float[Array, " n"]


class RealAndFake(NamedTuple):
    real: Float[Array, "N>0 d>0"]
    fake: Float[Array, "N d"]


class WassersteinCriticCache(NamedTuple):
    real: Float[Array, "N d"]
    fake: Float[Array, "N d"]
    z: tuple[Float[Array, "3 N n"], ...]
    p: tuple[Float[Array, "N n"], ...]


class _Activation(NamedTuple):
    """f and its two derivatives; None for 0."""

    f: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    curvature: Callable[[Array], Array] | None


LEAK = 0.2

_ACTIVATIONS = {
    "leaky_relu": _Activation(
        lambda z: jnp.where(z >= 0, z, LEAK * z), lambda z: jnp.where(z >= 0, 1, LEAK).astype(z.dtype), None
    ),
    "softplus": _Activation(jax.nn.softplus, jax.nn.sigmoid, lambda z: jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)),
    "tanh": _Activation(jnp.tanh, lambda z: 1 - jnp.tanh(z) ** 2, lambda z: -2 * jnp.tanh(z) * (1 - jnp.tanh(z) ** 2)),
}


def wasserstein_critic(
    widths: tuple[int, ...], activation: str = "leaky_relu", penalty: float = 10.0, reduction: str = "mean"
) -> Layer[WassersteinCriticParams, tuple[Array, Array], Reals, WassersteinCriticCache]:
    """J = mean D(fake) - mean D(real) + penalty mean (|dD/dx| - 1)^2, the critic D being the layer's own network.

    Args:
      widths: the numbers of its hidden units, at least one.
      activation: "leaky_relu" (0.2 below 0), "softplus" or "tanh".
      penalty: the weight C of the slopes' distance from 1.
      reduction: "mean" of all terms, their "sum", or "batch_mean", which is the mean. There is no "none": taken apart
        by example, the key would draw the first one's mixture for each.

    Returns:
      A layer with params `WassersteinCriticParams(key, hidden, w)`: a PRNG key whose cotangent is None and which
      is to be replaced before every step; `LinearParams(W: (n_l, n_(l-1)), b: (n_l,))` for each hidden layer; and the
      output's weights `(n,)`. x is `(real, fake)`, both `(N, d)`, and y the scalar J in at least float32.

    Raises:
      ValueError: widths is no tuple of positive integers; the activation or the reduction is none of these; penalty is
        negative; real
        is no matrix with at least one row and column; fake has another shape; d is not what the params expect.
      TypeError: x is no pair; real is not floating-point; the dtypes differ.
    """
    who = "wasserstein_critic"
    if not isinstance(widths, tuple) or not widths or not all(isinstance(n, int) and n > 0 for n in widths):
        raise ValueError(f"{who}: widths is {widths!r}, expected a tuple of positive integers such as (64, 64)")
    require_choice(who, "activation", activation, _ACTIVATIONS)
    penalty = require_non_negative(who, "penalty", penalty)
    J_of = require_reduction(who, reduction)
    if not J_of.is_scalar:
        raise ValueError(
            f"{who}: reduction is 'none', expected mean, sum or batch_mean: one key draws for all examples"
        )
    f, slope, curvature = _ACTIVATIONS[activation]

    def init(key, x):
        real, _ = x
        keys = jax.random.split(key, len(widths) + 2)
        hidden, below = [], real
        for n, own in zip(widths, keys[2:], strict=True):
            hidden.append(linear(n).init(own, below))
            below = jax.ShapeDtypeStruct((len(real), n), real.dtype)
        return WassersteinCriticParams(keys[0], tuple(hidden), linear(1).init(keys[1], below).W[0])

    def forward(params, x: RealAndFake):
        real, fake = x
        require_key(who, params.key)
        N = len(real)
        (_, hidden, w), z, a = _widened(params), [], _rows(params.key, real, fake)
        for W, b in hidden:
            z.append(a @ W.T + b[None, None])
            a = f(z[-1])
        p = [jnp.broadcast_to(w, (N, w.size))]
        for (W, _), z_l in zip(hidden[::-1], z[::-1], strict=True):
            p.append((p[-1] * slope(z_l[2])) @ W)
        terms = (a[1] - a[0]) @ w + penalty * (length(p[-1])[:, 0] - 1) ** 2
        return J_of.of(terms), WassersteinCriticCache(real, fake, tuple(z), tuple(p[:0:-1]))

    def backward(params, cache, dJ):
        _, hidden, w = _widened(params)
        g = J_of.at_terms(dJ, (len(cache.real),), below=1)
        slopes = [slope(z_l) for z_l in cache.z]
        a = [_rows(params.key, cache.real, cache.fake), *(f(z_l) for z_l in cache.z)]

        G, of_sweep, h = cache.p[0], [], []
        dp = (2 * penalty) * g * (length(G) - 1) * unit(G)[0]
        for (W, _), p_l, z_l, slope_l in zip(hidden, (*cache.p[1:], w[None]), cache.z, slopes, strict=True):
            of_sweep.append((p_l * slope_l[2]).T @ dp)
            dq = dp @ W.T
            h.append(dq * p_l * curvature(z_l[2]) if curvature else None)
            dp = dq * slope_l[2]
        dw = jnp.sum(dp, 0) + jnp.sum(g * (a[-1][1] - a[-1][0]), 0)

        batches = 3 if curvature else 2
        da = jnp.array([-1, 1, 0], w.dtype)[:batches, None, None] * (g * w[None])[None]
        dhidden: list[LinearParams] = []
        for (W, _), below, slope_l, h_l, dW in reversed(list(zip(hidden, a[:-1], slopes, h, of_sweep, strict=True))):
            dz = da * slope_l[:batches]
            if h_l is not None:
                dz += jnp.pad(h_l[None], ((2, 0), (0, 0), (0, 0)))
            dW += sum(dz[b].T @ below[b] for b in range(batches))
            db: PyTree = sum(jnp.sum(dz[b], 0) for b in range(batches))
            dhidden.append(LinearParams(cast(dW, cache.real.dtype), cast(db, cache.real.dtype)))
            da = dz @ W
        dreal, dfake = da[0], da[1]
        if curvature:
            e = _mixing(params.key, a[0][0])
            dreal, dfake = dreal + e * da[2], dfake + (1 - e) * da[2]
        dparams = WassersteinCriticParams(None, tuple(dhidden[::-1]), cast(dw, cache.real.dtype))
        return dparams, (cast(dreal, cache.real.dtype), cast(dfake, cache.real.dtype))

    return Layer(init, forward, backward, who, held=KEY)


def _mixing(key: Array, real: Array) -> Array:
    """e, the same in every dtype: (N, 1)."""
    return jax.random.uniform(key, (len(real), 1), jnp.float32).astype(real.dtype)


def _rows(key: Array, real: Array, fake: Array) -> Array:
    """real, fake and x^: (3, N, d)."""
    real, fake = widen(real), widen(fake)
    e = _mixing(key, real)
    return jnp.stack([real, fake, e * real + (1 - e) * fake])


def _widened(params: WassersteinCriticParams) -> PyTree:
    return WassersteinCriticParams(params.key, *jax.tree.map(widen, params[1:]))


@called_as(wasserstein_critic)
def reference(params: WassersteinCriticParams, x: tuple[Array, Array], activation, penalty, reduction, **_) -> Array:
    real, fake = x
    f, df = {
        "leaky_relu": (lambda z: jax.nn.leaky_relu(z, 0.2), lambda z: jnp.where(z >= 0, 1, 0.2).astype(z.dtype)),
        "softplus": (jax.nn.softplus, jax.nn.sigmoid),
        "tanh": (jnp.tanh, lambda z: 1 - jnp.tanh(z) ** 2),
    }[activation]

    def critic(a):
        """D, and its slope as the product of the layers' Jacobian matrices."""
        slopes = []
        for W, b in params.hidden:
            z = a @ W.T + jnp.broadcast_to(jnp.asarray(b), (len(a), len(W)))
            a = f(z)
            slopes.append(df(z))
        product = jnp.broadcast_to(params.w, a.shape)
        for (W, _), s in zip(params.hidden[::-1], slopes[::-1], strict=True):
            product = (product * s) @ W
        return a @ params.w, product

    e = jax.random.uniform(params.key, (len(real), 1), jnp.float32).astype(real.dtype)
    square = jnp.sum(critic(e * real + (1 - e) * fake)[1] ** 2, axis=1)
    norm = jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))
    return naive_reduction(critic(fake)[0] - critic(real)[0] + penalty * (norm - 1) ** 2, reduction)


def _params(weight: float) -> WassersteinCriticParams:
    def spec(axes: str) -> Real:
        return Real(axes, -weight, weight)

    hidden = specs(LinearParams, spec("h d"), spec("h")), specs(LinearParams, spec("k h"), spec("k"))
    return specs(WassersteinCriticParams, Key(), hidden, spec("k"))


_X = (Real("N d", -1.0, 1.0), Real("N d", -1.0, 1.0))


def _case(activation: str, h: int, k: int, weight: float, reduction: str = "mean", **other) -> Case:
    hyper = {"widths": (h, k), "activation": activation, "penalty": Interval(0.0, 10.0, 10.0), "reduction": reduction}
    return Case(activation, _X, hyper, ("N", "d"), _params(weight), fixed={"h": h, "k": k}, **other)


RULE = Rule(
    "wasserstein_critic",
    wasserstein_critic,
    reference,
    cases=(
        _case("leaky_relu", 64, 48, 0.5, timed={"N": 512, "d": 128, "h": 64, "k": 48}),
        _case("softplus", 24, 20, 0.5, "sum"),
        _case("tanh", 24, 20, 0.3),
    ),
    cite="WGAN-GP, arXiv:1704.00028, equation 3 and algorithm 1",
    covers=("wgan_gp", "gradient_penalty", "wgan"),
)
