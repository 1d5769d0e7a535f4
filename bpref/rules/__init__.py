"""RULES: every rule there is, by name. A new rule is one file, and one line here."""

from bpref.rule import Rule
from bpref.rules.activation import relu, tanh
from bpref.rules.linear import linear

RULES: dict[str, Rule] = {
    module.RULE.name: module.RULE
    for module in (
        linear,
        relu,
        tanh,
    )
}
