"""What a recurrence is given and gives back: sequences, the states before and after them, their lengths."""

from typing import Any, NamedTuple

from jax import Array
from jaxtyping import Float, Int

from bpref.dtypes import came, described, require_array, require_floating, require_integer
from bpref.formulas.affine import require_weight
from bpref.formulas.tuples import require_dtype_of, require_shape


class Steps(NamedTuple):
    """The input of every recurrence, batch first; a plain array x stands for `Steps(x)`.

    Attributes:
      x: the inputs of all steps.
      state: what the recurrence starts from; zeros where it is left out. Its cotangent is given back.
      lengths: how many steps of each example there are; all T where it is left out. What cannot be seen while tracing
        has a documented result: less than 0 is 0, more than T is T.
    """

    x: Float[Array, "B T d>0"]
    state: Any = None
    lengths: Int[Array, " B"] | None = None


class Passed(NamedTuple):
    """The output of every recurrence.

    Attributes:
      y: the outputs of all steps; 0 beyond an example's length.
      state: what the recurrence ends with: after an example's last step, or its first if `reverse`.
    """

    y: Float[Array, "B T m"]
    state: Any


def as_steps(x: Any) -> Steps:
    """x itself, or all there is to say of a plain array."""
    return x if isinstance(x, Steps) else Steps(x)


def require_sequences(who: str, x: Any, W: Any = None) -> None:
    """Raise unless x.x is floating-point (B, T, d), of the dtype and the d of W (m, d), lengths integers (B,)."""
    if isinstance(x.x, (tuple, list)):
        raise TypeError(f"{who}: x is {described(x.x)}, expected an array or bpref.Steps(x, state, lengths)")
    require_floating(who, "x", x.x)
    shape = x.x.shape
    if len(shape) != 3 or shape[-1] == 0:
        raise ValueError(f"{who}: x has shape {shape}, expected (B, T, d) with at least one feature d")
    if W is not None:
        require_weight(who, W, "(m, d)")
    if W is not None and shape[-1] != W.shape[1]:
        raise ValueError(f"{who}: x has {shape[-1]} features in its last axis, W expects {W.shape[1]} (W: {W.shape})")
    if W is not None:
        require_dtype_of(who, "x", x.x, "W", W)
    if x.lengths is not None:
        require_integer(who, "lengths", x.lengths)
        if x.lengths.shape != shape[:1]:
            raise ValueError(f"{who}: lengths has shape {x.lengths.shape}, expected {shape[:1]}, one for each example")


def require_weights(who: str, params: Any, **expected: tuple[int, ...]) -> None:
    """Raise unless each parameter that is there, beside W, has the expected shape and W's dtype."""
    for name, shape in expected.items():
        v = getattr(params, name)
        if v is not None:
            require_array(who, name, v)
            require_shape(who, name, v, shape, f"by the layer's features (W: {params.W.shape})")
            require_dtype_of(who, name, v, "W", params.W)


def require_state(who: str, argument: str, state: Any, x: Any, features: int) -> None:
    """Raise unless the part of a state that is called `argument` is (B, features), of x's dtype."""
    expected = (x.shape[0], features)
    if not hasattr(state, "shape"):
        raise TypeError(f"{who}: {argument} is {came(state)}, expected an array {expected}")
    if state.shape != expected:
        raise ValueError(f"{who}: {argument} has shape {state.shape}, expected {expected}")
    require_dtype_of(who, argument, state, "x", x)
