"""Verification: the oracle, the laws held against it, and who is to blame when they do not hold."""

from bpref.verify.check import assert_gradient, check
from bpref.verify.checked import LeafErrors, LeafReport, check_leaves, checked
from bpref.verify.programs.strip import strip_custom_rules
from bpref.verify.report import Finding, Pattern, Precision, Report, Verdict
from bpref.verify.rules.catalogue import RuleReport, verify_rule

__all__ = [
    "Finding",
    "LeafErrors",
    "LeafReport",
    "Pattern",
    "Precision",
    "Report",
    "RuleReport",
    "Verdict",
    "assert_gradient",
    "check",
    "check_leaves",
    "checked",
    "strip_custom_rules",
    "verify_rule",
]
