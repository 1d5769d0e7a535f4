"""The public names, and nothing else: what `bpref.NAME` is, loaded with the first of them that is asked for."""

from bpref.compose import objective, parallel, remat, residual, scan, serial
from bpref.layer import Layer, as_function, backpropagate, leaf_paths, map_leaves, trainable
from bpref.rule import Case, Rule
from bpref.rules import RULES
from bpref.rules.activation.celu import celu
from bpref.rules.activation.elu import elu
from bpref.rules.activation.gelu import gelu
from bpref.rules.activation.hard_sigmoid import hard_sigmoid
from bpref.rules.activation.hard_swish import hard_swish
from bpref.rules.activation.hard_tanh import hard_tanh
from bpref.rules.activation.identity import identity
from bpref.rules.activation.leaky_relu import leaky_relu
from bpref.rules.activation.log_sigmoid import log_sigmoid
from bpref.rules.activation.mish import mish
from bpref.rules.activation.relu import relu
from bpref.rules.activation.relu6 import relu6
from bpref.rules.activation.selu import selu
from bpref.rules.activation.sigmoid import sigmoid
from bpref.rules.activation.silu import silu
from bpref.rules.activation.softplus import softplus
from bpref.rules.activation.softsign import softsign
from bpref.rules.activation.tanh import tanh
from bpref.rules.linear.linear import linear
from bpref.rules.loss.huber import huber
from bpref.rules.loss.sigmoid_cross_entropy import sigmoid_cross_entropy
from bpref.rules.loss.softmax_cross_entropy import softmax_cross_entropy
from bpref.rules.loss.square import square
from bpref.rules.norm.batch_norm import batch_norm, update_running_statistics
from bpref.rules.norm.dynamic_tanh import dynamic_tanh
from bpref.rules.norm.group_norm import group_norm
from bpref.rules.norm.l2_normalize import l2_normalize
from bpref.rules.norm.layer_norm import layer_norm
from bpref.rules.norm.qk_norm import qk_norm
from bpref.rules.norm.rms_norm import rms_norm
from bpref.rules.norm.weight_standardization import weight_standardization
from bpref.rules.reduction.logsumexp import logsumexp
from bpref.rules.reduction.reduce_max import reduce_max
from bpref.rules.reduction.reduce_prod import reduce_prod
from bpref.rules.reduction.reduce_sum import reduce_sum
from bpref.rules.reduction.variance import variance
from bpref.rules.reduction.vector_norm import vector_norm
from bpref.transforms import cast_params, params_of, update_in_backward
from bpref.verify import (
    Finding,
    Precision,
    Report,
    Verdict,
    assert_gradient,
    check,
    check_leaves,
    checked,
    strip_custom_rules,
    verify_rule,
)
from bpref.verify.audit import AuditReport, audit
from bpref.verify.intermediates import IntermediatesReport, check_intermediates
from bpref.verify.mutants import equivalents, mutants
from bpref.verify.search import SearchReport, search

__all__ = [
    "RULES",
    "AuditReport",
    "Case",
    "Finding",
    "IntermediatesReport",
    "Layer",
    "Precision",
    "Report",
    "Rule",
    "SearchReport",
    "Verdict",
    "as_function",
    "assert_gradient",
    "audit",
    "backpropagate",
    "batch_norm",
    "cast_params",
    "celu",
    "check",
    "check_intermediates",
    "check_leaves",
    "checked",
    "dynamic_tanh",
    "elu",
    "equivalents",
    "gelu",
    "group_norm",
    "hard_sigmoid",
    "hard_swish",
    "hard_tanh",
    "huber",
    "identity",
    "l2_normalize",
    "layer_norm",
    "leaf_paths",
    "leaky_relu",
    "linear",
    "log_sigmoid",
    "logsumexp",
    "map_leaves",
    "mish",
    "mutants",
    "objective",
    "parallel",
    "params_of",
    "qk_norm",
    "reduce_max",
    "reduce_prod",
    "reduce_sum",
    "relu",
    "relu6",
    "remat",
    "residual",
    "rms_norm",
    "scan",
    "search",
    "selu",
    "serial",
    "sigmoid",
    "sigmoid_cross_entropy",
    "silu",
    "softmax_cross_entropy",
    "softplus",
    "softsign",
    "square",
    "strip_custom_rules",
    "tanh",
    "trainable",
    "update_in_backward",
    "update_running_statistics",
    "variance",
    "vector_norm",
    "verify_rule",
    "weight_standardization",
]
