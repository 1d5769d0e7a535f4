"""`bpref train` killed by SIGKILL at random moments and gone on with, beside the same run left alone.

    python -m benchmarks.kill_and_resume [--json FILE] [--kills 50] [--seed 0]

In turn a table, images and text. A run is killed five times, each time in what the kill before had left, and then comes
to its end: at a random moment of its start, or of a third of the time that its steps take, after its first checkpoint.
Its parameters must be those of the run that nothing happened to, byte for byte, and so must its metrics but for the
seconds. Programs that were compiled once are taken from JAX's cache.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RUNS = {
    "table": ["digits", "--epochs", "60"],
    "images": ["vae", "--epochs", "40", "--width", "64"],
    "text": ["gpt", "--epochs", "2", "--width", "16", "--depth", "1", "--batch-size", "32"],
}
"""What is trained, and with which options."""

CHECKPOINT_EVERY = 20
KILLS_A_RUN = 5

AT_THE_START, START = 0.2, 5.0
"""How many of the kills come before the first checkpoint, and of how many seconds."""

CACHED = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}


def command(name: str, out: Path) -> list[str]:
    options = ["--out", str(out), "--resume", "--checkpoint-every", str(CHECKPOINT_EVERY)]
    return [sys.executable, "-m", "bpref", "train", *RUNS[name], *options]


def begun(name: str, out: Path) -> subprocess.Popen:
    """A process of the run."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(out.parent / "cache"), **CACHED}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(name, out), env=environment, **pipes)


def wait_for_a_checkpoint(process: subprocess.Popen, out: Path) -> None:
    """Until there is one that was not there before, or the process has ended."""
    before = sealed(out)
    while process.poll() is None and not sealed(out) - before:
        time.sleep(0.002)


def ended(process: subprocess.Popen) -> str:
    """What a run has printed on stderr, once it has come to its end."""
    _, printed = process.communicate()
    if process.returncode:
        sys.exit(f"{process.args} failed:\n{printed}")
    return printed


def left_by(out: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """What must not differ."""
    metrics = [json.loads(line) | {"seconds": 0} for line in (out / "metrics.jsonl").read_text().splitlines()]
    return (out / "params.safetensors").read_bytes(), metrics


def sealed(out: Path) -> set[str]:
    return {path.stem for path in out.glob("checkpoints/*.json")}


def unfinished(out: Path) -> bool:
    """Whether a checkpoint was being written when the process was killed."""
    names = {path.name.split(".")[0] for path in out.glob("checkpoints/*")}
    return bool(names - sealed(out))


def killed_run(name: str, out: Path, seconds: float, kills: int, draw: np.random.Generator) -> dict[str, Any]:
    """A run that is killed so often and then comes to its end, with what the kills hit."""
    reached, in_writing = [], 0
    for _ in range(kills):
        process = begun(name, out)
        if draw.random() < AT_THE_START:
            time.sleep(draw.uniform(0, START))
        else:
            wait_for_a_checkpoint(process, out)
            time.sleep(draw.uniform(0, seconds / 3))
        process.kill()
        process.communicate()
        if (out / "params.safetensors").exists():
            break
        reached.append(max(map(int, sealed(out)), default=0))
        in_writing += unfinished(out)
    warned = ended(begun(name, out))
    return {"run": name, "kills": len(reached), "last_checkpoints": reached, "in_writing": in_writing, "said": warned}


def table(figures: dict[str, Any]) -> str:
    """A row for each kind of run, in Markdown."""
    headers = ("run", "kills", "went on to the same bits", "hit a checkpoint being written", "said to be damaged")
    lines = [f"| {' | '.join(headers)} |", "| --- " * len(headers) + "|"]
    for name in (*RUNS, "all"):
        rows = [row for row in figures["runs"] if name in (row["run"], "all")]
        kills = sum(row["kills"] for row in rows)
        same = sum(row["kills"] for row in rows if row["identical"])
        writing, damaged = sum(row["in_writing"] for row in rows), sum("damaged" in row["said"] for row in rows)
        command = "all" if name == "all" else f"`bpref train {' '.join(RUNS[name])}`"
        lines.append(f"| {command} | {kills} | {same} | {writing} | {damaged} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = np.random.default_rng(given.seed)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        alone: dict[str, Any] = {}
        for name in RUNS:
            process = begun(name, Path(folder) / name)
            wait_for_a_checkpoint(process, Path(folder) / name)
            start = time.perf_counter()
            ended(process)
            alone[name] = left_by(Path(folder) / name), time.perf_counter() - start
        while (done := sum(row["kills"] for row in rows)) < given.kills:
            name = list(RUNS)[len(rows) % len(RUNS)]
            out = Path(folder) / f"{name}-{len(rows)}"
            left, seconds = alone[name]
            row = killed_run(name, out, seconds, min(KILLS_A_RUN, given.kills - done), draw)
            rows.append(row | {"identical": left_by(out) == left})
            print(json.dumps(rows[-1]), flush=True)
    print(table({"runs": rows}))
    if given.json:
        given.json.write_text(json.dumps({"runs": rows}, indent=1) + "\n")
    sys.exit(not all(row["identical"] for row in rows))


if __name__ == "__main__":
    main()
