"""Takes records from the replica that a node has sent them to, to the one that has the view.

There is no network between replicas, so they use the metadata database: a row of `watched_records` has what one replica
has for another, packed. Rows are written five times a second at most, read by their numbers, which each sender counts
up, and deleted half a minute later by any replica. CockroachDB goes on reading past deleted rows for a long time, so
nothing is read where rows were deleted.
"""

import asyncio
import zlib
from datetime import timedelta
from typing import NamedTuple

import msgspec

from control.clock import Clock
from control.problems import ProblemError
from control.storage import queries
from control.storage.connection import Connection
from control.storage.database import Database
from control.sync import fleet_cache

OUTBOX_BYTES = 512 * 1024
"""Bytes of records that wait to be sent."""
READ_AT_ONCE = 32
"""Rows that are read at a time."""
KEPT = timedelta(seconds=30)
"""How long rows are kept."""
CLEANED = 500
"""Rows that are deleted at a time."""
MARKED = timedelta(seconds=10)
"""How old the mark of a replica that runs may be."""


class RateRow(NamedTuple):
    """The rate of a watch."""

    id: str
    rate: float


class SentRow(NamedTuple):
    """What a replica has sent to another one."""

    sender: str
    seq: int
    body: bytes


SQL = queries.load("watches")
RATES = SQL.rows("rates", RateRow)
REPLICAS = SQL.value("replicas", str)
RECEIVE = SQL.rows("receive", SentRow)


class NodeBatch(NamedTuple):
    """What a node has sent of a watch."""

    watch: str
    node: str
    """The node's id."""
    lines: bytes
    records: int
    """Records in `lines`."""
    sampled: int
    """Records that the node or a replica has left out."""
    left_out: int
    """Older records that the node has left out."""
    invalid: int
    """Lines that weren't records."""
    done: bool
    """Whether the node has told all that it had when it was asked."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[NodeBatch]).decode


class RecordRelay:
    """One replica's end of the relay."""

    def __init__(self, db: Database, clock: Clock, name: str) -> None:
        """`name` is this replica's."""
        self._db = db
        self._clock = clock
        self._name = name
        self._outbox: dict[str, list[NodeBatch]] = {}
        """Batches that wait to be sent, by the replica that they are for."""
        self._size = 0
        """Bytes of records in the outbox."""
        self._sent: dict[str, int] = {}
        """The number of the last row that was sent, by the replica that it is for."""
        self._read: dict[str, int] = {}
        """The number of the last row that was read, by the replica that sent it."""
        self.others: list[str] = []
        """The other replicas that run, as they were when they were last looked for."""

    def post(self, replica: str, batch: NodeBatch) -> None:
        """Have a batch sent; if too much waits already, leave out its records and count them."""
        if self._size + len(batch.lines) > OUTBOX_BYTES:
            batch = batch._replace(lines=b"", records=0, sampled=batch.sampled + batch.records)
        self._size += len(batch.lines)
        self._outbox.setdefault(replica, []).append(batch)

    async def send(self) -> dict[str, float]:
        """Send what waits; return the present rates of the watches that it is of. Raises: ProblemError."""
        if not self._outbox:
            return {}
        outbox, self._outbox, self._size = self._outbox, {}, 0
        packed = await asyncio.to_thread(_pack, list(outbox.values()))
        numbers = [self._sent.get(replica, 0) + 1 for replica in outbox]
        # Where the answer to COMMIT gets lost, the rows may be there: their numbers aren't used again.
        self._sent.update(zip(outbox, numbers, strict=True))
        ids = sorted({batch.watch for batches in outbox.values() for batch in batches})
        row = (list(outbox), self._name, list(map(str, numbers)), packed, self._clock.now())

        async def write(conn: Connection) -> dict[str, float]:
            await conn.execute(SQL["send"], *row)
            return {found.id: found.rate for found in await conn.fetch(RATES, ids)}

        try:
            return await self._db.transaction(write)
        except ProblemError:
            for replica, batches in outbox.items():
                for batch in batches:
                    self.post(replica, batch._replace(lines=b"", records=0, sampled=batch.sampled + batch.records))
            raise

    async def receive(self) -> list[NodeBatch]:
        """Return what others have sent since the last time. Raises: ProblemError."""
        lasts = [str(self._read.get(name, 0)) for name in self.others]
        rows = await self._db.read(lambda conn: conn.fetch(RECEIVE, self._name, self.others, lasts, READ_AT_ONCE))
        found = []
        for row in rows:
            self._read[row.sender] = row.seq
            found += await asyncio.to_thread(_unpack, row.body)
        return found

    async def find_others(self) -> None:
        """Find out which replicas there are. Raises: ProblemError."""
        since = self._clock.now() + fleet_cache.MARK_KEPT - MARKED
        self.others = [n for n in await self._db.read(lambda conn: conn.column(REPLICAS, since)) if n != self._name]

    async def clean(self) -> None:
        """Delete rows that have been there long enough, of all replicas. Raises: ProblemError."""
        before = self._clock.now() - KEPT

        async def work(conn: Connection) -> str:
            return await conn.execute(SQL["clean"], before, CLEANED)

        while await self._db.transaction(work) == f"DELETE {CLEANED}":
            pass


def _pack(groups: list[list[NodeBatch]]) -> list[bytes]:
    return [zlib.compress(_encode(batches), 1) for batches in groups]


def _unpack(body: bytes) -> list[NodeBatch]:
    return _decode(zlib.decompress(body))
