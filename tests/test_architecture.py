"""The house as DESIGN draws it, read off the source: who imports whom, who differentiates, what is exported."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import bpref
from bpref.rules import RULES
from bpref.verify.rules.draw import axes_of

pytestmark = pytest.mark.quick

ROOT = Path(bpref.__file__).parent
TESTS = Path(__file__).parent
FILES = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}

FLOORS = (
    "ground", "formulas", "kernels", "naive", "corpus", "compose", "rules", "transforms",
    "verify", "models", "sharding", "devices", "train", "tasks", "cli",
)  # fmt: skip
"""Imports point only towards the front of this list; the files directly in bpref/, and checks/, are the ground."""

MAY_NOT_READ = {
    "naive": {"kernels"},
    "corpus": {"formulas", "kernels", "naive"},
    "compose": {"corpus", "formulas", "kernels", "naive"},
    "rules": {"corpus", "compose"},
    "transforms": {"corpus", "formulas", "kernels", "naive"},
    "verify": {"corpus", "formulas", "kernels", "naive", "compose", "rules", "transforms"},
    "models": {"corpus", "kernels"},
    "sharding": {"corpus", "formulas", "kernels", "naive", "compose", "rules", "transforms", "verify", "models"},
    "devices": {"corpus", "formulas", "kernels", "naive"},
    "train": {"corpus", "kernels", "devices"},
    "tasks": {
        "corpus",
        "formulas",
        "kernels",
        "naive",
        "compose",
        "transforms",
        "models",
        "sharding",
        "devices",
        "train",
    },
}
"""Floors that lie in front, and are not needed: verify knows no rule by name."""

DIFFERENTIATION = {
    "grad", "value_and_grad", "vjp", "jvp", "linearize", "linear_transpose", "jacfwd", "jacrev", "hessian",
    "check_grads", "vjp_p", "make_jvp", "jet", "autograd", "grad_and_value",
}  # fmt: skip


def imported(tree: ast.AST) -> set[str]:
    """The modules that a file imports, wherever in it the import stands."""
    modules = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            modules |= {str(node.module)} | {f"{node.module}.{a.name}" for a in node.names}
    return modules


def floor_of(file: str) -> str:
    folder = file.split("/")[0]
    return folder if folder in FLOORS else "ground"


def floors_read(tree: ast.AST) -> set[str]:
    own = {m.split(".")[1] for m in imported(tree) if m.startswith("bpref.")}
    return {name if name in FLOORS else "ground" for name in own}


@pytest.mark.parametrize("file", [f for f in FILES if f != "__main__.py"])
def test_imports_point_only_upward(file: str):
    floor = floor_of(file)
    allowed = set(FLOORS[: FLOORS.index(floor) + 1]) - MAY_NOT_READ.get(floor, set())
    assert floors_read(FILES[file]) <= allowed


ROOMS = (
    "naming", "options", "oracle", "torch_oracle", "programs", "numbers", "report", "examining", "diagnosis", "host",
    "torch_front", "check", "checked", "audit", "steps", "mutating", "searching", "rules", "__init__",
)  # fmt: skip
"""The rooms of verify/, folders and the files beside them. Imports point only towards the front of this list."""


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith("verify/")])
def test_imports_of_the_checker_point_only_to_rooms_before(file: str):
    room = Path(file).parts[1].removesuffix(".py")
    read = {m.split(".")[2] for m in imported(FILES[file]) if m.startswith("bpref.verify.")}
    assert read & set(ROOMS) <= set(ROOMS[: ROOMS.index(room) + 1])


ORACLES = ("verify/oracle.py", "verify/torch_oracle.py")

FORWARD_OVER_REVERSE = "tangents.py"
"""It pushes forward what is derived by hand, by jvp and nothing else: no backward is made by autodiff. By hand, the
tangent of every backward would be a second derivation of each rule. The Hessian is made so, and so a backward in a
kernel is differentiated once more: by the tangent of the same backward in XLA's form."""


