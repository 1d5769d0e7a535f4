"""Frequencies, slopes and buckets of positions: ours and the naive forms beside the numbers of Hugging Face's code.

The numbers are what transformers 5.24.0 prints, in float32:

    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    from transformers.models.t5.modeling_t5 import T5Attention

    def rope(way, dim, base, **more):
        config = LlamaConfig(hidden_size=4 * dim, num_attention_heads=4)
        config.rope_parameters = {"rope_type": way, "rope_theta": base, "factor": 4.0, **more}
        return ROPE_INIT_FUNCTIONS[way](config, "cpu")

    turns = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope("llama3", 128, 5e5, factor=8.0, original_max_position_embeddings=8192, **turns)
    rope("yarn", 64, 1e4, original_max_position_embeddings=4096)
    rope("yarn", 128, 1e6, original_max_position_embeddings=32768)
    rope("linear", 16, 1e4)
    build_alibi_tensor(torch.ones(1, 3), heads, torch.float32)[:, 0, 1]
    T5Attention._relative_position_bucket(torch.tensor(DISTANCES), bidirectional, num_buckets=32, max_distance=128)

    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding, apply_rotary_pos_emb
    parameters = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 2, 3]}
    config = SimpleNamespace(max_position_embeddings=64, head_dim=12, rope_parameters=parameters)
    x = torch.arange(1.0, 13)[None, None, None].expand(1, 1, 3, 12) / 10
    apply_rotary_pos_emb(x, x, *Qwen2VLRotaryEmbedding(config)(x, torch.tensor(PLACES).T[:, None]))[0][0, 0]
"""

import numpy as np
import pytest

import bpref
from bpref.formulas.attention import distances, rotations
from bpref.naive import distances as naive_distances
from bpref.naive import rotation as naive_rotation

ROPE = {
    "llama3": (
        (128, 500000.0, bpref.Stretch("llama3", 8.0, 8192)),
        1.0,
        {
            0: 1.0,
            1: 0.81461722,
            27: 0.0039422759,
            28: 0.0032114461,
            29: 0.0021665706,
            30: 0.0013718937,
            32: 0.00052484602,
        }
        | {34: 0.00017850779, 35: 9.5562122e-05, 36: 7.7846555e-05, 63: 3.0689259e-07},
    ),
    "yarn": (
        (64, 10000.0, bpref.Stretch("yarn", 4.0, 4096)),
        1.138629436111989,
        {0: 1.0, 1: 0.7498942, 10: 0.056234129, 11: 0.039736785, 12: 0.027973996, 17: 0.0044705234, 22: 0.0005471629}
        | {23: 0.00033338036, 24: 0.00025000001, 31: 3.3338038e-05},
    ),
    "yarn of long contexts": (
        (128, 1000000.0, bpref.Stretch("yarn", 4.0, 32768)),
        1.138629436111989,
        {0: 1.0, 23: 0.006978306, 24: 0.0053753215, 30: 0.001064361, 39: 6.4903943e-05, 40: 4.4456985e-05}
        | {63: 3.1023444e-07},
    ),
    "linear": (
        (16, 10000.0, bpref.Stretch("linear", 4.0)),
        1.0,
        {0: 0.25, 1: 0.079056941, 4: 0.0024999999, 7: 7.9056947e-05},
    ),
}

DISTANCES = [-200, -128, -127, -100, -64, -40, -20, -16, -15, -9, -8, -7, -1, 0]
DISTANCES += [1, 7, 8, 9, 15, 16, 20, 40, 64, 100, 127, 128, 200]

BUCKETS = {
    True: [15, 15, 15, 15, 14, 12, 10, 10, 9, 8, 8, 7, 1, 0, 17, 23, 24, 24, 25, 26, 26, 28, 30, 31, 31, 31, 31],
    False: [31, 31, 31, 30, 26, 23, 17, 16, 15, 9, 8, 7, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
}

SLOPES = {
    8: [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625],
    12: [*(2.0**-n for n in range(1, 9)), 0.70710677, 0.35355338, 0.17677668, 0.088388339],
    6: [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125],
}


@pytest.mark.parametrize("form", [rotations, naive_rotation], ids=["ours", "naive"])
@pytest.mark.parametrize(("given", "size", "expected"), ROPE.values(), ids=ROPE)
def test_frequencies_and_magnitudes(form, given, size, expected):
    came = form.frequencies(*given)
    np.testing.assert_allclose([came[pair] for pair in expected], list(expected.values()), rtol=1e-6)
    assert form.magnitude(given[2]) == pytest.approx(size, rel=1e-12)


@pytest.mark.parametrize("form", [rotations, naive_rotation], ids=["ours", "naive"])
def test_a_larger_base_divides_the_slowest_pair_alone_by_the_factor(form):
    """NTK-aware scaling, which has no function there: pairs turn by 1 and by 0.001 / 4."""
    came = form.frequencies(8, 10000.0, bpref.Stretch("ntk", 4.0))
    np.testing.assert_allclose(came, 10.0 ** -np.arange(4) / 4.0 ** (np.arange(4) / 3))
    np.testing.assert_allclose(form.frequencies(8, 10000.0, None), [1, 0.1, 0.01, 0.001])


@pytest.mark.parametrize("both_ways", [True, False])
def test_buckets(both_ways):
    assert distances.buckets(np.array(DISTANCES), 32, 128, both_ways).tolist() == BUCKETS[both_ways]
    assert [naive_distances.bucket(d, 32, 128, both_ways) for d in DISTANCES] == BUCKETS[both_ways]


@pytest.mark.parametrize("heads", SLOPES)
def test_slopes(heads):
    np.testing.assert_allclose(distances.slopes(heads), SLOPES[heads], rtol=1e-6)
    np.testing.assert_allclose([naive_distances.slope(n, heads) for n in range(heads)], SLOPES[heads], rtol=1e-6)


PLACES = [[0, 0, 0], [5, 6, 9], [5, 8, 7]]
"""Of a token of text and two of an image: time, row, column."""
QWEN2_VL = [
    [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2],
    [0.69961, -0.71434, 0.04102, 0.30850, 0.47858, 0.59498, 0.10267, 0.41197, 0.94780, 1.03190, 1.10949, 1.20250],
    [0.69961, -0.82112, -0.04701, 0.32908, 0.48335, 0.59610, 0.10267, 0.07594, 0.94752, 1.02553, 1.10742, 1.20194],
]  # fmt: skip


def test_three_sections_turn_features_as_qwen2_vl_does_and_the_backward_turns_them_back():
    x = np.tile(np.arange(1, 13, dtype=np.float32) / 10, (3, 1, 1))
    layer = bpref.axial_rotary_embedding((1, 2, 3))
    y, cache = layer.forward((), (x, np.array(PLACES)))
    np.testing.assert_allclose(y[:, 0], QWEN2_VL, atol=1e-5)
    np.testing.assert_allclose(layer.backward((), cache, np.array(QWEN2_VL, np.float32)[:, None])[1][0], x, atol=1e-5)
