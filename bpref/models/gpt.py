"""gpt: a decoder of transformer blocks, from token ids to logits, as GPT-2, Llama, Qwen, SmolLM and Gemma 2 have it.

With ids s of shape (B, T), V tokens, d features and L blocks, E the table of tokens and P that of positions, if they
are learned (RoPE has them in the attention):

    x[0] = E_s (+ P)                                                      (B, T, d), times sqrt(d) where it is scaled
    h[l] = x[l-1] + attention(norm(x[l-1]))                               l = 1 ... L, see `attention_block`
    x[l] = h[l] + mlp(norm(h[l]))                                         see `mlp_block`
    z    = norm(x[L]) W^T                                                 (B, T, V), W = E where it is tied
    z    = t tanh(z / t)                                                  where there is a soft cap t of the logits
    J    = mean over all positions of -log softmax(z)_y                   y: the next tokens, (B, T)

In a sandwich a second norm stands between a half and the sum: h[l] = x[l-1] + norm(attention(norm(x[l-1]))), and so on.
Blocks may be of several kinds, in a pattern of p of them that is repeated: some without rotations, some with a window.
The loop is then over L / p groups, a group's blocks one after the other.

Training never makes z whole: the fused loss takes W's place at the head, under its name, so that the network generates
with the params that the objective was trained with.

Sources: GPT-2: Radford et al., 'Language models are unsupervised multitask learners' (2019); Llama: arXiv:2302.13971,
2: arXiv:2307.09288, 3: arXiv:2407.21783; Mistral: arXiv:2310.06825; Qwen 2: arXiv:2407.10671, 3: arXiv:2505.09388;
SmolLM 2: arXiv:2502.02737; soft caps, sandwiches, and windows in every other block: Gemma 2, arXiv:2408.00118; blocks
without rotations: arXiv:2305.19466, and among others with them arXiv:2501.18795.
"""

from bpref.checks.hyperparameters import require_flags
from bpref.compose import objective, residual, scan, serial, shared
from bpref.compose import remat as remat_of
from bpref.layer import Layer
from bpref.models.gpt_config import GptConfig, Sight, as_config
from bpref.models.rearranged import rearranged
from bpref.rules.activation.soft_cap import soft_cap
from bpref.rules.attention.multi_head_attention import multi_head_attention
from bpref.rules.block.attention_block import attention_block
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


def gpt(
    config: GptConfig | str, remat: bool = False, implementation: str = "auto", mlp_tile: int | None = None
) -> Layer:
    """The network: token ids `(B, T)` to logits `(B, T, V)`.

    Params are `{"body": {"embed", "positions", "blocks", "norm"}, "head"}`, without positions for RoPE; the blocks' are
    stacked along a first axis, of the depth; where `config.group` has several, they are a tuple of as many, each one
    stacked along an axis of the groups. Where the head is tied params are `{"shared", "network"}`, see `shared`.

    Args:
      config: a `GptConfig`, or the name of one of `GPT_PRESETS`.
      remat: whether of each block its input alone is kept for the backward.
      implementation: of the blocks' attention: "xla", "pallas" or "auto", as in `blockwise_attention`.
      mlp_tile: how many positions the blocks' MLPs take at once, as `tile` of `mlp_block`: with `remat`, which makes
        their hidden features again anyway, it takes less memory for little time.

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
    head = _head(config.vocabulary, config.logit_soft_cap)
    return _finished(config, serial(body=_body(config, remat, implementation, mlp_tile), head=head))


def gpt_objective(
    config: GptConfig | str,
    remat: bool = False,
    ignored: int | None = None,
    rows: int | None = None,
    head: Layer | None = None,
    implementation: str = "auto",
    mlp_tile: int | None = None,
) -> Layer:
    """What is trained: ids and labels, the next tokens, both `(B, T)`, to the mean cross-entropy J.

    Params are those of `gpt(config)`: what is trained here generates there. The logits are never made whole. With a
    `head` it is what that makes of features and labels: the loss of a policy.

    Args:
      config, remat, mlp_tile: as of `gpt`.
      ignored: a label, such as -100, whose positions do not count.
      rows: how many positions the loss takes at once, see `fused_linear_cross_entropy`.
      head: a layer of `(features, what goes with ids)` whose params are W (V, d) and no b, in the place of the
        cross-entropy, such as `fused_linear_policy_loss(V, "dpo")`; it has `ignored`, `rows` and a soft cap of its own.
      implementation: as of `gpt`, and of the cross-entropy too.

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
        own = {"soft_cap": cap, "rows": rows, "implementation": implementation}
        head = fused_linear_cross_entropy(config.vocabulary, ignored=ignored, **own)
    elif (ignored, rows) != (None, None):
        raise ValueError("gpt_objective: ignored and rows are of the cross-entropy; a head has its own")
    return _finished(config, objective(body=_body(config, remat, implementation, mlp_tile), head=head))


