"""Text as tokens: a file, or the Python standard library's own documentation, cut into contexts to train on."""

import codecs
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bpref.nearest import require_known
from bpref.train.data import mapped
from bpref.train.data.scratch import mapped_from

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


def byte_pairs(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Byte pair encoding learned from texts (Sennrich et al., arXiv:1508.07909), over bytes as GPT-2's.

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
    learned.train_from_iterator((line for text in texts for line in text.splitlines(keepends=True)), trainer)
    return _of_learned(learned)


def _of_learned(learned: "Learned") -> Tokenizer:
    return Tokenizer(
        learned.get_vocab_size(),
        lambda text: np.asarray(learned.encode(text).ids, np.int32),
        lambda ids: learned.decode([int(i) for i in ids]),
        learned.to_str(),
    )


def of_ids(vocabulary: int) -> Tokenizer:
    """Of tokens whose text is not known: the ids themselves, written out, such as "12 7 99"."""
    if vocabulary < 1:
        raise ValueError(f"vocabulary is {vocabulary}, expected at least 1")

    def encode(text):
        ids = text.split()
        for word in ids:
            if not (word.isascii() and word.isdecimal() and int(word) < vocabulary):
                raise ValueError(f"{word!r} is no id, expected 0 ... {vocabulary - 1}, parted by spaces")
        return np.array(ids, np.int32)

    return Tokenizer(vocabulary, encode, lambda ids: "".join(f" {int(i)}" for i in ids), f"ids {vocabulary}")


def tokenizer_of(saved: str) -> Tokenizer:
    """The tokenizer that was saved as this: "bytes", "ids" and how many, or the JSON of the library `tokenizers`."""
    if saved == "bytes":
        return in_bytes()
    if saved.startswith("ids "):
        return of_ids(int(saved.removeprefix("ids ")))
    from tokenizers import Tokenizer as Learned

    return _of_learned(Learned.from_str(saved))


class Text(NamedTuple):
    """A text to train on.

    Attributes:
      name: what messages call it.
      tokenizer: learned from the part that is trained on alone.
      train, test: `(X, y)`, contexts of ids (N, T) and the ids that follow, each position's own.
      bytes_per_token: of the part that is held out; None where the tokens' text is not known.
      unigram: bits a byte, or a token, that the frequencies of the training part's tokens alone would need for the
        other.
    """

    name: str
    tokenizer: Tokenizer
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    bytes_per_token: float | None
    unigram: float

    @property
    def score(self) -> str:
        """What a cross-entropy is measured in."""
        return "bits a token" if self.bytes_per_token is None else "bits a byte"

    @property
    def prompt(self) -> str:
        """What it may be asked to go on from."""
        return "The" if self.bytes_per_token is not None else self.tokenizer.decode(self.train[0][0, :3]).strip()


OF_NUMBERS = ("uint16", "uint32", "npy")
"""Ids that were made elsewhere: bare numbers, as `numpy.ndarray.tofile` writes them, or an .npy of one axis."""

TOKENS = ("bytes", "bpe", *OF_NUMBERS)

AT_ONCE = 2**24
"""Tokens that are looked at together, of a file."""

TEXT_AT_ONCE = 2**20
"""Bytes of a text that are encoded together, of a file: the library takes some hundred times as many for it."""

OF_WORDS = np.array([chr(byte).isalnum() and byte < 128 for byte in range(256)])
"""Whether a byte is a letter or digit of ASCII."""


def read_text(path: str | Path | None, context: int, tokens: str = "bytes", vocabulary: int = 1024) -> Text:
    """A UTF-8 file's text, or where there is none, what Python's `help` knows of the language; or a file of ids.

    A file may be larger than memory: contexts are read as they are needed. Byte pairs of a large one are encoded into a
    temporary file, each time that it is read; it is faster to do that once, and to give the ids.

    Args:
      path: the file; None for `pydoc_data.topics`, which comes with every Python.
      context: the number T of positions of an example.
      tokens: "bytes", or "bpe" for byte pairs; of ids "uint16" or "uint32", little-endian, or "npy".
      vocabulary: of byte pairs and of ids, how many there are.

    Example:
      >>> np.asarray([3, 1, 2] * 100, np.uint16).tofile("corpus.bin")
      >>> read_text(Path("corpus.bin"), 8, "uint16", vocabulary=4).train[0].shape
      (33, 8)

    Raises:
      ValueError: the text is no UTF-8, an id is out of range, or it is too short for one context to train on and one to
        test on.
      OSError: the file cannot be read.
    """
    require_known("tokens", tokens, TOKENS)
    if context < 1:
        raise ValueError(f"context is {context}, expected at least 1")
    path = None if path is None else Path(path)
    name = "Python's own documentation" if path is None else str(path)
    if tokens in OF_NUMBERS:
        if path is None:
            raise ValueError(f"tokens {tokens} are those of a file of ids; name it")
        tokenizer, (learned_from, held_out), of_bytes = of_ids(vocabulary), _ids_of(path, tokens), None
    elif path is not None and tokens == "bytes" and path.stat().st_size > mapped.IN_MEMORY:
        tokenizer, (learned_from, held_out) = in_bytes(), _bytes_of(path)
        of_bytes = len(held_out)
    elif path is not None and path.stat().st_size > mapped.IN_MEMORY:
        before, after = _bytes_of(path)
        tokenizer, of_bytes = byte_pairs(texts_of(before), vocabulary), len(after)
        ids = np.uint16 if tokenizer.vocabulary <= 2**16 else np.uint32
        learned_from, held_out = (
            mapped_from(path, (tokenizer.encode(text).astype(ids) for text in texts_of(part)))
            for part in (before, after)
        )
    else:
        text = documentation() if path is None else decoded(path)
        at = len(text) - int(len(text) * TEST_SHARE)
        before, after = text[:at], text[at:]
        tokenizer = in_bytes() if tokens == "bytes" else byte_pairs([before], vocabulary)
        learned_from, held_out = tokenizer.encode(before), tokenizer.encode(after)
        of_bytes = len(after.encode())
    for part, ids in (("trained on", learned_from), ("held out", held_out)):
        if len(ids) <= context:
            raise ValueError(
                f"{name}: {len(ids)} tokens are {part}, too few for one context of {context} and the token after it"
            )
    counts = counted(name, learned_from, tokenizer.vocabulary) + 1.0
    bits = float(counted(name, held_out, tokenizer.vocabulary, len(learned_from)) @ -np.log2(counts / counts.sum()))
    return Text(
        name,
        tokenizer,
        contexts(learned_from, context),
        contexts(held_out, context),
        None if of_bytes is None else of_bytes / len(held_out),
        bits / (of_bytes or len(held_out)),
    )


def counted(name: str, ids: np.ndarray, vocabulary: int, before: int = 0) -> np.ndarray:
    """How often each id stands there; `ValueError` for the first that is out of range, so many tokens `before` it."""
    counts = np.zeros(vocabulary, np.int64)
    for first, part in _in_parts(ids):
        outside = (part < 0) | (part >= vocabulary)
        if outside.any():
            i = int(outside.argmax())
            raise ValueError(
                f"{name}: token {before + first + i + 1:,} is {part[i]}, expected 0 ... {vocabulary - 1} (--vocabulary)"
            )
        counts += np.bincount(part.astype(np.int64), minlength=vocabulary)
    return counts


def _in_parts(ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for first in range(0, len(ids), AT_ONCE):
        yield first, np.asarray(ids[first : first + AT_ONCE])


def _ids_of(path: Path, tokens: str) -> tuple[np.ndarray, np.ndarray]:
    """The ids to learn from, and those held out, as they lie in a file."""
    ids = mapped.read_npy(path) if tokens == "npy" else mapped.read_numbers(path, tokens)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{path}: {ids.dtype.name}{list(ids.shape)} are no tokens, expected integers of one axis")
    at = len(ids) - int(len(ids) * TEST_SHARE)
    return ids[:at], ids[at:]


def _bytes_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The same of a text in bytes, which is held out from where the last tenth of its characters begins."""
    ids = mapped.read_numbers(path, np.uint8)
    decoder, characters = codecs.getincrementaldecoder("utf-8")(), 0
    for first, part in _in_parts(ids):
        pending = len(decoder.getstate()[0])
        try:
            characters += len(decoder.decode(part.tobytes(), first + len(part) == len(ids)))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: byte {first - pending + error.start} is no UTF-8; is it a text?") from None
    left, end = int(characters * TEST_SHARE), len(ids)
    while left:
        first = max(0, end - AT_ONCE)
        begins = first + np.flatnonzero((ids[first:end] & 0xC0) != 0x80)
        if len(begins) >= left:
            end, left = int(begins[-left]), 0
        else:
            end, left = first, left - len(begins)
    return ids[:end], ids[end:]


def texts_of(content: np.ndarray, at_once: int | None = None) -> Iterator[str]:
    """The UTF-8 in an array of bytes, about so many at a time, cut where byte pairs of parts are those of the whole.

    That is before a blank or a line's end which follows a letter or digit of ASCII: whatever stands before it, there a
    word has ended, and its pairs are merged by themselves. A text without any is one part.
    """
    at_once = TEXT_AT_ONCE if at_once is None else at_once
    first, end = 0, 0
    while end < len(content):
        end = min(end + at_once, len(content))
        part = np.asarray(content[first:end])
        cuts = np.flatnonzero(OF_WORDS[part[:-1]] & ((part[1:] == ord(" ")) | (part[1:] == ord("\n"))))
        if end < len(content) and not len(cuts):
            continue
        end = first + int(cuts[-1]) + 1 if end < len(content) else end
        yield part[: end - first].tobytes().decode()
        first = end


def contexts(ids: np.ndarray, T: int) -> tuple[np.ndarray, np.ndarray]:
    """X and y, both (N, T): one context after the other, and at each position the id that comes next."""
    N = (len(ids) - 1) // T
    return ids[: N * T].reshape(N, T), ids[1 : N * T + 1].reshape(N, T)


def bits_per_byte(J: Array, bytes_per_token: float | None) -> Array:
    """A mean cross-entropy of tokens, in nats, as bits for each byte of text: the same for any tokens.

    Where their text is not known, `None`, it is bits for each token.
    """
    return J / (math.log(2) * (bytes_per_token or 1.0))


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
