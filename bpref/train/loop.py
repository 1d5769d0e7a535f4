"""fit: the training loop. An epoch is one compiled `lax.scan`; nothing returns to Python inside it."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from bpref.compose.parts import run as run_part
from bpref.layer import Layer, With, backpropagate, map_leaves
from bpref.train.locate import first_non_finite
from bpref.train.start import Start, as_arrays, count_examples, objective_in, precision, require_epochs, start
from bpref.train.step import Going, Stepper, beside, is_a_pair, of_network
from bpref.transforms import Watched, evaluation, statistics_by_path, where_it_dies
from bpref.transforms import watch as watch_leaf


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
    """

    number: int
    losses: np.ndarray
    gradient_norms: dict[str, np.ndarray]
    test_loss: float | None
    test_score: float | None
    seconds: float
    watched: dict[str, Watched] | None = None
    death: str | None = None


class Fitted(NamedTuple):
    """A trained network.

    Attributes:
      params: the network's parameters, NumPy arrays; all of the objective's where its parts have names.
      state: the objective's keys and running statistics; `()` where it has none.
      history: one entry per epoch.
      examples_per_second: over all epochs, without compilation and evaluation.
      compile_seconds: tracing and compiling an epoch.
    """

    params: Any
    state: Any
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


class Died(ArithmeticError):
    """A layer puts out nothing but zeros, or something not finite, or nothing but that comes back to it.

    Attributes:
      epoch: after which it was seen.
      place: what is so, and where, such as "the output of 1 relu is all zeros".
    """

    def __init__(self, epoch: int, place: str):
        super().__init__(f"training stopped after epoch {epoch}: {place}, and nothing is learnt through it any more")
        self.epoch, self.place = epoch, place


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
    watch: bool = False,
) -> Fitted:
    """Train a network by its hand-derived backward.

    Every epoch draws a new order of the N examples and takes `N // batch_size` batches of it; the examples that
    are left over wait for the next epoch. The same arguments give bit-identical parameters on the same machine.

    Args:
      network: any composition of layers; its output and y are what `loss` takes.
      loss: `(prediction, target) -> J`, a mean over the batch.
      optimizer: any optax transformation.
      train: X (N, ...) and y (N, ...), both cast to `dtype`; ids and labels are integers still.
      test: the same for data that is only looked at.
      batch_size: left out, all N examples at once.
      seed: of the parameters and of the orders.
      dtype: "float32", "bfloat16" or "float64".
      update_in_backward: update each layer as soon as its gradient is known, as the seed does.
      metric: `(prediction, target) -> score`, of the test data.
      on_epoch: called after every epoch.
      watch: look after every epoch at all that goes forward and back through every leaf, and stop where it is dead.

    Raises:
      TypeError: X holds no numbers, or not those that the network takes.
      ValueError: anything else that cannot be trained on, before the first step.
      Diverged: a loss or a gradient became NaN or infinite; the epochs before were given to `on_epoch`.
      Died: a layer that is watched is dead; this epoch too was given to `on_epoch`.
    """
    require_epochs(epochs)
    begin = start(
        objective_in(dtype, network, loss),
        optimizer,
        train,
        batch_size=batch_size,
        seed=seed,
        dtype=dtype,
        update_in_backward=update_in_backward,
    )
    return run(begin, test, epochs=epochs, metric=metric, on_epoch=on_epoch, watch=watch)


