"""gpt's memory on a TPU and a GPU: by hand, and by autodiff under every policy of `jax.checkpoint`.

    python -m benchmarks.bench_policies --for tpu-v5e --json benchmarks/results/policies.json
    python -m benchmarks.bench_policies --for h100 --json benchmarks/results/policies.json

J and its gradient, in float32, of the gpt that `bpref compile` has, and of sequences four times as long; nothing is
run, and no device is needed. The plain form is what one writes without this library: all logits of the attention, and
of the classes, made whole. The file is added to; a program takes a minute.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import plain_models
from benchmarks.bench_models import HOW, by_hand, own_under
from benchmarks.sequence_blocks import POLICIES
from bpref.devices.compiling import compile_for
from bpref.models.gpt import gpt_objective
from bpref.models.gpt_config import GptConfig

EXAMPLES, LENGTHS = 4, (256, 1024)
CONFIG = GptConfig(8192, 256, 8, 4, 680, max(LENGTHS))
TARGETS = {"tpu-v5e": "TPU v5e", "h100": "H100"}
HAND, PLAIN, OWN = "by hand", "plain form", "own forward"
KEPT = ("nothing_saveable", "dots_with_no_batch_dims_saveable", "dots_saveable")
"""Policies of which some other keeps more."""


def forms() -> dict[str, Callable[..., Any]]:
    """Functions of params and x to J and its gradient, by form and by what is kept."""
    found = {f"{HAND}, {how}": by_hand(gpt_objective(CONFIG, **own)) for how, own in reversed(HOW.items())}
    for name in KEPT:
        found[f"{PLAIN}, {name}"] = jax.value_and_grad(plain_models.gpt(CONFIG, policy=POLICIES[name]))
    found[f"{OWN}, {KEPT[0]}"] = jax.value_and_grad(own_under(CONFIG, POLICIES[KEPT[0]]))
    return found


Rows = dict[str, dict[str, dict[str, dict[str, Any]]]]
"""By target, length and form."""


def measured(target: str, length: int, f: Callable[..., Any]) -> dict[str, int | None]:
    ids = jax.ShapeDtypeStruct((EXAMPLES, length), jnp.int32)
    params = jax.eval_shape(gpt_objective(CONFIG).init, jax.random.key(0), (ids, ids))
    seen = compile_for(target, f, params, (ids, ids))
    return {"temp": seen.temp, "accessed": seen.accessed, "cycles": seen.cycles}


def least(of_length: dict[str, dict[str, Any]]) -> int:
    """The temp memory of the plain form under the leanest policy."""
    return min(row["temp"] for form, row in of_length.items() if form.startswith(PLAIN))


def table(rows: Rows) -> str:
    headers = ["4 sequences of", "form"]
    for target in rows:
        headers += [f"{TARGETS[target]}: temp memory", "by the leanest plain form's", "bytes accessed"]
    headers.append(f"{TARGETS['tpu-v5e']}: cycles")
    lines = [f"| {' | '.join(headers)} |", "| --- " * len(headers) + "|"]
    for length in map(str, LENGTHS):
        for form in forms():
            seen = {target: of[length][form] for target, of in rows.items() if form in of.get(length, {})}
            if seen:
                cells = [cell for target in rows for cell in _cells(seen.get(target), rows[target].get(length, {}))]
                cycles = seen.get("tpu-v5e", {}).get("cycles")
                cells.append(f"{cycles / 1e6:.2f} million" if cycles else "")
                lines.append(f"| {' | '.join([length, form, *cells])} |")
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any] | None, of_length: dict[str, dict[str, Any]]) -> list[str]:
    if row is None:
        return ["", "", ""]
    ratio = f"{row['temp'] / least(of_length):.2f}"
    return [f"{row['temp'] / 1e6:,.1f} MB", ratio, f"{row['accessed'] / 1e6:,.0f} MB"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--for", dest="target", required=True, choices=TARGETS)
    parser.add_argument("--length", type=int, nargs="*", choices=LENGTHS, default=LENGTHS)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    chosen = parser.parse_args()
    for length in chosen.length:
        for form, f in forms().items():
            row = measured(chosen.target, length, f)
            rows = json.loads(chosen.json.read_text()) if chosen.json.exists() else {}
            rows.setdefault(chosen.target, {}).setdefault(str(length), {})[form] = row
            rows = {target: rows[target] for target in TARGETS if target in rows}
            chosen.json.write_text(json.dumps(rows, indent=1) + "\n")
            print(chosen.target, length, form, row, flush=True)


if __name__ == "__main__":
    main()
