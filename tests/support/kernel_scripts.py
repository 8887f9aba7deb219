"""Scripts of calls for tests/guests/kernel_calls.c, and hypothesis's strategies for them."""

import enum
import struct
from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import strategies as st

NONE = 255
"""The slot of an argument that is a number alone."""
SIZES = (1, 2, 7, 8, 9, 15, 16, 17, 31, 64, 200)
NOWHERE = (0, 1, 8, 56, 10_000_000, 2**32, 2**32 + 600, 2**40, 2**63)
"""Addresses at which no host has a block."""
TOO_LARGE = (2**32 - 1, 2**32, 2**33 + 5, 2**40)
"""Lengths that no host has the memory for."""
CONFIG = {"thing": "value", "empty": "", "ключ": "значение"}
CODES = (0, 1, -2, 125, 2**31 - 1, -(2**31))


class Op(enum.IntEnum):
    """The operations, by their numbers in kernel_calls.c."""

    ALLOC = 0
    FREE = 1
    LENGTH = 2
    LENGTH_UNSAFE = 3
    LOAD_U8 = 4
    LOAD_U64 = 5
    STORE_U8 = 6
    STORE_U64 = 7
    INPUT_LENGTH = 8
    INPUT_OFFSET = 9
    INPUT_LOAD_U8 = 10
    INPUT_LOAD_U64 = 11
    OUTPUT_SET = 12
    ERROR_SET = 13
    CONFIG_GET = 14
    VAR_GET = 15
    VAR_SET = 16
    HTTP_REQUEST = 17
    HTTP_STATUS_CODE = 18
    HTTP_HEADERS = 19
    GET_LOG_LEVEL = 20
    LOG_TRACE = 21
    LOG_DEBUG = 22
    LOG_INFO = 23
    LOG_WARN = 24
    LOG_ERROR = 25
    TEXT = 26
    CONTENT = 27
    RETURN = 28
    TRAP = 29
    EXIT = 30
    ALLOC_ANYWHERE = 31


class Place(NamedTuple):
    """An argument: what a slot has, and a number added to it."""

    slot: int
    more: int = 0


Argument = Place | int
Step = tuple[Op, *tuple[Argument, ...]] | tuple[Op, bytes]


def encoded(steps: Sequence[Step], data: bytes = b"") -> bytes:
    """The input with which a plug-in goes through these steps; `data` follows them."""
    script = b"".join([_step(step) for step in steps])
    return struct.pack("<I", len(script)) + script + data.rjust(8, b"\0")


def _step(step: Step) -> bytes:
    op, *arguments = step
    pieces = [bytes([op])]
    for argument in arguments:
        if isinstance(argument, bytes):
            pieces.append(struct.pack("<H", len(argument)) + argument)
        else:
            slot, more = argument if isinstance(argument, Place) else (NONE, argument)
            pieces.append(struct.pack("<BQ", slot, more & 0xFFFF_FFFF_FFFF_FFFF))
    return b"".join(pieces)


class _Block(NamedTuple):
    slot: int
    size: int


@st.composite
def scripts(draw: st.DrawFn, most: int = 24) -> list[Step]:
    """Steps over small blocks, which all fit into the first page of both hosts. Handles of freed blocks are used too,
    and addresses without a block."""
    steps: list[Step] = []
    blocks: list[_Block] = []
    given: list[int] = []
    for _ in range(draw(st.integers(1, most))):
        added = draw(st.sampled_from(_MAKERS))(draw, len(steps), blocks, given)
        steps += added
        if added[-1][0] in (Op.RETURN, Op.TRAP, Op.EXIT):
            break
    return steps


def _alloc(draw: st.DrawFn, slot: int, blocks: list[_Block], _: list[int]) -> list[Step]:
    size = draw(st.sampled_from(SIZES))
    blocks.append(_Block(slot, size))
    return [(Op.ALLOC, size)]


def _alloc_none(draw: st.DrawFn, *_: object) -> list[Step]:
    return [(Op.ALLOC, draw(st.sampled_from((0, *TOO_LARGE))))]


