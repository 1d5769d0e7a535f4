"""Parameters that do not fit are refused by name, of every rule, leaf by leaf; nothing is broadcast in silence."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import keystr, tree_flatten_with_path

import bpref
from bpref.formulas.parameters import require_drawn
from bpref.rules import RULES
from bpref.verify.catalogue import sizes_of
from bpref.verify.draw import draw
from tests.conftest import SEED

pytestmark = pytest.mark.quick

OF_ITS_OWN_DTYPE = {
    # A table alone says what dtype there is, and running statistics may be kept wider than x.
    ("embedding", ".W"),
    ("embedding_bag", ".W"),
    ("tied_embedding", ".W"),
    ("spectral_norm_linear", ".u"),
    ("spectral_norm_linear", ".v"),
    ("batch_norm", ".mean"),
    ("batch_norm", ".var"),
}
BY_NAME = re.compile(f"^({'|'.join(RULES)}): ")


def one_more(v):
    return np.concatenate([v, v[..., :1]], -1) if v.ndim else np.stack([v, v])


def one_that_would_broadcast(v):
    return v[(slice(0, 1),) * v.ndim]


def another_dtype(v):
    return v.astype(jnp.bfloat16 if jnp.issubdtype(v.dtype, jnp.floating) else np.float32)


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.name)
def test_each_parameter_must_fit(rule):
    for case in rule.cases:
        example = draw(rule, case, sizes_of(case), SEED)
        flat, tree = tree_flatten_with_path(example.params)
        for i, (path, v) in enumerate(flat):
            v = np.asarray(v)
            wrong = [(one_more(v), ValueError), (another_dtype(v), TypeError)]
            if v.size > 1:
                wrong.append((one_that_would_broadcast(v), ValueError))
            for w, kind in wrong:
                if kind is TypeError and (rule.name, keystr(path)) in OF_ITS_OWN_DTYPE:
                    continue
                params = jax.tree.unflatten(tree, [w if j == i else u for j, (_, u) in enumerate(flat)])
                with jax.enable_x64(True), pytest.raises(kind, match=BY_NAME):
                    jax.eval_shape(example.layer.forward, params, example.x)


X = jnp.ones((2, 3))
PARAMS = bpref.mlp_block(4, bias=True).init(jax.random.key(0), X)
MISFITS = {
    "a bias is missing": (
        lambda: PARAMS._replace(b_in=None),
        ValueError,
        "me: b_in is None, expected shape (8,), as init gives for this x",
    ),
    "a shift too many": (
        lambda: PARAMS._replace(norm=PARAMS.norm._replace(shift=jnp.zeros(3))),
        ValueError,
        "me: norm.shift has shape (3,), expected None, as init gives for this x",
    ),
    "a number": (
        lambda: PARAMS._replace(b_out=0.0),
        TypeError,
        "me: b_out is a float, expected an array, as init gives for this x",
    ),
    "a dict for a weight": (
        lambda: PARAMS._replace(W_in={"W": PARAMS.W_in}),
        TypeError,
        "me: W_in is a dict, expected an array, as init gives for this x",
    ),
    "a tuple for the norm": (
        lambda: PARAMS._replace(norm=(jnp.ones(3), None)),
        TypeError,
        "me: norm is a tuple, expected NormParams, as init gives for this x",
    ),
    "a list of all": (
        lambda: list(PARAMS),
        TypeError,
        "me: params is a list, expected MlpBlockParams, as init gives for this x",
    ),
}


@pytest.mark.parametrize(("params", "kind", "message"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_named(params, kind, message):
    with pytest.raises(kind) as refused:
        require_drawn("me", bpref.mlp_block(4, bias=True).init, params(), X)
    assert str(refused.value) == message


def test_what_init_gives_fits():
    require_drawn("me", bpref.mlp_block(4, bias=True).init, PARAMS, X)
