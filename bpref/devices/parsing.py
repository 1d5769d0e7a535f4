"""The text of a compiled program, optimised HLO, as computations and their operations, and how often a loop runs."""

import math
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

_ARRAY = re.compile(r"([a-z]+[0-9a-z]*)\[([0-9,<=]*)\](\{[^}]*\})?")
_OPERATION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


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


def parsed(text: str) -> tuple[dict[str, Computation], str]:
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


def trips(computations: Mapping[str, Computation], within: Computation, loop: Operation) -> int | None:
    """How often a loop runs: as the compiler says, or until its counter reaches a constant."""
    if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(found.group(1))
    named = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", loop.attributes))
    condition, body = (computations[named[k]] for k in ("condition", "body"))
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
