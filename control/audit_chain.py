"""The chain of seals over the audit log (ADR 35): what a seal's hash covers, and whether rows and seals are intact.

Used by control, which makes seals, and by `skerry audit verify`, which recomputes every hash from what control sends.
"""

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec import Struct

from control.protocol import wire
from control.protocol.counts import counted

LATE = timedelta(minutes=10)
"""How much earlier than rows already sealed a row's time may be, since its transaction may have taken long."""

JsonRow = Mapping[str, Any]
"""A row of the audit log as the API returns it (`AuditEntry`)."""


class AuditEntry(Struct):
    """A row of the audit log: a change, and who made it."""

    id: str
    at: datetime
    actor_kind: str
    """`operator`, `node`, or `control`: control itself, or a command that has the database's URL."""
    actor: str
    address: str
    """The IP address of the client; '' if the change wasn't requested over the network."""
    call_id: str
    """The X-Request-Id of the answer to the request; '' if there was no request."""
    action: str
    target: str
    """What was changed."""
    before: dict[str, Any]
    """The values that the change modified, by name, as they were before."""
    after: dict[str, Any]
    """The same values as they were afterwards."""
    details: dict[str, Any]
    """Circumstances of the change, such as its reason."""
    seal: int | None
    """The number of the seal over the row; null until it has one."""


class AuditSeal(Struct):
    """A seal over some rows of the audit log."""

    number: int
    """1, 2, 3 … without a gap."""
    previous: str
    """The hash of the previous seal; '' for the first one."""
    hash: str
    rows_hash: str
    count: int
    first_at: datetime
    last_at: datetime
    sealed_at: datetime
    cut_at: datetime | None
    """When its rows and all earlier seals were deleted because they were old; null for all seals but the first."""


@dataclass(frozen=True)
class WholeChain:
    """What an intact chain contains."""

    seals: int
    rows: int
    """Rows under these seals, without those that were deleted because they were old."""
    head: str
    """The hash of the newest seal; '' if there is none."""
    newest_at: datetime | None
    """When the newest seal was made."""
    cut_until: datetime | None
    """The time of the newest row that was deleted because it was old; None if none was."""
    late: int = 0
    """The number of rows that are more than `LATE` earlier than rows under earlier seals."""
    first_late: str = ""
    """The id of the first of them."""


class ChainBroken(Exception):
    """Rows or seals have been changed since they were made; the message says which, and what is wrong."""


class RowsHash:
    """The hash of a seal's rows, which are added in the order of their times and ids."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self.count = 0
        self.first_at = self.last_at = ""

    def add(self, row: JsonRow) -> None:
        """Add a row. Empty values aren't hashed, so that a new column changes no old hash."""
        kept = {name: value for name, value in row.items() if name != "seal" and value not in (None, "", {})}
        self._sha256.update(wire.canonical(kept) + b"\n")
        self.count += 1
        self.first_at = self.first_at or row["at"]
        self.last_at = row["at"]

    def hexdigest(self) -> str:
        """Return the hash of the rows so far."""
        return self._sha256.hexdigest()


def seal(number: int, previous: str, entries: Sequence[AuditEntry], sealed_at: datetime) -> AuditSeal:
    """Make the seal over these rows: at least one, in the order of their times and ids."""
    rows = RowsHash()
    for entry in entries:
        rows.add(msgspec.to_builtins(entry))
    first, last = entries[0].at, entries[-1].at
    made = AuditSeal(number, previous, "", rows.hexdigest(), rows.count, first, last, sealed_at, None)
    return msgspec.structs.replace(made, hash=seal_hash(made))


def seal_hash(made: AuditSeal) -> str:
    """Return the hash of a seal, over all its fields except the hash itself and `cut_at`."""
    values = {name: value for name, value in msgspec.structs.asdict(made).items() if name not in ("hash", "cut_at")}
    return hashlib.sha256(wire.canonical(values)).hexdigest()


