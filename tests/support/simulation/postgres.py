"""PostgreSQL beside the database in memory: it is given every statement of a run, and must answer and hold the same.

A run doesn't wait, so the real server is asked from a thread with a loop of its own, one statement after the other.
"""

import asyncio
import re
import threading
from collections.abc import Coroutine
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import orjson

from control.storage import database
from tests.support.simulation.statements import NAMES
from tests.support.simulation.tables import KEYS, Row, Tables

T = TypeVar("T")

_ORDER = re.compile(r"\bORDER BY ([a-z_., ]+?)(?: LIMIT \$\d+)?$")
"""By which columns a statement's rows are ordered at last."""


class Different(AssertionError):
    """PostgreSQL does something else than the statements in memory."""


class Postgres:
    """A context manager: the migrated, empty database at `url`, as the mirror of one run."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="postgres")
        self._conn: Any = None
        self.statements = 0
        """That were compared."""

    def __enter__(self) -> "Postgres":
        self._thread.start()
        self._db = self._wait(database.connect(self._url, connections=1))
        self._conn = self._wait(self._db._acquire())
        return self

    def __exit__(self, *_error: object) -> None:
        self._wait(self._db._give_back(self._conn))
        self._wait(self._db.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def fill(self, tables: Tables) -> None:
        """Hold the rows of `tables` and no others."""
        self._wait(self._conn.execute(f"TRUNCATE {', '.join(reversed(KEYS))} CASCADE"))
        for table, rows in tables.rows.items():
            if rows:
                columns = ", ".join(next(iter(rows.values())))
                self._wait(
                    self._conn.execute(
                        f"INSERT INTO {table} ({columns})"
                        f" SELECT {columns} FROM jsonb_populate_recordset(NULL::{table}, $1::jsonb)",
                        orjson.loads(orjson.dumps([*rows.values()])),
                    )
                )

    def begin(self) -> None:
        self._wait(self._conn.execute("BEGIN ISOLATION LEVEL SERIALIZABLE"))

    def asked(self, query: str, arguments: tuple[Any, ...], answer: "list[Row] | int") -> None:
        """Give it a statement of the run; raises `Different`."""
        self.statements += 1
        if isinstance(answer, int):
            status = self._wait(self._conn.execute(query, *arguments))
            mine, theirs = [answer], [int(status.rpartition(" ")[2])]
        else:
            rows = self._wait(self._conn.fetch(query, *arguments))
            mine, theirs = [_plain(row) for row in answer], [_plain(row) for row in rows]
            if (order := _ORDER.search(query)) is not None:
                columns = [name.rpartition(".")[2].strip() for name in order[1].split(",")]
                if _only(mine, columns) != _only(theirs, columns):
                    raise Different(
                        f"{NAMES[query]}{arguments}: by {columns}, in memory {mine}, in PostgreSQL {theirs}"
                    )
            mine, theirs = sorted(mine, key=repr), sorted(theirs, key=repr)
        if mine != theirs:
            raise Different(f"{NAMES[query]}{arguments}: in memory {mine}, in PostgreSQL {theirs}")

    def end(self, *, commit: bool) -> None:
        self._wait(self._conn.execute("COMMIT" if commit else "ROLLBACK"))

    def compare(self, tables: Tables) -> int:
        """Compare all rows with those in memory, and return how many there are; raises `Different`."""
        count = 0
        for table, rows in tables.rows.items():
            mine = sorted((_plain(row) for row in rows.values()), key=repr)
            if mine:
                found = self._wait(self._conn.fetch(f"SELECT {', '.join(mine[0])} FROM {table}"))
                theirs = sorted((_plain(row) for row in found), key=repr)
            else:
                theirs = [_plain(row) for row in self._wait(self._conn.fetch(f"SELECT * FROM {table}"))]
            if mine != theirs:
                raise Different(f"{table}: in memory {mine}, in PostgreSQL {theirs}")
            count += len(mine)
        return count

    def _wait(self, asked: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(asked, self._loop).result()


def _plain(row: Any) -> dict[str, Any]:
    """A row whose values can be compared: ids are texts, JSON is what it says, and the server's clock is left out."""
    return {name: _value(row[name]) for name in row.keys() if name != "clock_timestamp"}  # noqa: SIM118


def _only(rows: list[dict[str, Any]], columns: list[str]) -> list[list[Any]]:
    return [[row.get(name) for name in columns] for row in rows]


def _value(value: Any) -> Any:
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, str) and value[:1] in ("[", "{"):
        return orjson.loads(value)
    if isinstance(value, datetime):
        return value.timestamp()
    return value
