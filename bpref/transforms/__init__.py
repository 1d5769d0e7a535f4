"""Leaf transformations: one reverse sweep that carries something other than the gradient."""

from bpref.transforms.cast_params import cast_params
from bpref.transforms.clip import Clipped, clipped_gradient, private_gradient
from bpref.transforms.curvature.gauss_newton import fisher_diagonal, gauss_newton_diagonal, gauss_newton_product
from bpref.transforms.curvature.hessian import hessian_product, hutchinson_diagonal
from bpref.transforms.curvature.kfac import KfacState, kfac
from bpref.transforms.curvature.kronecker import Diagonal, Kronecker, kronecker_factors
from bpref.transforms.curvature.shampoo import ShampooState, shampoo
from bpref.transforms.decoding import decoding
from bpref.transforms.feedback import Feedback, feedback_alignment, sign_symmetry
from bpref.transforms.per_example import per_example_gradients, per_example_norms, squared_norms
from bpref.transforms.privacy import privacy_spent
from bpref.transforms.products import gradient_noise_scale, gradient_products, per_example_products
from bpref.transforms.stateful import evaluation, stateful
from bpref.transforms.sweeps import Swept, update_by_sweeps
from bpref.transforms.update_in_backward import Updated, apply_update, params_of, update_in_backward
from bpref.transforms.watch import Statistics, Watched, statistics_by_path, unwatched, watch, where_it_dies

__all__ = [
    "Clipped",
    "Diagonal",
    "Feedback",
    "KfacState",
    "Kronecker",
    "ShampooState",
    "Statistics",
    "Swept",
    "Updated",
    "Watched",
    "apply_update",
    "cast_params",
    "clipped_gradient",
    "decoding",
    "evaluation",
    "feedback_alignment",
    "fisher_diagonal",
    "gauss_newton_diagonal",
    "gauss_newton_product",
    "gradient_noise_scale",
    "gradient_products",
    "hessian_product",
    "hutchinson_diagonal",
    "kfac",
    "kronecker_factors",
    "params_of",
    "per_example_gradients",
    "per_example_norms",
    "per_example_products",
    "privacy_spent",
    "private_gradient",
    "shampoo",
    "sign_symmetry",
    "squared_norms",
    "stateful",
    "statistics_by_path",
    "unwatched",
    "update_by_sweeps",
    "update_in_backward",
    "watch",
    "where_it_dies",
]
