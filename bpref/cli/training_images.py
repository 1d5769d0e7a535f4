"""What `bpref train` does with a model of images: verify the gradient, train, say how well it tells or makes them."""

from dataclasses import asdict
from pathlib import Path

import jax

from bpref.cli.errors import blaming_the_input
from bpref.cli.training import (
    after_compilation,
    by_what,
    choose_device,
    losses_of,
    optimizer_of,
    trained,
    written,
)
from bpref.compose import objective
from bpref.models.images import GENERATIVE, IMAGE_MODELS, generative
from bpref.nearest import require_known
from bpref.rules.loss.softmax_cross_entropy import softmax_cross_entropy
from bpref.train.embedded import digits_as_images
from bpref.train.network import METRICS
from bpref.train.recipes import ImageRecipe
from bpref.train.split import rows_of_split
from bpref.train.start import DTYPES, objective_in, require_epochs, start, steps_per_epoch


def run(
    name: str,
    recipe: ImageRecipe,
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
        X, y = digits_as_images()
        classes = [str(c) for c in range(10)]
        train, test = rows_of_split(len(X), seed)
        steps = steps_per_epoch(len(train), recipe.batch_size)
        optimizer = optimizer_of(recipe, recipe.epochs * steps)
        if name in GENERATIVE:
            network, loss, _, score, metric, (alone, how) = generative(name, X.shape[1:], asdict(recipe))
            y, untrained = X, f" ({how}: {alone(X[train], X[test]):.4f})"
        else:
            network, loss = IMAGE_MODELS[name](recipe.depth, recipe.width, len(classes)), softmax_cross_entropy()
            (score, metric), untrained = METRICS["classification"], ""
        placed = choose_device(device)

    def describe(begin):
        size = sum(p.size for p in jax.tree.leaves(begin.params))
        return (
            f"digits: {len(X)} images of {' x '.join(map(str, X.shape[1:3]))} pixels, {len(classes)} classes; "
            f"{len(train)} to train on, {len(test)} held out by seed {seed}\n"
            f"{name} of depth {recipe.depth}, width {recipe.width}, {size:,} parameters; "
            + by_what(recipe, dtype, placed.platform)
        )

    with jax.default_device(placed):
        done = trained(
            objective(network, loss),
            lambda: start(
                objective_in(dtype, network, loss),
                optimizer,
                (X[train], y[train]),
                batch_size=recipe.batch_size,
                seed=seed,
                dtype=dtype,
                update_in_backward=update_in_backward,
            ),
            (X[test], y[test]),
            recipe,
            what=f"a {name} of width {recipe.width} and depth {recipe.depth}",
            score=score,
            metric=metric,
            out=out,
            watch=watch,
            describe=describe,
        )
    if done is None:
        return 1
    fitted, record = done
    last = fitted.history[-1]
    print(
        f"test {score} {last.test_score:.4f}{untrained}, {losses_of(last)}\n"
        f"{fitted.examples_per_second:,.0f} examples/s, {after_compilation(fitted)}"
    )
    if record is not None:
        settings = {"model": name, **asdict(recipe), "data": "digits", "seed": seed, "dtype": dtype}
        settings |= {"image": list(X.shape[1:]), "classes": classes}
        record.finish(fitted.params, fitted.history, f"test {score}", settings, fitted.state[0] if fitted.state else ())
        print(written(record))
        if name in GENERATIVE:
            print(f"make images with: bpref sample {out} --output images.png")
    return 0
