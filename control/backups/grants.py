"""Where a node may put files of its backup: under its own prefix, in the history that goes on, and never twice."""

from uuid import UUID

from control.access import auth
from control.access.rate_limits import HOUR, Allowance
from control.backups import objects
from control.backups.objects import BackupFile
from control.clock import Clock
from control.problems import ProblemError
from control.storage import queries
from control.storage.connection import Connection
from control.storage.database import Database

FILES = 8192
"""Files of a node for which it gets places in an hour; as many at once after an hour without any. A node that ships
every second makes 3,600."""
LINEAGES = 12
"""Histories that a node may begin in an hour: each costs a snapshot of the whole database."""
MOST_NODES = 20_000
"""Nodes that are counted; with more, all counts start over."""
LEVELS = (objects.SHIPMENT, objects.SNAPSHOT)
"""The levels of files that nodes make; control merges the others."""

SQL = queries.load("backups")
ENDED = SQL.optional("ended", bool)
LOCK_NODE = SQL.optional("lock_node", UUID)


def file_of(name: str, field: str) -> BackupFile:
    """Return the file with a name such as `0/FIRST-LAST.ltx`. Raises: ProblemError, when a node makes none such."""
    file = objects.parse_name(name)
    if file is None or file.level not in LEVELS:
        text = f"{name!r} isn't 0/FIRST-LAST.ltx or 9/FIRST-LAST.ltx with transactions of 16 hexadecimal digits"
        raise ProblemError("invalid_body" if field == "names" else "invalid_parameter", text, field=field)
    return file


class Grants:
    """Decides what a node may put at the store, and limits how often."""

    def __init__(self, reads: Database, writes: Database, clock: Clock) -> None:
        self._reads = reads
        self._writes = writes
        self._clock = clock
        self._left: dict[tuple[str, str], Allowance] = {}

    def count(self, node_id: str, files: int) -> None:
        """Count files for which a node wants places. Raises: ProblemError too_many_acts."""
        self._take(node_id, FILES, files, "files of a backup")

    async def check(self, node_id: str, lineage: str, credential_id: str = "") -> None:
        """Check that a history of a node goes on; a new one ends the one before it, with a credential that is valid in
        the database, too: a disk that was replaced just now doesn't end the new one's.

        Raises: ProblemError backup_ended, when another one has taken its place; too_many_acts, when the node has begun
        too many; AuthError.
        """
        ended = await self._reads.read(lambda conn: conn.fetchval(ENDED, node_id, lineage))
        if ended is None:
            ended = await self._begin(node_id, lineage, credential_id)
        if ended:
            text = f"the history {lineage} has ended, because this node has begun another one; begin a new one"
            raise ProblemError("backup_ended", text, field="lineage")

    async def _begin(self, node_id: str, lineage: str, credential_id: str) -> bool:
        """Begin a history; return whether it has ended meanwhile."""
        self._take(node_id, LINEAGES, 1, "histories of its database")

        async def work(conn: Connection) -> bool:
            if credential_id:
                await auth.refuse_revoked(conn, credential_id)
            if await conn.fetchval(LOCK_NODE, node_id) is None:
                raise ProblemError("unknown_node", "this node was removed; join again")
            ended = await conn.fetchval(ENDED, node_id, lineage)
            if ended is None:
                now = self._clock.now()
                await conn.execute(SQL["end"], node_id, now)
                await conn.execute(SQL["begin"], node_id, lineage, now)
            return bool(ended)

        return await self._writes.transaction(work)

    def _take(self, node_id: str, most: int, count: int, what: str) -> None:
        now = self._clock.monotonic()
        if len(self._left) >= MOST_NODES:
            self._left.clear()
        left = self._left.setdefault((node_id, what), Allowance(most, HOUR, most, now))
        if left.refill(now) < count:
            wait = int((count - left.count) * HOUR / most) + 1
            text = f"a node may have {most} {what} an hour; ask again in {wait} s"
            raise ProblemError("too_many_acts", text, retry_after=wait)
        left.count -= count
