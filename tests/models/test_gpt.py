"""gpt: beside its plain form, differentiated by the oracle; published counts of parameters; trained, and refused."""

import doctest
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpref
from bpref.rules import RULES
from tests.comparing import assert_same
from tests.conftest import SEED
from tests.refusing import refusals
from tests.rules.sweeping import by_oracle, compiled

LLAMA = bpref.GptConfig(23, 16, 2, 4, 12, 9, kv_heads=2, window=4, bias="qkv")
OF_GPT2 = {"rope": None, "norm": "layer", "activation": "gelu", "gated": False, "bias": True, "tied": True}
GPT2 = bpref.GptConfig(23, 16, 2, 4, 12, 9, **OF_GPT2)
OF_GEMMA2 = {"activation": "gelu", "tied": True, "window": 4, "windowed": (True, False), "head_dim": 6, "scale": 0.3}
OF_GEMMA2 |= {"soft_cap": 1.5, "logit_soft_cap": 2.0, "zero_centred": True, "sandwich": True, "scaled_embedding": True}
GEMMA2 = bpref.GptConfig(23, 16, 4, 4, 12, 9, 2, **OF_GEMMA2)
STRETCH = bpref.Stretch("llama3", 8.0, 8, 1.0, 4.0)
CONFIGS = {
    "llama": LLAMA,
    "llama, tied": replace(LLAMA, tied=True),
    "llama, soft caps": replace(LLAMA, tied=True, soft_cap=1.5, logit_soft_cap=2.0),
    "blocks of four kinds": replace(LLAMA, depth=8, rotated=(True, True, True, False), windowed=(True, False)),
    "qwen3": replace(LLAMA, window=None, bias=False, qk_norm=True, head_dim=6),
    "gemma2": GEMMA2,
    "a sandwich of layer norms": replace(GPT2, sandwich=True, zero_centred=True),
    "gpt2": GPT2,
    "gpt2, untied": replace(GPT2, tied=False),
}


def drawn(config, seed=SEED):
    ids, labels = np.random.default_rng(seed).integers(0, config.vocabulary, (2, 2, config.context))
    return jnp.asarray(ids, jnp.int32), jnp.asarray(labels, jnp.int32)


def table_of(params):
    return params["shared"]["body.embed.W"] if "shared" in params else params["body"]["embed"].W


def norm_of(c, params, x):
    return RULES[f"{c.norm}_norm"].reference(params, x, eps=c.eps, zero_centred=c.zero_centred)


def plain_block(c, params, x, rope, window):
    """As one rule, where its parameters are that of one; else half by half, each of its parts."""
    of_logits = {"window": window, "soft_cap": c.soft_cap}
    if not isinstance(params, dict):
        given = (c.heads, c.hidden, c.kv_heads, c.activation, c.gated, c.norm, rope)
        return RULES["transformer_block"].reference(params, x, *given, eps=c.eps, **of_logits)
    for name, half in params.items():
        half, *after = half if isinstance(half, tuple) and not hasattr(half, "_fields") else (half,)
        if not isinstance(half, dict):
            u = RULES["mlp_block"].reference(half, x, c.hidden, c.activation, c.gated, c.norm, eps=c.eps)
        elif name == "attention":
            own = {"head_dim": c.head_dim, "qk_norm": c.qk_norm, "eps": c.eps, "rope": rope, "scale": c.scale}
            n = norm_of(c, half["norm"], x)
            u = RULES["multi_head_attention"].reference(
                half["attention"], n, c.heads, c.kv_heads, causal=True, **own, **of_logits
            )
        else:
            u = RULES["mlp_block"].reference(half["mlp"], norm_of(c, half["norm"], x), c.hidden, c.activation, c.gated)
        x = x + (norm_of(c, after[0], u) if after else u)
    return x


