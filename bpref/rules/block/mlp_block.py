"""mlp_block: y = W_out act(norm(x) W_in), the half of a pre-norm transformer block that mixes no positions, unadded.

Forward, with x of shape (..., d), F hidden features, g the activation and i a row:

    n_i = gamma xhat_i + beta,   xhat_i = (x_i - mu_i) r_i                (..., d)        mu = beta = 0: RMS norm
    z_i = W_in n_i + b_in                                                 (..., F), (..., 2 F) where it is gated
    a_i = g(z_i),  or with z_i = (u_i, t_i) its halves  u_i g(t_i)        (..., F)
    y_i = W_out (k_i a_i) + b_out                                         (..., d)        k = 1 without dropout

k is 0 with the probability of dropout, and else 1 / (1 - that), for each element, by the key and the element's place.
Gated with silu it is SwiGLU, with gelu GEGLU.

Differential:

    delta y_i = W_out (k_i delta a_i) + (delta W_out) (k_i a_i) + delta b_out
    delta a_i = g'(z_i) delta z_i,  or  g(t_i) delta u_i + u_i g'(t_i) delta t_i
    delta z_i = W_in delta n_i + (delta W_in) n_i + delta b_in

and delta n as in the norms. The factor of each perturbation:

    da_i = k_i (W_out^T dy_i)        dW_out = sum_i dy_i (k_i a_i)^T      (..., F), (d, F)
    dz_i = da_i g'(z_i),  or  (da_i g(t_i), da_i u_i g'(t_i))             of z's shape
    dn_i = W_in^T dz_i               dW_in = sum_i dz_i n_i^T             (..., d), (F or 2 F, d)
    dx_i = r_i (f_i - mean f_i - xhat_i mean(f_i xhat_i)),   f = gamma dn (..., d)        no mean f: RMS norm

Cached: x, two numbers for each of its rows (one for the RMS norm), and z, which cost a product of matrices. That is the
least from which no such product is made a second time: n and a, which the two dW need, are a few operations for each
element of x and z. Autodiff keeps n, a, g(t), g' and what they are made of besides. k is drawn again from the key.

By tiles of positions nothing but x is kept, and no more than a tile's z and a are there at any time. No row sees
another: y and dx are those of the tiles, one after the other, and of each sum over i the tiles have a part each:

    dW_in = sum_tiles sum_(i in tile) dz_i n_i^T                          and likewise dW_out, db and the norm's

at the price of making z again, which within `remat` is made again anyway.

Numerical care: the norm and g in float32 at least, products of half precision are summed in float32; z and a are
rounded to x's dtype. About the tails and kinks of g, see `gelu`, `silu` and `relu`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_choice, require_flags, require_positive, require_size
from bpref.dtypes import cast, widen
from bpref.formulas.affine import closed, lecun_uniform, plus, times, times_transposed, total, unmade
from bpref.formulas.joined import concatenated
from bpref.formulas.norm.pre_norm import (
    NormParams,
    Statistics,
    init_norm,
    normalize,
    pull_normalize,
    require_norm,
    statistics,
)
from bpref.formulas.random_draws import KEY, dropped, require_key, require_rate
from bpref.layer import Held, Layer, Reals, each_position
from bpref.loops import block_of, for_blocks
from bpref.naive.activation import activation as naive_activation
from bpref.naive.dense import naive_affine, naive_norm
from bpref.naive.dropout import naive_kept
from bpref.rule import Case, Interval, Key, Real, Rule, Size, called_as, specs
from bpref.rules.activation.glu import GATES, glu_layer


class MlpBlockParams(NamedTuple):
    norm: NormParams | None
    W_in: Float[Array, "m d"]
    b_in: Float[Array, " m"] | None
    W_out: Float[Array, "d F"]
    b_out: Float[Array, " d"] | None
    key: Array | None = None


class MlpBlockCache(NamedTuple):
    x: Float[Array, "... d"]
    of_x: Statistics | None
    z: Float[Array, "... m"] | None
    key: Array | None = None


def mlp_block(
    hidden: int,
    activation: str = "silu",
    gated: bool = True,
    norm: str = "rms",
    bias: bool = False,
    eps: float = 1e-6,
    dropout: float = 0.0,
    tile: int | None = None,
) -> Layer[MlpBlockParams, Array, Reals, MlpBlockCache]:
    """y = W_out act(norm(x) W_in), row by row; `residual` of it is half a transformer block.

    Args:
      hidden: the number F of hidden features.
      activation: g: "silu", "gelu" (tanh form), "gelu_erf", "relu", "sigmoid", "tanh" or "identity".
      gated: whether a = u g(t) of the halves of z, as in SwiGLU, and not g(z).
      norm: "rms" or "layer".
      bias: whether there are a b_in and a b_out.
      eps: what is added to the mean square or variance, in units of x squared.
      dropout: the share of the hidden features a that are dropped, those that stay being divided by 1 - dropout.
      tile: how many positions, along x's last axis but one, are worked on at once, nothing but x being kept; None: all.

    Returns:
      A layer with params `MlpBlockParams(norm: (scale: (d,), shift: (d,) or None), W_in: (2 F or F, d), b_in,
      W_out: (d, F), b_out, key: a PRNG key, with dropout)`, x `(..., d)` and y of x's shape. Both W are drawn uniformly
      with variance 1 over the number of their inputs; scale is ones, and shift and b are zeros at first.

    Raises:
      ValueError: an argument is out of its range, or there are dropout and a tile; x has no features, or others than
        W_in.
      TypeError: x is not floating-point, or it or a parameter is not of W_in's dtype.
    """
    return mlp_layer("mlp_block", hidden, activation, gated, norm, bias, eps, dropout, tile=tile)


def mlp_layer(
    who: str,
    hidden: int,
    activation: str,
    gated: bool,
    norm: str | None,
    bias: bool,
    eps: float,
    dropout: float = 0.0,
    keyed: bool = False,
    tile: int | None = None,
) -> Layer:
    """The layer that error messages call `who`; `keyed` where its params have a key though nothing is dropped.

    Without a `norm` its params have None in its place, and n is x.
    """
    require_flags(who, gated=gated, bias=bias)
    hidden = require_size(who, "hidden", hidden)
    require_choice(who, "activation", activation, sorted(GATES))
    if norm is not None:
        require_norm(who, norm)
    eps = require_positive(who, "eps", eps)
    dropout = require_rate(who, dropout, "dropout")
    if tile is not None and dropout:
        raise ValueError(f"{who}: there are dropout and a tile, expected one of the two")
    act = glu_layer(activation, concatenated) if gated else GATES[activation]()

    def init(key, x):
        d = x.shape[-1]
        of_in, of_out = jax.random.split(key)
        m = 2 * hidden if gated else hidden
        return MlpBlockParams(
            None if norm is None else init_norm(norm, d, x.dtype),
            lecun_uniform(of_in, (m, d), d, x.dtype),
            jnp.zeros(m, x.dtype) if bias else None,
            lecun_uniform(of_out, (d, hidden), hidden, x.dtype),
            jnp.zeros(d, x.dtype) if bias else None,
            jax.random.split(key, 3)[2] if dropout or keyed else None,
        )

    def forward(params, x: Float[Array, "... d>0"]):
        if dropout:
            require_key(who, params.key)
        of_x = statistics(norm, x, eps)
        n = normalize(params.norm, x, of_x)
        z = cast(plus(times_transposed(n, params.W_in), params.b_in), x.dtype)
        a = dropped(params.key, dropout, act.forward((), z)[0])
        y = cast(plus(times_transposed(a, params.W_out), params.b_out), x.dtype)
        return y, MlpBlockCache(x, of_x, z, params.key)

    def opened(params, cache, dy):
        x, of_x, z, key = cache
        a, kept = act.forward((), z)
        da = dropped(key, dropout, cast(times(dy, params.W_out), dy.dtype))
        dz = act.backward((), kept, da)[1]
        dW_in, dW_out = unmade(dz, normalize(params.norm, x, of_x)), unmade(dy, dropped(key, dropout, a))
        dnorm, dx = pull_normalize(params.norm, x, of_x, times(dz, params.W_in))
        db_in, db_out = total(dz, params.b_in), total(dy, params.b_out)
        return MlpBlockParams(dnorm, dW_in, db_in, dW_out, db_out), cast(dx, x.dtype)

    if dropout:
        without = mlp_layer(who, hidden, activation, gated, norm, bias, eps, keyed=True)
        return Layer(init, forward, closed(opened), who, held=KEY, evaluating=without, opened=opened)
    held = Held(("key",)) if keyed else None
    layer = Layer(init, forward, closed(opened), who, held=held, decoding=each_position, opened=opened)
    return layer if tile is None else _by_tiles(layer, require_size(who, "tile", tile))


def _by_tiles(whole: Layer, tile: int) -> Layer:
    """The layer, so many positions at a time."""

    def is_one(x):
        return x.ndim < 2 or x.shape[-2] <= tile

    def again(params, x):
        return whole.forward(params, x)[1]

    def forward(params, x):
        def put(y, start, size):
            y_ = whole.forward(params, block_of(x, start, size, -2))[0]
            return lax.dynamic_update_slice_in_dim(y, y_, start, -2)

        y = whole.forward(params, x)[0] if is_one(x) else for_blocks(x.shape[-2], tile, put, jnp.zeros_like(x))
        return y, MlpBlockCache(x, None, None)

    def backward(params, cache, dy):
        x = cache.x

        def add(carry, start, size):
            dparams, dx = carry
            x_, dy_ = (block_of(v, start, size, -2) for v in (x, dy))
            of_tile, dx_ = whole.backward(params, again(params, x_), dy_)
            dparams = jax.tree.map(lambda a, b: a + widen(b), dparams, of_tile)
            return dparams, lax.dynamic_update_slice_in_dim(dx, dx_, start, -2)

        if is_one(x):
            return whole.backward(params, again(params, x), dy)
        trained = params._replace(key=None)
        zeros = jax.tree.map(lambda v: jnp.zeros_like(widen(v)), trained)
        dparams, dx = for_blocks(x.shape[-2], tile, add, (zeros, jnp.zeros_like(x)))
        return jax.tree.map(lambda a, v: cast(a, v.dtype), dparams, trained), dx

    def opened(params, cache, dy):
        assert whole.opened is not None
        return whole.opened(params, again(params, cache.x), dy)

    return Layer(whole.init, forward, backward, whole.name, held=whole.held, decoding=each_position, opened=opened)


@called_as(mlp_block)
def reference(params: MlpBlockParams, x: Array, activation, gated, norm, eps, dropout, **_) -> Array:
    n = x if params.norm is None else naive_norm(x, *params.norm, eps, norm)
    z = naive_affine(params.W_in, params.b_in, n)
    g = naive_activation(activation)
    if gated:
        u, t = jnp.split(z, 2, -1)
        a = u * g(t)
    else:
        a = g(z)
    if dropout:
        assert params.key is not None
        a = a * naive_kept(params.key, dropout, a.shape, a.dtype, from_the_end=True)
    return naive_affine(params.W_out, params.b_out, a)


_EPS = Interval(1e-6, 0.1, 1e-6)
_NOT_EMPTY = ("d", "F")
PARAMS = specs(MlpBlockParams, specs(NormParams, Real("d"), None), Real("F d"), None, Real("d F"), None, Key())

RULE = Rule(
    "mlp_block",
    mlp_block,
    reference,
    cases=(
        Case(
            "swiglu",
            Real("B T d"),
            {"hidden": Size("F"), "eps": _EPS},
            _NOT_EMPTY,
            timed={"B": 1, "T": 512, "d": 256, "F": 512},
        ),
        Case(
            "gelu, layer norm, biases",
            Real("N d"),
            {"hidden": Size("F"), "activation": "gelu_erf", "gated": False, "norm": "layer", "bias": True, "eps": _EPS},
            _NOT_EMPTY,
        ),
        Case(
            "dropout",
            Real("N T d"),
            {"hidden": Size("F"), "activation": "tanh", "gated": False, "dropout": 0.25, "eps": _EPS},
            _NOT_EMPTY,
            params=PARAMS,
        ),
        Case(
            "tiles",
            Real("B T d"),
            {"hidden": Size("F"), "activation": "gelu", "bias": True, "eps": _EPS, "tile": 10},
            _NOT_EMPTY,
        ),
    ),
    cite="arXiv:1706.03762, section 3.3; gated: arXiv:2002.05202, equations 5 and 6; pre-norm: arXiv:2002.04745; "
    "tiles: arXiv:2506.13996",
    covers=("feed_forward_block", "swiglu mlp"),
)
