"""Mixtures: experts that share the tokens, and the router that says which goes where."""
