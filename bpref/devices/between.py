"""What devices send each other in a compiled program: which collectives it runs, how often, and how many bytes.

Bytes are those that one device sends, by the algorithms that move the fewest, rings: with n devices in a group, what a
device holds is m bytes before, and it sends

    all-gather (n - 1) m     reduce-scatter, all-to-all (n - 1) / n m     all-reduce 2 (n - 1) / n m     permute m
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from bpref.devices.parsing import Computation, Operation, bytes_of, trips

SENT = {
    "all-gather": lambda n: n - 1,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-broadcast": lambda n: 1,
    "collective-permute": lambda n: 1,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
}
"""By collective, `(n) -> ` how many times what it holds a device sends."""


class Collective(NamedTuple):
    """One, what it is by name, how often it is run, and the bytes that a device sends each time."""

    name: str
    kind: str
    times: int
    bytes: int


def collectives_of(computations: Mapping[str, Computation], entry: str, devices: int) -> list[Collective]:
    """Those that a program runs, for so many devices.

    A TPU's compiler takes one apart into steps, which go along with other work, in loops too; they have one channel.
    All those that are written in `jax.shard_map` have one too; there, steps are of one chain, and of one line of code.
    """
    by_channel: dict[str, Collective] = {}
    for collective in _found(computations, entry, devices):
        known = by_channel.setdefault(collective.name, collective)
        if collective.times < known.times:
            by_channel[collective.name] = collective
    return list(by_channel.values())


def count(collectives: list[Collective]) -> Counter[str]:
    """How many of each kind are run."""
    counts: Counter[str] = Counter()
    for collective in collectives:
        counts[collective.kind] += collective.times
    return counts


def _found(computations: Mapping[str, Computation], name: str, devices: int) -> Iterator[Collective]:
    within = computations[name]
    for o in within.by_name.values():
        if (kind := o.opcode.removesuffix("-start")) in SENT:
            held = sum(bytes_of(within.by_name[operand].shape, everywhere=True) for operand in o.operands)
            sent = round(held * SENT[kind](_group(o, devices)))
            yield Collective(_identity(o) or f"{name}.{o.name}", kind, 1, sent)
        elif o.opcode == "while":
            body = re.search(r"body=%?([\w.\-]+)", o.attributes)
            turns = trips(computations, within, o) or 1
            for c in _found(computations, body.group(1) if body else "", devices):
                yield c._replace(times=turns * c.times)
        elif o.opcode == "conditional":
            branches = [list(_found(computations, branch, devices)) for branch in o.called]
            yield from max(branches, key=lambda branch: sum(c.times * c.bytes for c in branch))
        else:
            for called in o.called:
                yield from _found(computations, called, devices)


def _identity(o: Operation) -> str:
    """What the steps have in common that a collective was taken apart into; empty where it cannot have been."""
    if "/shard_map/" not in o.attributes:
        return "".join(re.findall(r"channel_id=\d+", o.attributes))
    chain = re.findall(r'chain_id="\d+"', o.attributes)
    return "".join([*chain, *re.findall(r'op_name="[^"]*"|stack_frame_id=\d+', o.attributes)]) if chain else ""


def _group(o: Operation, devices: int) -> int:
    """How many devices take part in one: `{{0,1},{2,3}}`, `[2,4]<=[8]`, or the axes that are named of a mesh."""
    found = re.search(r"replica_groups=(\{\{[\d,]*|\[\d+,\d+\]|mesh\[[^\]]*\] ?\{[^}]*\})", o.attributes)
    if found is None:
        return devices
    text = found.group(1)
    if text.startswith("{{"):
        return text.count(",") + 1
    if text.startswith("["):
        return int(text[1:-1].split(",")[1])
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", text))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'(?!=)", text))
