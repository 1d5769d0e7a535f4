"""An output that is not used has cotangent `None`, exactly zero, through every combinator and the bridge."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpref
from bpref import (
    eigh,
    fan_in,
    fan_out,
    identity,
    linear,
    lstm,
    objective,
    parallel,
    remat,
    residual,
    reversible,
    scan,
    serial,
    shared,
    square,
    stateful,
    tanh,
)
from bpref.cotangents import with_zeros
from tests.conftest import SEED

KEY = jax.random.key(SEED)


def pair() -> bpref.Layer:
    """A layer from (N, 3) to two of (N, 3)."""
    return fan_out(serial(linear(3), tanh()), linear(3))


def of_pairs() -> bpref.Layer:
    return parallel(linear(3), serial(linear(3), tanh()))


def crossing() -> bpref.Layer:
    """What of a pair reads the first in both outputs: from the second's cotangent the first's comes."""
    return fan_out(serial(parallel(linear(3), linear(3)), fan_in()), parallel_second())


def parallel_second() -> bpref.Layer:
    return serial(parallel(identity(), tanh()), fan_in("product"))


NETWORKS = {
    "fan_out": pair(),
    "named": fan_out(b=serial(linear(3), tanh()), a=linear(3)),
    "parallel": serial(fan_out(identity(), identity()), of_pairs()),
    "residual of pairs": serial(fan_out(identity(), identity()), residual(of_pairs())),
    "scan of pairs": serial(fan_out(identity(), identity()), scan(of_pairs(), 3)),
    "scan that crosses": serial(fan_out(identity(), identity()), scan(crossing(), 3)),
    "remat": remat(pair()),
    "reversible": serial(fan_out(identity(), identity()), reversible(serial(linear(3), tanh()), linear(3), 2)),
    "two objectives": serial(
        fan_out(linear(3), linear(3)),
        parallel(
            serial(fan_out(identity(), identity()), objective(tanh(), square("batch_mean"))),
            serial(fan_out(identity(), tanh()), objective(linear(3), square("batch_mean"))),
        ),
    ),
    "shared": shared(fan_out(a=linear(3), b=serial(first=linear(3), second=tanh())), ("a.W", "b.first.W")),
}


def wanted(dy, which):
    """The parts of a pair of cotangents that are used, `None` for the others, and zeros in their place."""
    parts = list(dy.items()) if isinstance(dy, dict) else list(enumerate(dy))
    none = [d if used else None for (_, d), used in zip(parts, which, strict=True)]
    zero = [d if used else jax.tree.map(jnp.zeros_like, d) for (_, d), used in zip(parts, which, strict=True)]
    if isinstance(dy, dict):
        return tuple(dict(zip(dy, v, strict=True)) for v in (none, zero))
    return tuple(none), tuple(zero)


def assert_same(came, expected, args) -> None:
    came, expected = (jax.tree.leaves(with_zeros(v, args)) for v in (came, expected))
    assert len(came) == len(expected)
    for a, b in zip(came, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("which", [(True, False), (False, True), (False, False)], ids=str)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_none_is_zero_through_every_combinator(network, which):
    with jax.enable_x64(True):
        x = jax.random.normal(KEY, (4, 3), jnp.float64)
        params = network.init(KEY, x)
        y, cache = network.forward(params, x)
        none, zero = wanted(jax.tree.map(jnp.cos, y), which)
        came, expected = network.backward(params, cache, none), network.backward(params, cache, zero)
        assert_same(came, expected, (params, x))
        assert jax.tree.structure(came[0]) == jax.tree.structure(params)


def test_a_layer_with_state_takes_none():
    network = stateful(fan_out(serial(linear(3), bpref.batch_norm()), serial(linear(3), bpref.dropout(0.5))))
    with jax.enable_x64(True):
        x = jax.random.normal(KEY, (4, 3), jnp.float64)
        params, state = bpref.begin(network, KEY, x)
        given = bpref.With(x, state)
        (y, _), _ = network.forward(params, given)
        none, zero = wanted(jax.tree.map(jnp.cos, y), (False, True))
        _, dparams, dx = bpref.backpropagate(network, params, given, none)
        _, dparams_zero, dx_zero = bpref.backpropagate(network, params, given, zero)
        assert_same((dparams, dx.x), (dparams_zero, dx_zero.x), (params, x))


def counting(calls: list) -> bpref.Layer:
    """A layer that somebody wrote, which notes the cotangents that it is given."""

    def backward(params, cache, dy):
        calls.append(dy)
        return (), dy

    return bpref.Layer(bpref.layer.no_params, lambda params, x: (x, ()), backward, "counting")


def test_the_bridge_says_which_outputs_are_not_used():
    calls: list = []
    apply = bpref.as_function(fan_out(linear(3), serial(counting(calls), linear(3))))
    x = jnp.ones((2, 3))
    params = fan_out(linear(3), serial(counting([]), linear(3))).init(KEY, x)
    d = jax.grad(lambda p: jnp.sum(apply(p, x)[0]))(params)
    assert not calls, "the part that is not used has no work"
    assert not np.any(d[1][1].W)
    assert np.any(d[0].W)
    jax.grad(lambda p: jnp.sum(apply(p, x)[1]))(params)
    assert len(calls) == 1


def test_eigenvalues_alone_need_no_gap_and_one_product():
    apply = bpref.as_function(eigh())

    def energy(A):
        return jnp.sum(apply((), A)[0] ** 2)

    program = str(jax.make_jaxpr(jax.grad(energy))(jnp.eye(3)))
    assert program.count("dot_general") == 1
    assert program.count(" div ") == 1, "that of the symmetric part"
    np.testing.assert_allclose(jax.grad(energy)(jnp.diag(jnp.array([2.0, 2.0, 1.0]))), np.diag([4.0, 4.0, 2.0]))


def test_a_recurrence_whose_state_is_not_used():
    layer = lstm(4)
    with jax.enable_x64(True):
        x = jax.random.normal(KEY, (2, 5, 3), jnp.float64)
        params = layer.init(KEY, x)
        y, cache = layer.forward(params, x)
        dy = y._replace(state=None)
        zero = y._replace(state=jax.tree.map(jnp.zeros_like, y.state))
        assert_same(layer.backward(params, cache, dy), layer.backward(params, cache, zero), (params, x))
        with_c = y._replace(y=None, state=y.state._replace(h=None))
        assert np.any(layer.backward(params, cache, with_c)[1])


def test_what_is_not_used_is_updated_as_by_a_gradient_of_zero(standard_promotion):
    network = pair()
    optimizer = optax.adam(0.1)
    updating = bpref.map_leaves(bpref.update_in_backward(optimizer), network)
    x = jnp.ones((2, 3))
    updated = updating.init(KEY, x)
    params = network.init(KEY, x)
    state = optimizer.init(params)
    for which in ((True, True), (True, False)):  # what is known from the first step moves on in the second
        y, cache = updating.forward(updated, x)
        dy, _ = wanted(y, which)
        updated, _ = updating.backward(updated, cache, dy)
        y, cache = network.forward(params, x)
        _, zero = wanted(y, which)
        updates, state = optimizer.update(network.backward(params, cache, zero)[0], state, params)
        params = optax.apply_updates(params, updates)
    for a, b in zip(jax.tree.leaves(bpref.params_of(updated)), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_leaves_of_a_network_are_checked_where_an_output_is_not_used():
    network = serial(pair(), parallel(identity(), counting([])), fan_out(parallel(identity(), tanh()), of_pairs()))
    x = jnp.ones((2, 3))
    y, _ = network.forward(network.init(KEY, x), x)
    dy = ((jnp.ones_like(y[0][0]), None), None)
    reports = bpref.check_leaves(network, network.init(KEY, x), x, dy)
    assert max(report.error for report in reports) < 1e-10


def test_dy_may_be_none_in_part_and_not_of_another_tree():
    layer = pair()
    x = jnp.ones((2, 3))
    params = layer.init(KEY, x)
    _, _, dx = bpref.backpropagate(layer, params, x, (None, x))
    assert dx.shape == x.shape
    with pytest.raises(ValueError, match="fan_out: dy has the tree"):
        bpref.backpropagate(layer, params, x, (None, None, x))
