"""Published kernels and losses, held against an oracle: what `bpref.check` and `bpref.audit` say of other libraries.

`python -m benchmarks.audits` runs those whose package is installed and prints what is found; `--only NAME` one of them.
The verdicts seen last, and what each means, are in `audits.md`.
"""

import argparse
import importlib
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bpref
from bpref.verify.examining.refusals import CannotCheck

KEY = 1729


class Audit(NamedTuple):
    """One published function: its distribution on PyPI, its name, and the call that judges it."""

    package: str
    name: str
    run: Callable[[], Any]


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.float32)


def normal(*shapes: tuple[int, ...]) -> list[Any]:
    """Tensors of PyTorch, always the same."""
    torch = importlib.import_module("torch")
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


def of(module: str, name: str) -> Any:
    """What a module calls so; imported when it is run."""
    return getattr(importlib.import_module(module), name)


def entmax(name: str, *more: Any) -> Callable[[], Any]:
    return lambda: bpref.check(of("entmax", name), *normal((5, 7)), *more, key=KEY)


def entmax_bisect() -> Any:
    X, alpha = normal((5, 7), (5, 1))
    return bpref.check(of("entmax", "entmax_bisect"), X, 1.5 + 0.1 * alpha.tanh(), key=KEY)


def entmax15_loss() -> Any:
    target = importlib.import_module("torch").tensor([0, 3, 2, 6, 1])
    return bpref.check(of("entmax", "entmax15_loss"), *normal((5, 7)), target, key=KEY)


def reversal() -> Any:
    torch = importlib.import_module("torch")
    return bpref.check(of("pytorch_revgrad.functional", "revgrad"), *normal((5, 7)), torch.tensor(1.0), key=KEY)


def flash_attention(module: str, causal: bool) -> Callable[[], Any]:
    def run() -> Any:
        torch = importlib.import_module("torch")
        apply = of(f"memory_efficient_attention_pytorch.{module}", "FlashAttentionFunction").apply
        cosine = module.startswith("cosine")

        def attention(q: Any, k: Any, v: Any) -> Any:
            return apply(q, k, v, None, *((2,) if cosine else ()), causal, 4, 4)

        def plain(q: Any, k: Any, v: Any) -> Any:
            scale = 2 if cosine else None
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)

        return bpref.check(attention, *normal(*[(1, 2, 8, 4)] * 3), reference=plain, key=KEY)

    return run


def bi_tempered(iterations: int) -> Callable[[], Any]:
    def run() -> Any:
        loss = of("pytorch_optimizer.loss.bi_tempered", "bi_tempered_logistic_loss")
        labels = importlib.import_module("torch").tensor([0, 3, 2])

        def of_logits(logits: Any) -> Any:
            return loss(logits, labels, 0.8, 0.6, num_iters=iterations, reduction="none")

        return bpref.check(of_logits, *normal((3, 5)), key=KEY)

    return run