@pytest.mark.parametrize("file", [f for f in FILES if f not in ORACLES])
def test_only_the_oracle_differentiates(file: str):
    names = {node.attr for node in ast.walk(FILES[file]) if isinstance(node, ast.Attribute)}
    names |= {node.id for node in ast.walk(FILES[file]) if isinstance(node, ast.Name)}
    names |= {a.name.split(".")[-1] for n in ast.walk(FILES[file]) if isinstance(n, ast.ImportFrom) for a in n.names}
    strings = {n.value for n in ast.walk(FILES[file]) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    assert (names | strings) & DIFFERENTIATION == ({"jvp"} if file == FORWARD_OVER_REVERSE else set())


NOTHING_DIFFERENTIATES_IN = (
    "lax",
    "numpy",
    "nn",
    "random",
    "tree",
    "tree_util",
    "scipy",
    "image",
    "ops",
    "dtypes",
    "errors",
    "stages",
    "typing",
)

OF_JAX = {
    "Array", "ShapeDtypeStruct", "block_until_ready", "clear_caches", "config", "core.Tracer", "custom_vjp",
    "custom_derivatives.SymbolicZero", "custom_derivatives.custom_vjp_primal_tree_values", "default_backend",
    "default_device", "device_get", "device_put", "devices", "disable_jit", "enable_x64", "eval_shape", "export", "jit",
    "distributed", "experimental.multihost_utils", "make_array_from_callback", "process_count", "process_index",
    "make_jaxpr", "make_mesh", "memory", "numpy_dtype_promotion", "numpy_rank_promotion", "profiler", "sharding",
    "typeof", "vmap",
    "ad_checkpoint.checkpoint_name",  # models/mlp.py names its Z and A for `check_intermediates`
    "interpreters.partial_eval",  # whether an optimiser mixes parameters is read off a program
    "extend.core",  # of what programs are made, which are read
    "extend.random.threefry_2x32",
    "experimental.pallas",  # kernels, which JAX cannot differentiate in reverse
    "experimental.topologies",  # devices that are not there are compiled for
}  # fmt: skip
"""What a derivation may name of JAX, modules where nothing differentiates apart."""

OF_THE_CHECKER = OF_JAX | {
    "__file__", "checkpoint", "custom_derivatives.SymbolicZero", "custom_jvp", "experimental.pallas.tpu",
    "extend.source_info_util",
    "interpreters.ad",  # which primitives have a derivative at all: the table is read, no entry called
    "shard_map",
}  # fmt: skip
"""What may be named of it besides where other people's programs are read."""


def names_of_jax(tree: ast.AST) -> set[str]:
    """What a file names of JAX, as `jit` or `extend.core.Jaxpr`, whatever it calls the modules."""
    known, found = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {a.asname or "jax": a.name if a.asname else "jax" for a in node.names if a.name.startswith("jax")}
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "jax":
            known |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            found |= {f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        path, inner = [], node
        while isinstance(inner, ast.Attribute):
            path.append(inner.attr)
            inner = inner.value
        if path and isinstance(inner, ast.Name) and inner.id in known:
            found.add(".".join([known[inner.id], *reversed(path)]))
    return {name.removeprefix("jax.") for name in found} - {"jax"}


@pytest.mark.parametrize("file", [f for f in FILES if f not in ORACLES])
def test_of_jax_only_what_cannot_differentiate_is_named(file: str):
    allowed = (OF_THE_CHECKER if floor_of(file) == "verify" else OF_JAX) | set(NOTHING_DIFFERENTIATES_IN)
    allowed |= {"custom_jvp", "jvp"} if file == FORWARD_OVER_REVERSE else set()
    assert [n for n in names_of_jax(FILES[file]) if not any(n == a or n.startswith(a + ".") for a in allowed)] == []


def test_a_name_is_found_whatever_its_module_is_called():
    source = (
        "import jax\nimport jax.numpy as jnp\nfrom jax import lax as l, linearize\nfrom jax.interpreters import ad\n"
    )
    uses = "jnp.ones; l.scan; jax.experimental.jet.jet; ad.backward_pass"
    expected = {"numpy.ones", "lax", "lax.scan", "linearize", "interpreters.ad", "interpreters.ad.backward_pass"}
    expected |= {"experimental.jet.jet", "experimental.jet", "experimental"}
    assert names_of_jax(ast.parse(source + uses)) == expected


def test_the_oracle_does_differentiate():
    """The test above can fail: it would, of the two files that it leaves out, JAX's oracle and PyTorch's."""
    named = [{n.attr for n in ast.walk(FILES[f]) if isinstance(n, ast.Attribute)} & DIFFERENTIATION for f in ORACLES]
    assert named == [{"vjp"}, {"autograd", "grad"}]


def test_rules_import_no_private_names_of_each_other():
    """One rule may be built of another; what two rules share lies beside the folder `rules`, not in one of them."""
    for file in [f for f in FILES if f.startswith("rules/") and not f.endswith("__init__.py")]:
        borrowed = [m for m in imported(FILES[file]) if m.startswith("bpref.rules.")]
        assert not [m for m in borrowed if m.split(".")[-1].startswith("_")], file


def test_every_rule_file_is_in_rules():
    files = {f for f in FILES if f.startswith("rules/") and not f.endswith("__init__.py")}
    in_table = {Path(inspect.getfile(r.make)).relative_to(ROOT).as_posix() for r in RULES.values()}
    assert files == in_table


def test_every_name_that_a_rule_is_looked_for_by_is_its_own():
    others = [other for rule in RULES.values() for other in rule.covers]
    assert sorted(set(others)) == sorted(others)
    assert not set(others) & set(RULES)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_has_one_case_that_is_timed_with_a_size_for_every_axis(rule):
    (case,) = (case for case in rule.cases if case.timed)
    assert set(case.timed) == set(axes_of(case))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_is_named_after_its_file_and_derives_itself(rule):
    module = importlib.import_module(rule.make.__module__)
    assert rule.name == rule.make.__name__ == module.__name__.split(".")[-1]
    assert rule.cite
    assert module.__doc__.startswith(f"{rule.name}: ")
    for heading in ("Differential", "Cached", "Numerical care"):
        assert heading in module.__doc__, f"the derivation has no {heading!r}"
    made, naive = (list(inspect.signature(f).parameters.values()) for f in (rule.make, rule.reference))
    defaults = {p.name: p.default for p in naive[2:]}
    assert defaults == {p.name: p.default for p in made if p.name != "name"}, "reference is called as make is"


def test_all_is_what_is_exported():
    imports = ast.parse((ROOT / "__init__.pyi").read_text()).body[1:]
    names = [a.asname for n in imports if isinstance(n, ast.ImportFrom) for a in n.names]
    assert sorted(map(str, names)) == sorted(bpref.__all__)
    for name in bpref.__all__:
        assert inspect.getdoc(getattr(bpref, name)), f"{name} has no docstring"
    assert {rule.name for rule in RULES.values()} <= set(bpref.__all__)


def test_importing_the_package_loads_nothing_until_a_name_is_used():
    """The environment variables that JAX reads when it is imported can still be set, by a conftest for one."""
    program = (
        "import sys, bpref; first = 'jax' in sys.modules; known = 'check' in dir(bpref); "
        "from bpref import check; print(first, known, check is bpref.check, 'jax' in sys.modules)"
    )
    seen = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert seen == "False True True True\n"
    with pytest.raises(AttributeError) as error:
        getattr(bpref, "chekc")  # noqa: B009, a type checker knows that there is no such name
    assert str(error.value) == "No bpref attribute chekc"


def test_the_first_name_that_is_used_reads_one_rule_and_no_other():
    program = (
        "import sys, bpref; bpref.gelu; print(sorted(m for m in sys.modules if m.count('.') == 3 and 'rules' in m))"
    )
    seen = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert seen == "['bpref.rules.activation.gelu']\n"


@pytest.mark.parametrize("folder", [ROOT, TESTS], ids=["bpref", "tests"])
def test_no_file_has_more_than_350_lines(folder):
    lines = {str(f.relative_to(folder)): len(f.read_text().splitlines()) for f in folder.rglob("*.py")}
    assert {f: n for f, n in lines.items() if n > 350} == {}


ANY = {
    "checks": 2,
    "cli": 9,
    "compose": 2,
    "devices": 2,
    "kernels": 4,
    "models": 5,
    "sharding": 4,
    "train": 6,
    "verify": 24,
    "ground": 8,
}
"""How often `Any` stands in a package at most. A tree of arrays is a `PyTree`, what is only passed on an `object`."""


def test_types_say_what_values_are():
    found = Counter(
        floor if (floor := file.split("/")[0]) != file else "ground"
        for file in FILES
        for _ in re.findall(r"\bAny\b", (ROOT / file).read_text())
    )
    assert {floor: n for floor, n in found.items() if n > ANY.get(floor, 0)} == {}


def test_import_loads_nothing_heavy():
    """Neither an extra, nor optax: whoever has no optimiser does not wait for one."""
    program = "import sys, bpref; bpref.check; print(sorted(m for m in sys.modules if '.' not in m))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    heavy = {"optax", "chex", "typer", "rich", "matplotlib", "sklearn", "safetensors", "hypothesis", "flax", "torch"}
    assert heavy & set(ast.literal_eval(loaded)) == set()
