"""gpt_config: the shape of a GPT, and the shapes that were published, by name."""

from dataclasses import dataclass
from math import lcm
from typing import NamedTuple

from bpref.checks.hyperparameters import require_flags, require_positive_or_none, require_size, require_sizes
from bpref.formulas.attention.rotations import Stretch
from bpref.formulas.random_draws import require_rate
from bpref.models.presets import preset
from bpref.rules.block.attention_block import attention_layer
from bpref.rules.block.mlp_block import mlp_layer


class Sight(NamedTuple):
    """What a block knows of positions: the base of its rotations, and how far back it sees; None: none, and all."""

    rope: float | None
    window: int | None


@dataclass(frozen=True)
class GptConfig:
    """The shape of a GPT; what has a default is Llama's.

    Attributes:
      vocabulary, width, depth, heads, hidden: V, d, L, heads of queries, and the MLP's hidden features.
      context: the longest sequence that it is made for; positions that are learned can have no longer one.
      kv_heads: heads of keys and values; as many as of queries where left out.
      rope, stretch: the base of the rotations, and how they reach further; None for learned positions.
      norm, eps: "rms" or "layer", and what is added to the mean square or variance.
      activation, gated: the MLP's, see `mlp_block`.
      bias: whether the blocks' products have biases; "qkv": those of queries, keys and values alone.
      tied: whether the head is the table of tokens.
      window: how many positions back a position sees, itself among them; None: all.
      rotated, windowed: which blocks, counted from the first, have the rotations and the window, again and again until
        the last: `(True, True, True, False)` leaves every fourth as it is. SmolLM 3 and Llama 4 rotate so (the latter
        with more besides), and Gemma 2 has `windowed=(True, False)`. The depth is a multiple of each length.
      soft_cap, logit_soft_cap: what no logit of the attention, and none of the tokens, reaches; None: no bound.
      dropout: the share that is dropped of the embeddings, and of what each half of a block adds.
      attention_dropout: the share that is dropped of the weights of the attention.
      head_dim: the features D of a head; d / heads where left out.
      scale: what the dot products of queries and keys are multiplied by; 1 / sqrt(D) where left out.
      qk_norm: whether queries and keys are normalized, head by head, before they are rotated, see `qk_norm`.
      zero_centred: whether the scales of the norms are stored less 1.
      sandwich: whether what each half of a block adds is normalized as well.
      scaled_embedding: whether the embeddings are multiplied by sqrt(d), so that a tied head is not. Qwen 3 has the
        norm of queries and keys, and Gemma 2 the other three.

    Raises:
      ValueError: a number is out of its range, or heads do not divide the width, and there is no head_dim, or
        kv_heads the heads, or a pattern does not divide the depth, or says which blocks have what none has.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    hidden: int
    context: int
    kv_heads: int | None = None
    rope: float | None = 10000.0
    stretch: Stretch | None = None
    norm: str = "rms"
    eps: float = 1e-5
    activation: str = "silu"
    gated: bool = True
    bias: bool | str = False
    tied: bool = False
    window: int | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    soft_cap: float | None = None
    logit_soft_cap: float | None = None
    rotated: tuple[bool, ...] = (True,)
    windowed: tuple[bool, ...] = (True,)
    head_dim: int | None = None
    scale: float | None = None
    qk_norm: bool = False
    zero_centred: bool = False
    sandwich: bool = False
    scaled_embedding: bool = False

    def __post_init__(self) -> None:
        who = "gpt"
        sizes = ("vocabulary", "width", "depth", "heads", "hidden", "context")
        require_sizes(who, **{name: getattr(self, name) for name in sizes})
        if self.head_dim is not None:
            require_size(who, "head_dim", self.head_dim)
        elif self.width % self.heads:
            raise ValueError(f"{who}: width is {self.width}, expected a multiple of heads, {self.heads}")
        if self.rope is not None and self.D % 2:
            raise ValueError(f"{who}: width is {self.width}, {self.D} for each of {self.heads} heads; RoPE turns pairs")
        flags = ("tied", "gated", "qk_norm", "zero_centred", "sandwich", "scaled_embedding")
        require_flags(who, **{name: getattr(self, name) for name in flags})
        require_positive_or_none(who, "scale", self.scale)
        require_rate(who, self.dropout, "dropout")
        require_positive_or_none(who, "logit_soft_cap", self.logit_soft_cap)
        require_rate(who, self.attention_dropout, "attention_dropout")
        of_attention = self.rope, True, self.window, self.bias, self.eps, 128, self.stretch, self.soft_cap
        attention_layer(who, self.heads, self.kv_heads, self.norm, *of_attention)
        mlp_layer(who, self.hidden, self.activation, self.gated, self.norm, False, self.eps)
        if self.composed and self.bias == "qkv":
            raise ValueError(f"{who}: bias is 'qkv', expected True or False with qk_norm, zero_centred or a scale")
        self._require_patterns(who)

    @property
    def D(self) -> int:
        """The features of a head."""
        return self.width // self.heads if self.head_dim is None else self.head_dim

    @property
    def composed(self) -> bool:
        """Whether a block's attention has what `attention_block` has not, and is composed of its parts."""
        return self.qk_norm or self.zero_centred or self.scale is not None

    @property
    def group(self) -> tuple[Sight, ...]:
        """The blocks that are repeated: the first of all, and those after it."""
        rotated, windowed = self.rotated, self.windowed
        return tuple(
            Sight(
                self.rope if rotated[i % len(rotated)] else None,
                self.window if windowed[i % len(windowed)] else None,
            )
            for i in range(lcm(len(rotated), len(windowed)))
        )

    def _require_patterns(self, who: str) -> None:
        for name, of in (("rotated", "rope"), ("windowed", "window")):
            pattern = getattr(self, name)
            if not (isinstance(pattern, tuple) and pattern and all(isinstance(v, bool) for v in pattern)):
                raise ValueError(
                    f"{who}: {name} is {pattern!r}, expected a tuple of True and False, such as (True, False)"
                )
            if getattr(self, of) is None and pattern != (True,):
                raise ValueError(f"{who}: {name} is {pattern}, but {of} is None: no block has any")
        if self.depth % len(self.group):
            raise ValueError(
                f"{who}: depth is {self.depth}, expected a multiple of {len(self.group)}, after which rotated, "
                f"{self.rotated}, and windowed, {self.windowed}, begin again together"
            )


