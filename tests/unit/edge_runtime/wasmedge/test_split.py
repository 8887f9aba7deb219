"""A snapshot's code and its image together are the snapshot; what can't be split soundly stays whole."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.wasmedge.split import LEAST, Split, split
from tests.guests.build import wat
from tests.support.snapshots import DATA, MEMORY, sections_of, segment, snapshot, unsigned, with_sections

PAGE = 65536
PAGES = 6
BYTES = bytes(range(1, 256)) * (LEAST // 255 + 1)
ENGINE = wat(
    """(module (import "host" "give" (func)) (memory (export "memory") 1)
    (global (mut i32) (i32.const 70000)) (func (export "_start")) (data (i32.const 3) "own"))"""
)
WHOLE = snapshot(ENGINE, PAGES, [(1000, BYTES)])


def memory_of(wasm: bytes, image: bytes | None = None) -> bytes:
    """A new instance's memory, by wasmtime; over the first page lies `image`."""
    store = wasmtime.Store()
    module = wasmtime.Module(store.engine, wasm)
    instance = wasmtime.Instance(store, module, [wasmtime.Func(store, wasmtime.FuncType([], []), lambda: None)])
    memory: Any = instance.exports(store)["memory"]
    if image is not None:
        assert not any(memory.read(store))
        memory.grow(store, len(image) // PAGE - 1)
        memory.write(store, image, 0)
    return bytes(memory.read(store))


def image_of(made: Split) -> bytes:
    with tempfile.TemporaryFile() as file:
        made.write_image(file)
        file.seek(0)
        return file.read()


def parts(wasm: bytes) -> Split:
    made = split(wasm)
    assert made is not None
    return made


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, PAGES * PAGE - 300), st.binary(max_size=300)), max_size=8),
    st.integers(0, 7),
    st.integers(0, PAGES * PAGE - len(BYTES)),
)
def test_code_and_image_together_are_the_snapshot(few: list[tuple[int, bytes]], place: int, address: int) -> None:
    """Segments may overlap, and be empty."""
    whole = snapshot(ENGINE, PAGES, [*few[:place], (address, BYTES), *few[place:]])
    made = parts(whole)
    assert memory_of(whole) == memory_of(made.code, image_of(made))
    assert made.code == parts(WHOLE).code


def test_all_snapshots_of_an_engine_have_the_same_code() -> None:
    others = [
        snapshot(ENGINE, 90, [(1000, BYTES), (89 * PAGE, b"x")]),
        with_sections(WHOLE, {12: b"\2"}),
        WHOLE + b"\0\5\4name",
    ]
    assert {parts(each).sha256 for each in [WHOLE, *others]} == {parts(WHOLE).sha256}
    assert [parts(each).pages for each in others] == [90, PAGES, PAGES]


@pytest.mark.parametrize(
    "other",
    [
        snapshot(ENGINE, PAGES, [(0, BYTES)], most=100),
        snapshot(ENGINE.replace(b"_start", b"_begin"), PAGES, [(0, BYTES)]),
        with_sections(WHOLE, {6: b"\1\x7f\1\x41\x05\x0b"}),
    ],
    ids=["maximum", "export", "global"],
)
def test_another_engine_has_other_code(other: bytes) -> None:
    assert parts(other).sha256 != parts(WHOLE).sha256


def test_a_start_section_finds_the_image() -> None:
    """Instantiation copies active segments before it runs `start`."""
    engine = wat(
        """(module (import "host" "give" (func)) (memory (export "memory") 1) (func $start
        (i32.store (i32.const 0) (i32.load (i32.const 1000)))) (start $start))"""
    )
    made = parts(snapshot(engine, PAGES, [(1000, BYTES)]))
    assert 8 in dict(sections_of(made.code))
    assert image_of(made)[:4] == bytes(4)


