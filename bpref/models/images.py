"""Models of images by name: `(depth, width, classes) -> network`, images (N, H, W, C) to logits (N, classes)."""

from collections.abc import Callable

from bpref.layer import Layer
from bpref.models.resnet import resnet

IMAGE_MODELS: dict[str, Callable[[int, int, int], Layer]] = {
    "resnet": lambda depth, width, classes: resnet((depth, depth), classes, width, small=True),
}
"""`depth` blocks in each of two stages, for small images."""
