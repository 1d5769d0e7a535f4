"""What `bpref train` does once it knows what to train on: verify the gradient, train, report."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bpref.cli import watching
from bpref.cli.ending import leaving, say
from bpref.cli.errors import blaming_the_input, blaming_the_size
from bpref.compose import objective
from bpref.layer import Layer
from bpref.nearest import meant, require_known
from bpref.train import loop
from bpref.train.columns import as_settings
from bpref.train.fitted import Died, Diverged, Epoch, Fitted
from bpref.train.network import METRICS, as_target, fully_connected, loss_named
from bpref.train.optimizers import make_optimizer
from bpref.train.recipes import ImageRecipe, Recipe, TextRecipe
from bpref.train.record import PARAMS, PLOT, Record
from bpref.train.split import Split, least_squares_r2, split
from bpref.train.start import DTYPES, Start, objective_in, require_epochs, start, steps_per_epoch
from bpref.train.table import Table, count

if TYPE_CHECKING:
    from bpref.verify.checked import LeafReport

LARGEST_ERROR = 1e-9
"""A layer whose gradient is further than this from the oracle's, relatively and in float64, is not trained."""

LARGEST_BATCH = 32
"""Examples in a batch, where nothing else is asked for."""

DEVICES = ("cpu", "gpu", "tpu")


def run(
    name: str,
    table: Table,
    recipe: Recipe,
    *,
    seed: int,
    dtype: str,
    update_in_backward: bool,
    watch: bool,
    device: str | None,
    out: Path | None,
) -> int:
    """Train and report; the exit code is 0 or 1 (a wrong gradient, a loss that is not finite)."""
    with blaming_the_input():
        require_known("dtype", dtype, DTYPES)
        require_epochs(recipe.epochs)
        parts = split(table, seed)
        batch_size = min(LARGEST_BATCH, len(parts.X)) if recipe.batch_size is None else recipe.batch_size
        recipe = replace(recipe, batch_size=batch_size)
        steps = steps_per_epoch(len(parts.X), batch_size)
        optimizer = optimizer_of(recipe, recipe.epochs * steps)
        loss = loss_named(recipe.loss, table.task)
        network = fully_connected(recipe.layers, recipe.activation, max(1, len(table.classes)))
        placed = choose_device(device)
    train, test = (
        (X, as_target(recipe.loss, y, len(table.classes)))
        for X, y in ((parts.X, parts.y), (parts.X_test, parts.y_test))
    )
    score, metric = METRICS[table.task]
    widths = ",".join(map(str, recipe.layers))
    with jax.default_device(placed):
        for note in table.notes:
            print(note)
        print(describe(name, table, parts, recipe, dtype, placed.platform, seed))
        done = trained(
            objective(network, loss),
            lambda: start(
                objective_in(dtype, network, loss),
                optimizer,
                train,
                batch_size=batch_size,
                seed=seed,
                dtype=dtype,
                update_in_backward=update_in_backward,
            ),
            test,
            recipe,
            what=f"a network with layers {widths} in batches of {batch_size}",
            score=score,
            metric=metric,
            out=out,
            watch=watch,
        )
    if done is None:
        return 1
    fitted, record = done
    print(summary(fitted, score, parts, table))
    if record is not None:
        settings = {"data": name, **asdict(recipe), "seed": seed, "dtype": dtype, "units": units(table, parts)}
        record.finish(fitted.params, fitted.history, f"test {score}", settings)
        print(written(record))
    return 0


def trained(
    J: Layer,
    begin: Callable[[], Start],
    test: tuple[Any, Any],
    recipe: Recipe | TextRecipe | ImageRecipe,
    *,
    what: str,
    score: str,
    metric: Callable[..., Any],
    out: Path | None,
    watch: bool = False,
    describe: Callable[[Start], str] | None = None,
) -> tuple[Fitted, Record | None] | None:
    """Begin, hold the gradient against the oracle, train; None where it is wrong, or training diverged.

    Args:
      J: the objective, as the oracle is to see it.
      begin: what is refused here is blamed on the size of `what`.
      test, score, metric: what is looked at after every epoch.
      recipe: how many epochs, and the learning rate that messages name.
      out: where the record goes.
      watch: whether every layer is looked at after every epoch, and where it is dead training stops.
      describe: what is printed once the parameters are there.
    """
    with blaming_the_size(what):
        begun = begin()
        if describe is not None:
            print(describe(begun))
        if not gradient_is_right(J, begun):
            return None
    with blaming_the_input():
        record = None if out is None else Record(out)
    fitted = carried_out(begun, test, recipe, score, metric, record, watch)
    return None if fitted is None else (fitted, record)


def carried_out(
    begin: Start,
    test: tuple[Any, Any],
    recipe: Recipe | TextRecipe | ImageRecipe,
    score: str,
    metric: Callable[..., Any],
    record: Record | None,
    watch: bool,
) -> Fitted | None:
    """Every epoch, with a bar on a terminal and a line in the record; None, and a message, where it cannot go on."""
    done: list[Epoch] = []
    try:
        with (
            leaving(lambda: f" after {count(len(done), 'epoch')}{so_far(record)}"),
            progress(recipe.epochs, score) as show,
        ):

            def on_epoch(epoch: Epoch) -> None:
                if record is not None:
                    record.add(epoch)
                done.append(epoch)
                show(epoch)
                watching.show(epoch, epoch.number == recipe.epochs)

            return loop.run(begin, test, epochs=recipe.epochs, metric=metric, on_epoch=on_epoch, watch=watch)
    except Diverged as diverged:
        say(f"{diverged} (it is {recipe.learning_rate:g}){so_far(record)}")
        return None
    except Died as died:
        say(f"{died}{so_far(record)}")
        return None


