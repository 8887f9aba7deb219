"""Distinct modules of any size, generated as bytes: functions of the ABI `direct` with much code.

Their code is a mix of arithmetic, loads, stores and branches with varying constants, in functions of about a kilobyte,
as a compiler emits for a large program. A call runs one function in every `STRIDE`, so that its code is read from all
over the module, and answers with the module's number.
"""

import random
from collections.abc import Iterable

FUNCTION_BYTES = 1024
STRIDE = 32
_I32, _I64 = 0x7F, 0x7E
_ANSWER, _ROOM, _PAGES = 49_152, 65_536, 4
_STATUS, _HEAD = (200).to_bytes(4, "little"), b"content-type: text/plain\n"
_HEADER = b"\0asm\x01\0\0\0"
_ARITHMETIC = (0x6A, 0x6B, 0x6C, 0x71, 0x72, 0x73, 0x77)
"""The opcodes of i32.add, sub, mul, and, or, xor and rotl."""


def make(number: int, size: int) -> bytes:
    """Return a module with about `size` bytes of code; the same arguments make the same module."""
    seeded = random.Random(number)
    fillers = [_filler(seeded) for _ in range(max(1, size // FUNCTION_BYTES))]
    count = len(fillers)
    allocate = b"\x00" + _constant(_ROOM) + b"\x0b"
    body = answer(number)
    packed = _ANSWER << 32 | 8 + len(_HEAD) + len(body)
    called = b"".join(_constant(index) + b"\x10" + _unsigned(2 + index) + b"\x1a" for index in range(0, count, STRIDE))
    handle = b"\x00" + called + b"\x42" + _signed(packed) + b"\x0b"
    types = [_type([_I32], [_I32]), _type([_I32, _I32], [_I64])]
    exports = [
        _name("memory") + b"\x02\x00",
        _name("skerry_alloc") + b"\x00\x00",
        _name("skerry_handle") + b"\x00\x01",
    ]
    data = b"\x00" + _constant(_ANSWER) + b"\x0b" + _sized(_STATUS + len(_HEAD).to_bytes(4, "little") + _HEAD + body)
    return _HEADER + b"".join(
        (
            _section(1, types),
            _section(3, [b"\x00", b"\x01", *[b"\x00"] * count]),
            _section(5, [b"\x00" + _unsigned(_PAGES)]),
            _section(7, exports),
            _section(10, [_sized(code) for code in (allocate, handle, *fillers)]),
            _section(11, [data]),
        )
    )


def answer(number: int) -> bytes:
    """Return the body of each answer of a module."""
    return b"module %d\n" % number


def _filler(seeded: random.Random) -> bytes:
    """Return the code of a function from one number to another, with one local variable."""
    code = bytearray(b"\x01\x01\x7f")
    while len(code) < FUNCTION_BYTES:
        kind = seeded.randrange(8)
        if kind == 0:
            # Memory: at an address that depends on the value, below the answer.
            code += b"\x20\x00" + _constant(0x7FF8) + b"\x71\x20\x01\x36\x02" + _unsigned(seeded.randrange(8192))
        elif kind == 1:
            code += b"\x20\x00" + _constant(0x7FF8) + b"\x71\x28\x02" + _unsigned(seeded.randrange(8192)) + b"\x21\x01"
        elif kind == 2:
            # If the bit is set, the rest of the block is skipped.
            code += b"\x02\x40\x20\x00" + _constant(1 << seeded.randrange(30)) + b"\x71\x0d\x00"
            code += b"\x20\x01" + _constant(seeded.getrandbits(31)) + b"\x6a\x21\x01\x0b"
        else:
            code += b"\x20\x00" + _constant(seeded.getrandbits(31)) + bytes([seeded.choice(_ARITHMETIC)]) + b"\x21\x00"
    return bytes(code + b"\x20\x00\x20\x01\x73\x0b")


def _type(parameters: list[int], results: list[int]) -> bytes:
    return b"\x60" + _sized(bytes(parameters), 1) + _sized(bytes(results), 1)


def _section(number: int, items: Iterable[bytes]) -> bytes:
    listed = list(items)
    return bytes([number]) + _sized(_unsigned(len(listed)) + b"".join(listed))


def _name(text: str) -> bytes:
    return _sized(text.encode())


def _sized(content: bytes, each: int = 1) -> bytes:
    return _unsigned(len(content) // each) + content


def _constant(value: int) -> bytes:
    return b"\x41" + _signed(value)


def _unsigned(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*made, value))


def _signed(value: int) -> bytes:
    made = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        if (value == 0 and not byte & 0x40) or (value == -1 and byte & 0x40):
            return bytes((*made, byte))
        made.append(byte | 0x80)
