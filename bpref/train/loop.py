"""fit: the training loop. The steps of an epoch run in one compiled loop, which returns to Python when visited."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax import Array
from jaxtyping import PyTree

from bpref.layer import Layer
from bpref.sharding.hosts import largest
from bpref.train.advance import Carry, advance, first_carry
from bpref.train.evaluate import scoring, watching
from bpref.train.fitted import Died, Diverged, Epoch, Fitted
from bpref.train.keeping.begun import digest
from bpref.train.locate import first_non_finite, non_finite_of
from bpref.train.start import Start, as_arrays, count_examples, objective_in, precision, require_epochs, start
from bpref.train.step import of_network
from bpref.train.windows import Windows
from bpref.transforms.update_in_backward import require_optimizer

SECONDS = 0.25
"""About how long steps run until whoever visits them at any step is called."""


class Reached(NamedTuple):
    """All that a run goes on from.

    Attributes:
      step: how many steps are done, of all epochs.
      carry: what the next step takes, and what the running epoch has seen.
      history: the epochs that are done.
      seconds: how long the steps of the running epoch took.
    """

    step: int
    carry: Carry
    history: list[Epoch]
    seconds: float


class Visit(NamedTuple):
    """Somebody who is called between steps.

    Attributes:
      call: `(reached) -> None`; the next step overwrites the arrays of `reached.carry`.
      every: so many steps; None for a few times a second, after any step.
    """

    call: Callable[[Reached], None]
    every: int | None = None


def fit(
    network: Layer,
    loss: Layer,
    optimizer: optax.GradientTransformation,
    train: tuple[PyTree, PyTree],
    test: tuple[PyTree, PyTree] | None = None,
    *,
    epochs: int,
    batch_size: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
    update_in_backward: bool = False,
    metric: Callable[[Array, Array], Array] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    watch: bool = False,
    most_skipped: int = 0,
    checkpoints: str | Path | None = None,
    every: int | None = None,
    resume: bool = False,
) -> Fitted:
    """Train a network by its hand-derived backward.

    Every epoch draws a new order of the N examples and takes `N // batch_size` batches of it; the examples that
    are left over wait for the next epoch. The same arguments give bit-identical parameters on the same machine.

    Args:
      network: any composition of layers; its output and y are what `loss` takes.
      loss: `(prediction, target) -> J`, a mean over the batch.
      optimizer: any optax transformation.
      train: X (N, ...) and y (N, ...), both cast to `dtype`; ids and labels are integers still. What is memory-mapped,
        as by `numpy.load(file, mmap_mode="r")`, may be larger than memory: batches are read as they are needed. A
        file that is cut off in that very moment ends the process (SIGBUS), as any that is mapped; the command says so.
      test: the same for data that is only looked at.
      batch_size: left out, all N examples at once.
      seed: of the parameters and of the orders.
      dtype: "float32", "bfloat16", "float16" (with a dynamic loss scale) or "float64".
      update_in_backward: update each layer as soon as its gradient is known, as the seed does.
      metric: `(prediction, target) -> score`, of the test data.
      on_epoch: called after every epoch.
      watch: look after every epoch at all that goes forward and back through every leaf, and stop where it is dead.
      most_skipped: how many steps in a row may be skipped, since their loss or gradient is not finite.
      checkpoints: a new directory for all that a run goes on from, written by orbax while the steps go on, and at the
        last one; the last three are kept.
      every: so many steps between them; once a minute where it is left out.
      resume: go on, bit for bit, with the run in `checkpoints`, also to more epochs; begin it where there is none yet.
        Epochs that were done before are in the history, and not given to `on_epoch` again. Other data, options, layers
        by name, shapes or dtypes are refused, and another optimizer, as its traced `init` and `update` tell: other
        numbers (a learning rate, a schedule), arrays, operations. What callbacks to Python compute is not noticed, nor
        are numbers that layers and loss are made with (a rate of dropout), `metric`, `watch` and `on_epoch`.

    Example:
      >>> optimizer, data = optax.adam(0.01), (X, y)
      >>> kept = {"checkpoints": "run", "every": 50, "resume": True}
      >>> half = fit(network, square(), optimizer, data, epochs=2, batch_size=8, **kept)
      >>> whole = fit(network, square(), optimizer, data, epochs=4, batch_size=8, **kept)
      >>> len(whole.history)
      4

    Raises:
      TypeError: X holds no numbers, or not those that the network takes; a layer has a key or running statistics, which
        move with `stateful` alone.
      ValueError: anything else that cannot be trained on, before the first step; to go on, the run was begun otherwise.
      ImportError, OSError, Unwritable: there can be no checkpoints, and why.
      Diverged: more losses or gradients in a row are NaN or infinite; the epochs before were given to `on_epoch`.
      Died: a layer that is watched is dead; this epoch too was given to `on_epoch`.
    """
    require_epochs(epochs)
    require_optimizer("fit", optimizer)
    _require_moving(network, loss)
    begin = start(
        objective_in(dtype, network, loss),
        optimizer,
        train,
        batch_size=batch_size,
        seed=seed,
        dtype=dtype,
        update_in_backward=update_in_backward,
    )

    def steps(since: Reached | None = None, visits: Sequence[Visit] = ()) -> Fitted:
        return run(
            begin,
            test,
            epochs=epochs,
            metric=metric,
            on_epoch=on_epoch,
            watch=watch,
            most_skipped=most_skipped,
            since=since,
            visits=visits,
        )

    if checkpoints is None:
        if every is not None or resume:
            raise ValueError(f"{'resume' if resume else 'every'} goes with checkpoints, the directory of the run")
        return steps()
    if every is not None and every < 1:
        raise ValueError(f"every is {every}, expected at least 1 step")
    from bpref.train.keeping.kept import kept  # which reads this file
    from bpref.train.keeping.traced import traced

    settings = {
        "seed": seed,
        "dtype": dtype,
        "batch_size": len(begin.order(1)[0]),
        "update_in_backward": update_in_backward,
        "most_skipped": most_skipped,
        "data": f"sha256 {digest(as_arrays(train, dtype), test)[:16]}",
    }
    with kept(Path(checkpoints), settings, traced(optimizer, begin), begin, epochs, every, resume) as (since, visits):
        return steps(since, visits)


def run(
    begin: Start,
    test: tuple[PyTree, PyTree] | None = None,
    *,
    epochs: int,
    metric: Callable[..., Array] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    watch: bool = False,
    most_skipped: int = 0,
    since: Reached | None = None,
    visits: Sequence[Visit] = (),
) -> Fitted:
    """The second half of `fit`: every step of every epoch, or those that are left `since` a run was stopped.

    Of an objective that is not a network and its loss the metric is given J alone, and of the test data a batch is
    looked at after the other.
    """
    require_epochs(epochs)
    if test is not None:
        count_examples("the test data", test)
    stepper, (steps_of_epoch, batch_size) = begin.stepper, begin.order(1).shape
    with precision(begin.dtype), Windows(begin, epochs * steps_of_epoch) as windows:
        evaluate = scoring(begin, test, metric)
        look = watching(begin) if watch else lambda going, number: (None, None)
        step, carry, history, seconds = since or begun(begin)
        compile_start = time.perf_counter()
        shardings = None if begin.layout is None else jax.tree.map(lambda v: v.sharding, carry)
        program = jax.jit(advance(stepper, most_skipped), donate_argnums=0, out_shardings=shardings)
        run_steps = program.lower(carry, *windows.at(step)[0], np.int32(0), np.int32(0)).compile()
        compile_seconds = time.perf_counter() - compile_start
        is_visited = largest(bool(visits)) != (0,)
        longest = 1 if is_visited else steps_of_epoch
        while step < epochs * steps_of_epoch:
            epoch, first = divmod(step, steps_of_epoch)
            steps_start = time.perf_counter()  # what is waited for, to be read of a file, counts
            given, end = windows.at(step)
            ends = [(step // visit.every + 1) * visit.every - step for visit in visits if visit.every]
            last = first + min([end - step, longest, *ends])
            carry = run_steps(carry, *given, np.int32(first), np.int32(last))
            in_a_row = int(carry.in_a_row)
            (took,) = largest(time.perf_counter() - steps_start)
            step, seconds = step + last - first, seconds + took
            if in_a_row > most_skipped:
                raise _diverged(begin, carry, step - in_a_row)
            if last == steps_of_epoch:
                losses, norms, taken = jax.tree.map(np.array, carry[1:4])
                watched, death = look(carry.going, epoch + 1)
                scores = evaluate(carry.going)
                history.append(Epoch(epoch + 1, losses, norms, *scores, seconds, watched, death, int((~taken).sum())))
                seconds = 0.0
                if on_epoch is not None:
                    on_epoch(history[-1])
                if death is not None:
                    raise Died(epoch + 1, death)
            for visit in visits:
                if visit.every is None or step % visit.every == 0:
                    visit.call(Reached(step, carry, history, seconds))
            longest = longest * 2 if took < SECONDS / 2 else max(1, longest // 2) if took > SECONDS else longest
        seen = epochs * steps_of_epoch * batch_size
        rate = seen / sum(epoch.seconds for epoch in history)
        params, state = begin.at_hand((of_network(stepper.shown(carry.going)), carry.going.state))
        return Fitted(params, state, history, rate, compile_seconds)


def _require_moving(*layers: Layer) -> None:
    """Raise `TypeError` for a leaf whose keys or statistics would be the same at every step."""
    for layer in layers:
        if layer.begin is None and layer.held is not None and layer.evaluating is not None:
            held = ", ".join(layer.held.fields)
            raise TypeError(f"fit: {layer.name} would have the same {held} at every step; give bpref.stateful(network)")
        _require_moving(*layer.parts)


def begun(begin: Start) -> Reached:
    """Before the first step."""
    carry = first_carry(begin.stepper, begin.state, *begin.read(1))
    return Reached(0, Carry(carry.going, *begin.everywhere(tuple(carry[1:]))), [], 0.0)


def _diverged(begin: Start, carry: Carry, step: int) -> Diverged:
    """What stops a run that no step after so many has changed, with the first place that is not finite."""
    params, x = begin.at(carry.going, step)
    where, given = (step + 1, step // len(carry.losses) + 1), non_finite_of(x)
    return Diverged(*where, given or first_non_finite(begin.stepper.objective, params, x), bool(given))
