"""Gradient checkers behind one face: each is asked whether a backward is that of a forward, and gives an `Answer`.

All are left at their defaults, but for two things without which they could not be used: chex and `check_grads` are
told to check reverse mode alone, since a `jax.custom_vjp` has no other, and PyTorch is given the JAX functions inside
a `torch.autograd.Function`. PyTorch casts a cotangent to its argument's dtype and sums away axes that are too many,
so that a derivation which is wrong in these alone is right once PyTorch runs it.
"""

import importlib.util
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

import bpref
from bpref.verify.report import OK, Report

Forward = Callable[..., Any]
Backward = Callable[[tuple, Any], tuple]


class Answer(NamedTuple):
    """What a checker says of one derivation at one point.

    Attributes:
      accepted: whether it finds nothing wrong.
      said: the first line of its complaint.
      accused: for each argument it finds fault with, by parameter name, the kinds of its findings; bpref alone.
      raised: it did not come to an answer, but raised something that is no verdict.
    """

    accepted: bool
    said: str = ""
    accused: dict[str, frozenset[str]] = {}  # noqa: RUF012
    raised: bool = False


Ask = Callable[[tuple, int], Answer]
"""`(args, key) -> Answer`, for one derivation. Asked again with the same shapes, it compiles nothing."""


class Checker(NamedTuple):
    """A tool.

    Attributes:
      name: what the table calls it.
      dtypes: those it is made for.
      of: `(forward, backward) -> Ask`.
    """

    name: str
    dtypes: tuple[str, ...]
    of: Callable[[Forward, Backward], Ask]


def by_bpref(forward: Forward, backward: Backward) -> Ask:
    """`bpref.check`. An exception is no answer: on a wrong derivation it counts as a miss."""
    return _reporting(lambda args, key: bpref.check(forward, *args, backward=backward, key=key))


def by_rule(forward: Forward, backward: Backward) -> Ask:
    """`bpref.check` of the `custom_vjp` function."""
    rule = with_rule(forward, backward)
    return _reporting(lambda args, key: bpref.check(rule, *args, key=key))


def _reporting(check: Callable[[tuple, int], Report]) -> Ask:
    def ask(args: tuple, key: int) -> Answer:
        try:
            report = check(args, key)
        except Exception as error:
            return Answer(False, _first_line(error), raised=True)
        return Answer(report.ok, "" if report.ok else f"{report.verdict}: {report.findings[:1]}", accused_in(report))

    return ask


def accused_in(report: Report) -> dict[str, frozenset[str]]:
    """The kinds found, kinks aside, for every value that is not ok, by the name of its argument."""
    roots = dict.fromkeys(_root(v.where) for v in report.verdicts if v.verdict != OK)
    return {
        root: frozenset(f.kind for f in report.findings if _root(f.where) == root and f.kind != "kink")
        for root in roots
    }


def _root(where: str) -> str:
    return re.split(r"[.\[]", where)[0]


def by_check_grads(forward: Forward, backward: Backward, adapt: Callable[[Forward], Forward] = lambda f: f) -> Ask:
    """`jax.test_util.check_grads` in reverse mode, of the `custom_vjp` function that `adapt` is applied to."""
    return _asking(forward, backward, lambda f, args: check_grads(adapt(f), args, order=1, modes=["rev"]))


def by_chex(forward: Forward, backward: Backward) -> Ask:
    """`chex.assert_numerical_grads` in reverse mode."""
    return _asking(forward, backward, lambda f, args: chex.assert_numerical_grads(f, args, order=1, modes=["rev"]))


def with_rule(forward: Forward, backward: Backward) -> Any:
    """The derivation as a user of JAX writes it down."""
    rule = jax.custom_vjp(lambda *args: forward(*args))
    rule.defvjp(lambda *args: (forward(*args), args), backward)
    return rule


def _asking(forward: Forward, backward: Backward, check: Callable[[Any, list], None]) -> Ask:
    """A checker that raises, asked about a function of the floating-point arguments; integers are held fixed.

    The arguments are made JAX arrays: given NumPy's, a `custom_vjp` outside of `jit` would be run by NumPy.
    """
    rule = with_rule(forward, backward)

    def ask(args: tuple, key: int) -> Answer:
        args = tuple(map(jnp.asarray, args))
        where = [i for i, v in enumerate(args) if jnp.issubdtype(v.dtype, jnp.inexact)]

        def of_floats(*floats):
            given = dict(zip(where, floats, strict=True))
            return rule(*(given.get(i, v) for i, v in enumerate(args)))

        return _outcome(lambda: check(of_floats, [args[i] for i in where]), AssertionError)

    return ask


def _outcome(run: Callable[[], object], verdict: type[Exception]) -> Answer:
    """Accepted if nothing is raised. What the rule itself raises, for want of the right form, is a rejection too."""
    try:
        run()
    except Exception as error:
        return Answer(False, _first_line(error), raised=not isinstance(error, verdict))
    return Answer(True)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def by_gradcheck(fast: bool) -> Callable[[Forward, Backward], Ask]:
    """`torch.autograd.gradcheck`, which compares whole Jacobians, or in fast mode one projection of them."""

    def of(forward: Forward, backward: Backward) -> Ask:
        import torch  # pyright: ignore[reportMissingImports]

        function = _in_torch(torch, forward, backward)

        def ask(args: tuple, key: int) -> Answer:
            tensors = [torch.tensor(v).requires_grad_(np.issubdtype(v.dtype, np.floating)) for v in args]
            return _outcome(lambda: torch.autograd.gradcheck(function, tensors, fast_mode=fast), RuntimeError)

        return ask

    return of


def _in_torch(torch: Any, forward: Forward, backward: Backward) -> Callable[..., Any]:
    """The derivation as a function of tensors, run by JAX, both halves compiled."""
    forward, backward = jax.jit(forward), jax.jit(backward)
    trees = {}

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):
            ctx.save_for_backward(*tensors)
            leaves, trees["y"] = jax.tree.flatten(forward(*map(_array, tensors)))
            return tuple(torch.from_numpy(np.array(v)) for v in leaves)

        @staticmethod
        def backward(ctx, *dys):
            dy = jax.tree.unflatten(trees["y"], map(_array, dys))
            cotangents = backward(tuple(map(_array, ctx.saved_tensors)), dy)
            return tuple(None if c is None else torch.from_numpy(np.array(c)) for c in cotangents)

    return Rule.apply


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().numpy()


FLOATS = ("float32", "float64", "bfloat16")
BPREF, CHECK_GRADS = "bpref.check", "jax.test_util.check_grads"
IN_JAX = (
    Checker(BPREF, FLOATS, by_bpref),
    Checker(CHECK_GRADS, FLOATS, by_check_grads),
    Checker("chex.assert_numerical_grads", FLOATS, by_chex),
)
IN_TORCH = (
    Checker("torch gradcheck, slow", ("float64",), by_gradcheck(fast=False)),
    Checker("torch gradcheck, fast", ("float64",), by_gradcheck(fast=True)),
)


def installed() -> tuple[tuple[Checker, ...], str]:
    """The checkers that can be run here, and why others cannot, or an empty string."""
    if importlib.util.find_spec("torch") is None:
        return IN_JAX, "torch.autograd.gradcheck is left out: PyTorch is not installed"
    return IN_JAX + IN_TORCH, ""
