"""What kernels take of a TPU beside XLA's form of the same, and beside JAX's own kernel: compiled, nothing is run.

    python -m benchmarks.bench_kernels --json benchmarks/results/kernels_tpu.json

Of a kernel the compiler estimates nothing, but libtpu writes down how it has scheduled it: so many instructions, one a
cycle, for each run, and for each turn of the loop in it. With how often these are run, and with the estimate for what
is around the kernels, they are its cycles, waiting for memory apart. Each program is compiled in a process of its own,
since libtpu reads once where to write.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

import bpref
from bpref.devices.compiling import compile_for
from bpref.devices.works import of_objective
from bpref.formulas.attention.softmax_attention import AttentionParams
from bpref.kernels import linear_cross_entropy
from bpref.models.gpt import gpt_objective
from bpref.models.gpt_config import GptConfig
from bpref.rule import specs

TARGET = "tpu-v5e"
BUNDLE = re.compile(r"\s*(?:\d+:)?\s*0x[0-9a-f]+\s+(?:\w\w)?\s*:\s*(>*)")
"""An instruction as libtpu writes it, and in how many loops it is: one is over the runs, another in a run."""


class Attention(NamedTuple):
    """Causal, of B sequences of T, N heads of queries and K of keys of D features, in blocks of this size."""

    B: int
    T: int
    N: int
    K: int
    D: int
    block: int
    dtype: str = "bfloat16"

    def counts(self, kernel: str) -> tuple[int, int]:
        """How many runs and turns there are of a kernel; of JAX's, only those in which a query may see a key."""
        blocks = -(-self.T // self.block)
        pairs = self.B * self.N * blocks * (blocks + 1) // 2
        return (self.B * self.N * blocks, pairs) if kernel.startswith("attention") else (pairs, 0)

    def program(self, form: str) -> tuple[Callable[..., PyTree], tuple[PyTree, ...]]:
        q, kv = (jax.ShapeDtypeStruct((self.B, self.T, n, self.D), jnp.dtype(self.dtype)) for n in (self.N, self.K))
        if form == JAXS:
            return self.of_jax, (specs(bpref.Heads, q, kv, kv), q)
        layer = bpref.blockwise_attention(
            causal=True, query_block=self.block, key_block=self.block, implementation=form
        )
        return lambda x, dy: bpref.backpropagate(layer, AttentionParams(), x, dy), (specs(bpref.Heads, q, kv, kv), q)

    def of_jax(self, x: bpref.Heads, dy: jax.Array) -> PyTree:
        """By its own derivative; it has no heads that share keys."""
        from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, flash_attention

        sizes = BlockSizes(**dict.fromkeys(BlockSizes.__dataclass_fields__, self.block) | {"block_b": 1})

        def attend(*arrays):
            q, k, v = (jnp.swapaxes(a, 1, 2) for a in arrays)
            y = flash_attention(q, k, v, causal=True, sm_scale=self.D**-0.5, block_sizes=sizes)
            return jnp.swapaxes(y, 1, 2)

        y, pull = jax.vjp(attend, *x[:3])
        return y, pull(dy)


class CrossEntropy(NamedTuple):
    """Of N rows of d features and V classes, a block of these at once."""

    N: int
    d: int
    V: int
    block: int
    dtype: str = "bfloat16"

    def counts(self, kernel: str) -> tuple[int, int]:
        return -(-self.N // linear_cross_entropy.ROWS) * -(-self.V // self.block), 0

    def program(self, form: str) -> tuple[Callable[..., PyTree], tuple[PyTree, ...]]:
        layer = bpref.fused_linear_cross_entropy(self.V, block=self.block, implementation=form)
        W, h = (jax.ShapeDtypeStruct((n, self.d), jnp.dtype(self.dtype)) for n in (self.V, self.N))
        y = jax.ShapeDtypeStruct((self.N,), jnp.int32)
        return lambda *args: bpref.backpropagate(layer, *args), (specs(bpref.LinearParams, W, None), (h, y))


class Gpt(NamedTuple):
    """A whole model, of B sequences of T: the attention of every block, and the loss."""

    config: GptConfig
    B: int
    T: int
    dtype: str = "bfloat16"

    def counts(self, kernel: str) -> tuple[int, int]:
        c = self.config
        if not kernel.startswith("attention"):
            return CrossEntropy(self.B * self.T, c.width, c.vocabulary, 1024).counts(kernel)
        of_a_block = Attention(self.B, self.T, c.heads, c.kv_heads or c.heads, c.width // c.heads, 128)
        runs, turns = of_a_block.counts(kernel)
        return c.depth * runs, c.depth * turns

    def program(self, form: str) -> tuple[Callable[..., PyTree], tuple[PyTree, ...]]:
        ids = jax.ShapeDtypeStruct((self.B, self.T), jnp.int32)
        work = of_objective(gpt_objective(self.config, implementation=form), (ids, ids), self.dtype)
        return work.by_hand, work.arguments


JAXS = "jax's own"
FORMS = ("xla", "pallas")
CASES: dict[str, tuple[Attention | CrossEntropy | Gpt, tuple[str, ...]]] = {
    "attention, 8 heads of 64, T 512": (Attention(1, 512, 8, 8, 64, 256), (*FORMS, JAXS)),
    "attention, 8 heads of 128, T 2048": (Attention(1, 2048, 8, 8, 128, 256), (*FORMS, JAXS)),
    "the same, blocks of 512": (Attention(1, 2048, 8, 8, 128, 512), (*FORMS, JAXS)),
    "4 sequences, 16 heads of 128 for 4, T 2048": (Attention(4, 2048, 16, 4, 128, 512), FORMS),
    "cross-entropy, 1,024 rows of 256, 32,000 classes": (CrossEntropy(1024, 256, 32000, 1024), FORMS),
    "cross-entropy, 4,096 rows of 1,024, 32,768 classes": (CrossEntropy(4096, 1024, 32768, 512), FORMS),
    "gpt, 8 blocks of 256 features, 4 sequences of 256": (Gpt(GptConfig(8192, 256, 8, 4, 680, 256), 4, 256), FORMS),
}


class Taken(NamedTuple):
    """Bytes of temp memory, read and written as operations say; cycles around kernels, and in each, by its name."""

    temp: int
    accessed: int
    around: int
    kernels: dict[str, int]

    @property
    def cycles(self) -> int:
        return self.around + sum(self.kernels.values())


def bundles(path: Path) -> tuple[int, int]:
    """How many instructions a run has, and a turn of the loops in it."""
    found = [len(m[1]) for m in map(BUNDLE.match, path.read_text().splitlines()) if m]
    return found.count(1), sum(depth > 1 for depth in found)


def taken(name: str, form: str) -> Taken:
    """A form of a case, compiled in a process of its own."""
    work, _ = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        told = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true" if form != "xla" else ""
        environment = {**os.environ, "LIBTPU_INIT_ARGS": told, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "benchmarks.bench_kernels", "--one", name, form]
        seen = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
        kernels = {}
        for path in Path(folder).glob("*-final_bundles.txt"):
            kernel = re.sub(r"^\d+-|\.\d+-\d+-final_bundles.txt$", "", path.name)
            if re.search("attention|cross_entropy|flash", kernel) and "fusion" not in kernel:
                (runs, turns), (of_run, of_turn) = work.counts(kernel), bundles(path)
                kernels[kernel] = runs * of_run + turns * of_turn
        temp, accessed, around = seen
        return Taken(temp, accessed, around, kernels)


def compiled(name: str, form: str) -> tuple[int, int, int]:
    f, args = CASES[name][0].program(form)
    seen = compile_for(TARGET, f, *args)
    return seen.temp, seen.accessed, seen.cycles or 0


def table(rows: dict[str, dict[str, dict]]) -> str:
    headers = "forward and backward, bfloat16", "", "temp memory", "bytes accessed", "cycles", "of these in kernels"
    lines = [f"| {' | '.join(headers)} |", "| --- " * len(headers) + "|"]
    for name, forms in rows.items():
        for form, of in forms.items():
            seen = Taken(**of)
            sizes = f"{seen.temp / 1e6:,.1f} MB | {seen.accessed / 1e6:,.1f} MB | {seen.cycles / 1e6:,.2f} million"
            lines.append(f"| {name} | {form} | {sizes} | {1 - seen.around / seen.cycles:.0%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "FORM"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(compiled(*chosen.one)))
        return
    rows = {name: {form: taken(name, form)._asdict() for form in forms} for name, (_, forms) in CASES.items()}
    print(table(rows), end="")
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
