"""The blocks: what they refuse, what exactly they keep, and the compositions of single layers that they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.rules.block.transformer_block import TransformerBlockParams
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate

X = jnp.ones((2, 5, 8))
IMAGES = jnp.ones((2, 4, 4, 6))


def init(layer, x):
    return layer.init(jax.random.key(0), x)


def forward(layer, of, x):
    return layer.forward(init(layer, of), x)


def forward_with(layer, **changed):
    params = init(layer, X)
    if "norm" in changed:
        changed["norm"] = params.norm._replace(**changed["norm"])
    return layer.forward(params._replace(**changed), X)


BAD_CALLS = {
    "attention_block: mask has shape (2, 3, 5, 5), expected (*b, N, T, T) with N = 2 heads, or 1": (
        lambda: forward(bpref.attention_block(2, rope=None), X, bpref.MaskedSequence(X, jnp.ones((2, 3, 5, 5), bool)))
    ),
    "mlp_block: there are dropout and a tile, expected one of the two": (
        lambda: bpref.mlp_block(8, dropout=0.5, tile=2)
    ),
    "transformer_block: tile is 0, expected a positive integer": lambda: bpref.transformer_block(2, 8, mlp_tile=0),
    "residual_convolution_block: x has 6 channels in its last axis, not a positive multiple of 4 groups": (
        lambda: init(bpref.residual_convolution_block(4), IMAGES)
    ),
    "residual_convolution_block: x has shape (2, 4, 6), expected 4 axes (N, H, W, C)": (
        lambda: init(bpref.residual_convolution_block(3), jnp.ones((2, 4, 6)))
    ),
    "residual_convolution_block: features is 4, not a multiple of 3 groups": (
        lambda: bpref.residual_convolution_block(3, features=4)
    ),
    "residual_convolution_block: features is 0, expected a positive integer": (
        lambda: bpref.residual_convolution_block(3, features=0)
    ),
    "residual_convolution_block: stride is (2,), expected a positive integer, or 2 of them": (
        lambda: bpref.residual_convolution_block(3, stride=(2,))
    ),
    "residual_convolution_block: groups is 0, expected a positive integer": lambda: bpref.residual_convolution_block(0),
    "attention_block: x has 8 features in its last axis, not a multiple of 3 heads": (
        lambda: init(bpref.attention_block(3), X)
    ),
    "transformer_block: x has 8 features, 1 for each of 8 heads; RoPE turns pairs": (
        lambda: init(bpref.transformer_block(8, 4), X)
    ),
    "transformer_block: kv_heads is 3, expected a divisor of heads 4": (
        lambda: bpref.transformer_block(4, 4, kv_heads=3)
    ),
    "reversible_block: heads is 0, expected a positive integer": lambda: bpref.reversible_block(0, 4),
    "attention_block: window is 0, expected an integer of at least 1, or a pair (left, right) of at least 0": (
        lambda: bpref.attention_block(2, window=0)
    ),
    "attention_block: block is 0, expected a positive integer": lambda: bpref.attention_block(2, block=0),
    "attention_block: rope is 0.0, expected a number above 1": lambda: bpref.attention_block(2, rope=0.0),
    "mlp_block: norm is 'batch', expected 'layer' or 'rms'": lambda: bpref.mlp_block(4, norm="batch"),
    "transformer_block: activation is 'swish', expected one of gelu, gelu_erf, identity, relu, sigmoid, silu, tanh": (
        lambda: bpref.transformer_block(2, 4, activation="swish")
    ),
    "mlp_block: hidden is 0, expected a positive integer": lambda: bpref.mlp_block(0),
}


test_bad_calls_are_refused = refusals(BAD_CALLS)


def assert_equal_sweeps(came, expected):
    for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


@pytest.fixture
def sequences():
    """x and dy, in float64."""
    with jax.enable_x64(True):
        yield np.random.default_rng(0).normal(size=(2, 2, 11, 8))


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_transformer_block_is_its_halves_in_residuals(sequences, norm):
    x, dy = map(jnp.asarray, sequences)
    block = bpref.transformer_block(4, 6, 2, norm=norm, window=3, bias=True, block=4)
    halves = bpref.serial(
        bpref.residual(bpref.attention_block(4, 2, norm=norm, window=3, bias=True, block=4)),
        bpref.residual(bpref.mlp_block(6, norm=norm, bias=True)),
    )
    params = init(block, x)
    (y, dparams, dx), of_halves = backpropagate(block, params, x, dy), backpropagate(halves, params[:2], x, dy)
    assert dparams.key is None
    assert_equal_sweeps((y, dparams[:2], dx), of_halves)


def test_an_mlp_block_is_a_norm_two_linear_layers_and_a_gate(sequences):
    x, dy = map(jnp.asarray, sequences)
    block = bpref.mlp_block(6, "gelu", norm="layer", bias=True, eps=1e-5)
    layers = bpref.serial(bpref.layer_norm(1e-5), bpref.linear(12), bpref.glu("gelu"), bpref.linear(8))
    p = init(block, x)
    of_norm = bpref.LayerNormParams(p.norm.scale, p.norm.shift)
    params = of_norm, bpref.LinearParams(p.W_in, p.b_in), (), bpref.LinearParams(p.W_out, p.b_out)
    assert_equal_sweeps(backpropagate(block, p, x, dy), backpropagate(layers, params, x, dy))


def test_the_halves_of_a_block_drop_by_one_key_and_an_mlp_block_drops_the_same(sequences):
    """In evaluation nothing is dropped."""
    x, dy = map(jnp.asarray, sequences)
    block = bpref.transformer_block(4, 6, dropout=0.25, mlp_dropout=0.5, block=4)
    halves = bpref.serial(
        bpref.residual(bpref.attention_block(4, dropout=0.25, block=4)), bpref.residual(bpref.mlp_block(6, dropout=0.5))
    )
    params = init(block, x)
    keyed = tuple(half._replace(key=params.key) for half in params[:2])
    (y, dparams, dx), of_halves = backpropagate(block, params, x, dy), backpropagate(halves, keyed, x, dy)
    assert_equal_sweeps((y, dparams[:2], dx), of_halves)
    plain, evaluated = bpref.transformer_block(4, 6, block=4), bpref.evaluation(block)
    without = params._replace(key=None)
    assert_equal_sweeps(backpropagate(evaluated, params, x, dy), backpropagate(plain, without, x, dy))


def test_a_residual_convolution_block_is_its_six_layers_in_a_residual(sequences):
    x, dy = map(jnp.asarray, sequences)
    block = bpref.residual_convolution_block(2, (3,))
    half = bpref.group_norm(2), bpref.relu(), bpref.convolution(8, (3,), bias=False)
    layers = bpref.residual(bpref.serial(*half, *half))
    p = init(block, x)
    norms = [bpref.GroupNormParams(*v) for v in ((p.scale1, p.shift1), (p.scale2, p.shift2))]
    kernels = [bpref.ConvolutionParams(W, None) for W in (p.W1, p.W2)]
    params = norms[0], (), kernels[0], norms[1], (), kernels[1]
    assert_equal_sweeps(backpropagate(block, p, x, dy), backpropagate(layers, params, x, dy))


@pytest.mark.parametrize(("features", "stride", "shape"), [(9, 1, (2, 4, 4, 9)), (None, (1, 3), (2, 4, 2, 6))])
def test_a_shortcut_of_its_own_is_there_where_the_shape_changes(features, stride, shape):
    """By stride in one axis or by features alone; with W2 = 0 the shortcut is all there is."""
    layer = bpref.residual_convolution_block(3, features=features, stride=stride)
    x = jax.random.normal(jax.random.key(1), IMAGES.shape)
    params = init(layer, IMAGES)
    y = layer.forward(params._replace(W2=0 * params.W2), x)[0]
    a1 = jax.nn.relu(bpref.group_norm(3).forward(bpref.GroupNormParams(params.scale1, params.shift1), x)[0])
    step = stride[1] if isinstance(stride, tuple) else stride
    assert y.shape == shape
    np.testing.assert_allclose(y, a1[:, :, ::step] @ params.S.T, rtol=1e-4, atol=1e-6)


def test_reversible_is_a_stack_of_reversible_blocks(sequences):
    x, dy = map(jnp.asarray, sequences)
    block = bpref.reversible_block(2, 6, block=4)
    stack = bpref.reversible(bpref.attention_block(2, block=4), bpref.mlp_block(6), 1)
    params = init(block, (x, dy))
    y, dparams, dx = backpropagate(stack, jax.tree.map(lambda v: v[None], tuple(params)), (x, dy), (dy, x))
    assert_equal_sweeps(backpropagate(block, params, (x, dy), (dy, x)), (y, jax.tree.map(lambda v: v[0], dparams), dx))


def test_positions_outside_of_the_window_and_later_ones_are_not_seen(sequences):
    x = jnp.asarray(sequences[0])
    layer = bpref.transformer_block(2, 6, window=3, block=4)
    params = init(layer, x)
    dy = jnp.zeros_like(x).at[:, 7].set(1.0)
    _, _, dx = backpropagate(layer, params, x, dy)
    assert [bool(jnp.any(dx[:, i] != 0)) for i in range(11)] == [i in (5, 6, 7) for i in range(11)]


def test_a_window_of_one_gives_back_the_values_and_no_gradient_to_queries_and_keys(sequences):
    """p = 1 whatever q and k are: W_qkv's first two thirds have a cotangent of 0."""
    x, dy = map(jnp.asarray, sequences)
    layer = bpref.attention_block(2, window=1, block=4)
    params = init(layer, x)
    y, dparams, _ = backpropagate(layer, params, x, dy)
    n = x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(y, n @ params.W_qkv[16:].T @ params.W_o.T, rtol=1e-12)
    np.testing.assert_allclose(dparams.W_qkv[:16], 0, atol=1e-14)


