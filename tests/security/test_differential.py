"""Generated modules give the same by WasmEdge, as nodes compile them, and by wasmtime: the same end, and the same
memory. For plug-ins it is the merging of Extism's kernel that is checked: wasmtime links it from outside."""

import hashlib
import os
import random
from pathlib import Path

import pytest

from edge_runtime.guests.abi.detect import ModuleRefused
from edge_runtime.guests.host_functions import host
from edge_runtime.guests.invocation import GuestFault, Request
from edge_runtime.oneshot.check import check_module
from edge_runtime.wasmedge import Memory
from tests.support import by_wasmtime
from tests.support.functions import function
from tests.support.generated import ENDING, PLUGIN, SHAPE, smith

EACH = max(40, int(os.environ.get("SKERRY_TEST_MODULES", "0")) // 25)
"""Modules of each kind."""
REASONS = {
    "unreachable": "UNREACHABLE",
    "out of bounds memory access": "MEMORY_OUT_OF_BOUNDS",
    "out of bounds table access": "TABLE_OUT_OF_BOUNDS",
    "undefined element": "TABLE_OUT_OF_BOUNDS",
    "uninitialized element": "INDIRECT_CALL_TO_NULL",
    "indirect call type mismatch": "BAD_SIGNATURE",
    "integer divide by zero": "INTEGER_DIVISION_BY_ZERO",
    "integer overflow": "INTEGER_OVERFLOW",
    "invalid conversion to integer": "BAD_CONVERSION_TO_INTEGER",
}
"""WasmEdge's words for traps, and wasmtime's."""


def modules(kind: str) -> list[bytes]:
    shape, tame = {
        "program": (SHAPE, False),
        "plug-in": (PLUGIN, False),
        "tame plug-in": (PLUGIN, True),
    }[kind]
    found: list[bytes] = []
    for number in range(EACH):
        chance = random.Random(f"differential {kind} {number}")
        # The bits of a NaN are each machine's own; and a memory can't be looked at after a start section's trap.
        more = ["--canonicalize-nans", "true", "--allow-start-export", "false"]
        wasm = smith(chance, *ENDING, *more, "--disallow-traps", str(tame).lower(), shape=shape)
        try:
            check_module(wasm)
        except ModuleRefused:
            continue
        found.append(wasm)
    assert len(found) > EACH / 2
    return found


@pytest.mark.parametrize("kind", ["program", "plug-in", "tame plug-in"])
def test_wasmedge_and_wasmtime_agree(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests: list[str] = []
    close = Memory.close

    def closed(memory: Memory) -> None:
        if memory is host().memory and memory.size:
            memory.need(memory.pages() * 65536)
            digests.append(hashlib.sha256(memory.buffer[:]).hexdigest())
        close(memory)

    monkeypatch.setattr(Memory, "close", closed)
    abi = "wagi" if kind == "program" else "extism"
    made, ours = modules(kind), []
    for wasm in made:
        loaded = function(wasm, tmp_path, abi=abi, entry="run" if abi == "extism" else "")
        digests.clear()
        try:
            loaded.call(Request("POST", "/run" if abi == "extism" else ""))
            told = ""
        except GuestFault as fault:
            told = str(fault)
        loaded.close()
        reasons = [reason for words, reason in REASONS.items() if f"It trapped: {words}" in told]
        ours.append((reasons[0] if reasons else "", digests[-1]))
    with by_wasmtime.apart() as pool:
        theirs = list(pool.map(by_wasmtime.run, made, [abi] * len(made)))
    assert [(trap, seen and digest) for (trap, digest), (_, seen) in zip(ours, theirs, strict=True)] == theirs
    empty = hashlib.sha256(bytes(65536)).hexdigest()
    assert len([digest for _, digest in ours if digest != empty]) > 3, "most have nothing to compare"
