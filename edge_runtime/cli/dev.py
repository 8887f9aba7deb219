"""`skerry-edge dev`: a local edge for `skerry dev`, without control. It reads releases as JSON lines from stdin,
reports what happens as JSON lines on stdout, and exits when stdin ends.

In: `{"functions": [{"name", "module", "manifest"}], "changes": [{"number", "name", "sql"}]}`, complete each time.
Out, by `event`: `ready`, `serving` (seconds it took, schema), `failed` (code, message), `outdated` (message: an applied
schema change is now different, so the database must be recreated), `compiling` (what: an engine that takes long), `log`
(text), `call` (method, path, status, seconds, code, message).

A `POST /functions/NAME/_skerry/tick` starts a tick by hand, an ordinary call with the headers of one, by the query
`cron` (the line, if there are several), `at` (when it is due, RFC 3339; without it now) and `event` (`release` for a
call after a release). A node has no such path: there, nobody but the node says that it calls by itself.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl
from uuid import uuid4

import msgspec
import orjson
from msgspec import Meta, Struct

from control.protocol import ticks, wire
from control.protocol.manifest import completed, manifest_digest
from edge_runtime import files, front
from edge_runtime.aot_cache import FOLDER, QUICK, copy_engines, users_folder
from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.outcomes import Answer, Outcome, Refusal, refused
from edge_runtime.errors import SyncFailed
from edge_runtime.guests.abi.detect import ModuleRefused
from edge_runtime.ipc import frames
from edge_runtime.oneshot.check import check_module
from edge_runtime.release.compiler import Compiler
from edge_runtime.release.manager import ReleaseManager
from edge_runtime.release.secrets import FILE
from edge_runtime.settings import EdgeSettings
from edge_runtime.sync.node_agent import AgentFacts, Backup
from edge_runtime.sync.plan_check import parse_manifest
from edge_runtime.telemetry.poll_report import PollReport
from edge_runtime.telemetry.spans import TraceSpan

TICK_PATH = "/_skerry/tick"
"""Below a function's own path."""
LINE_LIMIT = 64 * 1024 * 1024
"""Bytes of a line on stdin, which has the whole schema in it."""


class WantedChange(Struct):
    number: int
    name: str
    sql: str


class WantedFunction(Struct):
    name: str
    module: str
    """Path of the wasm."""
    manifest: dict[str, Any] = {}


class Wanted(Struct):
    """A release as `skerry dev` requests it."""

    functions: list[WantedFunction]
    changes: list[WantedChange] = []


class _TickQuery(Struct, forbid_unknown_fields=True):
    """The query of a request for a tick."""

    event: ticks.Event = "schedule"
    cron: str = ""
    at: Annotated[datetime, Meta(tz=True)] | None = None


class Outdated(Exception):
    """A schema change in the database isn't what the project now has."""


def run(settings: EdgeSettings, *, fresh: bool) -> None:
    """Serve until stdin ends, or until SIGINT or SIGTERM; `fresh`: with a new database. Raises: as `front.run`."""
    if fresh:
        shutil.rmtree(settings.state / "db", ignore_errors=True)
    for name in ("skerry.guest", "skerry.traps"):
        guests = logging.getLogger(name)
        guests.addHandler(_GuestLog())
        guests.setLevel(logging.DEBUG)
        guests.propagate = False
    # Every call is reported anyway.
    logging.getLogger("skerry.calls").setLevel(logging.CRITICAL)
    state, has_secrets = settings.state.absolute(), settings.secrets is not None
    front.run(settings, lambda manager, compiler: Driver(state, manager, compiler, has_secrets=has_secrets), _watch)


def tell(event: str, **told: Any) -> None:
    """Write an event to stdout, as a line of JSON."""
    # If nobody reads stdout any more, stdin has ended too, and this process is about to exit.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.buffer.write(orjson.dumps({"event": event, **told}) + b"\n")
        sys.stdout.buffer.flush()


class _GuestLog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        tell("log", text=level + record.getMessage())


