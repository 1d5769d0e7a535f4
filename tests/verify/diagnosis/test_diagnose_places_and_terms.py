"""Diagnoses of what is in the wrong place, of few wrong places and of missing terms, with their near misses."""

import numpy as np
import pytest

from bpref.verify.diagnosis.diagnose import diagnose
from tests.verify.diagnosis.wrong_cotangents import (
    COTANGENTS,
    POINTS,
    D,
    Dense,
    Gather,
    LayerNorm,
    N,
    Softmax,
    at,
    drawn,
    is_unexplained,
    residual_of,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


# Moved.

MOVED = {
    "transposed": (lambda o: o.swapaxes(1, 2), "transposed", "with axes 0 and 1 exchanged"),
    "flipped": (lambda o: o[:, ::-1], "shifted", "flipped along axis 0"),
    "rotated": (lambda o: o[:, ::-1, ::-1], "shifted", "flipped along axes 0, 1"),
    "rolled": (lambda o: np.roll(o, 2, 2), "shifted", "rolled by 2 along axis 1"),
    "rolled twice": (lambda o: np.roll(o, (1, 2), (1, 2)), "shifted", "rolled by 1 along axis 0 and by 2 along axis 1"),
    "shifted": (lambda o: at(np.roll(o, -1, 1), np.s_[:, -1], 0), "shifted", "shifted by -1 along axis 0, zeros"),
    "shifted, edge unknown": (
        lambda o: at(np.roll(o, 1, 1), np.s_[:, 0], np.random.default_rng(1).normal(size=(6, 5))),
        "shifted",
        "shifted by 1 along axis 0; at the edge that this leaves free it is another",
    ),
    "permuted": (lambda o: o[:, :, [2, 0, 1, 4, 3]], "shifted", "the indices in the order 2, 0, 1, 4, 3 of axis 1"),
    "exchanged": (lambda o: o[:, [0, 3, 2, 1, 4]], "shifted", "indices 1 and 3 exchanged of axis 0"),
    "frequencies": (lambda o: o[:, -np.arange(5) % 5], "shifted", "index k exchanged with index -k modulo 5 of axis 0"),
    "elements": (
        lambda o: np.random.default_rng(2).permuted(o.reshape(6, 25), axis=1).reshape(6, 5, 5),
        "unexplained",
        "no simple pattern",
    ),
    "elements, always alike": (
        lambda o: o.reshape(6, 25)[:, np.random.default_rng(2).permutation(25)].reshape(6, 5, 5),
        "shifted",
        "with its elements in another order",
    ),
}


@pytest.mark.parametrize(("hand", "kind", "detail"), MOVED.values(), ids=MOVED)
def test_moved_elements(hand, kind, detail):
    found = diagnose(Dense(D, D).residual("W", hand))
    assert found.kind == kind
    assert detail in found.detail


def test_transposed_and_laid_out_anew():
    found = diagnose(Dense().residual("W", lambda o: o.swapaxes(1, 2).reshape(o.shape)))
    assert found == ("transposed", "the reference with axes 0 and 1 exchanged, and reshaped to fit")


def test_an_axis_of_size_one_exchanged_moves_nothing(rng):
    o = rng.normal(size=(6, 5, 1, 4))
    found = diagnose(residual_of("q", o * (1 + 1e-12), o, {}))
    assert found.kind != "transposed", found.detail


def test_transposed_axes_of_three(rng):
    x, o = drawn(rng, 3, 3, 3), rng.normal(size=(6, 3, 3, 3))
    found = diagnose(residual_of("x", o.transpose(0, 2, 3, 1), o, {"x": x}))
    assert found == ("transposed", "the reference with its axes in the order 1, 2, 0")


def test_swapped_names_the_other_argument(rng):
    a, b, dy = drawn(rng, 4, 3), drawn(rng, 4, 3), rng.normal(size=(6, 4, 3))
    found = diagnose(residual_of("a", dy * a, dy * b, {"a": a, "b": b}, dy, a * b, {"b": dy * a}))
    assert found == ("swapped", "the cotangent of b, not of a")


def test_a_symmetric_reference_is_not_called_transposed():
    """Transposing changes nothing, so that it explains nothing."""
    dense = Dense(D, D)
    symmetric = dense.cotangents["W"] + dense.cotangents["W"].swapaxes(1, 2)
    noise = np.random.default_rng(3).normal(size=symmetric.shape)
    is_unexplained(dense.residual("W", noise)._replace(oracle=symmetric))


def test_in_the_order_of_an_integer_argument(rng):
    ids = np.repeat(np.stack([rng.permutation(9) // 3 for _ in range(POINTS)]), COTANGENTS, axis=0)
    values, o = drawn(rng, 9, 2), rng.normal(size=(6, 9, 2))
    order = np.argsort(ids, axis=1, kind="stable")
    hand = np.take_along_axis(o, order[..., None], 1)
    found = diagnose(residual_of("values", hand, o, {"values": values, "ids": ids}))
    assert found == ("shifted", "the reference, its axis 0 sorted by ids")


# Few places.

PLACES = {
    "a row": (lambda o: at(o, np.s_[:, 2], 0), "wrong only at row 2 of axis 0, zero there"),
    "the last column": (lambda o: at(o, np.s_[..., -1], np.negative), "column 4 (the last) of axis 1, the sign wrong"),
    "an edge": (
        lambda o: at(o, np.s_[:, [0, -1]], lambda v: 3 * v),
        "the edge (first and last index) of axis 0, 3.000",
    ),
    "a block": (lambda o: at(o, np.s_[..., 1:3], np.sin), "indices 1 to 2 of axis 1, such as"),
    "an element": (lambda o: at(o, np.s_[:, 1, 3], 0), "row 1 of axis 0 and column 3 of axis 1, zero there"),
    "the diagonal": (lambda o: o * (1 + np.eye(5)), "the diagonal of axes 0, 1, 2.000 x the reference there"),
    "a triangle": (lambda o: np.tril(o), "the places above the diagonal of axes 0, 1, zero there"),
}


@pytest.mark.parametrize(("hand", "detail"), PLACES.values(), ids=PLACES)
def test_few_places(hand, detail):
    found = diagnose(Dense(5, 5).residual("W", hand))
    assert found.kind == "sparse"
    assert detail in found.detail


def test_the_edge_of_two_axes(rng):
    x, o = drawn(rng, 2, 6, 5), rng.normal(size=(6, 2, 6, 5))
    hand = o * 0.5
    hand[:, :, 1:-1, 1:-1] *= 2
    found = diagnose(residual_of("x", hand, o, {"x": x}))
    assert found == ("sparse", "wrong only at the edge of axes 1, 2, 0.5000 x the reference there")


def test_most_places_are_not_few():
    """Where most is wrong, what is right says more: off the diagonal is no diagnosis, and is shown."""
    residual = Dense(5, 5).residual("W", lambda o: o * (2 - np.eye(5)))
    is_unexplained(residual)
    assert "right at the diagonal of axes 0, 1; elsewhere 2.000 x the reference" in diagnose(residual).detail


def test_rows_that_are_zero_anyway_do_not_count_as_right(rng):
    """Three of eight rows are in use; where the hand is wrong in all of them, it is right nowhere."""
    x, o = drawn(rng, 8, 5), rng.normal(size=(6, 8, 5))
    o[:, [1, 2, 4, 5, 7]] = 0
    is_unexplained(residual_of("x", np.abs(o), o, {"x": x}))


def test_a_place_that_depends_on_the_sample_is_not_named_by_its_index(rng):
    x, o = drawn(rng, 9, 9), rng.normal(size=(6, 9, 9))
    is_unexplained(residual_of("x", np.where(rng.random(o.shape) < 0.4, 0, o), o, {"x": x}))


def test_repeated_indices():
    gather = Gather()
    found = diagnose(gather.residual(gather.overwritten()))
    assert found.kind == "sparse"
    assert found.detail.startswith("wrong only at the indices of axis 0 that ids repeats, such as ")


def test_the_last_index_is_skipped():
    gather = Gather()
    hand = gather.dtable.copy()
    hand[np.arange(6), gather.ids[:, -1]] -= gather.dy[:, -1]
    found = diagnose(gather.residual(hand))
    assert found.kind == "sparse"
    assert "the index of axis 0 that the last of ids names" in found.detail


def test_indices_counted_from_one():
    gather = Gather()
    found = diagnose(gather.residual(np.roll(gather.dtable, 1, 1)))
    assert found == ("shifted", "the reference rolled by 1 along axis 0")


def test_the_labels_element(rng):
    x, labels = drawn(rng, N, 4), np.repeat(rng.integers(0, 4, (POINTS, N)), COTANGENTS, axis=0)
    onehot, p = np.eye(4)[labels], np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    dy = rng.normal(size=(6, N, 1))
    found = diagnose(residual_of("x", dy * p, dy * (p - onehot), {"x": x, "labels": labels}))
    assert found.kind == "sparse"
    assert "the element of the last axis that labels picks" in found.detail


def test_the_largest_of_each_row(rng):
    x, o = drawn(rng, N, 5), rng.normal(size=(6, N, 5))
    hand = np.where(x == x.max(-1, keepdims=True), 0, o)
    found = diagnose(residual_of("x", hand, o, {"x": x}))
    assert found == ("sparse", "wrong only at the largest of x along axis 1, zero there")


def test_the_last_is_said_to_be_the_last_where_it_happens_to_be_the_largest(rng):
    x, o = drawn(rng, 5) + 9 * (np.arange(5) == 4), rng.normal(size=(6, 5))
    found = diagnose(residual_of("x", np.where(np.arange(5) == 4, 0, o), o, {"x": x}))
    assert found == (
        "sparse",
        "wrong only at index 4 (the last) of axis 0, the largest of x along axis 0 too, zero there",
    )


def test_where_an_argument_is_zero(rng):
    x = np.where(drawn(rng, N, 5) > 0.8, 0, drawn(rng, N, 5))
    o = rng.normal(size=x.shape)
    found = diagnose(residual_of("x", np.where(x == 0, 0, o), o, {"x": x}))
    assert found == ("sparse", "wrong only at the places where x is 0, zero there")


# Terms.

LAYER_NORM = {
    "mean": ({"mean": 0.0}, "constant along axis 1 is missing"),
    "mean twice": ({"mean": 2.0}, "constant along axis 1 has a factor 2.000 (2)"),
    "sign of the mean": ({"mean": -1.0}, "constant along axis 1 has the wrong sign"),
    "variance": ({"variance": 0.0}, "the term proportional to x - mean(x) along axis 1 is missing"),
    "both": ({"mean": 0.0, "variance": 0.0}, "is missing; "),
    "Bessel": ({"variance": 6 / 5}, "has a factor 1.200"),
}


@pytest.mark.parametrize(("change", "detail"), LAYER_NORM.values(), ids=LAYER_NORM)
def test_terms_of_layer_norm_are_guessed(change, detail):
    norm = LayerNorm()
    found = diagnose(norm.residual(norm.dx(**change)))
    assert found.kind == ("factor" if "factor" in detail else "missing_term")
    assert detail in found.detail


LAYER_NORM_UNEXPLAINED = {
    "eps outside of the root": lambda n: n.dx(std=n.std + 0.1),
    "variance for std": lambda n: n.dx(std=n.std**2),
    "gamma forgotten": lambda n: n.dx() / n.g[:, None],
    "projection by another norm": lambda n: n.dx(variance=1 / n.std),
    "mean over the batch": lambda n: (n.dxhat - n.dxhat.mean(1, keepdims=True)) / n.std,
}


@pytest.mark.parametrize("hand", LAYER_NORM_UNEXPLAINED.values(), ids=LAYER_NORM_UNEXPLAINED)
def test_other_mistakes_in_layer_norm_are_unexplained(hand):
    norm = LayerNorm()
    is_unexplained(norm.residual(hand(norm)))


def test_terms_of_softmax_are_guessed():
    s = Softmax()
    found = diagnose(s.residual(s.p * s.dy))
    assert found == ("missing_term", "the term proportional to y along axis 1 is missing")
    diagonal = diagnose(s.residual(s.p * (1 - s.p) * s.dy))
    assert diagonal == (
        "missing_term",
        "the term proportional to y along axis 1, off the Jacobian's diagonal, is missing",
    )


def test_other_mistakes_in_softmax_are_unexplained():
    s = Softmax()
    over_the_batch = (s.p * s.dy).sum(1, keepdims=True)
    for hand in (s.p * (s.dy - over_the_batch), s.p**2 * (s.dy - s.dot), s.p * (s.dy - s.dot**2)):
        is_unexplained(s.residual(hand))


def test_rows_too_short_to_fail_explain_nothing():
    """Three numbers a row are always a combination of three: what fits them says nothing."""
    norm = LayerNorm(3)
    noise = np.random.default_rng(4).normal(size=norm.x.shape)
    is_unexplained(norm.residual(norm.dx() + noise))
    is_unexplained(norm.residual(norm.dx(variance=1 / norm.std)))


def test_given_terms_name_the_line():
    norm = LayerNorm()
    terms = {
        "the path of x into sub": norm.dx(variance=0.0) - norm.dx(mean=0.0, variance=0.0),
        "the path of c into mul": norm.dx() - norm.dx(variance=0.0),
    }
    for change, text in (
        ({"mean": 0.0}, "the path of x into sub is missing"),
        ({"variance": -1.0}, "the path of c into mul has the wrong sign"),
        ({"variance": 2.0}, "the path of c into mul has a factor 2.000 (2)"),
        (
            {"mean": 0.0, "variance": 3.0},
            "the path of x into sub is missing; the path of c into mul has a factor 3.000 (3)",
        ),
    ):
        found = diagnose(norm.residual(norm.dx(**change))._replace(terms=lambda: terms))
        assert found == ("factor" if "factor" in text else "missing_term", text)


def test_given_terms_that_do_not_fit():
    rng = np.random.default_rng(9)
    x, parts = drawn(rng, 3, 4), {f"term {i}": rng.normal(size=(6, 3, 4)) for i in range(30)}
    oracle = np.sum(list(parts.values()), axis=0)
    three = oracle - parts["term 3"] - parts["term 4"] - parts["term 5"]
    of_the_point = oracle - parts["term 3"] * x[:, :1, :1]
    for hand in (three, of_the_point, oracle + rng.normal(size=oracle.shape)):
        is_unexplained(residual_of("x", hand, oracle, {"x": x}, terms=parts))


def test_one_term_alone():
    rng = np.random.default_rng(9)
    x, parts = drawn(rng, 3, 4), {f"term {i}": rng.normal(size=(6, 3, 4)) for i in range(4)}
    found = diagnose(residual_of("x", parts["term 2"], np.sum(list(parts.values()), axis=0), {"x": x}, terms=parts))
    assert found == ("missing_term", "term 2 alone: all 3 others are missing")


def test_terms_are_not_computed_where_a_factor_explains_it():
    computed = []
    residual = Dense().residual("W", lambda o: 2 * o)._replace(terms=lambda: computed.append(1) or {})
    assert diagnose(residual).kind == "factor"
    assert not computed


def test_the_skip_connection_is_forgotten(rng):
    x, dy = drawn(rng, 3, 3), rng.normal(size=(6, 3, 3))
    oracle = dy + np.cos(x) * dy.swapaxes(1, 2)
    found = diagnose(residual_of("x", oracle - dy, oracle, {"x": x}, dy))
    assert found == ("missing_term", "dy is missing")


def test_weight_decay():
    dense = Dense()
    found = diagnose(dense.residual("W", dense.cotangents["W"] + 0.01 * dense.W))
    assert found.kind == "missing_term"
    assert "the reference plus 0.01000 x W itself" in found.detail
