"""Per-example gradients and their norms equal what they are defined as, for every rule and every combinator."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.layer import no_params
from bpref.models.gpt_config import GptConfig
from bpref.rule import Key
from bpref.rules import RULES
from bpref.trained import select
from bpref.transforms import per_example
from bpref.transforms.curvature.squares import squares as squares_of
from bpref.verify import oracle
from bpref.verify.rules.draw import all_of_size, axes_of, draw, hyperparameters, is_spec, sized
from tests.conftest import SEED
from tests.refusing import refusals
from tests.rules.sweeping import in_one_program
from tests.transforms.compositions import (
    EVERY_COMPOSITION,
    RNG,
    D,
    N,
    T,
    V,
    close,
    examples_first,
    gradients_of,
    squares,
)

SQUARES = partial(squares_of, "squares")
EXAMPLES = {"B", "N"}
"""What cases call the axis of the examples."""


def has_examples(case) -> bool:
    """Whether every array of x begins with the examples; a PRNG key has none."""
    specs = jax.tree.leaves(case.x, is_leaf=is_spec)
    return all(set(spec.axes.split()[:1]) & EXAMPLES or isinstance(spec, Key) for spec in specs)


def has_params(rule, case) -> bool:
    layer = rule.make(**hyperparameters(case, all_of_size(case, 3)))
    return layer.init.__name__ != no_params.__name__


OF_EXAMPLES = {f"{r.name}: {c.name}": (r, c) for r in RULES.values() for c in r.cases if has_examples(c)}
CASES = {name: of for name, of in OF_EXAMPLES.items() if has_params(*of)}
LOSSES = {name: of for name, of in OF_EXAMPLES.items() if "loss" in of[0].make.__module__ and name not in CASES}


def sizes_of(case) -> dict[str, int]:
    return sized(case, {axis: 2 if axis in EXAMPLES else 3 for axis in axes_of(case)})


FUSED = "fused_linear_cross_entropy"
"""The loss with params whose examples can be taken apart, where it takes all rows at once."""


@pytest.mark.parametrize(
    "case", [c for c in RULES[FUSED].cases if c.name in ("blocks", "everything")], ids=lambda c: c.name
)
@pytest.mark.parametrize("by_row", [False, True], ids=["vmap", "map"])
def test_the_fused_loss_gives_each_example_its_share_in_the_mean(case, by_row):
    rule, n = RULES[FUSED], 5
    example = draw(rule, case, sized(case, {"N": n, "d": 3, "V": 40 if by_row else 4}), SEED)
    of_sum = hyperparameters(case, {"V": 40 if by_row else 4}) | {"reduction": "sum"}

    def every(params, x):
        counts = jnp.sum(x[1] != of_sum.get("ignored", -1), dtype=jnp.float64)

        def share(i):
            own = (x[0][i][None], x[1][i][None])
            return oracle.gradient(lambda p: rule.reference(p, own, **of_sum) / counts)(params)[0]

        transformed = (
            bpref.map_leaves(f, example.layer) for f in (bpref.per_example_gradients, bpref.per_example_norms)
        )
        gradients, norms = (bpref.backpropagate(f, params, x)[1:] for f in transformed)
        clipped = bpref.clipped_gradient(example.layer, params, x, 1e-2).dparams
        whole = bpref.backpropagate(example.layer, params, x)[1:]
        return jax.tree.map(lambda *g: jnp.stack(g), *map(share, range(n))), gradients, norms, clipped, whole

    with jax.enable_x64(True):
        expected, (gradients, dx), (norms, dx_too), clipped, (dparams, own) = jax.device_get(
            in_one_program(every)(example.params, jax.tree.map(jnp.asarray, example.x))
        )
    close(gradients, expected)
    close(norms, squares(expected))
    close((dx, dx_too), (own, own))
    close(jax.tree.map(lambda g: g.sum(0), expected), dparams)
    share = 1e-2 / np.maximum(np.sqrt(squares(expected)), 1e-2)
    close(clipped, jax.tree.map(lambda g: np.tensordot(share, g, 1), expected))


@pytest.mark.parametrize(("rule", "case"), CASES.values(), ids=CASES)
def test_every_rule_gives_what_the_oracle_gives_for_each_example_or_says_what_couples_them(rule, case):
    example = draw(rule, case, sizes_of(case), SEED)
    layer, params, x = example.layer, example.params, example.x
    dy = example.dy
    with jax.enable_x64(True):
        mask = bpref.trainable(layer, params, x)
    is_trained = any(jax.tree.leaves(mask))
    if any(v.ndim == 0 for v in jax.tree.leaves(dy)):
        if is_trained and not (rule.name == FUSED and layer.forward(params, x)[1]._fields[0] == "h"):
            with pytest.raises(ValueError, match=r"(has params, and its output no axis|together)"):
                bpref.map_leaves(bpref.per_example_norms, layer).forward(params, x)
        return

    def each_alone(params, x, dy):
        y, cotangents = oracle.with_cotangents(example.reference, params, x)
        n = len(jax.tree.leaves(y)[0])
        return [cotangents(jax.tree.map(lambda d, i=i: jnp.zeros_like(d).at[i].set(d[i]), dy)) for i in range(n)]

    def every(params, x, dy):
        alone = each_alone(params, x, dy)
        if not is_trained or layer.couples:
            return alone, None, None
        swept = [
            bpref.backpropagate(bpref.map_leaves(f, layer), params, x, dy)[1:]
            for f in (lambda leaf: leaf, bpref.per_example_gradients, bpref.per_example_norms, SQUARES)
        ]
        return alone, swept, bpref.squared_norms(swept[2][0])

    with jax.enable_x64(True):
        alone, swept, norms = in_one_program(every)(params, x, dy)
    to_others = [np.delete(d, i, 0) for i, (_, dx) in enumerate(alone) for d in jax.tree.leaves(dx)]
    depends = any(d.any() for d in to_others)
    if layer.couples and not depends:  # not its y: what it gives to params, as where blocks of examples share a scale
        among_larger = jax.tree.map(lambda v: np.concatenate((v[:1], 1e6 * v[1:])), x)
        with jax.enable_x64(True):
            of_first = in_one_program(each_alone)(params, among_larger, dy)[0][0]
        both = zip(jax.tree.leaves(of_first), jax.tree.leaves(alone[0][0]), strict=True)
        depends = any(np.any(a != b) for a, b in both)
    assert depends == bool(layer.couples), "y of an example, or its gradient, depends on others"
    if swept is None:
        return
    (_, dx), (gradients, dx_too), (_, dx_again), (squared, dx_once_more) = swept
    expected = jax.tree.map(lambda *each: np.stack(each), *(select(mask, dparams) for dparams, _ in alone))
    close(jax.tree.leaves(gradients), jax.tree.leaves(expected), 1e-9)
    close(norms, squares(expected), 1e-9)
    close(jax.tree.leaves(squared), [np.sum(np.abs(v) ** 2, 0) for v in jax.tree.leaves(expected)], 1e-9)
    for other in (dx_too, dx_again, dx_once_more):
        close(other, dx)


@pytest.mark.parametrize(("rule", "case"), LOSSES.values(), ids=LOSSES)
def test_a_loss_in_which_an_example_depends_on_the_numbers_of_others_says_so(rule, case):
    one, other = (draw(rule, case, sizes_of(case), seed) for seed in (SEED, SEED + 1))

    def second_of_other(u, v):
        return np.concatenate([u[:1], v[1:]]) if u.ndim and np.issubdtype(u.dtype, np.floating) else u

    def first(params, x, dy):
        return jax.tree.map(lambda d: d[0], bpref.backpropagate(one.layer, params, x, dy)[2])

    dy = one.dy
    with jax.enable_x64(True):
        swept = in_one_program(first)
        before, after = (swept(one.params, x, dy) for x in (one.x, jax.tree.map(second_of_other, one.x, other.x)))
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    assert any(not np.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in pairs) == bool(one.layer.couples)


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


DROP = {
    "multi_head_attention": bpref.multi_head_attention(2, dropout=0.5),
    "mlp_block": bpref.mlp_block(6, dropout=0.5),
    "transformer_block": bpref.transformer_block(2, 6, rope=None, dropout=0.3, post_norm=True, mlp_dropout=0.5),
}


@pytest.mark.parametrize("plain", DROP.values(), ids=DROP)
def test_what_is_dropped_for_the_batch_is_dropped_for_each_example(plain, monkeypatch):
    """A PRNG key draws for all examples together: cut into examples it would draw the same for each."""
    monkeypatch.delattr(per_example, "_alone")
    layer = bpref.stateful(plain)
    x = jnp.asarray(RNG.normal(size=(N, T, D)), jnp.float32)
    params, state = bpref.begin(layer, jax.random.key(SEED), x)
    given = bpref.With(x, state)
    each = bpref.map_leaves(bpref.per_example_gradients, layer)
    _, gradients, _ = bpref.backpropagate(each, params, given, x)
    for i in range(N):
        alone = jnp.zeros_like(x).at[i].set(x[i])
        _, expected, _ = bpref.backpropagate(layer, params, given, alone)
        for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5)


OF_GPT = {
    "flat blocks": {"attention_dropout": 0.4},
    "halves, and what they add": {"attention_dropout": 0.4, "dropout": 0.3, "kv_heads": 1},
    "composed": {"attention_dropout": 0.4, "dropout": 0.3, "sandwich": True, "zero_centred": True, "tied": True},
}


@pytest.mark.parametrize("of", OF_GPT.values(), ids=OF_GPT)
@pytest.mark.parametrize("remat", [False, True], ids=["kept", "remat"])
def test_a_gpt_with_dropout_is_taken_apart(of, remat, monkeypatch):
    """Beside autodiff of the whole batch, all cotangents but one example's being zero; no example in turn."""
    config = GptConfig(V, 8, 2, 2, 6, T, **of)
    monkeypatch.delattr(per_example, "_alone")
    with jax.enable_x64(True):
        network, tokens = bpref.gpt(config, remat), jnp.asarray(RNG.integers(V, size=(N, T)))
        params, state = bpref.begin(network, jax.random.key(SEED), tokens)
        params = jax.tree.map(lambda v: v.astype(jnp.float64), params)
        x, dy = bpref.With(tokens, state), jnp.asarray(RNG.normal(size=(N, T, V)))

        def every(params):
            _, cotangents = oracle.with_cotangents(lambda p: network.forward(p, x)[0][0], params)
            alone = [cotangents(jnp.zeros_like(dy).at[i].set(dy[i]))[0] for i in range(N)]
            transformed = (bpref.map_leaves(f, network) for f in (bpref.per_example_gradients, bpref.per_example_norms))
            gradients, norms = (bpref.backpropagate(f, params, x, dy)[1] for f in transformed)
            return jax.tree.map(lambda *g: jnp.stack(g), *alone), gradients, bpref.squared_norms(norms)

        expected, gradients, norms = jax.device_get(in_one_program(every)(params))
    close(jax.tree.map(examples_first, gradients, expected), expected)
    close(norms, squares(expected))


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


