"""What the tests of `bpref check` and `bpref audit` name on the command line: gradients by hand, right and wrong."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bpref


@jax.custom_vjp
def halved(x):
    return jnp.sin(x)


halved.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (0.5 * dy * jnp.cos(x),))


def right(args, dy):
    """The backward that `halved` should have."""
    return (dy * jnp.cos(args[0]),)


class Right:
    @staticmethod
    @jax.custom_vjp
    def scale(x, g):
        return x * g


Right.scale.defvjp(lambda x, g: (x * g, (x, g)), lambda kept, dy: (dy * kept[1], dy * kept[0]))


def product(x, g):
    return x * g


def product_backward(args, dy):
    x, g = args
    return dy * g, dy * x


def product_reversed(x, g):
    return g * x


def undecided(x):
    """On the host, and never twice the same."""
    return np.asarray(x) * np.float32(np.random.default_rng().random())


def undecided_backward(args, dy):
    return (np.asarray(dy),)


def looped(x):
    def body(x, _):
        return halved(x) + jax.nn.relu(x), None

    return jax.lax.scan(body, x, None, length=3)[0]


def skipped(x):
    return jax.lax.cond(x.sum() > 1e9, halved, lambda x: x, x)


def rows(table, ids, scale, kind, rest):
    """Rows of a table, by indices below its length; of arguments that are no arrays too."""
    assert (kind, rest) == ("mean of: all", None)
    return table[ids] * scale


def rows_backward(args, dy):
    table, ids, scale, _, _ = args
    return jnp.zeros_like(table).at[ids].add(dy * scale), None, None, None, None


def audited_rows(table, ids, scale, kind, rest):
    return halved(rows(table, ids, scale, kind, rest))


def make_args():
    return np.linspace(-1, 1, 6, dtype=np.float32), np.ones(6, np.float32)


def one_array():
    return np.ones(6, np.float32)


def raising(x):
    raise KeyError("no such row")


def exiting(x):
    raise SystemExit("bye")


class Point(NamedTuple):
    x: float


not_callable = Point(1.0)

layer = bpref.tanh()
