"""What `bpref train` does with a model of text: verify the gradient, train, say how well it predicts."""

from dataclasses import asdict
from pathlib import Path

import jax

from bpref.cli.errors import blaming_the_input
from bpref.cli.training.carrying_out import Training, after_compilation, by_what, carried_out, losses_of, written
from bpref.cli.training.how import How, choose_device, optimizer_of
from bpref.models.text import text_model
from bpref.nearest import require_known
from bpref.train.data.table import count
from bpref.train.data.text import Text, bits_per_byte, read_text
from bpref.train.fitted import Fitted
from bpref.train.keeping.record import Record
from bpref.train.recipes import TextRecipe
from bpref.train.start import DTYPES, Start, require_epochs, steps_per_epoch
from bpref.train.step import in_dtype


def run(name: str, file: Path | None, recipe: TextRecipe, how: How) -> int:
    """Train and report; the exit code is 0 or 1 (a wrong gradient, a loss that is not finite)."""
    with blaming_the_input():
        require_known("dtype", how.dtype, DTYPES)
        require_epochs(recipe.epochs)
        text = read_text(file, recipe.context, recipe.tokens, recipe.vocabulary)
        steps = steps_per_epoch(len(text.train[0]), recipe.batch_size)
        optimizer = optimizer_of(recipe, recipe.epochs * steps, how.updates)
        r = recipe
        model = text_model(name, text.tokenizer.vocabulary, r.context, r.width, r.depth, r.heads, r.experts)
        placed = choose_device(how.device)

    def report(fitted: Fitted, record: Record | None) -> None:
        print(summary(fitted, text, recipe))
        if record is not None:
            made_of = settings(name, text, recipe, how.seed, how.dtype)
            record.finish(fitted.params, fitted.history, f"test {text.score}", made_of)
            print(written(record))
            print(f'go on with: bpref sample {how.out} --prompt "{text.prompt}"')

    with jax.default_device(placed):
        training = Training(
            name,
            f"a {name} of width {recipe.width} and depth {recipe.depth}",
            model.objective,
            text.train,
            how.start(in_dtype(model.objective, DTYPES[how.dtype]), optimizer, text.train, recipe),
            text.test,
            text.score,
            lambda J: bits_per_byte(J, text.bytes_per_token),
            lambda begin: describe(name, text, recipe, begin, placed.platform),
            report,
        )
        return carried_out(training, recipe, how)


def describe(name: str, text: Text, recipe: TextRecipe, begin: Start, platform: str) -> str:
    """What is about to be trained, in two lines."""
    X, X_test = text.train[0], text.test[0]
    length = "" if text.bytes_per_token is None else f" of {text.bytes_per_token:.2f} bytes"
    tokens = "bytes" if recipe.tokens == "bytes" else f"tokens{length}"
    size = sum(p.size for p in jax.tree.leaves(begin.params))
    return (
        f"{text.name}: {count(len(X), 'context')} of {X.shape[1]} {tokens} to train on, "
        f"{len(X_test)} held out, its end\n"
        f"{name} of {count(recipe.depth, 'block')}, width {recipe.width}, {size:,} parameters; "
        + by_what(recipe, begin.dtype, platform)
    )


def summary(fitted: Fitted, text: Text, recipe: TextRecipe) -> str:
    """The last epoch's figures, what frequencies alone would give, and the speed."""
    last = fitted.history[-1]
    steps = sum(len(epoch.losses) for epoch in fitted.history)
    return (
        f"test {last.test_score:.3f} {text.score} after {steps:,} steps (the frequencies of the tokens alone: "
        f"{text.unigram:.3f}), {losses_of(last)}\n"
        f"{fitted.examples_per_second * recipe.context:,.0f} tokens/s, {after_compilation(fitted)}"
    )


def settings(name: str, text: Text, recipe: TextRecipe, seed: int, dtype: str) -> dict[str, object]:
    """All that the network and its tokens are made of again."""
    return {
        "model": name,
        **asdict(recipe),
        "ids": text.tokenizer.vocabulary,
        "tokenizer": text.tokenizer.saved,
        "text": text.name,
        "seed": seed,
        "dtype": dtype,
    }