def shapes(cache):
    return [(v.shape, str(v.dtype)) for v in jax.tree.leaves(cache)]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_kept_is_what_is_named(dtype):
    """B 3, T 10, d 8, of 4 heads and 2 of keys and values, F 6; statistics are float32 in half precision as well."""
    name = str(jnp.dtype(dtype))
    x = jnp.ones((3, 10, 8), dtype)
    layer = bpref.transformer_block(4, 6, 2)
    _, cache = forward(layer, x, x)
    row, per_head = ((3, 10, 1), "float32"), ((3, 10, 4), "float32")
    of_heads, of_kv_heads = ((3, 10, 4, 2), name), ((3, 10, 2, 2), name)
    x_or_h, z = ((3, 10, 8), name), ((3, 10, 12), name)
    attention = [x_or_h, row, of_heads, of_kv_heads, of_kv_heads, of_heads, per_head, per_head]
    assert shapes(cache) == [*attention, x_or_h, row, z]


def test_a_reversible_block_keeps_its_output_alone():
    x = jax.random.normal(jax.random.key(1), (2, 3, 10, 8))
    y, cache = forward(bpref.reversible_block(2, 6), (x[0], x[1]), (x[0], x[1]))
    for kept, given in zip(jax.tree.leaves(cache), y, strict=True):
        np.testing.assert_array_equal(kept, given)


