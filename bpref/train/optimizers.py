"""optax's optimisers and learning-rate schedules, by name."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import optax
from jaxtyping import PyTree

from bpref.naming import name_of
from bpref.nearest import require_known
from bpref.train.updates import PLAIN, Updates, named_by, put_through


class Optimizer(NamedTuple):
    """How to make one, and the learning rate to use where none is given.

    Attributes:
      make: `(learning_rate) -> GradientTransformation`.
      learning_rate: the default.
      decay: whether `make` takes `weight_decay` and `mask` itself, and keeps the decay out of its moments.
    """

    make: Callable[..., optax.GradientTransformation]
    learning_rate: float
    decay: bool = False


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer(optax.sgd, 0.01),
    "momentum": Optimizer(partial(optax.sgd, momentum=0.9), 0.01),
    "nesterov": Optimizer(partial(optax.sgd, momentum=0.9, nesterov=True), 0.01),
    "adam": Optimizer(optax.adam, 0.001),
    "adamw": Optimizer(optax.adamw, 0.001, decay=True),
    "adamax": Optimizer(optax.adamax, 0.002),
    "nadam": Optimizer(optax.nadam, 0.001),
    "radam": Optimizer(optax.radam, 0.001),
    "amsgrad": Optimizer(optax.amsgrad, 0.001),
    "adabelief": Optimizer(optax.adabelief, 0.001),
    "adagrad": Optimizer(optax.adagrad, 0.01),
    "adadelta": Optimizer(optax.adadelta, 1.0),
    "rmsprop": Optimizer(optax.rmsprop, 0.001),
    "yogi": Optimizer(optax.yogi, 0.01),
    "lion": Optimizer(optax.lion, 0.0001, decay=True),
    "lamb": Optimizer(optax.lamb, 0.002, decay=True),
}
"""Every optimiser, by name."""


def _exponential(learning_rate: float, steps: int) -> optax.Schedule:
    return optax.exponential_decay(learning_rate, steps, decay_rate=0.01)


def _warmup_cosine(learning_rate: float, steps: int) -> optax.Schedule:
    warmup = max(1, steps // 10)
    return optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, max(steps, warmup + 1))


SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda learning_rate, steps: optax.constant_schedule(learning_rate),
    "linear": lambda learning_rate, steps: optax.linear_schedule(learning_rate, 0.0, steps),
    "cosine": optax.cosine_decay_schedule,
    "exponential": _exponential,
    "warmup_cosine": _warmup_cosine,
}
"""Every schedule: `(learning_rate, steps) -> schedule`, down to 0 at the last step (exponential: to 1%)."""


def make_optimizer(
    name: str,
    learning_rate: float | None = None,
    *,
    steps: int,
    schedule: str = "constant",
    weight_decay: float = 0.0,
    updates: Updates = PLAIN,
) -> optax.GradientTransformation:
    """The optimiser called `name`.

    Args:
      learning_rate: the schedule's largest; left out, the optimiser's own default.
      steps: how many steps there will be; the schedule ends with them.
      weight_decay: adamw, lion and lamb shrink the weights beside the gradient's step; for the others it is
        added to the gradient, the derivative of `weight_decay / 2 * sum(W**2)`. Only matrices of weights are
        decayed, arrays called W or U or W_qkv and the like; biases are not.
      updates: what the updates are put through.

    Raises:
      ValueError: an unknown name, a learning rate that is not positive, a negative weight decay.
    """
    require_known("optimizer", name, OPTIMIZERS)
    require_known("schedule", schedule, SCHEDULES)
    make, default, decay = OPTIMIZERS[name]
    rate = default if learning_rate is None else learning_rate
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"learning rate is {rate:g}, expected a positive number")
    if not (weight_decay >= 0 and math.isfinite(weight_decay)):
        raise ValueError(f"weight decay is {weight_decay:g}, expected 0 or a positive number")
    scheduled = SCHEDULES[schedule](rate, max(1, steps // max(1, updates.accumulate)))
    mask = _weights if updates.decayed is None else partial(named_by, updates.decayed)
    if decay:
        optimizer = make(scheduled, weight_decay=weight_decay, mask=mask)
    else:
        optimizer = make(scheduled)
        if weight_decay:
            optimizer = optax.chain(optax.add_decayed_weights(weight_decay, mask), optimizer)
    return put_through(optimizer, updates)


def _weights(params: PyTree) -> PyTree:
    """True for the arrays called W and U; by name, since a bias that `scan` stacked is a matrix too."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: name_of(path).rpartition(".")[2].startswith(("W", "U")), params
    )
