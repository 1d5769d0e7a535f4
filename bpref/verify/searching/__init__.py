"""Searching: arguments for which a derivation fails."""
