"""Gathers, scatters, segments and sorting: what indices beyond the ends do, ties, and calls that are refused."""

import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from tests.refusing import refusals

X = jnp.ones((3, 4))
IDS = jnp.array([0, 1, 1])

BAD_CALLS = {
    "gather: data has shape (3, 4), which has no axis 2": lambda: bpref.gather(axis=2).forward((), (X, IDS)),
    "gather: data has shape (0, 4), expected at least one element in axis 0": (
        lambda: bpref.gather().forward((), (X[:0], IDS))
    ),
    "take_along_axis: indices has shape (2, 9), expected (3, M), data's but for axis 1": (
        lambda: bpref.take_along_axis(axis=1).forward((), (X, jnp.zeros((2, 9), jnp.int32)))
    ),
    "take_along_axis: indices has shape (3,), expected (3, M), data's but for axis 1": (
        lambda: bpref.take_along_axis(axis=1).forward((), (X, IDS))
    ),
    "take_along_axis: data has shape (3, 0), expected at least one element in axis 1": (
        lambda: bpref.take_along_axis().forward((), (X[:, :0], jnp.zeros((3, 2), jnp.int32)))
    ),
    "scatter_add: updates has shape (2, 4), expected (3, 4), data's with M in axis 0": (
        lambda: bpref.scatter_add().forward((), (X, IDS, X[:2]))
    ),
    "segment_sum: num_segments is 0, expected a positive integer": lambda: bpref.segment_sum(0),
    "segment_max: num_segments is 2.5, expected a positive integer": lambda: bpref.segment_max(2.5),
    "scatter_along_axis: reduce is 'amax', expected one of sum, mean, prod, max, min": (
        lambda: bpref.scatter_along_axis(reduce="amax")
    ),
    "scatter_along_axis: indices has shape (2, 9), expected (3, M), data's but for axis 1": (
        lambda: bpref.scatter_along_axis().forward((), (X, jnp.zeros((2, 9), jnp.int32), jnp.zeros((2, 9))))
    ),
    "segment_prod: data has shape (3, 4), which has no axis 2": (
        lambda: bpref.segment_prod(2, axis=2).forward((), (X, IDS))
    ),
    "segment_sum: ids has shape (3,), expected (N,) = (4,) by data (4, 3)": (
        lambda: bpref.segment_sum(2, axis=1).forward((), (X, IDS))
    ),
    "segment_max: ids has shape (2, 4), expected (N,) = (4,) or (*lines, N) = (3, 4) by data (3, 4)": (
        lambda: bpref.segment_max(2, axis=-1).forward((), (X, jnp.zeros((2, 4), jnp.int32)))
    ),
    "sort: x has shape (), which has no axis 1": lambda: bpref.sort(1).forward((), jnp.ones(())),
    "sort: descending is 'yes', expected True or False": lambda: bpref.sort(descending="yes"),
    "top_k: smallest is 1, expected True or False": lambda: bpref.top_k(1, smallest=1),
    "top_k: k is -1, expected an integer of at least 0": lambda: bpref.top_k(-1),
    "top_k: x has shape (3, 4), expected at least k = 5 elements in axis 1": lambda: bpref.top_k(5).forward((), X),
}


test_wrong_calls_are_refused = refusals(BAD_CALLS)


def sweep(layer, x, dy):
    """y, dx and the cache, for a cotangent in y's own tree."""
    y, cache = layer.forward((), x)
    return y, layer.backward((), cache, dy)[1], cache


OUTSIDE = jnp.array([0, -1, -3, 2, 3, -4, 0], jnp.int32)
NAN = float("nan")


@pytest.mark.parametrize("index_dtype", [jnp.int8, jnp.int32])
@pytest.mark.parametrize("make", [bpref.gather, bpref.take_along_axis])
def test_what_is_taken_from_outside_is_nan_and_its_cotangent_dropped(make, index_dtype):
    """x has 3 elements: -1 and 2 are the last, 0 and -3 the first, 3 and -4 none; the first was taken three times."""
    dy = 10.0 ** jnp.arange(7.0)
    y, (dx, dindices), _ = sweep(make(axis=0), (jnp.array([5.0, 6.0, 7.0]), OUTSIDE.astype(index_dtype)), dy)
    np.testing.assert_array_equal(y, [5, 7, 5, 7, NAN, NAN, 5])
    assert dx.tolist() == [1 + 100 + 1e6, 0, 10 + 1000]
    assert dindices is None