def odeint_adjoint() -> Any:
    torch = importlib.import_module("torch")
    (W,) = normal((3, 3))

    class Field(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W = torch.nn.Parameter(0.3 * W)

        def forward(self, t: Any, y: Any) -> Any:
            return torch.tanh(y @ self.W)

    class Solved(torch.nn.Module):
        def __init__(self, field: Any, solve: Any) -> None:
            super().__init__()
            self.field, self.solve = field, solve

        def forward(self, y: Any) -> Any:
            t = torch.tensor([0.0, 1.0], dtype=y.dtype)
            return self.solve(self.field, y, t, method="rk4", options={"step_size": 0.25})

    field = Field()
    adjoint, direct = (Solved(field, of("torchdiffeq", name)) for name in ("odeint_adjoint", "odeint"))
    return bpref.check(adjoint, *normal((2, 3)), reference=direct, key=KEY)


def target_log_softmax() -> Any:
    torch = importlib.import_module("torch")
    apply = of("kornia.losses.focal", "_TargetLogSoftmax").apply

    def by_kornia(p: Any, target: Any) -> Any:
        return apply(p, target, None)

    def plain(p: Any, target: Any) -> Any:
        return p.log_softmax(1).gather(1, target)

    return bpref.check(by_kornia, *normal((3, 5)), torch.tensor([[0], [3], [2]]), reference=plain, key=KEY)


def liger_rms_norm() -> Any:
    apply = of("liger_kernel.ops.rms_norm", "LigerRMSNormFunction").apply
    return bpref.check(apply, *normal((4, 8), (8,)), 1e-6, key=KEY)


def pallas_norm(name: str) -> Callable[[], Any]:
    def run() -> Any:
        module = f"jax.experimental.pallas.ops.gpu.{name}"
        norm, plain = of(module, name), of(module, f"{name}_reference")

        def interpreted(x: Any, weight: Any, bias: Any) -> Any:
            return norm(x, weight, bias, interpret=True)

        return bpref.check(interpreted, f32(2, 4, 8), f32(8), f32(8), reference=plain, key=KEY)

    return run


def pallas_mha() -> Any:
    module = importlib.import_module("jax.experimental.pallas.ops.gpu.attention")
    blocks = module.BlockSizes(16, 16, 16, 16, 16, 16)

    def interpreted(q: Any, k: Any, v: Any) -> Any:
        return module.mha(q, k, v, None, block_sizes=blocks, causal=True, interpret=True)

    def plain(q: Any, k: Any, v: Any) -> Any:
        return module.mha_reference(q, k, v, None, causal=True)

    return bpref.check(interpreted, *[f32(1, 32, 2, 16)] * 3, reference=plain, key=KEY)


def jax_odeint() -> Any:
    odeint = of("jax.experimental.ode", "odeint")

    def solved(y: Any, t: Any, W: Any) -> Any:
        return odeint(lambda y, t, W: jnp.tanh(y @ W), y, t, W, rtol=1e-9, atol=1e-9)

    return bpref.check(solved, f32(3), jnp.linspace(0.0, 1.0, 3), f32(3, 3), key=KEY)


def odeint_rule() -> Any:
    odeint = of("jax.experimental.ode", "odeint")
    t = jnp.linspace(0.0, 1.0, 3)
    return bpref.audit(lambda y, W: odeint(lambda y, t, W: jnp.tanh(y @ W), y, t, W), f32(3), f32(3, 3), key=KEY)


def optimistix_fixed_point() -> Any:
    optx = importlib.import_module("optimistix")

    def root(x: Any) -> Any:
        solver = optx.FixedPointIteration(rtol=1e-6, atol=1e-6)
        return optx.fixed_point(lambda y, a: jnp.cos(y * a), solver, jnp.ones(3), args=x).value

    return bpref.audit(root, jnp.array([0.5, 0.3, 0.7]), key=KEY)


def optax_ctc() -> Any:
    ctc_loss = of("optax", "ctc_loss")
    labels, unpadded, padding = jnp.array([[1, 2]]), jnp.zeros((1, 4)), jnp.zeros((1, 2))
    return bpref.audit(lambda logits: ctc_loss(logits, unpadded, labels, padding), f32(1, 4, 3), key=KEY)


def flax_fp8() -> Any:
    in_qdq = of("flax.linen.fp8_ops", "in_qdq")
    return bpref.audit(lambda x: in_qdq(jnp.float32, jnp.float8_e4m3fn, x, jnp.ones(1), jnp.zeros(4)), f32(5), key=KEY)


def lineax_solve() -> Any:
    lx = importlib.import_module("lineax")
    return bpref.check(lambda A, b: lx.linear_solve(lx.MatrixLinearOperator(A), b).value, f32(3, 3), f32(3), key=KEY)


AUDITS = (
    Audit("entmax", "sparsemax", entmax("sparsemax")),
    Audit("entmax", "entmax15", entmax("entmax15")),
    Audit("entmax", "entmax_bisect", entmax_bisect),
    Audit("entmax", "normmax_bisect", entmax("normmax_bisect", 2)),
    Audit("entmax", "entmax15_loss", entmax15_loss),
    Audit("pytorch_revgrad", "revgrad", reversal),
    Audit("memory-efficient-attention-pytorch", "flash_attention", flash_attention("flash_attention", False)),
    Audit("memory-efficient-attention-pytorch", "flash_attention, causal", flash_attention("flash_attention", True)),
    Audit(
        "memory-efficient-attention-pytorch",
        "cosine_sim_flash_attention",
        flash_attention("cosine_sim_flash_attention", False),
    ),
    Audit("pytorch_optimizer", "bi_tempered_logistic_loss, 5 iterations", bi_tempered(5)),
    Audit("pytorch_optimizer", "bi_tempered_logistic_loss, 50 iterations", bi_tempered(50)),
    Audit("torchdiffeq", "odeint_adjoint", odeint_adjoint),
    Audit("kornia", "_TargetLogSoftmax", target_log_softmax),
    Audit("liger-kernel", "LigerRMSNormFunction", liger_rms_norm),
    Audit("jax", "pallas layer_norm", pallas_norm("layer_norm")),
    Audit("jax", "pallas rms_norm", pallas_norm("rms_norm")),
    Audit("jax", "pallas mha, causal", pallas_mha),
    Audit("jax", "odeint", jax_odeint),
    Audit("jax", "_odeint", odeint_rule),
    Audit(
        "optax",
        "projection_simplex",
        lambda: bpref.audit(of("optax.projections", "projection_simplex"), f32(7), key=KEY),
    ),
    Audit("optax", "ctc_loss", optax_ctc),
    Audit(
        "jaxopt",
        "projection_simplex",
        lambda: bpref.audit(of("jaxopt.projection", "projection_simplex"), f32(6), key=KEY),
    ),
    Audit("jaxopt", "isotonic_l2_pav", lambda: bpref.audit(of("jaxopt.isotonic", "isotonic_l2_pav"), f32(6), key=KEY)),
    Audit("flax", "fp8_ops.in_qdq", flax_fp8),
    Audit("lineax", "linear_solve", lineax_solve),
    Audit("optimistix", "fixed_point", optimistix_fixed_point),
)


def main() -> None:
    """Print what is found of each, a package that is not installed by its name."""
    parser = argparse.ArgumentParser(description="Check published kernels and losses.")
    parser.add_argument("--only", default="", help="only those with this in their package or name")
    wanted = parser.parse_args().only
    warnings.simplefilter("ignore")
    for audit in AUDITS:
        if wanted not in f"{audit.package} {audit.name}":
            continue
        try:
            version = metadata.version(audit.package)
        except metadata.PackageNotFoundError:
            print(f"## {audit.package}: {audit.name}\nskipped: {audit.package} is not installed\n")
            continue
        print(f"## {audit.package} {version}: {audit.name}")
        try:
            print(f"{audit.run()}\n", flush=True)
        except (ImportError, CannotCheck) as error:
            print(f"cannot run here: {error}\n", flush=True)


if __name__ == "__main__":
    main()
