"""gpt_published: the `config.json` that weights are published with, as a `GptConfig` or `MixtureConfig`, and back.

What the layers do not have exactly is refused: a file is read as the function that it means, or not at all.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from bpref.checks.hyperparameters import require_size
from bpref.formulas.attention.rotations import Stretch, fast_of
from bpref.models.gpt_config import GptConfig
from bpref.models.mixture import MixtureConfig
from bpref.nearest import require_known

ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_erf"}
ACTIVATIONS |= {"silu": "silu", "swish": "silu", "relu": "relu"}
"""Published names of activations; "gelu" is the erf form there."""

ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
_NONE = {"soft_cap": (None,), "logit_soft_cap": (None,), "scale": (None,), "window": (None,), "windowed": ((True,),)}
_NONE |= {"qk_norm": (False,), "zero_centred": (False,), "sandwich": (False,), "scaled_embedding": (False,)}
_NONE |= {"rotated": ((True,),)}
_LLAMA: dict[str, tuple] = _NONE | {"norm": ("rms",), "gated": (True,), "bias": (False,)}
_SANDWICH = dict.fromkeys(("zero_centred", "sandwich", "scaled_embedding"), (True,))
LAYOUTS = {
    "gpt2": _NONE | {"rope": (None,), "norm": ("layer",), "gated": (False,), "bias": (True,), "head_dim": (None,)},
    "llama": _LLAMA | {"bias": (False, True)},
    "mistral": _LLAMA | {"window": ()},
    "qwen2": _LLAMA | {"bias": ("qkv",)},
    "qwen3": _LLAMA | {"qk_norm": (True,)},
    "smollm3": _LLAMA | {"bias": (False, True), "rotated": ()},
    "gemma2": _LLAMA | _SANDWICH | dict.fromkeys(("window", "windowed", "soft_cap", "logit_soft_cap", "scale"), ()),
}
"""For each model what its config can say, none standing for anything; the first that fits is that of a config."""

ACTIVATION_OF = {"gemma2": ("hidden_activation", "gelu_pytorch_tanh")}
"""What the entry is called, and what it is where a config does not say it; hidden_act and silu of the others."""

WINDOWED = ("full_attention", "sliding_attention")
"""What `layer_types` calls a block without a window, and one with."""

HEAD_DIM = {"qwen3": 128, "gemma2": 256}
"""The features of a head where a config does not say them; of others they are the width over the heads."""

LLAMA_NAMES = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "context": "max_position_embeddings",
    "eps": "rms_norm_eps",
}
MIXTRAL_NAMES = {"experts": "num_local_experts", "k": "num_experts_per_tok", "window": "sliding_window"}
GPT2_NAMES = {
    "vocabulary": "vocab_size",
    "width": "n_embd",
    "depth": "n_layer",
    "heads": "n_head",
    "context": "n_positions",
    "eps": "layer_norm_epsilon",
}


def config_of(path: str | Path) -> GptConfig | MixtureConfig:
    """The config that a `config.json` says; what is of training, dropout and a mixture's penalties, is left as it is.

    Args:
      path: the file, or the directory or a file of the weights that it lies beside.

    Raises:
      OSError: there is no such file.
      ValueError: it is no JSON, of a model that is none of these, or has what the layers do not; the entry is named.

    The example is that of `load_weights`.
    """
    path = Path(path)
    if path.name != "config.json":
        path.stat()  # raises where there is nothing, lest what lies beside it be read
        path = (path if path.is_dir() else path.parent) / "config.json"
    try:
        of = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(of, dict):
        raise ValueError(f"{path} is no config, which is a JSON object")
    try:
        require_known("model_type", str(of.get("model_type")), ARCHITECTURES)
        return {"gpt2": _of_gpt2, "mixtral": _of_mixtral}.get(of["model_type"], _of_llama)(of)
    except KeyError as error:
        raise ValueError(f"{path}: there is no {error.args[0]}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def kind_of(config: GptConfig | MixtureConfig) -> str:
    """The published model that has such a config; `ValueError` where none has."""
    c = config
    if isinstance(c, MixtureConfig):
        if c.shared or c.capacity_factor is not None or c.rope is None:
            raise ValueError(f"no published layout that is known has shared experts or a capacity, as {config} has")
        return "mixtral"
    for kind, allowed in LAYOUTS.items():
        fits = all(getattr(c, name) in values for name, values in allowed.items() if values)
        if fits and (c.kv_heads in (None, c.heads) if kind == "gpt2" else c.rope is not None):
            return kind
    raise ValueError(
        f"no published layout has {config}; expected that of GPT-2, Llama, Mistral, Qwen 2 or 3, SmolLM 3 or Gemma 2"
    )


Published = dict[str, Any]
"""The entries of a `config.json`."""


def published_of(config: GptConfig | MixtureConfig, dtype: DTypeLike) -> Published:
    """The config as `config.json` has it."""
    c, kind = config, kind_of(config)
    if isinstance(c, MixtureConfig):
        return _published_mixture(c) | {"torch_dtype": jnp.dtype(dtype).name}
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
    of |= {"num_key_value_heads": c.kv_heads or c.heads, "rope_theta": c.rope}
    name, usual = ACTIVATION_OF.get(kind, ("hidden_act", "silu"))
    of[name] = usual if ACTIVATIONS[usual] == c.activation else acts[c.activation]
    if c.head_dim is not None or kind in HEAD_DIM:
        of["head_dim"] = c.D
    of |= {"rope_scaling": None if c.stretch is None else _scaling_of(c.stretch)}
    if kind == "mistral":
        of["sliding_window"] = c.window
    if kind == "smollm3":
        of["pad_token_id"] = None  # theirs by default, which a small vocabulary does not have
        of["no_rope_layers"] = [int(sight.rope is not None) for sight in c.group] * (c.depth // len(c.group))
    if kind == "gemma2":
        of |= {"attn_logit_softcapping": c.soft_cap, "final_logit_softcapping": c.logit_soft_cap}
        of |= {"query_pre_attn_scalar": _query_scalar(c), "sliding_window": c.window, "pad_token_id": None}
        of["layer_types"] = [WINDOWED[sight.window is not None] for sight in c.group] * (c.depth // len(c.group))
    if kind in ("llama", "smollm3"):
        of |= {"attention_bias": bool(c.bias), "mlp_bias": bool(c.bias)}
    return of


def _published_mixture(c: MixtureConfig) -> Published:
    of: Published = {"architectures": [ARCHITECTURES["mixtral"]], "model_type": "mixtral", "rope_theta": c.rope}
    of |= {theirs: getattr(c, ours) for ours, theirs in (LLAMA_NAMES | MIXTRAL_NAMES).items()}
    return of | {"num_key_value_heads": c.kv_heads or c.heads, "hidden_act": "silu", "tie_word_embeddings": False}


def _of_mixtral(of: Published) -> MixtureConfig:
    for name, known, usual in (
        ("hidden_act", ("silu", "swish"), "silu"),
        ("head_dim", (None, of["hidden_size"] // of["num_attention_heads"]), None),
        ("tie_word_embeddings", (False,), False),
    ):
        _require(of, name, known, usual)
    rope, stretch = _rope(of)
    if stretch is not None:
        raise ValueError(f"rope_type is {json.dumps(stretch.way)}, expected {json.dumps('default')}")
    names = LLAMA_NAMES | MIXTRAL_NAMES
    sizes: Published = {ours: of.get(theirs) if ours == "window" else of[theirs] for ours, theirs in names.items()}
    return MixtureConfig(**sizes, kv_heads=of.get("num_key_value_heads"), rope=rope)


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
    biases = [of.get(name) or False for name in ("attention_bias", "mlp_bias")]
    _require(of, "mlp_bias", (biases[0], None), False)
    if kind in HEAD_DIM:
        _require(of, "attention_bias", (False, None), False)
    rope, stretch = _rope(of)
    D, usual = of.get("head_dim", HEAD_DIM.get(kind)), of["hidden_size"] / of["num_attention_heads"]
    if kind == "gemma2":
        sizes |= _of_gemma2(of, D or usual)
    return GptConfig(
        **sizes,
        head_dim=None if usual == D else D,
        qk_norm=kind == "qwen3",
        kv_heads=of.get("num_key_value_heads"),
        rope=rope,
        stretch=stretch,
        activation=_activation(of, *ACTIVATION_OF.get(kind, ("hidden_act", "silu"))),
        bias="qkv" if kind == "qwen2" else biases[0],
        tied=of.get("tie_word_embeddings", kind in ("smollm3", "gemma2")),
        window=_window(of),
        rotated=_rotated(of) if kind == "smollm3" else (True,),
    )


def _of_gemma2(of: Published, D: float) -> Published:
    """What Gemma 2 alone has."""
    _require(of, "use_bidirectional_attention", (False, None), None)
    scalar = of.get("query_pre_attn_scalar", 256)
    return {
        "soft_cap": of.get("attn_logit_softcapping", 50.0),
        "logit_soft_cap": of.get("final_logit_softcapping", 30.0),
        "scale": None if scalar == D else scalar**-0.5,
        "windowed": _windowed(of),
        "zero_centred": True,
        "sandwich": True,
        "scaled_embedding": True,
    }


def _query_scalar(c: GptConfig) -> int:
    """What Gemma 2 divides by the root of."""
    scalar = c.D if c.scale is None else c.scale**-2
    if abs(scalar - round(scalar)) > 1e-6 * scalar:
        raise ValueError(f"no published layout has the scale {c.scale}; expected 1 / sqrt(n) of an integer n")
    return round(scalar)


def _rotated(of: Published) -> tuple[bool, ...]:
    """The pattern of SmolLM 3's blocks with rotations."""
    L, told = require_size("gpt", "depth", of["num_hidden_layers"]), of.get("no_rope_layers")
    if told is None:
        every = require_size("gpt", "no_rope_layer_interval", of.get("no_rope_layer_interval", 4))
        told = [int(i % every != 0) for i in range(1, L + 1)]
    if not isinstance(told, list) or len(told) < L or any(v not in (0, 1) for v in told):
        raise ValueError(
            f"no_rope_layers is {json.dumps(told)}, expected a list of 0 and 1, one for each of {L} layers"
        )
    return _pattern(bool(v) for v in told[:L])


