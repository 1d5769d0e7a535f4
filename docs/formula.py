"""The derivations' plain formulas in TeX: `dx_nk = r_n (g_nk - mean_j g_nj)` as it is written by hand.

What stands side by side is multiplied; letters after `_` are indices; ` / ` divides all that stands before it in its
term, `1/N` only its neighbours; words that are no symbols stay words. A line in which anything is not understood raises
`Untranslatable`, and nothing is guessed.
"""

import re
from typing import NamedTuple

from docs.symbols import FENCES, FUNCTIONS, GREEK, OPERATORS, SUMS, WORDS_BELOW, hatted, symbol


class Untranslatable(ValueError):
    """A formula that the translator does not understand."""


class Piece(NamedTuple):
    """Some TeX, and how it stands beside others: atom, paren, sum, function, operator or text."""

    kind: str
    tex: str


def to_tex(formula: str, display: bool = True) -> str:
    """The formula in TeX; fractions are stacked where it is displayed, and stay on the line in running text.

    Raises:
      Untranslatable: something in it is not understood.
    """
    reader = _Reader(formula.strip(), display)
    tex = reader.sequence("")
    if reader.at < len(reader.text):
        raise Untranslatable(f"{reader.text[reader.at :]!r} is left of {formula!r}")
    return tex


_SPACED = re.compile(r"(\(x\)|\*|\.)(?=\s|\^)")
_RELATION = re.compile(r"<=|>=|!=|<-|->|:=|=:|\+=|=|\+|-|<|>")
_NUMBER = re.compile(r"(\d+(?:,\d{3})*(?:\.\d+)?)(?:e(-?\d+))?(?![A-Za-z]{2})")
_WORD = re.compile(r"[A-Za-z]+")
_STEP = r"(?:[+-](?:\d+(?![A-Za-z0-9_])|[A-Za-z](?![A-Za-z0-9_(])))?"
_INDEX = rf"[A-Za-z0-9]+'*(?:_[A-Za-z]+'*)?{_STEP}"
_BELOW = re.compile(rf"{_INDEX}(?:,{_INDEX})*")
_ABOVE = re.compile(r"-?(?:[A-Z]|\d+|[a-z]|[a-z]{3,})'*(?![A-Za-z0-9])")
_HAT = re.compile(r"_hat|\^(?=[\s,\]']|$)")
_PRIME = re.compile(r"'(?![a-z])")
_ADJOINT = re.compile(r"\*(?=\(| =| \+|$)")
_FACTORIAL = re.compile(r"!(?!=)")
_DIGITS = re.compile(r"\d+(?![\d.])")
_LAYER = re.compile(r"\[(?:l(?:[+-]1)?|L|\d)\]")
_LETTERS = re.compile(r"[A-Za-z]*")
"""What may stand tight behind a symbol, apart from indices, powers and arguments."""

_CLOSING = {"(": ")", "[": "]", "{": "}"}


