"""Specifications of arrays in a few letters: what is read, and what is said of what cannot be."""

import jax
import jax.numpy as jnp
import numpy as np

from bpref.verify.searching.specs import Axis, parse_spec, parse_specs, parse_templates
from tests.refusing import refusals

RNG = np.random.default_rng(0)


def test_shapes_and_dtypes_are_read():
    expected = (
        jax.ShapeDtypeStruct((16, 32), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.bfloat16),
        jax.ShapeDtypeStruct((4,), jnp.int32),
    )
    assert parse_specs("f32[16, 32]  bf16 int32[4]", RNG) == expected


def test_integers_with_a_bound_are_drawn_below_it():
    ids, bits = parse_specs("i32[1000]<7 u8[3]<256", RNG)
    assert (ids.dtype, ids.shape, set(ids.tolist())) == (np.dtype("int32"), (1000,), set(range(7)))
    assert (bits.dtype, bits.shape) == (np.dtype("uint8"), (3,))


def test_constants_are_read_as_they_are():
    text = "f32[2] 0.1 -3 true None 'mean of all' \"f32[2]\" (2, 'same') .5 1e-6"
    x, *constants = parse_specs(text, RNG)
    assert x == jax.ShapeDtypeStruct((2,), jnp.float32)
    assert constants == [0.1, -3, True, None, "mean of all", "f32[2]", (2, "same"), 0.5, 1e-6]
    assert constants[2] is True


def test_names_bounds_and_alternatives_are_read():
    x, ids = parse_templates("f32|bf16[N,2*d+1,3] i32[N|1]<V")
    assert x.dtypes == ("float32", "bfloat16")
    assert x.names == ("N", "d")
    assert x.shape({"N": 5, "d": 4}) == (5, 9, 3)
    assert ids.axes == (Axis("N", may_be_one=True),)
    assert ids.shape({"N": 5}, ones={0}) == (1,)
    assert ids.below == Axis("V")
    assert parse_spec("i32[4]<10").below == Axis("", 0, 10)


test_what_cannot_be_read_is_explained = refusals(
    {
        "'f33[2]': unknown dtype 'f33'; the nearest is f32": "f33[2]",
        "'f32[N]': axis 'N' has no size; write a number here, names for a search": "f32[N]",
        "'f32[2': a bracket is not closed, or not opened; expected such as f32[16,32] f32[32]": "f32[2",
        "'f32[2;3]': '2;3' is no size; expected a number, a name, or one such as 2*d or N+1": "f32[2;3]",
        "'f32[2,]': '' is no size; expected a number, a name, or one such as 2*d or N+1": "f32[2,]",
        "'f32[2]<3': a bound (<3) is for integers, such as i32[N]<3": "f32[2]<3",
        "'i32[2]<V': axis 'V' has no size; write a number here, names for a search": "i32[2]<V",
        "'i8[2]<200': the bound is 200, expected 1 to 128 for int8": "i8[2]<200",
        "'i32[2]<0': the bound is 0, expected 1 to 2147483648 for int32": "i32[2]<0",
        "'16,32' is no constant; expected a number, true, false, none, 'text' or a tuple (2, 2); an array is such as "
        "f32[16,32]": "f32[2] 16,32",
        "\"'mean\" is no constant; expected a number, true, false, none, 'text' or a tuple (2, 2); an array is such as "
        "f32[16,32]": "'mean",
        "'f32|bf16[2]': 2 dtypes; one is expected here, several are for a search": "f32|bf16[2]",
        "'f32[2]f32' is no array specification; expected a dtype and a shape, such as f32[16,32]": "f32[2]f32",
        "'f32[2],f32[3]' is no array specification; expected a dtype and a shape, such as f32[16,32]; arguments stand "
        "apart by spaces": "f32[2],f32[3]",
        "no array is specified; expected one for each argument, such as f32[16,32] f32[32]": " ",
    },
    lambda text: parse_specs(text, RNG),
)
