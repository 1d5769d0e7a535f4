"""The public names, and nothing else: what `bpref.NAME` is, loaded with the first of them that is asked for."""

from bpref.compose import objective, parallel, remat, residual, scan, serial
from bpref.layer import Layer, as_function, backpropagate, leaf_paths, map_leaves, trainable
from bpref.rule import Case, Rule
from bpref.rules import RULES
from bpref.rules.activation.celu import celu
from bpref.rules.activation.elu import elu
from bpref.rules.activation.gelu import gelu
from bpref.rules.activation.glu import glu
from bpref.rules.activation.gumbel_softmax import gumbel_softmax
from bpref.rules.activation.hard_sigmoid import hard_sigmoid
from bpref.rules.activation.hard_swish import hard_swish
from bpref.rules.activation.hard_tanh import hard_tanh
from bpref.rules.activation.identity import identity
from bpref.rules.activation.leaky_relu import leaky_relu
from bpref.rules.activation.log_sigmoid import log_sigmoid
from bpref.rules.activation.log_softmax import log_softmax
from bpref.rules.activation.maxout import maxout
from bpref.rules.activation.mish import mish
from bpref.rules.activation.prelu import prelu
from bpref.rules.activation.relu import relu
from bpref.rules.activation.relu6 import relu6
from bpref.rules.activation.selu import selu
from bpref.rules.activation.sigmoid import sigmoid
from bpref.rules.activation.silu import silu
from bpref.rules.activation.soft_cap import soft_cap
from bpref.rules.activation.softmax import softmax
from bpref.rules.activation.softplus import softplus
from bpref.rules.activation.softsign import softsign
from bpref.rules.activation.sparsemax import sparsemax
from bpref.rules.activation.squared_relu import squared_relu
from bpref.rules.activation.tanh import tanh
from bpref.rules.convolution.causal_convolution import causal_convolution
from bpref.rules.convolution.convolution import convolution
from bpref.rules.convolution.transposed_convolution import transposed_convolution
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
from bpref.rules.linear.bilinear import bilinear
from bpref.rules.linear.einsum import einsum
from bpref.rules.linear.embedding import embedding
from bpref.rules.linear.embedding_bag import embedding_bag
from bpref.rules.linear.linear import linear
from bpref.rules.linear.low_rank_linear import low_rank_linear
from bpref.rules.linear.spectral_norm_linear import power_iteration, spectral_norm_linear
from bpref.rules.linear.tied_embedding import tied_embedding
from bpref.rules.linear.weight_norm_linear import weight_norm_linear
from bpref.rules.linear_algebra.cholesky import cholesky
from bpref.rules.linear_algebra.eigh import eigh
from bpref.rules.linear_algebra.fft import fft
from bpref.rules.linear_algebra.inverse import inverse
from bpref.rules.linear_algebra.log_determinant import log_determinant
from bpref.rules.linear_algebra.matrix_exponential import matrix_exponential
from bpref.rules.linear_algebra.qr import qr
from bpref.rules.linear_algebra.real_fft import real_fft
from bpref.rules.linear_algebra.solve import solve
from bpref.rules.linear_algebra.svd import svd
from bpref.rules.linear_algebra.triangular_solve import triangular_solve
from bpref.rules.loss.absolute import absolute
from bpref.rules.loss.cosine_embedding import cosine_embedding
from bpref.rules.loss.dice import dice
from bpref.rules.loss.focal import focal
from bpref.rules.loss.gaussian import gaussian
from bpref.rules.loss.hinge import hinge
from bpref.rules.loss.huber import huber
from bpref.rules.loss.info_nce import info_nce
from bpref.rules.loss.jensen_shannon import jensen_shannon
from bpref.rules.loss.kl_divergence import kl_divergence
from bpref.rules.loss.log_cosh import log_cosh
from bpref.rules.loss.margin_ranking import margin_ranking
from bpref.rules.loss.multiclass_hinge import multiclass_hinge
from bpref.rules.loss.negative_sampling import negative_sampling
from bpref.rules.loss.nt_xent import nt_xent
from bpref.rules.loss.poisson import poisson
from bpref.rules.loss.quantile import quantile
from bpref.rules.loss.sigmoid_cross_entropy import sigmoid_cross_entropy
from bpref.rules.loss.softmax_cross_entropy import softmax_cross_entropy
from bpref.rules.loss.square import square
from bpref.rules.loss.triplet import triplet
from bpref.rules.loss.vae import vae
from bpref.rules.loss.wasserstein_critic import wasserstein_critic
from bpref.rules.norm.batch_norm import batch_norm, update_running_statistics
from bpref.rules.norm.dynamic_tanh import dynamic_tanh
from bpref.rules.norm.group_norm import group_norm
from bpref.rules.norm.l2_normalize import l2_normalize
from bpref.rules.norm.layer_norm import layer_norm
from bpref.rules.norm.qk_norm import qk_norm
from bpref.rules.norm.rms_norm import rms_norm
from bpref.rules.norm.weight_standardization import weight_standardization
from bpref.rules.pooling.adaptive_pool import adaptive_pool
from bpref.rules.pooling.average_pool import average_pool
from bpref.rules.pooling.global_pool import global_pool
from bpref.rules.pooling.max_pool import max_pool
from bpref.rules.preference_loss.dpo import dpo
from bpref.rules.preference_loss.grpo import grpo
from bpref.rules.preference_loss.kto import kto
from bpref.rules.preference_loss.ppo import ppo
from bpref.rules.preference_loss.token_log_probability import token_log_probability
from bpref.rules.quantization.gradient_reversal import gradient_reversal
from bpref.rules.quantization.learned_step_quantizer import learned_step_quantizer
from bpref.rules.quantization.straight_through import straight_through
from bpref.rules.reduction.logsumexp import logsumexp
from bpref.rules.reduction.reduce_max import reduce_max
from bpref.rules.reduction.reduce_prod import reduce_prod
from bpref.rules.reduction.reduce_sum import reduce_sum
from bpref.rules.reduction.variance import variance
from bpref.rules.reduction.vector_norm import vector_norm
from bpref.rules.sequence_loss.distillation import distillation
from bpref.rules.sequence_loss.fused_linear_cross_entropy import fused_linear_cross_entropy
from bpref.rules.stochastic.drop_path import drop_path
from bpref.rules.stochastic.dropout import dropout
from bpref.rules.stochastic.gaussian_noise import gaussian_noise
from bpref.rules.stochastic.reparameterization import reparameterization
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
    "absolute",
    "adaptive_pool",
    "as_function",
    "assert_gradient",
    "audit",
    "average_pool",
    "backpropagate",
    "batch_norm",
    "bilinear",
    "cast_params",
    "causal_convolution",
    "celu",
    "check",
    "check_intermediates",
    "check_leaves",
    "checked",
    "cholesky",
    "convolution",
    "cosine_embedding",
    "cumulative_logsumexp",
    "cumulative_product",
    "cumulative_sum",
    "dice",
    "distillation",
    "dpo",
    "drop_path",
    "dropout",
    "dynamic_tanh",
    "eigh",
    "einsum",
    "elu",
    "embedding",
    "embedding_bag",
    "equivalents",
    "fft",
    "focal",
    "fused_linear_cross_entropy",
    "gather",
    "gaussian",
    "gaussian_noise",
    "gelu",
    "global_pool",
    "glu",
    "gradient_reversal",
    "grid_sample",
    "group_norm",
    "grpo",
    "gumbel_softmax",
    "hard_sigmoid",
    "hard_swish",
    "hard_tanh",
    "hinge",
    "huber",
    "identity",
    "info_nce",
    "inverse",
    "jensen_shannon",
    "kl_divergence",
    "kto",
    "l2_normalize",
    "layer_norm",
    "leaf_paths",
    "leaky_relu",
    "learned_step_quantizer",
    "linear",
    "log_cosh",
    "log_determinant",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "low_rank_linear",
    "map_leaves",
    "margin_ranking",
    "matrix_exponential",
    "max_pool",
    "maxout",
    "mish",
    "multiclass_hinge",
    "mutants",
    "negative_sampling",
    "nt_xent",
    "objective",
    "pad",
    "parallel",
    "params_of",
    "pixel_shuffle",
    "poisson",
    "power_iteration",
    "ppo",
    "prelu",
    "qk_norm",
    "qr",
    "quantile",
    "real_fft",
    "reduce_max",
    "reduce_prod",
    "reduce_sum",
    "relu",
    "relu6",
    "remat",
    "reparameterization",
    "residual",
    "resize",
    "rms_norm",
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
    "soft_cap",
    "softmax",
    "softmax_cross_entropy",
    "softplus",
    "softsign",
    "solve",
    "sort",
    "sparsemax",
    "spectral_norm_linear",
    "square",
    "squared_relu",
    "straight_through",
    "strip_custom_rules",
    "svd",
    "take_along_axis",
    "tanh",
    "tied_embedding",
    "token_log_probability",
    "top_k",
    "trainable",
    "transposed_convolution",
    "triangular_solve",
    "triplet",
    "update_in_backward",
    "update_running_statistics",
    "vae",
    "variance",
    "vector_norm",
    "verify_rule",
    "wasserstein_critic",
    "weight_norm_linear",
    "weight_standardization",
]
