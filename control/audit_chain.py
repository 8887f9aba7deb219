"""The chain of seals over the audit log (ADR 35): what a seal's hash is over, and whether rows and seals are whole.

Used by control, which makes seals, and by `skerry audit verify`, which computes every hash anew from what it is sent.
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
"""How much earlier than rows that are sealed already a row's time may be: its transaction may have taken long."""

JsonRow = Mapping[str, Any]
"""A row of the audit log as the API answers it (`AuditEntry`)."""


class AuditEntry(Struct):
    """A row of the audit log: a change, and who made it."""

    id: str
    at: datetime
    actor_kind: str
    """`operator`, `node`, or `control`: by itself, or a command that has the database's URL."""
    actor: str
    address: str
    """The IP address of the client; '' where nothing was asked for over the network."""
    call_id: str
    """The X-Request-Id of the answer to the request; '' where there was none."""
    action: str
    target: str
    """What was changed."""
    before: dict[str, Any]
    """The values that the change has changed, by name, as they were."""
    after: dict[str, Any]
    """The same values as they are since."""
    details: dict[str, Any]
    """Circumstances of the change, such as its reason."""
    seal: int | None
    """The number of the seal over the row; null until it has one."""


class AuditSeal(Struct):
    """A seal over some rows of the audit log."""

    number: int
    """1, 2, 3 … without a gap."""
    previous: str
    """The hash of the seal before; '' for the first one."""
    hash: str
    rows_hash: str
    count: int
    first_at: datetime
    last_at: datetime
    sealed_at: datetime
    cut_at: datetime | None
    """When its rows were deleted because they were old, with all seals before it; null for all seals but the first."""


@dataclass(frozen=True)
class WholeChain:
    """What a chain that is whole has."""

    seals: int
    rows: int
    """Rows under these seals, without those that were deleted because they were old."""
    head: str
    """The hash of the newest seal, '' where there is none."""
    newest_at: datetime | None
    """When the newest seal was made."""
    cut_until: datetime | None
    """The time of the newest row that was deleted because it was old; None where none was."""
    late: int = 0
    """Rows whose time is earlier, by more than `LATE`, than that of rows under seals before theirs."""
    first_late: str = ""
    """The id of the first of them."""


class ChainBroken(Exception):
    """The rows or the seals aren't as they were made; the message says which, and what is wrong."""


class RowsHash:
    """The hash of a seal's rows, which are added in the order of their times and ids."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self.count = 0
        self.first_at = self.last_at = ""

    def add(self, row: JsonRow) -> None:
        """Add a row. Values that are empty aren't hashed, so that a column that is new changes no old hash."""
        kept = {name: value for name, value in row.items() if name != "seal" and value not in (None, "", {})}
        self._sha256.update(wire.canonical(kept) + b"\n")
        self.count += 1
        self.first_at = self.first_at or row["at"]
        self.last_at = row["at"]

    def hexdigest(self) -> str:
        """Return the hash of the rows so far."""
        return self._sha256.hexdigest()


def seal(number: int, previous: str, entries: Sequence[AuditEntry], sealed_at: datetime) -> AuditSeal:
    """Make the seal over these rows, one at least, which are in the order of their times and ids."""
    rows = RowsHash()
    for entry in entries:
        rows.add(msgspec.to_builtins(entry))
    first, last = entries[0].at, entries[-1].at
    made = AuditSeal(number, previous, "", rows.hexdigest(), rows.count, first, last, sealed_at, None)
    return msgspec.structs.replace(made, hash=seal_hash(made))


def seal_hash(made: AuditSeal) -> str:
    """Return the hash of a seal, over all that it says but the hash itself and `cut_at`."""
    values = {name: value for name, value in msgspec.structs.asdict(made).items() if name not in ("hash", "cut_at")}
    return hashlib.sha256(wire.canonical(values)).hexdigest()


async def verify(
    seals: Callable[[int], AsyncIterator[AuditSeal]], rows: Callable[[int], AsyncIterator[JsonRow]], head: str = ""
) -> WholeChain:
    """Check all seals and all rows that have one; only one seal and one row are held at a time.

    `seals(n)` are the seals after number n, by number; `rows(n)` the rows under these, by seal, time and id. What is
    sealed meanwhile is checked, too. `head`: the hash of a seal that must be among them.
    Raises: ChainBroken, when a row or a seal was removed, changed, added or put elsewhere.
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
                # The rows had come to their end, and this seal may have been made since.
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
            # A time after the seal's own is nothing to compare others with.
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
    """Return a time as it is compared: one that the database has as infinite comes without an offset."""
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
