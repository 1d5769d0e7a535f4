"""Whole blocks of a network, each derived and fused as one layer: what it keeps is chosen for the block, not by its parts."""
