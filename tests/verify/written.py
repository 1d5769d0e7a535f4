"""Rules of `jax.custom_vjp` as tests write them, right or wrong, and what a report says of one."""

import jax
import jax.numpy as jnp
import numpy as np

import bpref
from tests.conftest import SEED

RNG = np.random.default_rng(SEED)
X = RNG.normal(size=(5, 7)).astype(np.float32)
G = RNG.normal(size=7).astype(np.float32)


def verdicts(report: bpref.Report) -> dict[str, str]:
    return {v.where: v.verdict for v in report.verdicts}


def details(report: bpref.Report) -> dict[str, str]:
    return {v.where: v.detail for v in report.verdicts}


def kinds(report: bpref.Report) -> set[tuple[str, str]]:
    return {(f.where, f.kind) for f in report.findings}


def rule(primal, backward, **options):
    """A custom_vjp function that keeps its arguments."""
    f = jax.custom_vjp(primal, **options)
    f.defvjp(lambda *args: (primal(*args), args), lambda *rest: backward(*rest))
    return f


def rms_norm(factor: float = 1.0):
    def primal(x, g):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * g[None, :]

    def backward(args, dy):
        x, g = args
        r = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
        d, xhat = dy * g[None, :], x * r
        return factor * r * (d - xhat * jnp.mean(d * xhat, -1, keepdims=True)), jnp.sum(dy * xhat, 0)

    return rule(primal, backward)
