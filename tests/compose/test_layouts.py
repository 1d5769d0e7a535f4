"""channels_first and unbatched: PyTorch's layouts, and the same sweep as of the layer in its own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpref
from bpref.rules.convolution.convolution import ConvolutionParams
from bpref.rules.norm.group_norm import GroupNormParams
from tests.conftest import SEED
from tests.refusing import refusals
from tests.rules.beside_torch import assert_same

N, C, H, W = 3, 4, 5, 6
KEY = jax.random.key(SEED)


@pytest.fixture
def rng():
    return np.random.default_rng(SEED)


def block() -> bpref.Layer:
    """What PyTorch has under the same names; no two axes of what it gives are of one size."""
    return bpref.channels_first(
        bpref.convolution(4, (3, 3), padding=((1, 1), (1, 1))),
        bpref.group_norm(2),
        bpref.max_pool((2, 2), ceil=True),
        bpref.resize(7, 2),
    )


def of_torch(params, x):
    F = pytest.importorskip("torch", reason="PyTorch is not installed").nn.functional
    of_convolution, of_norm, _, _ = params
    z = F.conv2d(x, of_convolution.W.movedim(-1, 1), of_convolution.b, padding=1)
    z = F.group_norm(z if x.ndim == 4 else z[None], 2, of_norm.scale, of_norm.shift, eps=1e-5)
    z = F.interpolate(F.max_pool2d(z, 2, ceil_mode=True), (7, 2), mode="bilinear", align_corners=False)
    return z if x.ndim == 4 else z[0]


@pytest.mark.parametrize("is_batched", [True, False], ids=["N C H W", "C H W"])
def test_they_are_torchs_layers_on_torchs_own_arrays(rng, is_batched):
    layer = block() if is_batched else bpref.unbatched(block())
    params = (
        ConvolutionParams(rng.normal(size=(4, 3, 3, C)), rng.normal(size=4)),
        GroupNormParams(rng.normal(size=4), rng.normal(size=4)),
        (),
        (),
    )
    assert_same(layer, of_torch, params, rng.normal(size=(N, C, H, W) if is_batched else (C, H, W)))


def test_a_signal_and_a_volume_and_the_places_of_the_largest(rng):
    """One spatial axis, three, and two outputs, of which one are integers."""
    F = pytest.importorskip("torch", reason="PyTorch is not installed").nn.functional
    for sizes in ((7,), (3, 4, 5)):
        pool = bpref.channels_first(bpref.max_pool((2,) * len(sizes), with_indices=True))
        twin = getattr(F, f"max_pool{len(sizes)}d")
        assert_same(pool, lambda p, x, f=twin: f(x, 2, return_indices=True), (), rng.normal(size=(N, C, *sizes)))


def network(around) -> bpref.Layer:
    """Layers with names, in a scan, with what drops; `around` is told what has channels."""
    turn = bpref.residual(bpref.convolution(C, (3, 3)), bpref.group_norm(2), bpref.tanh(), bpref.dropout(0.3))
    images = around(stem=bpref.convolution(C, (3, 3)), blocks=bpref.scan(bpref.remat(turn), 2))
    mean = bpref.global_pool()
    return bpref.serial(images=images, mean=mean if around is bpref.serial else around(mean))


SWEEPS = {
    "gradient": lambda f: f,
    "examples' norms": lambda f: bpref.map_leaves(bpref.per_example_norms, f),
    "updates": lambda f: bpref.map_leaves(bpref.update_in_backward(optax.sgd(0.1, momentum=0.9)), f),
    "dW afterwards": bpref.split_backward,
}


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_is_that_of_the_layers_in_their_own_layout(name, rng, standard_promotion):
    x = jnp.asarray(rng.normal(size=(N, H, W, C)), jnp.float32)

    def swept(layer, x):
        params = layer.init(KEY, x)
        y, dparams, dx = bpref.backpropagate(layer, params, x, jnp.ones((N, C)))
        return y, bpref.backward_params(params, dparams) if name == "dW afterwards" else dparams, dx

    y, dparams, dx = swept(SWEEPS[name](network(bpref.channels_first)), jnp.moveaxis(x, -1, 1))
    of_last = jax.tree.leaves(swept(SWEEPS[name](network(bpref.serial)), x))
    for got, expected in zip(jax.tree.leaves((y, dparams, jnp.moveaxis(dx, 1, -1))), of_last, strict=True):
        if not jnp.issubdtype(got.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)


def test_state_goes_through(rng):
    x = jnp.asarray(rng.normal(size=(N, C, H, W)), jnp.float32)
    plain, moved = (bpref.stateful(network(f)) for f in (bpref.serial, bpref.channels_first))
    x_last = jnp.moveaxis(x, 1, -1)
    params, state = bpref.begin(moved, KEY, x)
    assert jax.tree.structure(bpref.begin(plain, KEY, x_last)[1]) == jax.tree.structure(state)
    (y, after), cache = moved.forward(params, bpref.With(x, state))
    (y_plain, _), _ = plain.forward(params, bpref.With(x_last, state))
    np.testing.assert_allclose(y, y_plain, rtol=1e-6)
    assert moved.backward(params, cache, (jnp.ones_like(y), ()))[1].x.shape == x.shape
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_attention_of_one_sequence_reads_segments_as_a_batch_of_one(rng):
    x = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)
    layer = bpref.reading(bpref.multi_head_attention(2), bpref.Sequences, "segments")
    one, data = bpref.unbatched(layer), {"segments": jnp.asarray([[0, 0, 1, 1, 1]])}
    params, state = bpref.begin(one, KEY, bpref.With(x, (), data))
    y, dparams, dx = bpref.backpropagate(one, params, bpref.With(x, state, data), x)
    of_batch = bpref.backpropagate(layer, params, bpref.With(x[None], state, data), x[None])
    np.testing.assert_array_equal(y[0], of_batch[0][0][0])
    np.testing.assert_array_equal(dx.x, of_batch[2].x[0])
    jax.tree.map(np.testing.assert_array_equal, dparams, of_batch[1])


def test_an_output_that_is_not_used_has_no_cotangent():
    x = jnp.ones((N, C, H, W))
    two = bpref.channels_first(bpref.fan_out(bpref.convolution(2), bpref.tanh()))
    params = two.init(KEY, x)
    (dparams, _), dx = two.backward(params, two.forward(params, x)[1], (None, x))
    assert float(jnp.abs(dparams.W).max()) == 0.0
    assert dx.shape == x.shape
    assert two.backward(params, two.forward(params, x)[1], None)[1] is None


test_what_is_refused = refusals(
    {
        "channels_first: x has shape (3,), expected (N, C, *spatial)": (
            lambda: bpref.channels_first(bpref.tanh()).forward((), jnp.ones(3))
        ),
        "unbatched: reduce_sum gives float32[], expected (1, ...)": (
            lambda: bpref.unbatched(bpref.reduce_sum()).forward((), jnp.ones(3))
        ),
    }
)
