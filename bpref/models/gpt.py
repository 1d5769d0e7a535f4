"""gpt: a decoder of transformer blocks, from token ids to logits, as GPT-2, Llama, Mistral, Qwen 2 and SmolLM have it.

With ids s of shape (B, T), V tokens, d features and L blocks, E the table of tokens and P that of positions, if they
are learned (RoPE has them in the attention):

    x[0] = E_s (+ P)                                                      (B, T, d)
    h[l] = x[l-1] + attention(norm(x[l-1]))                               l = 1 ... L, see `attention_block`
    x[l] = h[l] + mlp(norm(h[l]))                                         see `mlp_block`
    z    = norm(x[L]) W^T                                                 (B, T, V), W = E where it is tied
    z    = t tanh(z / t)                                                  where there is a soft cap t of the logits
    J    = mean over all positions of -log softmax(z)_y                   y: the next tokens, (B, T)

Blocks may be of several kinds, in a pattern of p of them that is repeated: some without rotations, some with a window.
The loop is then over L / p groups, a group's blocks one after the other.

Training never makes z whole: the fused loss takes W's place at the head, under its name, so that the network generates
with the params that the objective was trained with.

Sources: GPT-2: Radford et al., 'Language models are unsupervised multitask learners' (2019); Llama: arXiv:2302.13971,
2: arXiv:2307.09288, 3: arXiv:2407.21783; Mistral: arXiv:2310.06825; Qwen 2: arXiv:2407.10671; SmolLM 2:
arXiv:2502.02737; soft caps, and windows in every other block: Gemma 2, arXiv:2408.00118; blocks without rotations:
arXiv:2305.19466, and among others with them arXiv:2501.18795.
"""

from dataclasses import dataclass
from math import lcm
from typing import NamedTuple

from bpref.checks.hyperparameters import require_flags, require_positive_or_none, require_sizes
from bpref.compose import objective, residual, scan, serial, shared
from bpref.compose import remat as remat_of
from bpref.formulas.random_draws import require_rate
from bpref.formulas.rotations import Stretch
from bpref.layer import Layer
from bpref.models.presets import preset
from bpref.rules.activation.soft_cap import soft_cap
from bpref.rules.block.attention_block import attention_block, attention_layer
from bpref.rules.block.mlp_block import mlp_block, mlp_layer
from bpref.rules.block.transformer_block import transformer_block
from bpref.rules.linear.embedding import embedding
from bpref.rules.linear.linear import linear
from bpref.rules.linear.position_embedding import position_embedding
from bpref.rules.norm.layer_norm import layer_norm
from bpref.rules.norm.rms_norm import rms_norm
from bpref.rules.sequence_loss.fused_linear_cross_entropy import fused_linear_cross_entropy
from bpref.rules.stochastic.dropout import dropout
from bpref.transforms.stateful import stateful


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

    Raises:
      ValueError: a number is out of its range, or heads do not divide the width, or kv_heads the heads, or a pattern
        does not divide the depth, or says which blocks have what none has.
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

    def __post_init__(self) -> None:
        who = "gpt"
        sizes = ("vocabulary", "width", "depth", "heads", "hidden", "context")
        require_sizes(who, **{name: getattr(self, name) for name in sizes})
        D, rest = divmod(self.width, self.heads)
        if rest:
            raise ValueError(f"{who}: width is {self.width}, expected a multiple of heads, {self.heads}")
        if self.rope is not None and D % 2:
            raise ValueError(f"{who}: width is {self.width}, {D} for each of {self.heads} heads; RoPE turns pairs")
        require_flags(who, tied=self.tied, gated=self.gated)
        require_rate(who, self.dropout, "dropout")
        require_positive_or_none(who, "logit_soft_cap", self.logit_soft_cap)
        require_rate(who, self.attention_dropout, "attention_dropout")
        of_attention = self.rope, True, self.window, self.bias, self.eps, 128, self.stretch, self.soft_cap
        attention_layer(who, self.heads, self.kv_heads, self.norm, *of_attention)
        mlp_layer(who, self.hidden, self.activation, self.gated, self.norm, False, self.eps)
        self._require_patterns(who)

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


