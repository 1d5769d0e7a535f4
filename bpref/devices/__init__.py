"""Devices that are not there: what a compiler says of a program for a TPU or a GPU, and by which names they go."""