async def verify(
    seals: Callable[[int], AsyncIterator[AuditSeal]], rows: Callable[[int], AsyncIterator[JsonRow]], head: str = ""
) -> WholeChain:
    """Check all seals and all sealed rows; only one seal and one row are in memory at a time.

    `seals(n)` are the seals after number n, by number; `rows(n)` the rows under these, by seal, time and id. Rows that
    are sealed meanwhile are checked too. `head`: the hash of a seal that must be among them.
    Raises: ChainBroken, when a row or a seal was removed, changed, added or moved.
    """
    last: AuditSeal | None = None
    seen = total = late = 0
    newest_at = cut_until = newest_row = None
    first_late = ""
    found = not head
    stream = rows(0)
    row = await anext(stream, None)
    more = True
    while more:
        more = False
        async for one in seals(0 if last is None else last.number):
            more = True
            _check_seal(one, last)
            if row is None:
                # All rows had been read, and this seal may have been made since.
                stream = rows(one.number - 1)
                row = await anext(stream, None)
            hashed = RowsHash()
            while row is not None and row["seal"] <= one.number:
                if row["seal"] < one.number:
                    raise ChainBroken(_stray(row))
                hashed.add(row)
                if newest_row is not None and _utc(datetime.fromisoformat(row["at"])) < newest_row - LATE:
                    late, first_late = late + 1, first_late or row["id"]
                row = await anext(stream, None)
            if one.cut_at is None:
                _check_rows(one, hashed)
            else:
                cut_until = one.last_at
                if hashed.count:
                    raise ChainBroken(f"seal {one.number}: its rows are said to be deleted, and some are there")
            found = found or one.hash == head
            last, newest_at = one, one.sealed_at
            # A time after the seal's own is no basis for a comparison.
            before = min(_utc(one.last_at), one.sealed_at)
            newest_row = before if newest_row is None else max(newest_row, before)
            seen, total = seen + 1, total + hashed.count
    if row is not None:
        raise ChainBroken(_stray(row))
    if not found:
        raise ChainBroken(
            f"no seal has the hash {head}: seals were removed or made anew since it was noted, or it is so old that "
            "it was deleted with its rows"
        )
    head = "" if last is None else last.hash
    return WholeChain(seen, total, head, newest_at, cut_until, late, first_late)


def _utc(time: datetime) -> datetime:
    """Return a time in the form for comparison: one that is infinite in the database comes without an offset."""
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _check_seal(one: AuditSeal, last: AuditSeal | None) -> None:
    if last is None:
        if one.cut_at is None and (one.number != 1 or one.previous):
            raise ChainBroken(f"the seals before number {one.number} are missing, and weren't deleted by their age")
    else:
        if one.number != last.number + 1:
            raise ChainBroken(f"seals are missing between the numbers {last.number} and {one.number}")
        if one.previous != last.hash:
            raise ChainBroken(f"seal {one.number} doesn't continue seal {last.number}")
        if one.cut_at is not None:
            raise ChainBroken(f"seal {one.number}: its rows are said to be deleted, and it isn't the first seal")
    if one.hash != seal_hash(one):
        raise ChainBroken(f"seal {one.number} was changed: its hash is another one")


def _check_rows(one: AuditSeal, hashed: RowsHash) -> None:
    between = f"between {wire.canonical(one.first_at).decode()} and {wire.canonical(one.last_at).decode()}"
    if hashed.count != one.count:
        what = "removed" if hashed.count < one.count else "added"
        raise ChainBroken(
            f"seal {one.number} is over {counted(one.count, 'row')}, and there are {hashed.count}: rows {between} "
            f"were {what}"
        )
    if hashed.hexdigest() != one.rows_hash:
        raise ChainBroken(f"seal {one.number}: rows {between} were changed or replaced")


def _stray(row: JsonRow) -> str:
    return f"the row {row['id']} of {row['at']} names seal {row['seal']}, which isn't there"
