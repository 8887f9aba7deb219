"""What a worker may take of the machine's memory: its process is looked at, whatever the guest's own limit says."""

import mmap
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from control.protocol.manifest import Manifest
from edge_runtime.dispatch import resource_watchdog
from edge_runtime.dispatch.breaker import Breaker
from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.served_functions import ServedFunction, Tally
from edge_runtime.ipc.frames import LocalFunction
from tests.guests.build import guest, wat
from tests.support.edge import node

TAKES_AND_STAYS = """(module (memory (export "memory") 8192 8192) (func (export "_start")
  (memory.fill (i32.const 0) (i32.const 1) (i32.const 0x2000_0000)) (loop (br 0))))"""
"""512 MiB."""


@pytest.mark.usefixtures("programs_by_exec")
async def test_a_worker_that_takes_more_memory_than_it_may_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the guest's memory didn't count: what is looked at is the process."""
    monkeypatch.setattr(resource_watchdog, "allowed", lambda link, besides: 256 * 1024**2)
    async with node(tmp_path / "state", workers=1) as edge:
        # It has to be found with it: a hog that goes on may be done, and refused more, before anyone has looked.
        hog = wat(TAKES_AND_STAYS), {"memory_pages": 16_384, "time_limit_ms": 60_000}
        await edge.release({"hog": hog, "echo": guest("echo")})
        (before,) = edge.workers()
        assert await edge.problem("hog") == (507, "memory_limit")
        assert (await edge.call("echo", b"on"))[2] == b"on"
        assert edge.workers() != {before}


def test_what_a_worker_may_have(tmp_path: Path) -> None:
    """The most that any of its calls may have, and what their host needs."""

    def call(pages: int, abi: Literal["wagi", "extism"] = "wagi") -> Call:
        made = Call("f", "POST", "", b"", [], "", b"", lambda outcome: None)
        local = LocalFunction("f", 1, "", Manifest(abi=abi, memory_pages=pages), "")
        made.served = ServedFunction(0, local, Tally("f"), Breaker(), writes=False, limit=1.0, release=1)
        return made

    def link(*jobs: Any) -> Any:
        return SimpleNamespace(jobs=jobs)

    assert resource_watchdog.allowed(link(), 1000) == 1000
    assert resource_watchdog.allowed(link(call(2)), 1000) == 1000 + 2 * 65_536
    assert resource_watchdog.allowed(link(call(2), call(5), call(3)), 1000) == 1000 + 5 * 65_536
    assert resource_watchdog.allowed(link(call(2), call(2, "extism")), 1000) == 1000 + 4 * 65_536
    mine = resource_watchdog.private(os.getpid())
    assert mine > 10 * 1024**2
    # Pages of their own: what was freed before may be resident still.
    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    grown = mmap.mmap(-1, 64 * 1024**2, flags=anonymous)
    for at in range(0, len(grown), mmap.PAGESIZE):
        grown[at] = 1
    assert resource_watchdog.private(os.getpid()) > mine + len(grown) // 2
    with mmap.mmap(-1, 1024**3, flags=anonymous):
        assert resource_watchdog.private(os.getpid()) < mine + 2 * len(grown), (
            "reserved, as a guest's memory is, isn't taken"
        )
    file = tmp_path / "code"
    with file.open("wb") as written:
        # In small pieces: a large one may come from memory that was freed, and stays resident.
        for _ in range(1024):
            written.write(bytes(64 * 1024))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as code:
        assert sum(code[:: mmap.PAGESIZE]) == 0
        assert resource_watchdog.private(os.getpid()) < mine + 1.5 * len(grown), (
            "a file's pages are shared by all workers"
        )
    assert resource_watchdog.private(2**22 + 1) == 0, "nobody's"