def test_narrow_indices_reach_the_end_of_a_long_axis():
    """-1 in int8 is the last of 300, although 300 is no int8."""
    y, (dx, _), _ = sweep(bpref.gather(), (jnp.arange(300.0), jnp.array([-1], jnp.int8)), jnp.ones(1))
    assert y.tolist() == [299]
    assert np.flatnonzero(dx).tolist() == [299]


def test_what_is_added_outside_is_dropped_and_has_no_cotangent():
    x = jnp.zeros(3), OUTSIDE, 10.0 ** jnp.arange(7.0)
    y, (dx, _, dupdates), _ = sweep(bpref.scatter_add(), x, jnp.array([5.0, 6.0, 7.0]))
    assert y.tolist() == [1 + 100 + 1e6, 0, 10 + 1000]
    assert dx.tolist() == [5, 6, 7]
    assert dupdates.tolist() == [5, 7, 5, 7, 0, 0, 5]


def test_a_row_that_is_in_no_segment_and_a_segment_that_has_no_row():
    """Unlike an index, a negative id does not count from the end."""
    data, ids = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([2, -1, 3, 2])
    dy = jnp.array([10.0, 20.0, 30.0])
    for mean, y_2, dx_2 in ((False, 5, 30), (True, 2.5, 15)):
        y, (dx, _), _ = sweep(bpref.segment_sum(3, mean=mean), (data, ids), dy)
        assert y.tolist() == [0, 0, y_2]
        assert dx.tolist() == [dx_2, 0, 0, dx_2]
    y, (dx, _), _ = sweep(bpref.segment_max(3), (data, ids), dy)
    assert y.tolist() == [-np.inf, -np.inf, 4]
    assert dx.tolist() == [0, 0, 0, 30]


def test_rows_that_tie_for_the_maximum_share_its_cotangent():
    data = jnp.array([[7.0, 1.0], [7.0, 2.0], [0.0, 0.0], [7.0, 0.0]])
    _, (dx, _), _ = sweep(bpref.segment_max(2), (data, jnp.array([0, 0, 1, 0])), jnp.array([[3.0, 5.0], [4.0, 6.0]]))
    assert dx.tolist() == [[1, 0], [1, 5], [4, 6], [1, 0]]


def test_nan_is_the_largest_of_its_segment_alone_and_so_are_its_gradients():
    data, ids = jnp.array([NAN, 2.0, 3.0, 4.0]), jnp.array([0, 0, 1, 9])
    y, (dx, _), _ = sweep(bpref.segment_max(3), (data, ids), jnp.array([1.0, 1.0, 1.0]))
    np.testing.assert_array_equal(y, [NAN, 3, -np.inf])
    np.testing.assert_array_equal(dx, [NAN, NAN, 1, 0])


