"""What `bpref train` does with a table: a fully connected network for it, and what comes of it in the user's units."""

from dataclasses import asdict, replace

import jax

from bpref.cli.errors import blaming_the_input
from bpref.cli.training.carrying_out import Training, after_compilation, by_what, carried_out, losses_of, written
from bpref.cli.training.how import How, choose_device, optimizer_of
from bpref.compose import objective
from bpref.nearest import require_known
from bpref.train.data.columns import as_settings
from bpref.train.data.rows import Rows
from bpref.train.data.split import Split, least_squares_r2, split
from bpref.train.data.table import Table, count
from bpref.train.fitted import Fitted
from bpref.train.keeping.record import Record
from bpref.train.network import METRICS, as_target, fully_connected, loss_named
from bpref.train.recipes import TableRecipe
from bpref.train.start import DTYPES, objective_in, require_epochs, steps_per_epoch

LARGEST_BATCH = 32
"""Examples in a batch, where nothing else is asked for."""


def run(name: str, table: Table, recipe: TableRecipe, how: How) -> int:
    """Train and report; the exit code is 0 or 1 (a wrong gradient, a loss that is not finite)."""
    with blaming_the_input():
        require_known("dtype", how.dtype, DTYPES)
        require_epochs(recipe.epochs)
        parts = split(table, how.seed)
        batch_size = min(LARGEST_BATCH, len(parts.X)) if recipe.batch_size is None else recipe.batch_size
        recipe = replace(recipe, batch_size=batch_size)
        steps = steps_per_epoch(len(parts.X), batch_size)
        optimizer = optimizer_of(recipe, recipe.epochs * steps, how.updates)
        loss = loss_named(recipe.loss, table.task)
        network = fully_connected(recipe.layers, recipe.activation, max(1, len(table.classes)))
        placed = choose_device(how.device)
    train, test = (
        (X, as_target(recipe.loss, y, len(table.classes)))
        for X, y in ((parts.X, parts.y), (parts.X_test, parts.y_test))
    )
    score, metric = METRICS[table.task]

    def report(fitted: Fitted, record: Record | None) -> None:
        print(summary(fitted, score, parts, table))
        if record is not None:
            settings = {"data": name, **asdict(recipe), "seed": how.seed, "dtype": how.dtype}
            record.finish(fitted.params, fitted.history, f"test {score}", settings | {"units": units(table, parts)})
            print(written(record))

    with jax.default_device(placed):
        for note in table.notes:
            print(note)
        print(describe(name, table, parts, recipe, how.dtype, placed.platform, how.seed))
        training = Training(
            "table",
            f"a network with layers {','.join(map(str, recipe.layers))} in batches of {batch_size}",
            objective(network, loss),
            train,
            how.start(objective_in(how.dtype, network, loss), optimizer, train, recipe),
            test,
            score,
            metric,
            None,
            report,
        )
        return carried_out(training, recipe, how)


def units(table: Table, parts: Split) -> dict[str, object]:
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


def describe(name: str, table: Table, parts: Split, recipe: TableRecipe, dtype: str, platform: str, seed: int) -> str:
    """What is about to be trained, in two lines."""
    kind = f"{len(table.classes)} classes" if table.classes else "regression"
    widths = (table.X.shape[1], *recipe.layers, max(1, len(table.classes)))
    return (
        f"{name}: {count(len(table.X), 'example')}, {count(widths[0], 'feature')} -> {table.target_name} ({kind}); "
        f"{len(parts.X)} to train on, {len(parts.X_test)} held out by seed {seed}\n"
        f"network {' -> '.join(map(str, widths))}, {recipe.activation}, {recipe.loss}; "
        + by_what(recipe, dtype, platform)
    )


def summary(fitted: Fitted, score: str, parts: Split, table: Table) -> str:
    """The last epoch's figures, the linear baseline of the same split, and the speed."""
    last = fitted.history[-1]
    is_one = not (table.classes or isinstance(table.X, Rows))
    baseline = f" (least squares on the same split: {least_squares_r2(parts):.4f})" if is_one else ""
    return (
        f"test {score} {last.test_score:.4f}{baseline}, {losses_of(last)}\n"
        f"{fitted.examples_per_second:,.0f} examples/s, {after_compilation(fitted)}"
    )
