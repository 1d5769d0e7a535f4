"""What an accelerator's usual products do to each rule's error: modelled on a CPU.

    python -m benchmarks.bench_precision --json benchmarks/results/precision.json

A TPU takes each float32 operand of a product as a sum of bfloat16 numbers, and multiplies one, three or six pairs of
these, as `jax.default_matmul_precision` says: "default", "high" or "highest". A GPU rounds operands to TF32, 11 bits,
unless it says "highest". Here a rule's forward and backward, in its first case, at the sizes and values of its laws,
are run in float32, with the operands of all products and convolutions so taken, unless they ask for a precision of
their own. What they are held against is the same in float64. Sums of products are of float32, as they are there; what
else a device computes in its own way, such as an exponential, is not modelled.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, JaxprEqn

from bpref.devices.works import sweep_by_hand
from bpref.nearest import meant
from bpref.programs import all_equations, closed, types_of
from bpref.rule import Rule
from bpref.rules import KINDS, ON_ONE_DEVICE, RULES, other_names
from bpref.verify.numbers.measure import rounded
from bpref.verify.programs.quick import quick_compilation
from bpref.verify.programs.rewrite import as_it_is, evaluate, traced
from bpref.verify.rules.catalogue import sizes_of
from bpref.verify.rules.draw import draw

SEED = 0
PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot_general")
RULES_OF_CALLS = {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}


class Operands(NamedTuple):
    """An operand as so many terms of so many bits, the first of them among these."""

    bits: int
    terms: int


WAYS = {
    "float32": Operands(24, 1),
    "bfloat16": Operands(8, 1),
    "3 passes": Operands(8, 2),
    "6 passes": Operands(8, 3),
    "TF32": Operands(11, 1),
}
"""How operands are taken; the passes are of bfloat16."""

HEADERS = {
    "float32": "float32 (a CPU)",
    "bfloat16": 'bfloat16 (TPU, "default")',
    "3 passes": '3 passes (TPU, "high")',
    "6 passes": '6 passes (TPU, "highest")',
    "TF32": 'TF32 (GPU, "default")',
}


class Row(NamedTuple):
    """Of a rule: how many products there are in its program, and its largest error by way.

    That is of all outputs and cotangents, each one's relative to its largest element.
    """

    case: str
    products: int
    errors: dict[str, float]


def to_bits(x: Array, bits: Array | int) -> Array:
    """x in float32, rounded to the nearest of so many bits, of two the even one."""
    if jnp.iscomplexobj(x):
        return lax.complex(to_bits(x.real, bits), to_bits(x.imag, bits))
    dropped = jnp.asarray(24 - bits, jnp.uint32)
    one = jnp.uint32(1)
    u = lax.bitcast_convert_type(x, jnp.uint32)
    u = (u + ((one << dropped) >> one) - one + ((u >> dropped) & one)) >> dropped << dropped
    return jnp.where(dropped > 0, lax.bitcast_convert_type(u, jnp.float32), x)


def terms_of(x: Array, way: Operands) -> list[Array]:
    """The three terms that x is a sum of; those are zeros that are not asked for."""
    terms, rest = [], x
    for i in range(3):
        terms.append(jnp.where(i < way.terms, to_bits(rest, way.bits), jnp.zeros((), x.dtype)))
        rest = jnp.where(jnp.isfinite(rest), rest - terms[-1], jnp.zeros((), x.dtype))
    return terms


def multiplied(equation: JaxprEqn, inputs: Sequence[Array], way: Operands) -> list[Array]:
    """A product's outputs: of all pairs of terms that together are not smaller than the last term of one operand."""
    a, b, *others = inputs
    (a1, a2, a3), (b1, b2, b3) = terms_of(a, way), terms_of(b, way)
    by_size = (a3, b1), (a2, b1 + jnp.where(way.terms > 2, b2, jnp.zeros((), b.dtype))), (a1, b1 + b2 + b3)
    small, middle, large = (as_it_is(equation, [*ab, *others]) for ab in by_size)
    return [u + v + w for u, v, w in zip(small, middle, large, strict=True)]


def is_modelled(equation: JaxprEqn) -> bool:
    """Whether it is a product of float32 operands, of which nobody says how precise it is to be."""
    if equation.primitive.name not in PRODUCTS:
        return False
    asked = equation.params.get("precision")
    asked = asked if isinstance(asked, tuple) else (asked,)
    narrow = all(v.dtype in (np.float32, np.complex64) for v in types_of(equation.invars[:2]))
    return narrow and all(p in (None, lax.Precision.DEFAULT) for p in asked)