def _text(draw: st.DrawFn, slot: int, blocks: list[_Block], _: list[int]) -> list[Step]:
    data = draw(st.sampled_from([*[key.encode() for key in CONFIG], b"a", b"b", b"\0\1\xff"]) | st.binary(max_size=40))
    if data:
        blocks.append(_Block(slot, len(data)))
    return [(Op.TEXT, data)]


def _handle(draw: st.DrawFn, blocks: list[_Block], given: list[int]) -> Argument:
    """A handle: of a block, of nothing, or inside a block."""
    slots = [Place(block.slot) for block in blocks] + [Place(slot) for slot in given]
    inside = [Place(block.slot, 1) for block in blocks]
    return draw(st.sampled_from([*slots, *slots, *inside, *NOWHERE]))


def _of_handle(draw: st.DrawFn, _: int, blocks: list[_Block], given: list[int]) -> list[Step]:
    op = draw(st.sampled_from([Op.FREE, Op.FREE, Op.LENGTH, Op.CONTENT]))
    return [(op, _handle(draw, blocks, given))]


def _length_unsafe(draw: st.DrawFn, _: int, blocks: list[_Block], given: list[int]) -> list[Step]:
    slots = [Place(block.slot) for block in blocks] + [Place(slot) for slot in given]
    return [(Op.LENGTH_UNSAFE, draw(st.sampled_from([*slots, *NOWHERE])))]


def _access(draw: st.DrawFn, _: int, blocks: list[_Block], __: list[int]) -> list[Step]:
    op, width = draw(
        st.sampled_from([(Op.LOAD_U8, 1), (Op.LOAD_U64, 8), (Op.STORE_U8, 1), (Op.STORE_U64, 8)]),
    )
    fitting = [block for block in blocks if block.size >= width]
    place: Argument = draw(st.sampled_from(NOWHERE))
    if fitting and draw(st.integers(0, 4)):
        block = draw(st.sampled_from(fitting))
        place = Place(block.slot, draw(st.integers(0, block.size - width)))
    value = (draw(st.integers(0, 2**64 - 1)),) if op in (Op.STORE_U8, Op.STORE_U64) else ()
    return [(op, place, *value)]


def _input(draw: st.DrawFn, slot: int, _: list[_Block], given: list[int]) -> list[Step]:
    op = draw(st.sampled_from([Op.INPUT_LENGTH, Op.INPUT_OFFSET, Op.INPUT_LOAD_U8, Op.INPUT_LOAD_U64]))
    if op is Op.INPUT_OFFSET:
        given.append(slot)
    if op in (Op.INPUT_LENGTH, Op.INPUT_OFFSET):
        return [(op,)]
    return [(op, draw(st.integers(0, 600) | st.sampled_from([2**16, 2**32, 2**63])))]


def _output(draw: st.DrawFn, _: int, blocks: list[_Block], __: list[int]) -> list[Step]:
    if blocks and draw(st.integers(0, 4)):
        block = draw(st.sampled_from(blocks))
        start = draw(st.integers(0, block.size))
        return [(Op.OUTPUT_SET, Place(block.slot, start), draw(st.integers(0, block.size - start)))]
    wrong = (0, 2**32, 2**63)
    start = draw(st.sampled_from([*[Place(block.slot) for block in blocks], *NOWHERE]))
    return [(Op.OUTPUT_SET, start, draw(st.sampled_from(wrong)))]


def _error(draw: st.DrawFn, slot: int, blocks: list[_Block], given: list[int]) -> list[Step]:
    kind = draw(st.integers(0, 3))
    if kind == 0:
        data = draw(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=10)).encode()
        # Nothing is stored there: a host's C interface ends the text at the first NUL.
        given.append(slot)
        return [(Op.TEXT, data), (Op.ERROR_SET, Place(slot))]
    return [(Op.ERROR_SET, draw(st.sampled_from(NOWHERE)))]


