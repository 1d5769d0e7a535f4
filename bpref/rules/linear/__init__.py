"""Rules that contract a parameter matrix with their input."""
