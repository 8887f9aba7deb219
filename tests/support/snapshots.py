"""Modules with much active data, as a snapshot has: put together from a small module and data segments."""

from collections.abc import Iterable

ORDER = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 10, 11)
MEMORY, DATA = 5, 11
ANSWERS = """(module (memory (export "memory") 1)
  (func (export "skerry_alloc") (param i32) (result i32) (i32.const 4096))
  (func (export "skerry_handle") (param i32 i32) (result i64) (i64.const 0x80000000018))
  (data (i32.const 2048) "\\c8\\00\\00\\00\\10\\00\\00\\00content-type: x\\n"))"""
"""A module of the ABI `direct` that needs no initialiser, and answers 200."""


def unsigned(value: int) -> bytes:
    """LEB128."""
    return b"" if value < 0 else bytes([value]) if value < 128 else bytes([value & 127 | 128]) + unsigned(value >> 7)


def signed(value: int) -> bytes:
    last = -64 <= value < 64
    return bytes([value & 127]) if last else bytes([value & 127 | 128]) + signed(value >> 7)


def sections_of(wasm: bytes) -> list[tuple[int, bytes]]:
    """The sections without the custom ones."""
    found, at = [], 8
    while at < len(wasm):
        section, size, shift = wasm[at], 0, 0
        while True:
            at += 1
            size |= (wasm[at] & 127) << shift
            shift += 7
            if wasm[at] < 128:
                break
        found.append((section, wasm[at + 1 : at + 1 + size]))
        at += 1 + size
    return [each for each in found if each[0]]


def segment(address: int, data: bytes) -> bytes:
    """An active segment."""
    value = address - (1 << 32) if address >= 1 << 31 else address
    return b"\0\x41" + signed(value) + b"\x0b" + unsigned(len(data)) + data


def with_sections(wasm: bytes, changed: dict[int, bytes | None]) -> bytes:
    """The module with some sections replaced, added or (None) left out."""
    found: dict[int, bytes | None] = {**dict(sections_of(wasm)), **changed}
    kept = sorted(((n, c) for n, c in found.items() if c is not None), key=lambda each: ORDER.index(each[0]))
    return wasm[:8] + b"".join(bytes([n]) + unsigned(len(c)) + c for n, c in kept)


def snapshot(wasm: bytes, pages: int, segments: Iterable[tuple[int, bytes]], most: int | None = None) -> bytes:
    """The module with a memory of so many pages, and these segments behind its own."""
    own = dict(sections_of(wasm)).get(DATA, b"\0")
    added = [segment(*each) for each in segments]
    # The number of its own segments is below 128 in all modules that the tests have.
    data = unsigned(own[0] + len(added)) + own[1:] + b"".join(added)
    limits = b"\0" + unsigned(pages) if most is None else b"\1" + unsigned(pages) + unsigned(most)
    return with_sections(wasm, {MEMORY: b"\1" + limits, DATA: data, 12: None})
