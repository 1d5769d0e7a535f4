"""Recipes: what `bpref train` uses where the command line does not say."""

from dataclasses import dataclass

from bpref.train.data.table import Task


@dataclass(frozen=True)
class Recipe:
    """How a run goes; these settings, and those of each kind of model, are options of `bpref train`.

    A `batch_size` of None, of a table, is 32, or all the examples there are to train on if those are fewer.
    """

    optimizer: str
    learning_rate: float
    schedule: str
    weight_decay: float
    epochs: int
    batch_size: int | None


@dataclass(frozen=True)
class TableRecipe(Recipe):
    """Settings of a run on a table."""

    layers: tuple[int, ...]
    activation: str
    loss: str


@dataclass(frozen=True)
class TextRecipe(Recipe):
    """Settings of a run of a model of text.

    `tokens` is "bytes" or "bpe", of so large a `vocabulary` then; `heads` are those of attention, where there is one,
    and `experts` those of a block of mixture.
    """

    batch_size: int
    tokens: str
    vocabulary: int
    context: int
    width: int
    depth: int
    heads: int
    experts: int


OF_TEXT: dict[str, TextRecipe] = dict.fromkeys(
    ("gpt", "mixture", "lstm", "mamba"),
    TextRecipe("adamw", 0.003, "warmup_cosine", 0.1, 3, 16, "bytes", 1024, 64, 64, 2, 4, 4),
)
"""By model of text."""

NO_SETTING_OF: dict[str, tuple[str, ...]] = {
    "gpt": ("experts",),
    "mixture": (),
    "lstm": ("heads", "experts"),
    "mamba": ("heads", "experts"),
}
"""By model of text, the settings that it has no use for."""


@dataclass(frozen=True)
class ImageRecipe(Recipe):
    """Settings of a run of a model of images.

    Of resnet `depth` blocks are in each of two stages, the first of `width` channels; vit has as many, of that width.
    Of vae they are hidden layers, and `latent` numbers code an image; unet halves height and width so often, and makes
    images in `noise_steps`.
    """

    batch_size: int
    width: int
    depth: int
    latent: int | None = None
    noise_steps: int | None = None


OF_IMAGES: dict[str, ImageRecipe] = {
    "resnet": ImageRecipe("adamw", 0.003, "cosine", 0.01, 8, 32, 16, 2),
    "vit": ImageRecipe("adamw", 0.003, "warmup_cosine", 0.1, 30, 32, 32, 2),
    "vae": ImageRecipe("adamw", 0.005, "cosine", 0.0, 60, 32, 256, 1, latent=8),
    "unet": ImageRecipe("adamw", 0.003, "cosine", 0.0, 40, 32, 16, 1, noise_steps=100),
}
"""By model of images."""

RECIPES: dict[str, TableRecipe] = {
    "diabetes": TableRecipe("sgd", 0.02, "cosine", 0.05, 400, None, (64, 64, 64), "relu", "square"),
    "digits": TableRecipe("adamw", 0.002, "cosine", 1.0, 30, None, (256,), "relu", "softmax_cross_entropy"),
}
"""By embedded data set. They were chosen on parts of the training splits alone, never on a test split."""

OWN_DATA: dict[Task, TableRecipe] = {
    "regression": TableRecipe("adamw", 0.001, "cosine", 0.1, 200, None, (64, 64), "relu", "square"),
    "classification": TableRecipe("adamw", 0.001, "cosine", 0.01, 100, None, (64, 64), "relu", "softmax_cross_entropy"),
}
"""By task, for a table of the user's own."""
