import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import train_test_split

from bpref.train import Table, split
from bpref.train.data.embedded import diabetes, digits
from bpref.train.data.split import least_squares_r2
from tests.refusing import refusals


@pytest.mark.parametrize("seed", [0, 7])
def test_the_parts_are_those_of_scikit_learn_and_so_is_the_baseline(seed):
    table = diabetes()
    parts = split(table, seed)
    X, X_test, y, y_test = train_test_split(table.X, table.y, test_size=0.2, random_state=seed)
    np.testing.assert_allclose(parts.X * X.std(0) + X.mean(0), X, rtol=1e-12)
    np.testing.assert_allclose(parts.X_test * X.std(0) + X.mean(0), X_test, rtol=1e-12)
    np.testing.assert_allclose(parts.y * parts.y_scale + parts.y_mean, y, rtol=1e-12)
    np.testing.assert_allclose(parts.y_test * parts.y_scale + parts.y_mean, y_test, rtol=1e-12)
    assert least_squares_r2(parts) == pytest.approx(LinearRegression().fit(X, y).score(X_test, y_test), abs=1e-12)


def test_the_scale_is_that_of_the_training_part_alone():
    parts = split(diabetes(), 0)
    np.testing.assert_allclose(parts.X.mean(0), 0, atol=1e-13)
    np.testing.assert_allclose(parts.X.std(0), 1, atol=1e-13)
    assert abs(parts.X_test.mean(0)).max() > 0.01


def test_digits_leave_out_the_three_blank_pixels_and_keep_their_labels():
    table = digits()
    assert (table.X.shape, len(table.classes)) == ((1797, 61), 10)
    assert "pixel_0_0" not in table.feature_names
    parts = split(table, 0)
    assert (len(parts.y), len(parts.y_test), parts.y_scale) == (1437, 360, 1.0)
    assert np.isfinite(parts.X_test).all()


def test_a_column_constant_in_the_training_part_is_only_centred():
    X = np.zeros((10, 2))
    X[:, 0] = np.arange(10)
    X[np.random.RandomState(0).permutation(10)[0], 1] = 3.0
    parts = split(Table(X, np.arange(10.0)), 0)
    assert set(parts.X_test[:, 1]) == {0.0, 3.0}


def column(values):
    return Table(values[:, None], np.arange(float(len(values))))


test_refused = refusals(
    {
        "seed is -1, expected an integer in 0 ... 4294967295": lambda: split(column(np.arange(10.0)), -1),
        "y has one value in the 1 example held out by seed 0, which R^2 cannot be computed from: more data or another "
        "seed is needed": (lambda: split(column(np.arange(4.0)), 0)),
        "column 1: its values are too large to standardise (up to 9e+307)": (
            lambda: split(column(np.arange(10.0) * 1e307), 0)
        ),
    }
)
