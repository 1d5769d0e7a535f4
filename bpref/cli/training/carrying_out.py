"""What `bpref train` does, whatever it trains: verify the gradient, every step, and what there is to say and leave."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import jax
from jax import Array

from bpref.cli.ending import leaving, say
from bpref.cli.errors import Ended, UsageError, blaming_the_input, blaming_the_size
from bpref.cli.pages.page import write_page
from bpref.cli.pages.runs import page_of
from bpref.cli.training import watching
from bpref.cli.training.how import How
from bpref.cli.training.profiling import profiling
from bpref.cli.training.progress import progress
from bpref.cli.training.stopping import SIGNALS, asked_to_stop
from bpref.cli.training.tensorboard import tensorboard
from bpref.cli.training.together import require_one_run, require_seen_by_all
from bpref.cli.training.verifying import require_right, verifying
from bpref.layer import Layer
from bpref.sharding.hosts import are_many, by_first, is_first
from bpref.sharding.mesh import NotDivided
from bpref.train import loop
from bpref.train.data.rows import Changed, Examples
from bpref.train.data.table import count
from bpref.train.fitted import Died, Diverged, Epoch, Fitted
from bpref.train.keeping.begun import Json, digest
from bpref.train.keeping.checkpoint import Checkpoints
from bpref.train.keeping.keep import Stopped, keeping
from bpref.train.keeping.record import (
    CHECKPOINTS,
    PARAMS,
    PLOT,
    PROFILE,
    TENSORBOARD,
    Record,
    RecordOfTheFirst,
    Unwritable,
    held,
)
from bpref.train.loop import Reached, Visit, begun
from bpref.train.recipes import Recipe
from bpref.train.start import Start, as_arrays, precision
from bpref.train.updates import require_named, require_trained


class Training(NamedTuple):
    """What is trained, and what is said of it.

    Attributes:
      kind: the model by name, or that it is of a table.
      what: it, as messages blame its size.
      objective: as the oracle is to see it.
      train: what it is trained on.
      start: what begins it; where memory does not do, `what` is blamed.
      test, score, metric: what is looked at after every epoch.
      describe: what is printed once the parameters are there; None for nothing.
      report: what is printed, and written, in the end.
    """

    kind: str
    what: str
    objective: Layer
    train: tuple[Examples, Examples]
    start: Callable[[], Start]
    test: tuple[Examples, Examples]
    score: str
    metric: Callable[..., Array]
    describe: Callable[[Start], str] | None
    report: Callable[[Fitted, Record | None], None]


class Kept(NamedTuple):
    """What a run leaves on disk while it goes on."""

    record: Record
    checkpoints: Checkpoints


def carried_out(training: Training, recipe: Recipe, how: How) -> int:
    """Begin, hold the gradient against the oracle, train, report; the exit code is 0, or 1 where it cannot go on."""
    with ExitStack() as stack:
        with blaming_the_input():
            settings = settings_of(training, recipe, how) if how.out is not None or are_many() else {}
            require_one_run(settings | how._asdict())
        with blaming_the_size(training.what):
            try:
                begin = training.start()
            except NotDivided as error:
                raise UsageError(str(error)) from error
            if training.describe is not None:
                print(training.describe(begin))
            if begin.layout is not None:
                print(on_devices(begin))
            require_right(training.objective, *begin.first(), "the first batch")
        with blaming_the_input():
            require_named((*how.updates.frozen, *(how.updates.decayed or ())), begin.params)
            require_trained(how.updates.frozen, begin.params)
            record = None if how.out is None else recorded(stack, how.out, settings, how.resume)
        if record is not None and record.is_done:
            print(f"{record.directory}: the run has come to its end; there is nothing to go on with")
            return 0
        kept = None if record is None else Kept(record, Checkpoints(record.directory / CHECKPOINTS))
        try:
            fitted = every_step(training, begin, recipe, how, kept)
            if fitted is None:
                return 1
            if skipped := sum(epoch.skipped for epoch in fitted.history):
                print(f"{count(skipped, 'step')} skipped, since a loss or a gradient was not finite")
            training.report(fitted, record)
        except (Unwritable, Changed) as fault:
            raise UsageError(f"{fault}{so_far(kept)}") from fault
        if kept is not None:
            kept.checkpoints.remove()
            if how.report is not None and is_first():
                write_page("--report", how.report, page_of(kept.record.directory), how.shown)
    return 0


def settings_of(training: Training, recipe: Recipe, how: How) -> Json:
    """What a run is made of, and must be to be gone on with."""
    return {
        "model": training.kind,
        "score": training.score,
        **asdict(recipe),
        "seed": how.seed,
        "dtype": how.dtype,
        "update_in_backward": how.update_in_backward,
        "stochastic_rounding": how.stochastic_rounding,
        "most_skipped": how.skips,
        **how.updates._asdict(),
        "data": f"sha256 {digest(as_arrays(training.train, how.dtype), training.test)[:16]}",
    }


def recorded(stack: ExitStack, out: Path, settings: Json, resume: bool) -> Record:
    """The record of a run, or of one to go on with, if that is of the same settings and data; `stack` holds it."""

    def begun_and_held() -> Record:
        with blaming_the_input():
            record = Record(out, settings, resume)
            stack.enter_context(held(out))
        return record

    record = by_first(begun_and_held) or RecordOfTheFirst(out)
    require_seen_by_all(out)
    return record


def every_step(training: Training, begin: Start, recipe: Recipe, how: How, kept: Kept | None) -> Fitted | None:
    """Every step that is left, with what is seen and kept of it; None, and a message, where it cannot go on."""
    done: list[Epoch] = []
    with ExitStack() as stack:
        visits, since = [], None
        if kept is not None:
            stack.enter_context(kept.checkpoints.written())
            with precision(begin.dtype), blaming_the_input():
                since = gone_on_with(kept, begin)
            done += since.history if since else []
            visits += keeping(kept.checkpoints, how.checkpoint_every, stack.enter_context(asked_to_stop()))
        if how.verify_every is not None:
            visits.append(verifying(training.objective, begin, how.verify_every))
        if how.profile and kept is not None and is_first():
            visits.append(stack.enter_context(profiling(kept.record.directory / PROFILE)))
        events = None
        if how.tensorboard and kept is not None and is_first():
            first = since.step + 1 if since else None
            events = stack.enter_context(tensorboard(kept.record.directory / TENSORBOARD, first))
        stack.enter_context(leaving(lambda: f" after {count(len(done), 'epoch')}{so_far(kept)}"))
        if is_first():
            show = stack.enter_context(progress(recipe.epochs, begin.order(1).size, training.score))
            visits += [] if show is None else [Visit(show)]

        def on_epoch(epoch: Epoch) -> None:
            if kept is not None:
                kept.record.add(epoch)
            if events is not None:
                events(epoch)
            done.append(epoch)
            watching.show(epoch, epoch.number == recipe.epochs)

        try:
            return loop.run(
                begin,
                training.test,
                epochs=recipe.epochs,
                metric=training.metric,
                on_epoch=on_epoch,
                watch=how.watch,
                most_skipped=how.skips,
                since=since,
                visits=visits,
            )
        except Diverged as diverged:
            rate = "" if diverged.is_given else f" (it is {recipe.learning_rate:g})"
            say(f"{diverged}{rate}{so_far(kept)}")
        except Died as died:
            say(f"{died}{so_far(kept)}")
        except Stopped as stopped:
            raise Ended(
                f"{SIGNALS[stopped.why]} after {count(len(done), 'epoch')}; step {stopped.step} is kept in "
                f"{how.out}, and the same command with --resume goes on from there",
                128 + stopped.why,
            ) from stopped
    return None


def gone_on_with(kept: Kept, begin: Start) -> Reached | None:
    """What the run of a record has reached; None where it has just begun."""
    since = kept.checkpoints.last(begun(begin), say)
    kept.record.go_back([] if since is None else since.history)
    if since is not None:
        print(f"going on from step {since.step:,}, after {count(len(since.history), 'epoch')}")
    return since


def on_devices(begin: Start) -> str:
    """How much of parameters and optimiser's state lies on one device of the mesh, and what lies on each."""
    assert begin.layout is not None
    arrays = jax.tree.leaves(begin.state.updated)
    whole, own = sum(v.nbytes for v in arrays), sum(v.addressable_shards[0].data.nbytes for v in arrays)
    undivided = "; ".join(f"{array} is whole on each, {why}" for array, why in begin.layout.whole.items())
    mesh = ",".join(f"{axis}={n}" for axis, n in begin.layout.mesh.shape.items())
    mesh += f" of {jax.process_count()} processes" if are_many() else ""
    said = f"on mesh {mesh}: {own:,} of {whole:,} bytes of parameters and optimiser's state on each device"
    return "; ".join(filter(None, (said, undivided)))


def written(record: Record) -> str:
    """Which files a run has left."""
    return "written: " + ", ".join(str(record.directory / file) for file in (PARAMS, record.metrics.name, PLOT))


def by_what(recipe: Recipe, dtype: str, platform: str) -> str:
    """How it is trained."""
    return (
        f"{recipe.optimizer}, learning rate {recipe.learning_rate:g} {recipe.schedule}, "
        f"weight decay {recipe.weight_decay:g}, {count(recipe.epochs, 'epoch')} in batches of {recipe.batch_size}, "
        f"{dtype} on {platform}"
    )


def losses_of(epoch: Epoch) -> str:
    """Both of an epoch's."""
    return f"test loss {epoch.test_loss:.4f}, training loss {epoch.losses.mean():.4f}"


def after_compilation(fitted: Fitted) -> str:
    """What was waited for before the first step."""
    return f"after {fitted.compile_seconds:.1f} s of compilation"


def so_far(kept: Kept | None) -> str:
    """What there is of an unfinished run."""
    if kept is None:
        return ""
    steps = kept.checkpoints.steps()
    last = f", and the last checkpoint is of step {steps[-1]}" if steps else ""
    return f"; the metrics so far are in {kept.record.metrics}{last}"
