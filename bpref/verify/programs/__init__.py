"""Programs as JAX traces them: read, rewritten, lifted into float64, and run."""
