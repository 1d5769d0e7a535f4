"""Checkpoints: what is read is what was written, a damaged one has one before it, and a full disk takes none."""

import errno
import os
import resource
import signal
import sys
from contextlib import contextmanager
from shutil import rmtree
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from bpref.compose import objective, serial
from bpref.rules.linear.linear import linear
from bpref.rules.loss.square import square
from bpref.rules.norm.batch_norm import batch_norm
from bpref.rules.stochastic.dropout import dropout
from bpref.train.keeping.checkpoint import Checkpoints
from bpref.train.keeping.keep import Stopped, keeping
from bpref.train.keeping.record import Unwritable
from bpref.train.loop import Visit, begun, run
from bpref.train.start import precision, start
from bpref.transforms import stateful

pytestmark = pytest.mark.usefixtures("standard_promotion")

draw = np.random.default_rng(0)
X = draw.normal(size=(22, 3))
DATA = X, np.sin(X[:, :1])
EPOCHS = 3


def begin(width=5, **options):
    """Five steps an epoch of a network with keys, running statistics and the moments of adam."""
    network = stateful(serial(linear(width), batch_norm(), dropout(0.5), linear(1)))
    options = {"batch_size": 4, "dtype": "float32"} | options
    return start(objective(network, square()), optax.adam(0.05), DATA, **options)


@pytest.fixture(scope="module")
def begin_and_whole():
    with jax.numpy_dtype_promotion("standard"):
        at = begin()
        return at, run(at, DATA, epochs=EPOCHS)


