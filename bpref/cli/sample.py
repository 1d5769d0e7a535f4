"""`bpref sample`: what a trained model of text writes, or one of images makes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bpref.cli.errors import UsageError, blaming_the_input
from bpref.cli.training.choosing import require_none

if TYPE_CHECKING:
    from bpref.train.keeping.load import Loaded

EXAMPLE = (
    'Examples: bpref train gpt --out run && bpref sample run --prompt "The " --temperature 0.8 | '
    "bpref train unet --out run && bpref sample run --output images.png"
)


def sample(
    run: Annotated[Path, typer.Argument(help="What bpref train --out has left, of a model of text, of vae or unet.")],
    prompt: Annotated[str | None, typer.Option(help='The text to go on from. [default: "The "]')] = None,
    tokens: Annotated[int | None, typer.Option(help="How many tokens to write. [default: 200]")] = None,
    temperature: Annotated[float | None, typer.Option(help="0: the most probable token always. [default: 0.8]")] = None,
    top_k: Annotated[int | None, typer.Option(help="Only of so many of the most probable tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Only of the most probable that have this share.")] = None,
    images: Annotated[int | None, typer.Option(help="How many images to make. [default: 64]")] = None,
    output: Annotated[
        Path | None, typer.Option(help="The .png that images are written to. [default: images.png]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> int:
    """Write on from a prompt, one token after another, each with what the layers remember of those before.

    It may be longer than the context: gpt's attention sees as many tokens back as it was trained with, and no more. Of
    vae and unet, which make images, a picture of several side by side is written.
    """
    from bpref.models.images import GENERATIVE
    from bpref.train.keeping.load import load

    of_text = {"prompt": prompt, "tokens": tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    with blaming_the_input():
        loaded = load(run)
        kind = loaded.settings.get("model", "a table")
        if loaded.tokenizer is not None:
            require_none({"images": images, "output": output}, f"goes with a model that makes images; this is {kind}")
        elif kind in GENERATIVE:
            require_none(of_text, f"goes with a model of text; this is {kind}, which makes images")
        else:
            of = f"of {kind}, which tells images apart" if "model" in loaded.settings else "of a table"
            raise UsageError(
                f"{run}: it is {of}; bpref sample is for models of text, as of bpref train gpt, vae and unet"
            )
    if loaded.tokenizer is None:
        return draw(loaded, 64 if images is None else images, Path("images.png") if output is None else output, seed)
    given = {option: value for option, value in of_text.items() if value is not None}
    return write_on(loaded, seed, **{"prompt": "The ", "tokens": 200, "temperature": 0.8} | given)


def write_on(
    loaded: "Loaded",
    seed: int,
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
) -> int:
    """Print a prompt and what follows it."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from bpref.models.generate import generate

    assert loaded.tokenizer is not None
    with blaming_the_input():
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


def draw(loaded: "Loaded", count: int, output: Path, seed: int) -> int:
    """Write a picture of that many images, row by row in a square, black around each."""
    import jax
    import matplotlib.image
    import numpy as np

    from bpref.cli.writing import require_writable
    from bpref.models.images import generative

    if count < 1:
        raise UsageError(f"images is {count}, expected at least 1")
    if output.suffix != ".png":
        raise UsageError(f"--output {output}: expected a file that ends in .png")
    require_writable("--output", output)
    model = generative(loaded.settings["model"], loaded.settings["image"], loaded.settings)
    made = np.asarray(model.draw(loaded.params, jax.random.key(seed), count))
    side = int(np.ceil(np.sqrt(count)))
    made = np.concatenate([made, np.zeros((side**2 - count, *made.shape[1:]), made.dtype)])
    framed = np.pad(made, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = framed.reshape(side, side, *framed.shape[1:]).transpose(0, 2, 1, 3, 4)
    picture = rows.reshape(side * framed.shape[1], side * framed.shape[2], -1).mean(-1)
    matplotlib.image.imsave(output, np.kron(picture, np.ones((4, 4))), cmap="gray", vmin=0, vmax=1)
    print(f"written: {output}, {count} images of {' x '.join(map(str, made.shape[1:3]))} pixels")
    return 0
