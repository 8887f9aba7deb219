"""A snapshot begins as its initialiser has left it, as wasmtime has it, and nothing that isn't kept is in it."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmtime import Engine, Func, FuncType, Instance, Memory, Module, Store

from edge_runtime.guests.abi import binary
from edge_runtime.guests.abi.sections import DATA, SectionCursor, sections_of
from edge_runtime.guests.abi.snapshot import (
    BLOCK,
    MANY,
    SnapshotRefused,
    join_segments,
    prepare,
    segments,
    snapshot,
)
from tests.guests.build import wat

PAGE = 65536
ENGINE = Engine()


@dataclass
class Running:
    """An instance of a module whose imports are functions that do nothing."""

    wasm: bytes

    def __post_init__(self) -> None:
        self.store = Store(ENGINE)
        module = Module(ENGINE, self.wasm)
        nothing = Func(self.store, FuncType([], []), lambda: None)
        self.exports = Instance(self.store, module, [nothing] * len(module.imports)).exports(self.store)

    def call(self, name: str) -> Any:
        function = self.exports[name]
        assert isinstance(function, Func)
        return function(self.store)

    def memory(self) -> bytes:
        memory = self.exports["memory"]
        assert isinstance(memory, Memory)
        return bytes(memory.read(self.store))


def made(wasm: bytes, *, renewer: str = "") -> bytes:
    """The snapshot, of what wasmtime has run."""
    prepared = prepare(wasm, "init", renewer)
    running = Running(prepared.wasm)
    running.call("init")
    bits = {"i": 2**32, "I": 2**64}
    values = [running.call(name) % bits[result] for name, result in prepared.getters]
    return snapshot(wasm, "init", running.memory(), values, renewer)


def count(wasm: bytes) -> int:
    """The number of data segments."""
    return SectionCursor(dict(sections_of(wasm)).get(DATA, b"\0")).number()


STATE = """(module (import "skerry" "nothing" (func))
 (memory (export "memory") 1 9)
 (global $constant i32 (i32.const 5))
 (global $i (export "i") (mut i32) (i32.const 0))
 (global $I (export "I") (mut i64) (i64.const 0))
 (global $f (export "f") (mut f32) (f32.const 0))
 (global $F (export "F") (mut f64) (f64.const 0))
 (table 2 funcref) (elem (i32.const 0) $set)
 (func $set (global.set $i (i32.const {i})) (global.set $I (i64.const {I}))
  (global.set $f (f32.reinterpret_i32 (i32.const {f}))) (global.set $F (f64.reinterpret_i64 (i64.const {F}))))
 (func (export "init") (call 0) (call_indirect (i32.const 0))
  (drop (memory.grow (i32.const {grown})))
  {stores})
 (func (export "fI") (result i64) (i64.add (global.get $I) (i64.extend_i32_u (global.get $constant))))
 (data (i32.const 10) "begun") (data (i32.const 65000) "\\00\\01"))"""


@given(
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 8),
    st.lists(st.tuples(st.integers(0, PAGE - 8), st.integers(-(2**63), 2**63 - 1)), max_size=8),
)
def test_globals_and_memory_are_what_the_initialiser_left(
    i: int, wide: int, f: int, double: int, grown: int, stores: list[tuple[int, int]]
) -> None:
    text = STATE
    code = " ".join(f"(i64.store (i32.const {at}) (i64.const {value}))" for at, value in stores)
    for name, value in {"i": i, "I": wide, "f": f, "F": double, "grown": grown, "stores": code}.items():
        text = text.replace(f"{{{name}}}", str(value))
    wasm = wat(text)
    after = Running(wasm)
    after.call("init")
    found = Running(made(wasm))
    assert found.memory() == after.memory()
    assert found.call("fI") == after.call("fI")
    for name, layout in (("i", "<i"), ("I", "<q"), ("f", "<f"), ("F", "<d")):
        values = [struct.pack(layout, each.exports[name].value(each.store)) for each in (found, after)]  # type: ignore[union-attr]
        # Only of a NaN may an engine change what doesn't matter.
        assert values[0] == values[1] or struct.unpack(layout, values[0])[0] != struct.unpack(layout, values[0])[0]


MODULE = """(module (memory (export "memory") 1) (global (export "counter") (mut i32) (i32.const 0))
 (start $start) (func $start (global.set 0 (i32.add (global.get 0) (i32.const 100))))
 (func (export "_initialize") (global.set 0 (i32.add (global.get 0) (i32.const 10))))
 (func (export "init") (global.set 0 (i32.add (global.get 0) (i32.const 1))))
 (func (export "again") (global.set 0 (i32.add (global.get 0) (i32.const 1000))))
 (func (export "handle") (result i32) (global.get 0)))"""


@pytest.mark.parametrize(
    ("renewer", "exported", "counter"),
    [("", {"memory", "counter", "again", "handle"}, 101), ("again", {"memory", "counter", "handle"}, 1101)],
)
def test_what_initialises_is_gone_and_what_renews_comes_first(renewer: str, exported: set[str], counter: int) -> None:
    snapshot_ = made(wat(MODULE), renewer=renewer)
    shape = binary.read(snapshot_)
    assert set(shape.exports) == exported
    assert shape.start is bool(renewer)
    assert Running(snapshot_).call("handle") == counter


def test_the_same_state_gives_the_same_bytes() -> None:
    wasm = wat(MODULE)
    assert made(wasm) == made(wasm)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('(module (memory (export "memory") 1))', "It exports no function init (it exports none)."),
        (
            '(module (memory (export "memory") 1) (func (export "warm")) (func (export "other")))',
            "It exports no function init (it exports warm, other).",
        ),
        (
            '(module (memory (export "memory") 1) (func (export "init") (param i32)))',
            "Its init takes or returns values; it must be a function without either.",
        ),
        (
            '(module (memory (export "memory") 1) (func (export "init") (result i32) (i32.const 0)))',
            "Its init takes or returns values; it must be a function without either.",
        ),
        ('(module (func (export "init")))', "It must have exactly one memory"),
        ('(module (memory 1) (memory 1) (func (export "init")))', "It must have exactly one memory"),
        ('(module (memory i64 1) (func (export "init")))', "It must have exactly one memory"),
        ('(module (import "a" "b" (memory 1)) (func (export "init")))', "It imports a memory, a table or a global"),
        ('(module (import "a" "b" (global i32)) (memory 1) (func (export "init")))', "It imports a memory"),
        (
            '(module (import "extism:host/env" "length" (func (param i64) (result i64))) (memory 1) '
            '(func (export "init")))',
            "It is an Extism plug-in",
        ),
        (
            '(module (memory 1) (table $t 1 funcref) (func (export "init") '
            "(table.set $t (i32.const 0) (ref.null func))))",
            "Its code has table.set, and a snapshot keeps neither tables nor passive data",
        ),
        ('(module (memory 1) (data $d "x") (func (export "init") (data.drop $d)))', "Its code has data.drop"),
        (
            '(module (memory 1) (global (mut funcref) (ref.null func)) (func (export "init")))',
            "It has a mutable global that is a vector or a reference",
        ),
        (
            '(module (import "skerry" "nothing" (func $f)) (memory (export "memory") 1) (export "init" (func $f)))',
            "It has no function of its own",
        ),
    ],
)
def test_what_has_no_snapshot(text: str, why: str) -> None:
    with pytest.raises(SnapshotRefused) as refused:
        prepare(wat(text), "init")
    assert str(refused.value).startswith(why)


def test_a_renewer_that_isnt_there() -> None:
    with pytest.raises(SnapshotRefused, match="It exports no function anew"):
        prepare(wat(MODULE), "init", "anew")


def test_what_is_no_module() -> None:
    with pytest.raises(SnapshotRefused, match="It is no module that nodes can run"):
        prepare(b"#!/bin/sh", "init")


@given(
    st.lists(
        st.tuples(st.binary(max_size=40), st.integers(0, 3 * BLOCK)).map(lambda each: each[0] + bytes(each[1])),
        max_size=8,
    ).map(b"".join)
)
def test_segments_are_what_isnt_zero(memory: bytes) -> None:
    found = segments(memory)
    again = bytearray(len(memory))
    end = -1
    for address, data in found:
        assert address > end, "two segments touch"
        assert data
        assert data[0]
        assert data[-1]
        assert bytes(2 * BLOCK) not in data
        again[address : address + len(data)] = data
        end = address + len(data)
    assert again == memory


def _quoted(data: bytes) -> str:
    return "".join([rf"\{byte:02x}" for byte in data])


def many(pieces: Sequence[tuple[int, bytes]], more: str = "", *, fewer: int = 0) -> bytes:
    """A module with these data segments, and others that make them many, or that many fewer."""
    data = [*[(8 * number, b"x") for number in range(MANY - fewer)], *pieces]
    text = "".join([f'(data (i32.const {at}) "{_quoted(piece)}")' for at, piece in data])
    return wat(f'(module (memory (export "memory") 1) (func (export "f")) {text} {more})')


@given(st.lists(st.tuples(st.integers(0, 3000), st.binary(max_size=200)), max_size=12))
def test_joined_segments_write_the_same(pieces: list[tuple[int, bytes]]) -> None:
    wasm = many(pieces)
    joined = join_segments(wasm)
    assert count(joined) < 5
    assert Running(joined).memory() == Running(wasm).memory()
    assert join_segments(joined) == joined


@pytest.mark.parametrize(
    "wasm",
    [
        b"#!/bin/sh",
        wat('(module (memory (export "memory") 1) (data (i32.const 1) "a") (data (i32.const 9) "b"))'),
        many([], '(data "passive")'),
        # Its length and its bytes could be a place and a shorter length.
        many([], f'(data "{_quoted(bytes([0, 0x0B, 62]) + bytes(62))}")'),
        many([], '(data $p "p") (func (memory.init $p (i32.const 0) (i32.const 0) (i32.const 1)))'),
        many([], '(data $d (i32.const 8) "d") (func (data.drop $d))'),
        many([], '(global $g i32 (i32.const 8)) (data (global.get $g) "computed")'),
        many([(0, b"")] * 2, '(data (i32.const -4) "far")'),
    ],
    ids=["no module", "few", "passive", "passive, 65 bytes", "memory.init", "data.drop", "computed", "beyond"],
)
def test_segments_that_stay(wasm: bytes) -> None:
    assert join_segments(wasm) == wasm
