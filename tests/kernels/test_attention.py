"""Attention as kernels: what the laws, which hold them to the naive form on a CPU, do not say of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import bpref
from bpref.formulas.attention.softmax_attention import AttentionParams
from bpref.kernels import attention
from bpref.kernels.attention_blocks import grouped, planned
from tests.conftest import needs_cuda_plugin, needs_libtpu
from tests.rules.sweeping import backpropagate

S = jax.ShapeDtypeStruct
KERNEL = partial(bpref.blockwise_attention, implementation="pallas")


def heads(T, S, **more):
    shapes = (1, T, 4, 3), (1, S, 2, 3), (1, S, 2, 5)
    return bpref.Heads(*(jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)), **more)


def program(implementation, **hyper):
    """Forward and backward of this form."""
    layer = bpref.blockwise_attention(**hyper, implementation=implementation)
    return lambda x, dy: bpref.backpropagate(layer, AttentionParams(), x, dy)


SHAPES = {
    "more queries": (40, 7, {"causal": True, "query_block": 16, "key_block": 4}),
    "before and behind": (33, 35, {"window": (9, 3), "query_block": 8, "key_block": 8}),
    "one block, more keys": (5, 9, {"soft_cap": 2.0}),
}


@pytest.mark.parametrize(("queries", "keys", "hyper"), SHAPES.values(), ids=SHAPES)
def test_a_kernel_gives_what_the_other_form_does(queries, keys, hyper):
    x = heads(queries, keys)
    dy = jax.random.normal(jax.random.key(3), (1, queries, 4, 5))
    forms = (bpref.blockwise_attention(**hyper, implementation=i) for i in ("pallas", "xla"))
    came, expected = (backpropagate(layer, AttentionParams(), x, dy) for layer in forms)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), came, expected)


def test_runs_in_any_order_give_what_runs_that_follow_each_other_do():
    """Those of a GPU, where dk and dv are made by runs of their own."""
    of_q, of_k = (jnp.arange(n)[None] // 6 for n in (14, 22))
    x = heads(14, 22, q_segments=of_q, kv_segments=of_k)
    pattern = attention.Pattern(0.3, window=(5, 7), soft_cap=2.0, query_block=4, key_block=8)
    plan, arrays = planned(pattern, "cpu", x)
    do = grouped("cpu", jax.random.normal(jax.random.key(3), (1, 14, 4, 5)), 2, plan.bq)
    one, apart = (
        jax.jit(lambda a, do, f=f: f("cpu", plan, a, do))(arrays, do)
        for f in (attention._pull_in_one, attention._pull_apart)
    )
    assert all(np.any(d) for d in one)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), list(apart), list(one))


@pytest.mark.parametrize("spoiled", ["q", "k", "v"])
def test_what_is_hidden_is_not_read(spoiled):
    """The last segment is spoiled, and that alone is."""
    x = heads(12, 12, q_segments=jnp.arange(12)[None] // 9)
    sweep = jax.jit(program("pallas", query_block=8, key_block=4))

    def cotangents(value):
        changed = x._replace(**{spoiled: getattr(x, spoiled).at[:, 9:].set(value)})
        return sweep(changed, jnp.ones((1, 12, 4, 5)))

    (y, _, dx), (expected, _, expected_dx) = cotangents(jnp.nan), cotangents(0.0)
    for came, wanted in ((y, expected), *zip(dx[:3], expected_dx[:3], strict=True)):
        np.testing.assert_allclose(came[:, :9], wanted[:, :9], rtol=1e-6)
    assert np.isnan(y[:, 9:]).all()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_both_ways_are_kernels_of_the_platform(platform, dtype):
    """As far as JAX itself brings them, and whether or not wide numbers are on."""
    x = bpref.Heads(*[S((1, 40, 2, 24), dtype)] * 3)
    calls = {"tpu": ("tpu_custom_call", 2), "cuda": ("__gpu$xla.gpu.triton", 3)}
    with jax.enable_x64(dtype == jnp.bfloat16):
        traced = jax.jit(program("pallas", causal=True, key_block=16)).trace(x, x.q)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
    name, count = calls[platform]
    assert text.count(f"custom_call @{name}(") == count


@needs_cuda_plugin
def test_on_an_h100_they_are_compiled_and_read_a_tenth_of_what_loops_do():
    """Where its compiler is, which CI does not install: 835 MB, in an empty environment for each commit.

    In an environment of `pip install -e ".[dev,aot-cuda]"` it is run. What JAX itself makes of the kernels for a
    GPU is seen everywhere, above.
    """
    x = bpref.Heads(*[S((1, 512, 8, 64), jnp.bfloat16)] * 3)
    kernels, loops = (bpref.compile_for("h100", program(i, causal=True), x, x.q) for i in ("pallas", "xla"))
    assert kernels.accessed < 0.1 * loops.accessed
    assert kernels.temp < 0.4 * loops.temp


@needs_libtpu
def test_on_a_tpu_hardly_more_than_inputs_and_outputs_is_read_and_written():
    """The arrays laid out by heads, which a kernel wants, for the forward and again for the backward."""
    x = bpref.Heads(*[S((1, 512, 2, 128), jnp.bfloat16)] * 3)
    seen = bpref.compile_for("tpu-v5e", program("pallas", causal=True), x, x.q)
    assert seen.temp == 0
    assert seen.accessed <= 1.2 * (seen.arguments + seen.outputs)


@needs_libtpu
def test_in_a_shard_map_chips_send_each_other_nothing():
    mesh, by_example = jax.sharding.Mesh(np.array(bpref.devices_of("tpu-v5e:2x2")), ("data",)), PartitionSpec("data")
    rows = jax.sharding.NamedSharding(mesh, by_example)
    x = bpref.Heads(*[S((4, 128, 1, 128), jnp.bfloat16, sharding=rows)] * 3)
    sweep = jax.shard_map(program("pallas"), mesh=mesh, in_specs=by_example, out_specs=by_example)
    assert bpref.compile_for("tpu-v5e:2x2", sweep, x, x.q).collectives == {}


WRONG = {
    "alibi": ({"alibi": True}, 'alibi is True; implementation "pallas" has none, "xla" has'),
    "sinks": ({"sinks": True}, 'sinks is True; implementation "pallas" has none, "xla" has'),
    "dropout": ({"dropout": 0.5}, 'dropout is 0.5; implementation "pallas" has none, "xla" has'),
    "buckets": ({"relative_buckets": 8}, 'relative_buckets is 8; implementation "pallas" has none, "xla" has'),
    "another": ({"implementation": "cudnn"}, "implementation is 'cudnn', expected one of auto, xla, pallas"),
}


@pytest.mark.parametrize(("hyper", "message"), WRONG.values(), ids=WRONG)
def test_what_a_kernel_has_not_is_refused_when_the_layer_is_made(hyper, message):
    with pytest.raises(ValueError) as error:
        KERNEL(**hyper)
    assert str(error.value) == f"blockwise_attention: {message}"


REFUSED = {
    "attention_block": ({"dropout": 0.5}, 'dropout is 0.5; implementation "pallas" has none, "xla" has'),
    "transformer_block": ({"hidden": 3, "implementation": "cuda"}, "implementation is 'cuda', expected one of auto"),
    "multi_head_attention": ({"blockwise": False}, 'blockwise is False; implementation "pallas" works by blocks'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layers_that_have_an_attention_refuse_by_their_own_names(name):
    hyper, message = REFUSED[name]
    with pytest.raises(ValueError) as error:
        getattr(bpref, name)(2, **{"implementation": "pallas"} | hyper)
    assert str(error.value).startswith(f"{name}: {message}")
    with pytest.raises(ValueError) as error:
        bpref.multi_head_attention(2, weights="mean", implementation="pallas")
    assert str(error.value) == 'multi_head_attention: weights is \'mean\'; implementation "pallas" has none, "xla" has'


@pytest.mark.parametrize("remat", [False, True])
def test_a_gpt_by_kernels_has_the_gradient_that_it_has_without(remat):
    config = bpref.GptConfig(vocabulary=11, width=8, depth=2, heads=2, hidden=12, context=8, kv_heads=1)
    ids = jnp.arange(10).reshape(2, 5)
    forms = [bpref.gpt_objective(config, remat, implementation=i) for i in ("pallas", "xla")]
    params = forms[0].init(jax.random.key(0), (ids, ids + 1))
    sweeps = [jax.jit(partial(bpref.backpropagate, J)) for J in forms]
    assert str(jax.make_jaxpr(sweeps[0])(params, (ids, ids + 1))).count("pallas_call") >= 4
    came, expected = (sweep(params, (ids, ids + 1))[:2] for sweep in sweeps)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), came, expected)


@pytest.mark.parametrize("name", ["mask", "bias"])
def test_a_mask_or_a_bias_is_refused_before_anything_is_computed(name):
    pairs = jnp.ones((1, 1, 5, 6), bool if name == "mask" else jnp.float32)
    with pytest.raises(ValueError) as error:
        KERNEL().forward(AttentionParams(), heads(5, 6, **{name: pairs}))
    assert str(error.value) == f'blockwise_attention: x.{name} is given; implementation "pallas" takes none, "xla" does'


def test_of_itself_a_kernel_is_taken_on_one_tpu_alone(monkeypatch):
    def taken(T=256, dtype=jnp.float32, D=64, **hyper):
        x = bpref.Heads(*[S((1, T, 2, D), dtype)] * 3)
        traced = jax.make_jaxpr(bpref.blockwise_attention(**hyper).forward)(AttentionParams(), x)
        return "pallas_call" in str(traced)

    def taken_by(make):
        layer, x = make(2), S((1, 256, 128), jnp.float32)
        params = jax.eval_shape(layer.init, jax.random.key(0), x)
        return "pallas_call" in str(jax.make_jaxpr(layer.forward)(params, x))

    layers = bpref.attention_block, bpref.multi_head_attention, partial(bpref.transformer_block, hidden=8)
    assert not taken()
    assert not any(map(taken_by, layers))
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(jax, "devices", lambda: ["a chip"])
    assert taken()
    assert all(map(taken_by, layers))
    assert not taken_by(partial(bpref.multi_head_attention, blockwise=False))
    assert taken(dtype=jnp.bfloat16, causal=True, window=9)
    assert not taken(alibi=True)
    assert not taken(implementation="xla")
    assert not taken(T=64)
    assert not taken(query_block=100)
    assert not taken(dtype=jnp.float16)
    assert not taken(T=2**14, D=256)
    monkeypatch.setattr(jax, "devices", lambda: ["a chip", "another"])
    assert not taken()
