"""Nodes' side of their backups: where files may be put, what is there, and what of it is to be brought back."""

import asyncio
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

from control.access import auth
from control.api import artifacts
from control.api.operations import ApiCall, Reply, operation
from control.backups import grants, objects, restores
from control.backups.targets import AtTime, AtTransaction, Latest, RestorableState
from control.problems import ProblemError
from control.protocol import wire
from control.storage import queries
from control.storage.announcements import Changed
from control.storage.connection import Connection
from control.storage.object_store import WriteConflict

LIFE = 3600
"""Seconds for which a URL is valid at most; `presigned_life` may be less."""
MOST_BYTES = 5 * 1024**3
"""Bytes of a file at most: what S3 takes in one piece."""
AT_ONCE = 8
"""Files that go through this replica at once, each of another node."""

SIGNED = 16
"""URLs that are signed before other tasks run."""

PATH = "/v1/nodes/self/backup/uploads/{lineage}/{level}/{file}"
HISTORIES = queries.load("backups").value("lineages", str)
_MD5 = re.compile("[0-9a-f]{32}")
_MD5_IN_BASE64 = re.compile("[A-Za-z0-9+/]{22}==")
_passing: Counter[str] = Counter()
"""The nodes whose files go through this process now."""


@operation(
    "POST",
    "/v1/nodes/self/backup/uploads",
    "Get URLs for files of the node's backup",
    role="node",
    answers={200: wire.Uploads},
    errors=("backup_off", "backup_ended", "too_many_acts"),
)
async def grant_uploads(call: ApiCall, body: wire.UploadsWanted) -> Reply:
    """Sign a URL for each file, all under the node's own prefix, at which there may be nothing yet.

    A new lineage ends the node's earlier one: from then on that gets no URLs.
    """
    services = call.services
    _on(call)
    files = [grants.file_of(name, "names") for name in body.names]
    services.grants.count(call.node_id, len(files))
    await services.grants.check(call.node_id, body.lineage, call.credential_id)
    seconds = min(services.settings.presigned_life, LIFE)
    if services.settings.artifacts_delivery == "control":
        urls = [f"/v1/nodes/self/backup/uploads/{body.lineage}/{file.name}" for file in files]
    else:
        urls = []
        for index, file in enumerate(files):
            if index % SIGNED == SIGNED - 1:
                await asyncio.sleep(0)
            urls.append(await services.store.upload_url(objects.key(call.node_id, body.lineage, file), seconds))
    return Reply(200, wire.Uploads(urls, float(seconds)))


@operation(
    "PUT",
    PATH,
    "Put a file of the node's backup, where the store is private",
    role="node",
    answers={201: None},
    errors=(
        *("backup_off", "backup_ended", "backup_file_exists", "no_such_path", "too_many_acts"),
        *("spool_failed", "spool_full", *artifacts.STORE_ERRORS),
    ),
    stream=True,
    media="application/octet-stream",
)
async def put_upload(call: ApiCall) -> Reply:
    """Pass a file on to the store, where there may be none yet; its Content-MD5, too, which the store compares."""
    services, lineage = call.services, call.path["lineage"]
    if services.settings.artifacts_delivery != "control":
        raise ProblemError("no_such_path", "files of backups go to the store by the URLs that control has signed")
    _on(call)
    file = grants.file_of(f"{call.path['level']}/{call.path['file']}", "file")
    services.grants.count(call.node_id, 1)
    await services.grants.check(call.node_id, lineage, call.credential_id)
    folder, md5 = services.settings.spool, _content_md5(call)
    with _one_at_once(call.node_id), artifacts.spool_failures(folder):
        # Without a name, so that a kill leaves nothing behind.
        spooled = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        try:
            await artifacts.spool(call, spooled, MOST_BYTES)
            await services.store.put_new(objects.key(call.node_id, lineage, file), spooled, md5)
        except WriteConflict:
            text = f"there is a file {file.name} of the history {lineage} already; compare it with this one"
            raise ProblemError("backup_file_exists", text, field="file") from None
        finally:
            with suppress(OSError):
                spooled.close()
    return Reply(201, None)


@operation(
    "GET",
    PATH,
    "What the store has of a file of the node's backup",
    role="node",
    answers={200: wire.UploadedFile},
    errors=("unknown_backup_file", *artifacts.STORE_ERRORS),
)
async def get_upload(call: ApiCall) -> Reply:
    """Tell size and digest, by which a node knows whether a file is its own whose upload had no answer."""
    lineage = call.path["lineage"]
    file = grants.file_of(f"{call.path['level']}/{call.path['file']}", "file")
    call.services.grants.count(call.node_id, 1)
    found = await call.services.store.tagged(objects.key(call.node_id, lineage, file))
    if found is None:
        text = f"the store has no file {file.name} of the history {lineage}"
        raise ProblemError("unknown_backup_file", text, field="file")
    size, tag = found
    tag = tag.strip('"')
    return Reply(200, wire.UploadedFile(size, tag if _MD5.fullmatch(tag) else ""))


@operation(
    "GET",
    "/v1/nodes/self/restores/{id}",
    "Get what the node is to bring back",
    role="node",
    answers={200: wire.RestoreOrder},
    errors=("unknown_restore", "backup_incomplete", "backup_damaged", *artifacts.STORE_ERRORS),
)
async def get_restore(call: ApiCall) -> Reply:
    """Name the files of the state, each with a URL; asked again, with fresh ones."""
    node_id, id = UUID(call.node_id), UUID(call.path["id"])
    restore = await call.services.databases.joins.read(lambda conn: restores.ordered(conn, node_id, id))
    position = AtTransaction(restore.lineage, restore.transaction_id)
    return await _order(call, str(restore.source), await call.services.states.find(str(restore.source), position))


