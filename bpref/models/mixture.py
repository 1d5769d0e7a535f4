"""mixture: a decoder of transformer blocks whose MLPs are mixtures of experts, as Mixtral's.

With ids s of shape (B, T), V tokens, d features, L blocks and E experts in each, k of which a token goes to:

    x[0] = E_s                                                            (B, T, d)
    h[l] = x[l-1] + attention(norm(x[l-1]))                               l = 1 ... L, see `attention_block`
    x[l] = h[l] + sum of w_j expert_j(norm(h[l])) over the k experts      see `mixture_of_experts`
    z    = norm(x[L]) W^T                                                 (B, T, V)
    J    = mean over all positions of -log softmax(z)_y  +  a sum_l balance[l]  +  b sum_l z-loss[l]

balance[l], at least about 1, says how unevenly the router loads the experts, and z-loss[l] how large its scores are.
Beside x goes what they have come to so far, the penalty, a number, so that J has it at the end and every router its
cotangent. Where the network is not trained nothing is made of it.

Sources: Mixtral: arXiv:2401.04088; a and b: arXiv:2101.03961, section 2.2, and arXiv:2202.08906, section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp

from bpref.checks.hyperparameters import require_flags, require_non_negative, require_sizes
from bpref.compose import objective, parallel, residual, scan, serial
from bpref.compose import remat as remat_of
from bpref.dtypes import cast, wide_dtype, widen
from bpref.layer import Layer
from bpref.models.presets import preset
from bpref.models.rearranged import as_it_is, rearranged
from bpref.rules.activation.identity import identity
from bpref.rules.block.attention_block import attention_block, attention_layer
from bpref.rules.linear.embedding import embedding
from bpref.rules.linear.linear import linear
from bpref.rules.mixture.mixture_of_experts import Mixed, mixture_of_experts
from bpref.rules.norm.rms_norm import rms_norm
from bpref.rules.reduction.fan_in import fan_in
from bpref.rules.sequence_loss.fused_linear_cross_entropy import fused_linear_cross_entropy


@dataclass(frozen=True)
class MixtureConfig:
    """The shape of a mixture; what has a default is Mixtral's.

    Attributes:
      vocabulary, width, depth, heads, hidden: V, d, L, heads of queries, and the hidden features of one expert.
      experts, k: E, and how many of them a token goes to.
      kv_heads: heads of keys and values; as many as of queries where left out.
      rope, eps, window: as of `GptConfig`.
      shared: how many experts see every token besides, see `mixture_of_experts`.
      capacity_factor: how many tokens an expert takes, see `mixture_of_experts`; None drops none. A network that drops
        does not generate: which tokens are dropped depends on those that come later.
      balance_weight, z_weight: a and b.
      context: as of `GptConfig`.

    Raises:
      ValueError: a number is out of its range, or heads do not divide the width, or kv_heads the heads.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    hidden: int
    experts: int = 8
    k: int = 2
    kv_heads: int | None = None
    rope: float | None = 1e6
    eps: float = 1e-5
    window: int | None = None
    shared: int = 0
    capacity_factor: float | None = None
    balance_weight: float = 0.01
    z_weight: float = 0.001
    context: int = 32768

    def __post_init__(self) -> None:
        who = "mixture"
        require_sizes(
            who, **{name: getattr(self, name) for name in ("vocabulary", "width", "depth", "heads", "context")}
        )
        if self.width % self.heads:
            raise ValueError(f"{who}: width is {self.width}, expected a multiple of heads, {self.heads}")
        require_non_negative(who, "balance_weight", self.balance_weight)
        require_non_negative(who, "z_weight", self.z_weight)
        attention_layer(who, self.heads, self.kv_heads, "rms", self.rope, True, self.window, False, self.eps, 128, None)
        _experts(self)


def mixture(config: MixtureConfig | str, remat: bool = False) -> Layer:
    """The network: token ids `(B, T)` to logits `(B, T, V)`.

    Args:
      config: a `MixtureConfig`, or the name of one of `MIXTURE_PRESETS`.
      remat: whether of each block its input alone is kept for the backward.

    Raises:
      ValueError: there is no such preset.
      TypeError: the config is neither; x does not hold integers.

    Example:
      >>> config = MixtureConfig(vocabulary=256, width=64, depth=2, heads=4, hidden=96, experts=4)
      >>> network = mixture(config)
      >>> ids = jnp.zeros((1, 32), jnp.int32)
      >>> logits, _ = network.forward(network.init(jax.random.key(0), ids), ids)
      >>> logits.shape
      (1, 32, 256)
    """
    config = preset("mixture", config, MixtureConfig, MIXTURE_PRESETS)
    alone = rearranged("x_alone", lambda x: x["x"], lambda dy: {"x": dy, "penalty": None})
    return _with_head(serial, config, remat, as_it_is(), linear(config.vocabulary, bias=False), alone)


