"""`python -m edge_runtime.oneshot.check probes`: do functions' probes still pass after a schema change?

It reads `{"change": SchemaCheckRequest, "probes": [{"name", "version", "manifest", "file"}, …]}` on stdin and prints
`{"ok": true, "failing": [{"name", "version", "message"}, …]}`. Each probe runs in its own child behind the fence of a
worker, on the interpreter, on generated rows: before the change, and after it. A probe is reported only if it passes
before the change and fails after it: one that fails before needs rows that only nodes have. No guest runs if a part of
the fence is missing. Snapshots, which are too slow for the interpreter, run what `compiled_code` has made of their
engines (`check engines`).
"""

import hashlib
import os
import time
from pathlib import Path
from typing import Final

import orjson
from msgspec import Struct

from control.protocol.manifest import Manifest, manifest_digest
from edge_runtime import aot_cache
from edge_runtime.aot_cache import BEST, AotFile, Damaged
from edge_runtime.children import probe_call
from edge_runtime.children.warmup import rehearse
from edge_runtime.guests import guest
from edge_runtime.guests.abi.detect import ModuleRefused
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.ipc.local_code import with_code
from edge_runtime.oneshot import compiled_code
from edge_runtime.oneshot.check_schema import SchemaCheckRequest, history
from edge_runtime.oneshot.forked import run_forked
from edge_runtime.oneshot.sample_rows import fill
from edge_runtime.sandbox import fence
from edge_runtime.sql import database, run_change
from edge_runtime.sql.access import AccessRules
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.schema_change import SchemaChangeRefused
from edge_runtime.wasmedge import WasmEdgeError

SECONDS: Final = 20.0
"""Seconds of wall-clock time for all probes together."""
EACH: Final = 5.0
"""Seconds for one probe, before and after the change."""


class ProbedFunction(Struct):
    """A function whose probe needs neither HTTP nor secrets."""

    name: str
    version: int
    manifest: Manifest
    file: str
    """Path of the artifact."""


class ProbesCheckRequest(Struct):
    change: SchemaCheckRequest
    probes: list[ProbedFunction]


def answer(request: ProbesCheckRequest) -> bytes:
    """Run the probes in turn; return the answer as JSON."""
    failing: list[dict[str, object]] = []
    if lacking := fence.lacking():
        message = f"wasn't tried: this machine can't fence in what runs a function. {'. '.join(lacking)}"
        failing = [{"name": probed.name, "version": probed.version, "message": message} for probed in request.probes]
        request.probes.clear()
    guest.prepare()
    rehearse()
    end = time.monotonic() + SECONDS
    for probed in request.probes:
        message = _run(request.change, probed, min(EACH, end - time.monotonic()))
        if message:
            failing.append({"name": probed.name, "version": probed.version, "message": message[:2000]})
    return orjson.dumps({"ok": True, "failing": failing})


def _run(change: SchemaCheckRequest, probed: ProbedFunction, seconds: float) -> str:
    """Return what is wrong with the probe, as the end of a sentence about it; '' if nothing."""
    if seconds <= 0:
        return f"wasn't tried: all probes together took more than {SECONDS:.0f} s"
    try:
        code = code_of(probed)
    except (ModuleRefused, OSError) as error:
        return f"wasn't tried: {error}"
    try:
        answer, status = run_forked(lambda: _fenced(change, probed, code), seconds)
    except TimeoutError:
        return f"wasn't tried to its end: it took more than {seconds:.0f} s, where it runs without being compiled"
    if os.WIFSIGNALED(status) or not answer:
        return f"wasn't tried to its end: its process ended (status {status})"
    failure = answer.decode(errors="replace").strip()
    return f"fails after it: {failure}" if failure else ""


def code_of(probed: ProbedFunction) -> AotFile | Path:
    """Return a snapshot's AOT file, which `check engines` has made, and any other module itself.

    Raises: ModuleRefused, when a snapshot has none; OSError, when a file can't be used.
    """
    path = Path(probed.file).absolute()
    wasm, folder = path.read_bytes(), aot_cache.users_folder()
    image = compiled_code.image_of(folder, wasm)
    if image is None:
        return path
    aot = aot_cache.find(folder, hashlib.sha256(wasm).hexdigest(), BEST)
    if aot is None:
        raise ModuleRefused("function_uncompiled", "its engine isn't compiled yet; try again in a minute")
    return aot


def _fenced(change: SchemaCheckRequest, probed: ProbedFunction, code: AotFile | Path) -> bytes:
    fence.enclose(compiled_code.files_of(code))
    with database.in_memory() as opened:
        fence.seal("worker", opened.lock.fileno())
        # With a line break, because an empty answer means a process that exited early.
        return check(opened, change, probed, code).encode() + b"\n"


def loaded(probed: ProbedFunction, code: AotFile | Path) -> guest.LoadedFunction:
    """Raises: WasmEdgeError, Damaged or OSError, when it can't be loaded."""
    sha256 = hashlib.sha256(Path(probed.file).read_bytes()).hexdigest() if isinstance(code, Path) else ""
    manifest = probed.manifest
    local = LocalFunction(probed.name, probed.version, sha256, manifest, manifest_digest(manifest))
    return guest.LoadedFunction.load(with_code(local, code))


def check(opened: LibsqlDatabase, change: SchemaCheckRequest, probed: ProbedFunction, code: AotFile | Path) -> str:
    """Return why the probe fails after the change, if it doesn't fail before it; else ''."""
    rules = AccessRules.read(opened)
    history(opened, rules, change)
    opened.rows("PRAGMA foreign_keys = ON")
    fill(opened)
    opened.rows("PRAGMA foreign_keys = OFF")
    manifest = probed.manifest
    try:
        function = loaded(probed, code)
    except (WasmEdgeError, Damaged, OSError) as error:
        return f"the function can't be loaded: {error}"
    opened.rows("BEGIN IMMEDIATE")
    if run_probe(opened, function, manifest):
        return ""
    if not opened.in_transaction:
        return ""
    try:
        run_change.run(opened, rules, change.sql)
    except SchemaChangeRefused:
        # It fails on the generated rows: that was reported.
        return ""
    return run_probe(opened, function, manifest)


def run_probe(opened: LibsqlDatabase, function: guest.LoadedFunction, manifest: Manifest) -> str:
    """Run the probe in the open transaction, and undo its writes; return why it failed, or ''."""
    probe = manifest.probe
    assert probe is not None  # noqa: S101
    try:
        answer = probe_call.call(opened, 0, function, manifest)
    except guest.GuestFault as fault:
        return f"{fault} ({fault.code})"
    if answer.status == probe.status:
        return ""
    shown = answer.body[:200].decode(errors="replace")
    return f"{probe.method} {probe.path} answers {answer.status} in place of {probe.status}: {shown}"
