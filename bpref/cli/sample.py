"""`bpref sample`: what a trained model of text writes."""

from pathlib import Path
from typing import Annotated

import typer

from bpref.cli.errors import UsageError, blaming_the_input

EXAMPLE = 'Example: bpref train gpt --out run && bpref sample run --prompt "The " --temperature 0.8'


def sample(
    run: Annotated[Path, typer.Argument(help="What bpref train --out has left, of a model of text.")],
    prompt: Annotated[str, typer.Option(help="The text to go on from.")] = "The ",
    tokens: Annotated[int, typer.Option(help="How many tokens to write.")] = 200,
    temperature: Annotated[float, typer.Option(help="0: the most probable token always.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Only of so many of the most probable tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Only of the most probable that have this share.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> int:
    """Write on from a prompt, one token after another, each with what the layers remember of those before.

    It may be longer than the context: gpt's attention sees as many tokens back as it was trained with, and no more.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from bpref.models.generate import generate
    from bpref.train.load import load

    with blaming_the_input():
        loaded = load(run)
        if loaded.tokenizer is None:
            kind = "images" if "model" in loaded.settings else "a table"
            raise UsageError(f"{run}: it is of {kind}; bpref sample is for models of text, as of bpref train gpt")
        ids = loaded.tokenizer.encode(prompt)
        if tokens < 1:
            raise UsageError(f"tokens is {tokens}, expected at least 1")
        if not len(ids):
            raise UsageError("the prompt is empty, expected a text to go on from")
        written = generate(
            loaded.network,
            loaded.params,
            jnp.asarray(ids[None]),
            steps=tokens,
            key=jax.random.key(seed),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
    print(prompt + loaded.tokenizer.decode(np.asarray(written)[0]))
    return 0
