"""divided: a training's steps on a mesh of devices: its batches by examples, its parameters and all that goes with
them as a layout says, everything else whole on each device."""

import math
from typing import NamedTuple

import jax
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree

from bpref.layer import Layer
from bpref.naming import name_of
from bpref.sharding.laid_out import laid_out
from bpref.sharding.layout import Layout, layout_of
from bpref.sharding.mesh import DATA, EXPERT, SEQUENCE, NotDivided
from bpref.train.step import Going, Stepper
from bpref.transforms import Updated


class Division(NamedTuple):
    """Over which devices, and by which of the layouts that have a name."""

    mesh: Mesh
    layout: str = "replicated"

    def of(self, J: Layer, batch: PyTree) -> tuple[Layer, Layout]:
        """The objective, laid out on the mesh, and how.

        Raises:
          NotDivided: an axis of the mesh does not divide the batch, or as of `layout_of`.
        """
        require_divided(self.mesh, batch)
        layout = layout_of(self.layout, self.mesh, J, batch)
        return laid_out(J, layout), layout


def require_divided(mesh: Mesh, batch: PyTree) -> None:
    """Raise `NotDivided` unless the mesh divides the examples, and the positions where it has an axis for these."""
    X = jax.tree.leaves(batch)[0]
    along = {axis: n for axis, n in mesh.shape.items() if axis in (DATA, EXPERT)}
    if len(X) % math.prod(along.values()):
        axes = ",".join(f"{axis}={n}" for axis, n in along.items())
        raise NotDivided(f"batch size is {len(X)}, expected a multiple of {math.prod(along.values())}: mesh {axes}")
    n = mesh.shape.get(SEQUENCE, 1)
    if n > 1 and (X.ndim < 2 or X.shape[1] % n):
        raise NotDivided(f"mesh sequence={n} does not divide the second axis of X, {X.shape}")


def on_mesh(stepper: Stepper, layout: Layout, shardings: PyTree) -> Stepper:
    """The stepper with its batch, and what it goes on with, laid out in each step."""

    def step(going, batch):
        going, value, norms = stepper.step(going, layout.divide(batch))
        return lax.with_sharding_constraint(going, shardings), value, norms

    return stepper._replace(step=step)


def shardings_of(layout: Layout, going: Going) -> Going:
    """Of what a stepper goes on with: parameters and optimiser's state as the layout says, the rest whole."""
    whole = jax.tree.map(lambda v: layout.sharding(PartitionSpec()), going)

    def one(path, node):
        return layout.of_state(node, name_of(path)) if isinstance(node, Updated) else layout.sharding(PartitionSpec())

    def is_updated(node):
        return isinstance(node, Updated)

    return whole._replace(updated=jax.tree_util.tree_map_with_path(one, going.updated, is_leaf=is_updated))
