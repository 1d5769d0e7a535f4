"""rearranged: what stands between the layers of a model: a tree of arrays put together otherwise, or weighed.

Forward: y = A x, linear and without parameters, so that its Jacobian is A itself, whatever x is: dx = A^T dy, and
nothing is cached. Who makes one writes both down, A and A^T.
"""

from collections.abc import Callable
from typing import Any

from bpref.layer import Layer, each_position, no_params


def rearranged(name: str, there: Callable[[Any], Any], back: Callable[[Any], Any]) -> Layer[tuple[()], Any, Any, Any]:
    """The layer y = there(x), dx = back(dy), called `name`.

    Args:
      there: linear in x, position by position.
      back: its adjoint; a cotangent in dy is `None` where what it belongs to is not used.
    """
    return Layer(
        no_params, lambda params, x: (there(x), ()), lambda params, cache, dy: ((), back(dy)), name,
        decoding=each_position,
    )  # fmt: skip
