"""What a compiled program does with memory and between devices, read off its text, as the compiler has scheduled it.

An operation reads its operands and writes its outputs. A fusion is one operation, which reads no more of an operand
than the slices or rows that it takes, and writes into what it is given where its last step is an update in place. What
stays in a core's own memory (VMEM, SMEM: another memory space than that of the device) is not counted. A loop's body
counts as often as it runs, where that is known; of branches the one that does most.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from bpref.devices.between import collectives_of, count
from bpref.devices.parsing import Computation, Operation, arrays_in, bytes_of, parsed, trips

FREE = frozenset(
    {
        "add-dependency", "after-all", "async-done", "async-update", "bitcast", "constant", "get-tuple-element",
        "opt-barrier", "parameter", "partition-id", "replica-id", "tuple",
    }
)  # fmt: skip
"""Operations that move nothing."""

SEEN_THROUGH = frozenset({"bitcast", "get-tuple-element", "reshape"})


class Traffic(NamedTuple):
    """What a program moves.

    Attributes:
      bytes: read from and written to the device's memory.
      cycles: what the compiler estimates that the operations take, one after the other; 0 where it says nothing.
      loops_once: loops counted once, since how often they run is not known.
      collectives: how many of each operation between devices are run.
      sent: bytes that a device sends to others in them.
    """

    bytes: int
    cycles: int
    loops_once: int
    collectives: Mapping[str, int] = {}
    sent: int = 0

    def times(self, n: int) -> "Traffic":
        return Traffic(n * self.bytes, n * self.cycles, self.loops_once)

    def plus(self, other: "Traffic") -> "Traffic":
        totals = self.bytes + other.bytes, self.cycles + other.cycles
        return Traffic(*totals, self.loops_once + other.loops_once)


NOTHING = Traffic(0, 0, 0)


def traffic(text: str) -> Traffic:
    """Of the program whose optimised HLO, as `compiled.as_text()` gives it, is the text."""
    computations, entry = parsed(text)
    partitions = re.search(r"num_partitions=(\d+)", text)
    collectives = collectives_of(computations, entry, int(partitions.group(1)) if partitions else 1)
    sent = sum(c.times * c.bytes for c in collectives)
    return _Reading(computations).of(entry)._replace(collectives=count(collectives), sent=sent)


class _Reading:
    """Goes through a program from its entry."""

    def __init__(self, computations: dict[str, Computation]):
        self.computations = computations
        self.known: dict[str, Traffic] = {}

    def of(self, name: str) -> Traffic:
        """Of one run of a computation."""
        if name not in self.known:
            computation, total = self.computations[name], NOTHING
            for operation in computation.by_name.values():
                total = total.plus(self.of_operation(computation, operation))
            self.known[name] = total
        return self.known[name]

    def of_operation(self, within: Computation, o: Operation) -> Traffic:
        if o.opcode == "while":
            body = re.search(r"body=%?([\w.\-]+)", o.attributes)
            turns = trips(self.computations, within, o)
            return (
                self.of(body.group(1) if body else "")
                .times(turns or 1)
                .plus(NOTHING._replace(loops_once=turns is None))
            )
        if o.opcode == "conditional":
            return max(map(self.of, o.called), key=lambda t: (t.bytes, t.cycles))
        if o.opcode in ("call", "async-start"):
            return self.of(o.called[0])._replace(cycles=self.of(o.called[0]).cycles + o.cycles)
        if o.opcode in FREE or 'custom_call_target="AllocateBuffer"' in o.attributes:
            return NOTHING
        return Traffic(self.read(within, o) + self.written(within, o), o.cycles, 0)

    def read(self, within: Computation, o: Operation) -> int:
        if o.opcode.endswith("-done"):
            return 0
        taken: dict[str, float] = defaultdict(float)
        for i, name in enumerate(o.operands):
            taken[name] += self.taken(o, i)
        return sum(int(min(bytes_of(within.by_name[name].shape), n)) for name, n in taken.items())

    def taken(self, o: Operation, i: int) -> int | float:
        """How much of its i-th operand an operation takes."""
        match o.opcode:
            case "dynamic-slice" | "slice" | "gather" if i == 0:
                return bytes_of(o.shape, everywhere=True)
            case "slice-start" | "dynamic-slice-start" if (
                i == 0
            ):  # gives its operands, its output, and what it waits by
                return bytes_of(list(arrays_in(o.shape))[-2], everywhere=True)
            case "dynamic-update-slice" | "scatter" if i == 0:
                return 0
            case "fusion":
                inner = self.computations[o.called[0]]
                return self.used(inner, inner.parameters[i].name)
        return math.inf

    def used(self, within: Computation, name: str) -> int | float:
        """How much of a value is taken by all that use it inside of a fusion; all of it where it is what comes out."""
        if name == within.root.name:
            return math.inf
        return sum(
            self.used(within, user.name) if user.opcode in SEEN_THROUGH else self.taken(user, user.operands.index(name))
            for user in within.users[name]
        )

    def written(self, within: Computation, o: Operation) -> int:
        if o.opcode.endswith("-start"):
            return 0
        whole = bytes_of(o.shape)
        return min(whole, self.put(within, o)) if whole else 0

    def put(self, within: Computation, o: Operation) -> int:
        """How much an operation writes, where it may write into its operand."""
        operands = [within.by_name[name] for name in o.operands if name in within.by_name]
        match o.opcode:
            case "dynamic-update-slice":
                return bytes_of(operands[1].shape, everywhere=True)
            case "scatter":
                return sum(bytes_of(v.shape, everywhere=True) for v in operands[len(operands) // 2 + 1 :])
            case "fusion":
                inner = self.computations[o.called[0]]
                return self.put(inner, inner.root)
            case "tuple":
                return sum(self.put(within, v) for v in operands)
            case "bitcast" if operands:
                return self.put(within, operands[0])
        return bytes_of(o.shape, everywhere=True)
