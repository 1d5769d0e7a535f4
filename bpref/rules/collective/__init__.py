"""Rules for `jax.shard_map`, of which each device holds a part: what crosses devices, forward and backward."""
