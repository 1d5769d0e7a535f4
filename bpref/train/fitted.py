"""What training leaves: an epoch's figures, the network, and how it stops before its time."""

from typing import NamedTuple

import numpy as np
from jaxtyping import PyTree

from bpref.transforms import Watched


class Epoch(NamedTuple):
    """What is known after an epoch.

    Attributes:
      number: 1 for the first.
      losses: (steps,), J of every step's batch before its update.
      gradient_norms: by layer, (steps,), the Euclidean norm of its gradient.
      test_loss, test_score: J and the metric of the test data after the epoch; None where there is no such.
      seconds: how long the steps took, without compilation and evaluation.
      watched: by leaf, what goes forward and back through it after the epoch, at its last batch; None if not asked for.
      death: which layer is dead then, and how.
      skipped: how many of its steps were skipped, since their loss or gradient was not finite.
    """

    number: int
    losses: np.ndarray
    gradient_norms: dict[str, np.ndarray]
    test_loss: float | None
    test_score: float | None
    seconds: float
    watched: dict[str, Watched] | None = None
    death: str | None = None
    skipped: int = 0


class Fitted(NamedTuple):
    """A trained network.

    Attributes:
      params: the network's parameters, NumPy arrays; all of the objective's where its parts have names.
      state: the objective's keys and running statistics; `()` where it has none.
      history: one entry per epoch.
      examples_per_second: over all epochs, without compilation and evaluation.
      compile_seconds: tracing and compiling an epoch.
    """

    params: PyTree
    state: PyTree
    history: list[Epoch]
    examples_per_second: float
    compile_seconds: float


class Diverged(FloatingPointError):
    """The loss or a gradient became NaN or infinite.

    Attributes:
      step, epoch: where, from 1; `step` counts from the beginning of training.
      place: the first value that was not finite, such as "the output of 2 linear".
      is_given: whether that is of the data.
    """

    def __init__(self, step: int, epoch: int, place: str, is_given: bool = False):
        why = "has a value that is not finite" if is_given else "is not finite any more; lower the learning rate"
        super().__init__(f"training stopped at step {step} (epoch {epoch}): {place} {why}")
        self.step, self.epoch, self.place, self.is_given = step, epoch, place, is_given


class Died(ArithmeticError):
    """A layer puts out nothing but zeros, or something not finite, or nothing but that comes back to it.

    Attributes:
      epoch: after which it was seen.
      place: what is so, and where, such as "the output of 1 relu is all zeros".
    """

    def __init__(self, epoch: int, place: str):
        super().__init__(f"training stopped after epoch {epoch}: {place}, and nothing is learnt through it any more")
        self.epoch, self.place = epoch, place
