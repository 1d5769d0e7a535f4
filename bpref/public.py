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
from bpref.rules.linear_algebra.cholesky import cholesky
from bpref.rules.linear_algebra.eigh import eigh
from bpref.rules.linear_algebra.fft import fft
from bpref.rules.linear_algebra.inverse import inverse
from bpref.rules.linear_algebra.log_determinant import log_determinant
from bpref.rules.linear_algebra.matrix_exponential import matrix_exponential
from bpref.rules.linear_algebra.qr import qr
from bpref.rules.linear_algebra.solve import solve
from bpref.rules.linear_algebra.svd import svd
from bpref.rules.linear_algebra.triangular_solve import triangular_solve
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
    "cholesky",
    "eigh",
    "elu",
    "equivalents",
    "fft",
    "gelu",
    "hard_sigmoid",
    "hard_swish",
    "hard_tanh",
    "huber",
    "identity",
    "inverse",
    "leaf_paths",
    "leaky_relu",
    "linear",
    "log_determinant",
    "log_sigmoid",
    "map_leaves",
    "matrix_exponential",
    "mish",
    "mutants",
    "objective",
    "parallel",
    "params_of",
    "qr",
    "relu",
    "relu6",
    "remat",
    "residual",
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
    "solve",
    "square",
    "strip_custom_rules",
    "svd",
    "tanh",
    "trainable",
    "triangular_solve",
    "update_in_backward",
    "verify_rule",
]
