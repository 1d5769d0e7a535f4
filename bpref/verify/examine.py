"""The examination: a layer's forward and backward beside the oracle's, on one example, law by law.

Everything a law compares is computed in one compiled program, the hand's and the oracle's side by side.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpref.layer import Layer
from bpref.verify.draw import Example
from bpref.verify.measure import relative_error, ulp_errors
from bpref.verify.oracle import bytes_kept, bytes_kept_by_autodiff, is_differentiable, with_cotangents

ROUND_OFF = 1e-10
"""The relative error in float64 above which a derivation is wrong: a thousand times what round-off makes."""


class Finding(NamedTuple):
    """One law that does not hold: which, for which value (`y`, `params.W`, `x`, ...), how, and by how much."""

    law: str
    where: str
    detail: str
    error: float = float("inf")

    def __str__(self) -> str:
        return f"{self.where}: {self.law}: {self.detail}"


class Swept(NamedTuple):
    """One forward and its backwards, by hand or by the oracle; cotangents have a leading axis, one entry per dy."""

    y: Any
    params: Any
    x: Any


Examiner = Callable[[Any, Any, Any], tuple[Swept, Swept, Swept, Swept]]


def examiner(layer: Layer, reference: Callable[[Any, Any], Any]) -> Examiner:
    """The compiled program `(params, x, dys) -> (hand, oracle, combined, zero)`, each a `Swept`.

    `combined` is the hand's backward of 2 dys[0] - 3 dys[1], and `zero` that of 0, for the law of linearity.
    """

    def program(params, x, dys):
        y, cache = layer.forward(params, x)
        backward = jax.vmap(lambda dy: layer.backward(params, cache, dy))
        y_reference, cotangents = with_cotangents(reference, params, x)
        combined = jax.tree.map(lambda v: (2 * v[0] - 3 * v[1])[None], dys)
        zero = jax.tree.map(lambda v: jnp.zeros_like(v[:1]), dys)
        return (
            Swept(y, *backward(dys)),
            Swept(y_reference, *jax.vmap(cotangents)(dys)),
            Swept(y, *backward(combined)),
            Swept(y, *backward(zero)),
        )

    return jax.jit(program)


def examine(example: Example, program: Examiner | None = None) -> tuple[list[Finding], float]:
    """The laws of the derivation, in float64: structure, forward, backward, linearity. And the largest error seen."""
    with jax.enable_x64(True):
        params, x, dys = widened((example.params, example.x, example.dys))
        findings = structure(example.layer, params, x, jax.tree.map(lambda v: v[0], dys))
        if findings:
            return findings, float("inf")
        swept = (program or examiner(example.layer, example.reference))(params, x, dys)
        hand, oracle, combined, zero = (named(s) for s in swept)
    errors = {name: float(relative_error(v, oracle[name])) for name, v in hand.items()}
    findings += [
        Finding("forward" if name == "y" else "backward", name, f"relative error {error:.1e} in float64", error)
        for name, error in errors.items()
        if not error <= ROUND_OFF
    ]
    for name in (n for n in hand if n != "y"):
        u, v = hand[name]
        # The terms may cancel: the sum is held against their size, not against its own.
        scale = np.max(np.abs(oracle[name]), initial=np.finfo(float).tiny)
        error = float(np.max(np.abs((2 * u - 3 * v) - combined[name][0]), initial=0.0) / scale)
        if not error <= ROUND_OFF:
            findings.append(Finding("linear", name, f"b(2u - 3v) is off 2b(u) - 3b(v) by {error:.1e}", error))
        if np.any(zero[name]):
            findings.append(Finding("linear", name, "b(0) is not 0"))
    return findings, max(errors.values())


def structure(layer: Layer, params: Any, x: Any, dy: Any) -> list[Finding]:
    """Cotangents have the tree, shapes and dtypes of the primals, and `None` where there is no derivative."""

    def sweep(params, x, dy):
        return layer.backward(params, layer.forward(params, x)[1], dy)

    cotangents = jax.eval_shape(sweep, params, x, dy)
    expected = {name_of(path): _kind(v) for path, v in _with_nones(Swept(None, params, x))}
    came = {name_of(path): _kind(v) for path, v in _with_nones(Swept(None, *cotangents))}
    return [
        Finding("structure", name, f"its cotangent is {came.get(name)}, expected {expected.get(name)}")
        for name in expected | came
        if came.get(name) != expected.get(name)
    ]


def _with_nones(swept: Swept) -> list:
    return jax.tree_util.tree_flatten_with_path(swept, is_leaf=lambda v: v is None)[0]


def _kind(v: Any) -> str | None:
    return None if v is None or not is_differentiable(v) else f"{v.dtype}{list(v.shape)}"


class Precision(NamedTuple):
    """Elementwise errors in ulps of one value in one dtype, by hand and by autodiff, against the float64 truth."""

    where: str
    hand: np.ndarray
    autodiff: np.ndarray


def precision(example: Example, dtype: Any, program: Examiner | None = None) -> list[Precision]:
    """The errors in `dtype` of every value, the truth computed in float64 from the same inputs rounded to `dtype`."""
    program = program or examiner(example.layer, example.reference)
    inputs = rounded((example.params, example.x, example.dys), dtype)
    hand, autodiff, _, _ = (named(s) for s in program(*inputs))
    with jax.enable_x64(True):
        truth = named(program(*widened(inputs))[1])
    return [
        Precision(name, ulp_errors(v, truth[name], dtype), ulp_errors(autodiff[name], truth[name], dtype))
        for name, v in hand.items()
    ]


def cache_bytes(example: Example) -> tuple[int, int]:
    """What the hand's forward keeps, and what `jax.vjp` of the reference keeps, in float32."""
    params, x = rounded((example.params, example.x), jnp.float32)
    hand = bytes_kept(lambda params, x: example.layer.forward(params, x)[1], params, x)
    return hand, bytes_kept_by_autodiff(example.reference, params, x)


def named(swept: Swept) -> dict[str, Any]:
    """The leaves by name, such as `y`, `params.W` and `x[0]`, as NumPy arrays; `None` has no name."""
    paths = jax.tree_util.tree_flatten_with_path(swept)[0]
    return {name_of(path): np.asarray(v) for path, v in paths}


def name_of(path: Any) -> str:
    """A leaf's path as a user would write it: `params.W`, `x[0]`."""
    return jax.tree_util.keystr(path).removeprefix(".")


def widened(tree: Any) -> Any:
    return rounded(tree, np.float64)


def rounded(tree: Any, dtype: Any) -> Any:
    """Every floating-point leaf in `dtype`, as NumPy arrays."""
    return jax.tree.map(lambda v: np.asarray(v).astype(dtype) if is_differentiable(v) else v, tree)
