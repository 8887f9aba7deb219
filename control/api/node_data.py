"""What operators do with the backup of one node's database: prove it now, and get a copy of the data."""

import asyncio
import base64
import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final
from uuid import UUID

from msgspec import Struct

from control.access.rights import Role
from control.api import artifacts, node_views
from control.api.operations import ApiCall, Reply, operation
from control.backups import targets
from control.backups.builder import BuiltDatabase
from control.problems import ProblemError
from control.storage.announcements import Changed
from control.storage.connection import Connection

COPIES: Final = 2
"""Databases that this replica makes at once for operators."""
PIECE: Final = 256 * 1024
BUILD_ERRORS: Final = ("backup_incomplete", "backup_damaged", "check_unavailable", "spool_failed", "spool_full")

_copying: Counter[str] = Counter()
"""The nodes of which this process makes databases for operators."""


class Drill(Struct):
    """What a drill of a node's backup has found."""

    node: str
    lineage: str
    transaction: int
    """The last transaction that was restored; 0 if none was."""
    at: datetime | None
    """When that was the state of the node's database."""
    proven: bool
    findings: list[str]
    """What is wrong, one sentence each; empty if it is proven."""
    untried: list[str]
    """What couldn't be tried."""
    size: int
    """Bytes of the database."""
    read: int
    """Bytes that were read from the store."""
    release: int
    """The number of the release that it has; 0 without one."""
    probes: int
    """The probes that have passed."""


class DataQuery(Struct, forbid_unknown_fields=True):
    at: str = targets.LATEST
    """An RFC 3339 time, `before:RELEASE`, `latest`, or `LINEAGE/TRANSACTION`."""


@operation(
    "POST",
    "/v1/nodes/{node}/drill",
    "Prove a node's backup now",
    role="deploy",
    everywhere=False,
    answers={200: Drill},
    errors=("unknown_node", "backup_off", "too_many_acts", *BUILD_ERRORS, *artifacts.STORE_ERRORS),
)
async def drill(call: ApiCall) -> Reply:
    """Restore the latest state that the store has, check it, and run the release's probes on it."""
    if kept := await call.replayed(200):
        return kept
    id, name = await _node(call, "deploy")
    drills = call.services.drills
    history = await drills.history(str(id))
    if drills.busy:
        raise ProblemError("too_many_acts", "this replica proves a backup already; try again", retry_after=5)
    found = await drills.drill(history)
    told = Drill(
        node=name,
        lineage=found.lineage,
        transaction=found.transaction,
        at=found.at,
        proven=not found.findings,
        findings=found.findings,
        untried=found.untried,
        size=found.size,
        read=found.read,
        release=found.release,
        probes=found.probes,
    )

    async def record(conn: Connection, _changed: Changed) -> Drill:
        details = {"lineage": told.lineage, "transaction": told.transaction, "findings": told.findings}
        await call.audit(conn, "node.drill", name, details)
        return told

    return await call.write(record, status=200)


@operation(
    "GET",
    "/v1/nodes/{node}/data",
    "A copy of a node's database, as it was at a time",
    role="admin",
    everywhere=False,
    answers={200: bytes},
    errors=("unknown_node", "unknown_release", "too_many_acts", *BUILD_ERRORS, *artifacts.STORE_ERRORS),
    media="application/vnd.sqlite3",
)
async def get_data(call: ApiCall, query: DataQuery) -> Reply:
    """Make the database of what the store has. The headers say which state it is and its digest."""
    target = targets.parse(query.at, "at")
    id, name = await _node(call, "admin")
    pieces = _pieces(call, id, name, target)
    try:
        headers: object = await anext(pieces)
    except BaseException:
        await pieces.aclose()
        raise
    return Reply(200, pieces, headers)  # type: ignore[arg-type]


async def _pieces(call: ApiCall, id: UUID, name: str, target: targets.Target) -> AsyncGenerator[object]:
    """Yield the answer's headers, then the bytes of a database that is gone afterwards."""
    services = call.services
    async with AsyncExitStack() as stack:
        stack.enter_context(_one_at_once(str(id)))
        state = await services.states.find(str(id), target)
        built = await stack.enter_async_context(services.builder.built(str(id), state.lineage, state.transaction))

        async def record(conn: Connection) -> None:
            details = {"lineage": state.lineage, "transaction": state.transaction, "at": state.at.isoformat()}
            await call.audit(conn, "node.data", name, details)

        await services.databases.writes.transaction(record)
        yield await _headers(built, state)
        with built.path.open("rb") as file:
            while piece := await asyncio.to_thread(file.read, PIECE):
                yield piece


async def _headers(built: BuiltDatabase, state: targets.RestorableState) -> tuple[tuple[bytes, bytes], ...]:
    digest = base64.b64encode(await asyncio.to_thread(_sha256, built.path)).decode()
    said = {
        "content-type": "application/vnd.sqlite3",
        "content-length": str(built.size),
        "repr-digest": f"sha-256=:{digest}:",
        "skerry-position": f"{state.lineage}/{state.transaction}",
        "skerry-state-at": state.at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    if built.findings:
        # What the database itself says may be in them.
        text = " ".join(built.findings)[:1000]
        said["skerry-findings"] = "".join(char if " " <= char <= "~" else "?" for char in text)
    return tuple((name.encode(), value.encode()) for name, value in said.items())


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


async def _node(call: ApiCall, role: Role) -> tuple[UUID, str]:
    """Return the id and the name of the node of the path, for which the operator must have a role."""
    node = await call.services.db.read(lambda conn: node_views.find(conn, call.operator, role, call.path["node"]))
    return node.id, node.name


@contextmanager
def _one_at_once(node_id: str) -> Iterator[None]:
    """Take a place for a database that is made for an operator. Raises: ProblemError too_many_acts."""
    if _copying[node_id] or _copying.total() >= COPIES:
        text = f"{COPIES} databases are made by this replica already, or one of this node; try again"
        raise ProblemError("too_many_acts", text, retry_after=5)
    _copying[node_id] += 1
    try:
        yield
    finally:
        del _copying[node_id]
