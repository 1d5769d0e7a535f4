"""The update by sweeps is that of the whole gradient, clipped by optax, in float64 to the last digits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpref
from tests.conftest import SEED
from tests.refusing import refusals
from tests.rules.sweeping import in_one_program
from tests.transforms.compositions import COMPOSITIONS, N, close

pytestmark = pytest.mark.usefixtures("standard_promotion")

OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": optax.adamw(0.1, eps=1e-2),
    "adagrad": optax.adagrad(0.1),
    "scheduled": optax.rmsprop(optax.cosine_decay_schedule(0.1, 10), eps=1e-2),
}
MADE = {
    name: (COMPOSITIONS[name], optimizer)
    for name, optimizer in zip(
        ("a convnet", "a tied GPT with its loss", "one block for all", "reversible"), OPTIMIZERS.values(), strict=False
    )
}


def started(J, optimizer, x):
    return bpref.map_leaves(bpref.update_in_backward(optimizer), J).init(jax.random.key(SEED), x)


def whole_step(J, optimizer, params, state, x):
    """By the gradient of all, and optax."""
    y, dparams, _ = bpref.backpropagate(J, params, x)
    updates, state = optimizer.update(dparams, state, params)
    return optax.apply_updates(params, updates), state, (y, optax.tree.norm(dparams))


def small():
    """A scan of remat, in which all turns have one W and b, between two layers that are tied."""
    block = bpref.scan(bpref.remat(bpref.residual(bpref.linear(4), bpref.tanh())), 3)
    network = bpref.serial(bpref.linear(4), block, bpref.scan(bpref.linear(4), 2), bpref.linear(4))
    J = bpref.objective(bpref.shared(network, ("0.W", "3.W"), "1"), bpref.square("batch_mean"))
    return J, tuple(np.random.default_rng(SEED).normal(size=(2, N, 4)))


@pytest.mark.parametrize(("made", "optimizer"), MADE.values(), ids=MADE)
def test_two_steps_of_micro_batches_equal_two_of_the_whole_gradient_clipped(made, optimizer):
    with jax.enable_x64(True):
        J, x = made()
        x, bound = jax.tree.map(jnp.asarray, x), 0.05
        begun = started(J, optimizer, x)
        clipped = optax.chain(optax.clip_by_global_norm(bound), optimizer)
        whole = in_one_program(lambda params, state, x: whole_step(J, clipped, params, state, x))
        by_sweeps = in_one_program(lambda begun, x: bpref.update_by_sweeps(J, optimizer, begun, x, bound, N))
        params = bpref.params_of(begun)
        state = clipped.init(params)
        for _ in range(2):
            params, state, (y, norm) = whole(params, state, x)
            swept = by_sweeps(begun, x)
            begun = swept.updated
            assert norm > bound
            close([swept.y, swept.norm], [y, norm], 1e-12)
    close(bpref.params_of(begun), params, 1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_two_steps_equal_those_of_optax_with_all_optimizers_whole_and_accumulated(optimizer):
    with jax.enable_x64(True):
        J, x = small()
        begun, bound = started(J, optimizer, x), 0.05
        clipped = optax.chain(optax.clip_by_global_norm(bound), optimizer)
        accumulated = optax.MultiSteps(clipped, N)

        @in_one_program
        def every(begun, x):
            once = parts = bpref.Swept(None, begun, None)
            params = in_parts = bpref.params_of(begun)
            state, of_parts = clipped.init(params), accumulated.init(params)
            for _ in range(2):
                params, state, _ = whole_step(J, clipped, params, state, x)
                for m in range(N):
                    own = jax.tree.map(lambda v, m=m: v[m : m + 1], x)
                    in_parts, of_parts, _ = whole_step(J, accumulated, in_parts, of_parts, own)
                once, parts = (
                    bpref.update_by_sweeps(J, optimizer, swept.updated, x, bound, k)
                    for swept, k in ((once, 1), (parts, N))
                )
            return params, in_parts, *(bpref.params_of(s.updated) for s in (once, parts))

        expected, by_optax, *got = jax.device_get(every(begun, jax.tree.map(jnp.asarray, x)))
    close(got, [expected, expected], 1e-12)
    close(by_optax, expected, 1e-5)  # it adds up in float32


def test_a_gradient_within_the_bound_is_not_touched_and_without_one_no_norm_is_taken():
    J, x = COMPOSITIONS["branches"]()
    x = jax.tree.map(jnp.float32, x)
    optimizer = optax.adam(0.1)
    begun = started(J, optimizer, x)
    updating = bpref.map_leaves(bpref.update_in_backward(optimizer), J)
    expected = bpref.backpropagate(updating, begun, x)[1]
    within, free = (bpref.update_by_sweeps(J, optimizer, begun, x, bound) for bound in (1e6, None))
    jax.tree.map(np.testing.assert_array_equal, (within.updated, free.updated), (expected, expected))
    assert free.norm is None


def test_bfloat16_gradients_are_added_up_in_float32_and_rounded_once():
    """512 gradients of 1 and 2^-8 by turns: in bfloat16 the sum stops at 256."""
    J = bpref.objective(bpref.linear(1, bias=False), bpref.absolute())
    X = jnp.asarray(np.tile([[1.0], [2.0**-8]], (256, 1)), jnp.bfloat16)
    x = X, jnp.full((512, 1), -1e3, jnp.bfloat16)
    optimizer = optax.sgd(1.0)
    begun = jax.tree.map(jnp.zeros_like, started(J, optimizer, x))
    swept = bpref.update_by_sweeps(J, optimizer, begun, x, micro_batches=512)
    (W,) = jax.tree.leaves(bpref.params_of(swept.updated))
    assert W.dtype == jnp.bfloat16
    assert float(W[0, 0]) == -float(jnp.bfloat16((1 + 2.0**-8) / 2))


def test_the_state_goes_through_the_micro_batches():
    optimizer = optax.sgd(0.1)
    network = bpref.serial(bpref.linear(4), bpref.scan(bpref.serial(bpref.linear(4), bpref.dropout(0.5)), 2))
    J = bpref.stateful(bpref.objective(network, bpref.square("batch_mean")))
    given = bpref.With(tuple(jnp.asarray(v, jnp.float32) for v in np.random.default_rng(SEED).normal(size=(2, 4, 4))))
    begun, state = bpref.begin(bpref.map_leaves(bpref.update_in_backward(optimizer), J), jax.random.key(0), given)

    def both(begun, state):
        (value, after), updated, norm = bpref.update_by_sweeps(
            J, optimizer, begun, given._replace(state=state), 0.1, micro_batches=2
        )
        params, going, each = bpref.params_of(begun), state, []
        for m in range(2):
            own = jax.tree.map(lambda v, m=m: v[2 * m : 2 * m + 2], given)
            (J_m, going), dparams, _ = bpref.backpropagate(J, params, own._replace(state=going))
            each.append((J_m, dparams))
        mean_J, mean = jax.tree.map(lambda a, b: (a + b) / 2, *each)
        share = 0.1 / optax.tree.norm(mean)
        expected = jax.tree.map(lambda p, g: p - 0.1 * share * g, params, mean)
        return (bpref.params_of(updated), value, 0.1 / norm), (expected, mean_J, share), after, going

    got, expected, after, going = in_one_program(both)(begun, state)
    close(jax.device_get(got), jax.device_get(expected), 1e-5)
    keys = [[jax.random.key_data(k) for k in jax.tree.leaves(s)] for s in (after, going)]
    jax.tree.map(np.testing.assert_array_equal, *keys)


def test_inside_scan_nothing_of_the_size_of_the_parameters_is_made_beside_them():
    """Parameters and both of adam's moments are written over; gradient, updates and copies of these never exist."""
    L, D = 8, 128
    J = bpref.objective(bpref.scan(bpref.residual(bpref.linear(D), bpref.tanh()), L), bpref.square("batch_mean"))
    x = jnp.ones((4, D)), jnp.ones((4, D))
    optimizer = optax.adam(0.1)
    begun = started(J, optimizer, x)
    size = sum(p.nbytes for p in jax.tree.leaves(bpref.params_of(begun)))
    updating = bpref.map_leaves(bpref.update_in_backward(optimizer), J)
    for f, sums in (
        (lambda u: bpref.backpropagate(updating, u, x)[:2], 0),
        (lambda u: bpref.update_by_sweeps(J, optimizer, u, x, 1.0), 0),
        (lambda u: bpref.update_by_sweeps(J, optimizer, u, x, 1.0, micro_batches=2), 1),
    ):
        memory = jax.jit(f, donate_argnums=0).lower(begun).compile().memory_analysis()
        assert memory.alias_size_in_bytes >= 3 * size
        assert memory.temp_size_in_bytes < (sums + 0.7) * size  # an unrolled layer's slices and activations


BAD_CALLS = {
    "update_by_sweeps: bound is 0.0, expected a positive number or None": {"bound": 0.0},
    "update_by_sweeps: micro_batches is 0, expected a positive integer": {"micro_batches": 0},
    "update_by_sweeps: x has arrays of shapes (3, 4), (3, 3), expected (N, ...) of one N that 2 micro-batches...": {
        "micro_batches": 2
    },
    "update_by_sweeps: this optimizer's update of one parameter depends on another parameter's gradient...": {
        "optimizer": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    },
    "TypeError: update_by_sweeps: optimizer is an int, expected an optax transformation such as optax.sgd(0.1)": {
        "optimizer": 3
    },
    "TypeError: update_by_sweeps: layer is an int, expected a Layer, one that is made, as by ...": {"layer": 3},
}


def updated_by_sweeps(wrong):
    J, x = COMPOSITIONS["branches"]()
    x, optimizer = jax.tree.map(np.float32, x), optax.sgd(0.1)
    given = {"layer": J, "optimizer": optimizer, "updated": started(J, optimizer, x), "x": x} | wrong
    return bpref.update_by_sweeps(**given)


test_bad_calls_are_refused = refusals(BAD_CALLS, lambda wrong: updated_by_sweeps(wrong))
