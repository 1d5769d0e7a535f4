"""laid_out: a network whose leaves gather their parameters where they use them, and divide their gradients again.

Forward, at each leaf: P lies in parts, along `data`; the leaf is computed with P gathered along it, and with what
`model` divides as it is. Backward: the leaf is given its params again, and gathers them again, so that no gathered
array is kept in between; dP is a sum over examples, and so over devices, of which each needs its own part alone (a
reduce-scatter). Inside `scan` a leaf sees one slice of what is stacked: one turn's parameters are gathered at a time.

Sources: fully sharded training: ZeRO, arXiv:1910.02054; the compiler that places the collectives: arXiv:2105.04663.
"""

import jax
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from bpref.layer import Layer, leaves, map_leaves
from bpref.sharding.layout import Layout
from bpref.sharding.mesh import MODEL


def laid_out(J: Layer, layout: Layout) -> Layer:
    """The layer J, told to the compiler how its parameters and their cotangents lie on the devices of a mesh.

    Its values are J's. Leaf transformations go on top: `map_leaves(update_in_backward(...), laid_out(J, layout))`.

    Args:
      J: the layer of which `layout_of` has made the layout.
      layout: how its parameters lie.

    Example:
      >>> J, x = bpref.objective(bpref.linear(4), bpref.square("batch_mean")), (jnp.ones((2, 8)), jnp.ones((2, 4)))
      >>> layout = bpref.layout_of("fully-sharded", bpref.mesh_of("data=1", jax.devices()[:1]), J, x)
      >>> params = jax.device_put(J.init(jax.random.key(0), x), layout.shardings)
      >>> sweep = jax.jit(lambda params, x: bpref.backpropagate(bpref.laid_out(J, layout), params, x))
      >>> value, dparams, _ = sweep(params, x)
      >>> dparams[0].W.sharding.is_equivalent_to(layout.shardings[0].W, ndim=2)
      True
    """
    paths = iter([path for path, _ in leaves(J)])

    def lying(leaf):
        path = next(paths)
        return _of_leaf(leaf, _at(layout.specs, path), _at(layout.used, path), layout)

    return map_leaves(lying, J)


def _at(tree: PyTree, path: tuple[str, ...]) -> PyTree:
    for part in path:
        tree = tree[part] if isinstance(tree, dict) else tree[int(part)]
    return tree


def _of_leaf(leaf: Layer, specs: PyTree, used: PyTree, layout: Layout) -> Layer:
    def placed(v, axes):
        return lax.with_sharding_constraint(v, layout.sharding(PartitionSpec(*axes)))

    def own_axes(v, spec):
        """Inside of a loop v is a slice."""
        return tuple(spec)[len(spec) - v.ndim :]

    def gathered(params):
        def one(p, spec, kept):
            return placed(p, own_axes(p, kept)) if any(spec) else p

        return jax.tree.map(one, params, specs, used)

    def divided(dparams):
        def one(d, spec):
            return None if d is None else placed(d, own_axes(d, spec))

        return jax.tree.map(one, dparams, specs, is_leaf=lambda d: d is None)

    def by_examples(values):
        """What has an entry for each example, divided as the batch is and along no axis else."""

        def one(v):
            is_of_batch = v.ndim and v.shape[0] == layout.examples
            return lax.with_sharding_constraint(v, layout.of_batch(v)) if is_of_batch else v

        return jax.tree.map(one, values) if MODEL in layout.mesh.shape else values

    def forward(params, x):
        with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
            y, cache = leaf.forward(gathered(params), by_examples(x))
        return by_examples(y), cache

    def backward(params, cache, dy):
        with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
            dparams, dx = leaf.backward(gathered(params), cache, by_examples(dy))
        return divided(dparams), by_examples(dx)

    evaluating = None if leaf.evaluating is None else _of_leaf(leaf.evaluating, specs, used, layout)
    return leaf._replace(forward=forward, backward=backward, evaluating=evaluating)
