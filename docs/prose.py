"""Running text of docstrings as HTML: code in backticks, rules as links, and formulas where there is no doubt."""

import html
import re
from collections.abc import Callable

from docs.formula import Untranslatable, to_tex
from docs.katex import BadTex, typeset
from docs.symbols import FENCES, FUNCTIONS, GREEK, NAMES, SUMS, symbol

_MARK = re.compile(
    r"[=<>^|]|[A-Za-z]_|\b(?:exp|log|sqrt|tanh|max|min|sum|mean|det)\b ?\S|\bdelta [A-Za-z]"
    r"|[A-Za-z)].* [-+/*] | [-+/*] .*[A-Za-z(]"
)
"""What makes a run of symbols a formula."""

_SHAPE = re.compile(r"\([^()=]+,[^()=]*\)")

_STRAY = re.compile(r"[A-Za-z\d)] a$|\d,\d{3} [a-z]|\([^()]*[=<>][^()]*\) \w")
"""An article, or the next clause, behind a formula."""

_ENGLISH = {"a", "I", "A", "do", "lambda"}
_OPERATORS = {"=", "<", ">", "<=", ">=", "!=", "+", "-", "/", "*", ".", "->"}
_WORDS = set(GREEK) | set(FUNCTIONS) | set(SUMS) | set(FENCES)
_NO_WORDS = {"var", "lo", "hi", "logp", "inf"}
"""Of the variables of several letters, those that are nothing in English."""

_CORE = re.compile(r"[A-Za-z]+")


def to_html(text: str, link: Callable[[str], str | None] = lambda name: None) -> str:
    """A paragraph; `link` says where a name in backticks leads."""
    parts = re.split(r"(`[^`]+`(?:'?s\b)?)", " ".join(text.split()))
    return "".join(_code(part, link) if i % 2 else _sentence(part) for i, part in enumerate(parts))


def _code(quoted: str, link: Callable[[str], str | None]) -> str:
    _, name, plural = quoted.split("`")
    target, shown = link(name), f"<code>{html.escape(name, quote=False)}</code>"
    return (f'<a href="{target}">{shown}</a>' if target else shown) + plural


def _sentence(text: str) -> str:
    tokens, out, at = text.split(" "), [], 0
    while at < len(tokens):
        taken, shown = _formula(tokens, at)
        out.append(shown if taken else html.escape(tokens[at], quote=False))
        at += taken or 1
    return " ".join(out)


def _formula(tokens: list[str], at: int) -> tuple[int, str]:
    """How many tokens from here on are one formula, the longest that is one, and its HTML."""
    end = at
    if tokens[at] in _ENGLISH and (len(tokens) == at + 1 or tokens[at + 1] not in ("=", "<", ">", "+", "->")):
        return 0, ""
    while end < len(tokens) and _may_belong(tokens[end]):
        end += 1
        if tokens[end - 1][-1:] in ",;:" and not _open(" ".join(tokens[at:end])):
            break
    for stop in range(end, at, -1):
        written = " ".join(tokens[at:stop])
        body, tail = _without_tail(written)
        if _open(body) or not body or body.split(" ")[-1] in _OPERATORS or body.split(" ")[0] in _OPERATORS - {"-"}:
            continue
        if stop - at == 1 and not (_stands_alone(body) or (body in _ENGLISH and tail == ":")):
            continue
        if stop - at > 1 and not _MARK.search(body) and not _SHAPE.fullmatch(body):
            continue
        if _STRAY.search(body):
            continue
        try:
            return stop - at, typeset(to_tex(body, display=False), spoken=body) + html.escape(tail, quote=False)
        except (Untranslatable, BadTex):
            continue
    return 0, ""


def _without_tail(written: str) -> tuple[str, str]:
    """A formula, and the punctuation or 's behind it."""
    tail = re.search(r"('s)?[,;:.]*$", written)
    cut = tail.start() if tail else len(written)
    body, rest = written[:cut], written[cut:]
    if body.endswith(")") and body.count(")") > body.count("("):
        return body[:-1], ")" + rest
    return body, rest


def _may_belong(token: str) -> bool:
    if token in _OPERATORS or re.fullmatch(r"[-\d.,()]*\d[\d.,()]*", token):
        return True
    name = re.match(r"\W*([A-Za-z]{3,})_[A-Za-z]{3,}", token)
    below = re.search(r"_([a-z]{4,})", token)
    is_word = below and below.group(1) not in GREEK and re.search("[aeiou]", below.group(1))
    if (
        token == "do"
        or '"' in token
        or re.fullmatch("[a-z]{3,}'s", token)
        or is_word
        or (name and name.group(1) not in SUMS)
    ):
        return False
    return bool(token) and all(map(_is_symbol, _CORE.findall(re.sub(r"_\{?[A-Za-z,']+", "_", token))))


def _is_symbol(word: str) -> bool:
    if word in _WORDS or len(word) == 1:
        return True
    return symbol(word) is not None and (word not in NAMES or word in _NO_WORDS)


def _stands_alone(token: str) -> bool:
    """Whether a single token is mathematics: x, dW, x_nk, 1/N, exp(x)."""
    token = token.removeprefix("-")
    if token in _ENGLISH or re.fullmatch(r"[\d.,]+", token):
        return False
    if re.fullmatch(r"[A-Za-z]'*", token) or _SHAPE.fullmatch(token):
        return True
    return bool(re.search(r"[_^=<>|]|[A-Za-z]'*\(|\d/", token)) or (symbol(token) or "").startswith(("d", "\\"))


def _open(text: str) -> bool:
    in_angles = re.search(r"(?:^| )<[A-Za-z(][^>]*$", text)
    return bool(in_angles) or any(text.count(left) != text.count(right) for left, right in ("()", "[]", "{}"))
