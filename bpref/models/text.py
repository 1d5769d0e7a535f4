"""Models of text by name: a table of tokens, blocks over the sequence, a norm, and a head, from ids to logits.

With ids s of shape (B, T), V tokens, d features and L blocks f[l], E the table:

    x[0] = E_s                                                            (B, T, d)
    x[l] = f[l](x[l-1])                                                   l = 1 ... L
    z    = norm(x[L]) W^T                                                 (B, T, V)

The blocks are what differs: `transformer_block` (see `bpref.models.gpt`), one with experts (see
`bpref.models.mixture`), `lstm_block`, the character model of Karpathy
('The unreasonable effectiveness of recurrent neural networks', 2015) with Merity's residual form, and `mamba_block`
(arXiv:2312.00752). The loss takes the head's place in training, so that the logits are never made whole.
"""

from collections.abc import Callable
from typing import NamedTuple

from bpref.compose import objective, scan, serial
from bpref.layer import Layer
from bpref.models.gpt import gpt, gpt_objective
from bpref.models.gpt_config import GptConfig
from bpref.models.mixture import MixtureConfig, mixture, mixture_objective
from bpref.nearest import meant
from bpref.rules.block.lstm_block import lstm_block
from bpref.rules.block.mamba_block import mamba_block
from bpref.rules.linear.embedding import embedding
from bpref.rules.linear.linear import linear
from bpref.rules.norm.rms_norm import rms_norm
from bpref.rules.sequence_loss.fused_linear_cross_entropy import fused_linear_cross_entropy


class TextModel(NamedTuple):
    """A network and what it is trained by; both have the same params.

    Attributes:
      network: ids (B, T) to logits (B, T, V).
      objective: (ids, the ids that follow), both (B, T), to J.
    """

    network: Layer
    objective: Layer


def text_model(
    name: str, vocabulary: int, context: int, width: int, depth: int, heads: int, experts: int = 4
) -> TextModel:
    """The model called "gpt", "mixture", "lstm" or "mamba".

    Args:
      name: which.
      vocabulary, width, depth: V, d and L.
      context: the longest sequence; only gpt and mixture are told.
      heads: of their attention.
      experts: of each block of mixture.

    Raises:
      ValueError: there is no such model; a number is out of its range.

    Example:
      >>> model = text_model("lstm", vocabulary=256, context=64, width=64, depth=2, heads=4)
      >>> params = model.objective.init(jax.random.key(0), (ids, labels))
      >>> logits, _ = model.network.forward(params, ids)
    """
    return TEXT_MODELS[meant("model", name, TEXT_MODELS)](vocabulary, context, width, depth, heads, experts)


def stacked_blocks(vocabulary: int, width: int, depth: int, block: Layer) -> TextModel:
    """Any block of features (B, T, d), `depth` times, with params of its own each time."""
    body = serial(embed=embedding(vocabulary, width), blocks=scan(block, depth), norm=rms_norm())
    return TextModel(
        serial(body=body, head=linear(vocabulary, bias=False)),
        objective(body=body, head=fused_linear_cross_entropy(vocabulary)),
    )


def _gpt(vocabulary: int, context: int, width: int, depth: int, heads: int, experts: int) -> TextModel:
    """Llama's shape, the MLP 8 / 3 as wide, to the next multiple of 8.

    No position sees further back than in training, so that what is written may be longer than the context.
    """
    hidden = 8 * -(-width // 3)
    config = GptConfig(vocabulary, width, depth, heads, hidden, context, tied=True, window=context)
    return TextModel(gpt(config), gpt_objective(config))


def _mixture(vocabulary: int, context: int, width: int, depth: int, heads: int, experts: int) -> TextModel:
    """Two of the experts, or the only one, see a token; an expert is half as wide as the MLP of gpt."""
    hidden = 8 * -(-width // 6)
    config = MixtureConfig(vocabulary, width, depth, heads, hidden, experts, k=2 if experts != 1 else 1, window=context)
    return TextModel(mixture(config), mixture_objective(config))


TEXT_MODELS: dict[str, Callable[[int, int, int, int, int, int], TextModel]] = {
    "gpt": _gpt,
    "mixture": _mixture,
    "lstm": lambda V, T, d, L, *_: stacked_blocks(V, d, L, lstm_block(d)),
    "mamba": lambda V, T, d, L, *_: stacked_blocks(V, d, L, mamba_block()),
}
"""By name: `(vocabulary, context, width, depth, heads, experts) -> TextModel`."""
