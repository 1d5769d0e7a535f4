"""Pooling: what is left of each window of the spatial axes, its maximum or its mean."""