def test_the_image_has_holes(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with path.open("wb") as file:
        parts(snapshot(ENGINE, 600, [(1000, BYTES), (599 * PAGE, b"end")])).write_image(file)
    found = path.stat()
    assert (found.st_size, found.st_blocks * 512 < 2 * LEAST) == (600 * PAGE, True)


def copying(body: str, more: str = "") -> bytes:
    engine = wat(
        f"""(module (import "host" "give" (func)) (memory (export "memory") 1) (data "own")
        (func (export "_start") {body}) {more})"""
    )
    # Its segment is made an active one, which may be copied and dropped, too.
    return snapshot(with_sections(engine, {DATA: b"\1" + segment(0, b"own")}), PAGES, [(1000, BYTES)])


INIT = "(memory.init 0 (i32.const 0) (i32.const 0) (i32.const 0))"


@pytest.mark.parametrize(
    ("wasm", "whole"),
    [
        (copying("nop"), False),
        (copying("(drop (i32.const 0x8fc)) (drop (i32.const 1276))"), False),
        (copying("(drop (i64.const 0x9fc08fc))"), False),
        (copying(INIT), True),
        (copying("(data.drop 0)"), True),
        (copying("(drop (i32.const 0x8fc))", f"(func {INIT})"), True),
        # An instruction that isn't known, beside bytes like those of memory.init.
        (with_sections(WHOLE, {10: b"\1\x07\0\xfe\x41\xfc\x08\x1a\x0b"}), True),
        # memory.init with its opcode at greater length.
        (with_sections(WHOLE, {10: b"\1\x0e\0\x41\0\x41\0\x41\0\xfc\x88\0\0\0\x0b"}), True),
    ],
    ids=["nothing", "constants", "constant of both", "init", "drop", "other function", "unknown", "long"],
)
def test_a_module_that_copies_or_drops_segments_stays_whole(wasm: bytes, whole: bool) -> None:
    assert (split(wasm) is None) == whole


def data(*segments: bytes) -> bytes:
    """The snapshot with these segments, too."""
    return with_sections(WHOLE, {DATA: unsigned(len(segments) + 1) + segment(0, BYTES) + b"".join(segments)})


def out_of(section: int) -> bytes:
    return b"".join(bytes([n]) + unsigned(len(c)) + c for n, c in sections_of(WHOLE) if n == section)


@pytest.mark.parametrize(
    "wasm",
    [
        ENGINE,
        snapshot(ENGINE, PAGES, [(0, BYTES[: LEAST - 4])]),
        data(b"\1\1x"),
        data(b"\2\1\x41\0\x0b\1x"),
        data(b"\0\x23\0\x0b\1x"),
        data(b"\0\x41\0\x41\0\x6a\x0b\1x"),
        data(segment(PAGES * PAGE - 1, b"xx")),
        data(segment(0xFFFF_FFFF, b"x")),
        data(segment(0, b"x"), b"\0"),
        data(b"\0\x41\0\x0b\5x"),
        with_sections(WHOLE, {MEMORY: b"\2\0\6\0\6"}),
        with_sections(WHOLE, {MEMORY: b"\1\3\6\7"}),
        with_sections(WHOLE, {MEMORY: b"\1\4\6"}),
        with_sections(WHOLE, {2: b"\2\4host\4give\0\0\1a\1b\2\0\1"}),
        with_sections(WHOLE, {2: b"\1\1a\1b\3\x7f\0"}),
        with_sections(WHOLE, {12: b"\5"}),
        WHOLE + out_of(MEMORY),
        WHOLE[:8] + out_of(DATA) + WHOLE[8 : -len(out_of(DATA))],
        WHOLE[:-1],
        WHOLE + b"\x0d\1\0",
        b"\0asm\x0d\0\1\0" + WHOLE[8:],
        b"",
    ],
    ids=[
        *("little data", "a byte too little", "passive", "another memory", "global", "sum", "across the end"),
        *("far beyond", "more than counted", "cut off", "two memories", "shared", "64 bits", "memory imported"),
        *("global imported", "other count", "section twice", "wrong order", "section cut off", "unknown section"),
        *("component", "nothing"),
    ],
)  # fmt: skip
def test_what_can_not_be_split_soundly_stays_whole(wasm: bytes) -> None:
    assert split(wasm) is None


def test_a_segment_may_reach_to_the_very_end_and_name_its_memory() -> None:
    made = parts(data(segment(PAGES * PAGE - 2, b"xx"), b"\2\0\x41\x0a\x0b\1y"))
    assert (image_of(made)[-2:], image_of(made)[10:11]) == (b"xx", b"y")


@given(st.binary(max_size=40), st.integers(8, 200))
def test_hostile_bytes_are_an_answer_and_no_error(some: bytes, at: int) -> None:
    hostile = WHOLE[:at] + some + WHOLE[at + len(some) :]
    assert split(hostile) is None or isinstance(split(hostile), Split)
