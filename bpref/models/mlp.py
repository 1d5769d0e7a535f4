"""The seed's network, literally: L fully connected layers, back-propagation derived by hand.

Source: DataLearner, 'Back-propagation derived by hand' (2019). Layer 1 is the first after the input, layer L is
the output; the input is not counted, and A[0] = X. Index 0 of W, b and Z stays empty, so that every subscript
below is the source's. Examples are rows, which the source leaves out: X is (N, n[0]), W[l] is (n[l], n[l-1]).

    forward                                     backward, given dA[l], from l = L down to 1
    Z[l] = A[l-1] W[l]^T + b[l]                 dZ[l]   = dA[l] g[l]'(Z[l])
    A[l] = g[l](Z[l])                           dW[l]   = dZ[l]^T A[l-1]
    y_hat = A[L]                                db[l]   = dZ[l] summed over the examples
    J = 1/N sum 1/2 (y_hat - y)^2               dA[l-1] = dZ[l] W[l]

It starts from dA[L] = (y_hat - y) / N, which is where the batch mean's 1/N enters, and ends with the update
W[l] - alpha dW[l], b[l] - alpha db[l].
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Float, PyTree

from bpref.dtypes import require_floating
from bpref.layer import Layer
from bpref.rules.linear.linear import linear


class Params(NamedTuple):
    W: tuple[PyTree, ...]
    b: tuple[PyTree, ...]


class Kept(NamedTuple):
    """What the source says to keep of the forward, beside W and b: A[0] ... A[L] and Z[1] ... Z[L]."""

    A: tuple[Array, ...]
    Z: tuple[PyTree, ...]


class Cotangents(NamedTuple):
    """The derivative of J with respect to every value of the forward: dA[0] ... dA[L], and from 1 on dZ, dW, db."""

    dA: tuple[Array, ...]
    dZ: tuple[PyTree, ...]
    dW: tuple[PyTree, ...]
    db: tuple[PyTree, ...]


def init(key: Array, n: Sequence[int], dtype: DTypeLike = jnp.float32) -> Params:
    """Weights for widths n[0], n[1], ..., n[L]: W[l] uniform with variance 1/n[l-1], b[l] zero.

    Raises:
      ValueError: there are fewer than two widths, or one is not a positive integer.
    """
    if len(n) < 2 or not all(isinstance(width, int) and width > 0 for width in n):
        raise ValueError(f"mlp: n is {list(n)}, expected two or more positive widths, the input's first")
    L = len(n) - 1
    W: list[PyTree] = [None] * (L + 1)
    b: list[PyTree] = [None] * (L + 1)
    for l, layer_key in zip(range(1, L + 1), jax.random.split(key, L), strict=True):
        W[l], b[l] = linear(n[l]).init(layer_key, jax.ShapeDtypeStruct((1, n[l - 1]), dtype))
    return Params(tuple(W), tuple(b))


def forward(params: Params, X: Float[Array, "N n0"], g: Sequence[Layer]) -> tuple[Float[Array, "N nL"], Kept]:
    """y_hat, and A and Z of every layer. `g[l-1]` is layer l's activation, the output's the last.

    Raises:
      ValueError: there is not one activation for each layer; X does not have n[0] columns.
      TypeError: X is not floating-point.
    """
    W, b = params
    L = require_activations(params, g)
    require_floating("mlp", "X", X)
    if X.ndim != 2 or X.shape[1] != W[1].shape[1]:
        raise ValueError(f"mlp: X has shape {X.shape}, expected (N, n[0]) = (N, {W[1].shape[1]})")
    A: list[PyTree] = [checkpoint_name(X, "A0")]
    Z: list[PyTree] = [None]
    for l in range(1, L + 1):
        Z.append(checkpoint_name(A[l - 1] @ W[l].T + jnp.broadcast_to(b[l], (len(X), len(b[l]))), f"Z{l}"))
        A.append(checkpoint_name(g[l - 1].forward((), Z[l])[0], f"A{l}"))
    return A[L], Kept(tuple(A), tuple(Z))


def cost(y_hat: Float[Array, "N nL"], y: Float[Array, "N nL"]) -> Float[Array, ""]:
    """J = 1/N sum over the examples of 1/2 (y_hat - y)^2.

    Raises:
      ValueError: y does not have y_hat's shape, or there is no example.
    """
    if y_hat.shape != y.shape or len(y) == 0:
        raise ValueError(f"mlp: y has shape {y.shape}, y_hat {y_hat.shape}; expected one shape (N, n[L]), N at least 1")
    return jnp.sum((y_hat - y) ** 2 / 2) / len(y)


def backward(params: Params, kept: Kept, y: Float[Array, "N nL"], g: Sequence[Layer]) -> Cotangents:
    """The derivative of J with respect to every A, Z, W and b."""
    W = params.W
    A, Z = kept
    L = require_activations(params, g)
    dA: list[PyTree] = [None] * (L + 1)
    dZ, dW, db = dA.copy(), dA.copy(), dA.copy()
    dA[L] = (A[L] - y) / len(y)
    for l in range(L, 0, -1):
        dZ[l] = dA[l] * derivative(g[l - 1], Z[l])
        dW[l] = dZ[l].T @ A[l - 1]
        db[l] = dZ[l].sum(0)
        dA[l - 1] = dZ[l] @ W[l]
    return Cotangents(tuple(dA), tuple(dZ), tuple(dW), tuple(db))


def update(params: Params, cotangents: Cotangents, alpha: float) -> Params:
    """W - alpha dW and b - alpha db, in every layer."""
    W, b = params
    return Params(
        jax.tree.map(lambda W, dW: W - alpha * dW, W, cotangents.dW),
        jax.tree.map(lambda b, db: b - alpha * db, b, cotangents.db),
    )


def derivative(g: Layer, Z: Array) -> Array:
    """g'(Z) of an activation, element by element: what its backward makes of a cotangent of ones.

    Z is all that is kept of it, so g's own cache is made again here; under jit XLA merges the two.
    """
    return g.backward((), g.forward((), Z)[1], jnp.ones_like(Z))[1]


def require_activations(params: Params, g: Sequence[Layer]) -> int:
    """The number of layers L; raises `ValueError` unless there is one activation for each."""
    L = len(params.W) - 1
    if len(g) != L:
        names = ", ".join(activation.name for activation in g)
        raise ValueError(f"mlp: g holds {len(g)} activations ({names}), expected one for each of the {L} layers")
    return L
