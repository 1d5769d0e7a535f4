"""What a compiled program does with memory and between devices, read off its text, as the compiler has scheduled it.

An operation reads its operands and writes its outputs. A fusion is one operation, which reads no more of an operand
than the slices or rows that it takes, and writes into what it is given where its last step is an update in place. What
stays in a core's own memory (VMEM, SMEM: another memory space than that of the device) is not counted. A loop's body
counts as often as it runs, where that is known; of branches the one that does most.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

COLLECTIVES = frozenset(
    {
        "all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute", "ragged-all-to-all",
        "reduce-scatter",
    }
)  # fmt: skip

FREE = frozenset(
    {
        "add-dependency", "after-all", "async-done", "async-update", "bitcast", "constant", "get-tuple-element",
        "opt-barrier", "parameter", "partition-id", "replica-id", "tuple",
    }
)  # fmt: skip
"""Operations that move nothing."""

SEEN_THROUGH = frozenset({"bitcast", "get-tuple-element", "reshape"})

_ARRAY = re.compile(r"([a-z]+[0-9a-z]*)\[([0-9,<=]*)\](\{[^}]*\})?")
_OPERATION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Traffic(NamedTuple):
    """What a program moves.

    Attributes:
      bytes: read from and written to the device's memory.
      cycles: what the compiler estimates that the operations take, one after the other; 0 where it says nothing.
      collectives: how many of each operation between devices are run.
      loops_once: loops counted once, since how often they run is not known.
    """

    bytes: int
    cycles: int
    collectives: Counter[str]
    loops_once: int

    def times(self, n: int) -> "Traffic":
        collectives = Counter({k: n * v for k, v in self.collectives.items()})
        return Traffic(n * self.bytes, n * self.cycles, collectives, self.loops_once)

    def plus(self, other: "Traffic") -> "Traffic":
        collectives = self.collectives + other.collectives
        totals = self.bytes + other.bytes, self.cycles + other.cycles
        return Traffic(*totals, collectives, self.loops_once + other.loops_once)


NOTHING = Traffic(0, 0, Counter(), 0)


class Operation(NamedTuple):
    """A line of the text: its name, the shape of what it gives, what it does, to what, and everything after that."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def called(self) -> list[str]:
        branches = _BRANCHES.search(self.attributes)
        named = branches.group(1).replace("%", "").split(", ") if branches else []
        return named + _CALLED.findall(self.attributes)

    @property
    def cycles(self) -> int:
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found.group(1)) if found else 0


class Computation:
    """The operations of one function of the program, by name and in order."""

    def __init__(self, operations: list[Operation]):
        self.by_name = {o.name: o for o in operations}
        self.root = next(o for o in operations if o.is_root)

    @cached_property
    def users(self) -> dict[str, list[Operation]]:
        users: dict[str, list[Operation]] = {name: [] for name in self.by_name}
        for o in self.by_name.values():
            for name in users.keys() & set(o.operands):
                users[name].append(o)
        return users

    @cached_property
    def parameters(self) -> dict[int, Operation]:
        return {int(o.operands[0]): o for o in self.by_name.values() if o.opcode == "parameter"}


def traffic(text: str) -> Traffic:
    """Of the program whose optimised HLO, as `compiled.as_text()` gives it, is the text."""
    computations, entry = _parsed(text)
    return _Reading(computations).of(entry)


def arrays_in(shape: str) -> Iterator[str]:
    """The text of each array in that of a shape."""
    return (found.group() for found in _ARRAY.finditer(shape))


def bytes_of(shape: str, everywhere: bool = False) -> int:
    """Of the arrays in a shape's text, those in the device's memory alone unless `everywhere`."""
    total = 0
    for kind, axes, layout in _ARRAY.findall(shape):
        if not everywhere and re.search(r"S\([1-9]", layout):
            continue
        bits = re.search(r"\d+", kind.replace("pred", "8"))
        total += math.prod(int(n.strip("<=")) for n in axes.split(",") if n) * int(bits.group() if bits else 0) // 8
    return total


def _parsed(text: str) -> tuple[dict[str, Computation], str]:
    computations, entry, name, lines = {}, "", "", []
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if line.startswith("}"):
            computations[name] = Computation(lines)
        elif line.endswith("{") and not line.startswith(" "):
            head = line.split()
            name = head[head[0] == "ENTRY"].lstrip("%").split("(")[0]
            entry, lines = name if head[0] == "ENTRY" else entry, []
        elif found := _OPERATION.match(line):
            lines.append(_operation(*found.groups()))
    return computations, entry


