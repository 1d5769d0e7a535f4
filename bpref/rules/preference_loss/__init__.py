"""Losses that train a policy on preferences, rewards or advantages, given log-probabilities."""
