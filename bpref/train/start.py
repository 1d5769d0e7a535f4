"""start: what is fixed before the first step: the parameters, the data on the device, the order of the examples."""

import contextlib
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from bpref.dtypes import came
from bpref.layer import Layer, begin
from bpref.nearest import require_known
from bpref.sharding.hosts import laid
from bpref.sharding.layout import Layout
from bpref.train.data.rows import Examples, Rows, examples
from bpref.train.data.table import count
from bpref.train.divided import Division, on_mesh, shardings_of
from bpref.train.step import Going, Stepper, beside, is_key, layer_by_layer, training_objective, whole_gradient

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16, "float64": jnp.float64}
"""What can be computed in, by name. With half a precision the parameters and the loss stay in float32."""

WINDOW = 2**26
"""Bytes of batches that are read from a file at once: a few times that are held, whatever the size of the file."""


class Start(NamedTuple):
    """A training about to begin: everything that is known before its first step.

    Attributes:
      stepper: what a step does.
      state: the stepper's state before the first step.
      data: X and y in the dtype that is computed in: on the device; NumPy arrays where there is a mesh, or where
        one of them is `Rows` of a file.
      order: `(epoch) -> rows`, the rows of each of its batches, (steps, batch_size); epochs count from 1.
      dtype: its name.
      window: of so many steps the batches are read at once: of all in an epoch, but where data are on disk.
      layout: on a mesh, how the parameters lie there.
    """

    stepper: Stepper
    state: Going
    data: tuple[PyTree, PyTree]
    order: Callable[[int], Array]
    dtype: str
    window: int
    layout: Layout | None = None

    @property
    def params(self) -> PyTree:
        """The parameters of the objective: the network's, and the loss's."""
        return self.stepper.params(self.state)

    @property
    def is_on_disk(self) -> bool:
        """Whether data stay in a file until a step takes them."""
        return any(isinstance(v, Rows) for v in self.data)

    def read(self, epoch: int, first: int = 0) -> tuple[PyTree, PyTree]:
        """`(data, order)` of the window that begins at step `first`: step i of the epoch takes `data[order[i]]`.

        Of data on the device order has the rows of its batch. On a mesh and on disk data are the window's batches: on a
        mesh each process lays down the parts of them that its devices take, and of a file they are in memory.
        """
        with precision(self.dtype):
            rows, layout = self.order(epoch), self.layout
            if layout is None and not self.is_on_disk:
                return self.data, rows
            steps = np.arange(len(rows), dtype=np.int32)
            rows = np.asarray(rows)[np.minimum(first + steps[: self.window], len(steps) - 1)]
            if layout is None:
                return jax.tree.map(lambda v: v[rows], self.data), steps - first

            def batches(v):
                of_batch = layout.of_batch(jax.ShapeDtypeStruct((rows.shape[1], *v.shape[1:]), v.dtype))
                return laid(v, layout.sharding(PartitionSpec(None, *of_batch.spec)), rows)

            return jax.tree.map(batches, self.data), self.everywhere(steps - first)

    def everywhere(self, tree: PyTree) -> PyTree:
        """The arrays, which each process holds, whole on every device: of the mesh, or the one there is without."""
        if self.layout is None:
            return jax.tree.map(jnp.asarray, tree)
        whole = self.layout.sharding(PartitionSpec())
        return jax.tree.map(lambda v: laid(v, whole), tree)

    def at_hand(self, tree: PyTree) -> PyTree:
        """NumPy arrays of those that lie in parts on the devices of the mesh; keys stay keys, of this process alone."""
        if self.layout is not None:
            tree = jax.jit(lambda tree: tree, out_shardings=self.layout.sharding(PartitionSpec()))(tree)

        def one(v):
            if is_key(v):
                return jax.random.wrap_key_data(jnp.array(np.asarray(jax.random.key_data(v))))
            return np.asarray(v)

        return jax.tree.map(one, jax.block_until_ready(tree))  # raises where memory ran out; NumPy ends the process

    def batch(self, epoch: int, step: int) -> tuple[Array, Array]:
        """X and y of a step; epochs count from 1, the steps of an epoch from 0."""
        rows = np.asarray(self.order(epoch)[step])
        return jax.tree.map(lambda v: jnp.asarray(examples(v)[rows]), self.data)

    def at(self, going: Going, step: int) -> tuple[PyTree, PyTree]:
        """The parameters and what the objective is given in the step after so many of all, NumPy arrays."""
        with precision(self.dtype):
            epoch, i = divmod(step, len(self.order(1)))
            params, state = self.at_hand((self.stepper.params(going), going.state))
            return params, jax.device_get(beside(self.stepper.objective, self.batch(epoch + 1, i), state))

    def first(self) -> tuple[PyTree, PyTree]:
        """`at` the first step."""
        return self.at(self.state, 0)