def _operation(root: str | None, name: str, rest: str) -> Operation:
    """`SHAPE OPCODE(OPERANDS), ATTRIBUTES`; of a parameter the operand is its number, of a constant its value."""
    shape, rest = _up_to_close(rest) if rest.startswith("(") else rest.split(" ", 1)
    opcode, rest = rest.strip().split("(", 1)
    inside, attributes = _up_to_close("(" + rest)
    operands = tuple(o.split()[-1].lstrip("%") for o in _split(inside[1:-1]) if o.strip())
    return Operation(name, shape, opcode, operands, attributes, root is not None)


def _up_to_close(text: str) -> tuple[str, str]:
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return text[: i + 1], text[i + 1 :]
    return text, ""


def _split(operands: str) -> Iterator[str]:
    """At commas outside of brackets: operands may stand with their shapes."""
    depth, start = 0, 0
    for i, c in enumerate(operands):
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            yield operands[start:i]
            start = i + 1
    yield operands[start:]


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
            trips = self.trips(within, o)
            return (
                self.of(body.group(1) if body else "")
                .times(trips or 1)
                .plus(NOTHING._replace(loops_once=trips is None))
            )
        if o.opcode == "conditional":
            return max(map(self.of, o.called), key=lambda t: (t.bytes, t.cycles))
        if o.opcode in ("call", "async-start"):
            return self.of(o.called[0])._replace(cycles=self.of(o.called[0]).cycles + o.cycles)
        if o.opcode in FREE or 'custom_call_target="AllocateBuffer"' in o.attributes:
            return NOTHING
        inside = [c for name in o.called for c in self.collectives_in(name)]
        base = o.opcode.removesuffix("-start")
        collectives = Counter(inside + ([base] if base in COLLECTIVES else []))
        return Traffic(self.read(within, o) + self.written(within, o), o.cycles, collectives, 0)

    def collectives_in(self, name: str) -> Iterator[str]:
        """Those inside of a fusion."""
        for o in self.computations[name].by_name.values():
            if o.opcode in COLLECTIVES:
                yield o.opcode
            for called in o.called:
                yield from self.collectives_in(called)

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

    def trips(self, within: Computation, loop: Operation) -> int | None:
        """How often a loop runs: as the compiler says, or until its counter reaches a constant."""
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(found.group(1))
        named = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", loop.attributes))
        condition, body = (self.computations[named[k]] for k in ("condition", "body"))
        test = condition.root
        if test.opcode != "compare" or "direction=LT" not in test.attributes:
            return None
        counter, bound = (condition.by_name[name] for name in test.operands)
        index = _index(counter)
        if index is None:
            return None
        given = within.by_name[loop.operands[0]]
        limit = _constant(condition, bound)
        if limit is None and (place := _index(bound)) is not None:
            limit = _constant(within, _element(within, given, place))
        start = _constant(within, _element(within, given, index))
        step = _step(body, _element(body, body.root, index), index)
        if limit is None or start is None or not step:
            return None
        return max(0, -(-(limit - start) // step))


def _index(o: Operation) -> int | None:
    """Which element of the loop's state an operation is."""
    found = re.search(r"index=(\d+)", o.attributes) if o.opcode == "get-tuple-element" else None
    return int(found.group(1)) if found else None


def _element(within: Computation, state: Operation, index: int) -> Operation | None:
    return within.by_name[state.operands[index]] if state.opcode == "tuple" else None


def _constant(within: Computation, o: Operation | None) -> int | None:
    """The integer that an operation, or what it copies, is."""
    while o is not None and o.opcode in ("copy", "bitcast", "convert"):
        o = within.by_name[o.operands[0]]
    is_known = o is not None and o.opcode == "constant" and re.fullmatch(r"-?\d+", o.operands[0])
    return int(o.operands[0]) if is_known and o else None


def _step(body: Computation, o: Operation | None, index: int) -> int | None:
    """What is added to the counter in one turn."""
    if o is None or o.opcode != "add":
        return None
    values = [body.by_name[name] for name in o.operands]
    return next((c for v in values if (c := _constant(body, v)) is not None), None)
