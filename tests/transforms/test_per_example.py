"""Per-example gradients and their norms equal what they are defined as, for every rule and every combinator."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpref
from bpref.layer import no_params, select
from bpref.rule import Key
from bpref.rules import RULES
from bpref.verify import oracle
from bpref.verify.rules.draw import axes_of, draw, hyperparameters, is_spec, sized
from tests.conftest import SEED
from tests.rules.sweeping import in_one_program

RNG = np.random.default_rng(SEED)
N, T, V, D = 3, 4, 5, 4
EXAMPLES = {"B", "N"}
"""What cases call the axis of the examples."""


def has_examples_and_params(rule, case) -> bool:
    """Whether a case has params and every array of its x begins with the examples; a PRNG key has none."""
    layer = rule.make(**hyperparameters(case, sized(case, dict.fromkeys(axes_of(case), 3))))
    specs = jax.tree.leaves(case.x, is_leaf=is_spec)
    first = all(set(spec.axes.split()[:1]) & EXAMPLES or isinstance(spec, Key) for spec in specs)
    return first and layer.init.__name__ != no_params.__name__


CASES = {
    f"{rule.name}: {case.name}": (rule, case)
    for rule in RULES.values()
    for case in rule.cases
    if has_examples_and_params(rule, case)
}


def close(got, expected, rtol=1e-10):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1.0, float(np.abs(b).max(initial=0))))


def squares(gradients):
    return sum(np.sum(np.abs(v) ** 2, tuple(range(1, v.ndim))) for v in jax.tree.leaves(gradients))


@pytest.mark.parametrize(("rule", "case"), CASES.values(), ids=CASES)
def test_every_rule_gives_what_the_oracle_gives_for_each_example_or_says_what_couples_them(rule, case):
    example = draw(rule, case, sized(case, {axis: 2 if axis in EXAMPLES else 3 for axis in axes_of(case)}), SEED)
    layer, params, x = example.layer, example.params, example.x
    dy = jax.tree.map(lambda v: v[0], example.dys)
    with jax.enable_x64(True):
        mask = bpref.trainable(layer, params, x)
    has_params = any(jax.tree.leaves(mask))
    if any(v.ndim == 0 for v in jax.tree.leaves(dy)):
        if has_params:
            with pytest.raises(ValueError, match=r"(has params, and its output no axis|together)"):
                bpref.map_leaves(bpref.per_example_norms, layer).forward(params, x)
        return

    def every(params, x, dy):
        y, cotangents = oracle.with_cotangents(example.reference, params, x)
        n = len(jax.tree.leaves(y)[0])
        alone = [cotangents(jax.tree.map(lambda d, i=i: jnp.zeros_like(d).at[i].set(d[i]), dy)) for i in range(n)]
        if not has_params or layer.couples:
            return alone, None, None
        swept = [
            bpref.backpropagate(bpref.map_leaves(f, layer), params, x, dy)[1:]
            for f in (lambda leaf: leaf, bpref.per_example_gradients, bpref.per_example_norms)
        ]
        return alone, swept, bpref.squared_norms(swept[2][0])

    with jax.enable_x64(True):
        alone, swept, norms = in_one_program(every)(params, x, dy)
    to_others = [np.delete(d, i, 0) for i, (_, dx) in enumerate(alone) for d in jax.tree.leaves(dx)]
    assert any(d.any() for d in to_others) == bool(layer.couples), "y of an example depends on others"
    if swept is None:
        return
    (_, dx), (gradients, dx_too), (_, dx_again) = swept
    expected = jax.tree.map(lambda *each: np.stack(each), *(select(mask, dparams) for dparams, _ in alone))
    close(jax.tree.leaves(gradients), jax.tree.leaves(expected), 1e-9)
    close(norms, squares(expected), 1e-9)
    for other in (dx_too, dx_again):
        close(other, dx)


def images():
    block = bpref.residual(bpref.convolution(3, (3, 3), padding="same"), bpref.group_norm(1), bpref.relu())
    network = bpref.serial(
        stem=bpref.convolution(3, (3, 3), padding="same"),
        blocks=bpref.scan(bpref.remat(block), 2),
        pool=bpref.global_pool(),
        head=bpref.linear(2),
    )
    J = bpref.objective(network=network, loss=bpref.softmax_cross_entropy())
    return J, (RNG.normal(size=(N, 4, 4, 2)), np.arange(N) % 2)


def branches():
    sides = bpref.fan_out(bpref.serial(bpref.linear(3), bpref.tanh()), bpref.linear(3, bias=False))
    network = bpref.serial(sides, bpref.parallel(bpref.linear(3), bpref.layer_norm()), bpref.fan_in("sum"))
    return bpref.objective(network, bpref.square()), (RNG.normal(size=(N, D)), RNG.normal(size=(N, 3)))


def gpt(head, loss=bpref.sequence_cross_entropy):
    block = bpref.serial(
        attention=bpref.residual(bpref.rms_norm(), bpref.multi_head_attention(2, causal=True)),
        mlp=bpref.residual(norm=bpref.rms_norm(), up=bpref.linear(6), act=bpref.gelu(), down=bpref.linear(D)),
    )
    network = bpref.serial(embed=bpref.embedding(V, D), blocks=bpref.scan(bpref.remat(block), 2), head=head)
    tokens = RNG.integers(V, size=(N, T))
    return bpref.objective(network=network, loss=loss()), (tokens, (np.roll(tokens, -1, 1), np.ones((N, T), bool)))


def tied():
    J, x = gpt(bpref.linear(V, bias=False))
    return bpref.shared(J, ("network.embed.W", "network.head.W")), x


def universal():
    J, x = gpt(bpref.linear(V))
    return bpref.shared(J, "network.blocks"), x


def reversed_again():
    f = bpref.serial(bpref.layer_norm(), bpref.linear(D))
    network = bpref.serial(
        bpref.fan_out(bpref.identity(), bpref.linear(D)), bpref.reversible(f, f, 2), bpref.fan_in("sum")
    )
    return bpref.objective(network, bpref.square()), (RNG.normal(size=(N, D)), RNG.normal(size=(N, D)))


COMPOSITIONS = {
    "a convnet": images,
    "branches": branches,
    "a scanned GPT": lambda: gpt(bpref.linear(V)),
    "tied": tied,
    "one block for all": universal,
    "reversible": reversed_again,
}
EVERY_COMPOSITION = pytest.mark.parametrize("made", COMPOSITIONS.values(), ids=COMPOSITIONS)


def gradients_of(made):
    """A composition, its x and params, its gradient, and by autodiff of each example alone its share in that."""
    J, x = made()
    params = J.init(jax.random.key(SEED), x)

    def each(params, x):
        def alone(i):
            own = jax.tree.map(lambda v: v[i][None], x)
            return oracle.with_cotangents(lambda p: J.forward(p, own)[0] / N, params)[1](jnp.ones(()))[0]

        return jax.vmap(alone)(jnp.arange(N)), bpref.backpropagate(J, params, x)[1]

    return J, x, params, *jax.device_get(in_one_program(each)(params, jax.tree.map(jnp.asarray, x)))


def examples_first(got, expected):
    """The axis of the examples before that of the turns, of which there are not as many."""
    return got if got.shape == expected.shape else np.moveaxis(got, 1, 0)


@EVERY_COMPOSITION
def test_every_composition_gives_the_gradient_and_norm_of_each_example(made):
    with jax.enable_x64(True):
        J, x, params, expected, gradient = gradients_of(made)

        def both(params, x):
            transformed = (bpref.map_leaves(f, J) for f in (bpref.per_example_gradients, bpref.per_example_norms))
            gradients, norms = (bpref.backpropagate(f, params, x)[1] for f in transformed)
            return gradients, bpref.squared_norms(norms)

        gradients, norms = in_one_program(both)(params, jax.tree.map(jnp.asarray, x))

    close(jax.tree.map(examples_first, gradients, expected), expected)
    close(jax.tree.map(lambda v: v.sum(0), expected), gradient)
    close(norms, squares(expected))


@EVERY_COMPOSITION
def test_every_composition_clips_the_gradient_of_each_example(made):
    with jax.enable_x64(True):
        J, x, params, expected, _ = gradients_of(made)
        norms = np.sqrt(squares(expected))
        bound = float(np.median(norms))

        def both(params, x):
            return [bpref.clipped_gradient(J, params, x, bound, by_leaf=by_leaf) for by_leaf in (False, True)]

        whole, by_leaf = jax.device_get(in_one_program(both)(params, jax.tree.map(jnp.asarray, x)))
    assert (norms > bound).any()
    assert (norms < bound).any()
    close(whole.norms, norms)
    close(whole.dparams, jax.tree.map(lambda g: np.tensordot(np.minimum(1, bound / norms), g, 1), expected))

    def of_leaf(norms, gradients):
        turns = norms.ndim - 1
        own = np.sqrt(sum(np.sum(g**2, tuple(range(1 + turns, g.ndim))) for g in jax.tree.leaves(gradients)))
        close(np.moveaxis(norms, -1, 0), own)
        share = bound / np.maximum(own, bound)
        return jax.tree.map(lambda g: np.sum(share.reshape(*own.shape, *(1,) * (g.ndim - own.ndim)) * g, 0), gradients)

    close(by_leaf.dparams, jax.tree.map(of_leaf, by_leaf.norms, expected))


def classifier():
    J = bpref.objective(bpref.serial(bpref.linear(6), bpref.tanh(), bpref.linear(3)), bpref.softmax_cross_entropy())
    x = RNG.normal(size=(8, 4)).astype(np.float32), np.arange(8) % 3
    return J, x, J.init(jax.random.key(SEED), x)


def test_the_private_gradient_is_that_of_optax(standard_promotion):
    J, x, params = classifier()
    C, n = 2.0, len(x[0])
    _, private, norms = bpref.private_gradient(J, params, x, C / n, 0.0, jax.random.key(0))
    _, each, _ = bpref.backpropagate(bpref.map_leaves(bpref.per_example_gradients, J), params, x)
    rival = optax.contrib.differentially_private_aggregate(C, 0.0, jax.random.key(0))
    expected, _ = rival.update(jax.tree.map(lambda g: n * g, each), rival.init(params))  # type: ignore[arg-type]
    assert 0 < (norms > C / n).sum() < n
    for a, b in zip(jax.tree.leaves(private), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_the_noise_is_that_of_its_multiplier_and_no_two_arrays_have_the_same():
    J, x, params = classifier()
    clipped = bpref.clipped_gradient(J, params, x, 0.5).dparams
    draw = jax.jit(lambda key: bpref.private_gradient(J, params, x, 0.5, 2.0, key).dparams)
    private = [draw(jax.random.key(k)) for k in range(200)]
    noise = [[np.ravel(a - b) for a, b in zip(*map(jax.tree.leaves, (p, clipped)), strict=True)] for p in private]
    for of_array in zip(*noise, strict=True):
        drawn = np.concatenate(of_array)
        assert abs(drawn.std() - 1.0) < 4 / np.sqrt(2 * drawn.size)
        assert abs(drawn.mean()) < 4 / np.sqrt(drawn.size)
    assert abs(np.corrcoef([of[0][0] for of in noise], [of[2][0] for of in noise])[0, 1]) < 0.3


def test_what_is_dropped_for_the_batch_is_dropped_for_each_example():
    """A PRNG key draws for all examples together: cut into examples it would draw the same for each."""
    attention = bpref.stateful(bpref.multi_head_attention(2, dropout=0.5))
    x = jnp.asarray(RNG.normal(size=(N, T, D)), jnp.float32)
    params, state = bpref.begin(attention, jax.random.key(SEED), x)
    given = bpref.With(x, state)
    each = bpref.map_leaves(bpref.per_example_gradients, attention)
    _, gradients, _ = bpref.backpropagate(each, params, given, x)
    for i in range(N):
        alone = jnp.zeros_like(x).at[i].set(x[i])
        _, expected, _ = bpref.backpropagate(attention, params, given, alone)
        for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5)


def test_an_output_that_is_not_used_gives_every_example_a_zero():
    network = bpref.fan_out(bpref.linear(2), bpref.linear(3))
    x = jnp.ones((N, D))
    params = network.init(jax.random.key(0), x)
    dy = (jnp.ones((N, 2)), None)
    for f, shape in ((bpref.per_example_gradients, (N, 3, D)), (bpref.per_example_norms, (N,))):
        _, dparams, _ = bpref.backpropagate(bpref.map_leaves(f, network), params, x, dy)
        unused = jax.tree.leaves(dparams[1])[0]
        assert unused.shape == shape
        assert not unused.any()


BAD_CALLS = {
    "batch statistics": (
        lambda: bpref.map_leaves(bpref.per_example_norms, bpref.stateful(bpref.serial(bpref.batch_norm()))),
        "per_example_norms: batch_norm takes the mean and variance of all examples together, so that no gradient is "
        "one example's; expected layers that treat each by itself, as bpref.evaluation(layer) or layer_norm does",
    ),
    "a loss with params": (
        lambda: bpref.clipped_gradient(
            bpref.fused_linear_cross_entropy(3),
            bpref.FusedLinearCrossEntropyParams(jnp.ones((3, 2)), None),
            (jnp.ones((4, 2)), jnp.zeros(4, int)),
            1.0,
        ),
        "per_example_norms: fused_linear_cross_entropy has params, and its output no axis of examples; ",
    ),
    "no examples": (
        lambda: bpref.map_leaves(bpref.per_example_gradients, bpref.linear(2, bias=False)).forward(
            bpref.LinearParams(jnp.ones((2, 2)), None), jnp.ones(2)
        ),
        "linear: x is taken to have 2 examples in its first axis, and with 3 it is refused; ",
    ),
    "a bound of 0": (
        lambda: bpref.clipped_gradient(*classifier()[:1], (), (), 0.0),
        "clipped_gradient: bound is 0.0, expected a positive number",
    ),
    "less than no noise": (
        lambda: bpref.private_gradient(*classifier()[:1], (), (), 1.0, -1.0, jax.random.key(0)),
        "private_gradient: multiplier is -1.0, expected a number of at least 0",
    ),
    "norms of nothing": (
        lambda: bpref.squared_norms(()),
        "squared_norms: norms have the shapes nothing, expected (..., N) of one N",
    ),
    "no layer": (
        lambda: bpref.clipped_gradient(3, (), (), 1.0),  # type: ignore[arg-type]
        "clipped_gradient: layer is an int, expected a Layer, one that is made, as by ",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_are_refused(call, message):
    with pytest.raises((TypeError, ValueError)) as refused:
        call()
    assert str(refused.value).startswith(message)
