"""The training loop: the same numbers as a loop written out, twice the same bits, and a clean stop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpref.compose import objective, remat, residual, scan, serial
from bpref.layer import With, backpropagate
from bpref.rules import RULES
from bpref.rules.linear.embedding import embedding
from bpref.rules.linear.linear import linear
from bpref.rules.loss.softmax_cross_entropy import softmax_cross_entropy
from bpref.rules.loss.square import square
from bpref.rules.norm.batch_norm import batch_norm
from bpref.rules.stochastic.dropout import dropout
from bpref.train import Diverged, fit
from bpref.train.loop import Visit, run
from bpref.train.network import accuracy, r2
from bpref.train.optimizers import make_optimizer
from bpref.train.start import start
from bpref.transforms import evaluation, stateful
from tests.refusing import refusals

pytestmark = pytest.mark.usefixtures("standard_promotion")

tanh, relu = RULES["tanh"].make, RULES["relu"].make


def data(N=22, d=3):
    draw = np.random.default_rng(0)
    X = draw.normal(size=(N, d))
    return X, np.sin(X[:, :1]) + 0.1 * draw.normal(size=(N, 1))


def network():
    return serial(linear(5), tanh(), linear(1))


def leaves(fitted):
    return jax.tree.leaves(fitted.params)


def test_an_epoch_is_what_a_loop_written_out_computes():
    X, y = data()
    optimizer = optax.adam(0.01)
    fitted = fit(network(), square(), optimizer, (X, y), epochs=3, batch_size=5, seed=4, dtype="float64")
    with jax.enable_x64(True):
        begin = start(objective(network(), square()), optimizer, (X, y), batch_size=5, seed=4, dtype="float64")
        J = objective(network(), square())
        params = begin.params
        state = optimizer.init(params)
        losses, norms = [], []
        for epoch in (1, 2, 3):
            for rows in np.asarray(begin.order(epoch)):
                value, dparams, _ = backpropagate(J, params, (jnp.asarray(X[rows]), jnp.asarray(y[rows])))
                losses.append(float(value))
                norms.append(float(optax.tree.norm(dparams[0][2])))
                updates, state = optimizer.update(dparams, state, params)
                params = optax.apply_updates(params, updates)
        for ours, theirs in zip(leaves(fitted), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(np.concatenate([e.losses for e in fitted.history]), losses, rtol=1e-13)
    np.testing.assert_allclose(np.concatenate([e.gradient_norms["2"] for e in fitted.history]), norms, rtol=1e-12)


def test_keys_and_statistics_go_on_from_step_to_step_and_are_read_in_evaluation():
    network = stateful(serial(linear(5), batch_norm(), dropout(0.5), linear(1)))
    X, y = data()
    fitted = fit(network, square(), optax.adam(0.01), (X, y), (X, y), epochs=2, batch_size=5, metric=r2)
    started = start(objective(network, square()), optax.adam(0.01), (X, y), batch_size=5)
    keys, statistics = ([state[0][i] for state in (fitted.state, started.state.state)] for i in (2, 1))
    assert jax.random.key_data(keys[0]["key"]).tolist() != jax.random.key_data(keys[1]["key"]).tolist()
    assert all((statistics[0][name] != statistics[1][name]).any() for name in statistics[0])
    J = evaluation(objective(network, square()))
    (value, _), _ = J.forward((fitted.params, ()), With((X.astype("f4"), y.astype("f4")), fitted.state))
    assert fitted.history[-1].test_loss == pytest.approx(float(value), rel=1e-6)
    in_backward = fit(network, square(), optax.adam(0.01), (X, y), epochs=2, batch_size=5, update_in_backward=True)
    for ours, theirs in zip(leaves(fitted), leaves(in_backward), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_an_objective_with_names_learns_from_ids_and_is_looked_at_batch_by_batch():
    J = objective(network=serial(embed=embedding(7, 4), out=linear(7)), loss=softmax_cross_entropy())
    ids = np.arange(70, dtype=np.uint8).reshape(10, 7) % 7
    begin = start(J, optax.adam(0.1), (ids, ids), batch_size=4)
    fitted = run(begin, (ids, ids), epochs=30, metric=lambda J: -J)
    last = fitted.history[-1]
    assert last.test_loss < 0.1 < fitted.history[0].test_loss
    assert last.test_score == -last.test_loss
    assert set(last.gradient_norms) == {"network.embed", "network.out"}


def test_every_epoch_has_its_own_order_and_no_example_twice():
    X, y = data()
    begin = start(objective(network(), square()), optax.sgd(0.1), (X, y), batch_size=5)
    first, second = (np.asarray(begin.order(epoch)) for epoch in (1, 2))
    assert first.shape == (4, 5)
    assert len(set(first.ravel())) == 20
    assert (first != second).any()
    np.testing.assert_array_equal(begin.batch(2, 3)[0], X[second[3]].astype(np.float32))


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    def run(seed):
        return leaves(fit(linear(1), square(), optax.adam(0.01), data(), epochs=3, batch_size=7, seed=seed))

    first = run(1)
    assert all((a == b).all() for a, b in zip(first, run(1), strict=True))
    assert any((a != b).any() for a, b in zip(first, run(2), strict=True))


def test_updating_in_the_backward_gives_the_same_parameters_and_norms():
    deep = serial(linear(4), scan(remat(residual(serial(linear(4), tanh()))), 3), linear(1))
    whole, layerwise = (
        fit(
            deep,
            square(),
            make_optimizer("adamw", 0.05, steps=8, schedule="cosine", weight_decay=0.1),
            data(),
            epochs=2,
            batch_size=5,
            dtype="float64",
            update_in_backward=in_backward,
        )
        for in_backward in (False, True)
    )
    for ours, theirs in zip(leaves(layerwise), leaves(whole), strict=True):
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)
    norms, expected = (fitted.history[-1].gradient_norms for fitted in (layerwise, whole))
    np.testing.assert_allclose(norms["0"], expected["0"], rtol=1e-12)
    np.testing.assert_allclose(norms["1.0"], expected["1.0"], rtol=1e-12)


def test_float64_stays_inside():
    fit(network(), square(), optax.sgd(0.1), data(), epochs=1, dtype="float64")
    assert jnp.ones(()).dtype == jnp.float32


def test_bfloat16_keeps_parameters_in_float32_and_learns():
    def run(dtype):
        return fit(network(), square(), optax.adam(0.03), data(), data(), epochs=40, dtype=dtype, metric=r2)

    half, single = run("bfloat16"), run("float32")
    assert {p.dtype for p in leaves(half)} == {np.dtype(np.float32)}
    assert half.history[-1].test_score == pytest.approx(single.history[-1].test_score, abs=0.03)
    assert single.history[-1].test_score > 0.8


def test_classes_and_a_full_batch():
    X, y = data(40)
    labels = (y[:, 0] > 0).astype(int)
    loss = RULES["softmax_cross_entropy"].make()
    both = (X, labels), (X, labels)
    fitted = fit(serial(linear(8), relu(), linear(2)), loss, optax.adam(0.05), *both, epochs=60, metric=accuracy)
    assert fitted.history[-1].test_score >= 0.95
    assert [epoch.losses.shape for epoch in fitted.history[:2]] == [(1,), (1,)]
    assert list(fitted.history[0].gradient_norms) == ["0", "2"]
    assert fitted.examples_per_second > 0


def test_a_later_epoch_compiles_nothing():
    counted = []

    def counting(prediction, target):
        counted.append(1)
        return r2(prediction, target)

    fit(network(), square(), optax.sgd(0.1), data(), data(), epochs=5, batch_size=4, metric=counting)
    assert len(counted) == 1


def test_a_learning_rate_too_large_stops_at_the_step_and_names_the_layer():
    seen = []
    with pytest.raises(Diverged) as error:
        fit(
            serial(linear(5), relu(), linear(1)),
            square(),
            optax.sgd(1e4),
            data(),
            epochs=50,
            batch_size=11,
            update_in_backward=True,
            on_epoch=seen.append,
        )
    stopped = error.value
    assert str(stopped) == (
        f"training stopped at step {stopped.step} (epoch {stopped.epoch}): {stopped.place} is not finite any more; "
        "lower the learning rate"
    )
    assert (stopped.step - 1) // 2 + 1 == stopped.epoch == len(seen) + 1
    assert stopped.place in {"the output of 2 linear", "the output of square", "the gradient of 0 linear"}
    assert all(np.isfinite(epoch.losses).all() for epoch in seen)


def test_the_layer_that_is_named_is_the_first_one():
    X, y = data()
    X[3] = 3e38
    with pytest.raises(Diverged) as error:
        fit(serial(linear(50), relu(), linear(1)), square(), optax.sgd(1.0), (X, y), epochs=1)
    assert str(error.value) == (
        "training stopped at step 1 (epoch 1): the output of 0 linear is not finite any more; lower the learning rate"
    )


def refused_fit(change):
    settings = {"network": network(), "loss": square(), "optimizer": optax.sgd(0.1), "train": data(), "epochs": 1}
    return fit(**settings | change)


test_refused = refusals(
    {
        "epochs is 0, expected at least 1": {"epochs": 0},
        "batch size is 23, expected 1 ... 22: there are 22 examples to train on": {"batch_size": 23},
        "batch size is 0, expected 1 ... 22: there are 22 examples to train on": {"batch_size": 0},
        "TypeError: fit: optimizer is a str, expected an optax transformation such as optax.sgd(0.1)": (
            {"optimizer": "adam"}
        ),
        "unknown dtype 8; there is float32, bfloat16, float16, float64": {"dtype": 8},
        "unknown dtype 'float23'; the nearest are float32, float64, float16": {"dtype": "float23"},
        "TypeError: linear: x has dtype int32, expected a floating-point dtype such as float32": (
            {"train": (np.ones((4, 3), int), np.ones((4, 1)))}
        ),
        "TypeError: the training data: a tuple of 3 came, expected a pair (X, y)": (
            {"train": (np.ones((4, 3)), np.ones((4, 1)), np.ones((4, 1)))}
        ),
        "TypeError: fit: dropout would have the same key at every step; give bpref.stateful(network)": (
            {"network": residual(serial(linear(3), dropout(0.5)))}
        ),
        "TypeError: fit: batch_norm would have the same mean, var at every step; give bpref.stateful(network)": (
            {"network": serial(linear(5), batch_norm(), linear(1))}
        ),
        "the training data: X has shape (0, 3), expected (N, ...) with at least one example": (
            {"train": (np.ones((0, 3)), np.ones((0, 1)))}
        ),
        "the test data: y has shape (3, 1), expected (4, ...), one entry for each row of X": (
            {"test": (np.ones((4, 3)), np.ones((3, 1)))}
        ),
        "linear: W has shape (5, 3), expected (m, d) = (5, 2), as init gives for x (4, 2)": (
            {"test": (np.ones((4, 2)), np.ones((4, 1)))}
        ),
    },
    refused_fit,
)


def test_a_target_of_the_wrong_shape_is_refused_before_the_first_step():
    X, y = data()
    with pytest.raises(ValueError, match="square"):
        fit(network(), square(), optax.sgd(0.1), (X, y[:, 0]), epochs=1)


def test_an_optimizer_that_mixes_parameters_is_refused_in_the_backward():
    clipping = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    with pytest.raises(ValueError, match="depends on another parameter's gradient"):
        fit(network(), square(), clipping, data(), epochs=1, update_in_backward=True)
    assert len(fit(network(), square(), clipping, data(), epochs=1).history) == 1


def test_wherever_the_loop_is_left_the_bits_are_the_same():
    def run_with(*visits):
        J = objective(network(), square())
        return run(start(J, optax.adam(0.05), data(), batch_size=5), epochs=3, visits=visits)

    steps = []
    visited = run_with(Visit(lambda reached: steps.append(reached.step), 3), Visit(lambda reached: None))
    assert steps == [3, 6, 9, 12]
    for ours, theirs in zip(leaves(visited), leaves(run_with()), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_run_goes_on_from_what_it_reached():
    J = objective(network(), square())
    begin = start(J, optax.adam(0.05), data(), batch_size=5)

    class Left(Exception):
        pass

    def leave(reached):
        reached_at.append(jax.tree.map(np.array, reached._replace(history=[])))
        histories.append(list(reached.history))
        if len(reached_at) == 2:
            raise Left

    reached_at, histories = [], []
    with pytest.raises(Left):
        run(begin, data(), epochs=3, metric=r2, visits=[Visit(leave, 3)])
    whole = run(begin, data(), epochs=3, metric=r2)
    since = reached_at[-1]._replace(history=histories[-1], step=6)
    rest = run(begin, data(), epochs=3, metric=r2, since=since)
    for ours, theirs in zip(leaves(rest), leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(rest.history, whole.history, strict=True):
        np.testing.assert_array_equal(ours.losses, theirs.losses)
        assert ours.test_score == theirs.test_score


def test_a_step_that_is_not_finite_is_skipped_and_counted():
    X, y = data()
    X[3] = np.nan
    optimizer, J = optax.sgd(0.1), objective(network(), square())
    with pytest.raises(Diverged):
        fit(network(), square(), optimizer, (X, y), epochs=1, batch_size=5)
    begin = start(J, optimizer, (X, y), batch_size=5)
    fitted = run(begin, epochs=2, most_skipped=1)
    params = begin.params
    for epoch in (1, 2):
        rows_of_epoch = np.asarray(begin.order(epoch))
        for rows in rows_of_epoch[(rows_of_epoch != 3).all(axis=1)]:
            batch = X[rows].astype(np.float32), y[rows].astype(np.float32)
            params = jax.tree.map(lambda p, d: p - 0.1 * d, params, backpropagate(J, params, batch)[1])
        assert fitted.history[epoch - 1].skipped == (rows_of_epoch == 3).sum() == 1
    for ours, theirs in zip(leaves(fitted), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_after_too_many_in_a_row_it_stops_at_the_first_of_them():
    X, y = data()
    with pytest.raises(Diverged) as error:
        fit(network(), square(), optax.sgd(0.1), (np.inf * X, y), epochs=9, batch_size=5, most_skipped=6)
    assert (error.value.step, error.value.epoch, error.value.place) == (1, 1, "X of the batch")


def test_what_overflows_in_float16_is_named_without_a_warning_of_numpys():
    """The parameters are looked at as NumPy has them; a warning is an error here."""
    with pytest.raises(Diverged) as error:
        fit(network(), square(), optax.sgd(1e6), data(), epochs=9, batch_size=5, dtype="float16", most_skipped=2)
    assert error.value.place == "the output of 0 linear"


@pytest.mark.parametrize("name", ["X", "y"])
def test_data_that_are_not_finite_are_not_the_learning_rates_fault(name):
    X, y = data()
    (X if name == "X" else y)[3] = np.nan
    with pytest.raises(Diverged) as error:
        fit(network(), square(), optax.sgd(0.1), (X, y), epochs=1)
    message = f"training stopped at step 1 (epoch 1): {name} of the batch has a value that is not finite"
    assert str(error.value) == message
