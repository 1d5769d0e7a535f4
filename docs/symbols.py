"""What the derivations' plain words stand for in TeX: letters, functions, operators."""

GREEK = {
    name: f"\\{name}"
    for name in (
        "alpha", "beta", "gamma", "delta", "theta", "kappa", "lambda", "mu", "nu", "xi", "pi", "rho", "sigma", "tau",
        "phi", "psi", "omega", "Lambda", "Phi", "Delta", "Sigma", "Omega",
    )
} | {"eps": r"\varepsilon"}  # fmt: skip

SUMS = {
    "sum": r"\sum",
    "prod": r"\prod",
    "mean": r"\operatorname*{mean}",
    "max": r"\max",
    "min": r"\min",
    "argmax": r"\operatorname*{argmax}",
}
"""What works on all that follows it in its term."""

FUNCTIONS = {name: f"\\{name}" for name in ("exp", "log", "tanh", "sinh", "cosh", "sin", "cos", "det")} | {
    name: rf"\operatorname{{{name}}}"
    for name in (
        "expm1", "log1p", "log2", "erf", "erfc", "sign", "diag", "softmax", "sigmoid", "softplus", "silu", "relu",
        "relu6", "gelu", "elu", "conj", "attention", "norm", "conv", "act", "RoPE", "scan", "clip", "mlp", "KL", "Re",
        "Low", "score", "others", "std",
    )
}  # fmt: skip

FENCES = {"sqrt": (r"\sqrt{", "}"), "floor": (r"\lfloor ", r" \rfloor"), "ceil": (r"\lceil ", r" \rceil")}

NAMES = {
    name: rf"\mathrm{{{name}}}"
    for name in (
        "lo", "hi", "var", "rms", "rstd", "scale", "rate", "bias", "sink", "blank", "left", "right", "real", "fake",
        "out", "slope",
    )
} | {"inf": r"\infty", "logp": r"\log p", "NaN": r"\text{NaN}"}  # fmt: skip
"""Variables of several letters."""

OPERATORS = {
    "<=": r"\le", ">=": r"\ge", "!=": r"\ne", "<-": r"\leftarrow", "->": r"\to", ":=": r"\mathrel{:=}",
    "=:": r"\mathrel{=:}", "+=": r"\mathrel{+}=", "||": r"\parallel", "=": "=", "<": "<", ">": ">", "+": "+",
    "-": "-", ".": r"\cdot", "*": r"\ast", "(x)": r"\otimes", ":": ":",
}  # fmt: skip

WORDS_BELOW = {"in", "out", "old", "sink", "blank"}
"""Subscripts that are words, where other letters are indices one after the other."""


def symbol(word: str) -> str | None:
    """A variable's TeX: a letter, a Greek one, one with a hat, or d before any of these; None for other words."""
    if len(word) == 1:
        return word
    known = GREEK.get(word) or NAMES.get(word)
    if known:
        return known
    if word.endswith("hat") and word.lower() not in ("hat", "that", "what"):
        inner = symbol(word[:-3])
        return inner and hatted(inner)
    if word.startswith("d"):
        inner = symbol(word[1:])
        return inner and f"d{inner}"
    return None


def hatted(tex: str) -> str:
    """The last letter under a hat: of `dx` the x."""
    return rf"d\hat{{{tex[1:].strip()}}}" if tex.startswith("d") and len(tex) > 1 else rf"\hat{{{tex.strip()}}}"
