"""Verification: the oracle, the laws held against it, and who is to blame when they do not hold."""

from bpref.verify.catalogue import RuleReport, verify_rule
from bpref.verify.checked import LeafErrors, LeafReport, check_leaves, checked

__all__ = ["LeafErrors", "LeafReport", "RuleReport", "check_leaves", "checked", "verify_rule"]
