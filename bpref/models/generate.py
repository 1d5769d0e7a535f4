"""generate: a sequence continued by a language model, one token after another, each drawn given all before it.

    z = f(x_1 ... x_n)_n                            logits of the next token, given n of them             (B, V)
    p_v = exp(z_v / tau) / sum_w exp(z_w / tau)     tau the temperature; tau -> 0: the largest z alone
    x_n+1 ~ p, of those v alone that are kept, their sum made 1

Kept are the `top_k` largest of p (arXiv:1805.04833), and of these, their sum made 1, the fewest of the largest that
have `top_p` of it together: the nucleus (arXiv:1904.09751).

f is taken as `decoding` makes it: all but the last token of the prompt at once, and then each token by itself, from
what the layers remember. One program does all of it, the steps a loop in it.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Int, PyTree

from bpref.checks.hyperparameters import (
    is_integer,
    is_traced,
    plain,
    require_non_negative,
    require_positive,
    require_share,
    require_size,
)
from bpref.dtypes import require_integer, widen
from bpref.formulas.random_draws import require_key
from bpref.layer import Layer, With, begin, require_layer
from bpref.loops import scan
from bpref.transforms.decoding import decoding


def generate(
    network: Layer,
    params: PyTree,
    prompt: Int[Array, "B P"],
    *,
    steps: int,
    key: Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    context: int | None = None,
) -> Int[Array, "B steps"]:
    """The `steps` tokens that follow each prompt.

    Compiled once for each network, shape of the prompt, `steps` and `top_k`. Nothing is dropped, as in `evaluation`.

    Example:
      >>> gpt = bpref.serial(bpref.embedding(256, 8), bpref.scan(bpref.transformer_block(2, 16), 2), bpref.linear(256))
      >>> prompt = jnp.array([list(b"def ")])
      >>> params = gpt.init(jax.random.key(0), prompt)
      >>> bpref.generate(gpt, params, prompt, steps=20, key=jax.random.key(0), top_p=0.9).shape
      (1, 20)

    Args:
      network: ids `(B, T)` to logits `(B, T, V)`, each position's of those up to it; as `serial` makes one.
      params: its parameters.
      prompt: B sequences of P tokens.
      steps: how many tokens to draw.
      key: a PRNG key; none is needed at temperature 0.
      temperature: what the logits are divided by; 0 takes the most probable token, the first of several.
      top_k: how many of the most probable tokens may be drawn; all where it is left out.
      top_p: of which share of the probability the most probable tokens may be drawn; all where it is left out.
      context: how many positions the network was made for; unlimited where it is left out.

    Raises:
      ValueError: the prompt is empty, has tokens beyond the V of the network, or is, with the steps, longer than the
        context; `steps` is not a positive integer; temperature, `top_k` or `top_p` is out of its range.
      TypeError: `network` is no Layer, or has a leaf that `decoding` does not take, or reads data; the prompt holds no
        integers; there is no key, and a temperature.
    """
    who = "generate"
    require_layer(who, "network", network)
    others = set(network.reads) - {"state"}
    if others:
        raise TypeError(f"{who}: {network.name} reads {', '.join(sorted(others))} beside x, expected a network of ids")
    require_integer(who, "prompt", prompt)
    if len(prompt.shape) != 2 or 0 in prompt.shape:
        raise ValueError(f"{who}: prompt has shape {prompt.shape}, expected (B, P) with at least one token")
    steps = require_size(who, "steps", steps)
    temperature = require_non_negative(who, "temperature", temperature)
    length = prompt.shape[1] + steps - 1
    if context is not None and length > require_size(who, "context", context):
        raise ValueError(
            f"{who}: a prompt of {prompt.shape[1]} tokens and {steps} more are beyond the context of {context}"
        )
    if temperature:
        if key is None:
            raise TypeError(f"{who}: key is None, expected a PRNG key such as jax.random.key(0), or temperature=0")
        require_key(who, key)
    V = _outputs(who, network, length, params, prompt)
    if not is_traced(prompt) and (np.min(prompt) < 0 or np.max(prompt) >= V):
        at = tuple(np.argwhere((np.asarray(prompt) < 0) | (np.asarray(prompt) >= V))[0].tolist())
        raise ValueError(f"{who}: prompt{list(at)} is {prompt[at]}, expected a token from 0 to {V - 1}")
    if top_k is not None and not (is_integer(top_k) and 1 <= top_k <= V):
        raise ValueError(f"{who}: top_k is {top_k!r}, expected an integer from 1 to {V}")
    if top_p is not None:
        top_p = require_share(who, "top_p", require_positive(who, "top_p", top_p))
    if not temperature:
        return _generated(network, steps, None, params, prompt, None, None, None)
    return _generated(network, steps, plain(top_k), params, prompt, key, temperature, top_p)


def candidates(
    logits: Float[Array, "B V"], temperature: ArrayLike, top_k: int | None = None, top_p: ArrayLike | None = None
) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
    """Logits at that temperature, -inf where a token is not to be drawn, and the tokens: all, or the largest first."""
    logits = widen(logits) / jnp.asarray(temperature, widen(logits).dtype)
    if top_k is None and top_p is None:
        return logits, jnp.broadcast_to(lax.iota(jnp.int32, logits.shape[-1]), logits.shape)
    largest, tokens = lax.top_k(logits, logits.shape[-1] if top_k is None else top_k)
    if top_p is None:
        return largest, tokens
    p = jax.nn.softmax(largest)
    before = jnp.cumsum(p, -1) - p
    return jnp.where(before < jnp.asarray(top_p, p.dtype), largest, -jnp.inf), tokens


@partial(jax.jit, static_argnums=(0, 1, 2))
def _generated(
    network: Layer,
    steps: int,
    top_k: int | None,
    params: PyTree,
    prompt: Array,
    key: Array | None,
    temperature: ArrayLike | None,
    top_p: ArrayLike | None,
) -> Array:
    decoder = decoding(network, prompt.shape[1] + steps - 1)
    _, state = begin(decoder, jax.random.key(0), prompt[:, :1])
    if prompt.shape[1] > 1:
        (_, state), _ = decoder.forward(params, With(prompt[:, :-1], state))

    def step(carry, key):
        state, token = carry
        (logits, state), _ = decoder.forward(params, With(token[:, None], state))
        token = drawn(logits[:, 0], key).astype(token.dtype)
        return (state, token), token

    def drawn(logits, key):
        if temperature is None:
            return jnp.argmax(logits, -1)
        values, tokens = candidates(logits, temperature, top_k, top_p)
        return jnp.take_along_axis(tokens, jax.random.categorical(key, values)[:, None], -1)[:, 0]

    keys = None if key is None else jax.random.split(key, steps)
    _, tokens = scan(step, (state, prompt[:, -1]), keys, steps)
    return tokens.T


@partial(jax.jit, static_argnums=(0, 1))
def _logits(network: Layer, length: int, params: PyTree, prompt: Array) -> PyTree:
    decoder = decoding(network, length)
    return decoder.forward(params, With(prompt, begin(decoder, jax.random.key(0), prompt)[1]))[0][0]


def _outputs(who: str, network: Layer, length: int, params: PyTree, prompt: Array) -> int:
    """V, of logits (B, T, V)."""
    y = _logits.eval_shape(network, length, params, prompt)
    if getattr(y, "shape", ())[:-1] != prompt.shape:
        shapes = jax.tree.map(lambda v: v.shape, y)
        raise ValueError(f"{who}: the network gives {shapes}, expected logits (B, T, V) of (B, T) = {prompt.shape}")
    return y.shape[-1]
