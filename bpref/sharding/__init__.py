"""Many devices: a mesh of them, how parameters and examples are divided among them, and a sweep that keeps to it."""
