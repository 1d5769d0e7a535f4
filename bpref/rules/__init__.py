"""RULES: every rule there is, by name. A new rule is one file, and one line here."""

from importlib import import_module

from bpref.rule import Rule

KINDS: dict[str, tuple[str, ...]] = {
    "linear": ("linear",),
    "activation": (
        "celu",
        "elu",
        "gelu",
        "hard_sigmoid",
        "hard_swish",
        "hard_tanh",
        "identity",
        "leaky_relu",
        "log_sigmoid",
        "mish",
        "relu",
        "relu6",
        "selu",
        "sigmoid",
        "silu",
        "softplus",
        "softsign",
        "tanh",
    ),
    "loss": (
        "huber",
        "sigmoid_cross_entropy",
        "softmax_cross_entropy",
        "square",
    ),
    "linear_algebra": (
        "cholesky",
        "eigh",
        "fft",
        "inverse",
        "log_determinant",
        "matrix_exponential",
        "qr",
        "solve",
        "svd",
        "triangular_solve",
    ),
}
"""The names of the rules by kind: the rule NAME of a KIND is the file `KIND/NAME.py`."""

RULES: dict[str, Rule] = {
    name: import_module(f"bpref.rules.{kind}.{name}").RULE for kind, names in KINDS.items() for name in names
}

OTHER_NAMES: dict[str, str] = {other: name for name, rule in RULES.items() for other in rule.covers}
"""The rule that is meant by another name that people look for."""
