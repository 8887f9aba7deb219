"""A control in front of the real one: it orders restores of nodes and gives their files, with the faults that the test
sets, and passes on everything else."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import msgspec
from aiohttp import web

from control.backups.objects import BackupFile
from control.protocol import wire
from edge_runtime.sync import identity
from tests.support.agents import Control
from tests.support.backup_files import BEGUN_MS, EVERY_MS
from tests.support.deadlines import deadline

LINEAGE = "ab" * 16
HOP = {"host", "content-length", "transfer-encoding", "connection", "date", "server", "content-encoding"}


@dataclass
class RestoringControl:
    """The running stand-in."""

    real: Control
    url: str = ""
    wanted: str = ""
    """The restore that nodes are to carry out, or are held at."""
    orders: dict[str, wire.RestoreOrder] = field(default_factory=dict)
    """By id; `latest` is what a node that joins again gets."""
    files: dict[str, bytes] = field(default_factory=dict)
    """By path."""
    results: list[tuple[str, wire.RestoreResult]] = field(default_factory=list)
    """What nodes have told."""
    asked: list[str] = field(default_factory=list)
    """The paths of files that were asked for, with the byte from which."""
    polls: int = 0
    cut: list[int] = field(default_factory=list)
    """For each of the next files the bytes after which the connection is cut."""
    refuse: dict[str, int] = field(default_factory=dict)
    """By method and path, or its beginning: the status that is answered instead."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Files are given once it is set."""

    def order(self, backup: Mapping[BackupFile, bytes], restore_id: str = "", **change: Any) -> str:
        """Order a restore to the end of these files; return its id."""
        restore_id = restore_id or str(uuid4())
        named = []
        for file, data in backup.items():
            path = f"/files/{restore_id}/{file.name}"
            self.files[path] = data
            named.append(wire.RestoreFile(file.name, len(data), path))
        last = max(file.last for file in backup)
        at = datetime.fromtimestamp((BEGUN_MS + last * EVERY_MS) / 1000, UTC)
        order = wire.RestoreOrder(wire.BackupPosition(LINEAGE, last), at, named)
        self.orders[restore_id] = msgspec.structs.replace(order, **change)
        if restore_id != "latest":
            self.wanted = restore_id
        return restore_id

    async def result(self, restore_id: str, count: int = 1) -> wire.RestoreResult:
        """The result of a restore, once it has been told so often."""
        async with deadline(60):
            while len(found := [result for id, result in self.results if id == restore_id]) < count:
                await asyncio.sleep(0.02)
        return found[-1]

    def lead(self, state: Path) -> None:
        """Have the node of a state directory believe that this is its control."""
        identity.write(state, replace(identity.read(state), control_url=self.url))


async def _serve(stand: RestoringControl, session: aiohttp.ClientSession, request: web.Request) -> web.StreamResponse:
    body, path = await request.read(), request.path
    said = f"{request.method} {path}"
    for beginning, status in stand.refuse.items():
        if said.startswith(beginning):
            return web.json_response({"code": "refused", "title": "It was refused", "status": status}, status=status)
    if said == "POST /v1/poll":
        stand.polls += 1
        if stand.wanted and msgspec.json.decode(body, type=wire.Poll).restore != stand.wanted:
            return _json(wire.Restore(stand.wanted))
    if path.startswith("/files/"):
        return await _file(stand, request)
    if path.startswith("/v1/nodes/self/restores/"):
        restore_id = path.rpartition("/")[2]
        if request.method == "PUT":
            stand.results.append((restore_id, msgspec.json.decode(body, type=wire.RestoreResult)))
            return web.Response(status=204)
        return _order(stand, restore_id)
    if said == "GET /v1/nodes/self/backup/latest":
        return _order(stand, "latest")
    headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
    try:
        async with session.request(
            request.method, f"{stand.real.url}{request.path_qs}", data=body, headers=headers, allow_redirects=False
        ) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP}
            return web.Response(status=answer.status, body=await answer.read(), headers=kept)
    except aiohttp.ClientError:
        # The real one is stopping.
        return web.Response(status=502)


def _json(message: wire.Message) -> web.Response:
    return web.Response(body=msgspec.json.encode(message), content_type="application/json")


def _order(stand: RestoringControl, restore_id: str) -> web.Response:
    if (order := stand.orders.get(restore_id)) is not None:
        return _json(order)
    problem = {"code": "unknown_restore", "title": "There is no such restore", "status": 404}
    return web.json_response(problem, status=404)


async def _file(stand: RestoringControl, request: web.Request) -> web.StreamResponse:
    await stand.gate.wait()
    start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    stand.asked.append(f"{request.path} {start}")
    if request.path not in stand.files:
        return web.Response(status=404)
    data = stand.files[request.path]
    response = web.StreamResponse(
        status=206 if start else 200,
        headers={"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {},
    )
    response.content_length = len(data) - start
    await response.prepare(request)
    if stand.cut:
        await response.write(data[start : start + stand.cut.pop(0)])
        await asyncio.sleep(0.05)  # so that what was written has left before the connection is cut
        assert request.transport is not None
        request.transport.abort()
        return response
    await response.write(data[start:])
    await response.write_eof()
    return response


@asynccontextmanager
async def restoring_control(real: Control) -> AsyncIterator[RestoringControl]:
    """Run the stand-in in front of the real control until the block ends."""
    stand = RestoringControl(real)
    stand.gate.set()
    trust = ssl.create_default_context(cafile=str(real.pki.ca))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust), auto_decompress=False) as session:
        app = web.Application(client_max_size=1 << 26)

        async def serve(request: web.Request) -> web.StreamResponse:
            return await _serve(stand, session, request)

        app.router.add_route("*", "/{tail:.*}", serve)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(real.pki.certificate, real.pki.key)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        stand.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield stand
        finally:
            await runner.cleanup()
