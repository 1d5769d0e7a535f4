"""The cross-entropy of a linear layer's logits as kernels: a block of logits never leaves the chip.

The sums are those of `fused_linear_cross_entropy`'s docstring, in its symbols. One run has a block of rows h and one of
classes, of which it makes the logits z (classes, rows):

    forward:    m, R, z_y and sum_c z of the rows, one block of classes after the other
    backward:   dh_n += sum_c g_nc W_c of the rows, one block of classes after the other; and in runs of their own
                dW_c += sum_n g_nc h_n and db_c += sum_n g_nc of the classes, one block of rows after the other

So the logits are made three times, five products in all and not four, and what is added to stays on the chip. On a TPU
runs follow each other. A GPU runs them at once, and has no room for sums of d features: it has no kernels here.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from bpref.checks.hyperparameters import require_choice
from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.loss.class_blocks import Blocks, Classes, Slopes, Sums, pull_sums, sums_over
from bpref.kernels.launch import (
    IMPLEMENTATIONS,
    LANES,
    OF_A_TPU,
    ON_CHIP,
    Block,
    Ref,
    instead_of,
    launch,
    on_one_tpu,
    product,
)

ROWS = 512
"""How many rows a run has."""

FOR = ("cpu", "tpu")


def require_form(who: str, implementation: str, **without: object) -> str:
    """The hyperparameter `implementation`; "xla" in place of "auto" where arguments are given that kernels are without.

    Raises:
      ValueError: it is none of the three; there is no kernel for a GPU, or for these arguments.
    """
    require_choice(who, "implementation", implementation, IMPLEMENTATIONS)
    given = {name: v for name, v in without.items() if v}
    if implementation != "pallas":
        return "xla" if given else implementation
    for name, v in given.items():
        raise ValueError(f'{who}: {name} is {v}; implementation "pallas" has none, "xla" has')
    if jax.default_backend() == "gpu":
        raise ValueError(f'{who}: implementation "pallas" has no kernels for a GPU, "xla" is for all')
    return implementation


def sums_by_kernel(blocks: Blocks, classes: Classes, A: Array, y: Array) -> Sums:
    """`sums_over`, nothing kept."""

    def plain(classes, A, y):
        return sums_over(blocks, classes, A, y)[0]

    return instead_of(plain, partial(_summed, blocks), classes, A, y, is_empty=not A.size, platforms=FOR)


def pull_sums_by_kernel(
    blocks: Blocks, classes: Classes, A: Array, y: Array, slopes: Slopes
) -> tuple[Array, Array | None, Array]:
    """`pull_sums`, of nothing kept."""

    def plain(*args):
        return pull_sums(blocks, *args)

    return instead_of(plain, partial(_pulled, blocks), classes, A, y, slopes, is_empty=not A.size, platforms=FOR)


def is_better_by_kernel(blocks: Blocks, classes: Classes, A: Array) -> bool:
    """Whether "auto" takes the kernels: on a TPU, for at least a block of its own sizes, where a run fits onto it."""
    (V, d), (N, _) = classes.W.shape, A.shape
    room = -(-d // LANES) * LANES * BYTES_OF_A_FEATURE * (blocks.size + ROWS) + blocks.size * ROWS * BYTES_OF_A_LOGIT
    is_whole = blocks.size % LANES == 0 and min(N, V) >= LANES
    return is_whole and room <= ON_CHIP and str(A.dtype) in OF_A_TPU and on_one_tpu()


BYTES_OF_A_FEATURE, BYTES_OF_A_LOGIT = 20, 16
"""In float32: of W or h two copies, one being read, two of the cotangent, one being written, and its sum; and what z is
on the way to g."""


def _summed(blocks: Blocks, platform: str, classes: Classes, A: Array, y: Array) -> Sums:
    run = _Run(blocks, classes, A, y, (), lambda i, c: (i, c))
    sums = [run.of_rows(jax.ShapeDtypeStruct(run.y.shape, wide_dtype(A.dtype))) for _ in Sums._fields]
    body = partial(_sum_body, run)
    of_rows = launch(platform, body, "cross_entropy", run.grid, run.inputs, sums, parallel=1)
    return Sums(*(s[0, : len(y)] for s in of_rows))


def _pulled(
    blocks: Blocks, platform: str, classes: Classes, A: Array, y: Array, slopes: Slopes
) -> tuple[Array, Array | None, Array]:
    wide = wide_dtype(A.dtype)
    run = _Run(blocks, classes, A, y, slopes, lambda i, c: (i, c))
    dh = run.of_features(jax.ShapeDtypeStruct(run.h.shape, wide))
    body = partial(_pull_rows_body, run)
    (dh,) = launch(platform, body, "cross_entropy_rows", run.grid, run.inputs, [dh], parallel=1)

    run = _Run(blocks, classes, A, y, slopes, lambda c, i: (i, c))
    of_classes = [run.of_classes(a) for a in run.classes]
    kept = [jax.ShapeDtypeStruct((run.bc, a.shape[-1]), wide) for a in run.classes]
    body = partial(_pull_classes_body, run)
    dW, *db = launch(platform, body, "cross_entropy_classes", run.grid[::-1], run.inputs, of_classes, kept, parallel=1)
    return dW, db[0][:, 0] if db else None, dh[: len(y)]


class _Run:
    """Arrays in whole blocks of rows, blocks of them and of classes, and what is fixed when bodies are traced.

    `places` gives a run's block of rows and that of classes, of its place in the grid.
    """

    def __init__(
        self,
        blocks: Blocks,
        classes: Classes,
        A: Array,
        y: Array,
        slopes: Sequence[Array],
        places: Callable[[Array, Array], tuple[Array, Array]],
    ) -> None:
        self.places, self.blocks, self.V = places, blocks, len(classes.W)
        self.bn, self.bc = min(ROWS, len(y)), min(blocks.size, self.V)
        short = -len(y) % self.bn
        self.grid = (len(y) + short) // self.bn, -(-self.V // self.bc)
        self.h = jnp.pad(A, [(0, short), (0, 0)])
        self.y = self.in_row(jnp.where((y >= 0) & (y < self.V), y, -1).astype(jnp.int32), short, -1)
        self.classes = [classes.W] if classes.b is None else [classes.W, classes.b[:, None]]
        # Behind the end of the rows e^(z - m) is 0.
        numbers = [self.in_row(a, short, jnp.inf if i == 0 else 0) for i, a in enumerate(slopes)]
        self.inputs = [
            *map(self.of_rows, (self.y, *numbers)),
            self.of_features(self.h),
            *map(self.of_classes, self.classes),
        ]

    @staticmethod
    def in_row(a: Array, short: int, value: float) -> Array:
        return jnp.pad(a, (0, short), constant_values=value)[None]

    def of_rows(self, a: Array | jax.ShapeDtypeStruct) -> Block:
        return Block(a, (1, self.bn), lambda *at: (0, self.places(*at)[0]))

    def of_features(self, a: Array | jax.ShapeDtypeStruct) -> Block:
        return Block(a, (self.bn, a.shape[1]), lambda *at: (self.places(*at)[0], 0))

    def of_classes(self, a: Array | jax.ShapeDtypeStruct) -> Block:
        return Block(a, (self.bc, a.shape[1]), lambda *at: (self.places(*at)[1], 0))

    def logits(self, c: Array, h_ref: Ref, W_ref: Ref, b_refs: Sequence[Ref]) -> tuple[Array, Array]:
        """z (classes, rows) of block c of classes; and which of them there are, (classes, 1): the last has fewer."""
        z = product(W_ref[...], h_ref[...], 1, 1)
        for b_ref in b_refs:
            z += widen(b_ref[...])
        cap = self.blocks.soft_cap
        there = lax.broadcasted_iota(jnp.int32, (self.bc, 1), 0) + c * self.bc < self.V
        return jnp.where(there, z if cap is None else cap * jnp.tanh(z / cap), -jnp.inf), there

    def is_own(self, c: Array, y_ref: Ref) -> Array:
        """[c = y]"""
        return lax.broadcasted_iota(jnp.int32, (self.bc, self.bn), 0) + c * self.bc == y_ref[...]

    def pulled(
        self, c: Array, y_ref: Ref, slope_refs: Sequence[Ref], h_ref: Ref, W_ref: Ref, b_refs: Sequence[Ref]
    ) -> tuple[Array, Array]:
        """g dJ (classes, rows), 0 behind the last class; and which classes there are."""
        z, there = self.logits(c, h_ref, W_ref, b_refs)
        m, rate, at_own, even = (ref[...] for ref in slope_refs)
        slope = jnp.where(self.is_own(c, y_ref), at_own, rate * jnp.exp(z - m))
        if self.blocks.has_total:
            slope -= even
        cap = self.blocks.soft_cap
        if cap is not None:
            slope *= (1 - z / cap) * (1 + z / cap)
        return jnp.where(there, slope, 0), there


def _sum_body(run: _Run, y_ref: Ref, h_ref: Ref, W_ref: Ref, *refs: Ref) -> None:
    from jax.experimental import pallas as pl

    *b_refs, m_ref, R_ref, own_ref, total_ref = refs
    c = pl.program_id(1)

    @pl.when(c == 0)
    def begin():
        m_ref[...] = jnp.full_like(m_ref, jnp.finfo(m_ref.dtype).min)
        for ref in (R_ref, own_ref, total_ref):
            ref[...] = jnp.zeros_like(ref)

    z, there = run.logits(c, h_ref, W_ref, b_refs)
    is_own, m = run.is_own(c, y_ref), m_ref[...]
    higher = jnp.maximum(m, z.max(0, keepdims=True))
    rest = jnp.where(is_own, 0, jnp.exp(z - higher))
    m_ref[...] = higher
    R_ref[...] = R_ref[...] * jnp.exp(m - higher) + rest.sum(0, keepdims=True)
    own_ref[...] += jnp.where(is_own, z, 0).sum(0, keepdims=True)
    if run.blocks.has_total:
        total_ref[...] += jnp.where(there, z, 0).sum(0, keepdims=True)


def _pull_rows_body(run: _Run, y_ref: Ref, *refs: Ref) -> None:
    from jax.experimental import pallas as pl

    slope_refs, (h_ref, W_ref, *b_refs, dh_ref) = refs[:4], refs[4:]
    c = pl.program_id(1)

    @pl.when(c == 0)
    def begin():
        dh_ref[...] = jnp.zeros_like(dh_ref)

    slope, there = run.pulled(c, y_ref, slope_refs, h_ref, W_ref, b_refs)
    W = jnp.where(there, widen(W_ref[...]), 0)  # behind the last class is anything
    dh_ref[...] += product(slope, W, 0, 0)


def _pull_classes_body(run: _Run, y_ref: Ref, *refs: Ref) -> None:
    from jax.experimental import pallas as pl

    slope_refs, (h_ref, W_ref, *refs_of_classes) = refs[:4], refs[4:]
    n = len(run.classes)
    b_refs, d_refs, sum_refs = refs_of_classes[: n - 1], refs_of_classes[n - 1 : -n], refs_of_classes[-n:]
    i = pl.program_id(1)

    @pl.when(i == 0)
    def begin():
        for ref in sum_refs:
            ref[...] = jnp.zeros_like(ref)

    slope, _ = run.pulled(pl.program_id(0), y_ref, slope_refs, h_ref, W_ref, b_refs)
    for ref, d in zip(sum_refs, (product(slope, widen(h_ref[...]), 1, 0), slope.sum(1, keepdims=True)), strict=False):
        ref[...] += d

    @pl.when(i == pl.num_programs(1) - 1)
    def end():
        for d_ref, sum_ref in zip(d_refs, sum_refs, strict=True):
            d_ref[...] = cast(sum_ref[...], d_ref.dtype)
