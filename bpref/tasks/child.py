"""The process in which a solution runs: it is given inputs, gives cotangents back, and knows nothing else.

`python -I child.py SOLUTION.py`. It imports nothing of bpref. A message either way is its length in 8 bytes, a line of
JSON, and the arrays' bytes.
"""

import contextlib
import functools
import importlib.util
import json
import os
import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np

DIFFERENTIATES = (
    *("jax.linear_transpose", "jax._src.interpreters.ad.jvp", "jax._src.interpreters.ad.linearize"),
    *("torch.autograd._engine_run_backward", "torch.autograd.forward_ad.enter_dual_level", "torch.func.jvp"),
)
"""What every way of either library to differentiate goes through; of it a solution is no derivation."""

STARTS = frozenset(
    {
        "subprocess.Popen",
        *(f"os.{f}" for f in ("exec", "fork", "forkpty", "posix_spawn", "spawn", "startfile", "system")),
    }
)
"""What Python announces before it starts another process, in which nobody would see what differentiates."""

OF_BPREF = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

used = set()
"""The libraries that the solution has let differentiate."""


def packed(header, arrays):
    arrays = [None if v is None else np.asarray(v, order="C") for v in arrays]
    header = header | {"arrays": [None if v is None else [v.dtype.name, list(v.shape)] for v in arrays]}
    body = json.dumps(header).encode() + b"\n" + b"".join(v.tobytes() for v in arrays if v is not None)
    return struct.pack("<Q", len(body)) + body


def unpacked(body):
    line, _, rest = body.partition(b"\n")
    header = json.loads(line)
    arrays, at = [], 0
    for described in header["arrays"]:
        if described is None:
            arrays.append(None)
            continue
        dtype, shape = jnp.dtype(described[0]), tuple(described[1])
        size = int(np.prod(shape)) * dtype.itemsize
        arrays.append(np.frombuffer(rest[at : at + size], dtype).reshape(shape).copy())
        at += size
    return header, arrays


def watch(library):
    """Note from now on whether a library, which is imported, differentiates."""
    for path in DIFFERENTIATES:
        root, *parents, name = path.split(".")
        if root != library:
            continue
        owner = functools.reduce(lambda o, part: getattr(o, part, None), parents, sys.modules[library])
        if hasattr(owner, name):
            setattr(owner, name, noting(library, getattr(owner, name)))


def noting(library, f):
    @functools.wraps(f)
    def noted(*args, **kwargs):
        used.add(library)
        return f(*args, **kwargs)

    return noted


def forbid(event, args):
    """An audit hook, which cannot be taken off: no other process, and nothing of bpref, which has the backward."""
    if event in STARTS:
        raise PermissionError("a solution starts no other process")
    is_bpref = event == "import" and args[0].partition(".")[0] == "bpref"
    if is_bpref or (event == "open" and isinstance(args[0], str) and args[0].startswith(OF_BPREF)):
        raise PermissionError("a solution reads nothing of bpref")


def answered(backward, header, arrays):
    n = header["args"]
    is_wide = any(v is not None and v.dtype.name in ("float64", "int64", "uint64", "complex128") for v in arrays)
    with jax.enable_x64(True) if is_wide else contextlib.nullcontext():
        given = [None if v is None else jnp.asarray(v) for v in arrays]
        args, dy = tuple(given[:n]), given[n:]
        dy = dy[0] if header["one"] else tuple(dy)
        if header["do"] == "export":
            program = jax.export.export(jax.jit(backward, keep_unused=True))(args, dy)
            return {}, [np.frombuffer(program.mlir_module_serialized, np.uint8)]
        return {}, cotangents(backward(args, dy), n)


def cotangents(found, n):
    if not isinstance(found, (tuple, list)):
        raise TypeError(f"backward returned a {type(found).__name__}, expected a tuple of {n} cotangents")
    return list(found)


def answered_in_torch(backward, header, arrays):
    import torch

    n = header["args"]
    given = [None if v is None else torch.from_numpy(v) for v in arrays]
    found = backward(tuple(given[:n]), given[n] if header["one"] else tuple(given[n:]))
    return {}, [v.detach().cpu().numpy() if isinstance(v, torch.Tensor) else v for v in cotangents(found, n)]


def loaded(path):
    with open(path, encoding="utf-8") as file:
        names_torch = "torch" in file.read()
    with contextlib.suppress(ImportError):
        if names_torch:
            importlib.import_module("torch")
            watch("torch")
    watch("jax")
    sys.addaudithook(forbid)
    spec = importlib.util.spec_from_file_location("solution", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["solution"] = module
    spec.loader.exec_module(module)
    return module.backward


def main():
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the solution prints is no answer
    questions = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # A solution is not to look the backward up.
    sys.modules["bpref"] = None  # type: ignore[assignment]
    backward = None
    while len(size := questions.read(8)) == 8:
        header, arrays = unpacked(questions.read(*struct.unpack("<Q", size)))
        try:
            if backward is None:
                backward = loaded(sys.argv[1])
            answer = answered_in_torch if header["framework"] == "torch" else answered
            said, found = answer(backward, header, arrays)
            reply = packed(said | {"autodiff": sorted(used)}, found)
        except BaseException as error:  # whatever the solution raises is its answer
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            text = f"{type(error).__name__}: {lines[0] if lines else 'without a message'}"
            reply = packed({"error": text}, [])
        answers.write(reply)
        answers.flush()


if __name__ == "__main__":
    main()
