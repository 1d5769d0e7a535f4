"""Kronecker factors and Fisher diagonals equal what they are defined as; bad calls of all of curvature are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.formulas.norm.pre_norm import NormParams
from bpref.rules.block.mlp_block import MlpBlockParams
from bpref.rules.norm.rms_norm import RmsNormParams
from bpref.verify import oracle
from tests.conftest import SEED
from tests.refusing import refusals
from tests.rules.sweeping import in_one_program
from tests.transforms.compositions import COMPOSITIONS, N, close, gradients_of

RNG = np.random.default_rng(SEED)
SQUARE, SOFTMAX = bpref.square("batch_mean"), bpref.softmax_cross_entropy()


SEVERAL = {name: COMPOSITIONS[name] for name in ("a convnet", "branches", "a GPT with its loss")}


@pytest.mark.parametrize("made", SEVERAL.values(), ids=SEVERAL)
def test_every_composition_gives_the_fisher_diagonal_and_what_has_no_factors_has_it_too(made):
    with jax.enable_x64(True):
        J, x, params, each, _ = gradients_of(made)

        def both(params, x):
            return bpref.fisher_diagonal(J, params, x), bpref.kronecker_factors(J, params, x)

        diagonal, factors = in_one_program(both)(params, jax.tree.map(jnp.asarray, x))
    expected = jax.tree.map(lambda g: N * (g**2).sum(0), each)
    close(diagonal, expected)
    nodes, tree = jax.tree.flatten(factors, is_leaf=lambda v: isinstance(v, (bpref.Kronecker, bpref.Diagonal)))
    kinds = (bpref.ConvolutionParams, bpref.LinearParams, bpref.EmbeddingParams)
    for node, own, g in zip(nodes, tree.flatten_up_to(expected), tree.flatten_up_to(each), strict=True):
        if isinstance(node, bpref.Diagonal):
            close(node.squares, own)
        else:
            W = g.W if type(own) in kinds else g  # a matrix inside of a block
            assert node.G.shape[-1] in W.shape


def one(network, x, y, loss=SQUARE):
    return bpref.objective(network, loss), (x, y)


ROWS = RNG.normal(size=(1, 1, 4)), RNG.normal(size=(1, 5, 4))
CONSTANT = np.broadcast_to(ROWS[0], (1, 5, 4))
EXACT = {
    "rows": (one(bpref.linear(3), ROWS[0][0], np.ones((1, 3))), "expand"),
    "no bias": (one(bpref.linear(3, bias=False), ROWS[0], np.ones((1, 1, 3))), "expand"),
    "positions that are alike": (one(bpref.linear(3), CONSTANT, RNG.normal(size=(1, 5, 3))), "reduce"),
    "one window": (one(bpref.convolution(3, (2, 2), padding="valid"), RNG.normal(size=(1, 2, 2, 3)),
                       np.ones((1, 1, 1, 3))), "expand"),
    "one id": (one(bpref.embedding(4, 3), np.array([2]), np.ones((1, 3))), "expand"),
    "an id that is repeated": (one(bpref.embedding(4, 3), np.array([[2, 2, 2]]), RNG.normal(size=(1, 3, 3))), "reduce"),
}  # fmt: skip


@pytest.mark.parametrize(("J_x", "along"), EXACT.values(), ids=EXACT)
def test_of_one_example_with_one_input_the_product_of_the_factors_is_the_gradients_square(J_x, along):
    J, x = J_x
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(float), J.init(jax.random.key(1), x))
        (g, _), *_ = oracle.gradient(lambda p: J.forward(p, x)[0])(params)
        (factor, _) = bpref.kronecker_factors(J, params, x, along=along)
    if isinstance(g, bpref.EmbeddingParams):
        flat, A = g.W.T.reshape(-1), np.diag(factor.A)
    else:
        columns = [g.W.reshape(len(g.W), -1)] + ([] if g.b is None else [g.b[:, None]])
        flat, A = np.concatenate(columns, 1).reshape(-1), factor.A.reshape(factor.A.shape[-2:])
    close(np.kron(factor.G.reshape(factor.G.shape[-2:]), A), np.outer(flat, flat))


INSIDE = {
    "attention_block": (bpref.attention_block(2, 1, bias=True), ("W_qkv", "W_o")),
    "mlp_block": (bpref.mlp_block(3, bias=True), ("W_in", "W_out")),
    "multi_head_attention": (bpref.multi_head_attention(2, causal=True), ("W_q", "W_k", "W_v", "W_o")),
}


@pytest.mark.parametrize(("layer", "names"), INSIDE.values(), ids=INSIDE)
def test_of_one_position_the_factors_of_each_product_in_a_block_are_the_gradients_square(layer, names):
    x, y = RNG.normal(size=(2, 1, 1, 4))
    J = bpref.objective(layer, SQUARE)

    def both(params):
        return oracle.gradient(lambda p: J.forward(p, (x, y))[0])(params)[0], bpref.kronecker_factors(J, params, (x, y))

    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: RNG.normal(size=p.shape), J.init(jax.random.key(1), (x, y)))
        (g, _), (factor, _) = in_one_program(both)(params)
    for name in names:
        dW = np.ravel(getattr(g, name))
        close(np.kron(getattr(factor, name).G, getattr(factor, name).A), np.outer(dW, dW))
    others = [name for name, v in g._asdict().items() if name not in names and jax.tree.leaves(v)]
    assert others
    for name in others:
        close([d.squares for d in at_factors(getattr(factor, name))], [v**2 for v in jax.tree.leaves(getattr(g, name))])


def at_factors(tree):
    return jax.tree.leaves(tree, is_leaf=lambda v: isinstance(v, (bpref.Kronecker, bpref.Diagonal)))


@pytest.mark.parametrize("along", ["expand", "reduce"])
def test_the_factors_of_a_scanned_block_are_those_of_the_layers_that_it_is_made_of(along):
    whole = bpref.mlp_block(3, eps=1e-6)
    parts = bpref.serial(
        bpref.rms_norm(1e-6), bpref.linear(6, bias=False), bpref.glu("silu"), bpref.linear(4, bias=False)
    )
    x = RNG.normal(size=(2, N, 5, 4))

    def factors(layer, params):
        J = bpref.objective(bpref.scan(bpref.residual(layer), 2), SQUARE)
        return at_factors(bpref.kronecker_factors(J, (params, ()), tuple(x), along=along)[0])

    with jax.enable_x64(True):
        scale, W_in, W_out = (RNG.normal(size=shape) for shape in ((2, 4), (2, 6, 4), (2, 4, 3)))
        of_parts = (RmsNormParams(scale), bpref.LinearParams(W_in, None), (), bpref.LinearParams(W_out, None))
        of_whole = MlpBlockParams(NormParams(scale, None), W_in, None, W_out, None)
        both = in_one_program(lambda *p: (factors(whole, p[0]), factors(parts, p[1])))(of_whole, of_parts)
    close(*map(jax.tree.leaves, both))


@pytest.mark.parametrize("along", ["expand", "reduce"])
def test_the_factors_of_a_convolution_in_groups_are_those_of_its_windows(along):
    conv = bpref.convolution(4, (2, 2), stride=2, padding="valid", groups=2)
    x, y = RNG.normal(size=(N, 5, 4, 6)), RNG.normal(size=(N, 2, 2, 4))
    with jax.enable_x64(True):
        params = conv.init(jax.random.key(0), x)
        J = bpref.objective(conv, SQUARE)
        dy = (conv.forward(params, x)[0] - y) / N
        factor, _ = bpref.kronecker_factors(J, (params, ()), (x, y), along=along)
    for group in range(2):
        windows = [
            [
                np.append(x[n, i : i + 2, j : j + 2, 3 * group : 3 * group + 3].ravel(), 1)
                for i in (0, 2)
                for j in (0, 2)
            ]
            for n in range(N)
        ]
        a, d = np.array(windows), np.asarray(dy)[..., 2 * group : 2 * group + 2].reshape(N, 4, 2)
        if along == "reduce":
            a, d = a.mean(1, keepdims=True), d.sum(1, keepdims=True)
        a, d = a.reshape(-1, 13), d.reshape(-1, 2)
        close(np.asarray(factor.A[group]), a.T @ a / len(a))
        close(np.asarray(factor.G[group]), N * d.T @ d)


def test_what_is_drawn_is_the_exact_on_average():
    """Labels of the network's own, columns, and signs; within five standard errors or so."""
    J = bpref.objective(bpref.linear(3), SOFTMAX)
    x = jnp.asarray(RNG.normal(size=(1, 2))), jnp.zeros(1, int)
    with jax.enable_x64(True):
        params = J.init(jax.random.key(0), x)

        def drawn(params, x, key):
            G = jax.vmap(lambda k: bpref.kronecker_factors(J, params, x, k)[0].G)(jax.random.split(key, 4000))
            of_key = bpref.gauss_newton_diagonal(J, params, x, key, draws=4000)
            signs = bpref.hutchinson_diagonal(J, params, x, key, draws=4000)
            exact = bpref.gauss_newton_diagonal(J, params, x)
            return G.mean(0), jax.nn.softmax(params[0].W @ x[0][0]), of_key, signs, exact

        G, p, of_key, signs, exact = in_one_program(drawn)(params, x, jax.random.key(1))
    np.testing.assert_allclose(G, np.diag(p) - np.outer(p, p), atol=0.02)
    for some in (of_key, signs):
        for a, b in zip(jax.tree.leaves(some), jax.tree.leaves(exact), strict=True):
            np.testing.assert_allclose(a, b, rtol=0.1, atol=0.02)


