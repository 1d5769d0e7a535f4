"""Leaf transformations: one reverse sweep that carries something other than the gradient."""

from bpref.transforms.cast_params import cast_params
from bpref.transforms.update_in_backward import Updated, params_of, update_in_backward

__all__ = ["Updated", "cast_params", "params_of", "update_in_backward"]
