"""Layers that draw random numbers: noise that is made again from its key, never kept."""
