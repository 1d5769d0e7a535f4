"""K-FAC and Shampoo take the steps that dense matrices give, and fewer of them than gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bpref
from bpref.train.data.embedded import digits_as_images
from tests.conftest import SEED
from tests.refusing import refusals
from tests.rules.sweeping import in_one_program
from tests.transforms.compositions import close

RNG = np.random.default_rng(SEED)
DAMPING = 0.1


def network():
    """A convolution in groups, a scan, a norm and an embedding beside it."""
    images = bpref.serial(
        bpref.convolution(4, (2, 2), padding="valid", groups=2),
        bpref.global_pool(),
        bpref.scan(bpref.serial(bpref.linear(4), bpref.tanh()), 2),
        bpref.layer_norm(),
    )
    sides = bpref.parallel(images, bpref.embedding(5, 4))
    J = bpref.objective(
        bpref.serial(sides, bpref.fan_in("sum"), bpref.linear(3, bias=False)), bpref.square("batch_mean")
    )
    return J, ((RNG.normal(size=(3, 3, 3, 2)), np.array([1, 1, 4])), RNG.normal(size=(3, 3)))


def dense(A, G, V):
    """(A x G + lambda I)^-1 vec V with the damping shared out, by one large matrix."""
    pi = np.sqrt(np.trace(A) / len(A) / (np.trace(G) / len(G)))
    damped = G + np.sqrt(DAMPING) / pi * np.eye(len(G)), A + np.sqrt(DAMPING) * pi * np.eye(len(A))
    return np.linalg.solve(np.kron(*damped), V.reshape(-1)).reshape(V.shape)


def of_leaf(factor, g):
    if isinstance(factor, bpref.Diagonal):
        return jax.tree.map(lambda s, v: v / (s + DAMPING), factor.squares, g)
    if isinstance(g, bpref.EmbeddingParams):
        return g._replace(W=dense(np.diag(factor.A), factor.G, g.W.T).T)
    front = factor.A.shape[:-2]
    whole = g.W if g.b is None else np.concatenate([g.W.reshape(*g.b.shape, -1), g.b[..., None]], -1)
    blocks = whole.reshape(-1, factor.G.shape[-1], factor.A.shape[-1])
    pairs = zip(*(v.reshape(-1, *v.shape[-2:]) for v in factor), blocks, strict=True)
    V = np.stack([dense(*one) for one in pairs]).reshape(*front, *blocks.shape[1:])
    if g.b is None:
        return g._replace(W=V)
    return g._replace(W=V[..., :-1].reshape(g.W.shape), b=V[..., -1].reshape(g.b.shape))


def test_a_step_is_that_of_the_dense_matrices_and_inverses_are_made_every_other_time(standard_promotion):
    J, x = network()
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(float), J.init(jax.random.key(0), x))
        optimizer = bpref.kfac(J, x, 1.0, damping=DAMPING, decay=0.5, every=2, bound=1e9)

        def steps(params):
            g = bpref.backpropagate(J, params, x)[1]
            factors = bpref.kronecker_factors(J, params, x)
            first, state = optimizer.update(g, optimizer.init(params), params, factors=factors)
            twice = jax.tree.map(lambda v: 3 * v, factors)
            second, state = optimizer.update(g, state, params, factors=twice)
            third, state = optimizer.update(g, state, params, factors=twice)
            return g, factors, first, second, third

        g, factors, first, second, third = jax.device_get(in_one_program(steps)(params))
    nodes, tree = jax.tree.flatten(factors, is_leaf=lambda v: isinstance(v, (bpref.Kronecker, bpref.Diagonal)))
    kinds = {type(node).__name__ for node in nodes}
    assert kinds == {"Kronecker", "Diagonal"}
    for share, steps in ((1.0, first), (1.0, second), (2.5, third)):
        scaled = [jax.tree.map(lambda v, share=share: share * v, node) for node in nodes]
        expected = tree.unflatten([of_leaf(f, own) for f, own in zip(scaled, tree.flatten_up_to(g), strict=True)])
        close(jax.tree.map(lambda v: -v, steps), expected)


def test_no_step_is_longer_than_the_bound(standard_promotion):
    """By the curvature, d^T F d = <d, g> of a step that is not scaled; share^2 of that of one that is."""
    J, x = bpref.objective(bpref.linear(3), bpref.square("batch_mean")), (jnp.ones((2, 4)), jnp.ones((2, 3)))
    params = J.init(jax.random.key(0), x)
    g = bpref.backpropagate(J, params, x)[1]
    factors = bpref.kronecker_factors(J, params, x)

    def along(bound):
        optimizer = bpref.kfac(J, x, 1.0, bound=bound)
        step, _ = optimizer.update(g, optimizer.init(params), params, factors=factors)
        return -sum(jnp.sum(a * b) for a, b in zip(*map(jax.tree.leaves, (step, g)), strict=True))

    whole, scaled = in_one_program(lambda: (along(1e9), along(1e-6)))()
    assert whole > 1e-2
    np.testing.assert_allclose((scaled / whole) ** 2 * whole, 1e-6, rtol=1e-5)


def test_shampoo_is_adam_where_the_directions_are_the_axes(standard_promotion):
    """Gradients of one entry each keep the moments diagonal: their eigenvectors are the axes, in some order."""
    params = {"W": jnp.zeros((3, 2)), "long": jnp.zeros(9), "number": jnp.zeros(())}
    ours = bpref.shampoo(0.1, decay=0.9, momentum=0.8, every=1, longest=8)
    adam = optax.adam(0.1, b1=0.8, b2=0.9)
    states = ours.init(params), adam.init(params)
    assert [v.shape for v in jax.tree.leaves(states[0][0].moments)] == [(3, 3), (2, 2)]
    for i in range(3):
        g = {"W": jnp.zeros((3, 2)).at[i, i % 2].set(i + 1.0), "long": jnp.arange(9.0) - i, "number": jnp.ones(())}
        got, expected = (f.update(g, s, params) for f, s in zip((ours, adam), states, strict=True))
        close(got[0], expected[0], 1e-5)
        states = got[1], expected[1]


def test_both_train_on_the_digits_in_fewer_steps_than_gradient_descent(standard_promotion):
    """Steps until J is below 0.1: descent at the best of five rates, twice as large as which it diverges."""
    X, y = digits_as_images()
    X, y = X[:512].reshape(512, 64), y[:512]
    layers = bpref.linear(24), bpref.tanh(), bpref.linear(10)
    J = bpref.objective(bpref.serial(*layers), bpref.softmax_cross_entropy())
    params = J.init(jax.random.key(SEED), (X, y))

    def steps(optimizer, rate, most, **fed):
        def step(carry, key):
            params, state = carry
            value, g, _ = bpref.backpropagate(J, params, (X, y))
            factors = {name: f(J, params, (X, y), key) for name, f in fed.items()}
            updates, state = optimizer(rate).update(g, state, params, **factors)
            return (optax.apply_updates(params, updates), state), value

        keys = jax.random.split(jax.random.key(1), most)
        values = jax.lax.scan(step, (params, optimizer(rate).init(params)), keys)[1]
        return jnp.where(jnp.any(values < 0.1), jnp.argmax(values < 0.1), most)

    rates = jnp.asarray([0.25, 0.5, 1.0, 2.0, 4.0])
    of_descent = in_one_program(jax.vmap(lambda rate: steps(optax.sgd, rate, 300)))(rates)
    of_kfac = in_one_program(
        lambda: steps(lambda rate: bpref.kfac(J, (X, y), rate), 1.0, 40, factors=bpref.kronecker_factors)
    )()
    of_shampoo = in_one_program(lambda: steps(bpref.shampoo, 0.1, 40))()
    assert of_kfac <= 20
    assert of_shampoo <= 20
    assert of_descent.min() >= 60


J, X = bpref.objective(bpref.linear(2), bpref.square("batch_mean")), (jnp.ones((3, 2)), jnp.ones((3, 2)))
PARAMS = J.init(jax.random.key(0), X)
BAD_CALLS = {
    "kfac: damping is 0, expected a positive number": lambda: bpref.kfac(J, X, 0.1, damping=0),
    "shampoo: damping is -1.0, expected a positive number": lambda: bpref.shampoo(0.1, damping=-1.0),
    "shampoo: learning_rate is 0.0, expected a positive number": lambda: bpref.shampoo(0.0),
    "kfac: decay is 1, expected a number of at least 0 and below 1": lambda: bpref.kfac(J, X, 0.1, decay=1),
    "kfac: factors have the shapes None, expected (Kronecker(A=(3, 3), G=(2, 2)), ()), those of "
    "bpref.kronecker_factors of the layer that kfac was given": (
        lambda: (f := bpref.kfac(J, X, 0.1)).update(PARAMS, f.init(PARAMS))
    ),
    "kfac: factors have the shapes (Kronecker(A=(2, 2), G=(2, 2)), ()), expected (Kronecker(A=(3, 3), G=(2, 2)), "
    "()), those of bpref.kronecker_factors of the layer that kfac was given": (
        lambda: (f := bpref.kfac(J, X, 0.1)).update(
            PARAMS, f.init(PARAMS), factors=(bpref.Kronecker(jnp.ones((2, 2)), jnp.ones((2, 2))), ())
        )
    ),
}


test_bad_calls_are_refused = refusals(BAD_CALLS)
