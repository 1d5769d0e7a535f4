"""The seed, literally: each of its equations by itself, a mistake in each of them noticed, and the same network
as a composition of layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.models import mlp, mlp_equations
from bpref.models.mlp_equations import ALPHA, NETWORKS, equations, random_problem, verify_equations
from bpref.verify.numbers.measure import relative_error
from tests.conftest import SEED
from tests.refusing import refusals

EQUATIONS = {
    "Z[l] = A[l-1] W[l]^T + b[l]",
    "A[l] = g[l](Z[l])",
    "J = 1/N sum 1/2 (y_hat - y)^2",
    "dA[L] = (y_hat - y) / N",
    "dZ[l] = dA[l] g[l]'(Z[l])",
    "dW[l] = dZ[l]^T A[l-1]",
    "db[l] = dZ[l] summed over the examples",
    "dA[l-1] = dZ[l] W[l]",
    "batch mean: J",
    "batch mean: dW[l]",
    "batch mean: db[l]",
    "W[l] := W[l] - alpha dW[l]",
    "b[l] := b[l] - alpha db[l]",
}


def test_every_equation_holds_at_every_layer():
    verified = verify_equations(SEED)
    assert {e.text for e in verified} == EQUATIONS
    assert max(e.error for e in verified) <= 1e-11
    layers = sum(len(names) for _, names in NETWORKS)
    for text in EQUATIONS - {"J = 1/N sum 1/2 (y_hat - y)^2", "batch mean: J", "dA[L] = (y_hat - y) / N"}:
        assert len([e for e in verified if e.text == text]) == layers, text


def scaled(cotangents: mlp.Cotangents, field: str, l: int) -> mlp.Cotangents:
    values = list(getattr(cotangents, field))
    values[l] = values[l] * 1.001
    return cotangents._replace(**{field: tuple(values)})


MISTAKES = {
    "dA[L] = (y_hat - y) / N": ("dA", 3),
    "dZ[l] = dA[l] g[l]'(Z[l])": ("dZ", 2),
    "dW[l] = dZ[l]^T A[l-1]": ("dW", 2),
    "db[l] = dZ[l] summed over the examples": ("db", 1),
    "dA[l-1] = dZ[l] W[l]": ("dA", 1),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_in_one_equation_is_found_there(text, monkeypatch):
    field, l = MISTAKES[text]
    right = mlp.backward
    monkeypatch.setattr(mlp_equations.mlp, "backward", lambda *given: scaled(right(*given), field, l))
    n, names = NETWORKS[1]
    with jax.enable_x64(True):
        problem = random_problem(n, np.random.default_rng(SEED), 5)
        wrong = [e for e in equations(names, *problem, alpha=ALPHA) if not e.ok and not e.text.startswith("batch")]
    assert {e.text for e in wrong} == {text}
    assert [e.error for e in wrong] == [pytest.approx(1e-3, rel=1e-3)]


def test_forgetting_the_mean_is_found_by_the_batch(monkeypatch):
    right = mlp.backward
    monkeypatch.setattr(
        mlp_equations.mlp,
        "backward",
        lambda params, kept, y, g: jax.tree.map(lambda v: v * len(y), right(params, kept, y, g)),
    )
    assert {e.text for e in verify_equations(SEED) if not e.ok} >= {"batch mean: dW[l]", "batch mean: db[l]"}


def test_a_wrong_forward_is_found(monkeypatch):
    right = mlp.forward

    def without_bias(params, X, g):
        return right(params._replace(b=jax.tree.map(jnp.zeros_like, params.b)), X, g)

    monkeypatch.setattr(mlp_equations.mlp, "forward", without_bias)
    assert "Z[l] = A[l-1] W[l]^T + b[l]" in {e.text for e in verify_equations(SEED) if not e.ok}


@pytest.mark.parametrize("n", [(4, 1), (5, 7, 1), (3, 8, 6, 4, 2)])
@pytest.mark.parametrize("name", ["tanh", "relu", "gelu"])
def test_the_same_network_as_a_composition_gives_the_same_numbers(n, name):
    make, L = bpref.RULES[name].make, len(n) - 1
    g = [make()] * (L - 1) + [bpref.identity()]
    layers = [layer for width in n[1:-1] for layer in (bpref.linear(width), make())] + [bpref.linear(n[-1])]
    objective = bpref.objective(bpref.serial(*layers), bpref.square("batch_mean"))
    with jax.enable_x64(True):
        params, X, y = random_problem(n, np.random.default_rng(SEED), 6)
        y_hat, kept = jax.jit(lambda p, X: mlp.forward(p, X, g))(params, X)
        cotangents = mlp.backward(params, kept, y, g)
        pairs = iter(zip(params.W[1:], params.b[1:], strict=True))
        shapes = objective.init(jax.random.key(0), (X, y))
        linear = type(shapes[0][0])
        same = jax.tree.map(lambda _: linear(*next(pairs)), shapes, is_leaf=lambda v: isinstance(v, linear))
        J, (dnetwork, _), (dX, _) = bpref.backpropagate(objective, same, (X, y))
        cost = mlp.cost(y_hat, y)
    linears = [d for d in dnetwork if isinstance(d, linear)]
    for l in range(1, L + 1):
        assert relative_error(np.asarray(linears[l - 1].W), np.asarray(cotangents.dW[l])) <= 1e-12
        assert relative_error(np.asarray(linears[l - 1].b), np.asarray(cotangents.db[l])) <= 1e-12
    assert relative_error(np.asarray(dX), np.asarray(cotangents.dA[0])) <= 1e-12
    assert float(J) == pytest.approx(float(cost), rel=1e-14)


def test_descending_lowers_the_cost():
    g = [bpref.tanh(), bpref.tanh(), bpref.identity()]
    rng = np.random.default_rng(SEED)
    X = jnp.asarray(rng.normal(size=(32, 4)), jnp.float32)
    y = jnp.sin(X.sum(1, keepdims=True))

    @jax.jit
    def step(params):
        y_hat, kept = mlp.forward(params, X, g)
        return mlp.update(params, mlp.backward(params, kept, y, g), 0.1), mlp.cost(y_hat, y)

    params, costs = mlp.init(jax.random.key(SEED), (4, 16, 16, 1)), []
    for _ in range(200):
        params, J = step(params)
        costs.append(float(J))
    assert costs[-1] < 0.2 * costs[0]


G = [bpref.tanh(), bpref.identity()]
P = mlp.init(jax.random.key(0), (3, 4, 1))
WIDTHS = "expected two or more positive widths, the input's first"
SHAPES = "expected one shape (N, n[L]), N at least 1"
BAD_CALLS = {
    f"mlp: n is [3], {WIDTHS}": lambda: mlp.init(jax.random.key(0), (3,)),
    f"mlp: n is [3, 0, 1], {WIDTHS}": lambda: mlp.init(jax.random.key(0), (3, 0, 1)),
    "mlp: X has shape (5, 2), expected (N, n[0]) = (N, 3)": lambda: mlp.forward(P, jnp.ones((5, 2)), G),
    "mlp: g holds 1 activations (tanh), expected one for each of the 2 layers": (
        lambda: mlp.forward(P, jnp.ones((5, 3)), G[:1])
    ),
    f"mlp: y has shape (5,), y_hat (5, 1); {SHAPES}": lambda: mlp.cost(jnp.ones((5, 1)), jnp.ones(5)),
    f"mlp: y has shape (0, 1), y_hat (0, 1); {SHAPES}": lambda: mlp.cost(jnp.ones((0, 1)), jnp.ones((0, 1))),
}


test_wrong_calls_are_refused = refusals(BAD_CALLS)


def test_integer_inputs_are_refused():
    with pytest.raises(TypeError) as refused:
        mlp.forward(P, jnp.ones((5, 3), jnp.int32), G)
    assert str(refused.value) == "mlp: X has dtype int32, expected a floating-point dtype such as float32"
