"""What `bpref train` does with a model of images: verify the gradient, train, say how well it tells or makes them."""

from dataclasses import asdict

import jax

from bpref.cli.carrying_out import Training, after_compilation, by_what, carried_out, losses_of, written
from bpref.cli.errors import blaming_the_input
from bpref.cli.how import How, choose_device, optimizer_of
from bpref.compose import objective
from bpref.models.images import GENERATIVE, IMAGE_MODELS, generative
from bpref.nearest import require_known
from bpref.rules.loss.softmax_cross_entropy import softmax_cross_entropy
from bpref.train.embedded import digits_as_images
from bpref.train.fitted import Fitted
from bpref.train.network import METRICS
from bpref.train.recipes import ImageRecipe
from bpref.train.record import Record
from bpref.train.split import rows_of_split
from bpref.train.start import DTYPES, objective_in, require_epochs, steps_per_epoch


def run(name: str, recipe: ImageRecipe, how: How) -> int:
    """Train and report; the exit code is 0 or 1 (a wrong gradient, a loss that is not finite)."""
    with blaming_the_input():
        require_known("dtype", how.dtype, DTYPES)
        require_epochs(recipe.epochs)
        X, y = digits_as_images()
        classes = [str(c) for c in range(10)]
        train, test = rows_of_split(len(X), how.seed)
        steps = steps_per_epoch(len(train), recipe.batch_size)
        optimizer = optimizer_of(recipe, recipe.epochs * steps, how.updates)
        if name in GENERATIVE:
            network, loss, _, score, metric, (alone, of_what) = generative(name, X.shape[1:], asdict(recipe))
            y, untrained = X, f" ({of_what}: {alone(X[train], X[test]):.4f})"
        else:
            network, loss = IMAGE_MODELS[name](recipe.depth, recipe.width, len(classes)), softmax_cross_entropy()
            (score, metric), untrained = METRICS["classification"], ""
        placed = choose_device(how.device)

    def describe(begin):
        size = sum(p.size for p in jax.tree.leaves(begin.params))
        return (
            f"digits: {len(X)} images of {' x '.join(map(str, X.shape[1:3]))} pixels, {len(classes)} classes; "
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
            settings = {"model": name, **asdict(recipe), "data": "digits", "seed": how.seed, "dtype": how.dtype}
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
            (X[train], y[train]),
            how.start(objective_in(how.dtype, network, loss), optimizer, (X[train], y[train]), recipe),
            (X[test], y[test]),
            score,
            metric,
            describe,
            report,
        )
        return carried_out(training, recipe, how)
