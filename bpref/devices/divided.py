"""Forward and backward of an objective over a mesh of devices, compiled for these: by hand and by autodiff."""

import jax
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from bpref.devices.compiling import compile_for, devices_of
from bpref.devices.works import MODEL, MODELS, USUAL, Beside, Settings, of_objective
from bpref.layer import Layer
from bpref.nearest import meant
from bpref.sharding.laid_out import laid_out
from bpref.sharding.layout import layout_of
from bpref.sharding.mesh import mesh_of


def on_mesh(name: str, target: str, mesh: str, layout: str, settings: Settings = USUAL) -> Beside:
    """`objective_on_mesh` of the model called `name`.

    Raises:
      ValueError: it is a rule, or unknown; or as there.
    """
    model = meant("model", name, MODELS)
    made = MODELS[model](settings, len(devices_of(target)))
    return objective_on_mesh(*made, target, mesh, layout, settings.dtype)


def objective_on_mesh(J: Layer, x: PyTree, target: str, mesh: str, layout: str, dtype: str = "float32") -> Beside:
    """Compile J and its gradient for a target, over a mesh of all its devices, with parameters as a layout says.

    Both forms have the same constraints: parameters are gathered where they are used, and their cotangents come out
    laid out as they are.

    Args:
      J: an objective.
      x: the specifications of its input.
      target: as of `devices_of`, such as "tpu-v5e:4x4".
      mesh, layout: as of `mesh_of` and `layout_of`.
      dtype: of parameters and input.

    Raises:
      ValueError, ImportError: as of these.
    """
    lies = layout_of(layout, mesh_of(mesh, devices_of(target)), J, x)
    work = of_objective(laid_out(J, lies), x, dtype)

    def divided(f):
        def sweep(params, x, state):
            value, dparams = f(params, x, state)
            return value, lax.with_sharding_constraint(dparams, lies.shardings)

        return sweep

    def placed(v, sharding):
        return jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding)

    params, x, state = work.arguments
    given = (
        jax.tree.map(placed, params, lies.shardings),
        jax.tree.map(lambda v: placed(v, lies.of_batch(v)), x),
        jax.tree.map(lambda v: placed(v, lies.sharding(PartitionSpec())), state),
    )

    def compiled(f):
        try:
            return compile_for(target, divided(f), *given)
        except MemoryError as error:
            return str(error)

    return Beside(MODEL, work.size, compiled(work.by_hand), compiled(work.by_autodiff))
