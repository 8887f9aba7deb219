"""The tables of the metadata database in memory, with what a transaction needs: undoing all that it wrote."""

from collections.abc import Callable, Iterator
from typing import Any

Key = Any
"""A primary key; ids are texts, as most statements have them."""
KEYS: dict[str, tuple[str, ...]] = {
    "epochs": ("id",),
    "generations": ("id",),
    "groups": ("id",),
    "nodes": ("id",),
    "node_presence": ("node_id",),
    "node_functions": ("node_id", "name"),
    "warnings": ("id",),
    "credentials": ("id",),
    "operators": ("id",),
    "artifacts": ("id",),
    "functions": ("name",),
    "function_versions": ("name", "version"),
    "schema_changes": ("number", "revision"),
    "releases": ("id",),
    "release_functions": ("release_id", "name"),
    "syncs": ("id",),
    "audit": ("id",),
    "idempotency": ("operator", "key"),
    "leases": ("name",),
    "watches": ("id",),
    "access_changes": ("id",),
}
"""The tables that the statements of a run use, in an order in which rows can be inserted, and their primary keys."""


class Row(dict[Any, Any]):
    """A row of an answer: by column or by position, and its values in the statement's order, as asyncpg has it."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values())

    def __missing__(self, key: Any) -> Any:
        if isinstance(key, int):
            return [*self.values()][key]
        raise KeyError(key)


class UniqueViolation(AssertionError):
    """A row would be there twice: no transaction of the program's may try that without a concurrent one."""


class Tables:
    """The rows, by table and key. A row is never changed, another one takes its place."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[Key, dict[str, Any]]] = {name: {} for name in KEYS}
        self.open_syncs: dict[str, str] = {}
        """The running sync of each node that has one."""
        self.journal: list[tuple[str, Key, dict[str, Any] | None]] = []
        """What the transaction has replaced, oldest first."""
        self.now: Callable[[], Any] = lambda: None
        """The database's clock."""

    def __getitem__(self, table: str) -> dict[Key, dict[str, Any]]:
        return self.rows[table]

    def insert(self, table: str, **row: Any) -> None:
        """Add a row; raises `UniqueViolation`."""
        names = KEYS[table]
        key = row[names[0]] if len(names) == 1 else tuple(row[name] for name in names)
        if key in self.rows[table]:
            raise UniqueViolation(f"{table} has a row {key} already")
        self._put(table, key, row)

    def update(self, table: str, key: Key, **changes: Any) -> None:
        """Change columns of a row that is there."""
        self._put(table, key, {**self.rows[table][key], **changes})

    def delete(self, table: str, key: Key) -> None:
        self.journal.append((table, key, self.rows[table].pop(key)))

    def backup(self) -> dict[str, dict[Key, dict[str, Any]]]:
        """All rows, as `restore` takes them."""
        return {table: dict(rows) for table, rows in self.rows.items()}

    def restore(self, backup: dict[str, dict[Key, dict[str, Any]]]) -> None:
        """Have these rows and no others."""
        for table, rows in backup.items():
            self.rows[table].clear()
            self.rows[table].update(rows)
        self._find_open()

    def undo(self) -> None:
        """Have everything as it was when the transaction began."""
        for table, key, before in reversed(self.journal):
            if before is None:
                del self.rows[table][key]
            else:
                self.rows[table][key] = before
        self.journal.clear()
        self._find_open()

    def _find_open(self) -> None:
        self.open_syncs = {row["node_id"]: id for id, row in self.rows["syncs"].items() if row["status"] == "running"}

    def _put(self, table: str, key: Key, row: dict[str, Any]) -> None:
        before = self.rows[table].get(key)
        if table == "syncs":
            self._index(key, before, row)
        self.journal.append((table, key, before))
        self.rows[table][key] = row

    def _index(self, key: Key, before: dict[str, Any] | None, row: dict[str, Any]) -> None:
        """Keep the unique index of open syncs."""
        if before is not None and before["status"] == "running":
            del self.open_syncs[before["node_id"]]
        if row["status"] == "running":
            other = self.open_syncs.setdefault(row["node_id"], key)
            if other != key:
                raise UniqueViolation(f"node {row['node_id']} would have two open syncs, {other} and {key}")
