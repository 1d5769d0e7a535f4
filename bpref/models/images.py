"""Models of images by name: `(depth, width, classes) -> network`, images (N, 8, 8, C) to logits (N, classes)."""

from collections.abc import Callable

from bpref.layer import Layer
from bpref.models.resnet import resnet
from bpref.models.vit import vit

IMAGE_MODELS: dict[str, Callable[[int, int, int], Layer]] = {
    "resnet": lambda depth, width, classes: resnet((depth, depth), classes, width, small=True),
    "vit": lambda depth, width, classes: vit(16, 2, classes, width, depth, 4),
}
"""Of resnet `depth` blocks are in each of two stages; vit takes patches of 2 x 2."""
