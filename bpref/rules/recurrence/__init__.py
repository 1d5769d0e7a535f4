"""Recurrences: back-propagation through time."""