def _body(config: GptConfig, remat: bool, implementation: str, mlp_tile: int | None) -> Layer:
    """Ids to features, (B, T, d)."""
    require_flags("gpt", remat=remat)
    kinds = {sight: _block(config, sight, implementation, mlp_tile) for sight in config.group}
    if remat:
        kinds = {sight: remat_of(block) for sight, block in kinds.items()}
    blocks = [kinds[sight] for sight in config.group]
    layers: dict[str, Layer] = {"embed": embedding(config.vocabulary, config.width)}
    if config.scaled_embedding:
        layers["scaled"] = _times(config.width**0.5)
    if config.rope is None:
        layers["positions"] = position_embedding(config.context)
    if config.dropout:
        layers["drop"] = dropout(config.dropout)
    group: Layer = blocks[0] if len(blocks) == 1 else serial(*blocks)
    layers["blocks"] = scan(group, config.depth // len(blocks))
    layers["norm"] = _norm(config)
    return serial(**layers)


def _times(c: float) -> Layer:
    return rearranged("scaled", lambda x: c * x, lambda dy: c * dy)


def _norm(c: GptConfig) -> Layer:
    return (layer_norm if c.norm == "layer" else rms_norm)(c.eps, zero_centred=c.zero_centred)


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


def _block(c: GptConfig, sight: Sight, implementation: str, mlp_tile: int | None) -> Layer:
    """Flat where it has nothing but the two halves and their sums."""
    own = sight._asdict() | {"stretch": None if sight.rope is None else c.stretch, "soft_cap": c.soft_cap}
    own |= {"eps": c.eps, "dropout": c.attention_dropout, "head_dim": c.head_dim, "implementation": implementation}
    after = [_norm(c)] if c.sandwich else []
    after += [dropout(c.dropout)] if c.dropout else []
    if not (c.composed or after):
        own |= {"bias": c.bias, "mlp_tile": mlp_tile}
        return transformer_block(c.heads, c.hidden, c.kv_heads, c.activation, c.gated, c.norm, **own)
    halves = {"attention": _attention(c, own), "mlp": _mlp(c, mlp_tile)}
    return serial(**{name: residual(serial(half, *after) if after else half) for name, half in halves.items()})


def _attention(c: GptConfig, own: dict) -> Layer:
    if not c.composed:
        return attention_block(c.heads, c.kv_heads, c.norm, bias=c.bias, **own)
    own = own | {"bias": bool(c.bias), "qk_norm": c.qk_norm, "causal": True, "scale": c.scale}
    return serial(norm=_norm(c), attention=multi_head_attention(c.heads, c.kv_heads, **own))


def _mlp(c: GptConfig, tile: int | None) -> Layer:
    own = c.hidden, c.activation, c.gated
    bias = bool(c.bias) and c.bias != "qkv"
    if not c.zero_centred:
        return mlp_block(*own, c.norm, bias, c.eps, tile=tile)
    return serial(norm=_norm(c), mlp=mlp_layer("mlp_block", *own, None, bias, c.eps, tile=tile))


def _finished(config: GptConfig, layer: Layer) -> Layer:
    if config.dropout or config.attention_dropout:
        layer = stateful(layer)
    return shared(layer, ("body.embed.W", "head.W")) if config.tied else layer
