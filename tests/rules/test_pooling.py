"""Pooling: what it says to a call that does not fit, numbers worked by hand, and ties, NaN and -inf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate

pytestmark = pytest.mark.quick

IMAGE = jnp.ones((2, 5, 6, 4))
SERIES = jnp.ones((2, 5, 4))
NAN, INF = float("nan"), float("inf")

BAD_CALLS = {
    "max_pool: window is (), expected a tuple of 1 to 3 positive integers": lambda: bpref.max_pool(()),
    "average_pool: window is (2, 2, 2, 2), expected a tuple of 1 to 3 positive integers": (
        lambda: bpref.average_pool((2, 2, 2, 2))
    ),
    "max_pool: window is 2, expected a tuple of 1 to 3 positive integers": lambda: bpref.max_pool(2),
    "average_pool: window is (2, 0), expected a tuple of 1 to 3 positive integers": lambda: bpref.average_pool((2, 0)),
    "max_pool: stride is 0, expected a positive integer, or 2 of them": lambda: bpref.max_pool(stride=0),
    "average_pool: stride is (1, 1), expected a positive integer, or 1 of them": (
        lambda: bpref.average_pool((2,), stride=(1, 1))
    ),
    "max_pool: padding is ((1, 1), (-1, 0)), expected 'same', 'valid', a non-negative integer, or 2 of them or of "
    "pairs": (lambda: bpref.max_pool(padding=((1, 1), (-1, 0)))),
    "average_pool: padding is 'full', expected 'same', 'valid', a non-negative integer, or 1 of them or of pairs": (
        lambda: bpref.average_pool((3,), padding="full")
    ),
    "max_pool: padding is ((1, 1), (0, 2)), expected less than the window (2, 2)": (
        lambda: bpref.max_pool(padding=((1, 1), (0, 2))).forward((), IMAGE)
    ),
    "max_pool: padding is ((3, 0),), expected less than the (3,) that a window reaches over": (
        lambda: bpref.max_pool((2,), padding=((3, 0),), dilation=2).forward((), SERIES)
    ),
    "max_pool: a window sees nothing but padding along axis 1: x has 1 elements there, the dilation is 2": (
        lambda: bpref.max_pool((2,), 1, "same", dilation=2).forward((), SERIES[:, :1])
    ),
    "max_pool: dilation is (1, 0), expected a positive integer, or 2 of them": lambda: bpref.max_pool(dilation=(1, 0)),
    "average_pool: padding is ((1, 0),), expected less than the window (1,)": (
        lambda: bpref.average_pool((1,), padding=((1, 0),), count_padding=False).forward((), SERIES)
    ),
    "max_pool: the window reaches over 9 elements of axis 2, x has 6 there and 2 of padding": (
        lambda: bpref.max_pool((2, 9), padding=((1, 1), (1, 1))).forward((), IMAGE)
    ),
    "average_pool: the window reaches over 6 elements of axis 1, x has 5 there and 0 of padding": (
        lambda: bpref.average_pool((6,)).forward((), SERIES)
    ),
    "max_pool: x has shape (2, 5, 4), expected 4 axes (N, H, W, C)": lambda: bpref.max_pool().forward((), SERIES),
    "average_pool: x has shape (2, 5, 6, 4), expected 3 axes (N, T, C)": (
        lambda: bpref.average_pool((2,)).forward((), IMAGE)
    ),
    "average_pool: divisor is 0, expected another number or None": lambda: bpref.average_pool(divisor=0),
    "average_pool: divisor is 'all', expected a finite number": lambda: bpref.average_pool(divisor="all"),
    "adaptive_pool: with_indices is True, which is for maxima; a mean has no place": (
        lambda: bpref.adaptive_pool(with_indices=True)
    ),
    "adaptive_pool: counts is (), expected a tuple of 1 to 3 positive integers": lambda: bpref.adaptive_pool(()),
    "adaptive_pool: counts is 7, expected a tuple of 1 to 3 positive integers": lambda: bpref.adaptive_pool(7),
    "adaptive_pool: counts is (7, 0), expected a tuple of 1 to 3 positive integers": (
        lambda: bpref.adaptive_pool((7, 0))
    ),
    "adaptive_pool: kind is 'mean', expected 'average' or 'max'": lambda: bpref.adaptive_pool(kind="mean"),
    "adaptive_pool: x has shape (2, 5, 6, 4), expected 5 axes (N, D, H, W, C)": (
        lambda: bpref.adaptive_pool((1, 1, 1)).forward((), IMAGE)
    ),
    "global_pool: kind is 'sum', expected 'average' or 'max'": lambda: bpref.global_pool("sum"),
}


test_wrong_calls_are_refused = refusals(BAD_CALLS)


def pooled(layer, x, dy, dtype=jnp.float32):
    """y and dx of one example with one channel, x and dy being nested lists over the spatial axes."""
    x, dy = (jnp.array(v, dtype)[None, ..., None] for v in (x, dy))
    dy = dy.reshape(jax.eval_shape(layer.forward, (), x)[0].shape)
    y, dparams, dx = backpropagate(layer, (), x, dy)
    assert dparams == ()
    assert y.dtype == dx.dtype == dtype
    return y[0, ..., 0], dx[0, ..., 0]


BY_HAND = {
    "max": (bpref.max_pool((2,)), [1, 3, 2, 3, 5, 4], [1, 10, 100], [3, 3, 5], [0, 1, 0, 10, 100, 0]),
    "max, overlapping": (bpref.max_pool((3,), 1), [1, 5, 2, 4], [1, 10], [5, 5], [0, 11, 0, 0]),
    "max, elements left over": (bpref.max_pool((2,), 3), [1, 2, 9, 4, 3, 9], [1, 10], [2, 4], [0, 1, 0, 10, 0, 0]),
    "max, padding is below all": (bpref.max_pool((2,), padding=((1, 1),)), [-3, -2], [1, 10], [-3, -2], [1, 10]),
    "max, same pads more behind": (
        bpref.max_pool((2,), 1, "same"),
        [-1, -3, -2],
        [1, 10, 100],
        [-1, -2, -2],
        [1, 0, 110],
    ),
    "max, windows of 1": (bpref.max_pool((1,), 2), [1, 2, 3], [1, 10], [1, 3], [1, 0, 10]),
    "max, 2-D": (
        bpref.max_pool((2, 2), 1),
        [[1, 2, 3], [4, 9, 5], [6, 7, 8]],
        [[1, 10], [100, 1000]],
        [[9, 9], [9, 9]],
        [[0, 0, 0], [0, 1111, 0], [0, 0, 0]],
    ),
    "average": (bpref.average_pool((2,)), [1, 3, 2, 4, 9], [2, 20], [2, 3], [1, 1, 10, 10, 0]),
    "average, overlapping": (bpref.average_pool((2,), 1), [1, 3, 5], [2, 20], [2, 4], [1, 11, 10]),
    "average, windows apart": (bpref.average_pool((2,), 3), [1, 3, 9, 5, 7], [2, 20], [2, 6], [1, 1, 0, 10, 10]),
    "average, padding counted": (
        bpref.average_pool((2,), padding=((1, 1),)),
        [2, 4, 6, 8],
        [1, 10, 100],
        [1, 5, 4],
        [0.5, 5, 5, 50],
    ),
    "average, padding not counted": (
        bpref.average_pool((2,), padding=((1, 1),), count_padding=False),
        [2, 4, 6, 8],
        [1, 10, 100],
        [2, 5, 8],
        [1, 5, 5, 100],
    ),
    "average, same, padding counted": (
        bpref.average_pool((2,), 1, "same"),
        [2, 4, 6],
        [2, 20, 200],
        [3, 5, 3],
        [1, 11, 110],
    ),
    "average, same, padding not counted": (
        bpref.average_pool((2,), 1, "same", count_padding=False),
        [2, 4, 6],
        [2, 20, 200],
        [3, 5, 6],
        [1, 11, 210],
    ),
    "average, 2-D, padding counted": (
        bpref.average_pool((2, 2), 1, ((1, 0), (1, 0))),
        [[4, 8], [12, 16]],
        [[1, 10], [100, 1000]],
        [[1, 3], [4, 10]],
        [[277.75, 252.5], [275, 250]],
    ),
    "average, 2-D, padding not counted": (
        bpref.average_pool((2, 2), 1, ((1, 0), (1, 0)), count_padding=False),
        [[4, 8], [12, 16]],
        [[1, 10], [100, 1000]],
        [[4, 6], [8, 10]],
        [[306, 255], [300, 250]],
    ),
    "adaptive average, apart": (bpref.adaptive_pool((2,)), [1, 3, 5, 7], [2, 20], [2, 6], [1, 1, 10, 10]),
    "adaptive average, sharing": (bpref.adaptive_pool((2,)), [3, 6, 9, 12, 15], [3, 30], [6, 12], [1, 1, 11, 10, 10]),
    "adaptive average, windows of two sizes": (
        bpref.adaptive_pool((3,)),
        [2, 4, 6, 8],
        [2, 20, 200],
        [3, 5, 7],
        [1, 11, 110, 100],
    ),
    "adaptive average, more windows": (bpref.adaptive_pool((3,)), [2, 4], [1, 10, 100], [2, 3, 4], [6, 105]),
    "adaptive average, twice as many": (bpref.adaptive_pool((4,)), [2, 4], [1, 2, 3, 4], [2, 2, 4, 4], [3, 7]),
    "adaptive average, 2-D": (
        bpref.adaptive_pool((1, 2)),
        [[1, 2, 3], [5, 6, 7]],
        [4, 40],
        [[3.5, 4.5]],
        [[1, 11, 10], [1, 11, 10]],
    ),
    "adaptive max, apart": (bpref.adaptive_pool((2,), "max"), [1, 3, 7, 5], [2, 20], [3, 7], [0, 2, 20, 0]),
    "adaptive max, sharing": (bpref.adaptive_pool((2,), "max"), [1, 2, 9, 3, 4], [3, 30], [9, 9], [0, 0, 33, 0, 0]),
    "adaptive max, more windows": (bpref.adaptive_pool((3,), "max"), [2, 4], [1, 10, 100], [2, 4, 4], [1, 110]),
    "adaptive max, twice as many": (bpref.adaptive_pool((4,), "max"), [2, 4], [1, 2, 3, 4], [2, 2, 4, 4], [3, 7]),
    "global average": (bpref.global_pool(), [[1, 2], [3, 6]], 4, 3, [[1, 1], [1, 1]]),
    "global max": (bpref.global_pool("max"), [[1, 2], [6, 3]], 4, 6, [[0, 0], [4, 0]]),
}


@pytest.mark.parametrize(("layer", "x", "dy", "y", "dx"), BY_HAND.values(), ids=BY_HAND)
def test_by_hand(layer, x, dy, y, dx):
    ours, gradient = pooled(layer, x, dy)
    np.testing.assert_array_equal(ours, y)
    np.testing.assert_array_equal(gradient, dx)


def one_window(name, x):
    """The layer whose one window is all of x."""
    rank = np.ndim(x)
    return {
        "max_pool": bpref.max_pool(np.shape(x)),
        "adaptive_pool": bpref.adaptive_pool((1,) * rank, "max"),
        "global_pool": bpref.global_pool("max"),
    }[name]


FIRST_OF_THE_LARGEST = {
    "a tie": ([1, 7, 7], [0, 1, 0]),
    "zeros of both signs": ([-0.0, 0.0], [1, 0]),
    "the first row before the first column": ([[1, 5], [5, 1]], [[0, 1], [0, 0]]),
    "the first plane": ([[[1, 1], [1, 5]], [[5, 1], [1, 1]]], [[[0, 0], [0, 1]], [[0, 0], [0, 0]]]),
    "infinity": ([1, INF, INF], [0, 1, 0]),
    "nothing but -inf": ([-INF, -INF], [1, 0]),
    "-inf first": ([-INF, -3], [0, 1]),
    "NaN after infinity": ([INF, NAN, 1], [0, 1, 0]),
    "NaN first": ([NAN, 1, INF], [1, 0, 0]),
    "the first NaN": ([2, NAN, NAN], [0, 1, 0]),
    "the first row's NaN": ([[9, NAN], [NAN, 9]], [[0, 1], [0, 0]]),
}


@pytest.mark.parametrize("name", ["max_pool", "adaptive_pool", "global_pool"])
@pytest.mark.parametrize(("x", "dx"), FIRST_OF_THE_LARGEST.values(), ids=FIRST_OF_THE_LARGEST)
def test_the_first_of_the_largest_elements_gets_dy(name, x, dx):
    y, gradient = pooled(one_window(name, x), x, 1)
    np.testing.assert_array_equal(y.ravel(), [np.max(x)])
    np.testing.assert_array_equal(gradient, dx)


@pytest.mark.parametrize(
    ("pads", "dx"), [((1, 0), [0, 0]), ((0, 1), [1, 0]), ((1, 1), [0, 0])], ids=["front", "behind", "both"]
)
def test_minus_infinity_is_tied_with_the_padding_in_front_of_it(pads, dx):
    y, gradient = pooled(bpref.max_pool((2 + sum(pads),), padding=(pads,)), [-INF, -INF], 1)
    np.testing.assert_array_equal(y, [-INF])
    np.testing.assert_array_equal(gradient, dx)


def test_a_nan_is_seen_by_its_windows_alone():
    x, dy = [NAN, 1, 2, 4], [1, 10]
    for layer, y, dx in (
        (bpref.max_pool((2,)), [NAN, 4], [1, 0, 0, 10]),
        (bpref.average_pool((2,)), [NAN, 3], [0.5, 0.5, 5, 5]),
        (bpref.adaptive_pool((2,), "max"), [NAN, 4], [1, 0, 0, 10]),
        (bpref.adaptive_pool((2,)), [NAN, 3], [0.5, 0.5, 5, 5]),
    ):
        ours, gradient = pooled(layer, x, dy)
        np.testing.assert_array_equal(ours, y, layer.name)
        np.testing.assert_array_equal(gradient, dx, layer.name)


def test_half_precision_is_summed_in_float32():
    """256 + 1 is 256 in bfloat16, and 258 is itself."""
    for layer in (bpref.average_pool((3,)), bpref.adaptive_pool((1,)), bpref.global_pool()):
        y, _ = pooled(layer, [1, 256, 1], 3, jnp.bfloat16)
        assert float(y.ravel()[0]) == 86, layer.name
    _, dx = pooled(bpref.max_pool((3,), 1), [0, 0, 9, 0, 0], [1, 256, 1], jnp.bfloat16)
    np.testing.assert_array_equal(dx.astype(jnp.float32), [0, 0, 258, 0, 0])


def test_offsets_beyond_a_byte():
    """The largest element is the last of 257: its offset, 256, is 0 in 8 bits."""
    x = jnp.arange(257.0).reshape(1, 257, 1)
    for layer in (bpref.max_pool((257,)), bpref.adaptive_pool((1,), "max")):
        _, _, dx = backpropagate(layer, (), x)
        np.testing.assert_array_equal(jnp.flatnonzero(dx), [256])


BYTES_CACHED = {
    "max": (bpref.max_pool(), 4 * 3 + 2 * 3),
    "max, windows of 1 along one axis": (bpref.max_pool((1, 2)), 4 * 3),
    "average": (bpref.average_pool(), 0),
    "adaptive average": (bpref.adaptive_pool((2, 2)), 0),
    "adaptive max": (bpref.adaptive_pool((2, 3), "max"), 4 * 3 + 2 * 3),
    "adaptive max, as many windows as elements": (bpref.adaptive_pool((4, 6), "max"), 0),
    "global average": (bpref.global_pool(), 0),
    "global max": (bpref.global_pool("max"), 4),
}


@pytest.mark.parametrize(("layer", "expected"), BYTES_CACHED.values(), ids=BYTES_CACHED)
def test_bytes_cached_for_4_by_6(layer, expected):
    _, cache = layer.forward((), jnp.ones((1, 4, 6, 1)))
    assert sum(v.nbytes for v in jax.tree.leaves(cache)) == expected


@pytest.mark.parametrize("kind", ["average", "max"])
def test_adaptive_windows_of_one_size_are_those_of_a_stride(kind):
    """And one window for everything is the global one. Few different values, many of them tied."""
    x = jax.random.randint(jax.random.key(0), (3, 4, 6, 2), 0, 3).astype(jnp.float32)
    strided = {"average": bpref.average_pool, "max": bpref.max_pool}[kind]
    pairs = [
        (bpref.adaptive_pool((2, 2), kind), strided((2, 3))),
        (bpref.adaptive_pool((1, 1), kind), bpref.global_pool(kind)),
    ]
    for ours, other in pairs:
        shape, shape_of_other = (jax.eval_shape(layer.forward, (), x)[0].shape for layer in (ours, other))
        dy = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        mine, _, dx = backpropagate(ours, (), x, dy)
        y, _, expected = backpropagate(other, (), x, dy.reshape(shape_of_other))
        np.testing.assert_allclose(mine.reshape(y.shape), y, rtol=1e-6)
        np.testing.assert_allclose(dx, expected, rtol=1e-6)


def test_global_pooling_over_four_axes():
    x = jnp.arange(32.0).reshape(1, 2, 2, 2, 2, 2)
    for kind, expected in (("average", [15, 16]), ("max", [30, 31])):
        y, _ = bpref.global_pool(kind).forward((), x)
        np.testing.assert_array_equal(y, [expected])


def test_the_place_of_what_only_padding_won_is_none():
    y, _ = bpref.max_pool((2,), padding=1, with_indices=True).forward((), np.full((1, 2, 1), -np.inf, np.float32))
    assert y[1].ravel().tolist() == [-1, 1]
