"""`python -m edge_runtime.oneshot.check restored`: does a database that was made of a backup work with its release?

It reads `{"database": PATH, "changes": [{"number", "sql"}, …], "probes": [{"name", "version", "manifest", "file"}, …]}`
on stdin. It compares the database's schema with what the changes make of an empty one, and runs the functions' probes
on it, each in its own child behind the fence of a worker, as `check probes` does; what a probe writes is undone. It
prints `{"ok": true, "findings": […], "untried": […]}`: what is wrong, and what couldn't be tried, one sentence each.
The database's file isn't changed; its log is gone afterwards.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import orjson
from msgspec import Struct

from edge_runtime import wal
from edge_runtime.aot_cache import AotFile, Damaged
from edge_runtime.children.warmup import rehearse
from edge_runtime.guests import guest
from edge_runtime.guests.abi.detect import ModuleRefused
from edge_runtime.oneshot.check_probes import ProbedFunction, code_of, loaded, run_probe
from edge_runtime.oneshot.check_schema import RegisteredChange, SchemaCheckRequest, history
from edge_runtime.oneshot.compiled_code import files_of
from edge_runtime.oneshot.forked import run_forked
from edge_runtime.sandbox import fence
from edge_runtime.sandbox.allowlists import RANDOM, WRITE
from edge_runtime.sql import database, schema
from edge_runtime.sql.access import AccessRules
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.libsql_connection import open_file
from edge_runtime.sql.schema_change import SchemaChangeRefused
from edge_runtime.sql.writer_lock import WriterLock
from edge_runtime.wasmedge import WasmEdgeError

SECONDS: Final = 40.0
"""Seconds of wall-clock time for all of it."""
EACH: Final = 10.0
"""Seconds for the comparison of schemas, and for one probe."""
SHOWN: Final = 20
"""The most definitions that are named."""


class RestoredCheckRequest(Struct):
    database: str
    """Path of the file, in a folder of its own."""
    changes: list[RegisteredChange]
    """The schema changes that it records, in their revisions; empty if its schema isn't to be compared."""
    probes: list[ProbedFunction]


def answer(request: RestoredCheckRequest) -> bytes:
    """Check the database; return the answer as JSON."""
    path = Path(request.database).absolute()
    findings: list[str] = []
    untried: list[str] = []
    if lacking := fence.lacking():
        untried = [f"no probe was tried: this machine can't fence in what runs a function. {'. '.join(lacking)}"]
        request.probes.clear()
    end = time.monotonic() + SECONDS

    def run(what: str, work: Callable[[], bytes]) -> None:
        seconds = min(EACH, end - time.monotonic())
        try:
            if seconds <= 0:
                raise TimeoutError
            found, status = run_forked(work, seconds)
        except TimeoutError:
            untried.append(f"{what} wasn't tried to its end: there wasn't the time")
        else:
            if os.WIFSIGNALED(status) or not found:
                untried.append(f"{what} wasn't tried to its end: its process ended (status {status})")
            elif text := found.decode(errors="replace").strip():
                findings.append(f"{what} {text}"[:2000])
        finally:
            for beside in (wal.log_of(path), wal.index_of(path)):
                beside.unlink(missing_ok=True)

    if request.changes:
        run("the schema", lambda: _compare(path, request.changes))
    if request.probes:
        guest.prepare()
        rehearse()
    for probed in request.probes:
        what = f"the probe of {probed.name}@{probed.version}"
        try:
            code = code_of(probed)
        except (ModuleRefused, OSError) as error:
            untried.append(f"{what} wasn't tried: {error}")
        else:
            run(what, lambda probed=probed, code=code: _probe(path, probed, code))  # type: ignore[misc]
    return orjson.dumps({"ok": True, "findings": findings, "untried": untried})


def _compare(path: Path, changes: list[RegisteredChange]) -> bytes:
    """Return what the database lacks of what the changes make, or has otherwise; a line break if nothing."""
    fence.enclose([(path.parent, WRITE), RANDOM])
    restored = LibsqlDatabase(open_file(path), WriterLock(os.memfd_create("writer.lock")), path)
    with database.in_memory() as expected:
        fence.seal("worker", expected.lock.fileno())
        restored.rows(f"PRAGMA hard_heap_limit = {database.HEAP_BYTES}")
        restored.rows("PRAGMA query_only = ON")
        try:
            history(expected, AccessRules.read(expected), SchemaCheckRequest(earlier=changes))
        except SchemaChangeRefused as refused:
            return f"can't be made anew to compare it: {refused}".encode()
        wanted, found = schema.shapes(expected), schema.shapes(restored)
    wrong = [f"{kind} {name}" for (kind, name), shape in wanted.items() if found.get((kind, name)) != shape]
    text = f"isn't what its changes make of it: {', '.join(sorted(wrong)[:SHOWN])}" if wrong else ""
    # With a line break, because an empty answer means a process that exited early.
    return f"{text}\n".encode()


def _probe(path: Path, probed: ProbedFunction, code: AotFile | Path) -> bytes:
    """Run a probe on the database; return how it fails, a line break if it doesn't."""
    fence.enclose([*files_of(code), (path.parent, WRITE)])
    opened = database.connect_until_exit(path, "NORMAL")
    fence.seal("worker", opened.lock.fileno())
    opened.rows("PRAGMA temp_store = MEMORY")
    try:
        function = loaded(probed, code)
    except (WasmEdgeError, Damaged, OSError) as error:
        return f"fails: the function can't be loaded: {error}".encode()
    opened.rows("BEGIN IMMEDIATE")
    failure = run_probe(opened, function, probed.manifest)
    return (f"fails: {failure}" if failure else "").encode() + b"\n"
