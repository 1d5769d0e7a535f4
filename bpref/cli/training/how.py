"""How a network is trained, whatever it is and whatever it is trained on: the options that every recipe goes with."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
from optax import GradientTransformation

from bpref.cli.pages.page import require_page
from bpref.cli.training.tensorboard import require_tensorboard
from bpref.layer import Layer
from bpref.nearest import meant, require_known
from bpref.sharding.hosts import are_many
from bpref.sharding.layout import LAYOUTS
from bpref.sharding.mesh import DATA, mesh_of
from bpref.train.data.rows import Examples
from bpref.train.data.table import count
from bpref.train.divided import Division
from bpref.train.keeping.record import is_begun, require_new
from bpref.train.optimizers import make_optimizer
from bpref.train.recipes import Recipe
from bpref.train.start import Start, start
from bpref.train.updates import Updates

DEVICES = ("cpu", "gpu", "tpu")


class Device(Protocol):
    platform: str
    process_index: int


class How(NamedTuple):
    """Options of `bpref train`, by the names that they have there.

    Attributes:
      seed: of the split, the parameters, and the order of examples.
      dtype: what is computed in.
      update_in_backward: whether each layer is updated as soon as its gradient is there.
      watch: whether every layer is looked at after every epoch, and where it is dead training stops.
      device: the platform.
      out: where the record goes.
      resume: whether the run in `out` is gone on with.
      checkpoint_every: steps.
      most_skipped: steps in a row; None for what the dtype needs.
      updates: what the optimiser's updates are put through.
      verify_every: steps between looks at the gradient.
      profile: whether some steps are traced.
      tensorboard: whether figures are written for TensorBoard too.
      stochastic_rounding: whether parameters are kept in bfloat16 and rounded by chance.
      mesh: of which devices, as `data=4,model=2`; None for one, or for the examples among those of all processes.
      layout: how parameters lie on them.
      report: where the page of the run goes in the end, and whether it is `shown`.
    """

    seed: int
    dtype: str
    update_in_backward: bool
    watch: bool
    device: str | None
    out: Path | None
    resume: bool = False
    checkpoint_every: int | None = None
    most_skipped: int | None = None
    updates: Updates = Updates()
    verify_every: int | None = None
    profile: bool = False
    tensorboard: bool = False
    stochastic_rounding: bool = False
    mesh: str | None = None
    layout: str | None = None
    report: Path | None = None
    shown: bool = False

    def require_consistent(self) -> None:
        """Raise `ValueError` or `OSError` for what means nothing, or where there is no room for the record."""
        every = {"--checkpoint-every": self.checkpoint_every, "--verify-every": self.verify_every}
        of_a_record = {
            "--resume": self.resume,
            "--profile": self.profile,
            "--tensorboard": self.tensorboard,
            "--checkpoint-every": self.checkpoint_every,
            "--report": self.report,
        }
        for option, given in of_a_record.items():
            if given not in (None, False) and self.out is None:
                raise ValueError(f"{option} goes with --out, the directory of the run")
        for option, steps in every.items():
            if steps is not None and steps < 1:
                raise ValueError(f"{option} is {steps}, expected at least 1 step")
        if self.most_skipped is not None and self.most_skipped < 0:
            raise ValueError(f"--most-skipped is {self.most_skipped}, expected at least 0 steps")
        if self.stochastic_rounding and self.dtype != "bfloat16":
            raise ValueError(f"--stochastic-rounding goes with --dtype bfloat16, not {self.dtype}")
        by_layer = [*self.updates.of_the_whole, *(["--dtype float16"] if self.dtype == "float16" else [])]
        by_layer += ["--stochastic-rounding"] if self.stochastic_rounding else []
        if self.update_in_backward and by_layer:
            raise ValueError(f"{by_layer[0]} needs the gradient of the whole network, not --update-in-backward")
        if self.layout is not None and self.mesh is None and not are_many():
            raise ValueError("--layout goes with --mesh, the devices among which parameters are divided")
        if self.report is None or self.report.parent != self.out:
            require_page("--report", self.report, self.shown)
        if self.tensorboard:
            require_tensorboard()
        self.division()
        if self.out is not None and not (self.resume and is_begun(self.out)):
            require_new(self.out)

    def start(
        self, J: Layer, optimizer: GradientTransformation, train: tuple[Examples, Examples], recipe: Recipe
    ) -> Callable[[], Start]:
        """What begins the training of an objective, as these options say."""
        return lambda: start(
            J,
            optimizer,
            train,
            batch_size=recipe.batch_size,
            seed=self.seed,
            dtype=self.dtype,
            update_in_backward=self.update_in_backward,
            stochastic_rounding=self.stochastic_rounding,
            division=self.division(),
        )

    def division(self) -> Division | None:
        """Among which devices it is divided, and how; `ValueError` where these are not there, or that is unknown."""
        if self.mesh is None and not are_many():
            return None
        layout, devices = self.layout or LAYOUTS[0], devices_called(self.device)
        require_known("layout", layout, LAYOUTS)
        return Division(mesh_of(self.mesh or f"{DATA}={len(devices)}", devices), layout)

    @property
    def skips(self) -> int:
        """How many steps in a row may be skipped; as many as bring the scale of float16 from its largest below 1."""
        if self.most_skipped is not None:
            return self.most_skipped
        return 16 if self.dtype == "float16" else 0


def choose_device(name: str | None) -> Device:
    """The first of `devices_called` that is this process' own."""
    return next(device for device in devices_called(name) if device.process_index == jax.process_index())


def devices_called(name: str | None) -> Sequence[Device]:
    """Those of a platform; raises `ValueError` for an unknown name and where there is none."""
    if name is None:
        return jax.devices()
    name = meant("device", name, DEVICES, {"cuda": "gpu", "rocm": "gpu"})
    try:
        return jax.devices(name)
    except RuntimeError:
        here = ", ".join(sorted({device.platform for device in jax.devices()} | {"cpu"}))
        raise ValueError(f"device {name}: there is none here that JAX can use; there is {here}") from None


def optimizer_of(recipe: Recipe, steps: int, updates: Updates) -> GradientTransformation:
    """The optax transformation that a recipe means, for so many steps; `ValueError` where none would be an update."""
    if updates.accumulate > steps:
        raise ValueError(
            f"accumulate is {updates.accumulate} batches, and the run has {count(steps, 'step')}: no update"
        )
    return make_optimizer(
        recipe.optimizer,
        recipe.learning_rate,
        steps=steps,
        schedule=recipe.schedule,
        weight_decay=recipe.weight_decay,
        updates=updates,
    )
