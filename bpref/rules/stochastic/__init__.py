"""Rules that draw random numbers from a key in their parameters."""
