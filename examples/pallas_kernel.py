# %% [markdown]
# # Validate a Pallas kernel
#
# A kernel's forward and backward are two programs that nothing but a test holds together. This one adds a bias and
# takes `silu`, a block of rows at a time. On a CPU it is interpreted; on an accelerator the same call runs it as it is.

# %%
from functools import partial

import jax
import numpy as np
from jax.experimental import pallas as pl

import bpref

ROWS = 8
INTERPRET = jax.default_backend() == "cpu"


def silu_kernel(x_ref, b_ref, y_ref):
    z = x_ref[...] + b_ref[...]
    y_ref[...] = z * jax.nn.sigmoid(z)


def backward_kernel(x_ref, b_ref, dy_ref, dx_ref, db_ref):
    s = jax.nn.sigmoid(x_ref[...] + b_ref[...])
    z = x_ref[...] + b_ref[...]
    dz = dy_ref[...] * s * (1 + z * (1 - s))
    dx_ref[...] = dz
    db_ref[...] = dz.sum(0, keepdims=True)  # of this block; the blocks' sums are added up outside


def rows(x):
    return pl.BlockSpec((ROWS, x.shape[1]), lambda i: (i, 0))


def one_row(x):
    return pl.BlockSpec((1, x.shape[1]), lambda i: (0, 0))


def silu(x, b):
    call = pl.pallas_call(
        silu_kernel,
        grid=(len(x) // ROWS,),
        in_specs=[rows(x), one_row(x)],
        out_specs=rows(x),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        interpret=INTERPRET,
    )
    return call(x, b[None])


def silu_backward(x, b, dy):
    blocks = len(x) // ROWS
    call = pl.pallas_call(
        backward_kernel,
        grid=(blocks,),
        in_specs=[rows(x), one_row(x), rows(x)],
        out_specs=[rows(x), pl.BlockSpec((1, x.shape[1]), lambda i: (i, 0))],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct((blocks, x.shape[1]), x.dtype),
        ],
        interpret=INTERPRET,
    )
    return call(x, b[None], dy)


def forward(x, b):
    return silu(x, b), (x, b)


def backward(kept, dy):
    x, b = kept
    dx, db = silu_backward(x, b, dy)
    return dx, db[0]


bias_silu = jax.custom_vjp(silu)
bias_silu.defvjp(forward, backward)

# %% [markdown]
# The reference is what the kernel is meant to compute, in plain JAX. It is differentiated in float64:


# %%
def naive(x, b):
    return jax.nn.silu(x + b)


x, b = jax.ShapeDtypeStruct((32, 16), np.float32), jax.ShapeDtypeStruct((16,), np.float32)
check = partial(bpref.check, reference=naive, key=1729)
print(check(bias_silu, x, b))

# %% [markdown]
# `y` and `x` are right, and as precise as autodiff. `b` is wrong in every value, by no factor: a sum that is not whole.
# The kernel leaves one row for each block, and `backward` takes the first.


# %%
def repaired(kept, dy):
    x, b = kept
    dx, db = silu_backward(x, b, dy)
    return dx, db.sum(0)


bias_silu.defvjp(forward, repaired)
report = check(bias_silu, x, b)
print(report)
assert report.ok

# %% [markdown]
# The last note is part of the verdict: interpreted on a CPU, the derivation and its indices were seen, and not what a
# device's compiler makes of them. On a TPU or GPU the same program tries that.
