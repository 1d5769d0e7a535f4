"""Numbers: points to try a derivation at, distances between arrays, derivatives by finite differences, kinks."""
