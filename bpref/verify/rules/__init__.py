"""A whole rule: examples of its cases, its laws, and what a sabotaged one would show."""