@pytest.mark.parametrize("f", [bpref.per_example_gradients, bpref.per_example_norms, bpref.per_example_products])
def test_of_no_examples_there_are_none(f):
    network = bpref.serial(bpref.embedding(V, D), bpref.linear(3), bpref.layer_norm())
    ids = jnp.zeros((0, T), int)
    params = network.init(jax.random.key(0), ids)
    _, none, _ = bpref.backpropagate(bpref.map_leaves(f, network), params, ids, jnp.ones((0, T, 3)))
    assert {v.shape[0] for v in jax.tree.leaves(none)} == {0}


def one_example(layer, shape):
    x = jnp.ones(shape)
    bpref.map_leaves(bpref.per_example_norms, layer).forward(layer.init(jax.random.key(0), x), x)


BAD_CALLS = {
    "per_example_norms: batch_norm takes the mean and variance of all examples together, so that no gradient is "
    "one example's; expected layers that treat each by itself, as bpref.evaluation(layer) or layer_norm does": (
        lambda: bpref.map_leaves(bpref.per_example_norms, bpref.stateful(bpref.serial(bpref.batch_norm())))
    ),
    "per_example_norms: fused_linear_cross_entropy has params, and its output no axis of examples; ...": (
        lambda: bpref.clipped_gradient(
            bpref.fused_linear_cross_entropy(3, rows=2),
            bpref.FusedLinearCrossEntropyParams(jnp.ones((3, 2)), None),
            (jnp.ones((4, 2)), jnp.zeros(4, int)),
            1.0,
        )
    ),
    "low_rank_linear: x is taken to have 2 examples in its first axis, and with 3 it is refused; ...": (
        lambda: one_example(bpref.low_rank_linear(2, 1), (2,))
    ),
    "per_example_norms: linear is given x of shape (2,), which is one example; expected examples in its first axis, as "
    "in (1, 2)": lambda: one_example(bpref.linear(2), (2,)),
    "per_example_norms: layer_norm is given x of shape (2,), which ...": lambda: one_example(bpref.layer_norm(), (2,)),
    "per_example_norms: attention_block is given x of shape (3, 4), which is one example; ...": (
        lambda: one_example(bpref.attention_block(1), (3, 4))
    ),
    "per_example_norms: transformer_block is given x of shape (3, 4), which is one example; ...": (
        lambda: one_example(bpref.transformer_block(1, 4), (3, 4))
    ),
    "per_example_norms: position_embedding is given x of shape (3, 4), which is one example; ...": (
        lambda: one_example(bpref.position_embedding(3), (3, 4))
    ),
    "squared_norms: norms have the shapes nothing, expected (..., N) of one N": lambda: bpref.squared_norms(()),
}


test_bad_calls_are_refused = refusals(BAD_CALLS)
