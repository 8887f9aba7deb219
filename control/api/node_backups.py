"""Nodes' side of their backups: where files may be put, and what is there."""

import asyncio
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from control.api import artifacts
from control.api.operations import ApiCall, Reply, operation
from control.backups import grants, objects
from control.problems import ProblemError
from control.protocol import wire
from control.storage.object_store import WriteConflict

LIFE = 3600
"""Seconds for which a URL is valid at most; `presigned_life` may be less."""
MOST_BYTES = 5 * 1024**3
"""Bytes of a file at most: what S3 takes in one piece."""
AT_ONCE = 8
"""Files that go through this replica at once, each of another node."""

PATH = "/v1/nodes/self/backup/uploads/{lineage}/{level}/{file}"
_MD5 = re.compile("[0-9a-f]{32}")
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
    await services.grants.check(call.node_id, body.lineage)
    seconds = min(services.settings.presigned_life, LIFE)
    if services.settings.artifacts_delivery == "control":
        urls = [f"/v1/nodes/self/backup/uploads/{body.lineage}/{file.name}" for file in files]
    else:
        urls = []
        for index, file in enumerate(files):
            if index % 16 == 15:
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
    """Pass a file on to the store, where there may be none yet."""
    services, lineage = call.services, call.path["lineage"]
    if services.settings.artifacts_delivery != "control":
        raise ProblemError("no_such_path", "files of backups go to the store by the URLs that control has signed")
    _on(call)
    file = grants.file_of(f"{call.path['level']}/{call.path['file']}", "file")
    services.grants.count(call.node_id, 1)
    await services.grants.check(call.node_id, lineage)
    folder = services.settings.spool
    with _one_at_once(call.node_id), artifacts.spool_failures(folder):
        # Without a name, so that a kill leaves nothing behind.
        spooled = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        try:
            await artifacts.spool(call, spooled, MOST_BYTES)
            await services.store.put_new(objects.key(call.node_id, lineage, file), spooled)
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


def _on(call: ApiCall) -> None:
    """Check, in memory, that the node's group is backed up. Raises: ProblemError backup_off."""
    fleet = call.services.fleet
    node = fleet.nodes.get(call.node_id)
    group = None if node is None else fleet.groups.get(node.group_id)
    if group is None or not group.backup:
        name = "" if group is None else f" {group.name}"
        raise ProblemError("backup_off", f"the group{name} isn't backed up; poll to hear when it is")


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
