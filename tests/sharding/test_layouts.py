"""Meshes from text, and the layouts of the models that ship: what is divided along which axis, and what is refused."""

import doctest

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

import bpref
from bpref.models.gpt import gpt_objective
from bpref.models.gpt_config import GptConfig
from bpref.naming import flat_names
from bpref.sharding.layout import layout_of
from bpref.sharding.mesh import mesh_of
from bpref.train.divided import require_divided
from bpref.train.network import fully_connected
from tests.refusing import refusals

IDS = jax.ShapeDtypeStruct((8, 8), jnp.int32)
GPT = gpt_objective(GptConfig(32, 16, 3, 2, 24, 8, norm="layer"))
X = jax.ShapeDtypeStruct((8, 6), jnp.float32)
MLP = fully_connected((16, 12), "relu", 3)


def mesh(**axes):
    return AbstractMesh(tuple(axes.values()), tuple(axes))


def specs(name, of, J=GPT, x=(IDS, IDS), rules=()):
    return flat_names(layout_of(name, of, J, x, rules).specs)


test_a_mesh_that_cannot_be_is_refused = refusals(
    {
        "mesh 'data=2' is of 2 devices, and there is 1": "data=2",
        "unknown axis of a mesh 'modle'; the nearest is model": "modle=1",
        "mesh 'data': 'data' is no axis, expected such as data=4 or data=4,model=2": "data",
        "mesh 'data=0': 'data=0' is no axis, expected such as data=4 or data=4,model=2": "data=0",
        "mesh 'data=1,data=1': data is given twice": "data=1,data=1",
    },
    lambda text: mesh_of(text, jax.devices()[:1]),
)


def test_fully_sharded_divides_the_longest_axis_and_of_tables_the_features():
    """Never the axis that scan has stacked, of 3 blocks here or of any other number."""
    of = specs("fully-sharded", mesh(data=8))
    assert of["body.embed.W"] == of["head.W"] == P(None, "data")
    assert of["body.blocks.attention.W_qkv"] == P(None, "data", None)
    assert of["body.blocks.mlp.W_out"] == P(None, None, "data")
    assert of["body.blocks.mlp.norm.scale"] == P(None, "data")


def test_tensor_divides_rows_going_into_heads_and_hidden_features_and_columns_coming_out():
    of = specs("tensor", mesh(data=4, model=2))
    assert of["body.blocks.attention.W_qkv"] == of["body.blocks.mlp.W_in"] == P(None, "model", None)
    assert of["body.blocks.attention.W_o"] == of["body.blocks.mlp.W_out"] == P(None, None, "model")
    assert of["body.blocks.attention.norm.shift"] == P(None, None)
    both = specs("fully-sharded", mesh(data=4, model=2))
    assert both["body.blocks.mlp.W_in"] == P(None, "model", "data")
    assert both["body.blocks.mlp.W_out"] == P(None, "data", "model")


def test_what_stays_whole_is_said():
    layout = layout_of("tensor", mesh(model=2), MLP, X)
    assert layout.whole == {
        "4.W": "model=2 does not divide 3 of (3, 12)",
        "4.b": "model=2 does not divide 3 of (3,)",
    }
    assert layout_of("fully-sharded", mesh(data=4), MLP, X).whole == {"4.b": "data=4 divides no axis of (3,)"}
    assert layout_of("replicated", mesh(data=4), MLP, X).whole == {}


def test_a_rule_of_ones_own_comes_first():
    of = specs("replicated", mesh(data=2, model=2), MLP, X, [("2.W", (None, "model"))])
    assert of["2.W"] == P(None, "model")
    assert of["0.W"] == P(None, None)


test_a_layout_that_divides_nothing_is_refused = refusals(
    {
        "unknown layout 'tenser'; the nearest is tensor": lambda: layout_of("tenser", mesh(model=2), MLP, X),
        "layout replicated divides no parameter along model=2; leave the axis out, or take tensor or fully-sharded": (
            lambda: layout_of("replicated", mesh(data=2, model=2), MLP, X)
        ),
        "layout tensor divides no parameter along expert=2; leave the axis out": (
            lambda: layout_of("tensor", mesh(expert=2), MLP, X)
        ),
        "layout fully-sharded divides no parameter along data=7; leave the axis out": (
            lambda: layout_of("fully-sharded", mesh(data=7), MLP, X)
        ),
        "layout tensor: 4.W: model=2 does not divide 3 of (3, 12)": (
            lambda: layout_of("tensor", mesh(model=2), MLP, X, [("4.W", ("model", None))])
        ),
        "layout tensor: no parameter of 2 axes is called 'blocks.*'; there is 0.W, 0.b, 2.W, 2.b, 4.W, 4.b": (
            lambda: layout_of("tensor", mesh(model=2), MLP, X, [("blocks.*", ("model", None))])
        ),
    }
)


test_a_batch_that_does_not_divide_is_refused = refusals(
    {
        "batch size is 8, expected a multiple of 3: mesh data=3": {"data": 3, "model": 2},
        "batch size is 8, expected a multiple of 6: mesh data=2,expert=3": {"data": 2, "expert": 3},
        "mesh sequence=3 does not divide the second axis of X, (8, 8)": {"sequence": 3},
    },
    lambda axes: require_divided(mesh(**axes), (IDS, IDS)),
)


@pytest.mark.parametrize("shown", [bpref.mesh_of, bpref.layout_of, bpref.laid_out], ids=lambda f: f.__name__)
def test_the_example_in_the_docstring_runs(shown, standard_promotion):
    given = {"bpref": bpref, "jax": jax, "jnp": jnp}
    example = doctest.DocTestParser().get_doctest(shown.__doc__, given, shown.__name__, None, 0)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
