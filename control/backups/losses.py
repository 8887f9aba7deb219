"""How many rows of each table a node would have after a restore, and has by what is at the store: both databases are
made of their files, one after the other, within bounds of size and time."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from msgspec import Struct

from control.backups.builder import Builder, BuiltDatabase
from control.backups.targets import RestorableState
from control.clock import Clock
from control.problems import ProblemError

MOST_BYTES: Final = 256 * 1024 * 1024
"""Bytes of the larger database, and of the files of each, that are compared for a plan: about ten seconds."""
SECONDS: Final = 50.0
"""How long both may take together; a client waits for 90 s."""


class DifferingRows(Struct):
    """The rows of a table that would have another number of them."""

    table: str
    then: int | None
    """In the state to bring back; null: it has no such table."""
    now: int | None
    """In the last state that is at the store; null: that has no such table."""


class Compared(NamedTuple):
    """What two states of a database have."""

    tables: list[DifferingRows] | None = None
    """Tables whose numbers of rows differ, by name; None if that isn't known."""
    unknown: str = ""
    """Why it isn't known."""
    findings: tuple[str, ...] = ()
    """What is wrong with the state to bring back, one sentence each."""
    release_id: str | None = None
    """The release that the state to bring back records; '' if it has none, None if it isn't known."""


class RowComparison:
    """Compares states; one at a time, since each takes a processor and room on the disk."""

    def __init__(self, builder: Builder, clock: Clock) -> None:
        self._builder = builder
        self._clock = clock
        self._busy = False

    async def compare(self, then_node: str, then: RestorableState, now_node: str, now: RestorableState) -> Compared:
        """Compare the state of a node to bring back with the last one of a node. Never raises: what can't be compared
        is unknown."""
        most = max(then.size, then.read, now.size, now.read)
        if most > MOST_BYTES:
            text = f"the databases or their files have up to {most} bytes, and plans compare {MOST_BYTES} at most"
            return Compared(unknown=text)
        if self._busy:
            return Compared(unknown="this replica compares others for another plan; ask again")
        self._busy = True
        first = Compared()
        try:
            async with self._clock.timeout(SECONDS):
                async with self._builder.built(then_node, then.lineage, then.transaction) as built:
                    first = _found(built)
                    rows = built.rows
                async with self._builder.built(now_node, now.lineage, now.transaction) as built:
                    return first._replace(tables=differing(rows, built.rows), unknown="")
        except TimeoutError:
            return first._replace(unknown=f"the databases weren't made within {SECONDS:.0f} s")
        except ProblemError as problem:
            return first._replace(unknown=f"{problem.detail} [{problem.code}]")
        finally:
            self._busy = False


def _found(built: BuiltDatabase) -> Compared:
    release = built.stored.get("release")
    return Compared(findings=tuple(built.findings), release_id="" if release is None else str(release["release_id"]))


def differing(then: Mapping[str, int], now: Mapping[str, int]) -> list[DifferingRows]:
    """Return the tables that have different numbers of rows, or that only one of the two has."""
    tables = sorted(then.keys() | now.keys())
    return [DifferingRows(name, then.get(name), now.get(name)) for name in tables if then.get(name) != now.get(name)]
