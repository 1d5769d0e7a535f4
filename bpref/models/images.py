"""Models of images by name: those that tell them apart, and those that make them."""

from collections.abc import Callable, Sequence

from bpref.layer import Layer
from bpref.models.rearranged import Generative
from bpref.models.resnet import resnet
from bpref.models.unet import diffusion
from bpref.models.vae import variational_autoencoder
from bpref.models.vit import vit

IMAGE_MODELS: dict[str, Callable[[int, int, int], Layer]] = {
    "resnet": lambda depth, width, classes: resnet((depth, depth), classes, width, small=True),
    "vit": lambda depth, width, classes: vit(16, 2, classes, width, depth, 4),
}
"""`(depth, width, classes) -> network`, images (N, 8, 8, C) to logits (N, classes).

Of resnet `depth` blocks are in each of two stages; vit takes patches of 2 x 2.
"""

GENERATIVE: dict[str, Callable[[Sequence[int], int, int, int], Generative]] = {
    "vae": lambda image, depth, width, latent: variational_autoencoder(image, width, latent, depth),
    "unet": lambda image, depth, width, noise_steps: diffusion(image, width, depth, noise_steps),
}
"""`(image, depth, width, latent or noise_steps) -> Generative`, an image being H, W and C."""

OF_ONE = {"vae": "latent", "unet": "noise_steps"}
"""The setting that a generative model has and no other."""


def generative(name: str, image: Sequence[int], settings: dict) -> Generative:
    """The model of these settings, a dict that has those of a run."""
    return GENERATIVE[name](image, settings["depth"], settings["width"], settings[OF_ONE[name]])
