"""Weights of others: small models that `transformers` writes, loss and every gradient beside PyTorch's, and back."""

import json
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bpref
from bpref.models import gpt_weights
from bpref.models.gpt_published import published_of
from tests.refusing import refusals

LLAMA = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "original_max_position_embeddings": 16}
GEMMA2 = {"head_dim": 6, "query_pre_attn_scalar": 9, "sliding_window": 5, "pad_token_id": None}
GEMMA2 |= {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0}
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24, "bos_token_id": 0}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "eos_token_id": 0}
MODELS = {
    "gpt2": ("GPT2", GPT2 | NO_DROPOUT),
    "llama": ("Llama", LLAMA),
    "llama 3.1, tied": ("Llama", LLAMA | {"tie_word_embeddings": True, "rope_theta": 5e5, "rope_scaling": LLAMA3}),
    "llama, biases, yarn": ("Llama", LLAMA | {"attention_bias": True, "mlp_bias": True, "rope_scaling": YARN}),
    "mistral, a window": ("Mistral", LLAMA | {"sliding_window": 5}),
    "qwen2": ("Qwen2", LLAMA),
    "qwen2, tied": ("Qwen2", LLAMA | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", LLAMA | {"head_dim": 6, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2", LLAMA | GEMMA2),
    "smollm2, tied": ("Llama", LLAMA | {"tie_word_embeddings": True, "rope_theta": 1e5, "num_key_value_heads": 1}),
    "mixtral": ("Mixtral", LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5}),
    "smollm3": ("SmolLM3", LLAMA | {"num_hidden_layers": 6, "no_rope_layers": [1, 0, 1] * 2, "pad_token_id": None}),
}
ALL = pytest.mark.parametrize(("family", "given"), MODELS.values(), ids=MODELS)