def _watch(made: front.Front) -> None:
    """Report each call when it ends, and make ticks of those that ask for one; and don't compile at the best level,
    since no version lasts long enough."""
    made.compiler.best = QUICK
    submit = made.app.submit

    def submitted(call: Call) -> None:
        began = time.monotonic()
        done = call.done

        def ended(outcome: Outcome) -> None:
            done(outcome)
            code, message = ("", "") if isinstance(outcome, Answer) else (outcome.code, outcome.message)
            path = f"{call.script}{call.path}" + (f"?{call.query.decode('latin-1')}" if call.query else "")
            took = time.monotonic() - began
            tell("call", method=call.method, path=path, status=outcome.status, seconds=took, code=code, message=message)

        call.done = ended
        if call.path == TICK_PATH and (refusal := _make_tick(call, made.manager.release)) is not None:
            call.end(refusal)
        else:
            submit(call)

    made.app.submit = submitted


def _make_tick(call: Call, release: frames.LocalRelease | None) -> Refusal | None:
    """Make a tick of a call that asks for one; return why there is no such tick, if there is none."""
    if call.method != "POST":
        return refused("method_unknown", "A tick is started by POST.", allow="POST")
    manifest = next((f.manifest for f in release.functions if f.name == call.name), None) if release else None
    if manifest is None:
        return None
    try:
        asked = msgspec.convert(dict(parse_qsl(call.query.decode("latin-1"))), _TickQuery)
        cron = ticks.chosen(call.name, manifest, asked.event, asked.cron)
    except (msgspec.ValidationError, ticks.TickUnfit) as unfit:
        return refused("request_unfit", f"{unfit}.")
    at = time.time() if asked.at is None else asked.at.timestamp()
    call.path, call.query, call.body = "/", b"", b""
    headers = [("host", "localhost"), ("content-length", "0"), *ticks.headers(cron, at)]
    call.headers = [(name.encode(), value.encode()) for name, value in headers]
    return None