def start(
    J: Layer,
    optimizer: optax.GradientTransformation,
    train: tuple[PyTree, PyTree],
    *,
    batch_size: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
    update_in_backward: bool = False,
    stochastic_rounding: bool = False,
    division: Division | None = None,
) -> Start:
    """The first half of `fit`: check what was given, and draw the parameters of the objective J.

    With `stochastic_rounding`, of bfloat16, parameters are kept in it too, and not in float32. With a `division` they
    and the batches lie on the devices of a mesh.
    """
    N = count_examples("the training data", train)
    batch_size = N if batch_size is None else batch_size
    steps = steps_per_epoch(N, batch_size)
    scaled = dtype == "float16"
    if scaled and update_in_backward:
        raise ValueError("float16 needs the whole gradient, to know its scale; update in the backward in bfloat16")
    with precision(dtype):
        data = as_arrays(train, dtype)
        batch = jax.tree.map(lambda v: jax.ShapeDtypeStruct((batch_size, *v.shape[1:]), v.dtype), data)
        params, state = jax.eval_shape(lambda key: begin(J, key, batch), jax.random.key(0))
        jax.eval_shape(J.forward, params, beside(J, batch, state))
        layout = None
        on_disk = any(isinstance(v, Rows) for v in data)
        if division is None and not on_disk:
            data = jax.tree.map(jnp.asarray, data)
        elif division is not None:
            J, layout = division.of(J, batch)
        whole = partial(whole_gradient, scaled=scaled, rounded=stochastic_rounding)
        stepper = (layer_by_layer if update_in_backward else whole)(J, optimizer)

        def init(seed, batch):
            return stepper.init(jax.random.split(jax.random.key(seed))[0], batch)

        @jax.jit
        def permuted(key, epoch):
            rows = jax.random.permutation(jax.random.fold_in(key, epoch), N)
            return rows[: steps * batch_size].reshape(steps, batch_size)

        @lru_cache(2)
        def order(epoch):
            with precision(dtype):
                return permuted(order_key, epoch)

        given = np.uint32(seed), jax.tree.map(lambda v: np.zeros(v.shape, v.dtype), batch)
        shardings = None
        if layout is not None:
            shardings = shardings_of(layout, jax.eval_shape(init, *given))
            stepper = on_mesh(stepper, layout, shardings)
        state = jax.jit(init, out_shardings=shardings)(*given)
        order_key = jax.random.split(jax.random.key(np.uint32(seed)))[1]
        window = steps_of_window(steps, batch) if on_disk else steps
        return Start(stepper, state, data, order, dtype, window, layout)


def steps_of_window(steps: int, batch: PyTree) -> int:
    """How many batches are read at once: as many as `WINDOW` holds, and all windows of an epoch about as long."""
    size = sum(v.size * v.dtype.itemsize for v in jax.tree.leaves(batch))
    windows = -(-steps // max(1, WINDOW // size))
    return -(-steps // windows)


def objective_in(dtype: str, network: Layer, loss: Layer) -> Layer:
    """The objective that `start` takes, of a network and its loss, computed in a dtype by name."""
    require_known("dtype", dtype, DTYPES)
    return training_objective(network, loss, DTYPES[dtype])


def require_epochs(epochs: int) -> None:
    """Raise `ValueError` unless there is at least one epoch."""
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}, expected at least 1")


def steps_per_epoch(N: int, batch_size: int) -> int:
    """`N // batch_size`; raises `ValueError` unless 1 <= batch_size <= N."""
    if not 1 <= batch_size <= N:
        there = f"there is {count(N, 'example')}" if N == 1 else f"there are {count(N, 'example')}"
        raise ValueError(f"batch size is {batch_size}, expected 1 ... {N}: {there} to train on")
    return N // batch_size


def count_examples(what: str, data: tuple[PyTree, PyTree]) -> int:
    """N; raises unless X holds real numbers or ids, (N, ...) with N > 0, and y has as many rows."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise TypeError(f"{what}: {came(data)} came, expected a pair (X, y)")
    X, y = map(examples, data)
    if not (jnp.issubdtype(X.dtype, jnp.floating) or jnp.issubdtype(X.dtype, jnp.integer)):
        raise TypeError(f"{what}: X has dtype {X.dtype}, expected real numbers such as float32, or ids")
    if X.ndim == 0 or len(X) == 0:
        raise ValueError(f"{what}: X has shape {X.shape}, expected (N, ...) with at least one example")
    if y.shape[:1] != X.shape[:1]:
        raise ValueError(f"{what}: y has shape {y.shape}, expected ({len(X)}, ...), one entry for each row of X")
    return len(X)


def as_arrays(data: tuple[PyTree, PyTree], dtype: str) -> tuple[Examples, Examples]:
    """X in `dtype`; y too, but in at least float32. Ids and labels are integers still; what is on disk stays there."""
    X, y = map(examples, data)
    wide = "float32" if dtype in ("bfloat16", "float16") else dtype

    def cast(v, real):
        return v.astype(real if jnp.issubdtype(v.dtype, jnp.floating) else np.int32)

    return cast(X, DTYPES[dtype]), cast(y, wide)


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """float64 for as long as it is computed in, and nowhere else."""
    with jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext():
        yield
