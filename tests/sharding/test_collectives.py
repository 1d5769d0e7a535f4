"""What goes between the chips of a TPU that is not there, by hand and by autodiff of the same laid-out forward."""

import jax
import jax.numpy as jnp
import pytest

from bpref.devices.divided import objective_on_mesh
from bpref.models.gpt import gpt_objective
from bpref.models.gpt_config import GptConfig
from bpref.naming import flat_names
from tests.conftest import needs_libtpu

CHIPS, BLOCKS = 16, 2
J = gpt_objective(GptConfig(vocabulary=2048, width=64, depth=BLOCKS, heads=1, hidden=64, context=32))
IDS = jax.ShapeDtypeStruct((CHIPS, 32), jnp.int32)
BYTES = {array: 4 * v.size for array, v in flat_names(jax.eval_shape(J.init, jax.random.key(0), (IDS, IDS))).items()}


@pytest.fixture(scope="module")
def on_chips():
    return {
        layout: objective_on_mesh(J, (IDS, IDS), "tpu-v5e:4x4", f"data={CHIPS}", layout)
        for layout in ("replicated", "fully-sharded")
    }


@needs_libtpu
def test_data_parallel_gradients_are_summed_once_a_block_and_the_rest_at_the_end(on_chips):
    """Those of the head too, though it is made by blocks of classes."""
    row = on_chips["replicated"]
    assert row.hand.collectives == row.autodiff.collectives == {"all-reduce": BLOCKS + 1}
    J_itself = 4
    assert row.hand.sent == pytest.approx(2 * 15 / 16 * (sum(BYTES.values()) + J_itself))
    assert row.hand.sent <= row.autodiff.sent


@needs_libtpu
def test_fully_sharded_no_more_is_sent_than_the_formula_needs_nor_than_by_autodiff(on_chips):
    """A gather for each use, forward and backward in the blocks, and a ring that leaves each chip its part of a sum."""
    row = on_chips["fully-sharded"]
    gathered = sum(n * (2 if ".blocks." in array else 1) for array, n in BYTES.items())
    assert row.hand.sent < 1.1 * 15 / 16 * (gathered + sum(BYTES.values()))
    assert row.hand.sent <= row.autodiff.sent
    assert row.hand.temp <= row.autodiff.temp
