"""Mutating: a backward with one step of its program changed."""
