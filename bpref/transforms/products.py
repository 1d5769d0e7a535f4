"""products: how the examples' gradients lie to each other, and how much of a gradient is noise.

With g_i what example i adds to the gradient of a mean over N examples:

    K_ij = <g_i, g_j>                      by sweeps like those of the norms, which are its diagonal
    cosine_ij = K_ij / sqrt(K_ii K_jj)     whether two examples pull the same way
    sum_j K_ij over examples j of interest: what a step on example i does to J of these ("influence", TracIn,
    Pruthi et al., arXiv:2002.08484): put them into one batch

For Z = A W^T + b of N rows g_i is an outer product, and K = (dZ dZ^T) * (A A^T + 1), elementwise, without any g_i.

The noise scale is the batch size at which noise and gradient are equally large: with G the gradient of J over all data
and Sigma the covariance of an example's (N g_i here), B = tr Sigma / |G|^2, from unbiased estimates of both (McCandlish
et al., arXiv:1812.06162, equation 2.9 and appendix A.1):

    tr Sigma ~ (N sum_i |g_i|^2 - |sum_i g_i|^2) N / (N - 1)        |G|^2 ~ |sum_i g_i|^2 - tr Sigma / N
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from bpref.dtypes import widen
from bpref.layer import Layer
from bpref.rules.linear.linear import LinearCache, LinearParams
from bpref.transforms.per_example import PerExampleCache, added_up, per_example_gradients


def per_example_products(leaf: Layer) -> Layer:
    """A leaf transformation, for `map_leaves`: dparams of a leaf are the products of its gradients, `(N, N)`.

    Inside `scan` each turn has its own. `gradient_products` adds all of a network up.

    Example:
      >>> _, products, _ = bpref.backpropagate(bpref.map_leaves(bpref.per_example_products, J), params, (X, y))
      >>> K = bpref.gradient_products(products)
      >>> cosine = K / jnp.sqrt(jnp.outer(jnp.diag(K), jnp.diag(K)))

    Raises:
      ValueError, TypeError: as `per_example_gradients`.
    """
    each = per_example_gradients(leaf)

    def backward(params, cache, dy):
        rows = isinstance(cache, PerExampleCache) and isinstance(cache.leaf, LinearCache) and cache.leaf.A.ndim == 2
        if rows and type(params) is LinearParams and dy is not None and leaf.begin is None:
            A, dZ = widen(cache.leaf.A), widen(dy)
            of_b = 0.0 if params.b is None else 1.0
            return (dZ @ dZ.T) * (A @ A.T + of_b), leaf.backward(params, cache.leaf, dy)[1]
        gradients, dx = each.backward(params, cache, dy)
        flat = [widen(g).reshape(g.shape[0], math.prod(g.shape[1:])) for g in jax.tree.leaves(gradients)]
        return sum(g @ g.conj().T for g in flat).real if flat else gradients, dx

    evaluating = None if leaf.evaluating is None else per_example_products(leaf.evaluating)
    return each._replace(backward=backward, evaluating=evaluating)


def gradient_products(products: PyTree) -> Array:
    """`<g_i, g_j>` of the gradients of a whole network, `(N, N)`.

    Args:
      products: the dparams of a network whose leaves are `per_example_products`.

    Example:
      >>> _, products, _ = bpref.backpropagate(bpref.map_leaves(bpref.per_example_products, J), params, (X, y))
      >>> bpref.gradient_products(products).shape
      (4, 4)

    Raises:
      ValueError: there are none, or of different numbers of examples.
    """
    return added_up("gradient_products", "products", products, 2)


def gradient_noise_scale(norms: PyTree, dparams: PyTree) -> Array:
    """B, the batch size at which the noise of a gradient is as large as the gradient; of a mean over N examples.

    It may be negative, where the batch is too small to tell the gradient from its noise: average numerator and
    denominator over steps then.

    Args:
      norms: the lengths of the examples' gradients `(N,)`, as `clipped_gradient` gives them.
      dparams: the gradient.

    Example:
      >>> _, dparams, norms = bpref.clipped_gradient(J, params, (X, y), 1e30)
      >>> B = bpref.gradient_noise_scale(norms, dparams)

    Raises:
      ValueError: there are fewer than two examples.
    """
    if jnp.ndim(norms) != 1 or len(norms) < 2:
        raise ValueError(
            f"gradient_noise_scale: norms has shape {jnp.shape(norms)}, expected (N,) of at least 2 examples"
        )
    n = len(norms)
    whole = sum(jnp.sum(jnp.abs(widen(d)) ** 2) for d in jax.tree.leaves(dparams))
    spread = (n * jnp.sum(norms**2) - whole) * (n / (n - 1))
    return spread / (whole - spread / n)
