"""Functions that are called and not traced: NumPy, PyTorch, compiled kernels. Their backward, held against numbers."""
