"""Diagnoses of a whole cotangent and of sums, and what must stay unexplained."""

import numpy as np
import pytest

from bpref.verify.diagnosis.diagnose import diagnose, diagnose_shape
from tests.verify.diagnosis.wrong_cotangents import D, Dense, N, at, drawn, is_unexplained, residual_of


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


# Not finite, zero, the sign, and constant factors.

WHOLE = {
    "nan": (lambda o: at(o, (2, 1, 3), np.nan), "nonfinite", "1 of 120 values are NaN or infinite where"),
    "infinite": (lambda o: at(o, (0, 0), -np.inf), "nonfinite", "infinite at index (0, 0), sample 0"),
    "zero": (lambda o: 0 * o, "zero", "zero everywhere"),
    "negated": (lambda o: -o, "sign", "-1 x the reference, every element: the sign is wrong"),
    "twice": (lambda o: 2 * o, "factor", "2.000 x the reference, every element: a constant factor 2"),
    "half": (lambda o: o / 2, "factor", "0.5000 x the reference, every element: a constant factor 1/2"),
    "minus three": (lambda o: -3 * o, "factor", "a constant factor -3"),
    "a thousandth": (lambda o: 1.001 * o, "factor", "1.001 x the reference, every element: a constant factor"),
    "batch mean": (lambda o: o / N, "mean_for_sum", "a mean in place of the sum over axis 0 of dy (7 terms)"),
    "batch": (lambda o: o * N, "factor", "a factor the size of axis 0 of x"),
    "root": (lambda o: o * np.sqrt(D), "factor", "a factor the square root of the size of axis 1 of W"),
    "Bessel": (lambda o: o * N / (N - 1), "factor", "a factor n / (n - 1), n = 7 being the size of axis 0 of x"),
    "elements": (lambda o: o / (N * D), "factor", "a factor 1 / the number of elements of x"),
    "two over pi": (lambda o: o * np.sqrt(2 / np.pi), "factor", "a constant factor sqrt(2/pi)"),
    "any number": (lambda o: o * 1.2345678, "factor", "1.235 x the reference, every element: a constant factor"),
}


@pytest.mark.parametrize(("hand", "kind", "detail"), WHOLE.values(), ids=WHOLE)
def test_the_whole_cotangent(hand, kind, detail):
    found = diagnose(Dense().residual("W", hand))
    assert found.kind == kind
    assert detail in found.detail


def test_an_axis_of_the_argument_itself_is_not_summed_over():
    found = diagnose(Dense().residual("x", lambda o: o / N))
    assert found == ("factor", "0.1429 x the reference, every element: a factor 1 / the size of axis 0 of x")


A, B = "the size of axis 0 of x", "the size of axis 1 of x"

AMBIGUOUS = {
    "three": (3, f"a constant factor 3, or {B}"),
    "four": (4, f"a constant factor 4, or {A}"),
    "a third": (1 / 3, f"a constant factor 1/3, or 1 / {B}"),
    "minus three": (-3, f"a constant factor -3, or minus {B}"),
    "three halves": (1.5, f"a constant factor 3/2, or n / (n - 1), n = 3 being {B}, or n / 2, n = 3 being {B}"),
    "a root": (3**0.5, f"a constant factor sqrt(3), or the square root of {B}"),
    "two": (2, "a constant factor 2"),
    "twelve": (12, "a factor the number of elements of x"),
}


