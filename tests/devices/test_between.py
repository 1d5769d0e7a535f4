"""Collectives in the text of a program: how many bytes a device sends in each, and that one in steps is one."""

import pytest

from bpref.devices.between import collectives_of, count
from bpref.devices.parsing import parsed

ONE = """
HloModule one, num_partitions=8

ENTRY %main (x: f32[16]) -> f32[16] {
  %x = f32[16]{0} parameter(0)
  ROOT %y = OUT KIND(%x), channel_id=1, replica_groups=GROUPS
}
"""


@pytest.mark.parametrize(
    ("kind", "groups", "sent"),
    [
        ("all-reduce", "{{0,1,2,3},{4,5,6,7}}", 2 * 3 / 4 * 64),
        ("all-reduce-start", "[1,8]<=[8]", 2 * 7 / 8 * 64),
        ("all-gather", "mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", 3 * 64),
        ("all-gather", "mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", 7 * 64),
        ("reduce-scatter", "[4,2]<=[8]", 1 / 2 * 64),
        ("all-to-all", "{}", 7 / 8 * 64),
        ("collective-permute", "{}", 64),
    ],
)
def test_a_device_sends_what_a_ring_needs(kind, groups, sent):
    text = ONE.replace("KIND", kind).replace("GROUPS", groups).replace("OUT", "f32[16]{0}")
    (collective,) = collectives_of(*parsed(text), 8)
    assert (collective.kind, collective.bytes) == (kind.removesuffix("-start"), sent)


def test_steps_of_one_collective_in_several_fusions_and_a_loop_are_one():
    text = """
%step (p: f32[2]) -> f32[16] {
  %p = f32[2]{0} parameter(0)
  ROOT %g = f32[16]{0} all-gather(%p), channel_id=7, replica_groups=[1,8]<=[8]
}

%turn (t: (s32[], f32[2])) -> (s32[], f32[2]) {
  %t = (s32[], f32[2]{0}) parameter(0)
  %v = f32[2]{0} get-tuple-element(%t), index=1
  %more = f32[16]{0} fusion(%v), kind=kCustom, calls=%step
  %i = s32[] get-tuple-element(%t), index=0
  ROOT %next = (s32[], f32[2]{0}) tuple(%i, %v)
}

%goes_on (t: (s32[], f32[2])) -> pred[] {
  %t = (s32[], f32[2]{0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (x: f32[2]) -> f32[16] {
  %x = f32[2]{0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[2]{0}) tuple(%zero, %x)
  %l = (s32[], f32[2]{0}) while(%start), condition=%goes_on, body=%turn, trips={"known_trip_count":{"n":"3"}}
  ROOT %y = f32[16]{0} fusion(%x), kind=kCustom, calls=%step
}
"""
    assert count(collectives_of(*parsed(text), 8)) == {"all-gather": 1}
    apart = text.replace("calls=%step\n  %i", "calls=%other\n  %i") + text.split("%turn")[0].replace("%step", "%other")
    assert count(collectives_of(*parsed(apart.replace("=7", "=8", 1)), 8)) == {"all-gather": 4}


WRITTEN = """
ENTRY %main (x: f32[16]) -> f32[16] {
  %x = f32[16]{0} parameter(0)
  %k = f32[16]{0} collective-permute(%x), channel_id=1, CHAIN, METADATA
  ROOT %v = f32[16]{0} collective-permute(%k), channel_id=1, CHAIN, METADATA
}
"""


@pytest.mark.parametrize(("chain", "times"), [("", 2), ('frontend_attributes={chain_id="0"}', 1)])
def test_those_written_in_shard_map_have_one_channel_and_are_one_where_they_are_of_one_chain(chain, times):
    metadata = 'metadata={op_name="jit(f)/shard_map/ppermute" stack_frame_id=4}'
    found = collectives_of(*parsed(WRITTEN.replace("CHAIN", chain).replace("METADATA", metadata)), 8)
    assert count(found) == {"collective-permute": times}
