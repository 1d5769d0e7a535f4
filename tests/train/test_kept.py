"""`fit` with checkpoints: what is stopped goes on to the same bits, and to more epochs; another run is refused."""

import doctest
import json
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from bpref.compose import serial
from bpref.rules.activation.tanh import tanh
from bpref.rules.linear.linear import linear
from bpref.rules.loss.square import square
from bpref.train import fit
from bpref.train.data.text import read_text
from bpref.train.keeping.begun import Json
from bpref.train.keeping.checkpoint import Checkpoints
from bpref.train.keeping.record import held

pytestmark = pytest.mark.usefixtures("standard_promotion")

X = np.random.default_rng(0).normal(size=(32, 3))
DATA = X, np.sin(X[:, :1])


def network(width=4):
    return serial(linear(width), tanh(), linear(1))


@pytest.fixture
def fitted(tmp_path):
    """Trains for four epochs of four steps, in the directory `run`, but where another is asked for."""

    def fitted(width=4, optimizer=optax.adam(0.05), data=DATA, **options):  # noqa: B008, it has no state
        given: Json = {"epochs": 4, "batch_size": 8, "checkpoints": tmp_path / "run"}
        return fit(network(width), square(), optimizer, data, data, **given | options)

    return fitted


def assert_alike(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, (ours.params, ours.state), (theirs.params, theirs.state))
    for a, b in zip(ours.history, theirs.history, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a[:5], b[:5])
        assert (a.watched is None) == (b.watched is None)


class Stop(Exception):
    pass


def stop_after(number):
    def stop(epoch):
        if epoch.number == number:
            raise Stop

    return stop


@pytest.mark.parametrize("every", [3, 16])
def test_what_is_stopped_goes_on_to_the_same_bits(fitted, every):
    """From step 9 of 16, after the epoch was told; or from the beginning, where there is no checkpoint yet."""
    whole = fitted(checkpoints=None)
    with pytest.raises(Stop):
        fitted(every=every, on_epoch=stop_after(3))
    told = []
    assert_alike(fitted(every=every, resume=True, on_epoch=lambda epoch: told.append(epoch.number)), whole)
    assert told == ([3, 4] if every == 3 else [1, 2, 3, 4])


def test_what_is_stopped_leaves_nothing_that_is_still_being_written(fitted, monkeypatch):
    write, told = Checkpoints._write, []
    monkeypatch.setattr(Checkpoints, "_write", lambda *given: (time.sleep(0.5), write(*given)))
    with pytest.raises(Stop):
        fitted(every=9, on_epoch=stop_after(3))
    monkeypatch.undo()
    fitted(every=9, resume=True, on_epoch=lambda epoch: told.append(epoch.number))
    assert told == [3, 4]


def test_what_is_done_is_there_at_once_and_goes_on_to_more_epochs(fitted):
    told = []
    first = fitted(epochs=2, watch=True, resume=True)
    assert_alike(fitted(epochs=2, watch=True, resume=True, on_epoch=told.append), first)
    assert told == []
    assert_alike(fitted(watch=True, resume=True), fitted(watch=True, checkpoints=None))
    with pytest.raises(ValueError, match=r"run: 16 steps are done, more than the 8 of epochs=2$"):
        fitted(epochs=2, resume=True)


def test_another_run_is_refused_and_named(fitted, tmp_path):
    fitted()
    begun_otherwise = "cannot be gone on with, since it was begun otherwise: "
    other = DATA[0] + 1, DATA[1]
    for options, message in (
        ({"seed": 1}, begun_otherwise + "seed was 0, and is 1 now"),
        ({"seed": 1, "most_skipped": 2}, "seed was 0, and is 1 now; most_skipped was 0, and is 2 now"),
        ({"data": other}, begun_otherwise + "data was sha256 "),
        ({"width": 5}, "is of another run: carry.going.updated.params."),
        ({"optimizer": optax.sgd(0.1)}, begun_otherwise + "the optimizer had other operations"),
        ({"optimizer": optax.adam(0.1)}, begun_otherwise + "a number in the optimizer was -0.05, and is -0.1 now"),
        (
            {"optimizer": optax.adam(0.1, b1=0.8)},
            "numbers in the optimizer were 0.1, 0.9, -0.05, and are 0.2, 0.8, -0.1",
        ),
    ):
        with pytest.raises(ValueError, match="run") as error:
            fitted(resume=True, **options)
        assert message in str(error.value)
    with pytest.raises(FileExistsError, match=r"run exists already; name one that does not$"):
        fitted()
    with held(tmp_path / "run"), pytest.raises(OSError, match="another run is writing into "):
        fitted(resume=True)


