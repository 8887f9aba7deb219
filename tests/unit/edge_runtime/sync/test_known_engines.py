"""Which engine's code an artifact begins with is seen by its first bytes, and hostile ones are an answer, too."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.sync.known_engines import HEAD, LEAST, begun, code_place
from tests.support.snapshots import unsigned

START = b"\0asm\1\0\0\0"
CODE = random.Random(1).randbytes(3 * HEAD)


def module(code: bytes, before: bytes = b"\5\3\1\0\1", after: bytes = b"\x0b\2\0\0") -> bytes:
    return START + before + b"\x0a" + unsigned(len(code)) + code + after


WASM = module(CODE)
ENGINE = module(CODE, b"\5\3\1\0\2", b"")


def test_the_code_of_an_engine_is_taken() -> None:
    assert code_place(WASM[:HEAD]) == (len(WASM) - 4 - len(CODE), len(WASM) - 4)
    assert begun(WASM[:HEAD], len(WASM), [module(CODE[1:]), b"", ENGINE]) == WASM[:-4]


@pytest.mark.parametrize(
    ("wasm", "engine"),
    [
        (WASM, module(CODE[:-1])),
        (WASM, module(CODE[:99] + b"!" + CODE[100:])),
        (WASM, ENGINE[:-1]),
        (module(CODE, b"\0" + unsigned(HEAD - LEAST) + bytes(HEAD - LEAST)), ENGINE),
        (WASM[:8], ENGINE),
        (module(CODE, after=b"")[:-1], ENGINE),
    ],
    ids=["size", "bytes", "engine cut off", "behind too much", "no code", "artifact cut off"],
)
def test_other_code_is_not(wasm: bytes, engine: bytes) -> None:
    assert begun(wasm[:HEAD], len(wasm), [engine]) is None


@given(st.binary(max_size=60), st.integers(0, 80))
def test_hostile_bytes_are_an_answer_and_no_error(some: bytes, at: int) -> None:
    hostile = (WASM[:at] + some + WASM[at + len(some) :])[:HEAD]
    found = begun(hostile, len(WASM), [ENGINE, some, hostile])
    assert found is None or (found.startswith(hostile) and len(hostile) < len(found) <= len(WASM))
