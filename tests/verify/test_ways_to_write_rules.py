"""Odd but legal ways to write a rule: a right one is right and a wrong one wrong, in `check` and in `audit`."""

import dataclasses
import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_derivatives import SymbolicZero, linear_call
from jax.experimental.hijax import VJPHiPrimitive
from jax.sharding import PartitionSpec as P

import bpref
from tests.conftest import SEED

RNG = np.random.default_rng(SEED)
X = RNG.normal(size=(3, 4)).astype(np.float32)
Y = RNG.normal(size=(3, 4)).astype(np.float32)
Z = (X + 1j * Y).astype(np.complex64)


def rule(primal, backward, forward=None, symbolic_zeros=False, optimize_remat=False, **options):
    f = jax.custom_vjp(primal, **options)
    f.defvjp(
        forward or (lambda *args: (primal(*args), args)),
        backward,
        symbolic_zeros=symbolic_zeros,
        optimize_remat=optimize_remat,
    )
    return f


def sine(k, **options):
    return rule(jnp.sin, lambda kept, dy: (k * dy * jnp.cos(kept[0]),), **options)


def power(k, **options):
    return rule(lambda x, n: x**n, lambda n, kept, dy: (k * dy * n * kept[0] ** (n - 1),), **options)


def tangents_of_power(k, n, primals, tangents):
    (x,), (dx,) = primals, tangents
    return x**n, k * n * x ** (n - 1) * dx


WAYS = {
    "an_argument_that_is_static_by_name": lambda k: (power(k, nondiff_argnames=("n",)), (np.abs(X), 3)),
    "an_optimised_remat": lambda k: (sine(k, optimize_remat=True), (X,)),
    "under_jit": lambda k: (jax.jit(sine(k)), (X,)),
    "under_checkpoint_and_vmap": lambda k: (jax.checkpoint(jax.vmap(sine(k))), (X,)),
    "a_scalar": lambda k: (sine(k), (np.float32(0.3),)),
    "a_complex_square": lambda k: (rule(lambda z: z * z, lambda kept, dy: (2 * k * kept[0] * dy,)), (Z,)),
    "a_real_value_of_complex_numbers": lambda k: (
        rule(lambda z: jnp.real(z * jnp.conj(z)), lambda kept, dy: (2 * k * jnp.conj(kept[0]) * dy,)),
        (Z,),
    ),
    "any_number_of_arguments": lambda k: (
        rule(lambda *xs: sum(xs), lambda kept, dy: tuple(k * dy for _ in kept)),
        (X, Y, X),
    ),
    "a_default_that_is_an_array": lambda k: (
        rule(lambda x, w=Y: x * w, lambda kept, dy: (k * dy * kept[1], dy * kept[0])),
        (X,),
    ),
    "a_residual_that_is_an_integer_or_none": lambda k: (
        rule(lambda x: 2 * x, lambda kept, dy: (2 * k * dy,), lambda x: (2 * x, (len(x), None))),
        (X,),
    ),
    "a_custom_gradient": lambda k: (
        jax.custom_gradient(lambda x: (jnp.sin(x), lambda dy: (k * dy * jnp.cos(x),))),
        (X,),
    ),
    "a_list_as_an_argument": lambda k: (
        rule(lambda p: p[0] * p[1], lambda kept, dy: ([k * dy * kept[0][1], dy * kept[0][0]],)),
        ([X, Y],),
    ),
    "a_primitive_of_hijax": lambda k: ((lambda x: Sine(jax.typeof(x), k)(x)), (X,)),
}
"""Of each way a function `factor -> (function, args)`, whose rule gives the cotangent of x so many times too large."""


def way(f):
    WAYS[f.__name__] = f
    return f


@way
def a_keyword_that_is_static(k):
    f = power(k, nondiff_argnums=(1,))
    return lambda x: f(x, n=3), (np.abs(X),)


@way
def keywords_in_another_order(k):
    f = rule(lambda x, y: x * y, lambda kept, dy: (k * dy * kept[1], dy * kept[0]))
    return lambda a, b: f(y=b, x=a), (X, Y)


