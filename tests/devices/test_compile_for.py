"""Compiled for a TPU that is not there: rules, a model, and what goes between chips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

import bpref
from bpref.devices.targets import CARDS, facts, target
from bpref.devices.works import beside, both_forms, known, of_objective, work_of
from bpref.models.gpt import gpt_objective
from bpref.models.gpt_config import GptConfig
from tests.conftest import needs_libtpu

S = jax.ShapeDtypeStruct

SAMPLE = ("linear", "gelu", "layer_norm", "sigmoid_cross_entropy", "softmax_cross_entropy", "rnn")


@needs_libtpu
@pytest.mark.parametrize("name", SAMPLE)
def test_a_rule_needs_no_more_on_a_tpu_than_autodiff_of_its_forward(name):
    row = beside(name, "tpu-v5e")
    assert row.hand.temp <= row.autodiff.temp
    assert row.hand.accessed <= 1.02 * row.autodiff.accessed
    assert row.hand.arguments == row.autodiff.arguments > 0
    assert row.hand.loops_once == row.autodiff.loops_once == 0


@needs_libtpu
def test_a_gpt_takes_no_more_memory_or_traffic_and_fewer_cycles():
    config = GptConfig(vocabulary=256, width=64, depth=2, heads=1, hidden=64, context=128)
    ids = S((2, 128), jnp.int32)
    row = both_forms(of_objective(gpt_objective(config), (ids, ids)), "tpu-v5e")
    assert row.kind == "model"
    assert row.size == "2 x 128"
    assert row.hand.temp <= row.autodiff.temp
    assert row.hand.accessed <= 1.05 * row.autodiff.accessed  # so little room has it that all of it stays on the chip
    assert row.hand.cycles < row.autodiff.cycles


@needs_libtpu
@pytest.mark.quick
def test_a_product_of_matrices_reads_its_operands_and_writes_its_output_once():
    seen = bpref.compile_for("tpu-v5e", lambda x, y: x @ y, *2 * [S((512, 512), jnp.bfloat16)])
    assert (seen.arguments, seen.outputs, seen.accessed) == (2 * 2**19, 2**19, 3 * 2**19)
    assert seen.flops == 2 * 512**3
    assert seen.collectives == {}
    assert seen.cycles is not None


@needs_libtpu
def test_of_divided_examples_the_gradient_is_summed_over_all_chips_once():
    mesh = jax.sharding.Mesh(np.array(bpref.devices_of("tpu-v5e:2x2")), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    layer = bpref.linear(8, bias=False)
    x = S((512, 128), jnp.float32, sharding=rows)
    params = jax.eval_shape(lambda: layer.init(jax.random.key(0), S(x.shape, x.dtype)))

    def gradient(params, x):
        y, cache = layer.forward(params, x)
        return layer.backward(params, cache, y)[0]

    seen = bpref.compile_for("tpu-v5e:2x2", gradient, params, x)
    assert seen.collectives == {"all-reduce": 1}
    assert seen.arguments < bpref.compile_for("tpu-v5e", gradient, params, S(x.shape, x.dtype)).arguments


@needs_libtpu
def test_the_examples_of_a_rule_are_divided_where_a_topology_is_named():
    one, four = beside("relu", "tpu-v5e"), beside("relu", "tpu-v5e:2x2")
    assert one.hand.arguments == 4 * four.hand.arguments


@needs_libtpu
def test_what_does_not_fit_is_said_in_words():
    with pytest.raises(MemoryError, match=r"compile_for: tpu-v5e: RESOURCE_EXHAUSTED: .* exceeds available HBM"):
        bpref.compile_for("tpu-v5e", lambda x: jnp.sin(x @ x), S((2**17, 2**17), jnp.float32))


def test_a_model_has_the_shapes_of_its_gradient():
    """Nothing is drawn, so that the largest takes no room."""
    for name in ("gpt2", "mixtral-8x7b", "mamba-text", "lenet", "variational-autoencoder"):
        work = work_of(name)
        J, dparams = jax.eval_shape(work.by_hand, *work.arguments)
        assert J.shape == ()
        assert jax.tree.leaves(dparams), name


@pytest.mark.parametrize("name", CARDS)
def test_a_cards_facts_are_told_as_the_compiler_reads_them(name, monkeypatch):
    told = {}

    def get(name, platform, /, **options):
        told.update(options, platform=platform)
        return topologies.TopologyDescription(jax.devices() * 16)

    monkeypatch.setattr("bpref.devices.targets.topologies.get_topology_desc", get)
    assert len(target.__wrapped__(f"{name}:2x8").devices) == 16
    assert told == {"platform": "cuda", "topology": "1x2x8", "target_config": facts(CARDS[name])}
    assert f"core_count: {CARDS[name].cores}\n" in facts(CARDS[name])


def test_names_are_found_however_they_are_written():
    assert known("Blockwise-Attention") == "blockwise_attention"
    assert known("flash attention") == "blockwise_attention"
    assert known("ResNet50") == "resnet50"


def refusing(error):
    def get(*args, **options):
        raise error

    return get


WRONG = {
    "v5": (ValueError, "unknown target 'v5'; there is tpu-v5e, tpu-v5p, tpu-v6e, tpu-v7x, a100, h100, h200, b200"),
    "tpu-v5e:big": (ValueError, "target tpu-v5e:big: the topology is 'big', expected sizes such as 4x4"),
    "h100:2x2x2": (
        ValueError,
        "target h100:2x2x2: the topology is '2x2x2', expected cards, or hosts by cards, such as 2x8",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_target_that_there_is_not_is_refused(name):
    kind, message = WRONG[name]
    with pytest.raises(kind) as error:
        bpref.devices_of(name)
    assert str(error.value) == message


def test_what_is_no_program_is_refused():
    for f, args, message in [
        (3, (), "compile_for: f is an int, expected a function"),
        (jnp.sin, (), "compile_for: there is no array in args, expected one at least"),
    ]:
        with pytest.raises((TypeError, ValueError)) as error:
            bpref.compile_for("tpu-v5e", f, *args)  # type: ignore[arg-type]
        assert str(error.value) == message


@needs_libtpu
def test_a_topology_that_no_tpu_has_is_refused():
    with pytest.raises(ValueError, match=r"^target tpu-v5e:9x9: Topology layout .*; such as tpu-v5e:4x4$"):
        bpref.devices_of("tpu-v5e:9x9")


def test_without_its_compiler_the_extra_is_named(monkeypatch):
    where = "bpref.devices.targets.topologies.get_topology_desc"
    for name, raised, message in [
        (
            "tpu-v5e",
            RuntimeError("no TPU"),
            'target tpu-v5e: its compiler is not installed (libtpu): pip install "bpref[aot-tpu]"',
        ),
        (
            "h100",
            NotImplementedError("topology not implemented"),
            'target h100: its compiler is not installed (jax-cuda13-plugin): pip install "bpref[aot-cuda]"',
        ),
    ]:
        monkeypatch.setattr(where, refusing(raised))
        with pytest.raises(ImportError) as error:
            target.__wrapped__(name)
        assert str(error.value) == message


def test_a_compiler_that_fails_costs_only_the_form_that_it_fails_at(monkeypatch):
    def fails(target, f, *given):
        raise jax.errors.JaxRuntimeError("INTERNAL: no tile sizes satisfy dot.12\nthe rest of it")

    monkeypatch.setattr("bpref.devices.works.compile_for", fails)
    monkeypatch.setattr("bpref.devices.works.devices_of", lambda target: jax.devices()[:1])
    row = beside("tanh", "h100")
    assert row.hand == row.autodiff == "the compiler fails: INTERNAL: no tile sizes satisfy dot.12"
