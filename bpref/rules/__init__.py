"""RULES: every rule there is, by name. A new rule is one file, and one line here."""

from bpref.rule import Rule
from bpref.rules.activation import (
    celu,
    elu,
    gelu,
    hard_sigmoid,
    hard_swish,
    hard_tanh,
    identity,
    leaky_relu,
    log_sigmoid,
    mish,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    softplus,
    softsign,
    tanh,
)
from bpref.rules.linear import linear
from bpref.rules.loss import huber, sigmoid_cross_entropy, softmax_cross_entropy, square

RULES: dict[str, Rule] = {
    module.RULE.name: module.RULE
    for module in (
        linear,
        celu,
        elu,
        gelu,
        hard_sigmoid,
        hard_swish,
        hard_tanh,
        identity,
        leaky_relu,
        log_sigmoid,
        mish,
        relu,
        relu6,
        selu,
        sigmoid,
        silu,
        softplus,
        softsign,
        tanh,
        huber,
        sigmoid_cross_entropy,
        softmax_cross_entropy,
        square,
    )
}