def plain(config, params, ids):
    """The logits, as they are written down."""
    c, net = config, params.get("network", params)
    body = net["body"]
    x = table_of(params)[ids] * (c.width**0.5 if c.scaled_embedding else 1.0)
    if c.rope is None:
        x = x + jnp.broadcast_to(body["positions"].W[: ids.shape[1]], x.shape)
    for l in range(c.depth):
        p = max(len(c.rotated), len(c.windowed))  # one divides the other here
        own = body["blocks"] if p == 1 else body["blocks"][l % p]
        own = jax.tree.map(lambda v, i=l // p: v[i], own)
        rope = c.rope if c.rotated[l % len(c.rotated)] else None
        window = c.window if c.windowed[l % len(c.windowed)] else None
        x = plain_block(c, own, x, rope, window)
    x = norm_of(c, body["norm"], x)
    z = x @ (table_of(params) if c.tied else net["head"].W).T
    return z if c.logit_soft_cap is None else c.logit_soft_cap * jnp.tanh(z / c.logit_soft_cap)


def plain_cost(config, params, ids, labels):
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(plain(config, params, ids), labels))


@pytest.mark.parametrize(
    "own", [{}, {"remat": True}, {"remat": True, "mlp_tile": 3}], ids=["kept", "remat", "remat, tiles"]
)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_objective_is_the_cross_entropy_of_the_networks_logits_and_its_gradient_the_oracles(config, own):
    with jax.enable_x64(True):
        J = bpref.gpt_objective(config, **own)
        ids, labels = drawn(config)
        params = compiled(J.init)(jax.random.key(SEED), (ids, labels))
        network = bpref.gpt(config, **own)
        of_network = jax.eval_shape(network.init, jax.random.key(SEED), ids)
        assert jax.tree.structure(of_network) == jax.tree.structure(params)
        logits = compiled(lambda p: network.forward(p, ids)[0])(params)
        value, dparams, dx = compiled(lambda p: bpref.backpropagate(J, p, (ids, labels)))(params)
        cost, (oracle,) = by_oracle(lambda p: plain_cost(config, p, ids, labels), params)
        expected = compiled(lambda p: plain(config, p, ids))(params)
        assert abs(value - cost) <= 1e-10
        assert_same((logits, dparams), (expected, oracle), 1e-10)
        assert dx == (None, None)


DECODED = CONFIGS | {"llama 3.1": replace(LLAMA, bias=False, window=None, stretch=STRETCH)}


@pytest.mark.parametrize("config", DECODED.values(), ids=DECODED)
def test_with_a_cache_every_position_has_the_logits_of_the_whole(config):
    with jax.enable_x64(True):
        network, (ids, _) = bpref.gpt(config), drawn(config)
        params = compiled(network.init)(jax.random.key(SEED), ids)
        expected = compiled(lambda p: network.forward(p, ids)[0])(params)
        decoder = bpref.decoding(network, config.context)
        state = bpref.begin(decoder, jax.random.key(SEED), ids)[1]
        forward, came = compiled(lambda *of: decoder.forward(*of)[0]), []
        for chunk in jnp.split(ids, (4, *range(5, config.context)), 1):  # a prompt, and token after token
            logits, state = forward(params, bpref.With(chunk, state))
            came.append(logits)
    np.testing.assert_allclose(np.concatenate(came, 1), expected, rtol=0, atol=1e-12)


PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen2-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
}
"""The sizes of the weights at huggingface.co, each array counted once, and masks left out (GPT-2's file has them)."""


def test_a_policy_is_trained_by_a_loss_in_the_place_of_the_heads(standard_promotion):
    """DPO of pairs of answers, the first three tokens being their prompt, beside the plain form."""
    config, V = replace(LLAMA, tied=True, logit_soft_cap=2.0), LLAMA.vocabulary
    head = bpref.fused_linear_policy_loss(V, "dpo", {"beta": 0.3}, soft_cap=2.0, ignored=-1)
    J = bpref.gpt_objective(config, remat=True, head=head)
    ids = np.random.default_rng(SEED).integers(0, V, (2, 2, 10)).astype(np.int32)
    ids, labels = ids[..., :-1], np.where(np.arange(9) < 3, -1, ids[..., 1:])
    of_reference = np.array([[-20.0, -21.0], [-19.0, -23.0]])

    def by_definition(params, x):
        logp = jax.nn.log_softmax(jnp.stack([plain(config, params, one) for one in ids]))
        of_tokens = jnp.take_along_axis(logp, np.maximum(labels, 0)[..., None], -1)[..., 0]
        chosen, rejected = jnp.sum(jnp.where(labels < 0, 0, of_tokens), -1) - of_reference
        return -jnp.mean(jax.nn.log_sigmoid(0.3 * (chosen - rejected)))

    with jax.enable_x64(True):
        x = ids, (labels, *of_reference)
        params = jax.tree.map(lambda v: v.astype(jnp.float64), J.init(jax.random.key(SEED), x))
        value, dparams, _ = compiled(lambda params: bpref.backpropagate(J, params, x))(params)
        expected, (expected_dparams, _) = by_oracle(by_definition, params, x)
    assert float(value) == pytest.approx(float(expected), rel=1e-12)
    assert_same(dparams, expected_dparams, 1e-9)


