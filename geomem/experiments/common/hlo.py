"""What the text of a compiled program says about collectives and memory traffic."""

import collections
import math
import re

__all__ = ["collectives", "has_loops", "memory_traffic"]

_COLLECTIVES = re.compile(
    r"= (\(?[^=]*?) (all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)"
    r"(?:-start)?\("
)
_COMMENT = re.compile(r"/\*.*?\*/")  # long tuples are numbered: /*index=5*/
_SHAPE = re.compile(r"\b(?:f|bf|s|u|pred)(\d*)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?(\S+) = (\(.*?\)(?= [a-z])|\S+) ([\w-]+)\(([^)]*)\)")
_FREE = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant")


def collectives(text: str) -> dict[str, dict[str, int]]:
    """Return the number of each collective in a compiled program's text, and their bytes.

    >>> collectives("%x = (f32[2,3]{1,0}, bf16[4]{0}) all-reduce(%a, %b), channel_id=1")
    {'all-reduce': {'count': 1, 'bytes': 32}}
    """
    found: dict[str, dict[str, int]] = {}
    for shapes, name in _COLLECTIVES.findall(_COMMENT.sub("", text)):
        entry = found.setdefault(name, {"count": 0, "bytes": 0})
        entry["count"] += 1
        entry["bytes"] += sum(size for size, _ in _arrays(shapes))
    return found


def has_loops(text: str) -> bool:
    """Return whether a compiled program has loops, whose costs the compilers count once."""
    return " while(" in text


def memory_traffic(text: str) -> int:
    """Return the bytes that a program without loops moves to and from a chip's memory, about.

    Each operation reads and writes its arrays once. A TPU's compiler places arrays in the chip's
    own memory, S(1) in their layout, and moves others there ahead of their use; its count of bytes
    accessed includes all these, but here only those in the large memory count.

    >>> memory_traffic('''
    ... ENTRY %main (a: f32[8]) -> f32[8] {
    ...   %a = f32[8]{0} parameter(0)
    ...   %b = f32[8]{0:S(1)} exponential(%a)
    ...   ROOT %c = f32[8]{0} add(%a, %b)
    ... }''')
    96
    """
    total, shapes = 0, collections.defaultdict(str)
    for line in _COMMENT.sub("", text).partition("\nENTRY")[2].splitlines():
        if not (match := _INSTRUCTION.match(line)):
            continue
        name, shape, operation, operands = match.groups()
        shapes[name] = shape
        if operation in _FREE or operation.endswith("-done"):
            continue
        if operation in ("copy-start", "slice-start"):  # (new, old, ...) and (old, new, ...)
            ends = _arrays(shape)[:2]
            size = min(size for size, _ in ends)
            total += sum(size for _, in_memory in ends if in_memory)
            continue
        read = [shapes[operand] for operand in re.findall(r"%([^,\s]+)", operands)]
        total += sum(size for size, in_memory in _arrays(" ".join([shape, *read])) if in_memory)
    return total


def _arrays(shapes):
    """The bytes of each array of a type, and whether it is in the large memory."""
    return [
        (
            math.prod(map(int, filter(None, sides.split(",")))) * int(bits or 8) // 8,
            "S(1)" not in layout,
        )
        for bits, sides, layout in _SHAPE.findall(shapes)
    ]
