"""Presets have the numbers that transformers has by default, in its classes for the checkpoints that they name.

What `PUBLISHED` holds is what this has printed, of transformers 5.24:

    python -c "import transformers as t; [print(t.__dict__[c]().to_dict()) for c in ('GPT2Config', 'LlamaConfig', ...)]"
"""

from dataclasses import asdict

import pytest

from bpref.models.gpt_config import GPT_PRESETS
from bpref.models.gpt_published import GPT2_NAMES, LLAMA_NAMES
from bpref.models.mixture import MIXTURE_PRESETS

SIZES = {"vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
GROUPED = SIZES | {"num_key_value_heads": 8, "intermediate_size": 14336}
PUBLISHED = {
    "gpt2": (
        "GPT2Config",
        {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024}
        | {"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
    ),
    "llama-2-7b": (
        "LlamaConfig",
        SIZES | {"intermediate_size": 11008, "rope_theta": 1e4, "tie_word_embeddings": False},
    ),
    "mistral-7b": (
        "MistralConfig",
        GROUPED | {"sliding_window": 4096, "rope_theta": 1e4, "tie_word_embeddings": False},
    ),
    "mixtral-8x7b": (
        "MixtralConfig",
        GROUPED
        | {"sliding_window": None, "rope_theta": 1e6, "rms_norm_eps": 1e-5}
        | {"num_local_experts": 8, "num_experts_per_tok": 2},
    ),
}
"""Of Llama 2 and Mistral without eps and the longest context, where the classes have those of the first Llama."""

NAMES = {theirs: ours for names in (LLAMA_NAMES, GPT2_NAMES) for ours, theirs in names.items()}
NAMES |= {"num_key_value_heads": "kv_heads", "rope_theta": "rope", "sliding_window": "window"}
NAMES |= {"tie_word_embeddings": "tied", "num_local_experts": "experts", "num_experts_per_tok": "k"}
EVERY_PRESET = pytest.mark.parametrize("name", PUBLISHED)


@EVERY_PRESET
def test_a_preset_has_the_published_numbers(name):
    ours = asdict((GPT_PRESETS | MIXTURE_PRESETS)[name])
    published = PUBLISHED[name][1]
    assert {theirs: ours[NAMES[theirs]] for theirs in published} == published


@EVERY_PRESET
def test_the_published_numbers_are_those_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    kind, published = PUBLISHED[name]
    theirs = getattr(transformers, kind)().to_dict()
    assert {k: (theirs.get("rope_parameters") or theirs).get(k, theirs.get(k)) for k in published} == published
