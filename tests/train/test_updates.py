"""What updates are put through: each against the same written out, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpref.compose import objective, serial
from bpref.layer import backpropagate
from bpref.rules.activation.tanh import tanh
from bpref.rules.linear.linear import linear
from bpref.rules.loss.square import square
from bpref.train.loop import fit, run
from bpref.train.optimizers import make_optimizer
from bpref.train.rounding import stochastic_round
from bpref.train.start import objective_in, start
from bpref.train.updates import Updates, require_named, require_trained
from tests.refusing import refusals

pytestmark = pytest.mark.usefixtures("standard_promotion")

X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
DATA = X, np.sin(X[:, :1])
J = objective(serial(linear(5), tanh(), linear(1)), square())
RATE = 0.1


def trained(epochs=2, in_backward=False, **updates):
    """SGD at batches of five, and the same by `begin`'s orders without what `updates` says."""
    optimizer = make_optimizer("sgd", RATE, steps=8, updates=Updates(**updates))
    return run(start(J, optimizer, DATA, batch_size=5, update_in_backward=in_backward), epochs=epochs)


def written_out(change=lambda gradients: gradients[0], every=1, epochs=2):
    """The parameters after each update of the mean gradients of `every` batches, `change`d."""
    begin = start(J, optax.sgd(RATE), DATA, batch_size=5)
    params, gradients, seen = begin.params, [], [begin.params]
    for epoch in range(1, epochs + 1):
        for step in range(4):
            gradients.append(backpropagate(J, params, begin.batch(epoch, step))[1])
            if len(gradients) == every:
                params = jax.tree.map(lambda p, d: p - RATE * d, params, change(gradients))
                gradients, seen = [], [*seen, params]
    return seen


def assert_close(fitted, params):
    for ours, theirs in zip(jax.tree.leaves(fitted.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def norm(tree):
    return jnp.sqrt(sum(jnp.sum(v**2) for v in jax.tree.leaves(tree)))


CLIPPED = {
    "0.3": lambda g: jax.tree.map(lambda d: d * jnp.minimum(1, 0.3 / norm(g[0])), g[0]),
    "leaf:0.2": lambda g: jax.tree.map(lambda d: d * jnp.minimum(1, 0.2 / norm(d)), g[0]),
    "value:0.05": lambda g: jax.tree.map(lambda d: jnp.clip(d, -0.05, 0.05), g[0]),
}


@pytest.mark.parametrize("clip", CLIPPED)
def test_clipping(clip):
    expected = written_out(CLIPPED[clip])[-1]
    assert_close(trained(clip=clip), expected)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (expected, written_out()[-1])), strict=True))
    if clip != "0.3":
        assert_close(trained(clip=clip, in_backward=True), expected)


def test_accumulation():
    expected = written_out(lambda g: jax.tree.map(lambda *d: sum(d) / len(d), *g), every=2)[-1]
    assert_close(trained(accumulate=2), expected)
    assert_close(trained(accumulate=2, in_backward=True), expected)
    fitted = fit(*J.parts, make_optimizer("sgd", RATE, steps=8, schedule="linear", updates=Updates(accumulate=4)), DATA,
                 epochs=2, batch_size=5)  # fmt: skip
    begin = start(J, optax.sgd(RATE), DATA, batch_size=5)
    params = begin.params
    for epoch, rate in ((1, RATE), (2, RATE / 2)):
        batches = [backpropagate(J, params, begin.batch(epoch, step))[1] for step in range(4)]
        params = jax.tree.map(lambda p, *d, rate=rate: p - rate * sum(d) / 4, params, *batches)
    assert_close(fitted, params)


def test_the_average_is_what_is_evaluated_and_kept():
    seen = written_out()
    average = seen[0]
    for t, params in enumerate(seen[1:]):
        d = min(0.5, (1 + t) / (10 + t))
        average = jax.tree.map(lambda a, p, d=d: d * a + (1 - d) * p, average, params)
    optimizer = make_optimizer("sgd", RATE, steps=8, updates=Updates(average=0.5))
    fitted = run(start(J, optimizer, DATA, batch_size=5), DATA, epochs=2)
    assert_close(fitted, average[0])
    assert fitted.history[-1].test_loss == pytest.approx(float(J.forward(average, DATA)[0]), rel=1e-5)