def by_parts(steps=99, leaf=1.0):
    """What closes over a schedule, arrays and the names of parts."""
    schedule = optax.join_schedules([optax.constant_schedule(0.1), optax.cosine_decay_schedule(0.1, steps)], [5])
    every = {"W": optax.adam(schedule), "b": optax.sgd(np.float32(0.5))}
    scaled = optax.stateless(lambda updates, _: jax.tree.map(lambda u: u * np.full(u.shape, leaf), updates))
    return optax.chain(scaled, optax.partition(every, lambda p: jax.tree.map(lambda v: "bW"[v.ndim > 1], p)))


@pytest.mark.parametrize("update_in_backward", [False, True])
def test_another_schedule_within_an_optimizer_is_named_and_the_same_one_made_anew_is_taken(fitted, update_in_backward):
    options = {"resume": True, "update_in_backward": update_in_backward}
    fitted(optimizer=by_parts(), epochs=1, **options)
    with pytest.raises(ValueError, match=r": a number in the optimizer was 99.0, and is 98.0 now$"):
        fitted(optimizer=by_parts(98), **options)
    with pytest.raises(ValueError, match=r": the optimizer had other operations$"):
        fitted(optimizer=by_parts(leaf=2.0), **options)
    assert len(fitted(optimizer=by_parts(), **options).history) == 4


def test_what_another_version_of_a_library_has_traced_is_a_warning(fitted, tmp_path):
    """The same operations are the same by whichever version; an older run does not say what they were."""
    fitted(epochs=1)
    file = tmp_path / "run" / "run.json"
    begun = json.loads(file.read_text())
    begun["optimizer"]["by"] = "jax 0.1"
    file.write_text(json.dumps(begun))
    with pytest.raises(ValueError, match=r": a number in the optimizer was -0.05, and is -0.1 now$"):
        fitted(optimizer=optax.adam(0.1), resume=True)
    begun["optimizer"]["program"] = "0"
    file.write_text(json.dumps(begun))
    with pytest.warns(UserWarning, match="though the optimizer was traced by jax 0.1 before, and is by jax "):
        fitted(epochs=2, resume=True)
    del begun["optimizer"]
    file.write_text(json.dumps(begun))
    assert len(fitted(resume=True).history) == 4


def test_a_damaged_checkpoint_is_a_warning(fitted, tmp_path):
    whole = fitted(every=4)
    (tmp_path / "run" / "checkpoints" / "16.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"^the checkpoint of step 16 in .* is damaged \(16.json is not as it was"):
        assert_alike(fitted(every=4, resume=True), whole)


def test_what_means_nothing_is_refused(fitted, monkeypatch, tmp_path):
    for options, message in (
        ({"checkpoints": None, "every": 3}, "every goes with checkpoints, the directory of the run"),
        ({"checkpoints": None, "resume": True}, "resume goes with checkpoints, the directory of the run"),
        ({"every": 0}, "every is 0, expected at least 1 step"),
    ):
        with pytest.raises(ValueError) as error:
            fitted(**options)
        assert str(error.value) == message
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="checkpoints are written by orbax, which is not installed: pip install "):
        fitted()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shown", [fit, read_text])
def test_the_examples_run(shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"optax": optax, "network": network(), "square": square, "X": X, "y": DATA[1], "np": np, "Path": Path}
    names |= {"fit": fit, "read_text": read_text}
    (example,) = doctest.DocTestFinder(recurse=False).find(shown, shown.__name__, globs=names)
    assert doctest.DocTestRunner().run(example) == (0, len(example.examples))
