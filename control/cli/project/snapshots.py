"""Snapshots of functions' modules, made by the edge's code in a fenced process (`edge_runtime.oneshot.snapshot`).

`made` is for whatever builds a module: it has an export of it run once, and writes the module as that has left it.
"""

import asyncio
import base64
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from control.cli.support.client import Failure, Json

MANY = 64
"""Data segments of a module that are worth joining, as in `edge_runtime.guests.abi.snapshot`."""
LIMIT = 120.0
"""Seconds that an initialiser may take."""
_DATA = 11
"""The number of a module's section with data segments."""


class SnapshotFailed(Failure):
    """There is no snapshot of a module; the message says why."""


@dataclass(frozen=True)
class Initialisation:
    """How a module is initialised for its snapshot."""

    init: str
    """The export that is run once, at build."""
    renew: str = ""
    """The export that each call runs first; '' for none."""
    allow: Collection[str] = ()
    """Names of secrets and variables whose values may be in the snapshot."""
    stdin: bytes = b""
    """What the initialiser reads."""
    compiled: bool = False
    """Whether it runs as machine code, which is kept for the user: for an engine that many functions share. A module
    that is new in each build runs sooner on the interpreter."""
    limit: float = LIMIT
    """Seconds that it may take."""


async def made(
    module: Path,
    out: Path,
    how: Initialisation,
    *,
    project: Path,
    memory_pages: int = 1024,
    secrets: Mapping[str, str] | None = None,
) -> str:
    """Write the snapshot of a module to `out`, whole or not at all; return what the initialiser logged. `project` is
    the project's folder, and `secrets` are the function's; neither may be in the snapshot.

    Raises: SnapshotFailed.
    """
    done = await _run(
        {
            "module": str(module.absolute()),
            "out": str(out.absolute()),
            "init": how.init,
            "renew": how.renew,
            "stdin": base64.b64encode(how.stdin).decode(),
            "memory_pages": memory_pages,
            "compiled": how.compiled,
            "secrets": dict(secrets or {}),
            "project": str(project.resolve()),
            "allow": list(how.allow),
            "limit": how.limit,
        }
    )
    log: str = done["log"]
    if done["message"]:
        logged = f"\nIt logged:\n{log.rstrip()}" if log.strip() else ""
        raise SnapshotFailed(f"no snapshot can be made of {module}: {done['message']}{logged}")
    return log


async def joined(module: Path) -> None:
    """Make few data segments of many in a module's file: another program that makes snapshots leaves thousands.

    Raises: SnapshotFailed, when the process that does it fails.
    """
    if _segments(module.read_bytes()) >= MANY:
        await _run({"module": str(module.absolute()), "out": str(module.absolute())})


def _segments(wasm: bytes) -> int:
    """Return how many data segments a module has; 0 if it can't be read."""
    at = 8
    while at < len(wasm):
        section = wasm[at]
        size, at = _number(wasm, at + 1)
        if section == _DATA:
            return _number(wasm, at)[0]
        at += size
    return 0


def _number(wasm: bytes, at: int) -> tuple[int, int]:
    """Return an unsigned LEB128 number, as far as it is there, and the position after it."""
    value = 0
    for shift, byte in enumerate(wasm[at : at + 5]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    return value, at + 5


async def _run(order: Json) -> Json:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "edge_runtime.oneshot.snapshot",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate(orjson.dumps(order))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        last = err.decode(errors="replace").strip().rpartition("\n")[2]
        raise SnapshotFailed(f"the snapshot of {order['module']} ended with status {process.returncode}: {last}")
    found: Json = orjson.loads(out)
    if found["message"] and err:
        found["message"] += f"\n{err.decode(errors='replace').strip()}"
    return found