@pytest.fixture
def kept(begin_and_whole, tmp_path):
    """Checkpoints of steps 3, 6, 9, 12 and 15, the last three of which are there still."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    run(begin_and_whole[0], DATA, epochs=EPOCHS, visits=[Visit(checkpoints.save, 3)])
    checkpoints.wait()
    return checkpoints


def assert_alike(ours, theirs):
    for a, b in zip(
        jax.tree.leaves((ours.params, ours.state)), jax.tree.leaves((theirs.params, theirs.state)), strict=True
    ):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
    for a, b in zip(ours.history, theirs.history, strict=True):
        assert a._replace(losses=0, gradient_norms=0, seconds=0) == b._replace(losses=0, gradient_norms=0, seconds=0)
        jax.tree.map(np.testing.assert_array_equal, (a.losses, a.gradient_norms), (b.losses, b.gradient_norms))


def test_the_last_three_are_kept_and_any_of_them_leads_to_the_same_bits(begin_and_whole, kept):
    at, whole = begin_and_whole
    assert kept.steps() == [9, 12, 15]
    for step in (15, 12, 9):
        since = Checkpoints(kept.directory).last(begun(at), pytest.fail)
        assert (since.step, len(since.history)) == (step, step // 5)
        assert_alike(run(at, DATA, epochs=EPOCHS, since=since), whole)
        (kept.directory / f"{step}.json").unlink()
    assert kept.last(begun(at), pytest.fail) is None


@pytest.mark.parametrize("options", [{"dtype": "float64"}, {"update_in_backward": True}], ids=str)
def test_the_bits_are_the_same_in_every_way_of_training(options, tmp_path):
    at, checkpoints = begin(**options), Checkpoints(tmp_path / "checkpoints")

    def ask_at_7():
        return signal.SIGTERM if reached == 7 else None

    def count(now):
        nonlocal reached
        reached = now.step

    reached = 0
    with pytest.raises(Stopped) as stopped:
        run(at, DATA, epochs=2, visits=[Visit(count, 1), *keeping(checkpoints, None, ask_at_7)])
    assert (stopped.value.step, stopped.value.why, checkpoints.steps()) == (7, signal.SIGTERM, [7])
    with precision(at.dtype):
        since = checkpoints.last(begun(at), pytest.fail)
    assert_alike(run(at, DATA, epochs=2, since=since), run(at, DATA, epochs=2))


def damaged_in(checkpoints, how):
    folder = checkpoints.directory / str(checkpoints.steps()[-1])
    files = {
        "metadata cut off": folder / "_METADATA",
        "a bit of an array": folder / "float32" / "0",
        "no array": folder / "int32" / "0",
        "digests cut off": folder.with_suffix(".json"),
        "a figure": folder.with_suffix(".json"),
    }
    contents = bytearray(files[how].read_bytes())
    contents[len(contents) // 2] ^= 1
    if how == "no array":
        files[how].unlink()
    elif how == "a figure":
        files[how].write_text(files[how].read_text().replace('"seconds": 0.0', '"seconds": 1.0'))
    else:
        files[how].write_bytes(contents if how == "a bit of an array" else contents[: len(contents) // 2])
    return files[how].name if files[how].parent == checkpoints.directory else str(files[how].relative_to(folder))


@pytest.mark.parametrize("how", ["metadata cut off", "a bit of an array", "no array", "digests cut off", "a figure"])
def test_a_damaged_one_is_named_and_the_one_before_is_taken(begin_and_whole, kept, how, capfd):
    at, whole = begin_and_whole
    file, warnings = damaged_in(kept, how), []
    since = kept.last(begun(at), warnings.append)
    what = "missing" if how == "no array" else "not as it was written"
    assert warnings == [
        f"the checkpoint of step 15 in {kept.directory} is damaged ({file} is {what}); the one before it is taken"
    ]
    assert since.step == 12
    again = Checkpoints(kept.directory)
    assert_alike(run(at, DATA, epochs=EPOCHS, since=since, visits=[Visit(again.save, 3)]), whole)
    again.wait()
    assert again.last(begun(at), pytest.fail).step == 15
    assert capfd.readouterr() == ("", "")


def test_where_all_are_damaged_it_is_said_that_none_is_left(begin_and_whole, kept):
    at, _ = begin_and_whole
    warnings = []
    for step in kept.steps():
        (kept.directory / f"{step}.json").write_text("{}")
    assert kept.last(begun(at), warnings.append) is None
    insteads = [warning.rpartition("; ")[2] for warning in warnings]
    assert insteads == ["the one before it is taken"] * 2 + ["there is none before it, and the run begins anew"]


IN_PLACES = {
    "a file": ("15", lambda path: path.touch(), "_CHECKPOINT_METADATA is missing"),
    "a link to itself": ("15", lambda path: path.symlink_to(path), "_CHECKPOINT_METADATA is missing"),
    "nothing": ("15", lambda path: None, "_CHECKPOINT_METADATA is missing"),
    "a directory": ("15.json", lambda path: path.mkdir(), "15.json is not as it was written"),
}


@pytest.mark.parametrize("what", IN_PLACES)
def test_what_has_come_in_the_place_of_one_is_damage_and_makes_room(begin_and_whole, kept, what):
    at, whole = begin_and_whole
    name, put, damage = IN_PLACES[what]
    path, warnings = kept.directory / name, []
    path.unlink() if path.is_file() else rmtree(path)
    put(path)
    since = kept.last(begun(at), warnings.append)
    assert warnings == [
        f"the checkpoint of step 15 in {kept.directory} is damaged ({damage}); the one before it is taken"
    ]
    again = Checkpoints(kept.directory)
    assert_alike(run(at, DATA, epochs=EPOCHS, since=since, visits=[Visit(again.save, 3)]), whole)
    again.wait()
    assert again.steps() == [9, 12, 15]
    assert again.last(begun(at), pytest.fail).step == 15


def test_what_a_killed_process_had_not_finished_is_no_checkpoint_and_makes_room(begin_and_whole, kept):
    at, _ = begin_and_whole
    (kept.directory / "15.json").unlink()
    (kept.directory / "18.orbax-checkpoint-tmp").mkdir()
    (kept.directory / ".18.json.77").touch()
    since = kept.last(begun(at), pytest.fail)
    assert since.step == 12
    again = Checkpoints(kept.directory)
    again.save(since._replace(step=13))
    again.wait()
    assert {path.name.split(".")[0] for path in again.directory.iterdir()} == {"9", "12", "13"}


def test_a_run_of_other_arrays_is_refused(kept):
    with pytest.raises(ValueError) as error:
        kept.last(begun(begin(width=6)), pytest.fail)
    assert str(error.value) == (
        f"{kept.directory / '15'} is of another run: carry.going.updated.params.0.0.W was float32[5, 3] there, and is "
        "float32[6, 3] here"
    )


@contextmanager
def no_file_larger_than(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_where_no_more_can_be_written_the_last_one_stays(begin_and_whole, kept, capfd, monkeypatch):
    """And nothing is said of other arrays, whose writing ends later."""
    at, _ = begin_and_whole
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    since = kept.last(begun(at), pytest.fail)
    again = Checkpoints(kept.directory)
    with no_file_larger_than(900):
        again.save(since._replace(step=16))
        with pytest.raises(Unwritable) as error:
            again.wait()
    why = os.strerror(errno.EFBIG)
    assert str(error.value) == f"the checkpoint of step 16 cannot be written to {kept.directory}: {why}"
    late, other = (SimpleNamespace(exc_value=RuntimeError(why)) for why in ("Event loop is closed", "else"))
    sys.unraisablehook(late)
    sys.unraisablehook(other)
    assert said == [other]
    assert Checkpoints(kept.directory).last(begun(at), pytest.fail).step == 15
    assert capfd.readouterr() == ("", "")