def _windowed(of: Published) -> tuple[bool, ...]:
    """The pattern of Gemma 2's blocks with windows."""
    L = require_size("gpt", "depth", of["num_hidden_layers"])
    told = of.get("layer_types") or [WINDOWED[i % 2 == 0] for i in range(L)]
    if not isinstance(told, list) or len(told) != L or any(v not in WINDOWED for v in told):
        raise ValueError(f"layer_types is {json.dumps(told)}, expected one of {' and '.join(WINDOWED)} for each layer")
    return _pattern(v == WINDOWED[True] for v in told)


def _pattern(of_blocks: Iterable[bool]) -> tuple[bool, ...]:
    """The shortest one of which the blocks are repetitions."""
    blocks = tuple(of_blocks)
    L = len(blocks)
    return next(blocks[:p] for p in range(1, L + 1) if L % p == 0 and blocks[:p] * (L // p) == blocks)


def _window(of: Published) -> int | None:
    """Of Mistral every block's; Qwen has it in its upper blocks, if at all."""
    if of["model_type"] == "mistral" or (of["model_type"] == "gemma2" and any(_windowed(of))):
        return of.get("sliding_window", 4096)
    if of["model_type"] in ("qwen2", "qwen3", "smollm3"):
        _require(of, "use_sliding_window", (False, None), False)
    return None


def _rope(of: Published) -> tuple[float, Stretch | None]:
    """The base and the stretch, as older and newer files have them."""
    scaling = of.get("rope_parameters") or of.get("rope_scaling") or {}
    usual = {"smollm3": 2e6, "mixtral": 1e6}.get(of["model_type"], 10000.0)
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
