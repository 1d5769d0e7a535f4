"""What stands between the layers of a model: a tree of arrays put together otherwise, or weighed; what makes images.

Forward: y = A x, linear and without parameters, so that its Jacobian is A itself, whatever x is: dx = A^T dy. Nothing
is cached. Who makes one writes both down, A and A^T.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax import Array
from jaxtyping import PyTree

from bpref.layer import Layer, each_position, no_params


def rearranged(
    name: str, there: Callable[[PyTree], PyTree], back: Callable[[PyTree], PyTree]
) -> Layer[tuple[()], PyTree, PyTree, tuple[()]]:
    """The layer y = there(x), dx = back(dy), called `name`.

    Args:
      there: linear in x, position by position.
      back: its adjoint; `None` stands for a cotangent of dy that is not used, and for one of dx that is zero.
    """

    def forward(params, x):
        return there(x), ()

    def backward(params, cache, dy):
        return (), back(dy)

    return Layer(no_params, forward, backward, name, decoding=each_position)


def as_it_is() -> Layer[tuple[()], PyTree, PyTree, tuple[()]]:
    """y = x, of any tree: what a part of a composition leaves alone."""
    return rearranged("as_it_is", lambda x: x, lambda dy: dy)


class Generative(NamedTuple):
    """A network that learns to make images, what it is trained by, and how it makes them.

    Attributes:
      network: images (N, H, W, C) from 0 to 1 to what the loss reads.
      loss: (that, the images) to J.
      draw: `(params, key, count) -> images`, (count, H, W, C) from 0 to 1.
      score, metric: what it is told by, `(the network's output, the images) -> number`, less being better.
      untrained: `(images to learn from, others) -> number`, the score of what needs no network; and what that is.
    """

    network: Layer
    loss: Layer
    draw: Callable[[PyTree, Array, int], Array]
    score: str
    metric: Callable[[PyTree, Array], Array]
    untrained: tuple[Callable[[np.ndarray, np.ndarray], float], str]
