# %% [markdown]
# # Import a formula
#
# The third use of bpref: code of your own, with one derivation of the catalogue in it. A rule is three pure functions,
# so that its forward and its backward can be called wherever they are needed, without anything around them.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import bpref

rng = np.random.default_rng(0)
x = jnp.asarray(rng.normal(size=(4, 6)), np.float32)
norm = bpref.layer_norm()
params = norm.init(jax.random.key(0), x)
y, cache = norm.forward(params, x)
dy = jnp.asarray(rng.normal(size=y.shape), np.float32)
dparams, dx = norm.backward(params, cache, dy)
print(jax.tree.map(np.shape, cache))

# %% [markdown]
# What is kept is what the derivation says must be, under the names of its docstring. Autodiff of the naive form keeps
# more:

# %%
naive = bpref.RULES["layer_norm"].reference
by_hand = sum(v.size for v in jax.tree.leaves(cache))
by_autodiff = sum(v.size for v in jax.tree.leaves(jax.vjp(naive, params, x)[1]))
print(f"{by_hand} numbers are kept, {by_autodiff} by autodiff")
assert by_hand < by_autodiff

# %% [markdown]
# As a function that `jax.grad` differentiates through the derivation by hand, it goes into any JAX code, Flax's or
# Equinox's too:

# %%
normalize = bpref.as_function(norm)


def energy(x):
    return jnp.sum(jnp.tanh(normalize(params, x)) ** 2)


by_hand = jax.grad(energy)(x)
by_autodiff = jax.grad(lambda x: jnp.sum(jnp.tanh(naive(params, x)) ** 2))(x)
assert np.allclose(by_hand, by_autodiff, atol=1e-5)

# %% [markdown]
# And a reference for a kernel of one's own is one line: `bpref.check(my_norm, x, reference=...)` with
# `bpref.RULES["layer_norm"].reference`, or the rule itself, whose every line `bpref explain layer_norm` derives.
