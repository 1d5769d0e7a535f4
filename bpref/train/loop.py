"""fit: the training loop. An epoch is one compiled `lax.scan`; nothing returns to Python inside it."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from bpref.layer import Layer
from bpref.train.locate import first_non_finite
from bpref.train.start import Start, as_arrays, count_examples, precision, require_epochs, start
from bpref.train.step import Stepper


class Epoch(NamedTuple):
    """What is known after an epoch.

    Attributes:
      number: 1 for the first.
      losses: (steps,), J of every step's batch before its update.
      gradient_norms: by layer, (steps,), the Euclidean norm of its gradient.
      test_loss, test_score: J and the metric of the test data after the epoch; None where there is no such.
      seconds: how long the steps took, without compilation and evaluation.
    """

    number: int
    losses: np.ndarray
    gradient_norms: dict[str, np.ndarray]
    test_loss: float | None
    test_score: float | None
    seconds: float


class Fitted(NamedTuple):
    """A trained network.

    Attributes:
      params: the network's parameters, NumPy arrays.
      history: one entry per epoch.
      examples_per_second: over all epochs, without compilation and evaluation.
      compile_seconds: tracing and compiling an epoch.
    """

    params: Any
    history: list[Epoch]
    examples_per_second: float
    compile_seconds: float


class Diverged(FloatingPointError):
    """The loss or a gradient became NaN or infinite.

    Attributes:
      step, epoch: where, from 1; `step` counts from the beginning of training.
      place: the first value that was not finite, such as "the output of 2 linear".
    """

    def __init__(self, step: int, epoch: int, place: str):
        super().__init__(
            f"training stopped at step {step} (epoch {epoch}): {place} is not finite any more; lower the learning rate"
        )
        self.step, self.epoch, self.place = step, epoch, place


def fit(
    network: Layer,
    loss: Layer,
    optimizer: optax.GradientTransformation,
    train: tuple[Any, Any],
    test: tuple[Any, Any] | None = None,
    *,
    epochs: int,
    batch_size: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
    update_in_backward: bool = False,
    metric: Callable[[Array, Array], Array] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Fitted:
    """Train a network by its hand-derived backward.

    Every epoch draws a new order of the N examples and takes `N // batch_size` batches of it; the examples that
    are left over wait for the next epoch. The same arguments give bit-identical parameters on the same machine.

    Args:
      network: any composition of layers; its output and y are what `loss` takes.
      loss: `(prediction, target) -> J`, a mean over the batch.
      optimizer: any optax transformation.
      train: X (N, ...), floating-point, and y (N, ...), both cast to `dtype`; integer labels stay as they are.
      test: the same for data that is only looked at.
      batch_size: left out, all N examples at once.
      seed: of the parameters and of the orders.
      dtype: "float32", "bfloat16" or "float64".
      update_in_backward: update each layer as soon as its gradient is known, as the seed does.
      metric: `(prediction, target) -> score`, of the test data.
      on_epoch: called after every epoch.

    Raises:
      TypeError: X is not floating-point.
      ValueError: anything else that cannot be trained on, before the first step.
      Diverged: a loss or a gradient became NaN or infinite; the epochs before were given to `on_epoch`.
    """
    require_epochs(epochs)
    begin = start(
        network,
        loss,
        optimizer,
        train,
        batch_size=batch_size,
        seed=seed,
        dtype=dtype,
        update_in_backward=update_in_backward,
    )
    return run(begin, test, epochs=epochs, metric=metric, on_epoch=on_epoch)


def run(
    begin: Start,
    test: tuple[Any, Any] | None = None,
    *,
    epochs: int,
    metric: Callable[[Array, Array], Array] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Fitted:
    """The second half of `fit`: every step of every epoch."""
    require_epochs(epochs)
    if test is not None:
        count_examples("the test data", test)
    with precision(begin.dtype):
        stepper, order = begin.stepper, begin.order
        state = jax.tree.map(jnp.copy, begin.state)
        evaluate = _evaluation(begin, test, metric)
        compile_start = time.perf_counter()
        run_epoch = jax.jit(_epoch(stepper), donate_argnums=0).lower(state, begin.data, order(1)).compile()
        compile_seconds = time.perf_counter() - compile_start
        history = []
        for number in range(1, epochs + 1):
            epoch_start = time.perf_counter()
            state, (losses, norms, finite) = run_epoch(state, begin.data, order(number))
            finite = np.asarray(finite)
            seconds = time.perf_counter() - epoch_start
            if not finite.all():
                bad = int(np.argmin(finite))
                place = first_non_finite(stepper.objective, stepper.params(state), begin.batch(number, bad))
                raise Diverged((number - 1) * len(finite) + bad + 1, number, place)
            test_loss, test_score = evaluate(state)
            losses, norms = jax.device_get((losses, norms))
            history.append(Epoch(number, losses, norms, test_loss, test_score, seconds))
            if on_epoch is not None:
                on_epoch(history[-1])
        seen = epochs * order(1).size
        rate = seen / sum(epoch.seconds for epoch in history)
        return Fitted(jax.device_get(stepper.params(state)[0]), history, rate, compile_seconds)


def _epoch(stepper: Stepper) -> Callable[..., Any]:
    """`(state, data, order) -> (state, (losses, norms, finite))`, the state that of the last step that was finite."""

    def epoch(state, data, order):
        def body(carry, rows):
            state, going = carry
            stepped, J, norms = stepper.step(state, jax.tree.map(lambda v: v[rows], data))
            finite = jnp.isfinite(jnp.stack([J, *(norm.astype(J.dtype) for norm in norms.values())])).all()
            going = going & finite
            state = jax.tree.map(lambda new, old: jnp.where(going, new, old), stepped, state)
            return (state, going), (J, norms, going)

        (state, _), per_step = lax.scan(body, (state, jnp.bool_(True)), order)
        return state, per_step

    return epoch


def _evaluation(
    begin: Start, test: tuple[Any, Any] | None, metric: Callable[[Array, Array], Array] | None
) -> Callable[[Any], tuple[float | None, float | None]]:
    """`(state) -> (J, score)` of the test data, compiled; None where there is no such."""
    if test is None:
        return lambda state: (None, None)
    network, loss = begin.stepper.objective.parts

    def evaluate(state, X, y):
        params = begin.stepper.params(state)
        y_hat: Any = network.forward(params[0], X)[0]
        J = loss.forward(params[1], (y_hat, y))[0]
        return J, None if metric is None else metric(y_hat, y)

    data = as_arrays(test, begin.dtype)
    compiled = jax.jit(evaluate).lower(begin.state, *data).compile()

    def scores(state):
        J, score = compiled(state, *data)
        return float(J), None if score is None else float(score)

    return scores
