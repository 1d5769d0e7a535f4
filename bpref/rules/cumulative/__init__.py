"""Sums, products and log-sum-exps of all that came so far along an axis."""
