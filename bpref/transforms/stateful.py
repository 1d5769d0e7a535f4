"""stateful: PRNG keys and running statistics out of params, into a state that is given and returned.

A leaf reads all it needs beside x in its params, those too that are not trained; their cotangent is `None`. Here params
are what is trained alone, x comes as `With(x, state)`, and y goes as the pair `(y, the next state)`. Nothing is
differentiated that was not: for the adjoint the state is a constant, and the cache holds what the backward needs of it.
Combinators hand each part its own state, so that no layer takes an argument that it does not use.
"""

from typing import NamedTuple

import jax
from jaxtyping import PyTree

from bpref.apart import require_parts, taken_apart
from bpref.dtypes import described
from bpref.layer import Layer, P, State, With, X, Y, in_evaluation, map_leaves, require_layer


class StatefulCache(NamedTuple):
    leaf: PyTree
    held: State
    alone: tuple[()] | None = None  # () where x came alone, and not in the tuple that its leaf was given


def stateful(layer: Layer) -> Layer:
    """The same layer with a state of its own: params hold what is trained, and nothing else.

    `begin` gives its params and its state. A layer without keys and statistics is
    returned as it is.

    Example:
      >>> layers = bpref.serial(bpref.linear(8), bpref.batch_norm(), bpref.dropout(0.1), bpref.linear(3))
      >>> J = bpref.objective(bpref.stateful(layers), bpref.softmax_cross_entropy())
      >>> params, state = bpref.begin(J, jax.random.key(0), (X, y))
      >>> (value, state), dparams, _ = bpref.backpropagate(J, params, bpref.With((X, y), state))

    Raises:
      TypeError: `layer` is no Layer; a leaf is transformed already, or has another in it that holds something.
    """
    require_layer("stateful", "layer", layer)
    require_parts("stateful", layer)
    return map_leaves(_stateful_leaf, layer)


def evaluation(layer: Layer[P, X, Y, PyTree]) -> Layer[P, X, Y, PyTree]:
    """The layer as it is in evaluation, with the same params and state: nothing dropped, the running statistics read.

    Example:
      >>> network = bpref.stateful(bpref.dropout(0.5))
      >>> p, state = bpref.begin(network, jax.random.key(0), X)
      >>> (value, _), _ = bpref.evaluation(network).forward(p, bpref.With(X, state))
      >>> bool(jnp.all(value == X))
      True

    Raises:
      TypeError: `layer` is no Layer.
    """
    require_layer("evaluation", "layer", layer)
    return in_evaluation(layer) or layer


def _stateful_leaf(leaf: Layer) -> Layer:
    held = leaf.held
    if held is None:
        return leaf

    def plain(x):
        return x.x if isinstance(x, With) and leaf.begin is None else x

    def begin(key, x):
        if held.into is not None:
            of_params, of_state = jax.random.split(key)
            return leaf.init(of_params, plain(x)), dict.fromkeys(held.fields, of_state)
        params = leaf.init(key, plain(x))
        return params._replace(**dict.fromkeys(held.fields)), {name: getattr(params, name) for name in held.fields}

    def forward(params, x):
        if not isinstance(x, With):
            raise TypeError(f"{leaf.name}: x is {described(x)}, expected bpref.With(x, state)")
        require_state(x.state)
        used = held.before(x.state)
        whole, value = filled(params, used), x.x if held.into is None else held.into(x.x, used)
        alone = () if isinstance(value, tuple) and not isinstance(x.x, tuple) else None
        if leaf.begin is None:
            y, cache = leaf.forward(whole, value)
        else:
            (y, _), cache = leaf.forward(whole, x._replace(x=value, state=()))
        return (y, held.after(x.state, held.whole(whole, x.data), cache)), StatefulCache(cache, used, alone)

    def backward(params, cache, dy):
        whole = filled(params, cache.held)
        if leaf.begin is None:
            dparams, dx = leaf.backward(whole, cache.leaf, dy[0])
            dx = With(dx, None, None)
        else:
            dparams, dx = leaf.backward(whole, cache.leaf, dy)
        return dparams, dx if cache.alone is None or dx.x is None else dx._replace(x=dx.x[0])

    def require_state(state):
        names = set(held.fields)
        if not isinstance(state, dict) or set(state) != names:
            came = f"a dict of {', '.join(state) or 'nothing'}" if isinstance(state, dict) else described(state)
            of = ", ".join(sorted(names))
            raise TypeError(f"{leaf.name}: its state is {came}, expected a dict of {of}, as bpref.begin gives it")

    def filled(params, used):
        return params._replace(**used) if held.into is None else params

    decoding = leaf.decoding if held.fields == ("key",) else None  # its state would begin anew, statistics and all
    reads = ("state", *leaf.reads)
    return taken_apart(leaf, begin, forward, backward, _stateful_leaf, reads=reads, decoding=decoding)
