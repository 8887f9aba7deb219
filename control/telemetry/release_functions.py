"""The names of releases' functions, by which nodes' numbers refer to them: as their places when sorted by name."""

from collections.abc import Collection
from typing import NamedTuple

from control.storage import queries
from control.storage.database import Database


class ReleasedFunction(NamedTuple):
    """A function of a release."""

    group_id: str
    number: int
    name: str


SQL = queries.load("numbers")
RELEASE_FUNCTIONS = SQL.rows("release_functions", ReleasedFunction)
MOST = 2000
"""Releases that are kept in memory."""
AT_ONCE = 100
"""Releases that are read in one query."""
KEPT, KEPT_NONE = 600.0, 60.0
"""Seconds for which a release's functions are kept, and that there are none: metadata that are restored from a backup
may give a number to another release, and a node may name one that isn't made yet."""


class ReleaseFunctions:
    """The functions of releases that nodes have named, kept in memory."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._names: dict[tuple[str, int], tuple[float, tuple[str, ...]]] = {}
        """Until when they are kept, in the clock's `monotonic`, and the names."""

    def get(self, group_id: str, release: int, time: float) -> tuple[str, ...] | None:
        """The names of a release's functions, sorted; none where there is no such release. None: it must be read."""
        until, names = self._names.get((group_id, release), (0.0, ()))
        return names if time < until else None

    async def read(self, releases: Collection[tuple[str, int]], time: float) -> None:
        """Read the functions of these releases. Raises: ProblemError, when the database doesn't answer."""
        wanted = [key for key in releases if self.get(*key, time) is None][:AT_ONCE]
        if not wanted:
            return
        if len(self._names) + len(wanted) > MOST:
            self._names.clear()
        ids, numbers = [id for id, _ in wanted], [str(number) for _, number in wanted]
        found: dict[tuple[str, int], list[str]] = {key: [] for key in wanted}
        for row in await self._db.read(lambda conn: conn.fetch(RELEASE_FUNCTIONS, ids, numbers)):
            found[row.group_id, row.number].append(row.name)
        for key, names in found.items():
            self._names[key] = (time + (KEPT if names else KEPT_NONE), tuple(sorted(names)))
