"""How parameters lie on a mesh: for each array, which of its axes is divided along which of the mesh's.

A rule is the pattern of a parameter's name and the axes of the mesh along which the parameter's own axes are divided,
as ("*.W_qkv", ("model", None)): rows along `model`, columns whole. The first rule that fits counts. An array's
own axes are those that its layer sees: what `scan` has stacked lies in front of them, and is never divided, since each
turn of the loop takes a slice of it.

    replicated      every array whole on each device
    tensor          products of matrices along `model`: what goes into heads and hidden features by rows, what comes out
                    of them by columns, tables and heads of tokens by features; experts along `expert`
    fully-sharded   the same where there is such an axis, and the longest axis that it leaves along `data`; of a table
                    of tokens, whose gradient is written row by row, the features'

How a product is computed in parts along `model` is left to XLA: beside the sum over devices that ends each half of a
block, and that of its dx, it moves what a packed product (W_qkv, a gated W_in) holds side by side to where it is used.
The rules of `bpref.rules.collective` send the sums alone.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import NamedTuple

import jax
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from bpref.layer import Layer, With, begin, leaves, map_leaves
from bpref.naming import flat_names, name_of
from bpref.nearest import require_known
from bpref.sharding.mesh import DATA, EXPERT, MODEL, SEQUENCE, NotDivided

Axes = tuple[str | None, ...]
Rules = Sequence[tuple[str, Axes]]

OF_HEADS = ("*head*.W", "shared.*.W")
OF_TABLES = ("*embed*.W", *OF_HEADS)

TENSOR: Rules = (
    *((pattern, (None, MODEL)) for pattern in OF_TABLES),
    *((f"*.experts*.{name}", (EXPERT, None, None)) for name in ("U", "V")),
    *((f"*.{name}", (MODEL, None)) for name in ("W_qkv", "W_q", "W_k", "W_v", "W_in")),
    *((f"*.{name}", (MODEL,)) for name in ("b_qkv", "b_q", "b_k", "b_v", "b_in")),
    *((f"*.{name}", (None, MODEL)) for name in ("W_o", "W_out")),
    *((f"*.{name}", ()) for name in ("b_o", "b_out")),
    ("*router.W", ()),
    ("*positions.W", ()),
    ("*W", (MODEL, None)),
    ("*b", (MODEL,)),
)
"""Of the layers that the models are made of."""

LAYOUTS = ("replicated", "fully-sharded", "tensor")


class Layout(NamedTuple):
    """How the parameters of an objective lie on a mesh.

    Attributes:
      mesh: the devices.
      specs: a tree of the parameters' structure, of `jax.sharding.PartitionSpec`s.
      used: the same, as they lie where a layer computes with them: gathered along `data`; of heads, along `model` too.
      examples: the size of a batch, by which its arrays are known.
      stacked: by name, how many axes in front of an array's own `scan` has stacked.
      whole: by name, why an array is whole on each device though the layout divides parameters.
    """

    mesh: Mesh
    specs: PyTree
    used: PyTree
    examples: int
    stacked: Mapping[str, int]
    whole: Mapping[str, str]

    def sharding(self, spec: PartitionSpec) -> NamedSharding:
        """That of an array which is divided so."""
        return NamedSharding(self.mesh, spec)

    @property
    def shardings(self) -> PyTree:
        """Of the parameters, a tree of their structure, as `jax.device_put` and `jax.jit` take it."""
        return jax.tree.map(self.sharding, self.specs)

    def of_batch(self, v: Array | jax.ShapeDtypeStruct) -> NamedSharding:
        """Of an array of the batch: examples along `data` and `expert`, positions, its second axis, by `sequence`."""
        along = tuple(axis for axis in (DATA, EXPERT) if axis in self.mesh.shape)
        positions = (SEQUENCE,) if SEQUENCE in self.mesh.shape and len(v.shape) > 1 else ()
        return self.sharding(PartitionSpec(along or None, *positions) if v.shape else PartitionSpec())

    def divide(self, batch: PyTree) -> PyTree:
        """The arrays of a batch, laid out as `of_batch` says: for use inside of `jax.jit`."""
        return jax.tree.map(lambda v: lax.with_sharding_constraint(v, self.of_batch(v)), batch)

    def of_state(self, state: PyTree, under: str = "") -> PyTree:
        """Of an optimiser's state, a tree of its structure: what goes with a parameter lies as that, the rest whole.

        What goes with it has its name at the end of its own, and as many axes.

        Args:
          state: of all parameters, or of those `under` a path.
        """
        every: dict[str, PyTree] = flat_names(self.specs)
        start = f"{under}." if under else ""
        names = {array.removeprefix(start): spec for array, spec in every.items() if array.startswith(start)}

        def one(path, v):
            own = name_of(path).split(".")
            tails = (".".join(own[i:]) for i in range(len(own)))
            spec = next((names[tail] for tail in tails if tail in names and len(names[tail]) == len(v.shape)), None)
            return self.sharding(spec or PartitionSpec())

        return jax.tree_util.tree_map_with_path(one, state)


def layout_of(name: str, mesh: Mesh, J: Layer, x: PyTree, rules: Rules = ()) -> Layout:
    """How the parameters of the layer J lie on the mesh.

    Args:
      name: "replicated", "fully-sharded" or "tensor".
      mesh: as of `mesh_of`.
      J: any layer or composition, such as an objective.
      x: its input, arrays or their specifications.
      rules: of the user's own, before those of the layout: `(pattern of names, mesh axes of the array's own axes)`.

    Raises:
      ValueError: there is no such layout; the layout divides nothing along an axis of the mesh; a rule of `rules` fits
        no parameter, or an axis of it does not divide one.

    Example:
      >>> network = bpref.serial(bpref.linear(8), bpref.relu(), bpref.linear(4))
      >>> mesh = jax.sharding.AbstractMesh((4,), ("data",))
      >>> layout = bpref.layout_of("fully-sharded", mesh, network, jnp.ones((2, 4)))
      >>> layout.specs[0].W == jax.sharding.PartitionSpec("data", None)
      True
    """
    require_known("layout", name, LAYOUTS)
    params, stacked = _stacked(J, x)
    shapes = {array: v.shape for array, v in flat_names(params).items()}
    fitting = {array: _own(rules, array, len(shape) - stacked[array]) for array, shape in shapes.items()}
    for pattern, axes in rules:
        if not any(found == (pattern, axes) for found in fitting.values()):
            raise NotDivided(
                f"layout {name}: no parameter of {len(axes)} axes is called {pattern!r}; there is {', '.join(shapes)}"
            )
    whole: dict[str, str] = {}
    specs = {}
    for array, shape in shapes.items():
        own = shape[stacked[array] :]
        if (rule := fitting[array]) is not None:
            axes, why = _divided(own, rule[1], mesh)
            if why:
                raise NotDivided(f"layout {name}: {array}: {why}")
        else:
            axes, why = _by_default(name, array, own, mesh)
        if why and not any(axes):
            whole[array] = why
        specs[array] = PartitionSpec(*(None,) * stacked[array], *axes)
    _require_all_used(name, mesh, specs.values())
    tree = jax.tree_util.tree_map_with_path(lambda path, _: specs[name_of(path)], params)
    used = jax.tree_util.tree_map_with_path(lambda path, spec: _as_used(name_of(path), spec), tree)
    return Layout(mesh, tree, used, len(jax.tree.leaves(x)[0]), stacked, whole)


def _as_used(array: str, spec: PartitionSpec) -> PartitionSpec:
    """Where a layer computes with it; logits of features in parts would be sums over devices, all V of them."""
    gathered = (DATA, MODEL) if _own([(pattern, (None, None)) for pattern in OF_HEADS], array, 2) else (DATA,)
    return PartitionSpec(*(None if axis in gathered else axis for axis in spec))


def _own(rules: Rules, array: str, axes: int) -> tuple[str, Axes] | None:
    """The first rule that fits an array of so many axes of its own."""
    return next((r for r in rules if fnmatchcase(f".{array}", _anywhere(r[0])) and len(r[1]) in (0, axes)), None)


def _anywhere(pattern: str) -> str:
    """`*.W` fits an array that is called W alone, too."""
    return pattern if pattern.startswith("*") else f".{pattern}"


def _divided(shape: tuple[int, ...], axes: Axes, mesh: Mesh) -> tuple[Axes, str]:
    """The axes along which it can be divided on this mesh, and why not along the others."""
    axes = axes or (None,) * len(shape)
    axes = tuple(axis if axis in mesh.shape else None for axis in axes)
    wrong = [(n, axis) for n, axis in zip(shape, axes, strict=True) if axis and n % mesh.shape[axis]]
    why = "; ".join(f"{axis}={mesh.shape[axis]} does not divide {n} of {shape}" for n, axis in wrong)
    kept = tuple(axis if axis and n % mesh.shape[axis] == 0 else None for n, axis in zip(shape, axes, strict=True))
    return kept, why


def _by_default(name: str, array: str, shape: tuple[int, ...], mesh: Mesh) -> tuple[Axes, str]:
    axes, why = (None,) * len(shape), ""
    if name == "replicated":
        return axes, why
    if (rule := _own(TENSOR, array, len(shape))) is not None:
        axes, why = _divided(shape, rule[1], mesh)
    if name == "tensor" or DATA not in mesh.shape:
        return axes, why
    n = mesh.shape[DATA]
    free = [i for i, axis in enumerate(axes) if axis is None and shape[i] and shape[i] % n == 0]
    if not free:
        return axes, why or f"{DATA}={n} divides no axis of {shape}"
    is_table = _own([(pattern, (None, None)) for pattern in OF_TABLES], array, len(shape)) is not None
    longest = free[-1] if is_table else max(free, key=lambda i: shape[i])
    return tuple(DATA if i == longest else axis for i, axis in enumerate(axes)), ""


def _require_all_used(name: str, mesh: Mesh, specs: PyTree) -> None:
    """Raise where nothing at all is divided along an axis of the mesh that is for parameters."""
    used = {axis for spec in specs for axis in spec if axis}
    wanted = [axis for axis in (MODEL, EXPERT) if mesh.shape.get(axis, 1) > 1]
    if name == "fully-sharded" and mesh.shape.get(DATA, 1) > 1:
        wanted.append(DATA)
    for axis in wanted:
        if axis not in used:
            raise NotDivided(
                f"layout {name} divides no parameter along {axis}={mesh.shape[axis]}; leave the axis out"
                + (", or take tensor or fully-sharded" if name == "replicated" else "")
            )


def _stacked(J: Layer, x: PyTree) -> tuple[PyTree, dict[str, int]]:
    """The parameters' specifications, and how many axes of each its layer does not see."""
    own: dict[str, int] = {}
    paths = iter([".".join(path) for path, _ in leaves(J)])

    def seen(leaf: Layer) -> Layer:
        path = next(paths)

        def forward(params, x):
            own.update({".".join(filter(None, (path, k))): v.ndim for k, v in flat_names(params).items()})
            return leaf.forward(params, x)

        return leaf._replace(forward=forward)

    looking = map_leaves(seen, J)
    params, state = jax.eval_shape(partial(begin, J), jax.random.key(0), x)
    jax.eval_shape(looking.forward, params, x if J.begin is None else With(x, state))
    return params, {array: v.ndim - own[array] for array, v in flat_names(params).items()}
