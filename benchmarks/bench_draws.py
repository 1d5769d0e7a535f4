"""The right derivations of the corpus at the values that `bpref.search` draws: which does `bpref.check` accuse?

    python -m benchmarks.bench_draws [--seeds 1] [--names NAME ...] [--dtypes float32 float64]

The arguments have their usual shapes; their values are zeros, ties, outlier channels, rows that hardly vary, huge ones
and all others that a search tries, in every argument, in each by itself, and mixed. Accused is what is `wrong` or
`imprecise`, or what raises. What has no derivative there, or no value, may be left open.
"""

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Iterator
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


def verdict(d: Derivation, args: tuple, key: int) -> str:
    """`ok`, `cannot tell`, or what is said against the right derivation."""
    try:
        report = bpref.check(d.forward, *args, backward=d.backward, key=key)
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    return report.verdict if report.verdict in (OK, CANNOT_TELL) else str(report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="how often everything is drawn")
    parser.add_argument("--names", nargs="*", default=list(DERIVATIONS), help="of functions; all of them if left out")
    parser.add_argument("--dtypes", nargs="*", default=["float32"], choices=["float32", "float64"])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    start, said = time.perf_counter(), Counter()
    for name in options.names:
        for dtype in options.dtypes:
            for seed in range(options.seeds):
                with x64_for(dtype), np.errstate(all="ignore"):
                    for what, args in drawn(DERIVATIONS[name], dtype, seed):
                        v = verdict(DERIVATIONS[name], args, seed)
                        said[v if v in (OK, CANNOT_TELL) else "accused"] += 1
                        if v not in (OK, CANNOT_TELL):
                            print(f"{name}, {dtype}, seed {seed}, {what}: {v}", flush=True)
        jax.clear_caches()
    accused, of = said["accused"], said.total()
    print(
        f"{accused:,} of {of:,} accused, {said[CANNOT_TELL]:,} left open, of {len(options.names)} functions "
        f"in {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