def written(record: Record) -> str:
    """Which files a run has left."""
    return "written: " + ", ".join(str(record.directory / file) for file in (PARAMS, record.metrics.name, PLOT))


def optimizer_of(recipe: Recipe | TextRecipe | ImageRecipe, steps: int) -> Any:
    """The optax transformation that a recipe means, for so many steps."""
    return make_optimizer(
        recipe.optimizer,
        recipe.learning_rate,
        steps=steps,
        schedule=recipe.schedule,
        weight_decay=recipe.weight_decay,
    )


def units(table: Table, parts: Split) -> dict[str, Any]:
    """How a user's own numbers become the network's input, and its output theirs again."""
    return {
        "features": table.feature_names,
        "columns": as_settings(table.columns),
        "mean": parts.X_mean.tolist(),
        "scale": parts.X_scale.tolist(),
        "target": table.target_name,
        "target_mean": parts.y_mean,
        "target_scale": parts.y_scale,
        "classes": [str(name) for name in table.classes],
    }


def gradient_is_right(J: Layer, begin: Start) -> bool:
    """Whether every layer's gradient, at the first batch, is the oracle's; prints the largest error."""
    from bpref.verify.checked import check_leaves

    reports = check_leaves(J, *begin.first())
    worst = max(reports, key=badness)
    print(
        f"gradient of the first batch, {len(reports)} layers with the loss, in float64: "
        f"largest error against the oracle {worst.error:.1e} ({worst.path})"
    )
    wrong = [report for report in reports if not report.error <= LARGEST_ERROR]
    if wrong:
        places = ", ".join(f"{report.path} ({report.error:.1e})" for report in wrong)
        say(f"not trained, since the hand-derived gradient is wrong in {places}")
    return not wrong


def badness(report: "LeafReport") -> float:
    """The error, NaN being the worst."""
    return report.error if report.error == report.error else float("inf")


def choose_device(name: str | None) -> Any:
    """A device by the name of its platform; raises `ValueError` for an unknown name and where there is none."""
    if name is None:
        return jax.devices()[0]
    name = meant("device", name, DEVICES, {"cuda": "gpu", "rocm": "gpu"})
    try:
        return jax.devices(name)[0]
    except RuntimeError:
        here = ", ".join(sorted({device.platform for device in jax.devices()} | {"cpu"}))
        raise ValueError(f"device {name}: there is none here that JAX can use; there is {here}") from None


def describe(name: str, table: Table, parts: Split, recipe: Recipe, dtype: str, platform: str, seed: int) -> str:
    """What is about to be trained, in two lines."""
    kind = f"{len(table.classes)} classes" if table.classes else "regression"
    widths = (table.X.shape[1], *recipe.layers, max(1, len(table.classes)))
    return (
        f"{name}: {count(len(table.X), 'example')}, {count(widths[0], 'feature')} -> {table.target_name} ({kind}); "
        f"{len(parts.X)} to train on, {len(parts.X_test)} held out by seed {seed}\n"
        f"network {' -> '.join(map(str, widths))}, {recipe.activation}, {recipe.loss}; "
        + by_what(recipe, dtype, platform)
    )


def by_what(recipe: Recipe | TextRecipe | ImageRecipe, dtype: str, platform: str) -> str:
    """How it is trained."""
    return (
        f"{recipe.optimizer}, learning rate {recipe.learning_rate:g} {recipe.schedule}, "
        f"weight decay {recipe.weight_decay:g}, {count(recipe.epochs, 'epoch')} in batches of {recipe.batch_size}, "
        f"{dtype} on {platform}"
    )


@contextmanager
def progress(epochs: int, score: str):
    """A bar with loss and score on a terminal's stderr, gone at the end; elsewhere nothing."""
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"))
    console = Console(stderr=True)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=epochs, figures="compiling")

        def show(epoch: Epoch) -> None:
            figures = f"loss {epoch.losses.mean():.4f}, test {score} {epoch.test_score:.4f}"
            bar.update(task, completed=epoch.number, figures=figures)

        yield show


def summary(fitted: Fitted, score: str, parts: Split, table: Table) -> str:
    """The last epoch's figures, the linear baseline of the same split, and the speed."""
    last = fitted.history[-1]
    baseline = "" if table.classes else f" (least squares on the same split: {least_squares_r2(parts):.4f})"
    return (
        f"test {score} {last.test_score:.4f}{baseline}, {losses_of(last)}\n"
        f"{fitted.examples_per_second:,.0f} examples/s, {after_compilation(fitted)}"
    )


def losses_of(epoch: Epoch) -> str:
    """Both of an epoch's."""
    return f"test loss {epoch.test_loss:.4f}, training loss {epoch.losses.mean():.4f}"


def after_compilation(fitted: Fitted) -> str:
    """What was waited for before the first step."""
    return f"after {fitted.compile_seconds:.1f} s of compilation"


def so_far(record: Record | None) -> str:
    """Where the metrics of an unfinished run are."""
    return "" if record is None else f"; the metrics so far are in {record.metrics}"
