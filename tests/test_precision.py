"""Products as accelerators take their operands: what the table of modelled errors is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks.bench_precision import WAYS, as_on_a_device, measured, read, to_bits
from benchmarks.in_readme import PRECISION
from bpref.rules import RULES
from docs import figures


def of_program(f, way, *inputs):
    return as_on_a_device(jax.make_jaxpr(f)(*inputs))(way, *inputs)[0]


@pytest.mark.parametrize(("bits", "mantissa"), [(8, 7), (11, 10), (24, 23)])
def test_a_number_is_rounded_as_the_format_has_it(bits, mantissa):
    x = np.random.default_rng(0).normal(size=1000).astype(np.float32) * np.float32(1e5)
    x[:5] = 0.0, np.inf, -np.inf, 1 + 2**-8, 1 + 3 * 2**-8  # the last two half between bfloat16's
    np.testing.assert_array_equal(to_bits(jnp.asarray(x), bits), lax.reduce_precision(x, 8, mantissa))


def test_operands_of_a_product_are_taken_in_so_many_terms():
    a, b = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(((4, 30), (30, 5))))
    halves = [[np.asarray(v.astype(jnp.bfloat16), np.float64)] for v in (a, b)]
    for terms, v in zip(halves, (a, b), strict=True):
        terms.append(np.asarray(jnp.asarray(v - terms[0], jnp.bfloat16), np.float64))
    (a1, a2), (b1, b2) = halves
    for way, expected in (("bfloat16", a1 @ b1), ("3 passes", a1 @ b1 + a1 @ b2 + a2 @ b1)):
        np.testing.assert_allclose(of_program(jnp.matmul, WAYS[way], a, b), expected, rtol=1e-5, atol=1e-6)


def test_a_product_that_asks_for_more_and_one_in_a_loop_or_a_rule():
    a = jax.random.normal(jax.random.key(0), (6, 6))

    def asked(a):
        return jnp.matmul(a, a, precision="highest")

    def in_a_loop(a):
        return lax.fori_loop(0, 1, lambda i, v: v @ a, a)

    in_a_rule = jax.custom_jvp(lambda a: a @ a)
    in_a_rule.defjvp(lambda primals, tangents: (primals[0] @ primals[0], tangents[0]))

    plain, rounded = a @ a, of_program(jnp.matmul, WAYS["bfloat16"], a, a)
    np.testing.assert_array_equal(of_program(asked, WAYS["bfloat16"], a), plain)
    assert np.abs(rounded - plain).max() > 1e-3
    for f in (in_a_loop, in_a_rule):
        np.testing.assert_allclose(of_program(f, WAYS["bfloat16"], a), rounded, rtol=1e-6)


def test_what_is_shown_is_what_is_measured():
    rows = read(PRECISION)
    assert list(rows) == [name for name in RULES if name in rows]
    for name in ("linear", "convolution"):
        row = measured(RULES[name])
        assert row._replace(errors={}) == rows[name]._replace(errors={})
        for way, error in row.errors.items():
            np.testing.assert_allclose(error, rows[name].errors[way], rtol=1)  # another machine rounds otherwise
    for name in ("tanh", "layer_norm"):
        assert measured(RULES[name]) is None
        assert name not in rows
    assert "<b>3e-03</b> in bfloat16, what a TPU does" in figures.in_fewer_bits("linear")
    assert figures.in_fewer_bits("tanh") == ""


def test_the_laws_hold_for_highest():
    """Six passes are as good as float32."""
    assert {
        name for name, row in read(PRECISION).items() if row.errors["6 passes"] > 4 * row.errors["float32"] + 1e-6
    } == set()
