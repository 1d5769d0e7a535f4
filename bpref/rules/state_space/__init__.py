"""Linear recurrences along time, and the state space models that are made of them."""
