"""Optimal transport with entropy: plans and what they cost."""