def test_a_preset_has_as_many_parameters_as_were_published():
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    for name in bpref.GPT_PRESETS:
        params = jax.eval_shape(bpref.gpt(name).init, jax.random.key(0), ids)
        assert sum(v.size for v in jax.tree.leaves(params)) == PUBLISHED[name], name
    assert set(PUBLISHED) == set(bpref.GPT_PRESETS)


def test_it_learns_in_ten_lines(standard_promotion):
    config = bpref.GptConfig(vocabulary=16, width=32, depth=2, heads=4, hidden=48, context=16, tied=True)
    J = bpref.gpt_objective(config, remat=True)
    ids = jnp.asarray(np.add.outer(np.arange(8), 3 * np.arange(17)) % 16, jnp.int32)
    x = ids[:, :-1], ids[:, 1:]
    params = J.init(jax.random.key(SEED), x)
    optimizer = optax.adam(1e-2)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        value, dparams, _ = bpref.backpropagate(J, params, x)
        updates, state = optimizer.update(dparams, state, params)
        return optax.apply_updates(params, updates), state, value

    values = []
    for _ in range(60):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[0] > 2.5
    assert values[-1] < 0.05
    logits, _ = bpref.gpt(config).forward(params, ids[:, :-1])
    assert float(jnp.mean(jnp.argmax(logits, -1) == ids[:, 1:])) == 1.0


DROPPED = {
    "of what is added": {"dropout": 0.2},
    "of the attention": {"attention_dropout": 0.2},
    "of both, tied": {"dropout": 0.2, "attention_dropout": 0.2, "tied": True},
    "of parts": {"dropout": 0.2, "attention_dropout": 0.2, "sandwich": True, "zero_centred": True},
}


@pytest.mark.parametrize("of", DROPPED.values(), ids=DROPPED)
def test_dropout_is_a_state_and_evaluation_drops_nothing(of):
    config = replace(GPT2, **({"tied": False} | of))
    J, ids = bpref.gpt_objective(config, remat=True), drawn(config)
    params, state = bpref.begin(J, jax.random.key(SEED), ids)
    (first, after), dparams, _ = bpref.backpropagate(J, params, bpref.With(ids, state))
    (second, _), _ = J.forward(params, bpref.With(ids, after))
    assert float(first) != float(second)
    assert jax.tree.structure(dparams) == jax.tree.structure(params)
    (value, _), _ = bpref.evaluation(J).forward(params, bpref.With(ids, state))
    without = replace(config, dropout=0.0, attention_dropout=0.0)
    same = bpref.gpt_objective(without)
    ours = jax.tree.unflatten(
        jax.tree.structure(jax.eval_shape(same.init, jax.random.key(0), ids)), jax.tree.leaves(params)
    )
    assert float(value) == pytest.approx(float(same.forward(ours, ids)[0]), rel=1e-6)
    written = [
        bpref.generate(bpref.gpt(c), p, ids[0][:, :3], steps=2, temperature=0)
        for c, p in ((config, params), (without, ours))
    ]
    assert (written[0] == written[1]).all()


def test_an_update_in_the_backward_is_that_of_the_whole_gradient(standard_promotion):
    config = replace(LLAMA, tied=True)
    J, x = bpref.gpt_objective(config, remat=True), drawn(config)
    updating = bpref.map_leaves(bpref.update_in_backward(optax.sgd(0.5)), J)
    params = J.init(jax.random.key(SEED), x)
    dparams = jax.jit(lambda p: bpref.backpropagate(J, p, x)[1])(params)
    updated = jax.jit(lambda p: bpref.backpropagate(updating, p, x)[1])(updating.init(jax.random.key(SEED), x))
    jax.tree.map(
        lambda p, d, new: np.testing.assert_allclose(new, p - 0.5 * d, atol=1e-6),
        params,
        dparams,
        bpref.params_of(updated),
    )


