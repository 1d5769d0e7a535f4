"""ssim: how little two images are alike in brightness, contrast and structure, window by window.

The mean is that of all terms, one for each example: what `reduction="none"` gives.

Forward, for images x and y of shape (N, H, W, C), each channel for itself, with G the mean under a Gaussian window of
K x K pixels, L the largest difference there can be, c_1 = (k_1 L)^2 and c_2 = (k_2 L)^2:

    mu = G x,   nu = G y,   S_xy = G(x y) - mu nu,   S_xx and S_yy likewise               (N, P, Q, C)
    SSIM = (2 mu nu + c_1) (2 S_xy + c_2) / ((mu^2 + nu^2 + c_1) (S_xx + S_yy + c_2))
    J    = 1/N sum_n (1 - mean SSIM_n)                                    J: ()

With d = x - y and s = x + y the two factors are 1 less something that is 0 where the images are alike:

    m = G d,   t = G s,   V = G d^2 - m^2,   U = G s^2 - t^2              (N, P, Q, C)
    A = (m^2 + t^2) / 2 + c_1,   B = (U + V) / 2 + c_2
    a = m^2 / A,   b = V / B,   1 - SSIM = a + b - a b

Differential:

    delta (1 - SSIM) = (1 - b) delta a + (1 - a) delta b
    delta a = ((2 - a) m delta m - a t delta t) / A
    delta b = ((1 - b / 2) delta V - b / 2 delta U) / B
    delta V = G(2 d delta d) - 2 m delta m                                delta U likewise of s and t

The sweep starts with dJ. With p = (1 - b) / A, q = (1 - a) / B, M = P Q C windows an example, G^T the adjoint of G,
and g_n = dJ / N, or another `reduction`'s (`bpref.formulas.loss.terms`):

    dd = g_n / M (G^T(m (p (2 - a) - 2 q (1 - b / 2))) + 2 d G^T(q (1 - b / 2)))        (N, H, W, C)
    ds = g_n / M (G^T(t (q b - p a)) - 2 s G^T(q b / 2))
    dx = ds + dd,   dy = ds - dd

Cached: what g multiplies in dx and dy: two images, where the maps that they are made of are six.

Numerical care: 1 - SSIM as the textbook has it loses all digits where the images are alike; a and b cancel nowhere but
in V and U, whose squares are summed in float32 at least. The window is separable: 2 K terms a pixel, and not K^2.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_choice, require_positive, require_size
from bpref.dtypes import cast, widen
from bpref.formulas.convolution.correlate import Slide, correlate, correlate_dx
from bpref.formulas.convolution.windows import as_windows, place
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Interval, Real, Rule, called_as

PADDINGS = ("valid", "same")


class TwoImages(NamedTuple):
    prediction: Float[Array, "N H W C>0"]
    target: Float[Array, "N H W C"]


class SsimCache(NamedTuple):
    slope: Float[Array, "N H W C"]
    target_slope: Float[Array, "N H W C"]


def ssim(
    window: int = 11,
    sigma: float = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "valid",
    reduction: str = "mean",
) -> Layer[tuple[()], tuple[Array, Array], Reals, SsimCache]:
    """J = mean over the examples of 1 - SSIM, the structural similarity of two images.

    Args:
      window: K, the pixels of the Gaussian window each way.
      sigma: its standard deviation, in pixels.
      data_range: L, the largest value less the smallest that a pixel may have: 1, or 255.
      k1, k2: the shares of L that keep the quotients finite.
      padding: "valid", windows that lie inside the image, as the paper has it, or "same", one for each pixel, with
        zeros outside, as in Gaussian splatting.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(prediction, target)`, both `(N, H, W, C)`, and y the scalar J, or the terms (N,), in
      at least float32. Both have a cotangent.

    Raises:
      ValueError: an argument is out of its range; the two differ in shape, have no channels, or are smaller than the
        window; a mean is over no examples.
      TypeError: x is no pair; the images are not floating-point, or have two dtypes.
    """
    who = "ssim"
    K = require_size(who, "window", window)
    sigma = require_positive(who, "sigma", sigma)
    L = require_positive(who, "data_range", data_range)
    c_1, c_2 = (require_positive(who, "k1", k1) * L) ** 2, (require_positive(who, "k2", k2) * L) ** 2
    windows = as_windows(who, (K, K), 1, 1, require_choice(who, "padding", padding, PADDINGS))
    J_of = require_reduction(who, reduction)
    weights = np.exp(-((np.arange(K) - (K - 1) / 2) ** 2) / (2 * sigma**2))
    weights /= weights.sum()

    def forward(params, pair: TwoImages):
        pads = place(who, windows, pair.prediction)
        x, y = map(widen, pair)
        d, s = x - y, x + y
        m, t, D, S = (blurred(v, pads) for v in (d, s, d * d, s * s))
        V, U = D - m * m, S - t * t
        A, B = (m * m + t * t) / 2 + c_1, (U + V) / 2 + c_2
        a, b = m * m / A, V / B
        J = J_of.of(jnp.mean(a + b - a * b, (1, 2, 3)))
        p, q = (1 - b) / A, (1 - a) / B
        of_V, of_U = q * (1 - b / 2), q * (b / 2)
        per = 1 / math.prod(V.shape[1:])
        dd, ds = (
            per * (spread(first, x.shape, pads) + 2 * v * spread(second, x.shape, pads))
            for v, first, second in ((d, m * (p * (2 - a) - 2 * of_V), of_V), (s, t * (2 * of_U - p * a), -of_U))
        )
        return J, SsimCache(cast(ds + dd, pair.prediction.dtype), cast(ds - dd, pair.target.dtype))

    def backward(params, cache, dJ):
        return (), J_of.scaled_each(dJ, cache, below=3)

    def passes(v, pads):
        """The window down and the one across: weights and how they slide."""
        C = v.shape[-1]
        g = jnp.asarray(weights, v.dtype)
        none = (0, 0)
        for shape, pad in (((C, K, 1, 1), (pads[0], none)), ((C, 1, K, 1), (none, pads[1]))):
            yield jnp.broadcast_to(g.reshape(1, *shape[1:]), shape), Slide((1, 1), (1, 1), pad, C)

    def blurred(v, pads):
        """G v."""
        for W, slide in passes(v, pads):
            v = correlate(v, W, slide)
        return v

    def spread(v, shape, pads):
        """G^T v, of the images' shape."""
        (down, across), (_, H, W, _) = passes(v, pads), shape
        return correlate_dx(correlate_dx(v, across[0], (v.shape[1], W), across[1]), down[0], (H, W), down[1])

    return Layer(no_params, forward, backward, who)


@called_as(ssim)
def reference(
    params: tuple[()], pair: tuple[Array, Array], window, sigma, data_range, k1, k2, padding, reduction
) -> Array:
    x, y = pair
    if padding == "same":
        around = ((0, 0), ((window - 1) // 2, window // 2), ((window - 1) // 2, window // 2), (0, 0))
        x, y = jnp.pad(x, around), jnp.pad(y, around)
    rows, columns = x.shape[1] - window + 1, x.shape[2] - window + 1
    g = [math.exp(-((i - (window - 1) / 2) ** 2) / (2 * sigma**2)) for i in range(window)]

    def mean(v):
        terms = [g[i] * g[j] * v[:, i : i + rows, j : j + columns] for i in range(window) for j in range(window)]
        return sum(terms[1:], terms[0]) / sum(g) ** 2

    mu, nu = mean(x), mean(y)
    c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2
    alike = (2 * mu * nu + c1) * (2 * (mean(x * y) - mu * nu) + c2)
    most = (mu**2 + nu**2 + c1) * (mean(x * x) - mu**2 + mean(y * y) - nu**2 + c2)
    return naive_reduction(1 - jnp.mean(alike / most, (1, 2, 3)), reduction)


_X = (Real("N H W C", 0.0, 1.0), Real("N H W C", 0.0, 1.0))

RULE = Rule(
    "ssim",
    ssim,
    reference,
    cases=(
        Case(
            "windows inside",
            _X,
            {"window": 3, "sigma": Interval(0.5, 2.0, 1.5)},
            never_empty=("N", "C"),
            least={"H": 3, "W": 3},
            timed={"N": 4, "H": 128, "W": 128, "C": 3},
        ),
        Case(
            "a window for each pixel, no reduction",
            _X,
            {"window": 4, "data_range": 2.0, "k1": 0.1, "k2": 0.2, "padding": "same", "reduction": "none"},
            fixed={"H": 4, "W": 5, "C": 2},
        ),
    ),
    cite="Wang et al., 'Image quality assessment: from error visibility to structural similarity' (2004), "
    "equations 13 to 17",
    covers=("structural similarity", "dssim", "d-ssim"),
)
