"""Factorisations of matrices, and what is computed by one: each adjoint reuses the factors of its forward."""
