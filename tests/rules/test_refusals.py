"""What does not fit is refused by name, of every rule, leaf by leaf: rank, size, dtype, missing; nothing is broadcast.

Looked at by shape alone. An input that a case does not draw may be meant all the same, such as one axis more of
examples: then the layer gives what the rule's reference gives, to the shape. All else must be refused in words of ours.
"""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import ShapeDtypeStruct
from jax.tree_util import keystr, tree_flatten_with_path

from bpref.rule import Case, Rule
from bpref.rules import RULES
from bpref.verify.rules.catalogue import sizes_of
from bpref.verify.rules.draw import draw
from tests.conftest import SEED

pytestmark = pytest.mark.quick

OF_THEIR_OWN_DTYPE = {
    # A table alone says what dtype there is; running statistics, or a bias that is state, may be kept wider than x.
    ("embedding", ".W"),
    ("embedding_bag", ".W"),
    ("tied_embedding", ".W"),
    ("spectral_norm_linear", ".u"),
    ("spectral_norm_linear", ".v"),
    ("batch_norm", ".mean"),
    ("batch_norm", ".var"),
    ("sigmoid_router", ".bias"),
}


@pytest.fixture(autouse=True)
def whole_tracebacks():
    """JAX looks up each frame of an error that it lets through, to leave out its own: half of a refusal's time."""
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    yield
    jax.config.update("jax_traceback_filtering", before)


def spoiled(v: Any):
    """Arrays that are not `v`, each with what is wrong with it."""
    yield "missing", None
    yield "one axis more", ShapeDtypeStruct((2, *v.shape), v.dtype)
    if v.shape:
        yield "one axis less", ShapeDtypeStruct(v.shape[1:], v.dtype)
    for i, size in enumerate(v.shape):
        yield f"axis {i} longer", ShapeDtypeStruct((*v.shape[:i], size + 1, *v.shape[i + 1 :]), v.dtype)
        if size > 1:
            yield f"axis {i} of one", ShapeDtypeStruct((*v.shape[:i], 1, *v.shape[i + 1 :]), v.dtype)
    for dtype in (jnp.bfloat16, jnp.int32, jnp.bool_, jnp.complex64):
        if v.dtype != dtype:
            yield f"{jnp.dtype(dtype)}", ShapeDtypeStruct(v.shape, dtype)


def shapes(f: Any, *args: Any) -> Any:
    """What `f` gives, by shape and dtype, or what it raises."""
    try:
        return jax.tree.map(lambda v: (v.shape, v.dtype), jax.eval_shape(f, *args))
    except Exception as error:
        return error


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_what_does_not_fit_is_refused_by_name(rule: Rule):
    for case in rule.cases:
        example = draw(rule, case, sizes_of(case), SEED)
        given = jax.tree.map(lambda v: ShapeDtypeStruct(v.shape, v.dtype), {"params": example.params, "x": example.x})
        leaves, tree = tree_flatten_with_path(given)
        for i, (path, v) in enumerate(leaves):
            for wrong, w in spoiled(v):
                call = jax.tree.unflatten(tree, [w if k == i else u for k, (_, u) in enumerate(leaves)])
                _require_refused(rule, case, example, keystr(path), wrong, call)


def _require_refused(rule: Rule, case: Case, example: Any, where: str, wrong: str, call: Any) -> None:
    with jax.enable_x64(True):
        came = shapes(lambda p, x: example.layer.forward(p, x)[0], call["params"], call["x"])
        what = f"{case.name}, {where} {wrong}"
        if isinstance(came, Exception):
            assert isinstance(came, ValueError | TypeError), f"{what}: {came!r}"
            names = (rule.name, *(part.name for part in example.layer.parts))
            assert str(came).startswith(names), f"{what}: {came}"
            return
        if (rule.name, where.removeprefix("['params']")) in OF_THEIR_OWN_DTYPE:
            return
        assert not where.startswith("['params']"), f"{what}: accepted"
        meant = shapes(lambda p, x: example.reference(p, x), call["params"], call["x"])
        assert came == meant, f"{what}: gives {came}, the reference {meant}"
