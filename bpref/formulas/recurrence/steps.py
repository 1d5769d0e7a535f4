"""What a recurrence is given and gives back: sequences, the states before and after them, their lengths."""

from typing import NamedTuple

from jax import Array
from jaxtyping import Float, Int, PyTree

from bpref.dtypes import came


class Steps(NamedTuple):
    """The input of every recurrence, batch first; a plain array x stands for `Steps(x)`.

    Attributes:
      x: the inputs of all steps.
      state: what the recurrence starts from; zeros where it is left out. Its cotangent is given back.
      lengths: how many steps of each example there are; all T where it is left out. What cannot be seen while tracing
        has a documented result: less than 0 is 0, more than T is T.
    """

    x: Float[Array, "B T d>0"]
    state: PyTree = None
    lengths: Int[Array, " B"] | None = None

    by_name = True


class Passed(NamedTuple):
    """The output of every recurrence.

    Attributes:
      y: the outputs of all steps; 0 beyond an example's length.
      state: what the recurrence ends with: after an example's last step, or its first if `reverse`.
    """

    y: Float[Array, "B T m"]
    state: PyTree


def as_steps(x: Array | Steps) -> Steps:
    """x itself, or all there is to say of a plain array."""
    return x if isinstance(x, Steps) else Steps(x)


def require_state(who: str, given: Steps, sizes: PyTree) -> None:
    """Raise unless a state that is given is (B, n) and of x's dtype, n its size; part by part where there are parts."""
    state, B = given.state, given.x.shape[0]
    parts = getattr(sizes, "_fields", None)
    if state is None:
        return
    if parts is None:
        _require_part(who, "state", state, (B, sizes), given.x)
    elif not isinstance(state, type(sizes)):
        raise TypeError(f"{who}: state is {came(state)}, expected {type(sizes).__name__}({', '.join(parts)})")
    else:
        for name, n in zip(parts, sizes, strict=True):
            _require_part(who, f"state.{name}", getattr(state, name), (B, n), given.x)


def _require_part(who: str, name: str, state: PyTree, expected: tuple[int, int], x: Array) -> None:
    if not hasattr(state, "shape"):
        raise TypeError(f"{who}: {name} is {came(state)}, expected an array {expected}")
    if state.shape != expected:
        raise ValueError(f"{who}: {name} has shape {state.shape}, expected {expected}")
    if state.dtype != x.dtype:
        raise TypeError(f"{who}: {name} has dtype {state.dtype}, x has {x.dtype}; cast one to the other's")
