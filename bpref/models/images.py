"""Models of images by name: those that tell them apart, and those that make them."""

from collections.abc import Callable, Sequence

from bpref.layer import Layer
from bpref.models.rearranged import Generative
from bpref.models.resnet import resnet
from bpref.models.unet import diffusion
from bpref.models.vae import variational_autoencoder
from bpref.models.vit import vit

IMAGE_MODELS: dict[str, Callable[[Sequence[int], int, int, int], Layer]] = {
    "resnet": lambda image, depth, width, classes: resnet((depth, depth), classes, width, small=True),
    "vit": lambda image, depth, width, classes: vit(*patches(image), classes, width, depth, 4),
}
"""`(image, depth, width, classes) -> network`, images (N, H, W, C) to logits (N, classes), an image being H, W and C.

Of resnet `depth` blocks are in each of two stages; vit takes `patches`.
"""


def patches(image: Sequence[int]) -> tuple[int, int]:
    """How many patches an image has, and P, of P x P: at most 64 where they divide it, of at least 2 x 2."""
    H, W, _ = image
    sides = [P for P in range(2, min(H, W) + 1) if H % P == W % P == 0]
    if not sides:
        raise ValueError(f"vit: images of {H} x {W} pixels have no square patches that divide them")
    P = next((P for P in sides if H * W <= 64 * P * P), sides[-1])
    return H * W // (P * P), P


GENERATIVE: dict[str, Callable[[Sequence[int], int, int, int], Generative]] = {
    "vae": lambda image, depth, width, latent: variational_autoencoder(image, width, latent, depth),
    "unet": lambda image, depth, width, noise_steps: diffusion(image, width, depth, noise_steps),
}
"""`(image, depth, width, latent or noise_steps) -> Generative`."""

OF_ONE = {"vae": "latent", "unet": "noise_steps"}
"""The setting that a generative model has and no other."""


def generative(name: str, image: Sequence[int], settings: dict) -> Generative:
    """The model of these settings, a dict that has those of a run."""
    return GENERATIVE[name](image, settings["depth"], settings["width"], settings[OF_ONE[name]])
