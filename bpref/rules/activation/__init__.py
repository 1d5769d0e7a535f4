"""Rules applied element by element."""