def no_tangent():
    """A layer whose backward calls what JAX cannot push forward."""
    twice = jax.custom_vjp(lambda dy: 2 * dy)
    twice.defvjp(lambda dy: (2 * dy, ()), lambda _, d: (2 * d,))
    return bpref.Layer(bpref.tanh().init, lambda p, x: (2 * x, ()), lambda p, c, dy: ((), twice(dy)), "doubling")


X, Y = jnp.ones((3, 2)), jnp.zeros(3, int)
J = bpref.objective(bpref.linear(2), SOFTMAX)
PARAMS = J.init(jax.random.key(0), (X, Y))
SCANNED = bpref.objective(bpref.scan(bpref.serial(bpref.linear(2), no_tangent()), 2), SOFTMAX)
KNOWN = "softmax_cross_entropy without z_loss, sequence_cross_entropy of all tokens, or square"
BAD_CALLS = {
    "fisher_diagonal: batch_norm takes the mean and variance of all examples together, so that no gradient is one "
    "...": (lambda: bpref.fisher_diagonal(bpref.stateful(bpref.serial(bpref.batch_norm())), (), bpref.With(X))),
    "kronecker_factors: x has the shapes [(0, 2), (0,)], expected (N, ...) with at least one example": (
        lambda: bpref.kronecker_factors(J, PARAMS, (X[:0], Y[:0]))
    ),
    "kronecker_factors: along is 'mean', expected one of expand, reduce": (
        lambda: bpref.kronecker_factors(J, PARAMS, (X, Y), along="mean")
    ),
    "gauss_newton_diagonal: the network ends in huber; expected one loss with a root of its Hessian that is known: "
    + KNOWN: (lambda: bpref.gauss_newton_diagonal(bpref.objective(bpref.linear(2), bpref.huber()), PARAMS, (X, X))),
    "kronecker_factors: the network ends in no loss; expected one loss...": (
        lambda: bpref.kronecker_factors(bpref.linear(2), PARAMS[0], X, jax.random.key(0))
    ),
    "gauss_newton_diagonal: draws is 0, expected a positive integer": (
        lambda: bpref.gauss_newton_diagonal(J, PARAMS, (X, Y), jax.random.key(0), draws=0)
    ),
    "gauss_newton_product: v has the tree PyTreeDef(CustomNode(namedtuple[LinearParams], [*, *])), expected that ...": (
        lambda: bpref.gauss_newton_product(J, PARAMS, (X, Y), PARAMS[0])
    ),
    "hessian_product: v[0].W is float32[1, 2], expected float32[2, 2] as in dparams": (
        lambda: bpref.hessian_product(J, PARAMS, (X, Y), jax.tree.map(lambda p: p[:1], PARAMS))
    ),
    "TypeError: hutchinson_diagonal: the backward of doubling cannot be pushed forward: it calls a function of "
    "jax.custom_vjp, which has no tangents": (
        lambda: bpref.hutchinson_diagonal(SCANNED, SCANNED.init(jax.random.key(0), (X, Y)), (X, Y), jax.random.key(0))
    ),
}


test_bad_calls_are_refused = refusals(BAD_CALLS)
