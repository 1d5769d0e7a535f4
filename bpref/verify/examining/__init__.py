"""Examining what JAX can trace: a subject, its programs, what is refused, what holds, and how precise it is."""
