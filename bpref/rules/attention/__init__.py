"""Attention: which of many values are looked at, and how much."""
