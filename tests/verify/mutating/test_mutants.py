"""Mutants: each differs from the original, none is left out but for a stated and true reason."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bpref.verify.mutating.mutants import equivalents, mutants

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def dense(args, dy):
    x, W, _ = args
    return dy @ W, dy.T @ x, dy.sum(0)


def rms_norm(args, dy):
    (x,) = args
    rstd = lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5)
    xhat = x * rstd
    return (rstd * (dy - xhat * jnp.mean(dy * xhat, -1, keepdims=True)),)


def softmax(args, dy):
    (x,) = args
    e = jnp.exp(x - jnp.max(x, -1, keepdims=True))
    y = e / jnp.sum(e, -1, keepdims=True)
    return (y * (dy - jnp.sum(y * dy, -1, keepdims=True)),)


def cumulative_sum(args, dy):
    return (lax.cumsum(dy, axis=0, reverse=True),)


def embedding(args, dy):
    table, i = args
    return jnp.zeros_like(table).at[i].add(dy), None


def relu(args, dy):
    (x,) = args
    return (jnp.where(x > 0, dy, 0),)


def recurrence(args, dy):
    """h[t] = a h[t-1] + x[t]."""
    a, hs = args

    def body(dh, step):
        dh = a * dh + step[0]
        return dh, (dh, dh * step[1])

    _, (dx, da) = lax.scan(body, jnp.zeros_like(dy[0]), (dy, hs), reverse=True)
    return jnp.sum(da, 0), dx


SQUARE = (draw(4, 4),), draw(4, 4)
CASES = {
    "dense": (dense, (draw(5, 3), draw(3, 3), draw(3)), draw(5, 3)),
    "rms_norm": (rms_norm, *SQUARE),
    "softmax": (softmax, *SQUARE),
    "cumulative_sum": (cumulative_sum, *SQUARE),
    "embedding": (embedding, (draw(6, 2), np.array([0, 3, 3, 5])), draw(4, 2)),
    "relu": (relu, *SQUARE),
    "recurrence": (recurrence, (draw(3), draw(4, 3)), draw(4, 3)),
}


@pytest.fixture(scope="module")
def found():
    return {name: list(mutants(*case)) for name, case in CASES.items()}


def names(found):
    return [m.name.split(" (")[0] for m in found]


def leaves(tree):
    return [np.asarray(v) for v in jax.tree.leaves(tree)]


def test_a_backward_of_three_terms_has_these_mutants_and_no_other(found):
    assert names(found["dense"]) == [
        "negate dot_general[0]",
        "contract axes [1] on the right of dot_general[0]",
        "keep only the left operand of dot_general[0]",
        "negate dot_general[2]",
        "max for reduce_sum[3]",
        "mean for reduce_sum[3]",
    ]
    assert names(found["cumulative_sum"]) == [
        "drop cumsum[0]",
        "reverse the direction of cumsum[0]",
        "take axis 1 in cumsum[0]",
    ]


def test_a_derivation_has_tens_of_mutants_and_changes_are_mutants_or_equivalents(found):
    assert 15 <= len(found["softmax"]) <= 60
    assert 15 <= len(found["rms_norm"]) <= 60
    left_out = equivalents(*CASES["relu"])
    assert len(found["relu"]) == 5
    assert {m.name.split()[0] for m in left_out if "gt" in m.name} == {"ge"}
    assert not {m.name for m in left_out} & {m.name for m in found["relu"]}
    assert all(m.equivalent for m in left_out)


def test_names_are_unique_and_say_the_line(found):
    line = dense.__code__.co_firstlineno + 2
    assert found["dense"][0].name == f"negate dot_general[0] (test_mutants.py:{line})"
    for ms in found.values():
        assert len({m.name for m in ms}) == len(ms)
        assert all("(test_mutants.py:" in m.name for m in ms)


@pytest.mark.parametrize("name", ["dense", "softmax", "embedding", "recurrence"])
def test_each_mutant_has_the_originals_tree_and_other_values(name, found):
    """In float32, at the arguments that were given, where the mutants were found in float64 at others."""
    backward, *args = CASES[name]
    results = jax.jit(lambda args: [m.backward(*args) for m in found[name]])(args)
    truth = backward(*args)
    for mutant, result in zip(found[name], results, strict=True):
        assert jax.tree.structure(result) == jax.tree.structure(truth)
        assert [(v.shape, v.dtype) for v in leaves(result)] == [(v.shape, v.dtype) for v in leaves(truth)]
        assert any(np.max(np.abs(v - t)) > 1e-3 for v, t in zip(leaves(result), leaves(truth), strict=True)), mutant


def test_mutants_run_eagerly_in_other_dtypes_and_under_vmap(found):
    reversed_direction = found["cumulative_sum"][1].backward
    assert "reverse" in found["cumulative_sum"][1].name
    dys = jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3, 1)
    (dx,) = jax.vmap(lambda dy: reversed_direction((dy,), dy))(dys)
    assert dx.dtype == jnp.bfloat16
    assert dx[..., 0].tolist() == [[0, 1, 3], [3, 7, 12]]


def test_a_mutant_in_a_scans_body_changes_the_body_alone(found):
    (mutant,) = [m for m in found["recurrence"] if "keep only the left operand of scan[" in m.name and "add" in m.name]
    (a, hs), dy = CASES["recurrence"][1:]
    da, dx = mutant.backward((a, hs), dy)
    assert not np.any(da)
    assert not np.any(dx)


def test_a_step_of_a_scans_body_keeps_its_shape():
    def halved(x, dy):
        return lax.scan(lambda carry, v: (carry, (v * 0.5).reshape(2, 2).sum(0)), 0, dy)[1] + x

    assert {m.name.split(" ")[0] for m in mutants(halved, draw(3, 2), draw(3, 4))} >= {"add", "keep"}


def test_the_largest_number_is_doubled_without_a_warning(recwarn):
    list(mutants(lambda x, dy: dy * jnp.where(x > 0, jnp.finfo(x.dtype).max, 1), draw(3), draw(3)))
    assert [str(w.message) for w in recwarn.list] == []


def test_what_is_invariant_is_left_out_with_its_reason():
    reasons = {m.name.split(" (")[0]: m.equivalent for m in equivalents(softmax, *SQUARE)}
    nothing = "no output depends on this step: random values in its place give the same at 5 random points"
    assert reasons["min for reduce_max[0]"] == nothing
    assert reasons["negate exp[3]"] == "equal at 5 random points bit for bit"
    repeated = [n for n, why in reasons.items() if why.startswith("gives what another mutant gives: negate mul[7]")]
    assert repeated == ["add for sub[10]"]


def test_ties_and_dead_steps_are_left_out_with_their_reason():
    reasons = {m.name.split(" (")[0]: m.equivalent for m in equivalents(relu, *SQUARE)}
    assert reasons["ge for gt[0]"] == "differs only where the operands are equal, and gives the same at 5 random points"

    def with_a_dead_step(x):
        lax.sin(x)
        return lax.neg(x)

    dead = [m for m in equivalents(with_a_dead_step, draw(3)) if "sin" in m.name]
    assert {m.equivalent for m in dead} == {"its result reaches no output"}
    assert len(dead) == 2


def test_a_tie_at_a_point_makes_the_comparison_a_mutant():
    points = [((np.array([0.0, 1.0, -1.0]),), np.ones(3))]
    kept = names(mutants(relu, *points[0], points=points))
    assert "ge for gt[0]" in kept
    assert "ge for gt[0]" not in names(mutants(relu, *points[0]))


def test_a_dependence_on_one_element_in_a_thousand_is_seen():
    """What is left out as equal is equal everywhere: the largest error decides, not a mean."""

    def one_slot(x):
        return x.at[7].add(1e-6 * jnp.sin(x[3]))

    kept = names(mutants(one_slot, draw(1000)))
    assert any(n.startswith("cos for sin") for n in kept)


def test_an_unrolled_loop_gives_its_first_and_last_round():
    def unrolled(x):
        for _ in range(6):
            x = jnp.tanh(x)
        return x

    seen = [m.name.split(" (")[0] for m in [*mutants(unrolled, draw(3)), *equivalents(unrolled, draw(3))]]
    assert {n.split("tanh")[1] for n in seen} == {"[0]", "[5]"}


def test_two_products_in_one_line_are_two_steps():
    kept = names(mutants(lambda x, y, z: x * y * z + z, draw(3), draw(3), draw(3)))
    assert {n for n in kept if n.startswith("keep only the left operand of mul")} == {
        "keep only the left operand of mul[0]",
        "keep only the left operand of mul[1]",
    }


def test_specifications_are_filled_and_what_is_no_array_is_static():
    def scaled(x, power):
        return x**power * 3.0

    kept = names(mutants(scaled, jax.ShapeDtypeStruct((3,), jnp.float32), 2))
    assert collections.Counter(n.split()[0] for n in kept)["exponent"] == 2


def test_a_backward_that_is_nowhere_finite_is_refused():
    with pytest.raises(ValueError) as e:
        mutants(lambda x: jnp.log(x - x), draw(3))
    assert str(e.value) == "at no point tried are all results of the backward finite, so no mutant can be told from it"


def test_shapes_for_which_the_program_is_another_are_refused():
    def by_rank(x):
        return jnp.exp(x) if x.ndim == 1 else jnp.tanh(x)

    first = next(mutants(by_rank, draw(3)))
    with pytest.raises(ValueError, match=r"for these dtypes or shapes the backward has no step .*'exp'"):
        first.backward(draw(3, 3))
