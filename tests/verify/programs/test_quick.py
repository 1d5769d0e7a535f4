"""How a program is compiled that runs a few times only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpref.programs import all_equations
from bpref.verify.programs.quick import MANY, compilation_of, products, quick_compilation


def convolving(sizes, kernel, groups=1, dtype=jnp.float64):
    def f(x, W):
        dims = ("NHWC", "OHWI", "NHWC")
        return jax.lax.conv_general_dilated(x, W, (1, 1), "VALID", dimension_numbers=dims, feature_group_count=groups)

    with jax.enable_x64(True):
        x, W = (jax.ShapeDtypeStruct(shape, dtype) for shape in (sizes, kernel))
        return list(all_equations(jax.make_jaxpr(f)(x, W)))


@pytest.mark.parametrize("groups", [1, 2])
def test_products_of_a_convolution_are_counted(groups):
    *_, convolution = convolving((2, 5, 4, 6), (8, 3, 2, 6 // groups), groups)
    outputs = np.zeros((2, 3, 3, 8))
    assert products(convolution) == outputs.size * 3 * 2 * (6 // groups)


def test_a_program_is_compiled_quickly_unless_it_convolves_much():
    small, large = convolving((1, 5, 4, 2), (3, 2, 2, 2)), convolving((64, 24, 5, 3), (32, 3, 3, 3))
    assert products(small[-1]) < MANY < products(large[-1])
    assert compilation_of(small) == compilation_of([]) == quick_compilation()
    assert compilation_of(large) == {}
    assert compilation_of(convolving((64, 24, 5, 3), (32, 3, 3, 3), dtype=jnp.float32)) == quick_compilation()
