"""Leaf transformations: one reverse sweep that carries something other than the gradient."""

from bpref.transforms.cast_params import cast_params
from bpref.transforms.stateful import evaluation, stateful
from bpref.transforms.update_in_backward import Updated, apply_update, params_of, update_in_backward

__all__ = ["Updated", "apply_update", "cast_params", "evaluation", "params_of", "stateful", "update_in_backward"]
