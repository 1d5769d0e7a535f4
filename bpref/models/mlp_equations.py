"""Each equation of the seed, verified by itself, at every layer: against the oracle's derivative with respect to
that very intermediate, or, for the equations that differentiate nothing, against a library's or a naive form."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import PyTree

from bpref.models import mlp
from bpref.rules import RULES
from bpref.verify import oracle
from bpref.verify.examining.held import ROUND_OFF
from bpref.verify.numbers.measure import relative_error
from bpref.verify.programs.quick import quick_compilation
from bpref.verify.steps.names import cotangents_of_names

ALPHA = 0.1

NETWORKS: tuple[tuple[tuple[int, ...], tuple[str, ...]], ...] = (
    ((5, 1), ("identity",)),
    ((6, 5, 4, 1), ("tanh", "relu", "identity")),
    ((7, 8, 6, 5, 3), ("sigmoid", "gelu", "softplus", "tanh")),
)
"""Widths n[0] ... n[L] and activations g[1] ... g[L] of the networks that the equations are tried on."""


class Equation(NamedTuple):
    """One equation at one layer: its text, the layer (None for J), and its relative error in float64."""

    text: str
    layer: int | None
    error: float

    @property
    def ok(self) -> bool:
        return self.error <= ROUND_OFF


def by_text(equations: Iterable[Equation]) -> dict[str, list[Equation]]:
    """The same equation at all layers of all networks, in the order of the first."""
    found: dict[str, list[Equation]] = {}
    for equation in equations:
        found.setdefault(equation.text, []).append(equation)
    return found


def verify_equations(seed: int = 0, examples: int = 9) -> list[Equation]:
    """Every equation at every layer of every network of `NETWORKS`, random parameters and data, in float64."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        return [
            equation
            for n, names in NETWORKS
            for equation in equations(names, *random_problem(n, rng, examples), alpha=ALPHA)
        ]


def random_problem(
    n: Sequence[int], rng: np.random.Generator, examples: int
) -> tuple[mlp.Params, np.ndarray, np.ndarray]:
    """Parameters, X (N, n[0]) and y (N, n[L]), normally distributed, in float64."""
    W = (None, *(rng.normal(size=(fan_out, fan_in)) for fan_in, fan_out in pairwise(n)))
    b = (None, *(rng.normal(size=width) for width in n[1:]))
    return mlp.Params(W, b), rng.normal(size=(examples, n[0])), rng.normal(size=(examples, n[-1]))


def equations(
    names: Sequence[str], params: mlp.Params, X: np.ndarray, y: np.ndarray, alpha: float
) -> Iterator[Equation]:
    """Each equation of the derivation, layer by layer, for activations of those names in `RULES`."""
    g = [RULES[name].make() for name in names]
    L = len(g)

    def J_of(params, X, y):
        return mlp.cost(mlp.forward(params, X, g)[0], y)

    @partial(jax.jit, compiler_options=quick_compilation())
    def by_hand(params, X, y):
        y_hat, kept = mlp.forward(params, X, g)
        return kept, mlp.cost(y_hat, y), mlp.backward(params, kept, y, g)

    @partial(jax.jit, compiler_options=quick_compilation())
    def by_oracle(params, X, y):
        named = cotangents_of_names(lambda X: J_of(params, X, y), X)[1]
        return named, oracle.gradient(lambda params: J_of(params, X, y))(params)[0]

    (A, Z), J, hand = by_hand(params, X, y)
    named, (dW, db) = by_oracle(params, X, y)
    stepped = mlp.update(params, hand, alpha)

    def equation(text, l, ours, truth):
        return Equation(text, l, float(relative_error(np.asarray(ours), np.asarray(truth))))

    for l in range(1, L + 1):
        naive = [
            [sum(params.W[l][k] * a) + params.b[l][k] for k in range(len(params.b[l]))] for a in np.asarray(A[l - 1])
        ]
        yield equation("Z[l] = A[l-1] W[l]^T + b[l]", l, Z[l], naive)
        yield equation("A[l] = g[l](Z[l])", l, A[l], RULES[names[l - 1]].reference((), Z[l]))
    yield equation("J = 1/N sum 1/2 (y_hat - y)^2", None, J, optax.l2_loss(A[L], y).sum(1).mean())
    yield equation("dA[L] = (y_hat - y) / N", L, hand.dA[L], named[f"A{L}"])
    for l in range(L, 0, -1):
        yield equation("dZ[l] = dA[l] g[l]'(Z[l])", l, hand.dZ[l], named[f"Z{l}"])
        yield equation("dW[l] = dZ[l]^T A[l-1]", l, hand.dW[l], dW[l])
        yield equation("db[l] = dZ[l] summed over the examples", l, hand.db[l], db[l])
        yield equation("dA[l-1] = dZ[l] W[l]", l, hand.dA[l - 1], named[f"A{l - 1}"])

    alone = [by_hand(params, X[i : i + 1], y[i : i + 1]) for i in range(len(X))]
    yield equation("batch mean: J", None, J, np.mean([one[1] for one in alone]))
    descended: PyTree = optax.apply_updates((params.W, params.b), _sgd_updates(params, (hand.dW, hand.db), alpha))
    for l in range(1, L + 1):
        yield equation("batch mean: dW[l]", l, hand.dW[l], np.mean([one[2].dW[l] for one in alone], 0))
        yield equation("batch mean: db[l]", l, hand.db[l], np.mean([one[2].db[l] for one in alone], 0))
        yield equation("W[l] := W[l] - alpha dW[l]", l, stepped.W[l], descended[0][l])
        yield equation("b[l] := b[l] - alpha db[l]", l, stepped.b[l], descended[1][l])


def _sgd_updates(params: mlp.Params, gradient: PyTree, alpha: float) -> PyTree:
    optimizer = optax.sgd(alpha)
    return optimizer.update(gradient, optimizer.init((params.W, params.b)))[0]
