"""Text as tokens: a file, or the Python standard library's own documentation, cut into contexts to train on."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bpref.nearest import require_known

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Learned

TEST_SHARE = 0.1
"""Of a text, its end, that is held out."""


class Tokenizer(NamedTuple):
    """How text becomes ids, and ids text again.

    Attributes:
      vocabulary: the number of ids.
      encode: `(text) -> ids`, a NumPy array of int32.
      decode: `(ids) -> text`; bytes that are no UTF-8 become U+FFFD.
      saved: what `tokenizer_of` makes it again of.
    """

    vocabulary: int
    encode: Callable[[str], np.ndarray]
    decode: Callable[[Iterable[ArrayLike]], str]
    saved: str


def in_bytes() -> Tokenizer:
    """One id for each byte of UTF-8."""
    return Tokenizer(
        256,
        lambda text: np.frombuffer(text.encode(), np.uint8).astype(np.int32),
        lambda ids: bytes(int(i) for i in ids).decode(errors="replace"),
        "bytes",
    )


def byte_pairs(text: str, vocabulary: int) -> Tokenizer:
    """Byte pair encoding learned from a text (Sennrich et al., arXiv:1508.07909), over bytes as GPT-2's.

    Raises:
      ValueError: the vocabulary is smaller than the 256 bytes.
    """
    from tokenizers import Tokenizer as Learned
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocabulary < 256:
        raise ValueError(f"vocabulary is {vocabulary}, expected at least 256, one for each byte")
    learned = Learned(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    learned.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    learned.train_from_iterator(text.splitlines(keepends=True), trainer)
    return _of_learned(learned)


def _of_learned(learned: "Learned") -> Tokenizer:
    return Tokenizer(
        learned.get_vocab_size(),
        lambda text: np.asarray(learned.encode(text).ids, np.int32),
        lambda ids: learned.decode([int(i) for i in ids]),
        learned.to_str(),
    )


def tokenizer_of(saved: str) -> Tokenizer:
    """The tokenizer that was saved as this: "bytes", or the JSON of the library `tokenizers`."""
    if saved == "bytes":
        return in_bytes()
    from tokenizers import Tokenizer as Learned

    return _of_learned(Learned.from_str(saved))


class Text(NamedTuple):
    """A text to train on.

    Attributes:
      name: what messages call it.
      tokenizer: learned from the part that is trained on alone.
      train, test: `(X, y)`, contexts of ids (N, T) and the ids that follow, each position's own.
      bytes_per_token: of the part that is held out.
      unigram: bits a byte that the frequencies of the training part's tokens alone would need for the other.
    """

    name: str
    tokenizer: Tokenizer
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    bytes_per_token: float
    unigram: float


TOKENS = ("bytes", "bpe")


def read_text(path: Path | None, context: int, tokens: str = "bytes", vocabulary: int = 1024) -> Text:
    """A UTF-8 file's text, or where there is none, what Python's `help` knows of the language.

    Args:
      path: the file; None for `pydoc_data.topics`, which comes with every Python.
      context: the number T of positions of an example.
      tokens: "bytes", or "bpe" for byte pairs.
      vocabulary: of byte pairs, how many ids.

    Raises:
      ValueError: the text is no UTF-8, or too short for one context to train on and one to test on.
      OSError: the file cannot be read.
    """
    require_known("tokens", tokens, TOKENS)
    if context < 1:
        raise ValueError(f"context is {context}, expected at least 1")
    name, text = ("Python's own documentation", documentation()) if path is None else (str(path), decoded(path))
    at = len(text) - int(len(text) * TEST_SHARE)
    before, after = text[:at], text[at:]
    tokenizer = in_bytes() if tokens == "bytes" else byte_pairs(before, vocabulary)
    learned_from, held_out = tokenizer.encode(before), tokenizer.encode(after)
    for part, ids in (("trained on", learned_from), ("held out", held_out)):
        if len(ids) <= context:
            raise ValueError(
                f"{name}: {len(ids)} tokens are {part}, too few for one context of {context} and the token after it"
            )
    frequencies = np.bincount(learned_from, minlength=tokenizer.vocabulary) + 1.0
    bits = -np.log2(frequencies / frequencies.sum())[held_out].sum()
    of_bytes = len(after.encode())
    return Text(
        name,
        tokenizer,
        contexts(learned_from, context),
        contexts(held_out, context),
        of_bytes / len(held_out),
        float(bits / of_bytes),
    )


def contexts(ids: np.ndarray, T: int) -> tuple[np.ndarray, np.ndarray]:
    """X and y, both (N, T): one context after the other, and at each position the id that comes next."""
    N = (len(ids) - 1) // T
    return ids[: N * T].reshape(N, T), ids[1 : N * T + 1].reshape(N, T)


def bits_per_byte(J: Array, bytes_per_token: float) -> Array:
    """A mean cross-entropy of tokens, in nats, as bits for each byte of text: the same for any tokens."""
    return J / (math.log(2) * bytes_per_token)


def documentation() -> str:
    """The topics of Python's `help`, one after the other."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def decoded(path: Path) -> str:
    """The text of a UTF-8 file."""
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is no UTF-8; is it a text?") from None
