"""A fully connected network and its loss, by name: what the command line trains."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from bpref.compose import serial
from bpref.layer import Layer
from bpref.nearest import require_known
from bpref.rules import KINDS, RULES
from bpref.rules.linear.linear import linear
from bpref.train.data.table import Task

ALONG_AN_AXIS = ("glu", "gumbel_softmax", "log_softmax", "maxout", "softmax", "softmin", "sparsemax")
"""Activations that are no functions of one element: what they are after a hidden layer is another network."""

ACTIVATIONS: dict[str, Callable[[], Layer]] = {
    name: RULES[name].make for name in KINDS["activation"] if name not in ALONG_AN_AXIS
}
"""Every activation that works element by element, by name."""

CLASS_LOSSES = ("softmax_cross_entropy", "sigmoid_cross_entropy")
"""The losses that read a prediction as logits of classes ..."""

DISTANCES = ("absolute", "huber", "log_cosh", "quantile", "square")
"""... and those that measure a distance, and serve both tasks."""

LOSSES: dict[str, Callable[..., Layer]] = {name: RULES[name].make for name in sorted((*CLASS_LOSSES, *DISTANCES))}
"""The losses of one prediction and one target, by name."""


def fully_connected(widths: Sequence[int], activation: str, outputs: int) -> Layer:
    """`serial(linear, activation, ..., linear)`: a hidden layer for each of `widths`, and a linear output.

    Raises:
      ValueError: there is no width, or one is not positive; the activation is unknown.
    """
    require_known("activation", activation, ACTIVATIONS)
    if not widths or min(widths) < 1:
        given = ",".join(str(width) for width in widths)
        raise ValueError(f"layers is {given!r}, expected the width of each hidden layer, at least 1, such as 64,64")
    hidden = [layer for width in widths for layer in (linear(width), ACTIVATIONS[activation]())]
    return serial(*hidden, linear(outputs))


def loss_named(name: str, task: Task) -> Layer:
    """The loss called `name`; raises `ValueError` when there is none, or when it does not fit the task.

    A distance is that of an example's whole prediction, a sum over its outputs, and J their mean.
    """
    require_known("loss", name, LOSSES)
    if task == "regression" and name in CLASS_LOSSES:
        fitting = ", ".join(loss for loss in LOSSES if loss not in CLASS_LOSSES)
        raise ValueError(f"loss {name} is for classes, and this target is a quantity; there is {fitting}")
    return LOSSES[name](reduction="batch_mean") if name in DISTANCES else LOSSES[name]()


def as_target(loss: str, y: np.ndarray, classes: int) -> np.ndarray:
    """y as the loss expects it beside the prediction (N, m).

    A quantity (N,) becomes (N, 1). Labels (N,) stay as they are for softmax_cross_entropy, and become (N, C),
    1 for the class and 0 for the others, for any other loss.
    """
    if not classes:
        return y[:, None]
    return y if loss == "softmax_cross_entropy" else np.eye(classes)[y]


def r2(prediction: Array, target: Array) -> Array:
    """1 - sum of squared errors / sum of squares about the mean; the same in any units. Both (N, 1); N > 1."""
    residual = jnp.sum((target - prediction) ** 2)
    return 1 - residual / jnp.sum((target - jnp.mean(target)) ** 2)


def accuracy(prediction: Array, target: Array) -> Array:
    """The share of examples whose largest logit is their class's; target: (N,) labels, or (N, C) of 0 and 1."""
    labels = target if target.ndim == 1 else jnp.argmax(target, axis=-1)
    return jnp.mean(jnp.argmax(prediction, axis=-1).astype(labels.dtype) == labels)


METRICS: dict[Task, tuple[str, Callable[[Array, Array], Array]]] = {
    "regression": ("R^2", r2),
    "classification": ("accuracy", accuracy),
}
"""By task, the score that is reported on the test split, and its name."""
