"""The picture of where a cotangent is wrong: its axes, and what is empty in it."""

import numpy as np
import pytest

from bpref.verify.diagnosis.pattern import MOST, pattern_of
from tests.verify.diagnosis.wrong_cotangents import Dense, at

SHAPE = Dense().residual("W", lambda o: o).shape


def test_one_wrong_column_is_the_axis_that_parts_right_from_wrong():
    p = pattern_of(Dense().residual("W", lambda o: at(o, (slice(None), slice(None), 1), 2 * o[:, :, 1])))
    assert (p.shape, p.drawn, p.uneven) == (SHAPE, (0, 1), (1,))
    np.testing.assert_allclose(p.errors, np.tile(np.arange(SHAPE[1]) == 1, (SHAPE[0], 1)))


@pytest.mark.parametrize("spoilt", [np.nan, np.inf, 1e300])
def test_an_error_is_one_at_most(spoilt):
    p = pattern_of(Dense().residual("W", lambda o: at(o, (0, 0, 2), spoilt)))
    assert p.errors[0][2] == 1
    assert np.count_nonzero(p.errors) == 1
    assert p.uneven == (0, 1)


def test_all_wrong_leaves_no_axis_uneven():
    p = pattern_of(Dense().residual("W", lambda o: 1.5 * o))
    assert p.uneven == ()
    np.testing.assert_allclose(p.errors, 0.5)


def test_of_many_axes_those_are_drawn_that_part_right_from_wrong_and_long_ones_are_shortened():
    r = Dense().residual("W", lambda o: o)
    truth = np.ones((2, 100, 3, 1, 5))
    hand = truth.copy()
    hand[:, 99] = 3
    p = pattern_of(r._replace(hand=hand, oracle=truth))
    assert (p.drawn, p.uneven) == ((0, 3), (0,))
    assert np.shape(p.errors) == (MOST, 5)
    assert np.count_nonzero(p.errors) == 5
    assert set(p.errors[-1]) == {1.0}


def test_there_is_no_picture_of_a_scalar_of_nothing_or_of_another_shape():
    r = Dense().residual("W", lambda o: o)
    for shape, other in (((2,), (2,)), ((2, 0, 3), (2, 0, 3)), ((2, 3), (2, 3, 1))):
        assert pattern_of(r._replace(hand=np.ones(other), oracle=np.ones(shape))) is None
