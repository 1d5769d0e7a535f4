"""gpt_published: the `config.json` that weights are published with, as a `GptConfig`, and back.

What the layers do not have exactly is refused: a file is read as the function that it means, or not at all.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from bpref.checks.hyperparameters import require_size
from bpref.formulas.rotations import Stretch, fast_of
from bpref.models.gpt import GptConfig
from bpref.nearest import require_known

ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_erf"}
ACTIVATIONS |= {"silu": "silu", "swish": "silu", "relu": "relu"}
"""Published names of activations; "gelu" is the erf form there."""

ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
LLAMA_NAMES = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "context": "max_position_embeddings",
    "eps": "rms_norm_eps",
}
GPT2_NAMES = {
    "vocabulary": "vocab_size",
    "width": "n_embd",
    "depth": "n_layer",
    "heads": "n_head",
    "context": "n_positions",
    "eps": "layer_norm_epsilon",
}


def config_of(path: str | Path) -> GptConfig:
    """The config that a `config.json` says; dropout is that of training, and left at 0.

    Args:
      path: the file, or the directory or a file of the weights that it lies beside.

    Raises:
      OSError: there is no such file.
      ValueError: it is no JSON, of a model that is none of these, or has what the layers do not; the entry is named.

    The example is that of `load_weights`.
    """
    path = Path(path)
    if path.name != "config.json":
        path = (path if path.is_dir() else path.parent) / "config.json"
    try:
        of = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(of, dict):
        raise ValueError(f"{path} is no config, which is a JSON object")
    try:
        require_known("model_type", str(of.get("model_type")), ARCHITECTURES)
        return _of_gpt2(of) if of["model_type"] == "gpt2" else _of_llama(of)
    except KeyError as error:
        raise ValueError(f"{path}: there is no {error.args[0]}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def kind_of(config: GptConfig) -> str:
    """The published model that has such a config; `ValueError` where none has."""
    c = config
    alike = c.kv_heads in (None, c.heads)
    if c.soft_cap is not None or c.logit_soft_cap is not None:
        raise ValueError(f"no published layout that is known has soft caps, as {config} has")
    if not all(c.windowed):
        raise ValueError(f"no published layout that is known has windows in some blocks alone, as {config} has")
    if c.rope is None:
        if (c.norm, c.gated, bool(c.bias), c.bias, c.window, alike) == ("layer", False, True, True, None, True):
            return "gpt2"
    elif not all(c.rotated):
        if c.norm == "rms" and c.gated and isinstance(c.bias, bool) and c.window is None:
            return "smollm3"
    elif c.norm == "rms" and c.gated:
        if c.bias == "qkv" and c.window is None:
            return "qwen2"
        if c.bias is False or (c.bias is True and c.window is None):
            return "llama" if c.window is None else "mistral"
    raise ValueError(f"no published layout has {config}; expected that of GPT-2, Llama, Mistral, Qwen 2 or SmolLM 3")


Published = dict[str, Any]
"""The entries of a `config.json`."""


def published_of(config: GptConfig, dtype: DTypeLike) -> Published:
    """The config as `config.json` has it."""
    c, kind = config, kind_of(config)
    acts = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    if c.activation not in acts:
        raise ValueError(f"no published layout has the activation {c.activation!r}; expected {', '.join(acts)}")
    of = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "tie_word_embeddings": c.tied,
        "torch_dtype": jnp.dtype(dtype).name,
    }
    if kind == "gpt2":
        return of | {
            **{theirs: getattr(c, ours) for ours, theirs in GPT2_NAMES.items()},
            "n_inner": c.hidden,
            "activation_function": acts[c.activation],
        }
    of |= {theirs: getattr(c, ours) for ours, theirs in LLAMA_NAMES.items()}
    of |= {"num_key_value_heads": c.kv_heads or c.heads, "hidden_act": acts[c.activation], "rope_theta": c.rope}
    of |= {"rope_scaling": None if c.stretch is None else _scaling_of(c.stretch)}
    if kind == "mistral":
        of["sliding_window"] = c.window
    if kind == "smollm3":
        of["pad_token_id"] = None  # theirs by default, which a small vocabulary does not have
        of["no_rope_layers"] = [int(sight.rope is not None) for sight in c.group] * (c.depth // len(c.group))
    if kind in ("llama", "smollm3"):
        of |= {"attention_bias": bool(c.bias), "mlp_bias": bool(c.bias)}
    return of


def _of_gpt2(of: Published) -> GptConfig:
    for name, usual in {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}.items():
        _require(of, name, (usual,), usual)
    _require(of, "add_cross_attention", (False,), False)
    sizes = {ours: of[theirs] for ours, theirs in GPT2_NAMES.items()}
    return GptConfig(
        **sizes,
        hidden=of.get("n_inner") or 4 * of["n_embd"],
        rope=None,
        norm="layer",
        activation=_activation(of, "activation_function", "gelu_new"),
        gated=False,
        bias=True,
        tied=of.get("tie_word_embeddings", True),
    )


def _of_llama(of: Published) -> GptConfig:
    kind = of["model_type"]
    sizes = {ours: of[theirs] for ours, theirs in LLAMA_NAMES.items()}
    _require(of, "head_dim", (None, of["hidden_size"] // of["num_attention_heads"]), None)
    biases = [of.get(name) or False for name in ("attention_bias", "mlp_bias")]
    _require(of, "mlp_bias", (biases[0], None), False)
    rope, stretch = _rope(of)
    return GptConfig(
        **sizes,
        kv_heads=of.get("num_key_value_heads"),
        rope=rope,
        stretch=stretch,
        activation=_activation(of, "hidden_act", "silu"),
        bias="qkv" if kind == "qwen2" else biases[0],
        tied=of.get("tie_word_embeddings", kind == "smollm3"),
        window=_window(of),
        rotated=_rotated(of) if kind == "smollm3" else (True,),
    )


def _rotated(of: Published) -> tuple[bool, ...]:
    """The shortest pattern of which SmolLM 3's blocks with rotations are repetitions."""
    L, told = require_size("gpt", "depth", of["num_hidden_layers"]), of.get("no_rope_layers")
    if told is None:
        every = require_size("gpt", "no_rope_layer_interval", of.get("no_rope_layer_interval", 4))
        told = [int(i % every != 0) for i in range(1, L + 1)]
    if not isinstance(told, list) or len(told) < L or any(v not in (0, 1) for v in told):
        raise ValueError(
            f"no_rope_layers is {json.dumps(told)}, expected a list of 0 and 1, one for each of {L} layers"
        )
    blocks = tuple(bool(v) for v in told[:L])
    return next(blocks[:p] for p in range(1, L + 1) if L % p == 0 and blocks[:p] * (L // p) == blocks)


def _window(of: Published) -> int | None:
    """Of Mistral every block's; Qwen 2 has it in its upper blocks, if at all."""
    if of["model_type"] == "mistral":
        return of.get("sliding_window", 4096)
    if of["model_type"] in ("qwen2", "smollm3"):
        _require(of, "use_sliding_window", (False, None), False)
    return None


def _rope(of: Published) -> tuple[float, Stretch | None]:
    """The base and the stretch, as older and newer files have them."""
    scaling = of.get("rope_parameters") or of.get("rope_scaling") or {}
    usual = 2e6 if of["model_type"] == "smollm3" else 10000.0
    base = float(scaling.get("rope_theta") or of.get("rope_theta") or usual)
    way = scaling.get("rope_type", scaling.get("type", "default"))
    if way == "default":
        return base, None
    _require({"rope_type": way}, "rope_type", ("linear", "llama3", "yarn"), way)
    length = scaling.get("original_max_position_embeddings") or of["max_position_embeddings"]
    fast, slow = ("beta_fast", "beta_slow") if way == "yarn" else ("high_freq_factor", "low_freq_factor")
    _require(scaling, "attention_factor", (None,), None)
    return base, Stretch(way, float(scaling["factor"]), length, float(scaling.get(slow) or 1.0), scaling.get(fast))


def _scaling_of(stretch: Stretch) -> Published:
    fast, slow = ("beta_fast", "beta_slow") if stretch.way == "yarn" else ("high_freq_factor", "low_freq_factor")
    of: Published = {"rope_type": stretch.way, "factor": stretch.factor}
    if stretch.way == "linear":
        return of
    if stretch.way == "ntk":
        raise ValueError("no published layout has the stretch 'ntk'; expected linear, llama3 or yarn")
    return of | {fast: fast_of(stretch), slow: stretch.slow, "original_max_position_embeddings": stretch.length}


def _activation(of: Published, name: str, usual: str) -> str:
    _require(of, name, ACTIVATIONS, usual)
    return ACTIVATIONS[of.get(name, usual)]


def _require(of: Published, name: str, known: Iterable[object], usual: object) -> None:
    """Raise `ValueError` where an entry is none that the layers have."""
    if of.get(name, usual) not in tuple(known):
        expected = " or ".join(json.dumps(v) for v in dict.fromkeys(known))
        raise ValueError(f"{name} is {json.dumps(of[name])}, expected {expected}")