def test_sorting_is_stable_and_puts_nan_last():
    y, dx, _ = sweep(bpref.sort(), jnp.array([2.0, NAN, 1.0, 2.0, -np.inf]), jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    np.testing.assert_array_equal(y, [-np.inf, 1, 2, 2, NAN])
    assert dx.tolist() == [3, 5, 2, 4, 1]


def test_of_equal_elements_the_first_is_chosen():
    (values, indices), dx, _ = sweep(bpref.top_k(2), jnp.array([1.0, 3.0, 3.0, 3.0]), (jnp.array([5.0, 6.0]), None))
    assert (values.tolist(), indices.tolist()) == ([3, 3], [1, 2])
    assert dx.tolist() == [0, 5, 6, 0]


@pytest.mark.parametrize(("n", "dtype"), [(256, jnp.uint8), (257, jnp.uint16), (65536, jnp.uint16)])
def test_a_permutation_is_kept_in_the_smallest_integers(n, dtype):
    x = jnp.arange(n, 0, -1.0)
    _, dx, cache = sweep(bpref.sort(), x, jnp.arange(float(n)))
    assert cache.permutation.dtype == dtype
    assert dx.tolist() == list(range(n))[::-1]


@pytest.mark.parametrize(("n", "dtype"), [(255, jnp.uint8), (256, jnp.uint16), (65536, jnp.uint32)])
def test_indices_are_kept_with_a_place_for_nowhere(n, dtype):
    _, (dx, _), cache = sweep(bpref.gather(), (jnp.zeros(n), jnp.array([n - 1, n])), jnp.ones(2))
    assert cache.places.dtype == dtype
    assert cache.places.tolist() == [n - 1, n]
    assert np.flatnonzero(dx).tolist() == [n - 1]


def test_a_row_taken_a_thousand_times_is_summed_in_float32():
    """In bfloat16 a sum of ones ends at 256."""
    x = jnp.zeros(1, jnp.bfloat16), jnp.zeros(1024, jnp.int32)
    _, (dx, _), _ = sweep(bpref.gather(), x, jnp.ones(1024, jnp.bfloat16))
    assert dx.dtype == jnp.bfloat16
    assert dx.tolist() == [1024]


def test_descending_keeps_the_order_of_equals_and_has_nan_first():
    x = jnp.array([1.0, 2.0, NAN, 2.0, -jnp.inf])
    (y, indices), dx, _ = sweep(bpref.sort(descending=True, with_indices=True), x, (10.0 ** jnp.arange(5.0), None))
    np.testing.assert_array_equal(y, [NAN, 2, 2, 1, -np.inf])
    assert indices.tolist() == [2, 1, 3, 0, 4]
    assert dx.tolist() == [1e3, 10, 1, 100, 1e4]


def test_the_smallest_come_first_and_a_nan_only_where_nothing_else_is_left():
    (y, indices), dx, _ = sweep(bpref.top_k(3, smallest=True), jnp.array([NAN, 2.0, 1.0, 2.0]), (jnp.ones(3), None))
    assert y.tolist() == [1, 2, 2]
    assert indices.tolist() == [2, 1, 3]
    assert dx.tolist() == [0, 1, 1, 1]
    assert np.isnan(sweep(bpref.top_k(4, smallest=True), jnp.array([NAN, 2.0, 1.0, 2.0]), (jnp.ones(4), None))[0][0][3])


def test_a_product_of_others_has_no_quotient():
    """Factors 0, 2, 3 of segment 1 and one of segment 0: the cotangent of the zero is 6 times dy, of the others 0."""
    data, ids = jnp.array([0.0, 2.0, 5.0, 3.0, 7.0]), jnp.array([1, 1, 0, 1, -1])
    y, (dx, _), _ = sweep(bpref.segment_prod(3), (data, ids), jnp.array([10.0, 100.0, 1000.0]))
    assert y.tolist() == [5, 0, 1]
    assert dx.tolist() == [600, 0, 10, 0, 0]


def test_data_that_are_left_out_stay_where_nothing_comes():
    x = jnp.array([4.0, 5.0, 6.0]), jnp.array([0, -1, 0, 9]), jnp.array([2.0, 3.0, 7.0, 8.0])
    dy = jnp.array([10.0, 100.0, 1000.0])
    for reduce, values, dx, du in (
        ("sum", [9, 5, 3], [0, 100, 0], [10, 1000, 10, 0]),
        ("mean", [4.5, 5, 3], [0, 100, 0], [5, 1000, 5, 0]),
        ("prod", [14, 5, 3], [0, 100, 0], [70, 1000, 20, 0]),
        ("max", [7, 5, 3], [0, 100, 0], [0, 1000, 10, 0]),
        ("min", [2, 5, 3], [0, 100, 0], [10, 1000, 0, 0]),
    ):
        y, (ddata, _, dupdates), _ = sweep(bpref.scatter_along_axis(0, reduce, False), x, dy)
        assert y.tolist() == values, reduce
        assert ddata.tolist() == dx, reduce
        assert dupdates.tolist() == du, reduce
