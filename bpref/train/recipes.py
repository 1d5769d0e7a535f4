"""Recipes: what `bpref train` uses where the command line does not say."""

from dataclasses import dataclass

from bpref.train.table import Task


@dataclass(frozen=True)
class Recipe:
    """Settings of a run; every one of them is an option of `bpref train`.

    A `batch_size` of None is 32, or all the examples there are to train on if those are fewer.
    """

    layers: tuple[int, ...]
    activation: str
    loss: str
    optimizer: str
    learning_rate: float
    schedule: str
    weight_decay: float
    epochs: int
    batch_size: int | None


@dataclass(frozen=True)
class TextRecipe:
    """Settings of a run of a model of text; every one of them is an option of `bpref train`.

    `tokens` is "bytes" or "bpe", of so large a `vocabulary` then; `heads` are those of attention, where there is one,
    and `experts` those of a block of mixture.
    """

    tokens: str
    vocabulary: int
    context: int
    width: int
    depth: int
    heads: int
    experts: int
    optimizer: str
    learning_rate: float
    schedule: str
    weight_decay: float
    epochs: int
    batch_size: int


OF_TEXT: dict[str, TextRecipe] = {
    "gpt": TextRecipe("bytes", 1024, 64, 64, 2, 4, 4, "adamw", 0.003, "warmup_cosine", 0.1, 3, 16),
    "mixture": TextRecipe("bytes", 1024, 64, 64, 2, 4, 4, "adamw", 0.003, "warmup_cosine", 0.1, 3, 16),
    "lstm": TextRecipe("bytes", 1024, 64, 64, 2, 4, 4, "adamw", 0.003, "warmup_cosine", 0.1, 3, 16),
    "mamba": TextRecipe("bytes", 1024, 64, 64, 2, 4, 4, "adamw", 0.003, "warmup_cosine", 0.1, 3, 16),
}
"""By model of text."""


@dataclass(frozen=True)
class ImageRecipe:
    """Settings of a run of a model of images; every one of them is an option of `bpref train`.

    Of resnet `depth` blocks are in each of two stages, the first of `width` channels; vit has as many, of that width.
    Of vae they are hidden layers, and `latent` numbers code an image; unet halves height and width so often, and makes
    images in `noise_steps`.
    """

    width: int
    depth: int
    optimizer: str
    learning_rate: float
    schedule: str
    weight_decay: float
    epochs: int
    batch_size: int
    latent: int | None = None
    noise_steps: int | None = None


OF_IMAGES: dict[str, ImageRecipe] = {
    "resnet": ImageRecipe(16, 2, "adamw", 0.003, "cosine", 0.01, 8, 32),
    "vit": ImageRecipe(32, 2, "adamw", 0.003, "warmup_cosine", 0.1, 30, 32),
    "vae": ImageRecipe(256, 1, "adamw", 0.005, "cosine", 0.0, 60, 32, latent=8),
    "unet": ImageRecipe(16, 1, "adamw", 0.003, "cosine", 0.0, 40, 32, noise_steps=100),
}
"""By model of images."""

RECIPES: dict[str, Recipe] = {
    "diabetes": Recipe((64, 64, 64), "relu", "square", "sgd", 0.02, "cosine", 0.05, 400, None),
    "digits": Recipe((256,), "relu", "softmax_cross_entropy", "adamw", 0.002, "cosine", 1.0, 30, None),
}
"""By embedded data set. They were chosen on parts of the training splits alone, never on a test split."""

OWN_DATA: dict[Task, Recipe] = {
    "regression": Recipe((64, 64), "relu", "square", "adamw", 0.001, "cosine", 0.1, 200, None),
    "classification": Recipe((64, 64), "relu", "softmax_cross_entropy", "adamw", 0.001, "cosine", 0.01, 100, None),
}
"""By task, for a table of the user's own."""