@way
def zeros_that_are_symbolic(k):
    def forward(x, y):
        return jnp.sin(x.value) * y.value, (x.value, y.value)

    def backward(kept, dy):
        dy = jnp.zeros_like(kept[0]) if isinstance(dy, SymbolicZero) else dy
        return k * dy * jnp.cos(kept[0]) * kept[1], dy * jnp.sin(kept[0])

    return rule(lambda x, y: jnp.sin(x) * y, backward, forward, symbolic_zeros=True), (X, Y)


@way
def none_among_the_arguments(k):
    def backward(kept, dy):
        return ({"a": k * dy * jnp.cos(kept[0]["a"]), "b": None},)

    return rule(lambda p: jnp.sin(p["a"]), backward), ({"a": X, "b": None},)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Affine:
    w: Any
    b: Any
    name: str = dataclasses.field(default="", metadata={"static": True})


@way
def a_dataclass(k):
    def backward(kept, dy):
        p, x = kept
        return Affine(k * dy * x, dy, p.name), dy * p.w

    return rule(lambda p, x: p.w * x + p.b, backward), (Affine(X, Y, "a"), X)


@way
def a_partial(k):
    def backward(n, kept, dy):
        return (k * dy * n * kept[1] ** (n - 1),)

    return partial(rule(lambda n, x: x**n, backward, nondiff_argnums=(0,)), 3), (np.abs(X),)


@way
def a_class_with_a_method(k):
    class Scaled:
        scale = 2.0

        @partial(jax.custom_vjp, nondiff_argnums=(0,))
        def apply(self, x):
            return self.scale * jnp.sin(x)

        apply.defvjp(
            lambda self, x: (self.scale * jnp.sin(x), x), lambda self, x, dy: (k * self.scale * dy * jnp.cos(x),)
        )

        def __call__(self, x):
            return Scaled.apply(self, x)

    return Scaled(), (X,)


@way
def a_static_argument_without_a_hash(k):
    def backward(options, x, dy):
        return (k * options["scale"] * dy * jnp.cos(x),)

    def primal(x, options):
        return options["scale"] * jnp.sin(x)

    f = rule(primal, backward, lambda x, options: (primal(x, options), x), nondiff_argnums=(1,))
    return f, (X, {"scale": 2.0, "kinds": {1}})


@way
def tangents_with_a_static_argument(k):
    f = jax.custom_jvp(lambda x, n: x**n, nondiff_argnums=(1,))
    f.defjvp(partial(tangents_of_power, k))
    return f, (np.abs(X), 3)


@way
def tangents_with_a_static_default(k):
    f = jax.custom_jvp(lambda x, n=3: x**n, nondiff_argnums=(1,))
    f.defjvp(partial(tangents_of_power, k))
    return f, (np.abs(X),)


@way
def tangents_with_a_default(k):
    f = jax.custom_jvp(lambda x, c=3.0: c * jnp.sin(x))
    f.defjvp(lambda p, t: (f(*p), k * p[1] * jnp.cos(p[0]) * t[0] + jnp.sin(p[0]) * t[1]))
    return f, (X,)


@way
def tangents_one_by_one(k):
    f = jax.custom_jvp(lambda x, y: x * y)
    f.defjvps(lambda t, ans, x, y: k * t * y, lambda t, ans, x, y: t * x)
    return f, (X, Y)


@way
def tangents_that_are_symbolic(k):
    def tangents(primals, moved):
        dx, dy = (jnp.zeros_like(X, v.dtype) if isinstance(v, SymbolicZero) else v for v in moved)
        return f(*primals), k * dx * primals[1] + dy * primals[0]

    f = jax.custom_jvp(lambda x, y: x * y)
    f.defjvp(tangents, symbolic_zeros=True)
    return f, (X, Y)


@way
def an_integer_output_and_none(k):
    def primal(x):
        return {"y": jnp.sin(x), "n": jnp.argmax(x), "z": None}

    return rule(primal, lambda kept, dy: (k * dy["y"] * jnp.cos(kept[0]),)), (X,)


@way
def a_keyword_only_default(k):
    f = rule(
        lambda x, *, s=2.0: s * jnp.sin(x),
        lambda x, dy: (2 * k * dy * jnp.cos(x),),
        lambda x: (2 * jnp.sin(x), x),
    )
    return f, (X,)


