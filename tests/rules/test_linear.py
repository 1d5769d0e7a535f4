"""The linear layers and the tables: what they say to a call that does not fit, where they start, numbers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.rules.linear.linear import LinearParams
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate

pytestmark = pytest.mark.quick

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("x", "came"), [([1.0], "a list"), (1.0, "a float"), (None, "None"), (1, "an int"), ((), "a tuple")]
)
def test_what_is_no_array_is_refused(x, came):
    for layer in (bpref.relu(), bpref.softmax(), bpref.fft()):
        with pytest.raises(TypeError) as refused:
            layer.forward((), x)
        assert str(refused.value) == f"{layer.name}: x is {came}, expected an array"


@pytest.mark.parametrize("maker", [bpref.tanh, bpref.relu, bpref.gelu])
def test_an_activation_refuses_integers(maker):
    with pytest.raises(TypeError, match="x has dtype int32, expected a floating-point dtype such as float32"):
        maker().forward((), jnp.ones(3, jnp.int32))


def test_initial_weights_have_variance_one_over_d_and_no_bias():
    W, b = bpref.linear(400).init(KEY, jax.ShapeDtypeStruct((1, 300), jnp.float32))
    assert float(jnp.var(W)) == pytest.approx(1 / 300, rel=0.02)
    assert float(jnp.abs(W).max()) <= (3 / 300) ** 0.5
    np.testing.assert_array_equal(b, 0)


def test_a_bfloat16_product_accumulates_in_float32():
    """512 ones: a bfloat16 running sum would stop at 256."""
    x = jnp.ones((1, 512), jnp.bfloat16)
    layer = bpref.linear(1, bias=False)
    W = layer.init(KEY, x)
    y, _ = layer.forward(W._replace(W=jnp.ones((1, 512), jnp.bfloat16)), x)
    assert float(y[0, 0]) == 512
    dW = layer.backward(W, layer.forward(W, jnp.ones((512, 512), jnp.bfloat16))[1], jnp.ones((512, 1), jnp.bfloat16))[0]
    assert float(dW.W[0, 0]) == 512


X, Y = jnp.ones((2, 4)), jnp.ones((2, 3))
IDS = jnp.array([[0, 1, 2], [2, 2, 0]])
HALF = jnp.bfloat16


def called(layer, init_x, x):
    """The forward of `x` with the parameters for `init_x`."""
    return layer.forward(layer.init(KEY, init_x), x)


def changed(layer, init_x, x, **params):
    """The forward of `x` with some parameters of other shapes."""
    return layer.forward(layer.init(KEY, init_x)._replace(**params), x)


BAD_CALLS = {
    "TypeError: linear: b is a float, expected an array": (
        lambda: bpref.linear(3).forward(LinearParams(jnp.ones((3, 2)), 1.0), jnp.ones((5, 2)))
    ),
    "linear: features is 0, expected a positive integer": lambda: bpref.linear(0),
    "linear: features is 0.5, expected a positive integer": lambda: bpref.linear(0.5),
    "bilinear: features is 0, expected a positive integer": lambda: bpref.bilinear(0),
    "low_rank_linear: rank is 0, expected a positive integer": lambda: bpref.low_rank_linear(5, rank=0),
    "TypeError: embedding: x has dtype float32, expected an integer dtype such as int32": (
        lambda: called(bpref.embedding(3, 4), IDS, X)
    ),
    "embedding: vocabulary is 0, expected a positive integer": lambda: bpref.embedding(0, 4),
    "embedding: padding is 3, expected an id from 0 to 2": lambda: bpref.embedding(3, 4, padding=3),
    "embedding_bag: x is a scalar, expected bags of ids (..., T)": (
        lambda: called(bpref.embedding_bag(3, 4), IDS, IDS[0, 0])
    ),
    "embedding_bag: features is 0, expected a positive integer": lambda: bpref.embedding_bag(3, 0),
    "embedding_bag: mean and maximum are True, expected one of them at most": (
        lambda: bpref.embedding_bag(3, 4, mean=True, maximum=True)
    ),
    "embedding_bag: x has weights, which are those of a sum, not of a mean or a maximum": (
        lambda: called(bpref.embedding_bag(3, 4, mean=True), IDS, (IDS, jnp.ones(IDS.shape)))
    ),
    f"embedding_bag: weights has shape (1,), expected {IDS.shape}, that of the ids": (
        lambda: called(bpref.embedding_bag(3, 4), IDS, (IDS, jnp.ones(1)))
    ),
    "TypeError: embedding_bag: weights has dtype bfloat16, W has float32; cast one to the other's": (
        lambda: called(bpref.embedding_bag(3, 4), IDS, (IDS, jnp.ones(IDS.shape, jnp.bfloat16)))
    ),
    "TypeError: embedding_bag: x is an array, expected a tuple (ids, offsets, [weights]), the bags being packed": (
        lambda: called(bpref.embedding_bag(3, 4, packed=True), IDS, IDS[0])
    ),
    "embedding_bag: ids has shape (2, 3), expected (M,), the bags being packed": (
        lambda: called(bpref.embedding_bag(3, 4, packed=True), IDS, (IDS, IDS[0]))
    ),
    "TypeError: embedding_bag: offsets has dtype float32, expected an integer dtype such as int32": (
        lambda: called(bpref.embedding_bag(3, 4, packed=True), IDS, (IDS[0], X[0]))
    ),
    "tied_embedding: linear gives shape (2, 3, 5), W expects (..., 4) (W: (3, 4))": (
        lambda: called(bpref.tied_embedding(3, 4, bpref.linear(5)), IDS, IDS)
    ),
    "TypeError: tied_embedding: x has dtype float32, expected an integer dtype such as int32": (
        lambda: called(bpref.tied_embedding(3, 4, bpref.tanh()), IDS, X)
    ),
    "einsum: the equation is 'ij->ii', the index 'i' stands twice in the output": lambda: bpref.einsum("ij->ii"),
    "einsum: the equation is 'ij,jk->il', the index 'l' of the output stands in no operand": (
        lambda: bpref.einsum("ij,jk->il")
    ),
    "einsum: the equation is 'ij,jk->...ik', the '...' of the output stands in no operand": (
        lambda: bpref.einsum("ij,jk->...ik")
    ),
    "einsum: the equation is 'i1,1k->ik', expected letters and at most one '...' in 'i1'": (
        lambda: bpref.einsum("i1,1k->ik")
    ),
    "einsum 'ij,jk->ik': 'j' is 4 in x[0] (2, 4), 2 in x[1] (2, 3)": (
        lambda: bpref.einsum("ij,jk->ik").forward((), (X, Y))
    ),
    "einsum 'ii': 'i' is 2 in x (2, 4), 4 in x (2, 4)": lambda: bpref.einsum("ii").forward((), X),
    "einsum '...i,...j->...ij': an axis of '...' is 2 in x[0] (2, 4), 1 in x[1] (1, 3)": (
        lambda: bpref.einsum("...i,...j->...ij").forward((), (X, jnp.ones((1, 3))))
    ),
    "einsum 'ij,...jk->...ik': x[1] has shape (4,), expected at least 2 axes for '...jk'": (
        lambda: bpref.einsum("ij,...jk->...ik").forward((), (X, jnp.ones(4)))
    ),
    "einsum 'i,jk->ik': x[0] has shape (2, 4), expected 1 axis for 'i'": (
        lambda: bpref.einsum("i,jk->ik").forward((), (X, Y))
    ),
    "TypeError: einsum: x is a tuple of 2, expected a tuple (x[0], x[1], x[2])": (
        lambda: bpref.einsum("ij,jk,kl").forward((), (X, Y))
    ),
    "TypeError: einsum: x[1] has dtype bfloat16, x[0] has float32; cast one to the other's": (
        lambda: bpref.einsum("ij,ij->").forward((), (X, X.astype(jnp.bfloat16)))
    ),
}


test_wrong_calls_are_refused = refusals(BAD_CALLS)


def normal(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def test_bilinear_by_hand():
    """x = (1, 2), y = (3, 4, 5), W_0 of ones and W_1 with a single 2 at (1, 2): 3 * 12 and 2 * 2 * 5."""
    W = jnp.stack([jnp.ones((2, 3)), jnp.zeros((2, 3)).at[1, 2].set(2.0)])
    layer = bpref.bilinear(2, bias=False)
    x = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0, 5.0])
    params = layer.init(KEY, x)._replace(W=W)
    z, dparams, (dx, dy) = backpropagate(layer, params, x, jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(z, [36, 20])
    np.testing.assert_array_equal(dx, [0, 10])
    np.testing.assert_array_equal(dy, [0, 0, 4])
    np.testing.assert_array_equal(dparams.W[0], 0)
    np.testing.assert_array_equal(dparams.W[1], [[3, 4, 5], [6, 8, 10]])


def test_a_low_rank_adaptation_starts_as_the_frozen_layer():
    layer, x = bpref.low_rank_linear(5, rank=2), normal(6, 4)
    params = layer.init(KEY, x)
    y, dparams, _ = backpropagate(layer, params, x, jnp.ones((6, 5)))
    np.testing.assert_array_equal(y, bpref.linear(5).forward(bpref.LinearParams(params.W, params.b), x)[0])
    assert dparams.W is None
    assert dparams.b is None
    assert np.abs(dparams.U).max() > 0
    np.testing.assert_array_equal(dparams.V, 0)
    assert bpref.trainable(layer, params, x) == (False, False, True, True)


def test_weight_norm_starts_at_its_direction_and_moves_orthogonally_to_it():
    layer, x = bpref.weight_norm_linear(5), normal(6, 4)
    params = layer.init(KEY, x)
    y, dparams, _ = backpropagate(layer, params, x, normal(6, 5))
    np.testing.assert_allclose(y, x @ params.v.T, rtol=1e-5, atol=1e-6)
    terms = dparams.v * params.v
    assert np.all(np.abs(np.sum(terms, -1)) <= 8 * np.finfo(np.float32).eps * np.sum(np.abs(terms), -1))


def test_a_row_without_direction_is_not_a_number():
    layer = bpref.weight_norm_linear(2)
    params = layer.init(KEY, X)
    params = params._replace(v=params.v.at[0].set(0.0))
    y = layer.forward(params, X)[0]
    assert np.isnan(y[:, 0]).all()
    assert np.isfinite(y[:, 1]).all()


def test_power_iteration_finds_the_largest_singular_value():
    layer = bpref.spectral_norm_linear(30)
    params = layer.init(KEY, jax.ShapeDtypeStruct((1, 20), jnp.float32))
    largest = np.linalg.svd(params.W, compute_uv=False)[0]
    assert float(params.u @ params.W @ params.v) == pytest.approx(largest, rel=0.05)
    params = bpref.power_iteration(params, steps=500)
    assert float(params.u @ params.W @ params.v) == pytest.approx(largest, rel=1e-5)
    y = layer.forward(params, jnp.eye(20))[0]
    assert np.linalg.svd(y, compute_uv=False)[0] == pytest.approx(1, rel=1e-5)


def test_power_iteration_leaves_a_matrix_of_zeros_alone():
    params = bpref.spectral_norm_linear(3).init(KEY, X)
    after = bpref.power_iteration(params._replace(W=jnp.zeros((3, 4))))
    np.testing.assert_array_equal(after.u, 0)
    np.testing.assert_array_equal(after.v, 0)


def test_spectral_norm_does_not_see_the_scale_of_its_weight():
    layer, x = bpref.spectral_norm_linear(5), normal(6, 4)
    params = layer.init(KEY, x)
    y, dparams, _ = backpropagate(layer, params, x, normal(6, 5))
    np.testing.assert_allclose(layer.forward(params._replace(W=8 * params.W), x)[0], y, rtol=1e-6)
    assert float(jnp.sum(dparams.W * params.W)) == pytest.approx(0, abs=1e-5)
    assert dparams.u is None
    assert dparams.v is None
    assert bpref.trainable(layer, params, x) == (True, True, False, False)


def swept(layer, ids, dy):
    """y and dW of a table whose row i is (i, i)."""
    W = jnp.repeat(jnp.arange(4.0)[:, None], 2, 1)
    y, dparams, dx = backpropagate(layer, layer.init(KEY, ids)._replace(W=W), ids, dy)
    assert dx is None
    return np.asarray(y), np.asarray(dparams.W[:, 0])


def test_rows_of_repeated_ids_add_up_and_the_padding_row_stays():
    ids, dy = jnp.array([1, 3, 1, 0, 1]), jnp.repeat(2.0 ** jnp.arange(5.0)[:, None], 2, 1)
    y, dW = swept(bpref.embedding(4, 2), ids, dy)
    np.testing.assert_array_equal(y[:, 0], ids)
    np.testing.assert_array_equal(dW, [8, 1 + 4 + 16, 0, 2])
    y, dW = swept(bpref.embedding(4, 2, padding=1), ids, dy)
    np.testing.assert_array_equal(y[:, 0], ids)
    np.testing.assert_array_equal(dW, [8, 0, 0, 2])


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.int8])
def test_an_id_that_is_none_is_not_a_number_and_moves_no_row(dtype):
    ids = jnp.array([3, -1, 4, 100], dtype)
    y, dW = swept(bpref.embedding(4, 2), ids, jnp.ones((4, 2)))
    np.testing.assert_array_equal(y[:, 0], [3, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(dW, [0, 0, 0, 1])


def test_ids_may_be_of_a_dtype_that_cannot_count_the_rows():
    """256 rows, and uint8 ids: the number that marks padding as out of range is no uint8."""
    layer = bpref.embedding(256, 1, padding=0)
    ids = jnp.array([0, 255], jnp.uint8)
    _, dparams, _ = backpropagate(layer, layer.init(KEY, ids), ids, jnp.ones((2, 1)))
    np.testing.assert_array_equal(dparams.W[:, 0], np.eye(256)[255])


def test_a_frequent_id_of_half_precision_adds_up_in_float32():
    """512 ones: a bfloat16 running sum would stop at 256."""
    layer, ids = bpref.embedding(2, 1), jnp.zeros(512, jnp.int32)
    params = layer.init(KEY, ids)._replace(W=jnp.zeros((2, 1), HALF))
    _, dparams, _ = backpropagate(layer, params, ids, jnp.ones((512, 1), HALF))
    np.testing.assert_array_equal(dparams.W.astype(jnp.float32)[:, 0], [512, 0])


def test_bags_do_not_count_padding_and_empty_ones_are_zero():
    ids, dy = jnp.array([[3, 2, 0, 0], [0, 0, 0, 0], [1, 1, 1, 3]]), jnp.array([[1.0] * 2, [8.0] * 2, [4.0] * 2])
    y, dW = swept(bpref.embedding_bag(4, 2, mean=True, padding=0), ids, dy)
    np.testing.assert_array_equal(y[:, 0], [2.5, 0, 1.5])
    np.testing.assert_array_equal(dW, [0, 3, 0.5, 0.5 + 1])
    y, dW = swept(bpref.embedding_bag(4, 2, padding=0), ids, dy)
    np.testing.assert_array_equal(y[:, 0], [5, 0, 6])
    np.testing.assert_array_equal(dW, [0, 12, 1, 1 + 4])


def test_a_bag_with_an_id_that_is_none_is_not_a_number():
    y, dW = swept(bpref.embedding_bag(4, 2), jnp.array([[1, 4], [1, 2]]), jnp.ones((2, 2)))
    np.testing.assert_array_equal(y[:, 0], [np.nan, 3])
    np.testing.assert_array_equal(dW, [0, 2, 1, 0])


def test_a_tied_table_has_the_gradients_of_both_ends():
    """The same three layers one by one, each with a table of its own."""
    ids, table, dz = jnp.array([[0, 2, 2], [4, 1, 0]]), normal(5, 3), normal(2, 3, 5)
    tied = bpref.tied_embedding(5, 3, bpref.tanh())
    apart = bpref.serial(bpref.embedding(5, 3), bpref.tanh(), bpref.linear(5, bias=False))
    params = apart.init(KEY, ids)
    params = (params[0]._replace(W=table), params[1], params[2]._replace(W=table))
    z, dparams, _ = backpropagate(tied, tied.init(KEY, ids)._replace(W=table), ids, dz)
    z_apart, dapart, _ = backpropagate(apart, params, ids, dz)
    np.testing.assert_allclose(z, z_apart, rtol=1e-6)
    np.testing.assert_allclose(dparams.W, dapart[0].W + dapart[2].W, rtol=1e-5, atol=1e-6)
    assert bpref.leaf_paths(tied) == ["tied_embedding"]


def test_an_ellipsis_in_both_operands_stands_for_the_same_axes():
    left, right, dy = normal(2, 3, 4), normal(2, 3, 5), normal(2, 4, 5, 3)
    layer = bpref.einsum("...a,...b->a...b")
    y, _, (dleft, _) = backpropagate(layer, (), (left, right), dy.transpose(1, 0, 3, 2))
    np.testing.assert_allclose(y, left.transpose(2, 0, 1)[..., None] * right[None], rtol=1e-6)
    np.testing.assert_allclose(dleft, np.einsum("zaby,zyb->zya", dy, right), rtol=1e-5, atol=1e-6)


def test_three_operands_are_multiplied_in_the_cheapest_order_and_the_cache_keeps_what_is_between():
    A, B, C = normal(50, 2), normal(2, 50), normal(50, 3)
    _, cache = bpref.einsum("ab,bc,cd->ad").forward((), (A, B, C))
    assert [v.shape for v in cache.factors] == [(50, 2), (2, 50), (50, 3), (2, 3)]
