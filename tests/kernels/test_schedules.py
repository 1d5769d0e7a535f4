"""What the benchmark of kernels reads of a compiler's schedule."""

import json

from benchmarks.bench_kernels import CASES, Attention, CrossEntropy, Gpt, Taken, bundles
from benchmarks.in_readme import KERNELS
from bpref.models.gpt_config import GptConfig

SCHEDULE = """
= control target key start
   0x1   :  { %s0 = smov 0 }
   0x2 LB: > { %s1 = sadd.s32 1, %s0 }
   0x3   : >> { %v2 = vadd.f32 %v1, %v1 }
   0x4   : >> { %v3 = vld [vmem:[%s1]] }
     // an instruction's second line
   0x5 PF: > { %s2 = smov %s1 }
   0x6   :  {}
"""


def test_instructions_are_counted_by_the_loop_that_they_are_in(tmp_path):
    path = tmp_path / "attention-final_bundles.txt"
    path.write_text(SCHEDULE)
    assert bundles(path) == (2, 2)


def test_runs_and_turns_are_those_of_a_causal_attention():
    work = Attention(2, 1000, 4, 2, 64, 256)
    assert work.counts("attention_backward") == (2 * 4 * 4, 2 * 4 * 10)
    assert work.counts("flash_mha_bwd_dq") == (2 * 4 * 10, 0)
    assert CrossEntropy(1024, 256, 32000, 1024).counts("cross_entropy") == (2 * 32, 0)
    gpt = Gpt(GptConfig(8192, 256, 3, 4, 680, 256), 2, 256)
    assert gpt.counts("attention_backward") == (3 * 2 * 4 * 2, 3 * 2 * 4 * 3)
    assert gpt.counts("cross_entropy_rows") == (1 * 8, 0)


def test_kernels_are_taken_of_themselves_since_they_take_fewer_cycles():
    rows = json.loads(KERNELS.read_text())
    assert list(rows) == list(CASES)
    share = {name: Taken(**of["pallas"]).cycles / Taken(**of["xla"]).cycles for name, of in rows.items()}
    bounds = {Attention: (0.1, 0.2), CrossEntropy: (0.3, 0.8), Gpt: (0.8, 0.95)}
    for name, (work, _) in CASES.items():
        low, high = bounds[type(work)]
        assert low <= share[name] <= high, name
