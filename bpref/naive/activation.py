"""The activations of gates and blocks by name, as JAX has them."""

from collections.abc import Callable
from functools import partial

import jax
from jax import Array


def activation(name: str) -> Callable[[Array], Array]:
    """JAX's function of this name; "gelu_erf" is its `gelu(approximate=False)`."""
    return partial(jax.nn.gelu, approximate=False) if name == "gelu_erf" else getattr(jax.nn, name)