def run(
    begin: Start,
    test: tuple[Any, Any] | None = None,
    *,
    epochs: int,
    metric: Callable[..., Array] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    watch: bool = False,
) -> Fitted:
    """The second half of `fit`: every step of every epoch.

    Of an objective that is not a network and its loss the metric is given J alone, and of the test data a batch is
    looked at after the other.
    """
    require_epochs(epochs)
    if test is not None:
        count_examples("the test data", test)
    with precision(begin.dtype):
        stepper, order = begin.stepper, begin.order
        going = jax.tree.map(jnp.copy, begin.state)
        evaluate = _evaluation(begin, test, metric)
        look = _watching(begin) if watch else lambda going, number: (None, None)
        compile_start = time.perf_counter()
        run_epoch = jax.jit(_epoch(stepper), donate_argnums=0).lower(going, begin.data, order(1)).compile()
        compile_seconds = time.perf_counter() - compile_start
        history = []
        for number in range(1, epochs + 1):
            epoch_start = time.perf_counter()
            going, (losses, norms, finite) = run_epoch(going, begin.data, order(number))
            finite = np.asarray(finite)
            seconds = time.perf_counter() - epoch_start
            if not finite.all():
                bad = int(np.argmin(finite))
                given = beside(stepper.objective, begin.batch(number, bad), going.state)
                place = first_non_finite(stepper.objective, stepper.params(going), given)
                raise Diverged((number - 1) * len(finite) + bad + 1, number, place)
            test_loss, test_score = evaluate(going)
            losses, norms = jax.device_get((losses, norms))
            watched, death = look(going, number)
            history.append(Epoch(number, losses, norms, test_loss, test_score, seconds, watched, death))
            if on_epoch is not None:
                on_epoch(history[-1])
            if death is not None:
                raise Died(number, death)
        seen = epochs * order(1).size
        rate = seen / sum(epoch.seconds for epoch in history)
        params, state = jax.device_get((of_network(stepper.params(going)), going.state))
        return Fitted(params, state, history, rate, compile_seconds)


def _epoch(stepper: Stepper) -> Callable[..., Any]:
    """`(going, data, order) -> (going, (losses, norms, finite))`, going on from the last step that was finite."""

    def epoch(going, data, order):
        def body(carry, rows):
            going, is_finite = carry
            stepped, J, norms = stepper.step(going, jax.tree.map(lambda v: v[rows], data))
            finite = jnp.isfinite(jnp.stack([J, *(norm.astype(J.dtype) for norm in norms.values())])).all()
            is_finite = is_finite & finite
            going = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), stepped, going)
            return (going, is_finite), (J, norms, is_finite)

        (going, _), per_step = lax.scan(body, (going, jnp.bool_(True)), order)
        return going, per_step

    return epoch


def _watching(begin: Start) -> Callable[[Going, int], tuple[dict[str, Watched], str | None]]:
    """`(going, epoch) -> (what is watched at each leaf, where it dies)`, of the epoch's last batch, compiled once."""
    J = begin.stepper.objective
    watching = map_leaves(watch_leaf, J)

    @jax.jit
    def sweep(params, given):
        watched = backpropagate(watching, params, given)[1]
        return jax.tree.map(lambda w: w._replace(dparams=None), watched, is_leaf=lambda w: isinstance(w, Watched))

    def look(going, number):
        given = beside(J, begin.batch(number, -1), going.state)
        watched = jax.device_get(sweep(begin.stepper.params(going), given))
        return statistics_by_path(J, watched), where_it_dies(J, watched)

    return look


def _evaluation(
    begin: Start, test: tuple[Any, Any] | None, metric: Callable[..., Array] | None
) -> Callable[[Going], tuple[float | None, float | None]]:
    """`(going) -> (J, score)` of the test data, compiled; None where there is no such."""
    if test is None:
        return lambda going: (None, None)
    J = evaluation(begin.stepper.objective)
    data = as_arrays(test, begin.dtype)
    batch_size = min(len(data[0]), begin.order(1).shape[1])

    def at_once(params, state, X, y):
        network, loss = J.parts
        of_state, of_loss = state or ((), ())
        y_hat = run_part(network, params[0], X, With(None, of_state, None))[0]
        value = run_part(loss, params[1], (y_hat, y), With(None, of_loss, None))[0]
        return value, None if metric is None else metric(y_hat, y)

    def batch_by_batch(params, state, X, y):
        """The mean over whole batches; what is left over is not looked at."""

        def of_batch(batch):
            value = J.forward(params, beside(J, batch, state))[0]
            return value if J.begin is None else value[0]

        steps = len(X) // batch_size
        batches = jax.tree.map(lambda v: v[: steps * batch_size].reshape(steps, batch_size, *v.shape[1:]), (X, y))
        value = jnp.mean(lax.map(of_batch, batches))
        return value, None if metric is None else metric(value)

    def evaluate(going, X, y):
        way = at_once if is_a_pair(J) else batch_by_batch
        return way(begin.stepper.params(going), going.state, X, y)

    compiled = jax.jit(evaluate).lower(begin.state, *data).compile()

    def scores(going):
        value, score = compiled(going, *data)
        return float(value), None if score is None else float(score)

    return scores
