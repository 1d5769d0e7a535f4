"""The declaration of shapes: how it is read, what fits, and the whole message of what does not."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array, ShapeDtypeStruct
from jaxtyping import Bool, Float, Int

import bpref
from bpref.checks.shapes import Call, normalized
from tests.refusing import refusals

pytestmark = pytest.mark.quick


class Labelled(NamedTuple):
    logits: Float[Array, "*n C>0"]
    labels: Int[Array, "*n"] | Float[Array, "*n C"]
    real: Bool[Array, "*n"] | None = None


class Two(NamedTuple):
    a: Float[Array, "some=*n"]
    b: Float[Array, "*n"]


class Named(NamedTuple):
    a: Float[Array, "N C"]
    b: Float[Array, "N C"] | None = None

    by_name = True


class Three(NamedTuple):
    pair: Two
    label: Int[Array, "*n"] | Bool[Array, "*n"]
    like: Float[Array, " N"] | Float[Array, "N N"]


def of(*shape: int, dtype: Any = jnp.float32) -> Any:
    return ShapeDtypeStruct(shape, dtype)


def ints(*shape: int) -> Any:
    return of(*shape, dtype=jnp.int32)


FITS = {
    "any rank": (of(2, 3, 4), Float[Array, "... d>0"]),
    "a vector": (of(4), Float[Array, "... d>0"]),
    "no examples": (of(0, 4), Float[Array, "*n d>0"]),
    "labels": (Labelled(of(2, 3), ints(2)), Labelled),
    "distributions": (Labelled(of(2, 3), of(2, 3)), Labelled),
    "a mask": (Labelled(of(2, 3), ints(2), of(2, dtype=bool)), Labelled),
    "one longer": ((of(4), of(3)), tuple[Float[Array, " T+1"], Float[Array, " T"]]),
    "twice": ((of(8), of(4)), tuple[Float[Array, " 2*m"], Float[Array, " m"]]),
    "one for all": ((of(4), of(1)), tuple[Float[Array, " d"], Float[Array, "#d"]]),
    "batches that broadcast": ((of(4, 2, 3), of(1, 2, 3)), tuple[Float[Array, "*b d"], Float[Array, "*#b d"]]),
    "a number": (Two(of(), of()), Two | Three),
    "the longer tuple": (Three(Two(of(2), of(2)), of(2, dtype=bool), of(3, 3)), Two | Three),
    "what the layer alone knows": (of(7), Float[Array, "k*m"]),
}


@pytest.mark.parametrize(("x", "declared"), FITS.values(), ids=FITS)
def test_what_is_declared_fits(x, declared):
    Call("me").require("x", x, declared)


MISFITS = {
    "me: x has shape (), expected (..., d) with d > 0": (of(), Float[Array, "... d>0"]),
    "me: x has shape (4, 0), expected (..., d) with d > 0": (of(4, 0), Float[Array, "... d>0"]),
    "me: x has shape (2, 3, 4), expected (N, d)": (of(2, 3, 4), Float[Array, "N d"]),
    "me: labels has shape (4,), expected (*n) = (2,) by logits (2, 3)": (Labelled(of(2, 3), ints(4)), Labelled),
    "me: labels has shape (2, 4), expected (*n, C) = (2, 3) by logits (2, 3)": (Labelled(of(2, 3), of(2, 4)), Labelled),
    "me: x[1] has shape (4,), expected (T,) = (3,) by x[0] (4,)": (
        (of(4), of(4)),
        tuple[Float[Array, " T+1"], Float[Array, " T"]],
    ),
    "me: a has shape (2, 0), expected (*n) with *n > 0": (Two(of(2, 0), of(2, 0)), Two),
    "me: pair.b has shape (3,), expected (*n) = (2,) by pair.a (2,)": (Three(Two(of(2), of(3)), ints(2), of(3)), Three),
    "me: like has shape (2, 3), expected (N,) or (N, N)": (Three(Two(of(2), of(2)), ints(2), of(2, 3)), Three),
    "me: x has shape (7,), expected (2*m,)": (of(7), Float[Array, "2*m"]),
    "me: x[1] has shape (2,), expected (d,) = (3,) by x[0] (3,), or 1 in place of any": (
        (of(3), of(2)),
        tuple[Float[Array, " d"], Float[Array, "#d"]],
    ),
}


test_another_shape = refusals(MISFITS, lambda x: Call("me").require("x", *x))


OF_ANOTHER_KIND = {
    "TypeError: me: x has dtype int32, expected a floating-point dtype such as float32": (ints(3), Float[Array, " d"]),
    "TypeError: me: x has dtype float32, expected an integer dtype such as int32": (of(3), Int[Array, " N"]),
    "TypeError: me: real has dtype int32, expected bool": (Labelled(of(2, 3), ints(2), ints(2)), Labelled),
    "TypeError: me: labels has dtype bfloat16, logits has float32; cast one to the other's": (
        Labelled(of(2, 3), of(2, 3, dtype=jnp.bfloat16)),
        Labelled,
    ),
    "TypeError: me: label has dtype float32, expected integers or booleans": (
        Three(Two(of(2), of(2)), of(2), of(2)),
        Three,
    ),
    "TypeError: me: x is a list, expected an array": ([1.0], Float[Array, " d"]),
    "TypeError: me: labels is None, expected an array": ((of(2, 3), None), Labelled),
}


test_another_kind = refusals(OF_ANOTHER_KIND, lambda x: Call("me").require("x", *x))


def test_a_plain_tuple_is_named_and_numbers_become_arrays():
    x = normalized("me", ([[1.0, 2.0]], [0]), Labelled)
    assert isinstance(x, Labelled)
    assert (x.logits.shape, x.labels.shape, x.real) == ((1, 2), (1,), None)


def test_a_tuple_in_a_tuple_is_named_and_numpy_s_numbers_become_those_of_jax():
    x = normalized("me", ((np.ones(2), 1.0), np.ones(2, bool), [1.0]), Two | Three)
    assert isinstance(x, Three)
    assert isinstance(x.pair, Two)
    assert {v.dtype for v in jax.tree.leaves(x)} == {jnp.dtype("float32"), jnp.dtype("bool")}


test_another_tuple = refusals(
    {
        "TypeError: me: x is a tuple of 4, expected a tuple (a, b)": ((of(2), of(2), of(2), of(2)), Two | Three),
        "TypeError: me: pair is a tuple of 1, expected a tuple (a, b)": (((of(2),), of(2), of(2)), Three),
        "TypeError: me: x is a tuple of 1, expected a tuple (logits, labels, [real])": ((of(2, 3),), Labelled),
        "TypeError: me: x is an array, expected a tuple (logits, labels, [real])": (of(2, 3), Labelled),
        "TypeError: me: labels is a str, expected an array": ((of(3), "0"), Labelled),
        "TypeError: me: x is a tuple of 2, expected an array or Named(a, [b])": (
            (of(2, 3), of(2, 3)),
            Float[Array, "N C"] | Named,
        ),
        "TypeError: me: x is an array, expected Named(a, [b])": (of(2, 3), Named),
        "TypeError: me: x is a tuple of 3, expected an array or a tuple (a, b)": (
            (of(2), of(2), of(2)),
            Float[Array, "N C"] | Two,
        ),
    },
    lambda x: normalized("me", *x),
)


X = jnp.ones((4, 6))
NORM = bpref.rms_norm().init(jnp.zeros(2, jnp.uint32), X)
OF_PARAMS = {
    "rms_norm: scale has shape (5,), expected (d,) = (6,), as init gives for x (4, 6)": NORM._replace(
        scale=jnp.ones(5)
    ),
    "TypeError: rms_norm: scale has dtype bfloat16, x has float32; cast one to the other's": NORM._replace(
        scale=jnp.ones(6, jnp.bfloat16)
    ),
    "TypeError: rms_norm: scale is None, expected an array, as init gives for this x": NORM._replace(scale=None),
    "TypeError: rms_norm: scale is a dict, expected an array, as init gives for this x": NORM._replace(
        scale={"scale": NORM.scale}
    ),
    "TypeError: rms_norm: params is a tuple, expected RmsNormParams, as init gives for this x": (NORM.scale,),
}


test_params_are_what_init_gives = refusals(OF_PARAMS, lambda params: bpref.rms_norm().forward(params, X))


def test_one_parameter_too_many():
    with pytest.raises(TypeError) as refused:
        bpref.rms_norm(scale=False).forward(NORM, X)
    assert str(refused.value) == "rms_norm: scale is an array, expected None, as init gives for this x"


def test_a_symbol_of_x_and_of_a_parameter_is_one_size():
    x = (X[None], X[None], jnp.ones((1, 4, 3)), jnp.ones((1, 4, 3)))
    layer = bpref.selective_scan(states=2)
    params = layer.init(jnp.zeros(2, jnp.uint32), (*x[:2], *(v[..., :2] for v in x[2:])))
    with pytest.raises(ValueError) as refused:
        layer.forward(params, x)
    assert str(refused.value) == "selective_scan: B (1, 4, 3) has n = 3, log_A (6, 2) has n = 2"