class Driver:
    """Replaces the agent: releases come from stdin."""

    def __init__(self, state: Path, manager: ReleaseManager, compiler: Compiler, *, has_secrets: bool = False) -> None:
        """`has_secrets`: whether a file of secrets was named."""
        self._artifacts = state / "artifacts"
        self._aot = state / FOLDER
        self._manager = manager
        self._compiler = compiler
        self._own_secrets = None if has_secrets else state / FILE
        """The file of secrets in the state directory, if no other one was named."""
        self._before: set[str] = set()
        """sha256 of the previously served artifacts: a compiler may still be working on one."""
        self.put_span: Callable[[TraceSpan], None] | None = None
        self.renamed: Callable[[str], None] = lambda name: None
        self.numbers = PollReport()
        self.watched = None
        self.backup: Backup | None = None

    def status(self) -> dict[str, Any]:
        return {}

    def facts(self) -> AgentFacts:
        return AgentFacts()

    async def run(self) -> None:
        """Serve the releases from stdin until cancelled; when stdin ends, ask the process to stop."""
        reader = asyncio.StreamReader(limit=LINE_LIMIT)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        tell("ready")
        while line := await reader.readline():
            began = time.monotonic()
            try:
                await self._release(msgspec.json.decode(line, type=Wanted))
            except Outdated as outdated:
                tell("outdated", message=str(outdated))
            except (SyncFailed, ModuleRefused) as failed:
                tell("failed", code=failed.code, message=str(failed))
            except (OSError, msgspec.MsgspecError) as error:
                tell("failed", code="", message=str(error))
            else:
                tell("serving", seconds=time.monotonic() - began, schema=self._manager.inventory.schema_version)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    async def _release(self, wanted: Wanted) -> None:
        """Serve a release. Raises: Outdated; ModuleRefused; SyncFailed; OSError; the previous release then stays in
        service."""
        changes = self._to_apply(wanted)
        serving = self._manager.release
        number = serving.generation + 1 if serving is not None else 1
        functions, planned = [], []
        for each in wanted.functions:
            function, size = await asyncio.to_thread(self._function, each, number)
            functions.append(function)
            planned.append(
                wire.PlannedFunction(
                    function.name,
                    number,
                    function.sha256,
                    size,
                    "",
                    msgspec.to_builtins(function.manifest),
                    function.manifest_digest,
                )
            )
        self._check_secrets(functions)
        names = {function.name for function in functions}
        plan = wire.Plan(
            sync_id=str(uuid4()),
            lease=60.0,
            generation=number,
            release_id=str(uuid4()),
            release_number=number,
            schema_floor=len(wanted.changes),
            schema_changes=changes,
            functions=planned,
            remove=[f.name for f in serving.functions if f.name not in names] if serving is not None else [],
        )
        await self._manager.apply(plan, await self._compiled(functions))
        self._collect({function.sha256 for function in functions})

    async def _compiled(self, functions: list[frames.LocalFunction]) -> list[frames.LocalFunction]:
        """Return the functions with their code. Engines of snapshots, which take long to compile, are taken from the
        user's cache, and left there for the next `skerry dev`. Raises: SyncFailed."""

        def copy(source: Path, target: Path) -> None:
            with contextlib.suppress(OSError):
                copy_engines(source, target)

        await asyncio.to_thread(copy, users_folder(), self._aot)
        made = await self._compiler.functions(functions, tell=lambda what: tell("compiling", what=what))
        if any(function.image for function in made):
            await asyncio.to_thread(copy, self._aot, users_folder())
        return made

    def _check_secrets(self, functions: list[frames.LocalFunction]) -> None:
        """Check for secrets. Raises: SyncFailed, when functions need secrets and no file could have them: a node's own
        message would name a file in a folder that disappears when `skerry dev` exits."""
        needing = [function for function in functions if function.manifest.secrets]
        if needing and self._own_secrets is not None and not self._own_secrets.exists():
            needs = ", ".join(f"{name} of {f.name}" for f in needing for name in f.manifest.secrets)
            raise SyncFailed(
                "secret_missing",
                f"There is no file with the values of secrets ({needs}): start `skerry dev` with --secrets FILE, which "
                f"has a table for each function, as [{needing[0].name}].",
            )

    def _to_apply(self, wanted: Wanted) -> list[wire.PlannedChange]:
        """Return the schema changes that the database lacks. Raises: Outdated, when an applied one has changed."""
        applied = {change.number: change.checksum for change in self._manager.inventory.schema_changes}
        planned = [
            wire.PlannedChange(change.number, 1, change.name, wire.schema_checksum(change.sql), change.sql)
            for change in wanted.changes
        ]
        names = {change.number: change for change in planned}
        for number, checksum in applied.items():
            if number not in names:
                raise Outdated(f"schema change {number} is applied, and its file is gone")
            if names[number].checksum != checksum:
                raise Outdated(f"schema change {number} ({names[number].name}) has changed since it was applied")
        return [change for change in planned if change.number not in applied]

    def _function(self, wanted: WantedFunction, version: int) -> tuple[frames.LocalFunction, int]:
        """Return the function, its artifact in the node's folder, and the artifact's size in bytes.

        Raises: ModuleRefused; SyncFailed.
        """
        wasm = Path(wanted.module).read_bytes()
        manifest = parse_manifest(wanted.name, wanted.manifest)
        found = check_module(wasm, pages_limit=manifest.memory_pages)
        if manifest.abi not in ("", found["abi"]):
            raise ModuleRefused(
                "module_refused", f"The module speaks {found['abi']}, the manifest says {manifest.abi}."
            )
        manifest = completed(msgspec.structs.replace(manifest, abi=found["abi"]))
        sha256 = hashlib.sha256(wasm).hexdigest()
        path = self._artifacts / f"{sha256}.wasm"
        if not path.exists():
            files.write(path, wasm)
        return frames.LocalFunction(wanted.name, version, sha256, manifest, manifest_digest(manifest)), len(wasm)

    def _collect(self, serving: set[str]) -> None:
        """Remove all artifacts except those served now and those served before."""
        keep = serving | self._before
        for path in self._artifacts.glob("*.wasm"):
            if path.stem not in keep:
                path.unlink(missing_ok=True)
        self._compiler.collect(keep)
        self._before = serving
