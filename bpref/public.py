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
from bpref.rules.cumulative.cumulative_logsumexp import cumulative_logsumexp
from bpref.rules.cumulative.cumulative_product import cumulative_product
from bpref.rules.cumulative.cumulative_sum import cumulative_sum
from bpref.rules.geometry.grid_sample import grid_sample
from bpref.rules.geometry.pad import pad
from bpref.rules.geometry.pixel_shuffle import pixel_shuffle
from bpref.rules.geometry.resize import resize
from bpref.rules.indexing.gather import gather
from bpref.rules.indexing.scatter_add import scatter_add
from bpref.rules.indexing.segment_max import segment_max
from bpref.rules.indexing.segment_sum import segment_sum
from bpref.rules.indexing.sort import sort
from bpref.rules.indexing.take_along_axis import take_along_axis
from bpref.rules.indexing.top_k import top_k
from bpref.rules.linear.linear import linear
from bpref.rules.loss.huber import huber
from bpref.rules.loss.sigmoid_cross_entropy import sigmoid_cross_entropy
from bpref.rules.loss.softmax_cross_entropy import softmax_cross_entropy
from bpref.rules.loss.square import square
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
    "cast_params",
    "celu",
    "check",
    "check_intermediates",
    "check_leaves",
    "checked",
    "cumulative_logsumexp",
    "cumulative_product",
    "cumulative_sum",
    "elu",
    "equivalents",
    "gather",
    "gelu",
    "grid_sample",
    "hard_sigmoid",
    "hard_swish",
    "hard_tanh",
    "huber",
    "identity",
    "leaf_paths",
    "leaky_relu",
    "linear",
    "log_sigmoid",
    "map_leaves",
    "mish",
    "mutants",
    "objective",
    "pad",
    "parallel",
    "params_of",
    "pixel_shuffle",
    "relu",
    "relu6",
    "remat",
    "residual",
    "resize",
    "scan",
    "scatter_add",
    "search",
    "segment_max",
    "segment_sum",
    "selu",
    "serial",
    "sigmoid",
    "sigmoid_cross_entropy",
    "silu",
    "softmax_cross_entropy",
    "softplus",
    "softsign",
    "sort",
    "square",
    "strip_custom_rules",
    "take_along_axis",
    "tanh",
    "top_k",
    "trainable",
    "update_in_backward",
    "verify_rule",
]
