"""Losses of a whole sequence: sums over its alignments or labellings, and means over its tokens."""
