"""Data as they come, in memory or in files larger than that, and as the arrays that are trained on."""
