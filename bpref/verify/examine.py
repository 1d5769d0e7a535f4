"""The examination: a layer's forward and backward beside the oracle's, on one example, law by law.

Everything a law compares is computed in one compiled program, the hand's and the oracle's side by side.
"""

from collections.abc import Callable
from functools import cache, partial
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


class Seen(NamedTuple):
    """The values of one run, by name: y, and for each cotangent a stack of one entry per dy.

    Attributes:
      hand, oracle: y and the cotangents, derived by hand and by autodiff of the reference.
      combined: the hand's cotangents of 2 dys[0] - 3 dys[1], for the law of linearity.
      zero: the hand's cotangents of 0.
    """

    hand: dict[str, np.ndarray]
    oracle: dict[str, np.ndarray]
    combined: dict[str, np.ndarray]
    zero: dict[str, np.ndarray]


Examiner = Callable[[Any, Any, Any], Seen]

QUICK_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


@cache
def quick_compilation() -> dict[str, Any]:
    """Options for the same arithmetic in slower code, those of them that this version of XLA knows.

    An examination runs each program once or twice, and compiling it is the cost: they save four fifths of it.
    """

    def is_known(name: str, value: Any) -> bool:
        try:
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return {name: value for name, value in QUICK_OPTIONS.items() if is_known(name, value)}


def examiner(layer: Layer, reference: Callable[[Any, Any], Any]) -> Examiner:
    """The compiled program `(params, x, dys) -> Seen`: a forward and one backward per dy, by hand and by the oracle."""

    @partial(jax.jit, compiler_options=quick_compilation())
    def program(params, x, dys):
        y, cache = layer.forward(params, x)
        y_reference, cotangents = with_cotangents(reference, params, x)
        more = jax.tree.map(lambda v: jnp.stack([*v, 2 * v[0] - 3 * v[1], jnp.zeros_like(v[0])]), dys)
        by_hand = jax.vmap(lambda dy: layer.backward(params, cache, dy))(more)
        return Swept(y, *by_hand), Swept(y_reference, *jax.vmap(cotangents)(dys))

    def run(params, x, dys):
        hand, oracle = (named(swept) for swept in program(params, x, dys))
        stacks = {name: v for name, v in hand.items() if not _is_output(name)}
        return Seen(
            hand | {name: v[:-2] for name, v in stacks.items()},
            oracle,
            {name: v[-2] for name, v in stacks.items()},
            {name: v[-1] for name, v in stacks.items()},
        )

    return run


def examine(example: Example, program: Examiner | None = None) -> tuple[list[Finding], float]:
    """The laws of the derivation, in float64: structure, forward, backward, linearity. And the largest error seen."""
    with jax.enable_x64(True):
        params, x, dys = widened((example.params, example.x, example.dys))
        findings = structure(example.layer, params, x, jax.tree.map(lambda v: v[0], dys))
        if findings:
            return findings, float("inf")
        return judge((program or examiner(example.layer, example.reference))(params, x, dys))


def judge(seen: Seen) -> tuple[list[Finding], float]:
    """Which of forward, backward and linearity do not hold in what was seen in float64; and the largest error."""
    errors = {name: float(relative_error(v, seen.oracle[name])) for name, v in seen.hand.items()}
    findings = [
        Finding("forward" if _is_output(name) else "backward", name, f"relative error {error:.1e} in float64", error)
        for name, error in errors.items()
        if not error <= ROUND_OFF
    ]
    for name, combined in seen.combined.items():
        u, v = seen.hand[name]
        # The terms may cancel: the sum is held against their size, not against its own.
        scale = np.max(np.abs(seen.oracle[name]), initial=np.finfo(float).tiny)
        error = float(np.max(np.abs((2 * u - 3 * v) - combined), initial=0.0) / scale)
        if not error <= ROUND_OFF:
            findings.append(Finding("linear", name, f"b(2u - 3v) is off 2b(u) - 3b(v) by {error:.1e}", error))
        if np.any(seen.zero[name]):
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


def _is_output(name: str) -> bool:
    return name.split("[")[0].split(".")[0] == "y"


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
    seen = program(*inputs)
    with jax.enable_x64(True):
        truth = program(*widened(inputs)).oracle
    return [
        Precision(name, *(ulp_errors(values[name], true, dtype) for values in (seen.hand, seen.oracle)))
        for name, true in truth.items()
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