def gpt(config: GptConfig | str, remat: bool = False) -> Layer:
    """The network: token ids `(B, T)` to logits `(B, T, V)`.

    Params are `{"body": {"embed", "positions", "blocks", "norm"}, "head"}`, without positions for RoPE; the blocks' are
    stacked along a first axis, of the depth; where `config.group` has several, they are a tuple of as many, each one
    stacked along an axis of the groups. Where the head is tied params are `{"shared", "network"}`, see `shared`.

    Args:
      config: a `GptConfig`, or the name of one of `GPT_PRESETS`.
      remat: whether of each block its input alone is kept for the backward.

    Returns:
      A layer; with dropout a stateful one, whose x is `With(ids, state)`. `evaluation` of it drops nothing.

    Raises:
      ValueError: there is no such preset; x has more positions than can be learned.
      TypeError: the config is neither; x does not hold integers.

    Example:
      >>> network = gpt(GptConfig(vocabulary=256, width=64, depth=2, heads=4, hidden=128, context=32))
      >>> ids = jnp.zeros((1, 32), jnp.int32)
      >>> logits, _ = network.forward(network.init(jax.random.key(0), ids), ids)
      >>> logits.shape
      (1, 32, 256)
    """
    config = as_config(config)
    return _finished(config, serial(body=_body(config, remat), head=_head(config.vocabulary, config.logit_soft_cap)))


def gpt_objective(
    config: GptConfig | str,
    remat: bool = False,
    ignored: int | None = None,
    rows: int | None = None,
    head: Layer | None = None,
) -> Layer:
    """What is trained: ids and labels, the next tokens, both `(B, T)`, to the mean cross-entropy J.

    Params are those of `gpt(config)`: what is trained here generates there. The logits are never made whole. With a
    `head` it is what that makes of features and labels: the loss of a policy.

    Args:
      config, remat: as of `gpt`.
      ignored: a label, such as -100, whose positions do not count.
      rows: how many positions the loss takes at once, see `fused_linear_cross_entropy`.
      head: a layer of `(features, what goes with ids)` whose params are W (V, d) and no b, in the place of the
        cross-entropy, such as `fused_linear_policy_loss(V, "dpo")`; it has `ignored`, `rows` and a soft cap of its own.

    Returns:
      A layer of x = `(ids, labels)`; with dropout a stateful one, whose x is `With((ids, labels), state)`.

    Raises:
      ValueError, TypeError: as of `gpt` and `fused_linear_cross_entropy`.

    Example:
      >>> config = GptConfig(vocabulary=256, width=64, depth=2, heads=4, hidden=128, context=32)
      >>> text = jnp.arange(33)[None]
      >>> ids, labels = text[:, :-1], text[:, 1:]
      >>> objective = gpt_objective(config, remat=True)
      >>> params = objective.init(jax.random.key(0), (ids, labels))
      >>> J, dparams, _ = backpropagate(objective, params, (ids, labels))
      >>> logits, _ = gpt(config).forward(params, ids)
      >>> J.shape, logits.shape
      ((), (1, 32, 256))
    """
    config = as_config(config)
    if head is None:
        cap = config.logit_soft_cap
        head = fused_linear_cross_entropy(config.vocabulary, ignored=ignored, soft_cap=cap, rows=rows)
    elif (ignored, rows) != (None, None):
        raise ValueError("gpt_objective: ignored and rows are of the cross-entropy; a head has its own")
    return _finished(config, objective(body=_body(config, remat), head=head))


def as_config(config: GptConfig | str) -> GptConfig:
    """The config, or the preset of this name."""
    return preset("gpt", config, GptConfig, GPT_PRESETS)


