"""Layers that make one number of many: sums, extremes, products, moments and lengths."""