class _Reader:
    def __init__(self, text: str, display: bool):
        self.text, self.at, self.display, self.depth = text, 0, display, 0

    def sees(self, pattern: re.Pattern[str] | str) -> bool:
        if isinstance(pattern, str):
            return self.text.startswith(pattern, self.at)
        return pattern.match(self.text, self.at) is not None

    def take(self, pattern: re.Pattern[str]) -> re.Match[str]:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise Untranslatable(f"{self.text[self.at :]!r} in {self.text!r}")
        self.at = found.end()
        return found

    def skip(self) -> bool:
        start = self.at
        while self.sees(" "):
            self.at += 1
        return self.at > start

    def sequence(self, closing: str) -> str:
        """Everything up to `closing`, which is not taken."""
        pieces: list[Piece] = []
        while True:
            spaced = self.skip() or not pieces
            if self.at == len(self.text) or (
                closing and self.sees(closing) and not self.opens(closing, pieces, spaced)
            ):
                return joined(pieces)
            pieces.append(self.next(pieces, spaced))

    def opens(self, closing: str, pieces: list[Piece], spaced: bool) -> bool:
        """Whether a bar that could close begins something instead; a spaced > is a relation."""
        return spaced if closing == ">" else closing[0] == "|" and (not pieces or pieces[-1].kind == "operator")

    def next(self, pieces: list[Piece], spaced: bool) -> Piece:
        begins = not pieces or pieces[-1].kind == "operator"
        if self.sees("/"):
            return self.fraction(pieces, spaced)
        if self.sees(",") or self.sees(";"):
            mark = self.text[self.at]
            self.at += 1
            if not pieces or not (self.depth or self.at == len(self.text) or self.sees(" ")):
                raise Untranslatable(f"a comma with nothing beside it in {self.text!r}")
            return Piece("operator", mark + r"\;" if self.sees(" ") else mark)
        if spaced and self.sees(_SPACED) and not begins:
            tex = OPERATORS[self.take(_SPACED).group(1)]
            return Piece("operator", rf"\mathbin{{{tex}^{{{self.above()}}}}}" if self.sees("^") else tex)
        if spaced and self.sees(re.compile(r"<(?=[A-Za-z(])")):
            return self.fenced("<", ">", r"\langle ", r" \rangle")
        if self.sees("||") and spaced and self.sees(re.compile(r"\|\| ")) and not begins:
            self.at += 2
            return Piece("operator", OPERATORS["||"])
        if self.sees(_RELATION):
            return Piece("operator", OPERATORS[self.take(_RELATION).group()])
        if self.sees(":") and self.sees(re.compile(r": ")):
            self.at += 1
            return Piece("operator", ":")
        if self.sees(re.compile(r"\.$")):
            raise Untranslatable(f"a sentence ends with {self.text!r}")
        return self.factor()

    def fraction(self, pieces: list[Piece], spaced: bool) -> Piece:
        """All atoms before ` / `, or the one before a `/`, over what comes next."""
        self.at += 1
        if spaced != self.skip() or not pieces or pieces[-1].kind not in ("atom", "paren"):
            raise Untranslatable(f"a fraction in {self.text!r}")
        start = len(pieces) - 1
        while spaced and start and pieces[start - 1].kind in ("atom", "paren"):
            start -= 1
        over, under = pieces[start:], [self.factor()]
        while under[-1].kind in ("sum", "function"):
            self.skip()
            under.append(self.factor())
        del pieces[start:]
        if not self.display:
            return Piece("atom", f"{joined(over)} / {joined(under)}" if spaced else f"{joined(over)}/{joined(under)}")
        return Piece("atom", rf"\frac{{{bare(over)}}}{{{bare(under)}}}")

    def factor(self) -> Piece:
        if self.at == len(self.text):
            raise Untranslatable(f"{self.text!r} breaks off")
        mark = self.text[self.at]
        if mark in _CLOSING:
            left, right = {"{": (r"\{", r"\}")}.get(mark, (mark, _CLOSING[mark]))
            return self.ended(self.fenced(mark, _CLOSING[mark], left, right))
        if self.sees("||"):
            return self.ended(self.fenced("||", "||", r"\lVert ", r" \rVert"))
        if mark == "|":
            return self.ended(self.fenced("|", "|", r"\lvert ", r" \rvert"))
        if mark in '`"':
            quoted = self.take(re.compile(r"`([^`]+)`|\"[^\"]+\"")).group()
            return Piece("text", rf"\texttt{{{escaped(quoted[1:-1])}}}" if mark == "`" else rf"\text{{{quoted}}}")
        if self.sees("..."):
            self.at += 3
            return Piece("atom", r"\ldots")
        if self.sees(_NUMBER):
            digits, power = self.take(_NUMBER).groups()
            dots = self.sees("...")
            self.at += 3 * dots
            tex = digits.replace(",", "{,}") + (r"\ldots" if dots else "")
            return self.ended(
                Piece("atom", (rf"{tex} \cdot " if tex != "1" else "") + f"10^{{{power}}}" if power else tex)
            )
        return self.word()

    def fenced(self, mark: str, closing: str, left: str, right: str) -> Piece:
        self.at += len(mark)
        self.depth += 1
        inside = self.sequence(closing)
        self.depth -= 1
        if not self.sees(closing):
            raise Untranslatable(f"{mark} is not closed in {self.text!r}")
        self.at += len(closing)
        if left and mark in _CLOSING and re.search(r"\\(frac|sum|prod)", inside):
            left, right = rf"\left{left} ", rf" \right{right}"
        return Piece("paren" if mark == "(" else "atom", f"{left}{inside}{right}")

    def word(self) -> Piece:
        start = self.at
        word = self.take(_WORD).group()
        if self.sees(re.compile(r"-(?=[A-Za-z]{2})|'(?=s\b)")):  # half-open, f's
            rest = self.take(re.compile(r"[-A-Za-z]+|'s")).group()
            return Piece("text", rf"\text{{{word}{rest.replace(chr(39), chr(0x2019))}}}")
        if self.text.startswith("log_A", start) or self.text.startswith("dlog_A", start):
            self.at = self.text.index("log_A", start) + len("log_A")
            return self.ended(Piece("atom", "d" * word.startswith("d") + r"\mathrm{log\_A}"))
        if self.text.startswith("d/dx", start):
            self.at = start + len("d/dx")
            return Piece("function", r"\frac{d}{dx}")
        if word == "delta" and self.sees(re.compile(r" (?=[A-Za-z(|])")):
            self.skip()
            what = self.factor()
            return Piece(what.kind if what.kind == "function" else "atom", rf"\delta {what.tex}")
        if word in SUMS:
            return self.big(Piece("sum", SUMS[word]))
        if word in FENCES:
            return self.ended(self.under_fence(*FENCES[word]))
        if word in FUNCTIONS:
            return self.big(Piece("function", FUNCTIONS[word]))
        tex = symbol(word)
        if tex is None and self.sees(re.compile(r"\d")) and len(word) == 1:
            tex = word
        if tex is not None:
            return self.ended(Piece("atom", tex))
        if self.sees("_"):
            self.take(re.compile(r"_\w+"))
            return self.ended(Piece("atom", rf"\mathrm{{{escaped(self.text[start : self.at])}}}"))
        if self.sees("("):
            return self.ended(Piece("atom", rf"\operatorname{{{word}}}"))
        return Piece("text", rf"\text{{{word}}}")

    def under_fence(self, left: str, right: str) -> Piece:
        if not self.sees("("):
            self.skip()
            return Piece("atom", left + self.factor().tex + right)
        self.at += 1
        self.depth += 1
        inside = self.sequence(")")
        self.depth -= 1
        self.take(re.compile(r"\)"))
        if r"\frac" in inside and left != FENCES["sqrt"][0]:
            left, right = rf"\left{left}", rf" \right{right.strip()}"
        return Piece("atom", left + inside + right)

    def big(self, piece: Piece) -> Piece:
        """A sum or a function: one that has its argument in brackets is a factor like any other."""
        start = self.at
        ended = self.ended(piece)
        return Piece("atom", ended.tex) if "(" in re.sub(r"_\([^)]*\)", "", self.text[start : self.at]) else ended

    def ended(self, piece: Piece) -> Piece:
        """The piece with what is written tight behind it: indices, powers, primes, arguments."""
        tex, below, above, primes = piece.tex, "", "", ""
        while self.at < len(self.text):
            if self.sees(_HAT) and not below:
                self.take(_HAT)
                tex = hatted(tex)
            elif self.sees("_") and not below:
                below = self.below()
            elif self.sees("^") and not above:
                above = self.above()
            elif self.sees(_PRIME):
                self.take(_PRIME)
                primes += r"\prime"
            elif self.sees(_ADJOINT) and not above:
                self.take(_ADJOINT)
                above = "*"
            elif self.sees(_FACTORIAL):
                self.take(_FACTORIAL)
                tex, below, above, primes = scripted(tex, below, above, primes) + "!", "", "", ""
            elif self.sees(_DIGITS) and piece.kind == "atom" and not below and tex[-1:].isalpha():
                below = self.take(_DIGITS).group() + (self.below() if self.sees("_") else "")
            elif self.sees(_LAYER):
                above = self.take(_LAYER).group()
            elif self.sees("(") or self.sees("["):
                mark = self.text[self.at]
                what = self.fenced(mark, _CLOSING[mark], mark, _CLOSING[mark])
                tex, below, above, primes = scripted(tex, below, above, primes) + what.tex, "", "", ""
            elif self.sees("_") or self.sees("^"):
                raise Untranslatable(f"two indices or powers in {self.text!r}")
            else:
                break
        return Piece(piece.kind, scripted(tex, below, above, primes))

    def below(self) -> str:
        self.at += 1
        if not (self.sees("{") or self.sees("(")):
            return indices(self.take(_BELOW).group())
        mark = self.text[self.at]
        inside = self.fenced(mark, _CLOSING[mark], "", "").tex
        more = self.take(_LETTERS).group() if mark == "(" else ""
        return f"({inside}){more}" if more else inside

    def above(self) -> str:
        self.at += 1
        if not (self.sees("{") or self.sees("(")):
            return self.take(_ABOVE).group()
        mark = self.text[self.at]
        return self.fenced(mark, _CLOSING[mark], "", "").tex


