"""What is rewritten to fit has the same gradient, keeps the bytes that it says, and costs the least there is."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.compose.flops import flops
from bpref.compose.offload import OffloadCache
from tests.conftest import SEED
from tests.refusing import refusals
from tests.rules.sweeping import in_one_program
from tests.transforms.compositions import COMPOSITIONS, close

RNG = np.random.default_rng(SEED)


def bytes_of(tree):
    return sum(v.size * v.dtype.itemsize for v in jax.tree.leaves(tree))


def kept(network, params, x):
    """The bytes of all caches on the device."""
    cache = jax.eval_shape(network.forward, params, x)[1]
    on_device = jax.tree.map(
        lambda c: None if isinstance(c, OffloadCache) else c, cache, is_leaf=lambda c: isinstance(c, OffloadCache)
    )
    return bytes_of(on_device)


def mlp():
    """Layers of several widths, so that no two choices are alike; a scan among them."""
    inner = bpref.serial(bpref.layer_norm(), bpref.linear(6), bpref.gelu())
    layers = [bpref.linear(12), bpref.gelu(), bpref.scan(bpref.residual(inner), 3), bpref.linear(6)]
    network = bpref.serial(bpref.linear(4), bpref.gelu(), bpref.linear(6), *layers[2:3], bpref.gelu(), *layers[:2])
    J = bpref.objective(bpref.serial(network, bpref.linear(3)), bpref.square("batch_mean"))
    return J, (RNG.normal(size=(5, 4)), RNG.normal(size=(5, 3)))


def of_images_as_pytorch_has_them():
    network = bpref.channels_first(bpref.convolution(4), bpref.relu(), bpref.convolution(4), bpref.gelu())
    J = bpref.objective(bpref.serial(network, bpref.flatten(), bpref.linear(3)), bpref.square("batch_mean"))
    return J, (RNG.normal(size=(2, 3, 6, 5)), RNG.normal(size=(2, 3)))


NETWORKS = {"an MLP": mlp, "channels first": of_images_as_pytorch_has_them} | {
    name: COMPOSITIONS[name] for name in ("a convnet", "tied")
}


@pytest.mark.parametrize("rate", [None, 1.0], ids=["recompute", "offload"])
@pytest.mark.parametrize("made", NETWORKS.values(), ids=NETWORKS)
def test_the_gradient_is_the_same_and_the_bytes_are_those_of_the_caches(made, rate):
    with jax.enable_x64(True):
        J, x = made()
        x = jax.tree.map(jnp.asarray, x)
        with pytest.raises(ValueError) as refused:
            bpref.fit_memory(J, x, bytes=1, flops_per_byte=rate)
        start, least = str(refused.value).rsplit(" ", 1)
        assert start == "fit_memory: bytes is 1, and nothing fits; the least that would is"
        plan = bpref.fit_memory(J, x, bytes=int(least.replace(",", "")), flops_per_byte=rate)
        with pytest.raises(ValueError):
            bpref.fit_memory(J, x, bytes=plan.peak - 1, flops_per_byte=rate)

        @in_one_program
        def both(x):
            params = [f.init(jax.random.key(SEED), x) for f in (J, plan.network)]
            return params, [bpref.backpropagate(f, params[0], x) for f in (J, plan.network)]

        (params, others), (swept, by_plan) = both(x)
        on_device = kept(plan.network, params, x)
    assert plan.bytes == on_device <= plan.peak == int(least.replace(",", ""))
    assert {"recompute", "offload"} & {c.how for c in plan.choices}
    jax.tree.map(np.testing.assert_array_equal, others, params)
    close(by_plan, swept, 1e-12)


def test_what_has_state_is_looked_into_and_drops_what_it_dropped():
    block = bpref.serial(bpref.linear(6), bpref.dropout(0.5), bpref.layer_norm())
    network = bpref.serial(
        first=bpref.linear(6), drop=bpref.dropout(0.5), act=bpref.gelu(), blocks=bpref.scan(block, 2)
    )
    J = bpref.stateful(bpref.objective(network, bpref.square("batch_mean")))
    given = bpref.With((jnp.ones((4, 6)), jnp.ones((4, 6))))
    params, state = in_one_program(lambda key: bpref.begin(J, key, given))(jax.random.key(SEED))
    x = given._replace(state=state)
    plan = bpref.fit_memory(J, x, bytes=int(0.8 * bpref.fit_memory(J, x, bytes=10**9).peak))
    assert plan.choices[0].path == "0.first linear to 0.act gelu"
    assert plan.bytes == kept(plan.network, params, x)
    swept, by_plan = in_one_program(lambda p, x: [bpref.backpropagate(f, p, x) for f in (J, plan.network)])(params, x)
    (value, after), *gradients = swept
    (value_too, after_too), *gradients_too = by_plan
    close([value_too, *gradients_too], [value, *gradients], 1e-6)
    for a, b in zip(jax.tree.leaves(after_too), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(jax.random.key_data(a), jax.random.key_data(b))


def test_what_stands_around_layers_is_looked_into_with_a_state_too():
    inner = bpref.serial(bpref.linear(6), bpref.dropout(0.5), bpref.gelu(), bpref.linear(4))
    network = bpref.stateful(bpref.unbatched(bpref.residual(inner)))
    given = bpref.With(jnp.ones(4))
    _, state = in_one_program(lambda key: bpref.begin(network, key, given))(jax.random.key(SEED))
    plan = bpref.fit_memory(network, given._replace(state=state), bytes=10**9)
    assert [choice.path for choice in plan.choices] == ["0 linear", "1 dropout", "2 gelu", "3 linear"]
    assert [choice.path for choice in plan.choices] == bpref.leaf_paths(network)


def by_trying_all(caches, inputs, works, most):
    """The least cost of all ways to cut layers in series into those kept and runs that are made again."""
    n, best = len(caches), np.inf
    for cuts in itertools.product([False, True], repeat=n - 1):
        ends = [i + 1 for i, cut in enumerate(cuts) if cut] + [n]
        runs = list(zip([0, *ends[:-1]], ends, strict=True))
        for again in itertools.product([False, True], repeat=len(runs)):
            here = peak = cost = 0
            for (a, b), made_again in zip(runs, again, strict=True):
                held = inputs[a] if made_again else sum(caches[a:b])
                peak = max(peak, here + sum(caches[a:b]) + (inputs[a] if made_again else 0))
                here, cost = here + held, cost + (sum(works[a:b]) if made_again else 0)
            best = min(best, cost) if peak <= most else best
    return best


def test_no_other_choice_that_fits_costs_less():
    layers = [bpref.linear(9), bpref.gelu(), bpref.layer_norm(), bpref.linear(3), bpref.gelu(), bpref.linear(7)]
    network, x = bpref.serial(*layers), jnp.ones((4, 5))
    params = network.init(jax.random.key(0), x)
    caches, inputs, works = [], [], []
    for layer, p in zip(layers, params, strict=True):
        y, cache = jax.eval_shape(layer.forward, p, x)
        caches, inputs = [*caches, bytes_of(cache)], [*inputs, bytes_of(x)]
        works.append(flops(layer.forward, p, x))
        x = y
    costs = set()
    for most in range(300, sum(caches) + 1, 60):
        expected = by_trying_all(caches, inputs, works, most)
        if np.isinf(expected):
            with pytest.raises(ValueError, match="nothing fits"):
                bpref.fit_memory(network, jnp.ones((4, 5)), bytes=most)
        else:
            costs.add(plan_cost := bpref.fit_memory(network, jnp.ones((4, 5)), bytes=most).cost)
            assert plan_cost == expected
    assert len(costs) == 3


def test_it_says_what_it_chose():
    network = bpref.serial(up=bpref.linear(8), act=bpref.gelu(), down=bpref.linear(2))
    plan = bpref.fit_memory(network, jax.ShapeDtypeStruct((4, 3), jnp.float32), bytes=300)
    assert str(plan) == (
        "up linear to act gelu  recompute               48 bytes    4.80e+02 flops\n"
        "down linear            keep                   128 bytes    0.00e+00 flops\n"
        "176 bytes of caches, 224 at most; 78% of a forward's flops in addition"
    )


def test_flops_are_those_of_products_in_loops_and_branches():
    A, W = jnp.ones((4, 5)), jnp.ones((5, 5))
    x, k = jnp.ones((2, 8, 8, 3)), jnp.ones((6, 3, 3, 3))

    def loop(A):
        return jax.lax.scan(lambda A, _: (A @ W, None), A, None, 7)[0]

    def either(A):
        return jax.lax.cond(A[0, 0] > 0, lambda A: A @ W, lambda A: A, A)

    layer = bpref.convolution(6, (3, 3), bias=False)
    assert flops(lambda A: A @ W, A) == 2 * 4 * 5 * 5
    assert flops(loop, A) == 7 * 2 * 4 * 5 * 5
    assert flops(either, A) >= 2 * 4 * 5 * 5
    assert flops(layer.forward, bpref.ConvolutionParams(k, None), x) == 2 * (2 * 8 * 8 * 6) * (3 * 3 * 3)


BAD_CALLS = {
    "fit_memory: bytes is 0, expected a positive number": {"bytes": 0},
    "fit_memory: bytes is '1 GB', expected a positive number": {"bytes": "1 GB"},
    "fit_memory: flops_per_byte is 0.0, expected a positive number or None": {"flops_per_byte": 0.0},
    "TypeError: fit_memory: network is an int, expected a Layer, one that is made, as by linear(64)": {"network": 3},
    "TypeError: fit_memory: x is a str, expected an array": {"x": "x"},
}


test_bad_calls_are_refused = refusals(
    BAD_CALLS, lambda wrong: bpref.fit_memory(**{"network": bpref.tanh(), "x": jnp.ones(3), "bytes": 100} | wrong)
)
