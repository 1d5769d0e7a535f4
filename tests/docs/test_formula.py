"""Plain formulas in TeX, and which lines of the derivations are formulas at all."""

import inspect
import re
import sys
from collections import Counter

import pytest

from bpref.rules import RULES
from docs.formula import Untranslatable, to_tex

DERIVATIONS = {name: inspect.cleandoc(sys.modules[rule.make.__module__].__doc__ or "") for name, rule in RULES.items()}


@pytest.mark.parametrize(
    ("plain", "tex"),
    [
        ("y_nk = gamma_k xhat_nk", r"y_{nk} = \gamma_{k}\,\hat{x}_{nk}"),
        (
            "r_n = 1 / sqrt(mean_k x_nk^2 + eps)",
            r"r_{n} = \frac{1}{\sqrt{\operatorname*{mean}_{k} x_{nk}^{2} + \varepsilon}}",
        ),
        ("dx_nk = dJ e_nk / N", r"dx_{nk} = \frac{dJ\,e_{nk}}{N}"),
        ("J = 1/N sum_n l_n", r"J = \frac{1}{N}\,\sum_{n} l_{n}"),
        ("sum_i exp(x_i) delta x_i / S", r"\sum_{i} \frac{\exp(x_{i})\,\delta x_{i}}{S}"),
        ("S'_t^T k_t", r"S_{t}^{\prime T}\,k_{t}"),
        ("h_n,t-1 U^T", r"h_{n,t-1}\,U^{T}"),
        ("du_(s - t) += dx_ts", r"du_{s - t} \mathrel{+}= dx_{ts}"),
        ("exp(a_t-1(i) + A_ij)", r"\exp(a_{t-1}(i) + A_{ij})"),
        ("W_(x_n)j", "W_{(x_{n})j}"),
        ("dA[l-1] = dZ[l] W[l]", r"dA^{[l-1]} = dZ^{[l]}\,W^{[l]}"),
        ("<dL, delta L>", r"\langle dL ,\; \delta L \rangle"),
        ("sum_{s<=t} (a_t . b_s) v_s", r"\sum_{s \le t} (a_{t} \cdot b_{s})\,v_{s}"),
        ("|x| / max(l, eps)", r"\frac{\lvert x \rvert}{\max(l ,\; \varepsilon)}"),
        ("dy where x > 0, else 0", r"dy\ \text{where}\ x > 0 ,\;\ \text{else}\ 0"),
        ("pi_old_n", r"\pi_{\mathrm{old},{n}}"),
        ("dy_hat_nk", r"d\hat{y}_{nk}"),
        ("A = -exp(log_A)", r"A = - \exp(\mathrm{log\_A})"),
        ("a2 (x) dy", r"a_{2} \otimes dy"),
        ("floor(n K / N)", r"\left\lfloor \frac{n\,K}{N} \right\rfloor"),
    ],
)
def test_a_formula(plain: str, tex: str):
    assert to_tex(plain) == tex


def test_fractions_stay_on_the_line_in_running_text():
    assert to_tex("exp(x / alpha)", display=False) == r"\exp(x / \alpha)"


@pytest.mark.parametrize("plain", ["x_n,s i - lo,c", "f(x", "a / ", "x_a_b_c", "/ 2", "D = E + 2."])
def test_what_is_not_understood_is_refused(plain: str):
    with pytest.raises(Untranslatable):
        to_tex(plain)


WORDLESS = re.compile(
    r"\\(?:frac|left|right|displaystyle|ldots|le|ge|ne|cdot|ast|otimes|to|leftarrow|parallel|[lr][vV]ert|[lr]angle"
    r"|rfloor|rceil|prime|mathrel|mathbin|operatorname\*?|mathrm|text|texttt)(?![A-Za-z])"
)
SPELT = {r"\infty": "inf", r"\varepsilon": "eps", r"\lfloor": " floor", r"\lceil": " ceil", r"\log p": "logp"}


def letters(tex: str) -> Counter[str]:
    """How often each letter and digit is written in TeX, with commands that stand for words read as these."""
    for command, word in SPELT.items():
        tex = tex.replace(command, word)
    return Counter(re.findall(r"[A-Za-z0-9]", WORDLESS.sub("", tex)))


@pytest.mark.parametrize("name", RULES)
def test_no_letter_of_a_derivation_is_lost(name: str):
    lines = [line for line in DERIVATIONS[name].splitlines() if line.startswith("    ")]
    for cell in (c for line in lines for c in re.split(r"\s{2,}(?!\s|=|<-|\+=)", line.strip())):
        try:
            tex = to_tex(" ".join(cell.split()))
        except Untranslatable:
            continue
        plain = re.sub(r"\^(?=[\s,\]]|$)", "hat", cell.replace(" (x) ", " "))
        assert letters(tex) == Counter(re.findall(r"[A-Za-z0-9]", plain)), (cell, tex)
