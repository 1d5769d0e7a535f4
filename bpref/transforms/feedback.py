"""feedback: dA by other weights than the forward's, as learning without the transport of weights has it.

Of Z = A W^T + b the seed's second equation is

    dA = dZ W

and whoever looks for back-propagation in a brain asks how the way back would know W. The rules here put a matrix of W's
shape in its place, and keep dW = dZ^T A and db as they are:

    feedback alignment     dA = dZ B              B random and fixed: W comes to lie along it
    sign symmetry          dA = dZ s sign(W)      the signs are known, the magnitudes are not; s = mean |W|

A convolution's dx is exchanged in the same way. Where B = W the gradient is exact.

Sources: Lillicrap et al., 'Random synaptic feedback weights support error backpropagation for deep learning' (2016),
arXiv:1411.0247. Liao, Leibo and Poggio, 'How important is weight symmetry in backpropagation?' (2016),
arXiv:1510.05067: their uniform sign-concordant feedback, in which s = 1 and batch norm sees to the lengths.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bpref.apart import sealed
from bpref.dtypes import cast, widen
from bpref.layer import Layer, begin, require_layer
from bpref.rules.convolution.convolution import ConvolutionParams
from bpref.rules.convolution.transposed_convolution import TransposedConvolutionParams
from bpref.rules.linear.linear import LinearParams

WITH_W = (LinearParams, ConvolutionParams, TransposedConvolutionParams)
"""The params of the layers whose dx is exchanged."""


class Feedback(NamedTuple):
    """A layer's params, and B, in W's shape, by which its dx is made; B is not trained."""

    params: PyTree
    B: PyTree


def feedback_alignment(leaf: Layer) -> Layer:
    """A leaf transformation, for `map_leaves`: dx of linear layers and convolutions by random, fixed weights B.

    Their params are `Feedback(params, B)`, B drawn by a key of its own as W is; inside of `scan` every turn has its
    own. dparams have `None` for B, so that no optimiser moves it. `params_of` gives the plain params. All other layers,
    and those whose W is `shared`, are as they were.

    Example:
      >>> network = bpref.map_leaves(bpref.feedback_alignment, J)
      >>> params = network.init(jax.random.key(0), (X, y))
      >>> value, dparams, _ = bpref.backpropagate(network, params, (X, y))
      >>> dparams[0].B is None
      True

    Raises:
      TypeError: `leaf` is no Layer.
    """
    require_layer("feedback_alignment", "leaf", leaf)

    def beside(key, drawn):
        """What was drawn, and in place of params these and B, drawn again."""
        of_params, of_B = jax.random.split(key)
        params, rest = drawn(of_params)
        if type(params) not in WITH_W or params.W is None:
            return drawn(key)
        return Feedback(params, drawn(of_B)[0].W), rest

    def init(key, x):
        return beside(key, lambda key: (leaf.init(key, x), ()))[0]

    def begin_beside(key, x):
        return beside(key, lambda key: begin(leaf, key, x))

    def with_B(own):
        return (own.params, own.B) if isinstance(own, Feedback) else (own, None)

    fed = _fed_back(feedback_alignment, leaf, with_B)
    return fed._replace(init=init, begin=None if leaf.begin is None else begin_beside)


def sign_symmetry(leaf: Layer) -> Layer:
    """A leaf transformation, for `map_leaves`: dx of linear layers and convolutions by the signs of W, of one length.

    Params are as they were, and so is the gradient where all of a layer's |W| are equal.

    Example:
      >>> network = bpref.map_leaves(bpref.sign_symmetry, J)
      >>> value, dparams, _ = bpref.backpropagate(network, params, (X, y))

    Raises:
      TypeError: `leaf` is no Layer.
    """
    require_layer("sign_symmetry", "leaf", leaf)

    def signs(params):
        if type(params) not in WITH_W or params.W is None:
            return params, None
        W = widen(params.W)
        return params, cast(jnp.mean(jnp.abs(W)) * jnp.sign(W), params.W.dtype)

    return _fed_back(sign_symmetry, leaf, signs)


def _fed_back(
    transform: Callable[[Layer], Layer], leaf: Layer, with_B: Callable[[PyTree], tuple[PyTree, PyTree]]
) -> Layer:
    """The leaf whose dx is made by B in W's place; `with_B(own)` gives its params and B, `None` to keep W."""

    def forward(own, x):
        return leaf.forward(with_B(own)[0], x)

    def backward(own, cache, dy):
        params, B = with_B(own)
        dparams, dx = leaf.backward(params, cache, dy)
        if B is not None:
            dx = leaf.backward(params._replace(W=B), cache, dy)[1]
        return Feedback(dparams, None) if isinstance(own, Feedback) else dparams, dx

    return sealed(transform.__name__, leaf, transform, forward=forward, backward=backward, decoding=None)