def as_on_a_device(program: ClosedJaxpr) -> Callable[..., list]:
    """`(way, *inputs)` to the program's outputs."""

    def run(way, *inputs):
        def on_equation(equation, operands, recurse):
            if is_modelled(equation):
                return multiplied(equation, operands, way)
            if equation.primitive.name in RULES_OF_CALLS:
                return recurse(closed(equation.params[RULES_OF_CALLS[equation.primitive.name]]), operands)
            return NotImplemented

        return evaluate(program, inputs, on_equation)

    return jax.jit(run, compiler_options=quick_compilation())


def measured(rule: Rule) -> Row | None:
    """Of the rule's first case; `None` where its program has no product."""
    case = rule.cases[0]
    example = draw(rule, case, sizes_of(case), SEED)
    sweep = sweep_by_hand(example.layer)
    narrow = rounded((example.params, example.x, example.dy), jnp.float32)
    program, inputs, _ = traced(sweep, tuple(jax.tree.map(jnp.asarray, narrow)), {})
    count = sum(map(is_modelled, all_equations(program)))
    if not count:
        return None
    with jax.enable_x64(True):
        wide = [v.astype(np.float64) if v.dtype == np.float32 else v for v in jax.tree.leaves(narrow)]
        tree = jax.tree.structure(narrow)
        compiled = jax.jit(lambda *v: sweep(*jax.tree.unflatten(tree, v)), compiler_options=quick_compilation())
        truth = [np.asarray(v) for v in jax.tree.leaves(compiled(*wide))]
    run = as_on_a_device(program)
    return Row(case.name, count, {name: largest_error(run(way, *inputs), truth) for name, way in WAYS.items()})


def largest_error(outputs: Sequence[Array], truth: Sequence[np.ndarray]) -> float:
    errors = [0.0]
    for v, exact in zip(outputs, truth, strict=True):
        if jnp.issubdtype(v.dtype, jnp.inexact) and exact.size:
            is_known = np.isfinite(exact)
            apart, size = np.abs(np.where(is_known, np.asarray(v) - exact, 0)), np.abs(np.where(is_known, exact, 0))
            errors.append(float(apart.max() / size.max()) if size.max() else float(apart.max()))
    return float(f"{max(errors):.2g}")


def read(path: Path) -> dict[str, Row]:
    return {name: Row(**of) for name, of in json.loads(path.read_text()).items()}


def tables(rows: dict[str, Row]) -> str:
    """By kind the geometric mean and the largest, and the rules whose errors are largest in bfloat16."""
    lines = [_line("kind", "rules with products", *HEADERS.values()), "| --- " * (2 + len(WAYS)) + "|"]
    for kind, names in {**KINDS, "all": RULES}.items():
        of_kind = {name: rows[name] for name in names if name in rows}
        if of_kind:
            every = len(ON_ONE_DEVICE) if kind == "all" else len(names)
            lines.append(_line(kind, f"{len(of_kind)} of {every}", *(_of_kind(of_kind, way) for way in WAYS)))
    lines += ["", _line("rule", *HEADERS.values()), "| --- " * (1 + len(WAYS)) + "|"]
    furthest = sorted(rows, key=lambda name: -rows[name].errors["bfloat16"])[:MOST]
    lines += [_line(name, *(f"{rows[name].errors[way]:.0e}" for way in WAYS)) for name in furthest]
    return "\n".join(lines) + "\n"


MOST = 12
"""How many rules are shown by themselves."""


def _of_kind(rows: dict[str, Row], way: str) -> str:
    errors = [max(row.errors[way], 1e-9) for row in rows.values()]
    return f"{np.exp(np.mean(np.log(errors))):.0e} (at most {max(errors):.0e})"


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rules", nargs="*", metavar="RULE", help="these alone; of others the file keeps what it has")
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args()
    names = [meant("rule", name, RULES, other_names()) for name in chosen.rules] or list(ON_ONE_DEVICE)
    rows = read(chosen.json) if chosen.json and chosen.json.exists() else {}
    for name in names:
        row = measured(RULES[name])
        rows.pop(name, None)
        if row is not None:
            rows[name] = row
        print(name, "no product" if row is None else row, flush=True)
        jax.clear_caches()
        if chosen.json:
            lines = ",\n".join(f" {json.dumps(n)}: {json.dumps(rows[n]._asdict())}" for n in RULES if n in rows)
            chosen.json.write_text(f"{{\n{lines}\n}}\n")
    print(tables(rows), end="")


if __name__ == "__main__":
    main()