@operation(
    "PUT",
    "/v1/nodes/self/restores/{id}",
    "Tell what came of a restore",
    role="node",
    answers={204: None},
    errors=("unknown_restore",),
)
async def tell_restore(call: ApiCall, body: wire.RestoreResult) -> Reply:
    """Store what came of it; of several reports, the first counts."""
    now, id = call.services.clock.now(), UUID(call.path["id"])

    async def work(conn: Connection) -> None:
        await auth.refuse_revoked(conn, call.credential_id)
        changed = Changed()
        await restores.tell(conn, changed, now, UUID(call.node_id), id, body)
        await changed.announce(conn)

    await call.services.databases.joins.transaction(work)
    await call.services.fleet.announced()
    return Reply(204, None)


@operation(
    "GET",
    "/v1/nodes/self/backup/latest",
    "Get the last state of the node's database that is at the store",
    role="node",
    answers={200: wire.RestoreOrder},
    errors=("unknown_backup", "backup_incomplete", "backup_damaged", *artifacts.STORE_ERRORS),
)
async def get_latest(call: ApiCall) -> Reply:
    """For a node that has joined again, with an empty disk."""
    node_id = call.node_id
    if not await call.services.databases.joins.read(lambda conn: conn.column(HISTORIES, node_id)):
        raise ProblemError("unknown_backup", "the store has no backup of this node: begin with an empty database")
    try:
        state = await call.services.states.find(node_id, Latest())
    except ProblemError as problem:
        if problem.code != "backup_incomplete":
            raise
        # What there is up to a gap is better than nothing.
        state = await call.services.states.find(node_id, AtTime(call.services.clock.now()))
    return await _order(call, node_id, state)


@operation(
    "GET",
    "/v1/nodes/self/backup/files/{lineage}/{level}/{file}",
    "Get a file of a backup, where the store is private",
    role="node",
    answers={200: bytes, 206: bytes},
    errors=("no_such_path", "unknown_backup_file", *artifacts.STORE_ERRORS),
    media="application/octet-stream",
)
async def get_file(call: ApiCall) -> Reply:
    """Pass on a file of the node's own backup, or of what it is to bring back."""
    services, lineage = call.services, call.path["lineage"]
    if services.settings.artifacts_delivery != "control":
        raise ProblemError("no_such_path", "files of backups come from the store by the URLs that control has signed")
    name = f"{call.path['level']}/{call.path['file']}"
    file, source, cached = objects.parse_name(name), call.node_id, services.fleet.nodes.get(call.node_id)
    if cached is not None and cached.restore_id:
        node_id, id = UUID(call.node_id), UUID(cached.restore_id)
        with suppress(ProblemError):
            restore = await services.databases.joins.read(lambda conn: restores.ordered(conn, node_id, id))
            source = str(restore.source) if restore.lineage == lineage else source
    try:
        if file is None:
            raise ProblemError("unknown_artifact", "")
        return await artifacts.passed_on(call, objects.key(source, lineage, file), "application/octet-stream")
    except ProblemError as error:
        if error.code != "unknown_artifact":
            raise
        text = f"the store has no file {name} of the history {lineage}"
        raise ProblemError("unknown_backup_file", text, field="file") from None


async def _order(call: ApiCall, source: str, state: RestorableState) -> Reply:
    """Answer with the files that a state of a node is made of, each with a URL."""
    services, files = call.services, []
    seconds = min(services.settings.presigned_life, LIFE)
    for index, file in enumerate(state.files):
        if index % SIGNED == SIGNED - 1:
            await asyncio.sleep(0)
        if services.settings.artifacts_delivery == "control":
            url = f"/v1/nodes/self/backup/files/{state.lineage}/{file.name}"
        else:
            url = await services.store.download_url(objects.key(source, state.lineage, file), seconds)
        files.append(wire.RestoreFile(file.name, file.size, url))
    return Reply(200, wire.RestoreOrder(wire.BackupPosition(state.lineage, state.transaction), state.at, files))


def _on(call: ApiCall) -> None:
    """Check, in memory, that the node's group is backed up. Raises: ProblemError backup_off."""
    fleet = call.services.fleet
    node = fleet.nodes.get(call.node_id)
    group = None if node is None else fleet.groups.get(node.group_id)
    if group is None or not group.backup:
        name = "" if group is None else f" {group.name}"
        raise ProblemError("backup_off", f"the group{name} isn't backed up; poll to hear when it is")


def _content_md5(call: ApiCall) -> str:
    """Return the header of this name; '' if there is none. Raises: ProblemError invalid_parameter."""
    value = next((value for name, value in call.scope["headers"] if name == b"content-md5"), b"").decode("latin-1")
    if value and not _MD5_IN_BASE64.fullmatch(value):
        text = "the header Content-MD5 isn't 16 bytes in base64"
        raise ProblemError("invalid_parameter", text, field="Content-MD5")
    return value


@contextmanager
def _one_at_once(node_id: str) -> Iterator[None]:
    """Take a place for a file that goes through this process. Raises: ProblemError too_many_acts."""
    if _passing[node_id] or _passing.total() >= AT_ONCE:
        text = f"{AT_ONCE} files of backups go through this replica already, or one of this node; try again"
        raise ProblemError("too_many_acts", text, retry_after=5)
    _passing[node_id] += 1
    try:
        yield
    finally:
        del _passing[node_id]
