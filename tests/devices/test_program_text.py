"""What is read off a program's text, where it can be counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from bpref.devices.program_text import bytes_of, traffic

S = jax.ShapeDtypeStruct
X = S((64, 32), jnp.float32)
N = 64 * 32 * 4
"""Bytes of X."""


def of(f, *args):
    return traffic(jax.jit(f).lower(*args).compile().as_text())


def test_of_a_shape_the_arrays_in_the_devices_memory_count():
    assert bytes_of("f32[16,128]{1,0:T(8,128)}") == 8192
    assert bytes_of("(bf16[3,5]{1,0}, pred[7], s4[6]{0}, c64[2], token[], f8e4m3fn[9])") == 30 + 7 + 3 + 16 + 9
    assert bytes_of("f32[16,128]{1,0:T(8,128)S(1)}") == 0
    assert bytes_of("f32[16,128]{1,0:T(8,128)S(1)}", everywhere=True) == 8192


@pytest.mark.quick
def test_a_fusion_reads_each_operand_once_and_writes_once():
    assert of(lambda x: jnp.tanh(x) * x + 1, X).bytes == 2 * N
    assert of(lambda x, y: x * y, X, X).bytes == 3 * N


def test_of_a_slice_what_is_taken_counts():
    seen = of(lambda x, i: jnp.sin(jax.lax.dynamic_slice_in_dim(x, i, 2)), X, S((), jnp.int32)).bytes
    assert 2 * N / 32 <= seen <= 2 * N / 32 + 16


def test_a_loop_counts_as_often_as_it_runs():
    def steps(x, n):
        return jax.lax.scan(lambda c, row: (jnp.sin(c + row), c), x[0], jnp.broadcast_to(x[0], (n, 32)) * x[0, 0])

    once, more, most = (of(lambda x, n=n: steps(x, n), X) for n in (1000, 2000, 3000))
    assert once.loops_once == 0
    assert most.bytes - more.bytes == more.bytes - once.bytes > 1000 * 3 * 32 * 4


def test_a_loop_of_which_nobody_knows_how_often_it_runs_is_said():
    seen = of(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + jnp.sin(x), x), X)
    assert seen.loops_once == 1
    assert seen.bytes >= 2 * N


APART = """HloModule jit_f, is_scheduled=true

ENTRY %main (x: f32[64,8]) -> f32[16,8] {
  %x = f32[64,8]{1,0} parameter(0)
  %begun = ((f32[64,8]{1,0}), f32[16,8]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:16], [0:8]}
  %taken = f32[16,8]{1,0:S(1)} slice-done(%begun)
  ROOT %y = f32[16,8]{1,0} copy(%taken)
}
"""


def test_of_a_slice_that_is_fetched_ahead_what_is_taken_counts():
    assert traffic(APART).bytes == 2 * 16 * 8 * 4, "read from memory, and the copy of it written"


LOOP = """HloModule jit_f, is_scheduled=true

%cond (s: (s32[], f32[8], s32[])) -> pred[] {
  %s = (s32[]{:T(128)}, f32[8]{0}, /*index=2*/s32[]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] get-tuple-element(%s), index=2
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (s.1: (s32[], f32[8], s32[])) -> (s32[], f32[8], s32[]) {
  %s.1 = (s32[]{:T(128)}, f32[8]{0}, /*index=2*/s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%i.1, %two), backend_config={"estimated_cycles":"1"}
  %x.1 = f32[8]{0} get-tuple-element(%s.1), index=1
  %n.1 = s32[] get-tuple-element(%s.1), index=2
  %sum = f32[8]{0} all-reduce(%x.1), to_apply=%add, backend_config={"estimated_cycles":"10"}
  ROOT %out = (s32[], f32[8]{0}, s32[]) tuple(%next, %sum, %n.1)
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %start = s32[] copy(%zero)
  %end = s32[] constant(9)
  %given = (s32[], f32[8]{0}, s32[]) tuple(%start, %x, %end)
  %loop = (s32[], f32[8]{0}, s32[]) while(%given), condition=%cond, body=%body
  ROOT %y = f32[8]{0} get-tuple-element(%loop), index=1
}
"""


def test_a_bound_that_the_loop_carries_its_step_and_what_is_sent_in_it_are_read():
    seen = traffic(LOOP)
    assert seen.collectives == {"all-reduce": 5}
    assert seen.cycles == 5 * 11
    assert seen.bytes == 5 * (2 * 32 + 4 + 4 + 4) + 8, "the sum of 8 numbers and of the counter; a copy of zero before"
    assert seen.loops_once == 0
    assert traffic(LOOP.replace("direction=LT", "direction=NE")).loops_once == 1
