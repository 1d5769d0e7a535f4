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
        "cosine_embedding",
        "dice",
        "hinge",
        "huber",
        "info_nce",
        "margin_ranking",
        "multiclass_hinge",
        "negative_sampling",
        "nt_xent",
        "sigmoid_cross_entropy",
        "softmax_cross_entropy",
        "square",
        "triplet",
        "vae",
        "wasserstein_critic",
    ),
    "stochastic": ("reparameterization",),
}
"""The names of the rules by kind: the rule NAME of a KIND is the file `KIND/NAME.py`."""

RULES: dict[str, Rule] = {
    name: import_module(f"bpref.rules.{kind}.{name}").RULE for kind, names in KINDS.items() for name in names
}
