"""Convolutions: one formula for 1, 2 and 3 spatial axes, its causal form, and its adjoint as a layer."""
