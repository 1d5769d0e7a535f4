"""A rule written as a task folder: what is asked, the naive forward, where the answer goes; no backward."""

import json
from pathlib import Path

import jax
import numpy as np

from bpref.layer import Layer
from bpref.rule import Rule
from bpref.tasks.problem import Problem, case_of, problem, sizes_named, small_sizes
from bpref.tasks.source import NotAlone, Written, standing_alone

ABOUT, FORWARD, SOLUTION, TASK = "task.json", "forward.py", "solution.py", "task.md"


class _Name(str):
    """A name that is shown as it is."""

    def __repr__(self) -> str:
        return str(self)


def files_of(rule: Rule, framework: str = "jax") -> dict[str, str]:
    """The files of the rule's task, by name.

    Raises:
      NotAlone: the rule is made of another layer, whose backward its forward would show.
    """
    case = case_of(rule)
    p = problem(rule, small_sizes(case, np.random.default_rng(0)), 0)
    forward = naive_forward(rule, p)
    about = {"rule": rule.name, "case": case.name, "framework": framework}
    return {
        ABOUT: json.dumps(about, indent=1) + "\n",
        FORWARD: f'"""{rule.name}: the naive forward. Source of the formula: {rule.cite}."""\n\n{forward}',
        SOLUTION: f"import {'jax.numpy as jnp' if framework == 'jax' else 'torch'}\n\n\n{missing_backward(p)}\n",
        TASK: _task(rule, p, framework),
    }


def write_task(folder: Path, rule: Rule, framework: str = "jax") -> None:
    """Write the rule's task into `folder`, which is made; a `solution.py` that is there stays."""
    files = files_of(rule, framework)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        if name != SOLUTION or not (folder / name).exists():
            (folder / name).write_text(text)


def naive_forward(rule: Rule, p: Problem) -> Written:
    """The source of `forward`, of the problem's arrays alone, with all that it needs.

    Raises:
      NotAlone: the rule is made of another layer, whose backward its forward would show.
    """
    if any(isinstance(value, Layer) for value in p.hyper.values()):
        raise NotAlone("it is made of another layer")
    written = standing_alone(rule.reference)
    written.imports |= {"import jax", "import jax.numpy as jnp"}
    params, x = jax.tree.unflatten(p.tree, [_Name(name) for name in p.names])
    sizes = sizes_named(case_of(rule))
    fixed = ", ".join(f"{name}={name if name in sizes else repr(value)}" for name, value in p.hyper.items())
    keywords = ", ".join(f"{name}={p.hyper[name]}" for name in sizes)
    outputs = "v for v in jax.tree.leaves(y) if jnp.issubdtype(v.dtype, jnp.inexact)"
    lines = [
        f"def forward({', '.join(p.names)}{f', *, {keywords}' if keywords else ''}):",
        f"    y = {rule.reference.__name__}({params!r}, {x!r}{', ' if fixed else ''}{fixed})",
        f"    return tuple({outputs})" if p.several else f"    return next({outputs})",
    ]
    written["forward"] = "\n".join(lines)
    return written


def missing_backward(p: Problem) -> str:
    """A backward that is to be written: it takes the arguments apart, and names what it has to return."""
    cotangents = ", ".join(f"d{name}" if _has_one(v) else "None" for name, v in zip(p.names, p.args, strict=True))
    comma = "," * (len(p.names) == 1)
    return (
        "def backward(args, dy):\n"
        f"    {', '.join(p.names)}{comma} = args\n"
        '    raise NotImplementedError("the cotangents of args, derived by hand")\n'
        f"    return {cotangents}{comma}"
    )


def _task(rule: Rule, p: Problem, framework: str) -> str:
    rows = [
        f"| `{name}` | {v.dtype} | {v.shape} | {'its cotangent' if _has_one(v) else '`None`'} |"
        for name, v in zip(p.names, p.args, strict=True)
    ]
    arrays, has = ("JAX arrays", "JAX and NumPy") if framework == "jax" else ("tensors", "PyTorch, JAX and NumPy")
    y = jax.eval_shape(p.forward, *p.args)
    shown = ", ".join(f"{v.dtype} {v.shape}" for v in jax.tree.leaves(y))
    sizes = "".join(
        f"\n`{name}` is the size of axis `{axis}`, to be taken from the shapes.\n"
        for name, axis in sizes_named(case_of(rule)).items()
    )
    return "\n".join(
        [
            f"# {rule.name}",
            "",
            "Derive the backward pass of `forward` in `forward.py` by hand, and write it into `solution.py`:",
            f"`backward(args, dy)` is given the arguments of `forward`, a tuple of {arrays}, and the cotangent of its",
            f"output{', a tuple of arrays' if p.several else ''}; it returns a tuple with the cotangent of each",
            "argument, of its shape and dtype. Autodiff of JAX's or PyTorch's is noticed, and is no derivation.",
            "",
            "| argument | dtype | shape, for example | returned |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            f"y: {shown}",
            sizes,
            "Shapes are others when it is judged; all choices but the sizes are as `forward` makes them. It is run in",
            f"float32 and in float64, in a process of its own that has {has}, and not bpref:",
            "",
            f"    bpref judge . {SOLUTION}",
            "",
        ]
    )


def _has_one(v: np.ndarray) -> bool:
    return bool(np.issubdtype(v.dtype, np.inexact))
