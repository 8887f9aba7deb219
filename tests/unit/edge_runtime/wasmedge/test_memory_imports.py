"""A module's memories made imports."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.guests.abi import binary
from edge_runtime.wasmedge import LoadError
from edge_runtime.wasmedge.memory_imports import MODULE, import_memories
from tests.guests.build import guest, wat

FIRST = binary.Import(MODULE, "0", binary.MEMORY)
SECOND = binary.Import(MODULE, "1", binary.MEMORY)
YIELD = '(import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))'
REST = '(func $s) (start $s) (func (export "_start")) (data (i32.const 0) "x")'


@pytest.mark.parametrize(
    ("fields", "made"),
    [
        (f'{YIELD} (memory (export "memory") 1) {REST}', [FIRST]),
        (f'(memory (export "memory") 3 300) {REST}', [FIRST]),
        (f'{YIELD} (memory (export "memory") 1) (memory (export "other") 2 70000) {REST}', [FIRST, SECOND]),
        ('(memory (export "memory") 1)', [FIRST]),
    ],
    ids=["behind imports", "without imports", "two", "alone"],
)
def test_memories_are_imported_and_all_else_stays(fields: str, made: list[binary.Import]) -> None:
    wasm = wat(f"(module {fields})")
    was, now = binary.read(wasm), binary.read(import_memories(wasm))
    assert (was.imports + made, []) == (now.imports, now.memories)
    assert (was.exports, was.functions, was.signatures, was.start) == (
        now.exports, now.functions, now.signatures, now.start,
    )  # fmt: skip


@pytest.mark.parametrize("before", [0, 1, 126, 127, 128])
def test_the_count_of_imports_may_take_another_byte(before: int) -> None:
    shape = binary.read(import_memories(wat(f'(module {YIELD * before} (memory (export "memory") 1))')))
    assert len(shape.imports) == before + 1


def test_a_module_without_memory_stays_as_it_is() -> None:
    made = import_memories(guest("echo"))
    for wasm in (made, b"", b"\0asm", b"\x7fELF and so on", wat("(module (func))")):
        assert import_memories(wasm) is wasm


HEAD = b"\0asm\1\0\0\0"


@pytest.mark.parametrize(
    "sections",
    [
        b"\x05\x03\x01\x00\x01\x05\x03\x01\x00\x01",  # two
        b"\x02\x01\x00\x02\x01\x00\x05\x03\x01\x00\x01",  # two of imports
        b"\x07\x01\x00\x05\x03\x01\x00\x01",  # behind what comes after it
        b"\x05\x05\x01\x00\x01",  # cut off
        b"\x05\x02\x01\x00",  # its limits cut off
        b"\x05\x03\x02\x00\x01",  # fewer than it says
        b"\x05\x05\x01\x00\x01\x00\x01",  # more than it says
        b"\x05\x80\x80\x80\x80\x80\x00",  # a long number
        b"\x05\x04\x01\x03\x01\x01",  # shared
        b"\x05\x03\x01\x04\x01",  # of 64 bits
    ],
)
def test_what_can_not_be_told_apart_is_refused(sections: bytes) -> None:
    with pytest.raises(LoadError):
        import_memories(HEAD + sections)


@given(st.binary(max_size=60))
def test_no_memory_of_its_own_is_left_in_whatever_passes(tail: bytes) -> None:
    try:
        made = import_memories(HEAD + b"\x02\x01\x00" + tail)
    except LoadError:
        return
    at = 8
    while at < len(made):
        section, size, shift = made[at], 0, 0
        while True:
            at += 1
            size |= (made[at] & 0x7F) << shift
            shift += 7
            if made[at] < 0x80:
                break
        at += 1 + size
        assert section != 5