@pytest.mark.parametrize("name", ["gpt", "gpt_objective", "load_weights"])
def test_the_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {n: getattr(bpref, n) for n in bpref.__all__} | {"jax": jax, "jnp": jnp}
    (example,) = doctest.DocTestFinder(recurse=False).find(names[name], name, globs=names)
    assert doctest.DocTestRunner().run(example) == (0, len(example.examples))


def test_a_preset_is_found_however_it_is_written():
    assert bpref.gpt("GPT2").name == "shared"
    assert bpref.models.gpt_config.as_config("Llama 3 8B") == bpref.GPT_PRESETS["llama-3-8b"]


SIZES = {"vocabulary": 5, "width": 8, "depth": 1, "heads": 2, "hidden": 4, "context": 3}
WRONG_CONFIGS = {
    "gpt: width is 8, expected a multiple of heads, 3": {"heads": 3},
    "gpt: kv_heads is 3, expected a divisor of heads 2": {"kv_heads": 3},
    "gpt: logit_soft_cap is 0, expected a positive number or None": {"logit_soft_cap": 0},
    "gpt: soft_cap is -1.0, expected a positive number or None": {"soft_cap": -1.0},
    "gpt: width is 6, 3 for each of 2 heads; RoPE turns pairs": {"width": 6},
    "gpt: depth is 0, expected a positive integer": {"depth": 0},
    "gpt: window is 0, expected an integer of at least 1, or a pair (left, right) of at least 0": {"window": 0},
    "gpt: norm is 'batch', expected 'layer' or 'rms'": {"norm": "batch"},
    "gpt: dropout is 1.0, expected a number from 0 to below 1": {"dropout": 1.0},
    "gpt: bias is 'q', expected True, False or 'qkv'": {"bias": "q"},
    "gpt: head_dim is 0, expected a positive integer": {"head_dim": 0},
    "gpt: width is 8, 3 for each of 2 heads; RoPE turns pairs": {"head_dim": 3},
    "gpt: scale is 0, expected a positive number or None": {"scale": 0},
    "gpt: bias is 'qkv', expected True or False with qk_norm, zero_centred or a scale": {
        "bias": "qkv",
        "qk_norm": True,
    },
    "gpt: tied is 'no', expected True or False": {"tied": "no"},
    "gpt: there is a stretch but rope is None, expected a base: nothing is rotated": (
        {"rope": None, "stretch": bpref.Stretch("linear", 2.0)}
    ),
    "gpt: rotated is [True], expected a tuple of True and False, such as (True, False)": {"rotated": [True]},
    "gpt: windowed is (True, False), but window is None: no block has any": {"windowed": (True, False)},
    "gpt: depth is 4, expected a multiple of 6, after which rotated, (True, True, False), and windowed, (True, False), "
    "begin again together": {"depth": 4, "window": 2, "rotated": (True, True, False), "windowed": (True, False)},
    "gpt: activation is 'gelo', expected one of gelu, gelu_erf, identity, relu, sigmoid, silu, tanh": (
        {"activation": "gelo"}
    ),
}

test_a_wrong_config_is_refused_where_it_is_made = refusals(
    WRONG_CONFIGS, lambda changed: bpref.GptConfig(**SIZES | changed)
)


def of_positions(n):
    network, ids = bpref.gpt(GPT2), jnp.zeros((1, n), jnp.int32)
    network.forward(network.init(jax.random.key(0), ids[:, :9]), ids)


BAD_CALLS = {
    "gpt_objective: ignored and rows are of the cross-entropy; a head has its own": (
        lambda: bpref.gpt_objective(LLAMA, ignored=-1, head=bpref.fused_linear_policy_loss(LLAMA.vocabulary, "dpo"))
    ),
    "unknown preset 'lama-3-8b'; the nearest are llama-3-8b, llama-3.1-8b, llama-3.2-3b": lambda: bpref.gpt(
        "lama-3-8b"
    ),
    "TypeError: gpt: config is an int, expected GptConfig": lambda: bpref.gpt_objective(3),
    "position_embedding: x has 10 positions, expected at most 9, the rows of W": lambda: of_positions(10),
}

test_bad_calls_are_refused = refusals(BAD_CALLS)
