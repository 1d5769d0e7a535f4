"""The right derivations of the corpus at the values that `bpref.search` draws: which does `bpref.check` accuse?

    python -m benchmarks.bench_draws [--form JAX PyTorch] [--seeds 1] [--names NAME ...] [--dtypes float32 float64]
                                     [--minutes 60] [--json FILE]

The arguments have their usual shapes; their values are zeros, ties, outlier channels, rows that hardly vary, huge ones
and all others that a search tries, in every argument, in each by itself, and mixed. Accused is what is `wrong` or
`imprecise`, or what raises. What has no derivative there, or no value, may be left open. In PyTorch's form a derivation
is an `autograd.Function` beside its reference. A function that the file has is not asked about again, and the file is
written after each, so that a run which the minutes ended goes on where it stood.
"""

import argparse
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bpref
from benchmarks.checker_trials import arguments, x64_for
from bpref.corpus import DERIVATIONS, Derivation
from bpref.verify.report import CANNOT_TELL, OK
from bpref.verify.searching import layouts
from bpref.verify.searching.layouts import Drawn

FORMS = ("JAX", "PyTorch")
ACCUSED = "accused"
MIXTURES = 16
"""How many draws of a seed give every argument a pattern of its own."""


def drawn(d: Derivation, dtype: str, seed: int) -> Iterator[tuple[str, tuple]]:
    """Arguments of the usual shapes, with a name: every pattern in all, in each by itself, and mixtures of them."""
    usual = arguments(d, dtype, seed)
    template = layouts.as_template(tuple(map(_spec, usual)))
    layout = next(layouts.layouts(template, np.random.default_rng(seed)))
    patterns = layouts.patterns_of(template, layout)
    several = [i for i, p in enumerate(patterns) if len(p) > 1]
    plain = tuple(p[0] for p in patterns)
    cases = {plain}
    for i in several:
        for pattern in patterns[i]:
            cases.add((*plain[:i], pattern, *plain[i + 1 :]))
            cases.add(tuple(pattern if pattern in p else p[0] for p in patterns))
    rng = np.random.default_rng([seed, 1])
    cases |= {tuple(str(rng.choice(p)) for p in patterns) for _ in range(MIXTURES)}
    for case in sorted(cases):
        values = layouts.arguments(template, layout, Drawn(case, seed))
        yield ", ".join(p for p in case if p), values


def _spec(v: Any) -> Any:
    """What is drawn for an argument; one that is no array, or of booleans, stays as it is."""
    if not isinstance(v, np.ndarray | jax.Array) or v.dtype == bool or jnp.issubdtype(v.dtype, jnp.unsignedinteger):
        return v
    below = f"<{int(v.max()) + 1}" if jnp.issubdtype(v.dtype, jnp.integer) else ""
    return f"{v.dtype.name}[{','.join(map(str, v.shape))}]{below}"


def asker(d: Derivation, form: str) -> Callable[[tuple, int], bpref.Report]:
    """What `bpref.check` is asked about the right derivation, in one of the forms, at arguments and a key."""
    if form == "JAX":
        return lambda args, key: bpref.check(d.forward, *args, backward=d.backward, key=key)
    from benchmarks.bench_torch import in_torch, tensor

    function, reference = in_torch(d.forward, d.backward), in_torch(d.forward)
    return lambda args, key: bpref.check(function, *map(tensor, args), reference=reference, key=key)


def verdict(ask: Callable[[tuple, int], bpref.Report], args: tuple, key: int) -> str:
    """`ok`, `cannot tell`, or what is said against the right derivation."""
    try:
        report = ask(args, key)
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    return report.verdict if report.verdict in (OK, CANNOT_TELL) else str(report)


def said_of(d: Derivation, form: str, dtype: str, seed: int) -> Iterator[str]:
    """For each draw `ok`, `cannot tell`, or accused, and then what was said against it is printed."""
    ask = asker(d, form)
    with x64_for(dtype), np.errstate(all="ignore"):
        for what, args in drawn(d, dtype, seed):
            v = verdict(ask, args, seed)
            if v not in (OK, CANNOT_TELL):
                print(f"{d.name} in {form}, {dtype}, seed {seed}, {what}: {v}", flush=True)
            yield v if v in (OK, CANNOT_TELL) else ACCUSED


Counts = dict[str, dict[str, dict[str, int]]]
"""By form and function, how often each was said."""


def read(path: Path) -> Counts:
    return json.loads(path.read_text()) if path.exists() else {}


def table(counts: Counts) -> str:
    lines = ["| right derivations, in the form of | functions | accused | left open |", "| --- | --- | --- | --- |"]
    for form, functions in counts.items():
        said = sum(map(Counter, functions.values()), Counter())
        of = said.total()
        lines.append(f"| {form} | {len(functions)} | {said[ACCUSED]:,} of {of:,} | {said[CANNOT_TELL]:,} of {of:,} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", nargs="*", default=FORMS, choices=FORMS, help="of the derivations")
    parser.add_argument("--seeds", type=int, default=1, help="how often everything is drawn")
    parser.add_argument("--names", nargs="*", default=list(DERIVATIONS), help="of functions; all of them if left out")
    parser.add_argument("--dtypes", nargs="*", default=["float32"], choices=["float32", "float64"])
    parser.add_argument("--minutes", type=float, default=60, help="when to stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, and go on from those there")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    end = time.monotonic() + 60 * options.minutes
    counts = read(options.json) if options.json else {}
    asked = [(form, name) for name in options.names for form in options.form]
    for form, name in asked:
        of_form = counts.setdefault(form, {})
        if name in of_form or time.monotonic() > end:
            continue
        draws = ((dtype, seed) for dtype in options.dtypes for seed in range(options.seeds))
        of_form[name] = dict(Counter(v for draw in draws for v in said_of(DERIVATIONS[name], form, *draw)))
        jax.clear_caches()
        if options.json:
            options.json.write_text(json.dumps(counts, indent=1) + "\n")
    print(table(counts))


if __name__ == "__main__":
    main()