def as_config(config: GptConfig | str) -> GptConfig:
    """The config, or the preset of this name."""
    return preset("gpt", config, GptConfig, GPT_PRESETS)


def _gpt2(width: int, depth: int, heads: int) -> GptConfig:
    of_gpt2 = {"norm": "layer", "activation": "gelu", "gated": False, "bias": True, "tied": True}
    return GptConfig(50257, width, depth, heads, 4 * width, 1024, rope=None, **of_gpt2)


def _qwen2(vocabulary: int, width: int, depth: int, heads: int, hidden: int, kv_heads: int, tied: bool) -> GptConfig:
    of_qwen2 = {"rope": 1e6, "eps": 1e-6, "bias": "qkv", "tied": tied}
    return GptConfig(vocabulary, width, depth, heads, hidden, 131072, kv_heads, **of_qwen2)


def _llama3(width: int, depth: int, heads: int, hidden: int, factor: float, tied: bool = False) -> GptConfig:
    stretch = Stretch("llama3", factor, 8192, 1.0, 4.0)
    return GptConfig(128256, width, depth, heads, hidden, 131072, 8, rope=5e5, stretch=stretch, tied=tied)


def _qwen3(width: int, depth: int, heads: int, hidden: int, tied: bool) -> GptConfig:
    of_qwen3 = {"rope": 1e6, "eps": 1e-6, "tied": tied, "head_dim": 128, "qk_norm": True}
    return GptConfig(151936, width, depth, heads, hidden, 40960, 8, **of_qwen3)


def _gemma2(
    width: int, depth: int, heads: int, hidden: int, kv_heads: int, head_dim: int = 256, scale: float | None = None
) -> GptConfig:
    of_gemma2 = {"activation": "gelu", "eps": 1e-6, "tied": True, "window": 4096, "windowed": (True, False)}
    of_gemma2 |= {"soft_cap": 50.0, "logit_soft_cap": 30.0, "head_dim": head_dim, "scale": scale}
    of_gemma2 |= {"zero_centred": True, "sandwich": True, "scaled_embedding": True}
    return GptConfig(256000, width, depth, heads, hidden, 8192, kv_heads, **of_gemma2)


GPT_PRESETS: dict[str, GptConfig] = {
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "llama-2-7b": GptConfig(32000, 4096, 32, 32, 11008, 4096),
    "llama-2-13b": GptConfig(32000, 5120, 40, 40, 13824, 4096),
    "llama-2-70b": GptConfig(32000, 8192, 80, 64, 28672, 4096, 8),
    "llama-3-8b": GptConfig(128256, 4096, 32, 32, 14336, 8192, 8, rope=5e5),
    "llama-3.1-8b": _llama3(4096, 32, 32, 14336, 8.0),
    "llama-3.2-1b": _llama3(2048, 16, 32, 8192, 32.0, tied=True),
    "llama-3.2-3b": _llama3(3072, 28, 24, 8192, 32.0, tied=True),
    "mistral-7b": GptConfig(32000, 4096, 32, 32, 14336, 32768, 8, window=4096),
    "qwen2-0.5b": _qwen2(151936, 896, 24, 14, 4864, 2, True),
    "qwen2-1.5b": _qwen2(151936, 1536, 28, 12, 8960, 2, True),
    "qwen2-7b": _qwen2(152064, 3584, 28, 28, 18944, 4, False),
    "qwen3-0.6b": _qwen3(1024, 28, 16, 3072, True),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 6144, True),
    "qwen3-4b": _qwen3(2560, 36, 32, 9728, True),
    "qwen3-8b": _qwen3(4096, 36, 32, 12288, False),
    "gemma-2-2b": _gemma2(2304, 26, 8, 9216, 4),
    "gemma-2-9b": _gemma2(3584, 42, 16, 14336, 8),
    "gemma-2-27b": _gemma2(4608, 46, 32, 36864, 16, head_dim=128, scale=144**-0.5),
    "smollm2-135m": GptConfig(49152, 576, 30, 9, 1536, 8192, 3, rope=1e5, tied=True),
    "smollm2-360m": GptConfig(49152, 960, 32, 15, 2560, 8192, 5, rope=1e5, tied=True),
    "smollm2-1.7b": GptConfig(49152, 2048, 24, 32, 8192, 8192, rope=130000.0, tied=True),
    "smollm3-3b": GptConfig(
        128256, 2048, 36, 16, 11008, 65536, 4, rope=5e6, eps=1e-6, tied=True, rotated=(True, True, True, False)
    ),
}
"""Published shapes by name, those alone that the layers have exactly."""