def indices(written: str) -> str:
    """Subscripts as they are written: letters are indices, some words are words."""

    def read(word: str) -> str:
        if word in WORDS_BELOW:
            return rf"\mathrm{{{word}}}"
        return GREEK[word] if len(word) > 3 and word in GREEK else word

    nested = re.sub(r"_([A-Za-z]+)", r"_{\1}", written).replace("old_", "old,")
    return re.sub(r"[A-Za-z]+", lambda found: read(found.group()), nested)


def scripted(tex: str, below: str, above: str, primes: str) -> str:
    """A symbol with what stands below and above it."""
    up = f"{primes} {above}".strip()
    return tex + (f"_{{{below}}}" if below else "") + (f"^{{{up}}}" if up else "")


def joined(pieces: list[Piece]) -> str:
    """Pieces side by side: a thin space between factors, a full one beside words."""
    tex, before = "", ""
    for kind, part in pieces:
        gap = " "
        if "text" in (kind, before):
            gap = r"\ "
        elif {kind, before} <= {"atom", "paren", "sum"} and before != "sum":
            gap = r"\,"
        tex += (gap if before else "") + part
        before = kind
    return tex


def bare(pieces: list[Piece]) -> str:
    """What stands above or under a line needs no brackets."""
    if len(pieces) == 1 and pieces[0].kind == "paren" and pieces[0].tex[-1] == ")":
        inside = re.sub(r"^\\left\( | \\right\)$", "", pieces[0].tex)
        inside = inside[1:-1] if inside == pieces[0].tex else inside
        if depth_stays(inside):
            return inside
    return joined(pieces)


def depth_stays(tex: str) -> bool:
    """Whether the brackets in it are its own: not `a) (b`."""
    depth = 0
    for mark in tex:
        depth += (mark == "(") - (mark == ")")
        if depth < 0:
            return False
    return depth == 0


def escaped(text: str) -> str:
    return re.sub(r"([_%&#$])", r"\\\1", text)
