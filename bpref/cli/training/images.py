"""What `bpref train` does with a model of images: verify the gradient, train, say how well it tells or makes them."""

from dataclasses import asdict
from pathlib import Path

import jax

from bpref.cli.errors import UsageError, blaming_the_input
from bpref.cli.training.carrying_out import Training, after_compilation, by_what, carried_out, losses_of, written
from bpref.cli.training.how import How, choose_device, optimizer_of
from bpref.compose import objective
from bpref.models.images import GENERATIVE, IMAGE_MODELS, generative
from bpref.nearest import require_known
from bpref.rules.loss.softmax_cross_entropy import softmax_cross_entropy
from bpref.train.data.embedded import digits_as_images
from bpref.train.data.read_images import read_images, read_labels
from bpref.train.data.rows import Examples, of_rows
from bpref.train.data.split import rows_of_split
from bpref.train.fitted import Fitted
from bpref.train.keeping.record import Record
from bpref.train.network import METRICS
from bpref.train.recipes import ImageRecipe
from bpref.train.start import DTYPES, objective_in, require_epochs, steps_per_epoch

LOOKED_AT = 4096
"""Images to learn from by which what needs no network is judged; and as many others."""


def run(name: str, images: Path | None, labels: Path | None, recipe: ImageRecipe, how: How) -> int:
    """Train and report; the exit code is 0 or 1 (a wrong gradient, a loss that is not finite)."""
    with blaming_the_input():
        require_known("dtype", how.dtype, DTYPES)
        require_epochs(recipe.epochs)
        X, y, classes = chosen(name, images, labels)
        train, test = rows_of_split(len(X), how.seed)
        steps = steps_per_epoch(len(train), recipe.batch_size)
        optimizer = optimizer_of(recipe, recipe.epochs * steps, how.updates)
        if name in GENERATIVE:
            network, loss, _, score, metric, (alone, of_what) = generative(name, X.shape[1:], asdict(recipe))
            y, untrained = X, f" ({of_what}: {alone(X[train[:LOOKED_AT]], X[test[:LOOKED_AT]]):.4f})"
        else:
            network = IMAGE_MODELS[name](X.shape[1:], recipe.depth, recipe.width, len(classes))
            loss = softmax_cross_entropy()
            (score, metric), untrained = METRICS["classification"], ""
        placed = choose_device(how.device)

    learned_from, held_out = ((of_rows(X, rows), of_rows(y, rows)) for rows in (train, test))

    def describe(begin):
        size = sum(p.size for p in jax.tree.leaves(begin.params))
        return (
            f"{images or 'digits'}: {len(X)} images of {' x '.join(map(str, X.shape[1:3]))} pixels"
            f"{f', {len(classes)} classes' if classes else ''}; "
            f"{len(train)} to train on, {len(test)} held out by seed {how.seed}\n"
            f"{name} of depth {recipe.depth}, width {recipe.width}, {size:,} parameters; "
            + by_what(recipe, how.dtype, placed.platform)
        )

    def report(fitted: Fitted, record: Record | None) -> None:
        last = fitted.history[-1]
        print(
            f"test {score} {last.test_score:.4f}{untrained}, {losses_of(last)}\n"
            f"{fitted.examples_per_second:,.0f} examples/s, {after_compilation(fitted)}"
        )
        if record is not None:
            settings = {
                "model": name,
                **asdict(recipe),
                "data": str(images or "digits"),
                "seed": how.seed,
                "dtype": how.dtype,
            }
            settings |= {"image": list(X.shape[1:]), "classes": classes}
            state = fitted.state[0] if fitted.state else ()
            record.finish(fitted.params, fitted.history, f"test {score}", settings, state)
            print(written(record))
            if name in GENERATIVE:
                print(f"make images with: bpref sample {how.out} --output images.png")

    with jax.default_device(placed):
        training = Training(
            name,
            f"a {name} of width {recipe.width} and depth {recipe.depth}",
            objective(network, loss),
            learned_from,
            how.start(objective_in(how.dtype, network, loss), optimizer, learned_from, recipe),
            held_out,
            score,
            metric,
            describe,
            report,
        )
        return carried_out(training, recipe, how)


def chosen(name: str, images: Path | None, labels: Path | None) -> tuple[Examples, Examples, list[str]]:
    """The images, their labels and the classes; a model that makes images needs neither of these."""
    if images is None:
        if labels is not None:
            raise UsageError("--labels goes with --images, a file of your own")
        return *digits_as_images(), [str(c) for c in range(10)]
    X = read_images(images)
    if name in GENERATIVE:
        if labels is not None:
            raise UsageError(f"--labels means nothing to {name}, which makes images")
        return X, X, []
    if labels is None:
        raise UsageError(f"--images goes with --labels for {name}, which tells images apart")
    return X, *read_labels(labels, len(X))