def mixture_objective(
    config: MixtureConfig | str, remat: bool = False, ignored: int | None = None, rows: int | None = None
) -> Layer:
    """What is trained: ids and labels, the next tokens, both `(B, T)`, to J, the penalty in it.

    Params are those of `mixture(config)`. The logits are never made whole. In `evaluation` the penalty is none, and J
    the cross-entropy alone.

    Args:
      config, remat: as of `mixture`.
      ignored, rows: as of `gpt_objective`.

    Raises:
      ValueError, TypeError: as of `mixture` and `fused_linear_cross_entropy`.

    Example:
      >>> config = MixtureConfig(vocabulary=256, width=64, depth=2, heads=4, hidden=96, experts=4)
      >>> text = jnp.arange(33)[None]
      >>> ids, labels = text[:, :-1], text[:, 1:]
      >>> objective = mixture_objective(config, remat=True)
      >>> params = objective.init(jax.random.key(0), (ids, labels))
      >>> J, dparams, _ = backpropagate(objective, params, (ids, labels))
      >>> J.shape
      ()
    """
    config = preset("mixture", config, MixtureConfig, MIXTURE_PRESETS)
    with_labels = rearranged(
        "with_labels",
        lambda x: {"x": (x[0]["x"], x[1]), "penalty": x[0]["penalty"]},
        lambda dy: ({"x": dy["x"][0], "penalty": dy["penalty"]}, dy["x"][1]),
    )
    loss = fused_linear_cross_entropy(config.vocabulary, ignored=ignored, rows=rows)
    return _with_head(objective, config, remat, with_labels, loss, fan_in())


def _with_head(
    combinator: Callable[..., Layer], config: MixtureConfig, remat: bool, before: Layer, of_x: Layer, after: Layer
) -> Layer:
    return combinator(body=_body(config, remat), head=serial(before=before, product=_beside(of_x), after=after))


def _body(config: MixtureConfig, remat: bool) -> Layer:
    """Ids to features x, (B, T, d), and the penalty."""
    require_flags("mixture", remat=remat)
    c = config
    attention = attention_block(c.heads, c.kv_heads, rope=c.rope, window=c.window, eps=c.eps)
    weighed = _weighed(c.balance_weight, c.z_weight)
    block: Layer = serial(
        attention=_beside(residual(attention)),
        experts=residual(norm=_beside(rms_norm(c.eps)), experts=_beside(_experts(c)), weighed=weighed),
    )
    without_penalty = rearranged(
        "no_penalty", lambda x: {"x": x, "penalty": jnp.zeros((), wide_dtype(x.dtype))}, lambda dy: dy["x"]
    )
    return serial(
        embed=serial(tokens=embedding(c.vocabulary, c.width), penalty=without_penalty),
        blocks=scan(remat_of(block) if remat else block, c.depth),
        norm=_beside(rms_norm(c.eps)),
    )


def _beside(layer: Layer) -> Layer:
    """The layer on x, and the penalty as it is."""
    return parallel(x=layer, penalty=identity())


def _experts(c: MixtureConfig) -> Layer:
    return mixture_of_experts(c.experts, c.hidden, c.k, shared=c.shared, capacity_factor=c.capacity_factor)


def _weighed(balance_weight: float, z_weight: float) -> Layer:
    """The experts' output, and in the place of the penalty what is to be added to it; in evaluation nothing is."""

    def there(x):
        _, balance, z = x["x"]
        return {"x": x["x"].y, "penalty": balance_weight * widen(balance) + z_weight * widen(z)}

    def back(dy):
        d, dy = dy["penalty"], dy["x"]
        losses = (None if d is None else cast(w * d, dy.dtype) for w in (balance_weight, z_weight))
        return {"x": Mixed._make((dy, *losses)), "penalty": None}

    leaf = rearranged("weighed", there, back)
    return leaf._replace(evaluating=_weighed(0.0, 0.0)) if balance_weight or z_weight else leaf


MIXTURE_PRESETS: dict[str, MixtureConfig] = {
    "mixtral-8x7b": MixtureConfig(32000, 4096, 32, 32, 14336, kv_heads=8),
    "mixtral-8x22b": MixtureConfig(32000, 6144, 56, 48, 16384, kv_heads=8, context=65536),
}
"""Published shapes by name."""
