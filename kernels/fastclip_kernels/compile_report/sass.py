"""Counts machine instructions in a cubin's disassembly, and what each asks of the hardware's pipes.

Static counts become dynamic ones through the trip count of the one loop that a kernel may have.
Which opcode runs on which pipe: Nsight Compute's documentation, "Pipelines".
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

_LINE = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);")
_LABEL = re.compile(r"^(\.L_x_\d+):")

_FMA = {"FADD", "FMUL", "FFMA", "IMAD", "HFMA2", "HADD2", "HMUL2"}
_XU = {"MUFU", "I2F", "F2I", "F2F", "I2FP", "POPC", "FLO"}
# Neither arithmetic nor memory: they take an issue slot and no more.
_CONTROL = {
    "BAR", "BRA", "BSSY", "BSYNC", "CALL", "DEPBAR", "EXIT", "FENCE", "LDC", "LDGDEPBAR", "MEMBAR", "NOP",
    "R2UR", "RET", "S2R", "S2UR", "ULDC", "WARPGROUP", "WARPSYNC", "NANOSLEEP", "YIELD", "ELECT", "CCTL",
    "ERRBAR", "ACQBULK", "UCGABAR_WAIT",
}  # fmt: skip
_SHARED = {"LDS", "STS", "LDSM", "STSM"}
_GLOBAL = {"LDG", "STG", "LDGSTS"}
_LOCAL = {"LDL", "STL"}


class Instruction(NamedTuple):
    opcode: str  # with its modifiers, as LDG.E.128
    operands: str
    predicated: bool = False

    @property
    def base(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def modifiers(self) -> list[str]:
        return self.opcode.split(".")[1:]


class Work(NamedTuple):
    """What one warp asks of the pipes; sums add. Lanes are 32 for a warp's instruction."""

    issue: float = 0
    tensor_flops: float = 0
    fma: float = 0  # lanes
    imad: float = 0  # lanes; counted under fma too, whose unit runs them
    alu: float = 0  # lanes
    mufu: float = 0  # lanes
    shared: float = 0  # bytes
    loads: float = 0  # bytes from L2 into registers
    copies: float = 0  # bytes from L2 into shared memory
    stores: float = 0  # bytes

    def plus(self, other: Work, times: float = 1) -> Work:
        return Work(*(a + times * b for a, b in zip(self, other, strict=True)))


class Code(NamedTuple):
    """Of one kernel: per warp, outside of its loop and in one pass through it."""

    counts: Counter[str]  # of opcodes without modifiers, static
    outside: Work
    inside: Work  # zero where there is no loop

    def count(self, *opcodes: str) -> int:
        return sum(self.counts[opcode] for opcode in opcodes)

    def dynamic(self, trips: float) -> Work:
        """The work of one warp. A pipelined loop's first copies stand before it, and as many of the
        loop's own are switched off at its end: bytes are counted in the loop alone, slots in both.
        """
        total = self.outside.plus(self.inside, trips)
        if self.inside.copies:
            before = self.outside.copies
            total = total._replace(copies=total.copies - before, shared=total.shared - before)
        return total


def read(listing: str) -> Code:
    """From `nvdisasm -c`. ValueError for a second loop, whose trip count nobody would know."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _LINE.match(line):
            instructions.append(Instruction(found[2], found[3], bool(found[1])))
    body = _loop(instructions, labels)
    inside, outside = Work(), Work()
    for i, instruction in enumerate(instructions):
        if i in body:
            inside = inside.plus(work_of(instruction))
        else:
            outside = outside.plus(work_of(instruction))
    return Code(Counter(i.base for i in instructions), outside, inside)


def _loop(instructions: list[Instruction], labels: dict[str, int]) -> set[int]:
    """Where the loop's instructions stand. Jumping back is not enough: rare code is put at the end,
    and returns.
    """
    after: list[list[int]] = []
    back = []
    for i, instruction in enumerate(instructions):
        target = re.search(r"\((\.L_x_\d+)\)", instruction.operands)
        leaves = instruction.base in ("BRA", "EXIT", "RET") and not instruction.predicated
        following = [] if leaves or i + 1 == len(instructions) else [i + 1]
        if instruction.base == "BRA" and target:
            following.append(labels[target[1]])
            # a branch to itself ends the listing: padding that is never reached
            if labels[target[1]] < i:
                back.append((labels[target[1]], i))
        after.append(following)
    before: list[list[int]] = [[] for _ in instructions]
    for i, following in enumerate(after):
        for j in following:
            before[j].append(i)
    loops = [
        body
        for first, last in back
        if (body := _reached(first, after, {last}) & _reached(last, before, {first}))
        >= {first, last}
    ]
    if len(loops) > 1:
        raise ValueError(f"{len(loops)} loops in one kernel; at most one can be counted")
    return loops[0] if loops else set()


def _reached(start: int, edges: list[list[int]], stop: set[int]) -> set[int]:
    """From `start` along `edges`, not beyond `stop`."""
    found, todo = {start}, [start]
    while todo:
        node = todo.pop()
        if node not in stop:
            new = set(edges[node]) - found
            found |= new
            todo += new
    return found


def work_of(instruction: Instruction) -> Work:
    base = instruction.base
    work = Work(issue=1)
    if base in ("HMMA", "HGMMA"):
        return _matrix_product(instruction)
    if base in _SHARED:
        return work._replace(shared=32 * _bytes_per_lane(instruction))
    if base in _GLOBAL:
        moved = 32 * _bytes_per_lane(instruction)
        if base == "LDGSTS":
            return work._replace(copies=moved, shared=moved)
        return work._replace(**{"stores" if base == "STG" else "loads": moved})
    if base == "SHFL":
        return work._replace(shared=128)
    if base in _FMA:
        return work._replace(fma=32, imad=32 if base == "IMAD" else 0)
    if base in _XU:
        return work._replace(mufu=32)
    # what is left is the integer and logic unit's; U... run on a unit of their own, once for a warp
    if base in _CONTROL or base in _LOCAL or base.startswith("U"):
        return work
    return work._replace(alu=32)


def _bytes_per_lane(instruction: Instruction) -> int:
    if instruction.base in ("LDSM", "STSM"):  # M88.4: four matrices of 8 x 8 halves
        return 4 * int(instruction.modifiers[-1]) if instruction.modifiers[-1] in "24" else 4
    for modifier in instruction.modifiers:
        if modifier in ("64", "128"):
            return int(modifier) // 8
        if modifier in ("U8", "S8", "U16", "S16"):
            return int(modifier[1:]) // 8
    return 4


def _matrix_product(instruction: Instruction) -> Work:
    shape = instruction.modifiers[0]
    if instruction.base == "HMMA":  # a warp's, from registers
        depth = {"16816": 16, "1688": 8}[shape]
        return Work(issue=1, tensor_flops=2 * 16 * 8 * depth)
    rows, columns, depth = map(int, shape.split("x"))  # four warps', from shared memory
    operands = [part.strip() for part in instruction.operands.split(",")]
    rows_shared = 0 if operands[1].startswith("R") else rows  # gdesc first: both factors are shared
    return Work(
        issue=1,
        tensor_flops=2 * rows * columns * depth / 4,
        shared=2 * depth * (rows_shared + columns) / 4,
    )
