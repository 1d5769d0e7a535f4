"""Attention: what is read from all that came before, by queries, keys and values."""
