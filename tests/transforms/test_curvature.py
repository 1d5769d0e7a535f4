"""Gauss-Newton, Fisher and Hessian, by sweeps, equal the matrices that autodiff gives, on every composition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bpref
from bpref.cotangents import is_differentiable
from bpref.layer import no_params
from bpref.rules import RULES
from bpref.trained import select
from bpref.verify.rules.draw import draw
from tests.conftest import SEED
from tests.rules.sweeping import in_one_program
from tests.transforms.compositions import COMPOSITIONS, close
from tests.transforms.test_per_example import CASES, sizes_of

RNG = np.random.default_rng(SEED)
ROOTED = {
    f"{name}: {case.name}": (RULES[name], case)
    for name in ("softmax_cross_entropy", "sequence_cross_entropy", "square")
    for case in RULES[name].cases
    if case.name not in ("one example", "one number")
}


@pytest.mark.parametrize(("rule", "case"), ROOTED.values(), ids=ROOTED)
def test_the_columns_of_a_loss_are_the_root_of_its_hessian(rule, case):
    example = draw(rule, case, sizes_of(case), SEED)
    root = example.layer.root
    if root is None:
        of_each = case.hyper.get("reduction") == "none"
        assert of_each or "z-loss" in case.name or "everything" in case.name or "per example" in case.name
        return

    def both(z, rest):
        _, cache = example.layer.forward((), (z, *rest))
        S = jnp.stack([root.column(cache, k)[0] for k in range(root.width(cache))])
        drawn = jax.vmap(lambda key: root.drawn(cache, key)[0])(jax.random.split(jax.random.key(0), 20000))
        alone = [
            jnp.stack([jnp.where((jnp.arange(len(z)) == i).reshape(-1, *[1] * (z.ndim - 1)), s, 0) for s in S])
            for i in range(len(z))
        ]
        S = jnp.concatenate(alone).reshape(-1, z.size)
        drawn = drawn.reshape(len(drawn), -1)
        H = jax.hessian(lambda z: example.layer.forward((), (z, *rest))[0])(z)
        return S.T @ S, drawn.T @ drawn / len(drawn), H.reshape(z.size, z.size)

    with jax.enable_x64(True):
        z, *rest = jax.tree.map(jnp.asarray, example.x)
        made, of_draws, H = in_one_program(both)(z, rest)
    close(made, H)
    np.testing.assert_allclose(of_draws, H, atol=0.05 * float(np.abs(H).max()))


def outputs(J):
    """J without its loss: what that is given."""
    return bpref.map_leaves(
        lambda leaf: leaf if leaf.root is None else leaf._replace(forward=lambda params, x: (x[0], ())), J
    )


WITH_ROOT = {name: COMPOSITIONS[name] for name in ("a convnet", "branches", "tied", "reversible")}


@pytest.mark.parametrize("made", WITH_ROOT.values(), ids=WITH_ROOT)
def test_every_composition_gives_the_matrices_of_second_derivatives(made):
    with jax.enable_x64(True):
        J, x = made()
        x = jax.tree.map(jnp.asarray, x)
        params = J.init(jax.random.key(SEED), x)
        flat, tree_of = ravel_pytree(params)
        u = jnp.asarray(RNG.normal(size=flat.shape))
        v = tree_of(u)
        loss = next(leaf for leaf in leaves_of(J) if leaf.root is not None)
        targets = x[1] if type(x[1]) is tuple else (x[1],)

        def brute(flat):
            network = outputs(J)
            z = network.forward(tree_of(flat), x)[0]
            Jac = jax.jacrev(lambda p: network.forward(tree_of(p), x)[0].reshape(-1))(flat)
            H = jax.hessian(lambda z: loss.forward((), (z, *targets))[0])(z).reshape(z.size, z.size)
            of_J = jax.grad(lambda p: J.forward(tree_of(p), x)[0])
            return Jac.T @ H @ Jac, jax.jvp(of_J, (flat,), (u,))[1]

        def ours(params, v):
            return (
                bpref.gauss_newton_diagonal(J, params, x),
                bpref.gauss_newton_product(J, params, x, v),
                bpref.hessian_product(J, params, x, v),
            )

        G, along = in_one_program(brute)(flat)
        diagonal, product, of_hessian = in_one_program(ours)(params, v)
        flats = (ravel_pytree(tree)[0] for tree in (diagonal, product, of_hessian))
        for got, expected in zip(flats, (np.diag(G), G @ u, along), strict=True):
            close(np.asarray(got), np.asarray(expected), 1e-9)


def leaves_of(layer):
    return [leaf for part in layer.parts for leaf in leaves_of(part)] if layer.parts else [layer]


def half_of_squares():
    """J of any output: its cotangent is the output."""

    def numbers(y):
        return jax.tree.map(lambda v: v if is_differentiable(v) else None, y)

    def J_of(y):
        return sum(jnp.sum(jnp.abs(v) ** 2) / 2 for v in jax.tree.leaves(numbers(y)))

    return bpref.Layer(
        no_params,
        lambda params, y: (J_of(y), y),
        lambda params, y, dJ: ((), jax.tree.map(lambda v: dJ.astype(v.dtype) * v, numbers(y))),
        "half of squares",
    ), J_of


OF_RULES = {rule.name: (rule, case) for rule, case in reversed(CASES.values())}


@pytest.mark.parametrize(("rule", "case"), OF_RULES.values(), ids=OF_RULES)
def test_every_rule_is_pushed_forward_to_its_second_derivative(rule, case):
    example = draw(rule, case, sizes_of(case), SEED)
    loss, J_of = half_of_squares()
    J = bpref.serial(example.layer, loss)
    with jax.enable_x64(True):
        params, x = (example.params, ()), jax.tree.map(jnp.asarray, example.x)
        mask = bpref.trainable(J, params, x)
        trained = select(mask, params)
        v = jax.tree.map(lambda p: jnp.asarray(RNG.normal(size=p.shape), p.dtype), trained)

        def both(params, trained, x, v):
            def expected(trained):
                whole = jax.tree.map(lambda keep, p, t: t if keep else p, mask, params, trained)
                return J_of(example.reference(whole[0], x))

            return bpref.hessian_product(J, params, x, v), jax.jvp(jax.grad(expected), (trained,), (v,))[1]

        close(*jax.device_get(in_one_program(both)(params, trained, x, v)), 1e-9)


def test_what_is_dropped_is_dropped_in_every_sweep():
    """An entry of the diagonal is the product with its direction, in that direction, of a network with state."""
    network = bpref.serial(bpref.linear(4), bpref.dropout(0.5), bpref.linear(2))
    J = bpref.stateful(bpref.objective(network, bpref.softmax_cross_entropy()))
    x = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32), jnp.arange(4) % 2
    params, state = bpref.begin(J, jax.random.key(0), x)
    given = bpref.With(x, state)

    def both(params):
        diagonal = bpref.gauss_newton_diagonal(J, params, given)
        (first, *others), loss = jax.tree.map(jnp.zeros_like, diagonal)
        v = ((first._replace(W=first.W.at[1, 2].set(1)), *others), loss)
        return diagonal[0][0].W[1, 2], bpref.gauss_newton_product(J, params, given, v)[0][0].W[1, 2]

    entry, product = in_one_program(both)(params)
    assert entry > 0
    np.testing.assert_allclose(product, entry, rtol=1e-5)
