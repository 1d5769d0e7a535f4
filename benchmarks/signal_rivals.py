"""The same signals by Opacus, BackPACK, jax-privacy and kfac-jax, in their fastest form; those that are installed.

Each is a call that waits, and what it gives: the squared norms of the examples' gradients, or a list of arrays.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.paired import least_time
from benchmarks.signal_works import Work

Rival = tuple[str, str, Callable[[], Any]]
"""The signal, the library, and the call."""


def rivals(name: str, work: Work, params: Any, bound: float) -> Iterator[Rival]:
    if work.torch is not None and find_spec("opacus"):
        yield from map(threaded, opacus(work, params, bound))
    if work.layered and find_spec("backpack"):
        yield from map(threaded, backpack(work, params, bound))
    if work.plain is not None and find_spec("jax_privacy"):
        yield "clipped", "jax-privacy", jax_privacy(work, params, bound)
    if name == "MLP" and find_spec("kfac_jax"):
        yield "Kronecker factors, drawn", "kfac-jax", kfac_jax(work, params)


def threaded(rival: Rival) -> Rival:
    """PyTorch with one thread, or with as many as it takes, as is faster: beside other processes that may be one."""
    import torch

    signal, library, run = rival
    most = torch.get_num_threads()

    def with_threads(count):
        def call():
            torch.set_num_threads(count)
            return run()

        return call

    return signal, library, min(map(with_threads, (1, most)), key=lambda call: least_time(call, 3))


def as_tensors(work: Work) -> tuple[Any, Any]:
    """x with its channels first, and y."""
    import torch

    x, y = work.x
    if x.ndim == 4:
        x = np.moveaxis(x, -1, 1)
        x = x.reshape(-1).reshape(x.shape)  # PyTorch goes by strides, those of one channel too, and Opacus by the order
    return torch.from_numpy(x), torch.from_numpy(np.array(y)).long()


def losses(logits: Any, y: Any) -> Any:
    """Of each example."""
    import torch

    each = torch.nn.functional.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none")
    return each.view(len(y), -1).mean(1)


def opacus(work: Work, params: Any, bound: float) -> Iterator[Rival]:
    """By its hooks: with the gradients of all examples, or by ghost clipping, whose first backward gives the norms.

    Its gradients are those of each example's own loss, N times ours.
    """
    import torch

    samplers = import_module("opacus.grad_sample")
    assert work.torch is not None
    x, y = as_tensors(work)
    n = len(y)
    whole = samplers.GradSampleModule(work.torch(params))

    def by_gradients():
        whole.zero_grad(set_to_none=True)
        losses(whole(x), y).mean().backward()
        own = [p for p in whole.parameters() if p.requires_grad]
        norms = torch.stack([p.grad_sample.flatten(1).norm(dim=1) for p in own], 1).norm(dim=1)
        share = (n * bound / norms).clamp(max=1.0)
        clipped = [torch.einsum("i,i...", share, p.grad_sample) / n for p in own]
        for p in own:
            p.grad_sample = None
        return clipped

    ghost: Any = samplers.GradSampleModuleFastGradientClipping(work.torch(params), max_grad_norm=n * bound)

    def measured():
        ghost.zero_grad(set_to_none=True)
        each = losses(ghost(x), y)
        each.mean().backward(retain_graph=True)
        return each

    def norms():
        measured()
        return (ghost.get_norm_sample() / n) ** 2

    def by_ghosts():
        each = measured()
        share = ghost.get_clipping_coef()
        ghost.zero_grad(set_to_none=True)
        ghost.disable_hooks()
        (share * each).sum().backward()
        ghost.enable_hooks()
        return [p.grad / n for p in ghost.parameters()]

    yield "norms", "Opacus", norms
    yield "clipped", "Opacus, gradients", by_gradients
    yield "clipped", "Opacus, ghosts", by_ghosts


def backpack(work: Work, params: Any, bound: float) -> Iterator[Rival]:
    """Its extensions of PyTorch's backward."""
    import torch

    library, extensions = import_module("backpack"), import_module("backpack.extensions")
    assert work.torch is not None
    x, y = as_tensors(work)
    model, loss = library.extend(work.torch(params)), library.extend(torch.nn.CrossEntropyLoss())

    def swept(extension, name):
        def run():
            model.zero_grad()
            with library.backpack(extension):
                loss(model(x), y).backward()
            return [getattr(p, name) for p in model.parameters()]

        return run

    def norms():
        return torch.stack(swept(extensions.BatchL2Grad(), "batch_l2")()).sum(0)

    def clipped():
        each = swept(extensions.BatchGrad(), "grad_batch")()
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in each], 1).norm(dim=1)
        share = (bound / norms).clamp(max=1.0)
        return [torch.einsum("i,i...", share, g) for g in each]

    yield "norms", "BackPACK", norms
    yield "clipped", "BackPACK", clipped
    yield "Gauss-Newton diagonal", "BackPACK", swept(extensions.DiagGGNExact(), "diag_ggn_exact")
    yield "Gauss-Newton diagonal, drawn", "BackPACK", swept(extensions.DiagGGNMC(mc_samples=1), "diag_ggn_mc")
    yield "Kronecker factors, drawn", "BackPACK", swept(extensions.KFAC(mc_samples=1), "kfac")


def jax_privacy(work: Work, params: Any, bound: float) -> Callable[[], Any]:
    n = len(work.x[1])
    f = import_module("jax_privacy.clipping").clipped_grad(
        work.plain, l2_clip_norm=n * bound, batch_argnums=1, normalize_by=n
    )
    return waiting(jax.jit(lambda params, x: jax.tree.leaves(f(params, x))), params, work.x)


def kfac_jax(work: Work, params: Any) -> Callable[[], Any]:
    """Its estimate of the factors with labels drawn from the network's own distribution.

    Version 0.0.8 cannot read programs of JAX 0.10; its repository's main branch can.
    """
    tags = import_module("kfac_jax")

    def tagged(layers, x):
        A, y = x
        for i, (W, b) in enumerate(layers):
            Z = tags.register_dense(A @ W + b, A, W, b)
            A = jnp.tanh(Z) if i + 1 < len(layers) else Z
        tags.register_softmax_cross_entropy_loss(A, y)
        return jnp.zeros(())

    layers = [(p.W.T, p.b) for p in params[0][::2]]
    given = layers, jax.tree.map(jnp.asarray, work.x)
    estimator = tags.BlockDiagonalCurvature(tagged, default_estimation_mode="fisher_gradients")
    state = estimator.init(jax.random.key(0), given, None, None)

    def estimated(state, layers, x, key):
        return estimator.update_curvature_matrix_estimate(state, 0.0, 1.0, 0.0, len(x[1]), key, (layers, x))

    f = jax.jit(lambda *of: jax.tree.leaves(estimated(*of)))
    return waiting(f, state, *given, jax.random.key(1))


def waiting(f: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    args = jax.tree.map(jnp.asarray, args)
    return lambda: jax.block_until_ready(f(*args))