@pytest.fixture
def written(tmp_path):
    """A model of a family, randomly initialised and spread, and the directory that `save_pretrained` made."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")

    def write(family, given, **how):
        torch.manual_seed(0)
        head = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
        model = getattr(transformers, family + head)(getattr(transformers, f"{family}Config")(**given))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn(p.shape))
        model.save_pretrained(tmp_path / "theirs", **how)
        return model, tmp_path / "theirs"

    return write


@ALL
def test_loss_and_every_gradient_agree_with_pytorchs(family, given, written, tmp_path):
    import torch

    model, path = written(family, given)
    ids, labels = np.random.default_rng(0).integers(0, 61, (2, 3, 17))
    J = torch.nn.functional.cross_entropy(model(torch.tensor(ids)).logits.mT, torch.tensor(labels))
    J.backward()

    config = bpref.config_of(path)
    of_a_mixture = isinstance(config, bpref.MixtureConfig)
    objective = bpref.evaluation((bpref.mixture_objective if of_a_mixture else bpref.gpt_objective)(config))
    params = bpref.load_weights(config, path)
    x = jnp.asarray(ids, jnp.int32), jnp.asarray(labels, jnp.int32)
    value, dparams, _ = jax.jit(lambda p: bpref.backpropagate(objective, p, x))(params)
    assert float(value) == pytest.approx(float(J.detach()), rel=1e-6)
    bpref.save_weights(config, dparams, tmp_path / "gradient")  # by their names
    ours = load_file(tmp_path / "gradient/model.safetensors")
    for p in model.parameters():
        p.data = p.grad
    model.save_pretrained(tmp_path / "their_gradient")
    saved = load_file(tmp_path / "their_gradient/model.safetensors")
    theirs = {name.removeprefix("transformer."): v for name, v in saved.items()}
    assert ours.keys() == theirs.keys()
    worst = {name: np.linalg.norm(ours[name] - g) / np.linalg.norm(g) for name, g in theirs.items()}
    assert max(worst.values()) <= 1e-5  # 1.3e-6 seen


@ALL
def test_what_is_exported_their_program_loads_back_equal(family, given, written, tmp_path):
    import torch

    model, path = written(family, given)
    config = bpref.config_of(path)
    bpref.save_weights(config, bpref.load_weights(config, path), tmp_path / "ours")
    again = type(model).from_pretrained(tmp_path / "ours")
    assert again.dtype == model.dtype
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
    ids = torch.tensor(np.random.default_rng(0).integers(0, 61, (3, 17)))
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert bpref.config_of(tmp_path / "ours") == config


@pytest.mark.parametrize("name", bpref.GPT_PRESETS)
def test_a_preset_has_the_shapes_of_their_model(name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = bpref.GPT_PRESETS[name]
    published = published_of(config, jnp.float32)
    of_theirs = transformers.AutoConfig.for_model(**published)
    with torch.device("meta"):
        model = getattr(transformers, published["architectures"][0])(of_theirs)
    model.tie_weights()
    theirs = {n.removeprefix("transformer."): tuple(p.shape) for n, p in model.named_parameters()}
    assert theirs == {n: place.shape for n, place in gpt_weights.places_of(config).items()}


SMALL = bpref.GptConfig(11, 8, 2, 2, 12, 8, rope=None, norm="layer", activation="gelu", gated=False, bias=True)
UNTIED = bpref.GptConfig(11, 8, 2, 2, 12, 8, kv_heads=1)


def saved(config, path, dtype=jnp.float32):
    params = bpref.gpt(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    params = jax.tree.map(lambda v: v.astype(dtype), params)
    bpref.save_weights(config, params, path)
    return params


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert all(jax.tree.leaves(jax.tree.map(lambda u, v: u.dtype == v.dtype and bool((u == v).all()), a, b)))


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, tied=True), UNTIED, replace(UNTIED, tied=True)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_saved_loads_back_equal_in_its_dtype(config, dtype, tmp_path):
    params = saved(config, tmp_path, dtype)
    assert bpref.config_of(tmp_path) == config
    assert_equal(bpref.load_weights(config, tmp_path), params)
    wide = bpref.load_weights(config, tmp_path / "model.safetensors", jnp.float32)
    assert_equal(wide, jax.tree.map(lambda v: v.astype(jnp.float32), params))


def test_dropout_changes_no_name(tmp_path):
    config = replace(SMALL, tied=True)
    params = saved(config, tmp_path)
    dropping = replace(config, dropout=0.5)
    loaded = bpref.load_weights(dropping, tmp_path)
    x = jnp.zeros((1, 2), jnp.int32)
    assert jax.tree.structure(loaded) == jax.tree.structure(bpref.gpt(dropping).init(jax.random.key(0), x))
    state = bpref.begin(bpref.gpt(dropping), jax.random.key(0), x)[1]
    (logits, _), _ = bpref.evaluation(bpref.gpt(dropping)).forward(loaded, bpref.With(x, state))
    np.testing.assert_allclose(logits, bpref.gpt(config).forward(params, x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("model.safetensors", "PK", " is no file of safetensors: "),
        ("model.safetensors.index.json", "[]", " is no index of safetensors, which names a file for each tensor"),
        ("model.safetensors.index.json", "{}", " is no index of safetensors, which names a file for each tensor"),
        ("config.json", "[]", " is no config, which is a JSON object"),
        ("config.json", "{", " is no JSON: "),
        ("config.json", '{"model_type": "gpt2"}', ": there is no vocab_size"),
    ],
)
def test_files_of_something_else_are_refused(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    read = bpref.config_of if name == "config.json" else lambda path: bpref.load_weights(UNTIED, path)
    with pytest.raises(ValueError, match="^" + re.escape(f"{tmp_path / name}{message}")):
        read(tmp_path / name)


def test_what_is_not_there_is_not_read_beside_it(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(published_of(UNTIED, jnp.float32)))
    with pytest.raises(FileNotFoundError, match=re.escape(f"No such file or directory: '{tmp_path / 'lama'}'")):
        bpref.config_of(tmp_path / "lama")


def test_names_with_the_models_before_them_masks_and_a_head_that_is_the_table_are_taken(tmp_path):
    config = replace(SMALL, tied=True)
    params = saved(config, tmp_path)
    tensors = {f"transformer.{name}": v for name, v in load_file(tmp_path / "model.safetensors").items()}
    tensors["transformer.h.0.attn.bias"] = np.ones((1, 1, 8, 8), np.uint8)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    save_file(tensors, tmp_path / "other.safetensors")
    assert_equal(bpref.load_weights(config, tmp_path / "other.safetensors"), params)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"lm_head.weight is another array than wte.weight, and this config's head"):
        bpref.load_weights(config, tmp_path / "other.safetensors")


def test_several_files_are_found_by_their_index(tmp_path):
    params = saved(UNTIED, tmp_path)
    tensors, half = load_file(tmp_path / "model.safetensors"), {}
    for i, name in enumerate(tensors):
        half[name] = f"part-{i % 2}.safetensors"
    for file in set(half.values()):
        save_file({name: v for name, v in tensors.items() if half[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors").unlink()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": half}))
    assert_equal(bpref.load_weights(UNTIED, tmp_path), params)
    assert_equal(bpref.load_weights(UNTIED, index), params)
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"part-1\.safetensors"):
        bpref.load_weights(UNTIED, tmp_path)


def test_every_tensor_that_is_wrong_is_named_at_once(tmp_path):
    saved(UNTIED, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"], tensors["model.layers.1.self_attn.q_proj.weight"]
    tensors["model.layers.2.mlp.up_proj.weight"] = np.ones((12, 8), np.float32)
    tensors["lm_head.weight"] = np.ones((8, 11), np.float32)
    tensors["model.layers.0.mlp.up_proj.weight"] = np.ones((12, 8), np.int8)
    save_file(tensors, file)
    with pytest.raises(ValueError) as refused:
        bpref.load_weights(UNTIED, file)
    before, wrong = str(refused.value).split(": ")
    assert before == f"{file} does not hold the weights of this config"
    assert set(wrong.split("; ")) == {
        "model.norm.weight is missing, (8,)",
        "model.layers.1.self_attn.q_proj.weight is missing, (8, 8)",
        "model.layers.2.mlp.up_proj.weight is one too many, (12, 8)",
        "lm_head.weight has shape (8, 11), expected (11, 8)",
        "model.layers.0.mlp.up_proj.weight has dtype I8, expected one of F64, F32, F16, BF16",
    }


def test_files_of_two_dtypes_need_one_that_is_named(tmp_path):
    saved(UNTIED, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float16)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"model.safetensors holds float16 and float32; name one of them as dtype$"):
        bpref.load_weights(UNTIED, file)
    assert {v.dtype for v in jax.tree.leaves(bpref.load_weights(UNTIED, file, jnp.float32))} == {jnp.dtype("float32")}


def test_nothing_on_disk_is_lost_and_nothing_absent_is_read(tmp_path):
    params = saved(UNTIED, tmp_path)
    with pytest.raises(FileExistsError, match=r"model.safetensors exists already; name a directory without it$"):
        bpref.save_weights(UNTIED, params, tmp_path)
    with pytest.raises(ValueError, match=r"^save_weights: blocks.*positions.W of params are not as the network of"):
        bpref.save_weights(SMALL, params, tmp_path / "other")
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none.model.safetensors$"):
        bpref.load_weights(UNTIED, tmp_path / "none")
    with pytest.raises(ValueError, match=r"^no published layout has GptConfig\(.*; expected that of GPT-2, Llama,"):
        bpref.load_weights(replace(UNTIED, norm="layer"), tmp_path)


WRONG = {
    "unknown model_type 'gpt3'; the nearest is gpt2": {"model_type": "gpt3"},
    'hidden_act is "gelu_fast", expected "gelu_new" or "gelu_pytorch_tanh" or': {"hidden_act": "gelu_fast"},
    'layer_types is ["full_attention"], expected one of full_attention and sliding_attention for each layer': (
        {"model_type": "gemma2", "layer_types": ["full_attention"]}
    ),
    "use_bidirectional_attention is true, expected false or null": (
        {"model_type": "gemma2", "use_bidirectional_attention": True}
    ),
    "attention_bias is true, expected": {"model_type": "qwen3", "attention_bias": True, "mlp_bias": True},
    "mlp_bias is false, expected true or null": {"attention_bias": True},
    'rope_type is "dynamic", expected "linear" or': {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "use_sliding_window is true, expected false": {"model_type": "smollm3", "use_sliding_window": True},
    "head_dim is 8, expected null or 4": (
        {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
    ),
    "no_rope_layers is [1, 2], expected a list of 0 and 1, one for each of 2 layers": (
        {"model_type": "smollm3", "no_rope_layers": [1, 2]}
    ),
    "gpt: vocabulary is None, expected a positive integer": {"vocab_size": None},
}


@pytest.mark.parametrize(("message", "changed"), WRONG.items(), ids=WRONG)
def test_a_config_that_the_layers_do_not_have_is_refused(message, changed, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(published_of(UNTIED, jnp.float32) | changed))
    with pytest.raises(ValueError, match="^" + re.escape(f"{file}: {message}")):
        bpref.config_of(tmp_path)


NO_LAYOUT = {
    "no published layout has the scale 0.3; expected 1 / sqrt(n) of an integer n": (
        replace(bpref.GPT_PRESETS["gemma-2-2b"], scale=0.3)
    ),
    "no published layout that is known has shared experts or a capacity, as Mix...": (
        bpref.MixtureConfig(11, 8, 2, 2, 12, shared=1)
    ),
}

test_what_no_layout_has_is_refused = refusals(NO_LAYOUT, lambda config: published_of(config, jnp.float32))