@way
def a_converted_closure(k):
    def f(x, w):
        h, constants = jax.closure_convert(lambda v: jnp.sin(v) * w, x)
        g = rule(h, lambda kept, dy: (k * dy * jnp.cos(kept[0]) * kept[1], dy * jnp.sin(kept[0])))
        return g(x, *constants)

    return f, (X, Y)


@way
def a_wrapper(k):
    f = sine(k)
    return functools.wraps(f)(lambda x: f(x)), (X,)


@way
def in_a_shard_map(k):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("d",))
    f = sine(k)
    both = jax.shard_map(
        lambda x, w: jax.lax.psum(f(x @ w), "d"), mesh=mesh, in_specs=(P(None, "d"), P("d", None)), out_specs=P()
    )
    return both, (X, Y.T)


@way
def a_transpose_of_a_linear_call(k):
    def f(x):
        return linear_call(lambda w, x: x @ w, lambda w, dy: k * dy @ w.T, jnp.asarray(Y.T), jnp.sin(x))

    return f, (X,)


class Sine(VJPHiPrimitive):
    def __init__(self, aval, k):
        self.in_avals, self.out_aval, self.params = (aval,), aval, {"k": k}
        super().__init__()

    def expand(self, x):
        return jnp.sin(x)

    def vjp_fwd(self, nonzero, x):
        return self(x), x

    def vjp_bwd_retval(self, x, dy):
        return (self.params["k"] * dy * jnp.cos(x),)

    def batch_dim_rule(self, axis_data, dims):
        return dims[0]


@way
def a_reference_that_is_written_into(k):
    def primal(x):
        total = jax.new_ref(jnp.zeros_like(x))
        total[...] = jnp.sin(x)
        total[...] += x
        return total[...]

    return rule(primal, lambda kept, dy: (k * dy * (1 + jnp.cos(kept[0])),)), (X,)


NOT_AUDITED = {"in_a_shard_map"}
"""Where an audit says that it does not look into it."""


@pytest.mark.parametrize("factor", [1.0, 1.1])
@pytest.mark.parametrize("name", WAYS)
def test_a_rule_is_judged_however_it_is_written(name, factor, standard_promotion):
    f, args = WAYS[name](factor)
    expected = "ok" if factor == 1 else "wrong"
    assert bpref.check(f, *args, key=1).verdict == expected
    expected = "not run" if name in NOT_AUDITED else expected
    assert bpref.audit(f, *args, key=1).verdict == expected


def test_a_rule_in_a_branch_that_is_not_taken_is_said_to_have_not_run():
    wrong, right = sine(2.0), rule(jnp.tanh, lambda kept, dy: (dy * (1 - jnp.tanh(kept[0]) ** 2),))

    def f(x, limit):
        return jax.lax.cond(x.sum() > limit, lambda v: wrong(v), lambda v: right(v), x)

    for limit, verdict, other in ((1e9, "ok", "sin"), (-1e9, "wrong", "tanh")):
        report = bpref.check(f, X, limit, key=1)
        assert report.verdict == verdict
        (note,) = report.notes
        assert note.startswith(f"the rule {other} at ")
        assert note.endswith(" did not run, and was not judged")


def test_an_empty_array_has_no_wrong_cotangent():
    assert bpref.check(sine(2.0), X[:0], key=1).ok


@pytest.mark.parametrize("reference", [None, lambda x, w: jnp.sin(x) * jnp.tanh(w)])
def test_a_rule_that_closes_over_an_argument_is_told_so(reference):
    """JAX itself raises 'Detected differentiation of a custom_vjp function with respect to a closed-over value'."""

    def f(x, w):
        s = jnp.tanh(w)
        return rule(lambda x: jnp.sin(x) * s, lambda kept, dy: (dy * jnp.cos(kept[0]) * s,))(x)

    message = "f: a rule in it closes over an array of shape (3, 4), an argument or what was made of one"
    with pytest.raises(ValueError) as refused:
        bpref.check(f, X, Y, reference=reference, key=1)
    assert str(refused.value).startswith(message)
    (site,) = bpref.audit(f, X, Y, key=1).sites
    assert site.verdict == "cannot tell"
    assert "closes over an array of shape (3, 4)" in site.detail
