"""`bpref train`: the seed's network, or any like it, on real data; its gradient is verified before the first step."""

from pathlib import Path
from typing import Annotated

import typer

from bpref.cli.ending import ended_by_termination
from bpref.cli.errors import blaming_the_input
from bpref.cli.pages.page import Open
from bpref.cli.training.choosing import DEFAULT, choose_table, hosts_of, patterns, require_none, widths, with_given

EXAMPLE = (
    "Examples: bpref train | bpref train digits --epochs 20 --out run | bpref train gpt --out run | "
    "bpref train --data table.csv --target price --layers 128,64 --optimizer adam --learning-rate 0.001"
)


def train(
    what: Annotated[
        str | None,
        typer.Argument(
            help="diabetes, digits, a model of text (gpt, mixture, lstm, mamba) or of images (resnet, vit, vae, unet). "
            "[default: diabetes]"
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Your own table instead: a .csv or .tsv with a header, a .npz, a .npy.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="The column of --data to predict; an .npz's array [default: y], for an .npy a file."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="regression or classification. [default: as the target looks]")
    ] = None,
    missing: Annotated[
        str | None, typer.Option(help="Of a value missing in --data: refuse, drop, impute. [default: refuse]")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="For a model of text, UTF-8 or a file of ids. [default: Python's own documentation]"),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(help="Of text: bytes, bpe; of ids made elsewhere: uint16, uint32, npy. [default: bytes]"),
    ] = None,
    vocabulary: Annotated[
        int | None, typer.Option(help="How many tokens there are but for bytes. [default: 1024]")
    ] = None,
    context: Annotated[int | None, typer.Option(help="Tokens in an example of text. [default: 64]")] = None,
    width: Annotated[
        int | None,
        typer.Option(
            help="Features of a model. [default: 64 for text, 16 for resnet and unet, 32 for vit, 256 for vae]"
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(
            help="Blocks of a model, of a stage of resnet; layers of vae, halvings of unet. [default: 2; of these 1]"
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="For a model of images, IDX, .gz too, or .npy. [default: scikit-learn's digits]")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Of --images, for resnet and vit: the same, 0 ... C-1.")] = None,
    latent: Annotated[int | None, typer.Option(help="Numbers that code an image of vae. [default: 8]")] = None,
    noise_steps: Annotated[int | None, typer.Option(help="From noise to an image, of unet. [default: 100]")] = None,
    heads: Annotated[int | None, typer.Option(help="Heads of attention. [default: 4]")] = None,
    experts: Annotated[int | None, typer.Option(help="In each block of mixture. [default: 4]")] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Width of each hidden layer. [default: 64,64,64 for diabetes, 256 for digits, else 64,64]"),
    ] = None,
    activation: Annotated[str | None, typer.Option(help="After each hidden layer. [default: by data set]")] = None,
    loss: Annotated[
        str | None, typer.Option(help="square, huber, or a cross-entropy. [default: square; softmax_cross_entropy]")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="sgd, momentum, adam, adamw, ... [default: sgd for diabetes, else adamw]")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The largest. [default: by optimizer]")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="constant, linear, cosine, exponential, warmup_cosine. [default: cosine]")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Of the weights, not of the biases. [default: by data set]")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Times through the training split. [default: by data set]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples in one step. [default: 32]")] = None,
    seed: Annotated[int, typer.Option(help="Of the split, the parameters and the order of examples.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 (the loss is scaled) or float64.")] = "float32",
    stochastic_rounding: Annotated[
        bool,
        typer.Option("--stochastic-rounding", help="Keep parameters in bfloat16 too, rounded by chance."),
    ] = False,
    update_in_backward: Annotated[
        bool, typer.Option("--update-in-backward", help="Update each layer as soon as its gradient is there.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look at every layer after every epoch, and stop where it is dead.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu, gpu or tpu. [default: the fastest there is]")] = None,
    mesh: Annotated[
        str | None, typer.Option(help="Train on many devices: data=8, or data=4,model=2; also expert, sequence.")
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(help="Of parameters on --mesh: replicated, fully-sharded or tensor. [default: replicated]"),
    ] = None,
    coordinator: Annotated[
        str | None,
        typer.Option(
            help="Train in several processes, which meet at HOST:PORT of process 0; auto: as JAX finds in Slurm, Open "
            "MPI, Kubernetes or a TPU pod. --mesh is of the devices of all; --out is on a disk that all share."
        ),
    ] = None,
    processes: Annotated[int | None, typer.Option(help="How many, with --coordinator HOST:PORT.")] = None,
    process: Annotated[int | None, typer.Option(help="Which of them this is, from 0.")] = None,
    connect_timeout: Annotated[
        int | None, typer.Option(help="Seconds that processes wait for each other at the start. [default: 60]")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A new directory for params.safetensors, metrics.jsonl and loss.png. [default: none]"),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the run in --out as a page in the end: curves, layers.")
    ] = None,
    show: Open = False,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints of all that --resume takes. [default: once a minute]")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on, bit for bit, with the run in --out; begin it where there is none yet."),
    ] = False,
    most_skipped: Annotated[
        int | None,
        typer.Option(
            help="Steps in a row skipped as a gradient is not finite, before it stops. [default: 0; float16 16]"
        ),
    ] = None,
    verify_every: Annotated[
        int | None, typer.Option(help="Steps after which the gradient is held against the oracle again.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Trace some steps by JAX's profiler, into profile/ in --out.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write the figures for TensorBoard too, into tensorboard/ in --out.")
    ] = False,
    clip: Annotated[
        str | None, typer.Option(help="The gradient's largest norm, 1.0; of each array, leaf:1.0; or value:0.5.")
    ] = None,
    accumulate: Annotated[int, typer.Option(help="Batches for one update, by the mean of their gradients.")] = 1,
    average: Annotated[
        float | None, typer.Option(help="Decay of a moving average of the parameters, to evaluate and keep.")
    ] = None,
    freeze: Annotated[str | None, typer.Option(help="Parameters that are not trained, such as '0.*,*.b'.")] = None,
    decay: Annotated[
        str | None, typer.Option(help="Parameters that --weight-decay is for. [default: matrices of weights]")
    ] = None,
) -> int:
    """Train a network on real data by its hand-derived gradient, verified before the first step.

    Without arguments: a regression on the diabetes data with hidden layers, one output neuron, the square loss
    and gradient descent. 20% of the examples are held out for the test; of a text, the last tenth.
    """
    from bpref.cli.training.how import How
    from bpref.cli.training.together import together
    from bpref.train.recipes import NO_SETTING_OF, OF_IMAGES, OF_TEXT
    from bpref.train.updates import Updates

    of_both = {
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "weight_decay": weight_decay,
        "epochs": epochs,
        "batch_size": batch_size,
    }
    of_tables = {"data": data, "target": target, "task": task, "missing": missing}
    of_networks = {"layers": layers, "activation": activation, "loss": loss}
    of_tokens = {"tokens": tokens, "vocabulary": vocabulary, "context": context, "heads": heads, "experts": experts}
    of_text = {"text": text} | of_tokens
    of_models = {"width": width, "depth": depth}
    of_makers = {"latent": latent, "noise_steps": noise_steps}
    of_files = {"images": images, "labels": labels}
    with blaming_the_input():
        hosts = hosts_of(coordinator, processes, process, connect_timeout)

    def command() -> int:
        how = How(
            seed=seed,
            dtype=dtype,
            update_in_backward=update_in_backward,
            watch=watch,
            device=device,
            out=out,
            resume=resume,
            checkpoint_every=checkpoint_every,
            most_skipped=most_skipped,
            verify_every=verify_every,
            profile=profile,
            tensorboard=tensorboard,
            stochastic_rounding=stochastic_rounding,
            mesh=mesh,
            layout=layout,
            report=report,
            shown=show,
            updates=Updates(clip, patterns(freeze) or (), average, accumulate, patterns(decay)),
        )
        with blaming_the_input():
            how.require_consistent()
        if what in OF_TEXT:
            with blaming_the_input():
                require_none(of_tables | of_networks, f"goes with a table; {what} is a model of text")
                require_none(of_makers, f"goes with a model of images that makes some; {what} is a model of text")
                require_none(of_files, f"goes with a model of images; {what} is a model of text")
                require_none({o: of_tokens[o] for o in NO_SETTING_OF[what]}, f"is no setting of {what}")
                if tokens in (None, "bytes"):
                    require_none({"vocabulary": vocabulary}, "goes with --tokens; of bytes there are 256")
                text_recipe = with_given(OF_TEXT[what], of_tokens | of_models | of_both)
            from bpref.cli.training.text import run as run_text

            return run_text(what, text, text_recipe, how)
        if what in OF_IMAGES:
            with blaming_the_input():
                require_none(of_tables | of_networks, f"goes with a table; {what} is a model of images")
                require_none(of_text, f"goes with a model of text: {', '.join(OF_TEXT)}")
                others = {option: v for option, v in of_makers.items() if getattr(OF_IMAGES[what], option) is None}
                require_none(others, f"is no setting of {what}")
                image_recipe = with_given(OF_IMAGES[what], of_models | of_makers | of_both)
            from bpref.cli.training.images import run as run_images

            return run_images(what, images, labels, image_recipe, how)
        from bpref.cli.training.table import run

        with blaming_the_input():
            require_none(of_text, f"goes with a model of text: {', '.join(OF_TEXT)}")
            require_none(of_models | of_makers, f"goes with a model: {', '.join([*OF_TEXT, *OF_IMAGES])}")
            require_none(of_files, f"goes with a model of images: {', '.join(OF_IMAGES)}")
            table, recipe = choose_table(what, data, target, task, missing, seed)
            given = of_networks | of_both | {"layers": None if layers is None else widths(layers)}
            recipe = with_given(recipe, given)
        return run(str(data) if data is not None else what or DEFAULT, table, recipe, how)

    with ended_by_termination():
        return together(hosts, command)
