"""shampoo: Adam's step, along the eigenvectors of the gradient's moments in the place of its axes.

Of a gradient V with k axes, of sizes n_1 ... n_k, the moment along axis i is that of its slices, averaged over steps,
and Q_i are its eigenvectors:

    L_i = E[V_(i) V_(i)^T] = Q_i diag(.) Q_i^T                            V_(i): (n_i, all others)
    V'  = V times Q_i^T along every axis i,      M' the same of M = E[V]
    step = M' / (sqrt(E[V'^2]) + damping), turned back by every Q_i

Shampoo (Gupta, Koren and Singer, arXiv:1802.09568) takes L_i^(-1/(2k)) along every axis, which is to divide by a square
root in these same directions, one that is a product of one number for each axis; here it is the one that is measured
(SOAP, Vyas et al., arXiv:2409.11321, algorithm 3), so that eigenvectors of some steps ago do no harm. Where they are
made anew, turned by R_i = Q_i^T Q_i(old), E[V'^2] becomes that times the squares of R_i along every axis, which is
exact where the entries of V' are uncorrelated, as they are meant to be. It needs the gradient alone; the Kronecker
product of the moments is about that of K-FAC's factors.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from bpref import loops
from bpref.checks.hyperparameters import require_positive, require_size
from bpref.dtypes import cast, wide_dtype, widen
from bpref.transforms.curvature.rates import require_decay, require_rate

if TYPE_CHECKING:
    import optax


class ShampooState(NamedTuple):
    """Steps so far, and of every array the moments of its axes, their eigenvectors, and E[V] and E[V'^2] as of Adam.

    Moments and eigenvectors are `None` for an axis that is too long.
    """

    steps: Array
    moments: PyTree
    directions: PyTree
    first: PyTree
    second: PyTree


def shampoo(
    learning_rate: optax.ScalarOrSchedule,
    damping: float = 1e-8,
    decay: float = 0.95,
    momentum: float = 0.9,
    every: int = 10,
    longest: int = 1024,
) -> optax.GradientTransformation:
    """Shampoo, in the form of SOAP, for optax.

    What is stacked by `scan` has the axis of the turns as one more.

    Args:
      learning_rate: a number, or a schedule of optax, as large as Adam's.
      damping: what is added to the root of the squares' average.
      decay: how much of the averages of squares and moments is kept in a step.
      momentum: how much of that of the gradient.
      every: how many steps pass from one making of the eigenvectors to the next.
      longest: an axis beyond is left as it is.

    Example:
      >>> optimizer = bpref.shampoo(0.01)
      >>> state = optimizer.init(params)
      >>> _, dparams, _ = bpref.backpropagate(J, params, (X, y))
      >>> updates, state = optimizer.update(dparams, state, params)

    Raises:
      ValueError: `damping`, `every`, `longest` or a learning rate is not positive; `decay` or `momentum` is not from 0
        to below 1.
    """
    import optax  # whoever has an optimizer has it loaded; `import bpref` is spared it

    who = "shampoo"
    damping, decay = require_positive(who, "damping", damping), require_decay(who, "decay", decay)
    momentum = require_decay(who, "momentum", momentum)
    every, longest = require_size(who, "every", every), require_size(who, "longest", longest)
    require_rate(who, learning_rate)

    def init(params):
        def zeros(p):
            return tuple(jnp.zeros((n, n), wide_dtype(p.dtype)) if n <= longest else None for n in p.shape)

        moments = jax.tree.map(zeros, params)
        plain = jax.tree.map(lambda p: jnp.zeros(p.shape, wide_dtype(p.dtype)), params)
        return ShampooState(jnp.zeros((), jnp.int32), moments, moments, plain, plain)

    def update(updates, state, params=None):
        count = state.steps + 1
        moments = jax.tree.map(partial(_moments, decay), updates, state.moments)

        def made_anew(moments, old, second):
            new = jax.tree.map(lambda L: jnp.linalg.eigh(L)[1], moments)
            squares = jax.tree.map(lambda Q, Q_old: (Q.T @ Q_old) ** 2, new, old)
            return new, jax.tree.map(lambda S, R: _turned(S, R, 1), second, squares)

        directions, second = loops.cond(
            state.steps % every == 0,
            made_anew,
            lambda _, directions, second: (directions, second),
            *(moments, state.directions, state.second),
        )
        first = jax.tree.map(lambda g, M: _average(momentum, M, widen(g)), updates, state.first)
        turned = jax.tree.map(lambda g, Q: _turned(widen(g), Q, 0), updates, directions)
        second = jax.tree.map(lambda V, S: _average(decay, S, V**2), turned, second)

        def step(g, M, S, Q):
            of_first, of_second = (
                1 - jnp.asarray(kept, M.dtype) ** count.astype(M.dtype) for kept in (momentum, decay)
            )
            V = _turned(M, Q, 0) / of_first / (jnp.sqrt(S / of_second) + damping)
            return cast(_turned(V, Q, 1), g.dtype)

        return jax.tree.map(step, updates, first, second, directions), ShampooState(
            count, moments, directions, first, second
        )

    return optax.chain(optax.GradientTransformation(init, update), optax.scale_by_learning_rate(learning_rate))


def _average(kept: float, old: Array, new: Array) -> Array:
    return kept * old + (1 - kept) * new


def _moments(decay: float, g: Array, moments: tuple) -> tuple:
    def averaged(axis, old):
        V = jnp.moveaxis(widen(g), axis, 0).reshape(g.shape[axis], -1)
        return _average(decay, old, V @ V.T)

    return tuple(None if old is None else averaged(axis, old) for axis, old in enumerate(moments))


def _turned(V: Array, directions: tuple, of_Q: int) -> Array:
    """V times Q^T along every axis, or, with 1 for the axis of Q that is summed over, times Q, which turns it back."""
    for axis, Q in enumerate(directions):
        if Q is not None:
            V = jnp.moveaxis(jnp.tensordot(Q, V, ((of_Q,), (axis,))), 0, axis)
    return V