@pytest.mark.parametrize(("c", "detail"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_all_that_a_number_may_be_is_named(rng, c, detail):
    x, o = drawn(rng, 4, 3), rng.normal(size=(6, 4, 3))
    kind, text = diagnose(residual_of("x", c * o, o, {"x": x}))
    assert (kind, text.partition("every element: ")[2]) == ("factor", detail)


@pytest.mark.parametrize(
    ("shape", "c", "detail"),
    [((2, 5), 2, f"a constant factor 2, or {A}"), ((5, 5), 5, "a factor the size of axis 0 or 1 of x")],
)
def test_small_and_equal_sizes(rng, shape, c, detail):
    x, o = drawn(rng, *shape), rng.normal(size=(6, *shape))
    assert diagnose(residual_of("x", c * o, o, {"x": x})).detail.endswith(f"every element: {detail}")


def test_a_mean_of_few_may_be_a_constant(rng):
    x, b, dy = drawn(rng, 3, 5), drawn(rng, 5), rng.normal(size=(6, 3, 5))
    found = diagnose(residual_of("b", dy.mean(1), dy.sum(1), {"x": x, "b": b}, dy))
    mean = "a mean in place of the sum over axis 0 of dy (3 terms), or a constant factor 1/3"
    assert found == ("mean_for_sum", f"0.3333 x the reference, every element: {mean}")


def test_a_mean_over_two_axes(rng):
    x, dy = drawn(rng, 3, 5, 4), rng.normal(size=(6, 3, 5, 4))
    found = diagnose(residual_of("b", dy.mean((1, 2)), dy.sum((1, 2)), {"x": x, "b": drawn(rng, 4)}, dy))
    assert found.kind == "mean_for_sum"
    assert "axes 0, 1 of dy (15 terms)" in found.detail


def test_a_scalar_has_a_factor_only_if_it_is_the_same_at_all_points(rng):
    x, dy = drawn(rng), rng.normal(size=6)
    assert diagnose(residual_of("x", 2 * dy * x, dy * x, {"x": x}, dy)).kind == "factor"
    is_unexplained(residual_of("x", dy * x**3, dy * x**2, {"x": x}, dy))
    one_point = np.repeat(x[:1], 6)
    is_unexplained(residual_of("x", dy * one_point**3, dy * one_point**2, {"x": one_point}, dy))


def test_a_single_number_is_no_evidence(rng):
    x = rng.normal(size=1)
    for hand in (2 * x, -x, 1.7 * x, 0.5 * x):
        is_unexplained(residual_of("x", hand, x, {"x": x}, np.ones(1)))


COMPLEX = {
    "conjugate": (np.conj, "sign", "the imaginary part has the wrong sign"),
    "minus the conjugate": (lambda o: -np.conj(o), "sign", "the real part has the wrong sign"),
    "times i": (lambda o: 1j * o, "factor", "a constant factor i"),
    "real part": (lambda o: o.real + 0j, "missing_term", "the imaginary part is missing"),
    "imaginary part": (lambda o: 1j * o.imag, "missing_term", "the real part is missing"),
}


@pytest.mark.parametrize(("hand", "kind", "detail"), COMPLEX.values(), ids=COMPLEX)
def test_complex_numbers(rng, hand, kind, detail):
    z = drawn(rng, 4, 3) + 1j * drawn(rng, 4, 3)
    dy = rng.normal(size=z.shape) + 1j * rng.normal(size=z.shape)
    found = diagnose(residual_of("z", hand(dy * z), dy * z, {"z": z}, dy))
    assert found.kind == kind
    assert detail in found.detail


def test_a_complex_cotangent_of_a_real_argument(rng):
    x = drawn(rng, 4)
    found = diagnose(residual_of("x", x * (1 + 2j), x, {"x": x}))
    assert found.kind == "dtype"


# Sums.


def test_the_cumulative_sum_is_missing(rng):
    x, dy = drawn(rng, 3, 6), rng.normal(size=(6, 3, 6))
    oracle = np.flip(np.cumsum(np.flip(dy, 2), 2), 2)
    found = diagnose(residual_of("x", dy, oracle, {"x": x}, dy))
    assert found == ("missing_sum", "the reverse cumulative sum over axis 1 (size 6) is missing")


def test_only_the_last_example_is_in_the_sum():
    dense = Dense()
    last = np.einsum("sm,sd->smd", dense.dy[:, -1], dense.x[:, -1])
    found = diagnose(dense.residual("W", last))
    assert found.kind == "missing_sum"
    assert "the last of axis 0 of the outer products of dy, x alone" in found.detail


def test_one_example_is_not_in_the_sum():
    dense = Dense()
    found = diagnose(dense.residual("b", dense.dy[:, 1:].sum(1)))
    assert found == ("missing_sum", "the sum of dy over axis 0 without the first of axis 0")


def test_a_sum_over_the_wrong_axis_of_the_same_size(rng):
    x, b, dy = drawn(rng, 4, 4), drawn(rng, 4), rng.normal(size=(6, 4, 4))
    found = diagnose(residual_of("b", (dy * x).sum(2), (dy * x).sum(1), {"x": x, "b": b}, dy))
    assert found == ("missing_sum", "the sum of dy * x over axis 1, where it is over axis 0")


def test_a_sum_of_other_products_is_unexplained():
    dense = Dense()
    is_unexplained(dense.residual("W", np.einsum("snm,snd->smd", dense.dy**2, dense.x)))


SHAPES = {
    "no sum": (lambda d: d.dy, "missing_sum", "the sum over the axes that b does not have (axis 0, size 7) is missing"),
    "no sum, divided": (lambda d: d.dy / N, "mean_for_sum", "divided by 7 and not summed (axis 0, size 7)"),
    "no sum, doubled": (lambda d: 2 * d.dy, "missing_sum", "and it is 2.000 x the reference (2)"),
    "a column": (lambda d: d.dy.sum(1)[:, :, None], "structure", "the reference's values, but its shape is (4, 1)"),
    "one too many": (lambda d: d.dy.sum((1, 2)), "structure", "the reference summed over axis 0 (size 4)"),
    "of another": (lambda d: d.cotangents["x"], "swapped", "the cotangent of x: its shape is (7, 5)"),
    "anything": (lambda d: d.dy**2, "structure", "its shape is (7, 4), that of b (4,)"),
}


@pytest.mark.parametrize(("hand", "kind", "detail"), SHAPES.values(), ids=SHAPES)
def test_wrong_shapes(hand, kind, detail):
    dense = Dense()
    found = diagnose_shape(dense.residual("b", hand(dense)))
    assert found.kind == kind
    assert detail in found.detail


def test_the_shape_of_the_transpose():
    found = diagnose_shape(Dense().residual("W", lambda o: o.swapaxes(1, 2)))
    assert found.kind == "transposed"


# Clipped.


def scaled_to(limit, o):
    norm = np.sqrt((o**2).sum((1, 2), keepdims=True))
    return o * np.minimum(1, limit / norm)


CLIPPED = {
    "values": (lambda o: np.clip(o, -1.5, 1.5), "clipped to [-1.500, 1.500]"),
    "from below": (lambda o: np.maximum(o, 0), "clipped from below at 0.000"),
    "norm": (lambda o: scaled_to(5.0, o), "scaled down where its norm is above 5.000"),
}


@pytest.mark.parametrize(("hand", "detail"), CLIPPED.values(), ids=CLIPPED)
def test_clipped(hand, detail):
    found = diagnose(Dense().residual("W", hand))
    assert found.kind == "clipped"
    assert detail in found.detail


def test_clipped_together():
    dense = Dense()
    norm = np.sqrt(sum((v.reshape(6, -1) ** 2).sum(1) for v in dense.cotangents.values()))
    found = diagnose(dense.residual("W", lambda o: o * np.minimum(1, 10 / norm)[:, None, None]))
    assert found.kind == "clipped"
    assert "the norm of all cotangents together is above 10.00" in found.detail


def test_a_soft_limit_is_no_clipping():
    is_unexplained(Dense().residual("W", np.tanh))


# What nothing explains.

UNEXPLAINED = {
    "noise": lambda d, o: np.random.default_rng(1).normal(size=o.shape),
    "a factor of the sample": lambda d, o: o * np.linspace(1, 2, 6)[:, None, None],
    "a factor of each row": lambda d, o: o * np.linspace(1, 2, o.shape[1])[:, None],
    "a wrong power": lambda d, o: np.einsum("snm,snd->smd", d.dy, d.x**3),
    "an absolute value": lambda d, o: np.sqrt(o**2 + 1),
    "rounded": lambda d, o: np.round(o, 1),
    "times the argument": lambda d, o: o * d.W,
}


@pytest.mark.parametrize("hand", UNEXPLAINED.values(), ids=UNEXPLAINED)
def test_unexplained(hand):
    dense = Dense()
    is_unexplained(dense.residual("W", hand(dense, dense.cotangents["W"])))


def test_wrong_powers_are_unexplained(rng):
    x, dy = drawn(rng, 4, 5), rng.normal(size=(6, 4, 5))
    residual = residual_of("x", 3 * dy * x**3, 3 * dy * x**2, {"x": x}, dy, x**3)
    is_unexplained(residual)
    assert "hand = reference x x" in diagnose(residual).detail


def test_the_pattern_is_shown():
    dense = Dense()
    rows = np.array([1.0, 2.0, 3.0, 4.0])[:, None]
    lines = diagnose(dense.residual("W", lambda o: o * rows)).detail.splitlines()
    assert lines[0].startswith("no simple pattern: 90 of 120 values are wrong; hand / reference: median ")
    assert lines[1] == "the ratio is constant along axis 1, and not otherwise"
    assert "axis 0: right at 0, wrong at the other 3 of 4" in lines


def test_no_elements():
    nothing = np.zeros((6, 0, 3))
    assert diagnose(residual_of("x", nothing, nothing, {})) == ("unexplained", "there are no elements")
    assert diagnose_shape(residual_of("x", np.zeros((6, 0)), nothing, {})).kind == "structure"


def test_a_reference_that_is_not_finite_is_said_to_be():
    oracle = np.full((6, 2), np.nan)
    found = diagnose(residual_of("x", np.ones((6, 2)), oracle, {}))
    assert found == ("unexplained", "the reference itself is NaN or infinite at 12 of 12 places")


def test_an_error_near_round_off_is_not_explained(rng):
    """A tenth of the digits is left to disagree with a fit: too few."""
    x, o = drawn(rng, 4, 5), rng.normal(size=(6, 4, 5))
    is_unexplained(residual_of("x", o * (1 + 3e-10), o, {"x": x}))


def test_an_output_is_diagnosed_too(rng):
    x = rng.normal(size=(3, 4))
    found = diagnose(residual_of("y", 3 * np.sin(x), np.sin(x), {"x": x}))
    assert found == ("factor", "3.000 x the reference, every element: a constant factor 3")


def test_a_gradient_that_is_right_for_symmetric_arguments_alone_is_said_to_be():
    """As Cholesky's often is, made symmetric, where the function reads one triangle."""
    rng = np.random.default_rng(4)
    A, oracle = rng.normal(size=(6, 4, 4)), np.tril(rng.normal(size=(6, 4, 4)))
    found = diagnose(residual_of("A", (oracle + oracle.swapaxes(1, 2)) / 2, oracle, {"A": A}))
    assert found.kind == "unexplained"
    assert "its symmetric part is the reference's: it is right for arguments that are symmetric" in found.detail
