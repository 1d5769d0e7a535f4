"""Specifications of arrays in a few letters: what is read, and what is said of what cannot be."""

import jax
import jax.numpy as jnp
import pytest

from bpref.verify.specs import Axis, parse_spec, parse_specs, parse_templates


def test_shapes_and_dtypes_are_read():
    expected = (
        jax.ShapeDtypeStruct((16, 32), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.bfloat16),
        jax.ShapeDtypeStruct((4,), jnp.int32),
    )
    assert parse_specs("f32[16, 32]  bf16 int32[4]") == expected


def test_names_bounds_and_alternatives_are_read():
    x, ids = parse_templates("f32|bf16[N,2*d+1,3] i32[N|1]<V")
    assert x.dtypes == ("float32", "bfloat16")
    assert x.names == ("N", "d")
    assert x.shape({"N": 5, "d": 4}) == (5, 9, 3)
    assert ids.axes == (Axis("N", may_be_one=True),)
    assert ids.shape({"N": 5}, ones={0}) == (1,)
    assert ids.below == Axis("V")
    assert parse_spec("i32[4]<10").below == Axis("", 0, 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("f33[2]", "'f33[2]': unknown dtype 'f33'; the nearest is f32"),
        ("f32[N]", "'f32[N]': axis 'N' has no size; write a number here, names for a search"),
        ("f32[2", "'f32[2': a bracket is not closed, or not opened; expected such as f32[16,32] f32[32]"),
        ("f32[2;3]", "'f32[2;3]': '2;3' is no size; expected a number, a name, or one such as 2*d or N+1"),
        ("f32[2,]", "'f32[2,]': '' is no size; expected a number, a name, or one such as 2*d or N+1"),
        ("f32[2]<3", "'f32[2]<3': a bound (<3) is for integers, such as i32[N]<3"),
        ("i32[2]<3", "'i32[2]<3': a bound is for a search; give the integers themselves here"),
        ("f32|bf16[2]", "'f32|bf16[2]': 2 dtypes; one is expected here, several are for a search"),
        ("f32[2]f32", "'f32[2]f32' is no array specification; expected a dtype and a shape, such as f32[16,32]"),
        (" ", "no array is specified; expected one for each argument, such as f32[16,32] f32[32]"),
    ],
)
def test_what_cannot_be_read_is_explained(text, message):
    with pytest.raises(ValueError) as refused:
        parse_specs(text)
    assert str(refused.value) == message
