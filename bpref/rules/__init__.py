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
    "cumulative": (
        "cumulative_logsumexp",
        "cumulative_product",
        "cumulative_sum",
    ),
    "indexing": (
        "gather",
        "scatter_add",
        "segment_max",
        "segment_sum",
        "sort",
        "take_along_axis",
        "top_k",
    ),
    "geometry": (
        "grid_sample",
        "pad",
        "pixel_shuffle",
        "resize",
    ),
}
"""The names of the rules by kind: the rule NAME of a KIND is the file `KIND/NAME.py`."""

RULES: dict[str, Rule] = {
    name: import_module(f"bpref.rules.{kind}.{name}").RULE for kind, names in KINDS.items() for name in names
}
