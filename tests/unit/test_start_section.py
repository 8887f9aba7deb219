"""A start section taken out of a module's bytes, and its function exported."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.abi import binary
from edge_runtime.abi.detect import OWN_NAMES
from edge_runtime.wasmedge import LoadError
from edge_runtime.wasmedge.start import NAME, deferred
from tests.guests.build import guest, wat

START = """(module (import "wasi_snapshot_preview1" "sched_yield" (func (result i32))) (memory (export "memory") 1)
  {functions} (func $s) (start $s) (func (export "_start")) (data (i32.const 0) "x"))"""


@pytest.mark.parametrize("before", [0, 1, 127, 128, 20_000])
def test_the_function_is_exported_in_the_place_of_the_section(before: int) -> None:
    wasm = wat(START.format(functions="(func)" * before))
    made = deferred(wasm)
    shape, was = binary.read(made), binary.read(wasm)
    assert was.start
    assert not shape.start
    assert shape.exports == {**was.exports, NAME: (binary.FUNCTION, before + 1)}
    assert (shape.functions, shape.memories, shape.imports) == (was.functions, was.memories, was.imports)
    assert deferred(made) == made


@pytest.mark.parametrize("exports", [126, 127, 128])
def test_the_count_of_exports_may_take_another_byte(exports: int) -> None:
    more = "".join(f'(func (export "f{number}"))' for number in range(exports - 2))
    shape = binary.read(deferred(wat(START.format(functions=more))))
    assert len(shape.exports) == exports + 1


def test_no_upload_can_have_the_name_already() -> None:
    assert NAME.startswith(OWN_NAMES)


def test_a_module_without_one_stays_as_it_is() -> None:
    for wasm in (guest("echo"), b"", b"\0asm", b"\x7fELF and so on"):
        assert deferred(wasm) is wasm


HEAD = b"\0asm\1\0\0\0"


@pytest.mark.parametrize(
    "sections",
    [
        b"\x08\x01\x00",  # nothing is exported
        b"\x08\x01\x00\x07\x01\x00",  # the wrong way round
        b"\x07\x01\x00\x08\x01\x00\x08\x01\x00",  # two
        b"\x07\x01\x00\x08\x05\x00",  # cut off
        b"\x07\x80\x80\x80\x80\x80\x00",  # a long number
    ],
)
def test_what_can_not_be_told_apart_is_refused(sections: bytes) -> None:
    with pytest.raises(LoadError):
        deferred(HEAD + sections)


@given(st.binary(max_size=60))
def test_no_start_section_is_left_in_whatever_passes(tail: bytes) -> None:
    try:
        made = deferred(HEAD + b"\x07\x01\x00" + tail)
    except LoadError:
        return
    assert not binary_sections(made) & {8}


def binary_sections(wasm: bytes) -> set[int]:
    at, found = 8, set()
    while at < len(wasm):
        section = wasm[at]
        size = shift = 0
        while True:
            at += 1
            size |= (wasm[at] & 0x7F) << shift
            shift += 7
            if wasm[at] < 0x80:
                break
        at += 1 + size
        found.add(section)
    return found
