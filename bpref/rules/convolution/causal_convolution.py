"""causal_convolution: a convolution along time that sees the present and the past, never the future.

Forward, with x (N, T, C), W (F, k, C/g), stride s and dilation d, and zeros before the first element:

    y_nif = sum_o sum_c x_n,j,c W_foc + b_f     where  j = s i - d (k - 1 - o)        (N, m, F)
    m = floor((T - 1) / s) + 1

The last offset, o = k - 1, is the present, o = 0 the farthest past: `convolution` with lo = d (k-1) zeros in front
and hi = 0 behind.

Differential: the one of `convolution`, and so are the adjoints, with that padding put in. In front of the dilated dy,
lo' = d (k-1) - lo is 0: with D_{s i} = dy_i and V_q = W_{k-1-q},

    dx_njc = sum_q sum_f D_n,j + d q,f V_fqc                                          (N, T, C)
    dW_foc = sum_n sum_i dy_nif x_n,s i - d (k-1-o),c                                 (F, k, C/g)
    db_f   = sum_n sum_i dy_nif                                                       (F,)

What looked at the past is looked at by the future: dx is the anti-causal convolution of dy, and no dy before j
takes part in dx_j.

Cached: x alone, as `convolution` does.

Numerical care: that of `convolution`; products accumulate in at least float32. A depthwise one (groups = C = F), as
state space models have it, is k multiplications and additions of whole arrays.
"""

import jax.numpy as jnp
from jax import Array, lax

from bpref.checks.hyperparameters import require_flags
from bpref.formulas.convolution.windows import as_windows
from bpref.formulas.decoder import decoder
from bpref.layer import Layer, Reals
from bpref.rule import Case, Real, Rule, Size, called_as
from bpref.rules.convolution.convolution import ConvolutionCache, ConvolutionParams, convolution_layer


def causal_convolution(
    features: int,
    window: int = 3,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = True,
    name: str = "",
) -> Layer[ConvolutionParams, Array, Reals, ConvolutionCache]:
    """y = x * W + b along time, where y at a time depends on x up to that time.

    Args:
      features: the number of outputs F, a multiple of `groups`.
      window: k, how many elements of x make one of y.
      stride, dilation: the step from window to window, and from element to element in one.
      groups: g, in which channels and outputs are shared out; C of them make a depthwise convolution.
      bias: whether there is a b.
      name: shown in error messages, as in `causal_convolution 'mixer'`.

    Returns:
      A layer with params `ConvolutionParams(W: (F, k, C/g), b: (F,) or None)`, x `(N, T, C)` and
      y `(N, ceil(T / stride), F)`. W is drawn uniformly with variance 1 over the number of its inputs (LeCun), b is
      zero.

    Raises:
      ValueError: an argument is out of its range; x is not (N, T, C) with at least one T; groups do not divide C;
        C is not what W expects.
      TypeError: x is not floating-point, or not of W's dtype.
    """
    who = f"causal_convolution '{name}'" if name else "causal_convolution"
    require_flags(who, bias=bias)
    windows = as_windows(who, (window,), stride, dilation, "valid")
    past = windows.reach[0] - 1
    layer = convolution_layer(who, features, windows._replace(padding=((past, 0),)), groups, bias)

    def decoding(leaf, length):
        if windows.stride != (1,):
            raise ValueError(f"{who}: stride is {stride}, expected 1: each position has an output of its own")
        of_all = convolution_layer(who, features, windows._replace(padding=((0, 0),)), groups, bias)

        def step(params, x, before):
            x = jnp.concatenate([before, x], 1)
            return of_all.forward(params, x)[0], x[:, x.shape[1] - past :]

        return decoder(leaf, lambda params, x: jnp.zeros((x.shape[0], past, x.shape[2]), x.dtype), step)

    return layer._replace(decoding=decoding)


@called_as(causal_convolution)
def reference(params: ConvolutionParams, x: Array, window, stride, dilation, groups, **_) -> Array:
    y = lax.conv_general_dilated(
        x,
        params.W,
        (stride,),
        [(dilation * (window - 1), 0)],
        rhs_dilation=(dilation,),
        dimension_numbers=("NTC", "OTI", "NTC"),
        feature_group_count=groups,
    )
    return y if params.b is None else y + jnp.broadcast_to(params.b, y.shape)


RULE = Rule(
    "causal_convolution",
    causal_convolution,
    reference,
    cases=(
        Case("dilated", Real("N T C"), {"features": Size("F"), "window": 2, "dilation": 4}, ("T", "C", "F")),
        Case(
            "depthwise",
            Real("N T C"),
            {"features": 32, "window": 4, "groups": 32},
            never_empty=("T",),
            fixed={"C": 32},
            timed={"N": 8, "T": 1024, "C": 32},
        ),
        Case("stride", Real("N T C"), {"features": Size("F"), "stride": 2, "bias": False}, ("T", "C", "F")),
    ),
    cite="van den Oord et al., 'WaveNet: a generative model for raw audio' (2016), arXiv:1609.03499, section 2.1",
    covers=("causal conv1d", "temporal convolution", "dilated causal convolution"),
)