def test_what_is_frozen_rests_and_what_is_decayed_is_named():
    before = written_out()[0][0]
    fitted = trained(frozen=("0.*",), average=0.9)
    np.testing.assert_array_equal(fitted.params[0].W, before[0].W)
    np.testing.assert_array_equal(fitted.params[0].b, before[0].b)
    assert (fitted.params[2].W != before[2].W).all()
    clipped = trained(frozen=("0.*",), clip="0.3")

    def of_the_last(g):
        still, last = jax.tree.map(jnp.zeros_like, g[0]), g[0][0][2]
        return ((still[0][0], (), jax.tree.map(lambda d: d * jnp.minimum(1, 0.3 / norm(last)), last)), ())

    alone = written_out(of_the_last)[-1]
    assert_close(clipped, alone)
    optimizer = make_optimizer("sgd", RATE, steps=8, weight_decay=0.5, updates=Updates(decayed=("2.b",)))
    decayed = run(start(J, optimizer, DATA, batch_size=20), epochs=1)
    plain = run(start(J, optax.sgd(RATE), DATA, batch_size=20), epochs=1)
    np.testing.assert_allclose(decayed.params[2].b, plain.params[2].b - RATE * 0.5 * before[2].b, rtol=1e-6)
    np.testing.assert_array_equal(decayed.params[2].W, plain.params[2].W)


def test_float16_learns_by_a_scale_that_follows_the_gradients():
    def score(dtype, **options):
        history = fit(*J.parts, optax.adam(0.03), DATA, DATA, epochs=30, dtype=dtype, **options).history
        return history[-1].test_loss, sum(epoch.skipped for epoch in history)

    (half, skipped), (single, none) = score("float16", most_skipped=16), score("float32")
    assert half == pytest.approx(single, rel=0.05)
    assert (skipped, none) == (0, 0)
    large = fit(*J.parts, optax.sgd(1e-6), (X, 1e3 * DATA[1]), epochs=20, dtype="float16", most_skipped=16).history
    assert 1 < sum(epoch.skipped for epoch in large) < 16
    assert (large[0].skipped, large[-1].skipped) == (1, 0)


def test_rounding_is_to_a_neighbour_and_right_on_the_mean():
    x = jnp.array([1.0, 1.001, -3.14159, 1e-30, jnp.inf, -jnp.inf, jnp.nan, 0.0], jnp.float32)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: stochastic_round(key, x))(keys).astype(jnp.float32)
    finite, below = np.isfinite(x), (x.view(jnp.uint32) & jnp.uint32(0xFFFF0000)).view(jnp.float32)
    np.testing.assert_allclose(drawn.mean(0)[finite], x[finite], rtol=5e-4)
    neighbours = [len(np.unique(column)) for column in drawn.T[finite]]
    assert neighbours == [1 if exact else 2 for exact in (x == below)[finite]] == [1, 2, 2, 2, 1]
    np.testing.assert_array_equal(drawn[0, ~finite], x[~finite])


def test_what_rounding_would_lose_is_learned_by_chance():
    """Updates of 1/1000 of the parameters: to the nearest they would all be lost."""
    optimizer, in_bfloat16 = optax.sgd(1e-3), objective_in("bfloat16", *J.parts)
    begin = start(in_bfloat16, optimizer, DATA, dtype="bfloat16", stochastic_rounding=True)
    assert {p.dtype for p in jax.tree.leaves(begin.params)} == {jnp.dtype("bfloat16")}
    fitted = run(begin, DATA, epochs=300)
    kept_wide = run(start(in_bfloat16, optimizer, DATA, dtype="bfloat16"), DATA, epochs=300)
    (first, last), wide = (fitted.history[i].test_loss for i in (0, -1)), kept_wide.history[-1].test_loss
    assert abs(last - wide) < 0.2 * (first - wide)
    assert {p.dtype for p in jax.tree.leaves(fitted.params)} == {np.dtype(np.float32)}


test_refused = refusals(
    {
        "clip is '0', expected a positive number, such as 1.0, leaf:1.0 or value:0.5": {"clip": "0"},
        "clip is 'leaf:a', expected a positive number, such as 1.0, leaf:1.0 or value:0.5": {"clip": "leaf:a"},
        "unknown kind of clipping 'leave'; the nearest is leaf": {"clip": "leave:1"},
        "accumulate is 0, expected at least 1 batch": {"accumulate": 0},
        "average is 1, expected a decay from 0 to below 1, such as 0.999": {"average": 1.0},
    },
    lambda updates: make_optimizer("sgd", updates=Updates(**updates), steps=1),
)


def test_a_name_that_nothing_has_is_refused():
    with pytest.raises(ValueError) as error:
        require_named(("0.*", "3.W"), start(J, optax.sgd(RATE), DATA).params)
    assert str(error.value) == "no parameter is called '3.W'; there is 0.W, 0.b, 2.W, 2.b"


def test_where_all_is_frozen_nothing_is_left_to_train():
    params = start(J, optax.sgd(RATE), DATA).params
    require_trained((), params)
    require_trained(("*.W", "0.b"), params)
    with pytest.raises(ValueError) as error:
        require_trained(("*.W", "*.b"), params)
    assert str(error.value) == "freeze is '*.W,*.b': every parameter is frozen, and none is left to train"
