"""The function that has a byte of a module: found by reading its sections; no bytes of others make that fail."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.guests.trap_places import SHOWN, function_at
from tests.support.draws import examples


def section(number: int, content: bytes) -> bytes:
    assert len(content) < 128 * 128
    size = bytes([len(content) & 127 | 128, len(content) >> 7])
    return bytes([number]) + size + content


def module(name: bytes = b"", *, named: bool = True) -> bytes:
    """One imported function, two of its own with bodies of 2 and 4 bytes, the second exported as `run`."""
    body = b"\2" + b"\2\0\x0b" + b"\4\0\1\1\x0b"
    names = b"\4name" + b"\1" + bytes([len(name) + 3 & 127 | 128, len(name) + 3 >> 7]) + b"\1\2"
    names += bytes([len(name) & 127 | 128, len(name) >> 7]) + name
    names = names[:6] + bytes([len(name) + 4 & 127 | 128, len(name) + 4 >> 7]) + names[8:]
    return (
        b"\0asm\1\0\0\0"
        + section(1, b"\1\x60\0\0")
        + section(2, b"\1\1m\1f\0\0")
        + section(3, b"\2\0\0")
        + section(7, b"\1\3run\0\2")
        + section(10, body)
        + (section(0, names) if named else b"")
    )


WASM = module(b"take_order")
CODE = WASM.index(b"\2\0\x0b") + 1
"""Where the first body begins."""


@pytest.mark.parametrize(
    ("offset", "found"),
    [
        (CODE, "function 1"),
        (CODE + 1, "function 1"),
        (CODE + 3, "function 2 (take_order)"),
        (CODE + 6, "function 2 (take_order)"),
        (0, ""),
        (CODE - 1, ""),
        (CODE + 7, ""),
        (10**9, ""),
    ],
)
def test_a_byte_belongs_to_a_function(offset: int, found: str) -> None:
    assert function_at(WASM, WASM, offset) == found


def test_an_export_is_a_name_too() -> None:
    assert function_at(module(named=False), module(named=False), CODE + 4) == "function 2 (run)"


def test_names_are_their_author_s_text() -> None:
    hostile = b"\x1b[2J\xff" + b"x" * 500
    shown = function_at(module(hostile), module(hostile), CODE + 4)
    assert shown.startswith("function 2 (\\x1b[2J\ufffdxxx")
    assert len(shown) < SHOWN + 30


@settings(max_examples=examples(100))
@given(st.integers(0, len(WASM)), st.binary(max_size=8), st.integers(0, len(WASM) + 9))
def test_no_bytes_make_it_fail(at: int, other: bytes, offset: int) -> None:
    bent = WASM[:at] + other + WASM[at + len(other) :]
    for loaded, artifact in ((bent, WASM), (WASM, bent), (bent[:at], bent[:at])):
        assert isinstance(function_at(loaded, artifact, offset), str)