def test_in_half_precision_a_reversible_block_keeps_its_output_as_it_was_before_it_was_rounded():
    x = jax.random.normal(jax.random.key(1), (2, 3, 10, 8), jnp.bfloat16)
    y, cache = forward(bpref.reversible_block(2, 6), (x[0], x[1]), (x[0], x[1]))
    assert shapes(cache) == [((3, 10, 8), "float32")] * 2
    for kept, given in zip(jax.tree.leaves(cache), y, strict=True):
        np.testing.assert_array_equal(kept.astype(jnp.bfloat16), given)


def test_the_params_of_a_block_are_those_of_its_halves():
    params = init(bpref.transformer_block(2, 6), X)
    assert isinstance(params, TransformerBlockParams)
    assert jax.tree.map(jnp.shape, params) == (
        (((8,), None), (24, 8), None, (8, 8), None, None),
        (((8,), None), (12, 8), None, (8, 6), None, None),
        None,
    )


def test_by_tiles_an_mlp_takes_less_memory_where_its_hidden_features_are_made_again_anyway():
    x = jax.ShapeDtypeStruct((512, 16), jnp.float32)

    def temp(tile):
        block = bpref.scan(bpref.remat(bpref.residual(bpref.mlp_block(256, tile=tile))), 4)
        params = jax.eval_shape(block.init, jax.random.key(0), x)
        swept = jax.jit(lambda p, x: bpref.backpropagate(block, p, x, x)[1:])
        return swept.lower(params, x).compile().memory_analysis().temp_size_in_bytes

    assert temp(64) < 0.5 * temp(None)
