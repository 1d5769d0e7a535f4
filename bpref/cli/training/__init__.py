"""What `bpref train` does, step by step: what was chosen, its processes, the gradient checked first, what is shown."""
