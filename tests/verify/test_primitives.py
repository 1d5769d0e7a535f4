"""Primitives of another package, with derivative rules of their own; and programs that JAX alone never holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.ode import odeint
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

import bpref

X = np.array([0.3, -1.2, 0.7], np.float32)


def primitive(name, slope, **static):
    """`x -> x^2` as a primitive, whose derivative is said to be `slope * x`."""
    square = Primitive(name)

    def jvp(primals, tangents, **static):
        (x,), (dx,) = primals, tangents
        return square.bind(x, **static), slope * x * ad.instantiate_zeros(dx)

    square.def_abstract_eval(lambda x, **static: x)
    square.def_impl(lambda x, **static: x * x)
    mlir.register_lowering(square, mlir.lower_fun(lambda x, **static: x * x, multiple_results=False))
    ad.primitive_jvps[square] = jvp
    batching.primitive_batchers[square] = lambda xs, axes, **static: (square.bind(*xs, **static), axes[0])
    return lambda x: square.bind(x, **static)


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, dy: (2 * dy,))


@pytest.mark.parametrize(("slope", "verdict"), [(2, "ok"), (3, "wrong")])
def test_the_rule_of_a_primitive_is_held_against_finite_differences(slope, verdict):
    # By its name it is JAX's own linear solve; in another one's words, lineax's is.
    square = primitive("linear_solve", slope)
    report = bpref.check(lambda x: doubled(square(x)), X, key=1)
    assert report.verdict == verdict
    assert report.oracle.startswith("numerical oracle: finite differences of its own primal")
    assert report.notes == (
        "the primitive linear_solve (tests) in it has a derivative rule of its own, and autodiff uses that",
    )


def test_an_audit_cannot_tell_of_the_rule_of_a_primitive_and_says_why():
    square = primitive("squared", 2)
    report = bpref.audit(lambda x: jax.jit(lambda x: doubled(square(x)))(x), X, key=1)
    assert [(s.name, s.kind, s.verdict) for s in report.sites] == [
        ("doubled", "custom_vjp", "ok"),
        ("squared", "primitive of tests", "cannot tell"),
    ]
    assert report.sites[1].detail == (
        "its derivative is a rule of the primitive itself, which has no body that autodiff could differentiate: use "
        "check, whose oracle is then numerical"
    )


def test_a_program_that_lacks_its_constants_is_read_all_the_same():
    """As a primitive of optimistix has one in its parameters."""
    held = jnp.array([1.0, 2.0, 3.0])
    program = jax.make_jaxpr(lambda x: x * held)(X).jaxpr
    assert program.constvars
    square = primitive("holding", 2, program=program)
    assert [s.verdict for s in bpref.audit(lambda x: doubled(square(x)), X, key=1).sites] == ["ok", "cannot tell"]


def test_the_rule_of_odeint_is_audited_in_the_dtype_that_its_function_was_closed_over_in():
    def solved(y):
        return odeint(lambda y, t: -y, y, jnp.array([0.0, 0.5]))

    # The solver chooses its steps by the values: where it jumps at a draw the oracle is not sure, as with key 1.
    (site,) = bpref.audit(solved, X, key=2).sites
    assert (site.name, site.verdict, site.detail) == ("ode._odeint", "ok", "")
