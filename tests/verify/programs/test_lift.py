"""A lifted function: float64 all the way, whatever it casts to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bpref.verify.programs.lift import lift, narrowest
from bpref.verify.programs.strip import strip_custom_rules

LOW, SINGLE, DOUBLE = jnp.bfloat16, jnp.float32, jnp.float64


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def x():
    return jnp.linspace(0.1, 0.9, 12, dtype=DOUBLE).reshape(3, 4)


def true_rms_norm(x):
    return x * lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 2.0**-20)


@jax.custom_vjp
def rms_norm(x, n):
    """In float32, as kernels are, with a rule that is right and in float32 too."""
    return true_rms_norm(x.astype(SINGLE))


def rms_norm_forward(x, n):
    rstd = lax.rsqrt(jnp.mean(jnp.square(x.astype(SINGLE)), -1, keepdims=True) + 2.0**-20)
    return x.astype(SINGLE) * rstd, (x, rstd, n)


def rms_norm_backward(residuals, dy):
    x, rstd, _ = residuals
    x_single = x.astype(SINGLE)
    return (dy * rstd - x_single * rstd**3 * jnp.mean(dy * x_single, -1, keepdims=True)).astype(x.dtype), None


rms_norm.defvjp(rms_norm_forward, rms_norm_backward)


@jax.custom_jvp
def low_tanh(x, n):
    return jnp.tanh(x.astype(LOW)).astype(x.dtype), n + 1


@low_tanh.defjvp
def _(primals, tangents):
    (x, n), (dx, _) = primals, tangents
    y, n = low_tanh(x, n)
    return (y, n), ((dx.astype(LOW) * (1 - y.astype(LOW) ** 2)).astype(x.dtype), np.zeros(n.shape, jax.dtypes.float0))


def mixed(x):
    """bfloat16 products, a bfloat16 carry, reduced precision, and rules in float32 and bfloat16, in loops and jit."""

    def step(carry, v):
        carry = (carry + rms_norm(v[None], jnp.int32(1))[0]).astype(LOW).astype(SINGLE)
        return carry, jnp.sum(carry * v.astype(SINGLE))

    carry, ys = lax.scan(jax.checkpoint(step), jnp.zeros(4, SINGLE), x)
    product = lax.cond(
        carry[0] > 0,
        lambda x: jnp.dot(x.astype(LOW), x.T.astype(LOW), preferred_element_type=SINGLE).sum(),
        lambda x: x[0, 0].astype(SINGLE),
        x,
    )
    _, z = lax.fori_loop(0, 2, lambda _, s: (s[0] + 1, low_tanh(s[1], s[0])[0]), (0, carry))
    z = jax.jit(lambda z: z * lax.reduce_precision(product, 8, 7) + jnp.arange(4, dtype=SINGLE))(z)
    return z.sum() + ys.sum() + x.at[0].add(x[1]).astype(SINGLE).sum()


def truth(x):
    carry = jnp.cumsum(true_rms_norm(x), 0)
    z = jnp.tanh(jnp.tanh(carry[-1])) * jnp.sum(x @ x.T) + jnp.arange(4.0)
    return z.sum() + jnp.sum(carry * x) + x.at[0].add(x[1]).sum()


def test_a_mixed_precision_function_is_evaluated_in_float64(x):
    assert abs(float(mixed(x)) - float(truth(x))) > 1e-3
    y = jax.jit(lift(mixed))(x)
    assert y.dtype == DOUBLE
    assert abs(y - truth(x)) < 1e-13


@pytest.mark.parametrize("how", [lift, lambda f: lift(strip_custom_rules(f)), lambda f: strip_custom_rules(lift(f))])
def test_its_gradient_too_by_its_rules_and_without_them(how, x):
    np.testing.assert_allclose(jax.grad(how(mixed))(x), jax.grad(truth)(x), rtol=1e-13)


def test_rules_in_float32_are_lifted_with_what_is_wrong_in_them(x):
    wrong = jax.custom_vjp(lambda x: jnp.sin(x.astype(SINGLE)))
    wrong.defvjp(
        lambda x: (jnp.sin(x.astype(SINGLE)), x),
        lambda x, d: ((1.001 * d * jnp.cos(x.astype(SINGLE))).astype(x.dtype),),
    )
    gradient = jax.grad(lambda x: lift(wrong)(x).sum())(x)
    # 1.001 was written in float32
    np.testing.assert_allclose(gradient / jnp.cos(x), float(np.float32(1.001)), rtol=1e-14)


def test_tangents_of_a_lifted_rule_with_an_integer(x):
    (y, n), (dy, _) = jax.jvp(lambda x: lift(low_tanh)(x, jnp.int32(2)), (x,), (x,))
    assert n == 3
    np.testing.assert_allclose(y, jnp.tanh(x), rtol=1e-15)
    np.testing.assert_allclose(dy, (1 - jnp.tanh(x) ** 2) * x, rtol=1e-14)


PROGRAMS = {
    "reduction": (lambda x: lax.reduce(x, SINGLE(0), lambda a, b: a + 2 * b, (0,)), lambda x: 2 * x.sum(0)),
    "scatter": (lambda x: x.at[jnp.array([0, 1])].mul(3.0).at[0].max(0.5), lambda x: np.maximum(x * F, M)),
    "solve": (
        lambda x: jnp.linalg.solve(x.T @ x + jnp.eye(4, dtype=SINGLE), x[0]),
        lambda x: np.linalg.solve(x.T @ x + np.eye(4), x[0]),
    ),
    "spectrum": (lambda x: jnp.abs(jnp.fft.fft(x)), lambda x: np.abs(np.fft.fft(x))),
    "softmax": (lambda x: jax.nn.logsumexp(x.astype(LOW), axis=1), lambda x: np.log(np.exp(x).sum(1))),
    "product": (
        lambda x: jnp.dot(x, x.T, precision="BF16_BF16_F32", preferred_element_type=SINGLE),
        lambda x: x @ x.T,
    ),
}  # fmt: skip
F, M = np.array([[3.0], [3.0], [1.0]]), np.array([[0.5], [-np.inf], [-np.inf]])


@pytest.mark.parametrize("name", PROGRAMS)
def test_primitives_that_name_a_dtype(name, x):
    fun, truth = PROGRAMS[name]
    x = x.astype(SINGLE)
    y = lift(fun)(x)
    assert y.dtype == DOUBLE
    np.testing.assert_allclose(y, truth(np.asarray(x, DOUBLE)), rtol=1e-13)


def test_a_function_that_only_takes_float32_is_lifted_at_float64_values(x):
    def convolve(x):
        return lax.conv(x[None, None], x[None, None, :2, :2], (1, 1), "SAME", preferred_element_type=SINGLE).sum()

    with pytest.raises(TypeError, match="preferred_element_type"):
        lift(convolve)(x)
    h = 1e-6
    slope = (lift(convolve, at=SINGLE)((1 + h) * x) - lift(convolve, at=SINGLE)((1 - h) * x)) / (2 * h)
    gradient = jax.grad(lift(convolve, at=SINGLE))(x)
    assert gradient.dtype == DOUBLE
    assert abs(jnp.sum(gradient * x) - slope) < 1e-8


def test_random_numbers_are_those_drawn():
    y = lift(lambda key: jax.random.normal(key, (5,), SINGLE))(jax.random.key(0))
    assert y.dtype == DOUBLE
    np.testing.assert_allclose(y, jax.random.normal(jax.random.key(0), (5,), SINGLE), atol=1e-6)


def test_what_cannot_be_lifted_says_so(x):
    with pytest.raises(NotImplementedError, match=r"^lift: a bitcast of a floating-point value"):
        lift(jnp.signbit)(x)
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"^lift: 64-bit numbers are not enabled"):
        lift(jnp.sin)(jnp.zeros(2))


def in_a_carry(x):
    """Narrow only in the third iteration: the value must go through the carry twice."""
    zeros = jnp.zeros_like(x[0])
    return lax.scan(lambda c, v: ((c[1], v, c[0].astype(SINGLE)), v), (zeros, zeros, zeros.astype(SINGLE)), x)[0]


CASTS = {
    "none": (truth, None),
    "bfloat16 and float32": (mixed, "bfloat16"),
    "in a rule": (lambda x: rms_norm(x, 1), "float32"),
    "in a carry": (in_a_carry, "float32"),
    "product": (lambda x: jnp.dot(x, x.T, preferred_element_type=SINGLE), "float32"),
    "reduced precision": (lambda x: lax.reduce_precision(x, 5, 10), "float16"),
    "in a while loop": (
        lambda x: lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1].astype(SINGLE).astype(DOUBLE)), (0, x)),
        "float32",
    ),
    "of a constant": (lambda x: x * jnp.ones(x.shape, DOUBLE).astype(SINGLE).astype(DOUBLE), None),
    "to integers": (lambda x: x.astype(jnp.int32) + jnp.argmax(x.astype(jnp.int8).astype(LOW)).astype(jnp.int32), None),
}


@pytest.mark.parametrize("name", CASTS)
def test_the_narrowest_cast(name, x):
    fun, dtype = CASTS[name]
    assert narrowest(jax.make_jaxpr(fun)(x), DOUBLE) == (dtype and jnp.dtype(dtype))
