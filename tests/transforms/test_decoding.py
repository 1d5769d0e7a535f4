"""Positions that come one chunk after another: what a layer makes of them is what it makes of the whole sequence."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.layer import each_position
from bpref.rule import Real
from bpref.rules import RULES
from bpref.verify.rules.draw import all_of_size, draw, hyperparameters, is_spec
from tests.conftest import SEED
from tests.refusing import refusals
from tests.rules.sweeping import compiled, in_one_program

T, D, V = 11, 8, 7
CUTS = {"at once": (T,), "one by one": (1,) * T, "first a prompt": (4, *(1,) * (T - 4)), "by threes": (3, 3, 3, 2)}
YARN = bpref.Stretch("yarn", 4.0, 16)


def normal(*shape):
    return jax.random.normal(jax.random.key(len(shape) + SEED), shape, jnp.float64)


def sequence():
    return normal(2, T, D)


def heads():
    return bpref.Heads(normal(2, T, 4, D), normal(2, T, 2, D), 2 * normal(2, T, 2, D))


def in_order():
    return bpref.HeadsInOrder(*heads()[:2])


def gated(*features):
    return bpref.GatedHeads(heads(), -jnp.abs(normal(2, T, 2, *features)) / 3)


def self_reading():
    return bpref.SelfReadingHeads(*gated(D)[:2], normal(2, T, 2, D) / 3, normal(2, T, 2, D) / 3)


def dual():
    B, C = normal(2, T, 1, 3), normal(2, T, 1, 3)
    return bpref.SelectiveHeads(normal(2, T, 2, D), normal(2, T, 2), B, C)


def delta(log_gate):
    q, k, v = heads()[:3]
    k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    return bpref.DeltaHeads(bpref.Heads(q, k, v), jax.nn.sigmoid(normal(2, T, 2)), log_gate)


def product(log_gate):
    k, v = (jnp.stack((z, z[:, ::-1]), 2) for z in delta(None).heads[1:3])
    return bpref.ProductHeads(heads().q, k, v, jax.nn.sigmoid(normal(2, T, 2, 2)), log_gate)


def factors():
    return jnp.tanh(normal(2, T, D)), normal(2, T, D)[:, ::-1]


def selective():
    return bpref.Selective(normal(2, T, D), jnp.abs(normal(2, T, D)) / 3, normal(2, T, 3), normal(2, T, 3)[:, ::-1])


DECODERS = {
    "attention_block": [
        (bpref.attention_block(4, 2, window=4, block=3, stretch=YARN), sequence),
        (
            bpref.attention_block(2, norm="layer", rope=None, causal=False, window=(2, 0), bias=True, soft_cap=1.0),
            sequence,
        ),
    ],
    "transformer_block": [
        (bpref.transformer_block(4, 12, 1, block=3), sequence),
        (bpref.transformer_block(2, 12, gated=False, norm="layer", window=1, bias=True), sequence),
        (bpref.transformer_block(2, 12, norm="layer", post_norm=True), sequence),
    ],
    "multi_head_attention": [
        (bpref.multi_head_attention(4, 2, causal=True, rope=9.0, qk_norm=True, soft_cap=4.0, sinks=True), sequence),
        (bpref.multi_head_attention(4, causal=True, window=3, alibi=True, dropout=0.5), sequence),
    ],
    "dot_product_attention": [(bpref.dot_product_attention(causal=True, relative_buckets=4, max_distance=9), heads)],
    "blockwise_attention": [(bpref.blockwise_attention(causal=True, window=(5, 2), query_block=2, key_block=3), heads)],
    "latent_attention": [
        (bpref.latent_attention(3, 5, 4, head_dim=4, rope_dim=2, value_dim=3, stretch=YARN), sequence),
        (
            bpref.latent_attention(
                2, 3, head_dim=2, rope_dim=4, norm=False, interleaved=True, window=(3, 0), blockwise=False
            ),
            sequence,
        ),
    ],
    "linear_attention": [
        (bpref.linear_attention(chunk=4), heads),
        (bpref.linear_attention("identity", normalize=False, chunk=3), heads),
    ],
    "retention": [(bpref.retention(3), gated)],
    "gated_linear_attention": [(bpref.gated_linear_attention(4), lambda: gated(D))],
    "delta_product": [
        (bpref.delta_product(3), lambda: product(gated().log_gate)),
        (bpref.delta_product(4), lambda: product(None)),
    ],
    "delta_rule": [(bpref.delta_rule(3), lambda: delta(gated().log_gate)), (bpref.delta_rule(4), lambda: delta(None))],
    "generalized_delta_rule": [(bpref.generalized_delta_rule(4), self_reading)],
    "kimi_delta_attention": [(bpref.kimi_delta_attention(4), lambda: delta(gated(D).log_gate))],
    "linear_recurrence": [
        (bpref.linear_recurrence(), factors),
        (bpref.linear_recurrence(method="associative"), factors),
    ],
    "rg_lru": [(bpref.rg_lru(), sequence), (bpref.rg_lru("associative"), sequence)],
    "selective_scan": [
        (bpref.selective_scan(3, chunk=2), selective),
        (bpref.selective_scan(3, softplus=False, skip=False, bias=False, hold=True, final=True), selective),
    ],
    "state_space_dual": [(bpref.state_space_dual(chunk=2), dual)],
    "causal_convolution": [
        (bpref.causal_convolution(6, 3, dilation=2, groups=2), sequence),
        (bpref.causal_convolution(3, 1, bias=False), sequence),
        (bpref.causal_convolution(D, 4, groups=D), sequence),
    ],
    "position_embedding": [(bpref.position_embedding(3 * T), sequence)],
    "rotary_embedding": [(bpref.rotary_embedding(fraction=0.5, stretch=YARN), lambda: normal(2, T, 3, D))],
    "qk_norm_rope": [(bpref.qk_norm_rope(per_head=True, fraction=0.5), in_order)],
    "rnn": [(bpref.rnn(5), sequence)],
    "gru": [(bpref.gru(5), sequence), (bpref.gru(5, reset_after=False, truncate=2), sequence)],
    "lstm": [(bpref.lstm(5, peepholes=True, projection=3), sequence), (bpref.lstm(5, checkpoint=2), sequence)],
    "lstm_block": [(bpref.lstm_block(5), sequence)],
    "mamba_block": [(bpref.mamba_block(3, 2, 2, window=3, chunk=2), sequence)],
}
EVERY_DECODER = pytest.mark.parametrize(
    ("layer", "x"), [pytest.param(*of, id=name) for name, each in DECODERS.items() for of in each]
)


def is_real(v):
    return jnp.issubdtype(v.dtype, jnp.floating)


def in_dtype(tree, dtype):
    return jax.tree.map(lambda v: v.astype(dtype) if is_real(v) else v, tree)


def drawn(layer, x):
    """Params that are nowhere zero."""

    def moved(v):
        return v + 0.2 * jax.random.normal(jax.random.key(v.size), v.shape, v.dtype) if is_real(v) else v

    return jax.tree.map(moved, layer.init(jax.random.key(SEED), x))


def of_positions(y):
    """The output without a state that comes with it; of queries and keys one array."""
    y = getattr(y, "y", y)
    return jnp.concatenate(y, -2) if isinstance(y, tuple) else y


def drawn_with_whole(layer, x, dtype):
    """Params, and what the layer makes of the whole sequence with them."""

    def both(x):
        params = in_dtype(drawn(layer, x), dtype)
        return params, of_positions(bpref.evaluation(layer).forward(params, in_dtype(x, dtype))[0])

    return compiled(both)(x)


def in_chunks(layer, params, x, sizes, length=T):
    decoder = bpref.decoding(layer, length)
    state = compiled(lambda x: bpref.begin(decoder, jax.random.key(SEED), x)[1])(x)
    ys, forward, n = [], compiled(lambda *of: decoder.forward(*of)[0]), 0
    for t in sizes:
        chunk = jax.tree.map(lambda v, n=n, t=t: v[:, n : n + t], x)
        y, state = forward(params, bpref.With(chunk, state))
        ys.append(of_positions(y))
        n += t
    return jnp.concatenate(ys, 1)


@EVERY_DECODER
def test_chunks_are_together_the_whole(layer, x):
    with jax.enable_x64(True):
        x = x()
        params, expected = drawn_with_whole(layer, x, jnp.float64)
        for length, sizes in ((T, CUTS["at once"]), (T, CUTS["first a prompt"]), (3 * T, CUTS["by threes"])):
            np.testing.assert_allclose(in_chunks(layer, params, x, sizes, length), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float32, 2e-5), (jnp.bfloat16, 0.1)])
@EVERY_DECODER
def test_in_narrow_dtypes_within_rounding(layer, x, dtype, atol):
    with jax.enable_x64(True):
        x = x()
        params, expected = drawn_with_whole(layer, x, dtype)
        x = in_dtype(x, dtype)
    came = in_chunks(layer, params, x, CUTS["by threes"])
    assert came.dtype == dtype
    np.testing.assert_allclose(*(v.astype(np.float32) for v in (came, expected)), rtol=0, atol=atol)


def leaf_of(rule, case):
    """The layer of a case in evaluation, all of whose sizes are 4."""
    layer = rule.make(**hyperparameters(case, all_of_size(case, 4)))
    return layer.evaluating or layer


def of_decoding(kind):
    return {(r.name, case) for r in RULES.values() for case in range(len(r.cases)) if kind(leaf_of(r, r.cases[case]))}


def test_every_rule_that_remembers_is_tried():
    remembering = of_decoding(lambda leaf: leaf.decoding not in (None, each_position))
    assert {name for name, _ in remembering} == set(DECODERS)


def by_positions(spec):
    """The spec of a batch of sequences: of real numbers the last axis is one of features, of integers none is."""
    axes = spec.axes.split()
    kept = axes[2:] if len(axes) > 3 else axes[-1:] if isinstance(spec, Real) else []
    return spec._replace(axes=" ".join(["batch", "positions", *kept]))


@pytest.mark.parametrize("name", sorted({name for name, _ in of_decoding(lambda leaf: leaf.decoding is each_position)}))
def test_what_takes_each_position_for_itself_does(name):
    """Of each rule that says so, its first case: cut in two, the outputs of positions are the same to the last bit."""
    rule = RULES[name]
    number = min(n for of, n in of_decoding(lambda leaf: leaf.decoding is each_position) if of == name)
    case = rule.cases[number]
    case = case._replace(x=jax.tree.map(by_positions, case.x, is_leaf=is_spec))
    sizes = all_of_size(case, 4) | {"batch": 2, "positions": 5}
    with jax.enable_x64(True):
        example = draw(rule, case, sizes, SEED)
        layer = example.layer.evaluating or example.layer
        cut = [jax.tree.map(lambda v, at=at: v[:, at], example.x) for at in (slice(2), slice(2, 5))]
        y, *halves = in_one_program(lambda params, *xs: [layer.forward(params, x)[0] for x in xs])(
            example.params, example.x, *cut
        )
    for v, *of in zip(*map(jax.tree.leaves, (y, *halves)), strict=True):
        if v.ndim > 1:
            np.testing.assert_allclose(np.concatenate(of, 1), v, rtol=1e-14)


def gpt():
    block = bpref.serial(bpref.transformer_block(2, 12, window=5), bpref.dropout(0.5))
    return bpref.serial(
        embed=bpref.embedding(V, D),
        blocks=bpref.scan(bpref.remat(block), 2),
        norm=bpref.rms_norm(),
        head=bpref.linear(V, bias=False),
    )


def side_by_side():
    """Recurrences beside attention, and one block three times."""
    block = bpref.residual(bpref.fan_out(bpref.lstm_block(5), bpref.attention_block(2)), bpref.fan_in())
    network = bpref.serial(embed=bpref.embedding(V, D), blocks=bpref.scan(block, 3), head=bpref.linear(V))
    return bpref.shared(network, "blocks")


NETWORKS = {
    "gpt": gpt,
    "tied": lambda: bpref.shared(gpt(), ("embed.W", "head.W")),
    "stateful": lambda: bpref.stateful(gpt()),
    "cast": lambda: bpref.map_leaves(bpref.cast_params(jnp.bfloat16), gpt()),
    "shared blocks": side_by_side,
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_networks(make):
    network, tokens = make(), jax.random.randint(jax.random.key(SEED), (2, T), 0, V)
    params, state = bpref.begin(network, jax.random.key(SEED), tokens)
    x = tokens if network.begin is None else bpref.With(tokens, state)
    y, _ = bpref.evaluation(network).forward(params, x)
    expected = y if network.begin is None else y[0]
    came = in_chunks(network, params, tokens, CUTS["first a prompt"])
    atol = 0.1 if came.dtype == jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(*(v.astype(np.float32) for v in (came, expected)), rtol=0, atol=atol)


def test_one_program_makes_every_position():
    decoder, tokens = bpref.decoding(gpt(), T), jnp.zeros((2, 1), jnp.int32)
    params, state = bpref.begin(decoder, jax.random.key(SEED), tokens)
    step = jax.jit(chex.assert_max_traces(lambda *of: decoder.forward(*of)[0], 1))
    for _ in range(T):
        logits, state = step(params, bpref.With(tokens, state))
    assert np.isfinite(logits).all()
    logits, _ = step(params, bpref.With(tokens, state))
    assert np.isnan(logits).all(), "beyond length"


def test_it_is_not_differentiated():
    decoder = bpref.decoding(gpt(), T)
    params, state = bpref.begin(decoder, jax.random.key(SEED), jnp.zeros((2, 1), jnp.int32))
    with pytest.raises(TypeError, match="transformer_block: it is decoding, and has no backward"):
        bpref.backpropagate(decoder, params, bpref.With(jnp.zeros((2, 1), jnp.int32), state), jnp.ones((2, 1, V)))


LOOKING_AHEAD = {
    "TypeError: decoding: 1 softmax says nothing of positions that come one chunk after another; ...": (
        lambda: bpref.softmax(1)
    ),
    "TypeError: decoding: 1 max_pool says nothing...": lambda: bpref.max_pool((2,)),
    "TypeError: decoding: 1 batch_norm says nothing...": lambda: bpref.stateful(bpref.batch_norm()),
    "transformer_block: a position sees later ones...": lambda: bpref.transformer_block(2, 12, causal=False),
    "blockwise_attention: a position sees later ones...": lambda: bpref.blockwise_attention(window=3),
    "linear_attention: a position sees later ones...": lambda: bpref.linear_attention(causal=False),
    "latent_attention: a position sees later ones...": lambda: bpref.latent_attention(2, 4, causal=False),
    "linear_recurrence: reverse is True...": lambda: bpref.linear_recurrence(reverse=True),
    "causal_convolution: stride is 2, expected 1...": lambda: bpref.causal_convolution(4, stride=2),
    "lstm: reverse is True...": lambda: bpref.bidirectional(bpref.lstm(5), bpref.lstm(5, reverse=True)),
}

test_what_looks_ahead_or_says_nothing_is_refused_by_name = refusals(
    LOOKING_AHEAD, lambda make: bpref.decoding(bpref.serial(bpref.embedding(V, D), make()), T)
)


ONES = np.ones((2, 3, D), np.float32)
ATTENTION = bpref.multi_head_attention(2, causal=True)


def begun_with(x):
    """A block that is decoding begins with positions of D features, and goes on with `x(state)`."""
    decoder = bpref.decoding(bpref.transformer_block(2, 12), T)
    params, state = bpref.begin(decoder, jax.random.key(SEED), ONES)
    decoder.forward(params, x(state))


BAD_CALLS = {
    "decoding: length is 0, expected a positive integer": lambda: bpref.decoding(bpref.transformer_block(2, 12), 0),
    "TypeError: transformer_block: x is an array, expected bpref.With(x, state)": lambda: begun_with(lambda _: ONES),
    "transformer_block: state is (), expected ((2, 10, 2, 4)...": lambda: begun_with(lambda _: bpref.With(ONES)),
    "transformer_block: attention.norm.scale has shape (8,), expected (d,) = (4,)...": (
        lambda: begun_with(lambda state: bpref.With(ONES[..., :4], state))
    ),
    "TypeError: multi_head_attention: x is Sequences...": (
        lambda: bpref.begin(bpref.decoding(ATTENTION, T), jax.random.key(SEED), bpref.Sequences(ONES))
    ),
}

test_bad_calls_are_refused = refusals(BAD_CALLS)
