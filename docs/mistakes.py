"""How a derivation goes wrong: the corpus's mistakes of each rule's function."""

import html
from collections.abc import Iterator, Sequence

from bpref.corpus import DERIVATIONS, Derivation
from docs.prose import to_html

FUNCTIONS: dict[str, tuple[str, ...]] = {
    "average_pool": ("average_pool",),
    "blockwise_attention": ("attention", "grouped_query_attention"),
    "clipped_value": ("preference",),
    "cosine_embedding": ("cosine_similarity",),
    "dot_product_attention": ("attention", "grouped_query_attention"),
    "dpo": ("preference",),
    "fft": ("spectral_filter",),
    "glu": ("glu", "clamped_swiglu"),
    "gru": ("gru_cell",),
    "linear": ("dense", "mlp"),
    "logsumexp": ("log_sum_exp",),
    "lstm": ("lstm_cell",),
    "mlp_block": ("mlp",),
    "multi_head_attention": ("attention", "grouped_query_attention"),
    "real_fft": ("spectral_filter",),
    "resize": ("upsample",),
    "rms_norm": ("rms_norm", "add_rms_norm"),
    "rotary_embedding": ("rotary",),
    "sequence_cross_entropy": ("token_cross_entropy",),
    "softmax_cross_entropy": ("softmax_cross_entropy", "token_cross_entropy"),
    "top_k_router": ("router",),
    "vae": ("gaussian_kl",),
}
"""Which functions of the corpus a rule answers for; a rule that is not named, for the one of its name."""


def functions_of(name: str) -> list[str]:
    return [f for f in FUNCTIONS.get(name, (name,)) if f in DERIVATIONS]


def of_rule(name: str) -> list[Derivation]:
    return [DERIVATIONS[f] for f in functions_of(name)]


def to_page(name: str) -> str:
    """The mistakes as a table: what was done, in which argument, what the checker calls it, who did it."""
    rows = "".join(row for derivation in of_rule(name) for row in _rows(derivation))
    if not rows:
        return ""
    return table(("what is done wrong", "wrong in", "called", "seen"), rows)


def table(heads: Sequence[str], rows: str) -> str:
    """A table of words, that scrolls by itself where the page is narrow."""
    head = "".join(f"<th>{head}</th>" for head in heads)
    body = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="wide"><table class="mistakes">{body}</table></div>'


def row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _rows(derivation: Derivation) -> Iterator[str]:
    for wrong in derivation.wrong:
        where = ", ".join(f"<code>{name}</code>" for name in wrong.where)
        shown = (to_html(wrong.name), where, f"<code>{wrong.kind}</code>", html.escape(wrong.source, quote=False))
        yield row(*shown)
