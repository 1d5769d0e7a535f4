"""What is looked at after an epoch: J and the metric of the test data, and what goes through every leaf."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from bpref.compose.parts import run as run_part
from bpref.layer import With, backpropagate, map_leaves
from bpref.train.data.rows import Examples, Rows
from bpref.train.start import Start, as_arrays, steps_of_window
from bpref.train.step import Going, beside, is_a_pair
from bpref.transforms import Watched, evaluation, statistics_by_path, where_it_dies
from bpref.transforms import watch as watch_leaf


def watching(begin: Start) -> Callable[[Going, int], tuple[dict[str, Watched], str | None]]:
    """`(going, epoch) -> (what is watched at each leaf, where it dies)`, of the epoch's last batch, compiled once."""
    J = begin.stepper.objective
    watching = map_leaves(watch_leaf, J)

    @jax.jit
    def sweep(params, given):
        watched = backpropagate(watching, params, given)[1]
        return jax.tree.map(lambda w: w._replace(dparams=None), watched, is_leaf=lambda w: isinstance(w, Watched))

    def look(going, number):
        given = beside(J, begin.everywhere(begin.batch(number, -1)), going.state)
        watched = begin.at_hand(sweep(begin.stepper.params(going), given))
        return statistics_by_path(J, watched), where_it_dies(J, watched)

    return look


def scoring(
    begin: Start, test: tuple[PyTree, PyTree] | None, metric: Callable[..., Array] | None
) -> Callable[[Going], tuple[float | None, float | None]]:
    """`(going) -> (J, score)` of the test data, compiled; None where there is no such."""
    if test is None:
        return lambda going: (None, None)
    J = evaluation(begin.stepper.objective)
    data = as_arrays(test, begin.dtype)
    batch_size = min(len(data[0]), begin.order(1).shape[1])

    def predicted(params, state, X):
        return run_part(J.parts[0], params[0], X, With(None, (state or ((), ()))[0], None))[0]

    def judged(params, state, y_hat, y):
        value = run_part(J.parts[1], params[1], (y_hat, y), With(None, (state or ((), ()))[1], None))[0]
        return value, None if metric is None else metric(y_hat, y)

    def at_once(params, state, X, y):
        return judged(params, state, predicted(params, state, X), y)

    def batch_by_batch(params, state, X, y):
        """The mean over whole batches; what is left over is not looked at."""

        def of_batch(batch):
            if begin.layout is not None and batch_size == begin.order(1).shape[1]:
                batch = begin.layout.divide(batch)
            value = J.forward(params, beside(J, batch, state))[0]
            return value if J.begin is None else value[0]

        steps = len(X) // batch_size
        batches = jax.tree.map(lambda v: v[: steps * batch_size].reshape(steps, batch_size, *v.shape[1:]), (X, y))
        value = jnp.mean(lax.map(of_batch, batches))
        return value, None if metric is None else metric(value)

    whole = None if begin.layout is None else begin.layout.sharding(PartitionSpec())

    def of_going(way):
        def evaluate(going, *given):
            return way(begin.stepper.shown(going), going.state, *given)

        return jax.jit(evaluate, out_shardings=whole)

    if any(isinstance(v, Rows) for v in data):
        predicted, judged, of_batches = map(of_going, (predicted, judged, batch_by_batch))
        return _window_by_window(begin, data, batch_size, predicted, judged, of_batches, metric)
    data = begin.everywhere(data)
    compiled = of_going(at_once if is_a_pair(J) else batch_by_batch).lower(begin.state, *data).compile()

    def scores(going):
        value, score = compiled(going, *data)
        return float(value), None if score is None else float(score)

    return scores


Compiled = Callable[..., PyTree]
"""A compiled function of what is gone on with, and of arrays."""


def _window_by_window(
    begin: Start,
    test: tuple[Examples, Examples],
    batch_size: int,
    predicted: Compiled,
    judged: Compiled,
    batch_by_batch: Compiled,
    metric: Callable[..., Array] | None,
) -> Callable[[Going], tuple[float | None, float | None]]:
    """`scoring` of data on disk: predictions are kept and judged at once, or J's mean is taken over whole batches."""
    X, y = test
    is_one, steps = is_a_pair(begin.stepper.objective), len(X) // batch_size
    batch = jax.tree.map(lambda v: jax.ShapeDtypeStruct((batch_size, *v.shape[1:]), v.dtype), test)
    each = steps_of_window(steps, batch) * batch_size
    end = len(X) if is_one else steps * batch_size
    windows = [slice(first, min(first + each, end)) for first in range(0, end, each)]

    def scores(going):
        if is_one:
            each = [jax.tree.map(np.asarray, predicted(going, begin.everywhere(X[part]))) for part in windows]
            y_hat = jax.tree.map(lambda *v: np.concatenate(v), *each)
            value, score = judged(going, *begin.everywhere((y_hat, y[:])))
        else:
            each = [batch_by_batch(going, *begin.everywhere((X[part], y[part])))[0] for part in windows]
            value = jnp.average(jnp.stack(each), weights=jnp.asarray([part.stop - part.start for part in windows]))
            score = None if metric is None else metric(value)
        return float(value), None if score is None else float(score)

    return scores
