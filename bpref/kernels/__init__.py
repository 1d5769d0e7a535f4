"""Pallas kernels of our own: a rule's sums in another form, for TPUs (Mosaic) and GPUs (Triton); a CPU interprets."""
