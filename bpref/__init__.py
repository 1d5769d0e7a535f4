"""Back-propagation derived by hand, layer by layer, as pure JAX functions, verified against `jax.grad`."""
