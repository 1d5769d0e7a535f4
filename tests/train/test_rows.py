"""Examples on disk: the same batches as in memory, read as they are needed, and never those of another file."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpref.compose import objective, serial
from bpref.rules.activation.tanh import tanh
from bpref.rules.linear.embedding import embedding
from bpref.rules.linear.linear import linear
from bpref.rules.loss.softmax_cross_entropy import softmax_cross_entropy
from bpref.rules.loss.square import square
from bpref.train import fit, start
from bpref.train.data.rows import Changed, Rows, examples
from bpref.train.keeping import begun
from bpref.train.keeping.begun import digest
from bpref.train.keeping.checkpoint import Checkpoints
from bpref.train.loop import Visit, run
from bpref.train.loop import begun as before_the_first
from bpref.train.network import r2

pytestmark = pytest.mark.usefixtures("standard_promotion")

draw = np.random.default_rng(0)
X = draw.normal(size=(50, 3))
Y = np.sin(X[:, :1])


@pytest.fixture
def mapped(tmp_path):
    """An array as a memory-mapped file of its own."""

    def mapped(v, name="X"):
        np.save(tmp_path / f"{name}.npy", v)
        return np.load(tmp_path / f"{name}.npy", mmap_mode="r")

    return mapped


@pytest.fixture
def small_windows(monkeypatch):
    """Of five steps of four examples of three numbers; an epoch has twelve."""
    monkeypatch.setattr(start, "WINDOW", 5 * 4 * 4 * 4)


def network():
    return serial(linear(5), tanh(), linear(1))


def begin(data, **options):
    return start.start(objective(network(), square()), optax.adam(0.05), data, **{"batch_size": 4} | options)


def assert_alike(a, b):
    jax.tree.map(np.testing.assert_array_equal, (a.params, a.state), (b.params, b.state))
    for one, other in zip(a.history, b.history, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one[1:3], other[1:3])


def test_rows_are_read_as_they_are_asked_for(mapped):
    rows = examples(mapped(X)).of(np.array([7, 3, 5])).astype(np.float32).through(lambda v: v[..., :2] * 2)
    assert (rows.shape, rows.dtype, rows.ndim, rows.nbytes, len(rows)) == ((3, 2), np.float32, 2, 24, 3)
    expected = X[[7, 3, 5]].astype(np.float32)[:, :2] * 2
    np.testing.assert_array_equal(rows[:], expected)
    np.testing.assert_array_equal(rows[np.array([[2, 0], [1, 1]])], expected[[[2, 0], [1, 1]]])
    np.testing.assert_array_equal(rows.of(np.array([1]))[:], expected[1:2])
    assert isinstance(examples(mapped(X)[4:]), Rows)
    assert type(examples(mapped(X)[[1, 2]])) is np.ndarray
    assert type(examples(np.asarray(mapped(X)) + 1)) is np.ndarray


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_on_disk_the_same_is_trained_as_in_memory(dtype, mapped, small_windows):
    """Also where labels are in memory, and the last window is not full."""
    options = {"epochs": 3, "batch_size": 4, "dtype": dtype, "metric": r2}
    on_disk = fit(network(), square(), optax.adam(0.05), (mapped(X), Y), (mapped(X), mapped(Y, "y")), **options)
    in_memory = fit(network(), square(), optax.adam(0.05), (X, Y), (X, Y), **options)
    tolerance = {"float64": 1e-12, "bfloat16": 0.05}[dtype]
    for a, b in zip(on_disk.history, in_memory.history, strict=True):
        np.testing.assert_allclose(a.losses, b.losses, rtol=tolerance)
        assert (a.test_loss, a.test_score) == pytest.approx((b.test_loss, b.test_score), rel=tolerance)


def test_batches_are_those_of_the_order_and_windows_are_about_as_long(mapped, small_windows):
    at = begin((mapped(X), Y))
    assert at.window == 4
    for first in (0, 4, 8):
        (given, _), order = at.read(2, first)
        for step in range(first, first + 4):
            np.testing.assert_array_equal(given[order[step]], X[np.asarray(at.order(2))[step]].astype(np.float32))
    np.testing.assert_array_equal(at.batch(2, 3)[0], begin((X, Y)).batch(2, 3)[0])


def test_a_run_goes_on_to_the_same_bits_inside_of_a_window(mapped, small_windows, tmp_path):
    at, checkpoints = begin((mapped(X), mapped(Y, "y"))), Checkpoints(tmp_path / "checkpoints")
    whole = run(at, epochs=3, visits=[Visit(checkpoints.save, 7)])
    checkpoints.wait()
    for step in (35, 28, 21):
        since = checkpoints.last(before_the_first(at), pytest.fail)
        assert since.step == step
        assert_alike(run(at, epochs=3, since=since), whole)
        (checkpoints.directory / f"{step}.json").unlink()


def test_ids_on_disk_are_looked_at_batch_by_batch(mapped, small_windows):
    J = objective(network=serial(embed=embedding(7, 4), out=linear(7)), loss=softmax_cross_entropy())
    ids = np.arange(91, dtype=np.uint16).reshape(13, 7) % 7
    runs = []
    for given in ((ids, ids), (mapped(ids), mapped(ids))):
        at = start.start(J, optax.adam(0.1), given, batch_size=4)
        runs.append(run(at, given, epochs=3, metric=lambda J: -J))
    for a, b in zip(*(fitted.history for fitted in runs), strict=True):
        assert a.test_loss == pytest.approx(b.test_loss, rel=1e-5)
        assert a.test_score == -a.test_loss


def test_a_file_that_changes_or_is_gone_ends_the_run(mapped, small_windows, tmp_path):
    at = begin((mapped(X), Y))

    def cut_off(reached):
        (tmp_path / "X.npy").write_bytes((tmp_path / "X.npy").read_bytes()[:-8])

    with pytest.raises(Changed) as changed:
        run(at, epochs=3, visits=[Visit(cut_off, 5)])
    file = tmp_path / "X.npy"
    assert str(changed.value) == (f"{file} has changed since it was opened; its examples are read while a run goes on")
    file.unlink()
    with pytest.raises(Changed) as gone:
        at.batch(1, 0)
    assert str(gone.value) == f"{file} is gone; its examples are read while a run goes on"


def test_the_digest_is_of_all_contents_also_where_a_file_is_large(mapped, monkeypatch):
    assert digest((examples(mapped(X)), Y)) == digest((X, Y))
    other = X.copy()
    other[1, 1] += 1
    assert digest(mapped(other)) != digest(X)
    monkeypatch.setattr(begun, "MOST_HASHED", 400)
    monkeypatch.setattr(begun, "HASHED_AT_ONCE", 48)
    of_large = digest(examples(mapped(X)))
    for row in (3, -1):  # the first is in no part that is looked at as it is given
        other = X.copy()
        other[row, -1] += 1
        assert of_large != digest(examples(mapped(other)))
    assert of_large != digest(examples(mapped(X)[::-1]))
    assert of_large != digest(examples(mapped(X)).of(np.arange(50)[::-1]))
    assert of_large == digest(examples(mapped(X)))


def test_far_more_than_is_held_is_trained_on(tmp_path, monkeypatch):
    """A file of 64 MB, sparse on disk, of which no more than some windows of 64 kB are ever in memory."""
    monkeypatch.setattr(start, "WINDOW", 2**16)
    big = np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.float32, (2**14, 1024))
    at = start.start(objective(linear(1), square()), optax.sgd(0.1), (big, np.ones((2**14, 1))), batch_size=16)
    (given, _), _ = at.read(1)
    assert given.nbytes == 2**16
    assert jnp.all(at.batch(1, 0)[0] == 0)
