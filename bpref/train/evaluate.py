"""What is looked at after an epoch: J and the metric of the test data, and what goes through every leaf."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from bpref.compose.parts import run as run_part
from bpref.layer import With, backpropagate, map_leaves
from bpref.train.start import Start, as_arrays
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
    data = begin.everywhere(as_arrays(test, begin.dtype))
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
            if begin.layout is not None and batch_size == begin.order(1).shape[1]:
                batch = begin.layout.divide(batch)
            value = J.forward(params, beside(J, batch, state))[0]
            return value if J.begin is None else value[0]

        steps = len(X) // batch_size
        batches = jax.tree.map(lambda v: v[: steps * batch_size].reshape(steps, batch_size, *v.shape[1:]), (X, y))
        value = jnp.mean(lax.map(of_batch, batches))
        return value, None if metric is None else metric(value)

    def evaluate(going, X, y):
        way = at_once if is_a_pair(J) else batch_by_batch
        return way(begin.stepper.shown(going), going.state, X, y)

    whole = None if begin.layout is None else begin.layout.sharding(PartitionSpec())
    compiled = jax.jit(evaluate, out_shardings=whole).lower(begin.state, *data).compile()

    def scores(going):
        value, score = compiled(going, *data)
        return float(value), None if score is None else float(score)

    return scores