def _value(draw: st.DrawFn, slot: int, blocks: list[_Block], given: list[int]) -> list[Step]:
    op = draw(st.sampled_from([Op.CONFIG_GET, Op.VAR_GET, Op.VAR_GET, Op.VAR_SET, Op.VAR_SET]))
    if draw(st.integers(0, 5)) == 0:
        key = _handle(draw, blocks, given)
        if op is Op.VAR_SET:
            return [(op, key, _handle(draw, blocks, given))]
        given.append(slot)
        return [(op, key)]
    name = draw(st.sampled_from(list(CONFIG) if op is Op.CONFIG_GET else ["a", "b", "ключ"])).encode()
    if op is not Op.VAR_SET:
        given.append(slot + 1)
        return [(Op.TEXT, name), (op, Place(slot))]
    value = draw(st.sampled_from([Place(slot)]) | st.just(0))
    if draw(st.booleans()):
        data = draw(st.binary(min_size=1, max_size=30))
        blocks.append(_Block(slot + 1, len(data)))
        return [(Op.TEXT, name), (Op.TEXT, data), (op, Place(slot), Place(slot + 1))]
    return [(Op.TEXT, name), (op, Place(slot), value)]


LOGS = (Op.LOG_TRACE, Op.LOG_DEBUG, Op.LOG_INFO, Op.LOG_WARN, Op.LOG_ERROR)


def _log(draw: st.DrawFn, slot: int, _: list[_Block], __: list[int]) -> list[Step]:
    op = draw(st.sampled_from(LOGS))
    if draw(st.integers(0, 9)) == 0:
        return [(op, draw(st.sampled_from(NOWHERE)))]
    message = draw(st.text(st.characters(codec="ascii", categories=("L", "N", "Zs")), max_size=10)).encode()
    return [(Op.TEXT, message), (op, Place(slot))]


def _other(draw: st.DrawFn, slot: int, _: list[_Block], given: list[int]) -> list[Step]:
    op = draw(st.sampled_from([Op.GET_LOG_LEVEL, Op.HTTP_STATUS_CODE, Op.HTTP_HEADERS]))
    if op is Op.HTTP_HEADERS:
        given.append(slot)
    return [(op,)]


def _end(draw: st.DrawFn, *_: object) -> list[Step]:
    op = draw(st.sampled_from([Op.RETURN, Op.RETURN, Op.EXIT, Op.TRAP]))
    if op is Op.TRAP:
        return [(op,)]
    return [(op, draw(st.sampled_from(CODES if op is Op.RETURN else (0, 1, 125))))]


_MAKERS = [
    *(_alloc, _alloc, _text, _text, _of_handle, _of_handle, _of_handle, _length_unsafe, _access, _access, _access),
    *(_input, _output, _output, _value, _value, _log, _other, _alloc_none, _error, _end),
]


@st.composite
def large_scripts(draw: st.DrawFn) -> list[Step]:
    """Steps over blocks of up to 200 KB, which are freed and made again, so that both hosts reuse what is free. What
    was written into a block is read again; what a fresh block has in it isn't looked at."""
    steps: list[Step] = []
    live: dict[int, int] = {}
    written: dict[tuple[int, int], int] = {}
    for _ in range(draw(st.integers(5, 40))):
        kind = draw(st.integers(0, 5))
        if kind <= 1 or not live:
            size = draw(st.integers(8, 1000) | st.integers(8, 200_000))
            live[len(steps)] = size
            steps.append((Op.ALLOC_ANYWHERE, size))
            continue
        slot = draw(st.sampled_from(sorted(live)))
        if kind == 2:
            del live[slot]
            written = {place: value for place, value in written.items() if place[0] != slot}
            steps += [(Op.FREE, Place(slot)), (Op.LENGTH, Place(slot))]
        elif kind == 3:
            steps.append((Op.LENGTH, Place(slot)))
        else:
            # At multiples of 8, so that no value covers a part of another.
            last = live[slot] // 8 - 1
            start = 8 * draw(st.sampled_from([0, last]) | st.integers(0, last))
            written[slot, start] = 0
            steps.append((Op.STORE_U64, Place(slot, start), draw(st.integers(0, 2**64 - 1))))
    return [*steps, *[(Op.LOAD_U64, Place(slot, start)) for slot, start in written]]