def _body(config: GptConfig, remat: bool) -> Layer:
    """Ids to features, (B, T, d)."""
    require_flags("gpt", remat=remat)
    kinds = {sight: _block(config, sight) for sight in config.group}
    if remat:
        kinds = {sight: remat_of(block) for sight, block in kinds.items()}
    blocks = [kinds[sight] for sight in config.group]
    layers: dict[str, Layer] = {"embed": embedding(config.vocabulary, config.width)}
    if config.rope is None:
        layers["positions"] = position_embedding(config.context)
    if config.dropout:
        layers["drop"] = dropout(config.dropout)
    group: Layer = blocks[0] if len(blocks) == 1 else serial(*blocks)
    layers["blocks"] = scan(group, config.depth // len(blocks))
    layers["norm"] = layer_norm(config.eps) if config.norm == "layer" else rms_norm(config.eps)
    return serial(**layers)


def _head(vocabulary: int, cap: float | None) -> Layer:
    """Features to logits; with a soft cap too the params are those of the product alone, as the fused loss has them."""
    product = linear(vocabulary, bias=False)
    if cap is None:
        return product
    capped = soft_cap(cap)

    def forward(params, x):
        u, of_product = product.forward(params, x)
        z, of_cap = capped.forward((), u)
        return z, (of_product, of_cap)

    def backward(params, cache, dz):
        return product.backward(params, cache[0], capped.backward((), cache[1], dz)[1])

    return product._replace(forward=forward, backward=backward, name="capped_linear")


def _block(config: GptConfig, sight: Sight) -> Layer:
    c, stretch = config, None if sight.rope is None else config.stretch
    own = sight._asdict() | {"bias": c.bias, "stretch": stretch, "soft_cap": c.soft_cap}
    own |= {"eps": c.eps, "dropout": c.attention_dropout}
    if not c.dropout:
        return transformer_block(c.heads, c.hidden, c.kv_heads, c.activation, c.gated, c.norm, **own)
    attention = attention_block(c.heads, c.kv_heads, c.norm, **own)
    mlp = mlp_block(c.hidden, c.activation, c.gated, c.norm, bool(c.bias) and c.bias != "qkv", c.eps)
    halves = {"attention": attention, "mlp": mlp}
    return serial(**{name: residual(serial(half, dropout(c.dropout))) for name, half in halves.items()})


def _finished(config: GptConfig, layer: Layer) -> Layer:
    if config.tied:
        layer = shared(layer, ("body.embed.W", "head.W"))
    return stateful(layer) if config.dropout or config.attention_dropout else layer


def _gpt2(width: int, depth: int, heads: int) -> GptConfig:
    of_gpt2 = {"norm": "layer", "activation": "gelu", "gated": False, "bias": True, "tied": True}
    return GptConfig(50257, width, depth, heads, 4 * width, 1024, rope=None, **of_gpt2)


def _qwen2(vocabulary: int, width: int, depth: int, heads: int, hidden: int, kv_heads: int, tied: bool) -> GptConfig:
    of_qwen2 = {"rope": 1e6, "eps": 1e-6, "bias": "qkv", "tied": tied}
    return GptConfig(vocabulary, width, depth, heads, hidden, 131072, kv_heads, **of_qwen2)


def _llama3(width: int, depth: int, heads: int, hidden: int, factor: float, tied: bool = False) -> GptConfig:
    stretch = Stretch("llama3", factor, 8192, 1.0, 4.0)
    return GptConfig(128256, width, depth, heads, hidden, 131072, 8, rope=5e5, stretch=stretch, tied=tied)


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
    "smollm2-135m": GptConfig(49152, 576, 30, 9, 1536, 8192, 3, rope=1e5, tied=True),
    "smollm3-3b": GptConfig(
        128256, 2048, 36, 16, 11008, 65536, 4, rope=5e6, eps=1e-6, tied=True, rotated=(True, True, True, False)
    ),
}
"""Published shapes by name, those alone that the layers have exactly."""
